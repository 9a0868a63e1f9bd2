"""Bytes that are on the disk, not only in its cache: fsync of files and folders, syncfs of many.

A file system keeps its promise for a new file when the file is synced, then the folder that names it.
For many files one `syncfs` does the work of an fsync each, in one journal write.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import MidwatchError
from ..errors import ContentFull, ContentUnavailable

_FEW = 8
"""Up to so many fsyncs cost less than flushing what everybody else has written."""


def write_file(path: Path, data: bytes) -> None:
    """A new file with these bytes, not synced yet. Raises OSError, also where one is there."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(path, flags, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(file, rest) :]
    finally:
        os.close(file)


def sync_all(paths: Collection[Path]) -> None:
    """Return when these files and folders, all of one file system, are on the disk. Raises OSError."""
    if len(paths) <= _FEW or not _syncfs_of_any(paths):
        for path in paths:
            _with_descriptor(path, os.fsync)


def _syncfs_of_any(paths: Collection[Path]) -> bool:
    if _SYNCFS is None:
        return False
    _with_descriptor(next(iter(paths)), _syncfs)
    return True


def _with_descriptor(path: Path, use: Callable[[int], None]) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        use(descriptor)
    finally:
        os.close(descriptor)


def _find_syncfs() -> Callable[[int], int] | None:
    """The C library's, where it has one: Python offers none."""
    try:
        found = ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):
        return None
    found.argtypes, found.restype = [ctypes.c_int], ctypes.c_int
    return lambda descriptor: int(found(descriptor))


_SYNCFS = _find_syncfs()


def _syncfs(descriptor: int) -> None:
    assert _SYNCFS is not None
    if _SYNCFS(descriptor) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turns the system's errors into ours; what a caller has to tell apart is caught before."""
    try:
        yield
    except OSError as error:
        raise translated(error) from error


def translated(error: OSError) -> MidwatchError:
    """Paths stay out of the message: it goes to a client."""
    said = error.strerror or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ContentFull(f"the volume is full: {said}")
    return ContentUnavailable(
        f"the volume cannot be used: {said}",
        hint="check the volume of the content proxy, its mount and its owner",
    )
