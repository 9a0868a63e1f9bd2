"""The local folders, walked by open folders only: no step of a path is ever a symlink.

What runs in a workspace may put a symlink in place of a folder at any time. So a path is opened part by part,
each part within the folder that was opened before it, and none of them followed.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat as stats
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from midwatch.content.tree import CHUNK, Entry, chunk_hash, compact
from midwatch.files import replace_file

# A folder that may not be listed can still be walked through. Only Linux knows this flag.
_PATH_ONLY = getattr(os, "O_PATH", 0)
_FOLDER = os.O_DIRECTORY | os.O_CLOEXEC
STAGING = ".midwatch-sync"
"""The folder in each root that files are made ready in; never synchronised."""


class Roots:
    """The top folders of a tree and where they are locally."""

    def __init__(self, roots: Mapping[str, Path]) -> None:
        self.places = dict(roots)

    def has(self, path: str) -> bool:
        """Whether the path is in one of the roots, or one itself, and may be synchronised."""
        parts = path.split("/", 2)
        return parts[0] in self.places and STAGING not in parts[1:2]

    def walker(self) -> Walker:
        return Walker(self.places)


class Walker:
    """Open folders. Those on the way to the last path stay open for the next one nearby."""

    def __init__(self, places: Mapping[str, Path]) -> None:
        self._places = places
        self._open: list[tuple[str, int]] = []

    def __enter__(self) -> Walker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.forget()

    def folder(self, path: str) -> int:
        """The folder, open until the next call. Raises OSError, also for a symlink on the way."""
        parts = path.split("/")
        shared = 0
        for part, (name, _) in zip(parts, self._open, strict=False):
            if part != name:
                break
            shared += 1
        self._close(shared)
        for part in parts[shared:]:
            self._open.append((part, self._step(part)))
        return self._open[-1][1]

    def parent(self, path: str) -> tuple[int, str]:
        """The folder it is in, and its name there. Raises OSError."""
        above, _, name = path.rpartition("/")
        return self.folder(above), name

    def forget(self) -> None:
        """Close all: some of them may be other folders by now."""
        self._close(0)

    def _step(self, part: str) -> int:
        if not self._open:
            return os.open(self._places[part], _PATH_ONLY | _FOLDER)
        flags = _PATH_ONLY | _FOLDER | os.O_NOFOLLOW
        return os.open(part, flags, dir_fd=self._open[-1][1])

    def _close(self, keep: int) -> None:
        while len(self._open) > keep:
            os.close(self._open.pop()[1])


def open_folder(name: str, inside: int) -> int:
    """A folder that can be listed. Raises OSError, also for a symlink."""
    flags = os.O_RDONLY | _FOLDER | os.O_NOFOLLOW
    return os.open(name, flags, dir_fd=inside)


def set_mode(folder: int, mode: int) -> None:
    """Change the mode of an open folder. Raises OSError."""
    # An O_PATH descriptor takes no fchmod; its entry in /proc stands for the folder itself.
    os.chmod(f"/proc/self/fd/{folder}" if _PATH_ONLY else folder, mode)


# ------------------------------------------------------------ stats
# Which files are unchanged since they were hashed: the same idea as git's index.
#
# A file with the same size, times, inode and mode has the same content, unless it was written again within one tick of the
# clock that the times are from. So an entry is only believed if the file had been quiet for longer than a tick when it was read.

Signature = tuple[int, int, int, int, int]
"""Size, mtime and ctime in nanoseconds, inode, mode."""
TICK = 20_000_000
"""Nanoseconds that file times may lag behind: Linux stamps with a clock that ticks every 1 to 10 ms."""
_SECOND = 1_000_000_000
Kept = dict[str, tuple[Signature, Entry]]


def signature_of(stat: os.stat_result) -> Signature:
    return (
        stat.st_size,
        stat.st_mtime_ns,
        stat.st_ctime_ns,
        stat.st_ino,
        stat.st_mode,
    )


def is_racy(signature: Signature, read_at: int) -> bool:
    """Whether a write after `read_at` (nanoseconds of the epoch) could leave the same signature."""
    latest = max(signature[1], signature[2])
    # Times without a fraction are those of a file system that knows seconds only.
    tick = 2 * _SECOND if signature[2] % _SECOND == 0 else TICK
    return latest >= read_at - tick


def save(path: Path, kept: Kept) -> None:
    """Raises OSError. A cache needs no fsync: without it, files are read again."""
    data = {
        name: [*signature, *entry.chunks]
        for name, (signature, entry) in kept.items()
        if entry.kind == "file"
    }
    replace_file(path, compact(data), durable=False)


def load(path: Path) -> Kept:
    """What was saved; nothing if it cannot be read."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        data = json.loads(path.read_bytes())
        return {name: _kept(row) for name, row in data.items()}
    return {}


def _kept(row: list[Any]) -> tuple[Signature, Entry]:
    size, mtime, ctime, inode, bits = (int(number) for number in row[:5])
    entry = Entry("file", bits & 0o777, size, tuple(str(chunk) for chunk in row[5:]))
    return (size, mtime, ctime, inode, bits), entry


# ------------------------------------------------------------ reading
# Reading one file of a folder that others write to: its content as it was at one moment, or None.

TRIES = 3
_LARGE = 64 << 20
"""A file of more bytes is read once: whoever writes it is not likely to be done with it the next moment."""


@dataclass(slots=True)
class Captured:
    """The bytes of small files that were just hashed, by hash: they are sent as they were then."""

    room: int = 16 << 20
    largest: int = 256 << 10
    held: dict[str, bytes] = field(default_factory=dict)

    def offer(self, name: str, data: bytes, *, wanted: bool) -> None:
        """`wanted` ones are kept up to a whole chunk each."""
        if len(data) <= (CHUNK if wanted else self.largest) and len(data) <= self.room:
            if self.held.setdefault(name, data) is data:
                self.room -= len(data)


def read_file(
    folder: int, name: str, captured: Captured, *, wanted: bool = False
) -> tuple[Signature, Entry] | None:
    """What is in a file; None for one that is no file any more or keeps changing. Raises OSError."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = os.open(name, flags, dir_fd=folder)
    try:
        for _ in range(TRIES):
            before = os.fstat(file)
            if not stats.S_ISREG(before.st_mode):
                return None
            entry = _content(file, before, captured, wanted)
            signature = signature_of(before)
            if entry and signature_of(os.fstat(file)) == signature:
                return signature, entry
            if before.st_size > _LARGE:
                break
    finally:
        os.close(file)
    return None


def _content(
    file: int, stat: os.stat_result, captured: Captured, wanted: bool
) -> Entry | None:
    """None if it is not as long as its stat says."""
    chunks, size = [], 0
    while data := read_at(file, size):
        name = chunk_hash(data)
        captured.offer(name, data, wanted=wanted)
        chunks.append(name)
        size += len(data)
        if size > stat.st_size:
            return None
    if size != stat.st_size:
        return None
    return Entry("file", stat.st_mode & 0o777, size, tuple(chunks))


def read_at(file: int, offset: int) -> bytes:
    """Up to a chunk, shorter only at the end of the file."""
    data = os.pread(file, CHUNK, offset)
    while data and len(data) < CHUNK:
        more = os.pread(file, CHUNK - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
