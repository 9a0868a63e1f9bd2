"""The local folders: open paths without following symlinks, and read consistent contents of files.

A program in a workspace may put a symlink in place of a folder at any time. So a path is opened part by part, each
part within the open folder before it, and no part is followed.

A file with the same size, times, inode and mode has the same content (as git's index assumes), unless it was written
again within one tick of the file system's clock. So a cached hash is used only if the file was last written more
than a tick before it was read.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat as stats
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midwatch.content.tree import CHUNK, Entry, chunk_hash, compact
from midwatch.files import make_usable, read_regular, replace_file

STAGING = ".midwatch-sync"
"""The folder in each root for files that are not in place yet; never synchronised."""
# A folder that may not be listed can still be walked through. Only Linux knows this flag.
_PATH_ONLY = getattr(os, "O_PATH", 0)
_FOLDER = os.O_DIRECTORY | os.O_CLOEXEC
TICK = 20_000_000
"""Nanoseconds that file times may lag behind: Linux stamps with a clock that ticks every 1 to 10 ms."""
_SECOND = 1_000_000_000
_TRIES = 3
_LARGE = 64 << 20
"""A file of more bytes is read once: its writer is not likely to be done a moment later."""


# ------------------------------------------------------------------ paths


class Roots:
    """The top folders of a tree, by name, and their local `folders`."""

    def __init__(self, roots: Mapping[str, Path]) -> None:
        self.folders = dict(roots)

    def has(self, path: str) -> bool:
        """Return whether the path is a root or in one, and may be synchronised."""
        parts = path.split("/", 2)
        return parts[0] in self.folders and STAGING not in parts[1:2]

    def walker(self) -> Walker:
        return Walker(self.folders)


class Walker:
    """A context that opens folders. Those on the way to the last path stay open for the next one nearby."""

    def __init__(self, roots: Mapping[str, Path]) -> None:
        self._roots = roots
        self._open: list[tuple[str, int]] = []

    def __enter__(self) -> Walker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def folder(self, path: str) -> int:
        """Return the descriptor of a folder, open until the next call. Raises OSError, also for a symlink."""
        parts = path.split("/")
        shared = 0
        for part, (name, _) in zip(parts, self._open, strict=False):
            if part != name:
                break
            shared += 1
        self.close(keep=shared)
        for part in parts[shared:]:
            self._open.append((part, self._open_part(part)))
        return self._open[-1][1]

    def parent(self, path: str) -> tuple[int, str]:
        """Return the descriptor of the folder that contains the path, and the name there. Raises OSError."""
        above, _, name = path.rpartition("/")
        return self.folder(above), name

    def close(self, keep: int = 0) -> None:
        """Close all but the first `keep` open folders, such as when some may have been replaced."""
        while len(self._open) > keep:
            os.close(self._open.pop()[1])

    def _open_part(self, part: str) -> int:
        if not self._open:
            return os.open(self._roots[part], _PATH_ONLY | _FOLDER)
        flags = _PATH_ONLY | _FOLDER | os.O_NOFOLLOW
        return os.open(part, flags, dir_fd=self._open[-1][1])


def open_folder(name: str, inside: int) -> int:
    """Open a folder to list it. Raises OSError, also for a symlink."""
    flags = os.O_RDONLY | _FOLDER | os.O_NOFOLLOW
    return os.open(name, flags, dir_fd=inside)


def set_mode(folder: int, mode: int) -> None:
    """Change the mode of an open file or folder. Raises OSError."""
    # An O_PATH descriptor takes no fchmod; its entry in /proc stands for the folder itself.
    os.chmod(f"/proc/self/fd/{folder}" if _PATH_ONLY else folder, mode)


_DENIED = {errno.EACCES, errno.EPERM}


def is_denied(error: OSError) -> bool:
    """Return whether the user of this process lacks a permission."""
    return error.errno in _DENIED


def open_root(path: Path) -> int:
    """Open a root to list it, and make it usable again if its owner took that permission away. Raises OSError."""
    flags = os.O_RDONLY | _FOLDER
    try:
        return os.open(path, flags)
    except PermissionError:
        make_usable(path)
        return os.open(path, flags)


def change_mode(name: str, inside: int, mode: int) -> None:
    """Change the mode of a file or folder. Raises OSError, also for a symlink."""
    flags = _PATH_ONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(name, flags, dir_fd=inside)
    try:
        if stats.S_ISLNK(os.fstat(file).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        set_mode(file, mode)
    finally:
        os.close(file)


# ------------------------------------------------------------------ the cache of hashes

Signature = tuple[int, int, int, int, int]
"""Size, mtime and ctime in nanoseconds, inode, mode."""
Signed = dict[str, tuple[Signature, Entry]]
"""Files and symlinks by path, with their signatures when they were read."""


def signature_of(stat: os.stat_result) -> Signature:
    """Return the signature of a file."""
    return (
        stat.st_size,
        stat.st_mtime_ns,
        stat.st_ctime_ns,
        stat.st_ino,
        stat.st_mode,
    )


def is_racy(signature: Signature, read_at: int) -> bool:
    """Return whether a write after `read_at` (nanoseconds since the epoch) could leave the same signature."""
    latest = max(signature[1], signature[2])
    # Times without a fraction come from a file system that stores seconds only.
    tick = 2 * _SECOND if signature[2] % _SECOND == 0 else TICK
    return latest >= read_at - tick


def save_cache(path: Path, files: Signed) -> None:
    """Write the cache; without an fsync, since files can be read again. Raises OSError."""
    data = {
        name: [*signature, *entry.chunks]
        for name, (signature, entry) in files.items()
        if entry.kind == "file"
    }
    replace_file(path, compact(data), durable=False)


def load_cache(path: Path) -> Signed:
    """Return what was saved; nothing if it cannot be read."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        data = json.loads(read_regular(path))
        return {name: _cached(row) for name, row in data.items()}
    return {}


