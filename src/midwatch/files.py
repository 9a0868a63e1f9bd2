"""Bytes that are on the disk, not only in its cache: fsync of files and folders, syncfs of many.

A file system keeps its promise for a new file when the file is synced, then the folder that names it.
For many files one `syncfs` does the work of an fsync each, in one journal write.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Collection
from pathlib import Path

_FEW = 8
"""Up to so many fsyncs cost less than flushing what everybody else has written."""


def replace_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file whole or not at all; it is on the disk when this returns, if it is to be. Raises OSError."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)


def sync_all(paths: Collection[Path]) -> None:
    """Return when these files and folders, all of one file system, are on the disk. Raises OSError."""
    if are_many(len(paths)):
        return with_descriptor(next(iter(paths)), sync_file_system)
    for path in paths:
        with_descriptor(path, os.fsync)


def are_many(count: int) -> bool:
    """Whether so many files are better synced with all of their file system, and whether that can be done."""
    return count > _FEW and _SYNCFS is not None


def sync_file_system(descriptor: int) -> None:
    """Return when all of the file system that this is a file or folder of is on the disk. Raises OSError."""
    assert _SYNCFS is not None, "ask are_many() first"
    if _SYNCFS(descriptor) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def with_descriptor(
    path: Path | str, use: Callable[[int], None], inside: int | None = None
) -> None:
    """Open a file or folder to sync it, a relative path within the open folder `inside`. Raises OSError."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, dir_fd=inside)
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
