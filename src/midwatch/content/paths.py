"""What is never stored nor written: paths that leave their folder, or mean two things. Pure.

A path is relative and has `/` between its parts. Bytes that are not UTF-8 are in it as Python's
`surrogateescape` has them, and travel in JSON as the escapes `\\udc80` to `\\udcff`. Case and Unicode
normal form stay as they are: two names that look alike are two entries.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from midwatch.content.errors import PathRefused
from midwatch.content.tree import Kind, Tree

MAX_PATH = 4095
"""Bytes of a path and of a symlink's target: Linux' PATH_MAX without the NUL."""
MAX_PART = 255
"""Bytes between two slashes: NAME_MAX of the usual file systems."""
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = r"[a-z0-9](?:[a-z0-9.-]{0,98}[a-z0-9])?"
_FOLDER = re.compile(f"{_LABEL}/{_NAME}", re.ASCII)


def check_folder(folder: str) -> str:
    """The folder's id, `NAMESPACE/NAME.UID`, if it is one. Raises PathRefused."""
    if not _FOLDER.fullmatch(folder) or ".." in folder:
        raise PathRefused(
            folder,
            "is no folder's id",
            hint="it is NAMESPACE/NAME.UID, such as team-a/fix-checkout.0123abcd",
        )
    return folder


def check_path(path: str) -> None:
    """Raises PathRefused for what is absolute, too long, or has a part that is empty, `.` or `..`."""
    if not path or path.startswith("/"):
        raise PathRefused(path, "is not a relative path")
    _check_text(path, path)
    for part in path.split("/"):
        if part in ("", ".", ".."):
            raise PathRefused(path, f"has the part {part!r}")
        # The length in characters is a lower bound; most names need no encoding to pass.
        if len(part) * 4 > MAX_PART and len(_encoded(part)) > MAX_PART:
            raise PathRefused(path, f"has a part of more than {MAX_PART} bytes")


def check_target(path: str, target: str) -> None:
    """Where a symlink may point is not restricted, since nobody follows it here; its form is."""
    if not target:
        raise PathRefused(path, "is a symlink to nothing")
    _check_text(path, target)


def check_entries(entries: Tree) -> None:
    """Each path, and where each symlink points to. Raises PathRefused."""
    for path, entry in entries.items():
        check_path(path)
        if entry.kind == "symlink":
            check_target(path, entry.target)


def check_shape(paths: Iterable[str], kind: Callable[[str], Kind | None]) -> None:
    """Nothing is below what is no folder. `kind` of a path that is not there is None."""
    fine = {""}
    for path in paths:
        above = path.rpartition("/")[0]
        while above not in fine:
            if kind(above) not in ("folder", None):
                raise PathRefused(path, f"is below a {kind(above)}")
            fine.add(above)
            above = above.rpartition("/")[0]


def check_tree(tree: Tree) -> None:
    """All of it, for a tree that comes from outside. Raises PathRefused."""
    check_entries(tree)
    check_shape(tree, lambda path: tree[path].kind if path in tree else None)


def _check_text(path: str, text: str) -> None:
    if "\0" in text:
        raise PathRefused(path, "has a NUL in it")
    if text.isascii():
        size = len(text)
    else:
        raw = _encoded(text)
        size = len(raw)
        # Escaped bytes that together are a character would be a second name of one file.
        if raw.decode("utf-8", "surrogateescape") != text:
            raise PathRefused(path, "is not written as a file system would name it")
    if size > MAX_PATH:
        raise PathRefused(path, f"has more than {MAX_PATH} bytes")


def _encoded(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise PathRefused(text, "has half a surrogate pair in it") from None
