"""Git directories made by plain file operations: no process, no template, no shared file.

A clone that an agent works in gets copies. A hard link to a mirror's pack would let the agent
write into the mirror through a sandbox that only allows the workspace; a borrowed object folder would
break when the mirror is pruned. A copy within the kernel costs 13 ms for 50 MB, and nothing where
the file system shares blocks.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

_PACK_FILES = (".pack", ".idx", ".rev", ".promisor")
# (section, subsection, key, value)
Setting = tuple[str, str, str, str]


def make_git_dir(
    git_dir: Path, head: str, settings: Iterable[Setting], refs: Mapping[str, str]
) -> None:
    """An empty git directory: `head` is a full ref name or an object id."""
    for folder in ("objects/pack", "objects/info", "refs/heads", "refs/tags", "info"):
        (git_dir / folder).mkdir(parents=True)
    target = f"ref: {head}" if head.startswith("refs/") else head
    (git_dir / "HEAD").write_text(f"{target}\n", encoding="utf-8")
    (git_dir / "config").write_text(config_text(settings), encoding="utf-8")
    lines = [f"{oid} {name}\n" for name, oid in refs.items()]
    (git_dir / "packed-refs").write_text("".join(sorted(lines)), encoding="utf-8")


def base_settings(bare: bool, object_format: str, promisor: bool) -> list[Setting]:
    """What git needs to know of its own directory."""
    extended = promisor or object_format != "sha1"
    settings = [
        ("core", "", "repositoryformatversion", "1" if extended else "0"),
        ("core", "", "filemode", "true"),
        ("core", "", "bare", "true" if bare else "false"),
    ]
    if not bare:
        settings.append(("core", "", "logallrefupdates", "true"))
    if object_format != "sha1":
        settings.append(("extensions", "", "objectformat", object_format))
    if promisor:
        settings.append(("extensions", "", "partialclone", "origin"))
        settings.append(("remote", "origin", "promisor", "true"))
        settings.append(("remote", "origin", "partialclonefilter", "blob:none"))
    return settings


def config_text(settings: Iterable[Setting]) -> str:
    """A git config file. Every value is quoted, so none can begin a section of its own."""
    lines = []
    for section, subsection, key, value in settings:
        heading = f'{section} "{_escaped(subsection)}"' if subsection else section
        lines.append(f'[{heading}]\n\t{key} = "{_escaped(value)}"\n')
    return "".join(lines)


def _escaped(text: str) -> str:
    if "\n" in text or "\0" in text:
        raise ValueError("a line break cannot be part of a git setting")
    return text.replace("\\", "\\\\").replace('"', '\\"')


def link_objects(source: Path, target: Path) -> None:
    """Give git directory `target` the objects of `source` by hard links (else copies).

    Only between folders that both are ours: git itself never changes a pack in place.
    """
    _transfer(source, target, _link_or_copy)


def copy_objects(source: Path, target: Path) -> None:
    """Give git directory `target` copies of the objects of `source`."""
    _transfer(source, target, copy_file)


def _transfer(source: Path, target: Path, put: Callable[[Path, Path], None]) -> None:
    for folder in ("pack", *_loose_folders(source / "objects")):
        made = target / "objects" / folder
        made.mkdir(exist_ok=True)
        for entry in list(os.scandir(source / "objects" / folder)):
            place = made / entry.name
            wanted = folder != "pack" or entry.name.endswith(_PACK_FILES)
            if wanted and entry.is_file(follow_symlinks=False) and not place.exists():
                put(Path(entry.path), place)
    shallow = source / "shallow"
    if shallow.exists():
        copy_file(shallow, target / "shallow")


def _loose_folders(objects: Path) -> list[str]:
    return [
        e.name for e in list(os.scandir(objects)) if len(e.name) == 2 and e.is_dir()
    ]


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        copy_file(source, target)


def copy_file(source: Path, target: Path) -> None:
    """Copy content within the kernel, sharing blocks where the file system can."""
    with source.open("rb") as read, target.open("xb") as written:
        size = os.fstat(read.fileno()).st_size
        try:
            _copy_range(read.fileno(), written.fileno(), size)
        except OSError:  # not between these file systems
            written.truncate(0)
            written.seek(0)
            read.seek(0)
            shutil.copyfileobj(read, written, 1 << 20)
        os.fchmod(written.fileno(), 0o444)


def _copy_range(source: int, target: int, size: int) -> None:
    done = 0
    while done < size:
        count = os.copy_file_range(source, target, size - done, done, done)
        if count == 0:
            raise OSError("the source became shorter")
        done += count
