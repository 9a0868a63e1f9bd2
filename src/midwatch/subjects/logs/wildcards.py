"""The paths that a pattern with wildcards matches, and the folders of it that could not be listed (blocking).

`glob` leaves out a folder that may not be listed, without a word; here it is an error that is reported.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

_WILD = re.compile(r"[*?\[]")
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}

OnError = Callable[[str, OSError], None]
_Result = TypeVar("_Result")


def has_wildcard(pattern: str) -> bool:
    return _WILD.search(pattern) is not None


def matching(pattern: str, on_error: OnError) -> Iterator[str]:
    """Yield the paths that exist and match, as the shell has them: `**` is any folders, hidden names are named.

    Args:
        pattern: An absolute path with the wildcards * ? [ ] and `**`.
        on_error: Gets each path that could not be looked at, and why. What is gone meanwhile is no error.
    """
    parts: list[str] = []
    for part in pattern.split("/"):
        if part and not (part == "**" and parts[-1:] == ["**"]):
            parts.append(part)
    yield from _matching("/", parts, on_error)


def _matching(folder: str, parts: Sequence[str], on_error: OnError) -> Iterator[str]:
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _below(folder, rest or ["*"], on_error, set())
    elif not has_wildcard(part):
        path = os.path.join(folder, part)
        if rest:
            yield from _matching(path, rest, on_error)
        elif _tried(os.lstat, path, on_error) is not None:
            yield path
    else:
        for entry in _entries(folder, on_error):
            if _hidden(entry.name) > _hidden(part) or not fnmatchcase(entry.name, part):
                continue
            if not rest:
                yield entry.path
            elif _is_folder(entry, on_error):
                yield from _matching(entry.path, rest, on_error)


def _below(
    folder: str, rest: Sequence[str], on_error: OnError, seen: set[tuple[int, int]]
) -> Iterator[str]:
    """Yield what matches in a folder and in those below it, each once: links may lead in a circle."""
    info = _tried(os.stat, folder, on_error)
    if info is None or (info.st_dev, info.st_ino) in seen:
        return
    seen.add((info.st_dev, info.st_ino))
    yield from _matching(folder, rest, on_error)
    for entry in _entries(folder, on_error):
        if not _hidden(entry.name) and _is_folder(entry, on_error):
            yield from _below(entry.path, rest, on_error, seen)


def _hidden(name: str) -> bool:
    return name.startswith(".")


def _entries(folder: str, on_error: OnError) -> list[os.DirEntry[str]]:
    return _tried(_listed, folder, on_error) or []


def _listed(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str], on_error: OnError) -> bool:
    return bool(_tried(lambda _: entry.is_dir(), entry.path, on_error))


def _tried(
    call: Callable[[str], _Result], path: str, on_error: OnError
) -> _Result | None:
    """Return the result of a call for a path; None if it is gone, or after an error that is reported."""
    try:
        return call(path)
    except OSError as error:
        if error.errno not in _GONE:
            on_error(path, error)
        return None