def _cached(row: list[Any]) -> tuple[Signature, Entry]:
    size, mtime, ctime, inode, bits = (int(number) for number in row[:5])
    entry = Entry("file", bits & 0o777, size, tuple(str(chunk) for chunk in row[5:]))
    return (size, mtime, ctime, inode, bits), entry


# ------------------------------------------------------------------ reading a file


@dataclass(slots=True)
class Captured:
    """The chunks of small files that were just hashed, so that they are sent as they were then.

    Attributes:
        capacity: Bytes that may still be held.
        largest: Bytes of a chunk at most.
        held: The chunks by hash.
    """

    capacity: int = 16 << 20
    largest: int = 256 << 10
    held: dict[str, bytes] = field(default_factory=dict)

    def offer(self, name: str, data: bytes, *, wanted: bool) -> None:
        """Hold a chunk if it is small enough; a `wanted` one may have any size."""
        limit = min(CHUNK if wanted else self.largest, self.capacity)
        if len(data) <= limit and self.held.setdefault(name, data) is data:
            self.capacity -= len(data)


def read_file(
    folder: int, name: str, captured: Captured, *, wanted: bool = False
) -> tuple[Signature, Entry] | None:
    """Return the signature and the entry of a file that others may be writing.

    Args:
        folder: The descriptor of its folder.
        name: Its name there.
        captured: Where its chunks are offered.
        wanted: Whether to capture larger chunks as well.

    Returns:
        None if it is not a regular file any more, or keeps changing.

    Raises:
        OSError: It cannot be read.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = os.open(name, flags, dir_fd=folder)
    try:
        for _ in range(_TRIES):
            before = os.fstat(file)
            if not stats.S_ISREG(before.st_mode):
                return None
            entry = _read(file, before, captured, wanted)
            signature = signature_of(before)
            if entry and signature_of(os.fstat(file)) == signature:
                return signature, entry
            if before.st_size > _LARGE:
                break
    finally:
        os.close(file)
    return None


def _read(
    file: int, stat: os.stat_result, captured: Captured, wanted: bool
) -> Entry | None:
    """Return the entry, or None if the file has another size than its stat."""
    chunks, size = [], 0
    while size < stat.st_size:
        data = read_at(file, size, min(CHUNK, stat.st_size - size))
        if not data:
            return None
        name = chunk_hash(data)
        captured.offer(name, data, wanted=wanted)
        chunks.append(name)
        size += len(data)
    return Entry("file", stat.st_mode & 0o777, size, tuple(chunks))


def read_at(file: int, offset: int, length: int) -> bytes:
    """Return so many bytes from this offset; less only at the end of the file. Raises OSError."""
    data = os.pread(file, length, offset)
    while data and len(data) < length:
        more = os.pread(file, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
