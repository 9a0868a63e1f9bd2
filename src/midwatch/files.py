"""Replace files atomically, append to them, lock them, and sync them to the disk."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from pathlib import Path

from midwatch.lifecycle import Clock

_FEW = 8
"""Up to so many calls of fsync cost less than flushing what all other processes have written."""
_POLL = 0.02
"""Seconds between two tries for a lock that another process holds."""


# ------------------------------------------------------------------ writing


def replace_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace a file atomically.

    Args:
        path: The file; its folder must exist.
        data: The new content.
        durable: Whether the content is on the disk, not only in its cache, when this returns.

    Raises:
        OSError: The old file is untouched; a file `.NAME.new` may be left beside it.
    """
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)


def append(path: Path, data: bytes) -> None:
    """Append `data` with one write; the file is made, for its owner alone, if it is missing. Raises OSError."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    file = os.open(path, flags, 0o600)
    try:
        os.write(file, data)
    finally:
        os.close(file)


def is_disk_full(error: OSError) -> bool:
    """Return whether the disk, a quota or the largest size of a file is exhausted."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


# ------------------------------------------------------------------ locking


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file if no other process holds it. Return whether it is held.

    The kernel releases the lock when the descriptor is closed, also after a crash (flock(2)). Raises OSError.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Return whether another process holds the lock at `path`; false where there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not try_lock(descriptor, shared=True)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock at `path` while the block runs, if it is free. Yields whether it is held.

    The file and its folder are made if they are missing. Raises OSError.
    """
    with _opened(path) as descriptor:
        yield try_lock(descriptor)


@contextlib.asynccontextmanager
async def locked(
    path: Path, clock: Clock, *, shared: bool, seconds: float
) -> AsyncIterator[bool]:
    """Hold the lock at `path` while the block runs. Yields false if it was not free within `seconds`.

    The lock is polled: a blocking flock would sit in a thread that no cancellation reaches. Raises OSError.
    """
    deadline = clock.monotonic() + seconds
    with _opened(path) as descriptor:
        held = try_lock(descriptor, shared=shared)
        while not held and clock.monotonic() < deadline:
            await clock.sleep(_POLL)
            held = try_lock(descriptor, shared=shared)
        yield held


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------ on the disk


def sync_all(paths: Collection[Path]) -> None:
    """Return when these files and folders, all of one file system, are on the disk. Raises OSError.

    A new file is durable once the file is synced, then the folder that has its name.
    For many files one syncfs(2) does the work of an fsync each, in one write of the journal.
    """
    if are_many(len(paths)):
        return with_descriptor(next(iter(paths)), sync_file_system)
    for path in paths:
        with_descriptor(path, os.fsync)


def are_many(count: int) -> bool:
    """Return whether `count` files are better synced with all of their file system, and can be."""
    return count > _FEW and _SYNCFS is not None


def sync_file_system(descriptor: int) -> None:
    """Return when the whole file system of this open file or folder is on the disk. Raises OSError."""
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
    """Return the C library's syncfs, where it has one: Python offers none."""
    try:
        found = ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):
        return None
    found.argtypes, found.restype = [ctypes.c_int], ctypes.c_int
    return lambda descriptor: int(found(descriptor))


_SYNCFS = _find_syncfs()


def make_usable(path: Path) -> None:
    """Give a folder of this user the permissions to list and change it; leave one of another user as it is."""
    with contextlib.suppress(OSError):
        mode = os.stat(path).st_mode & 0o7777
        if mode & 0o700 != 0o700:
            os.chmod(path, mode | 0o700)
