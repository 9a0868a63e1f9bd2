"""Open files that other processes may have replaced; replace, append to, lock and sync files."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from midwatch.lifecycle import Clock

_FEW = 8
"""Up to so many calls of fsync cost less than flushing what all other processes have written."""
_POLL = 0.02
"""Seconds between two tries for a lock that another process holds."""


_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""A symbolic link is not followed, and nothing that is opened can block: not a named pipe, not a file lease."""
_PIECE = 1 << 20


# ------------------------------------------------------------------ opening


class UnusableFile(OSError):
    """There is something else than a regular file at the path, or the file is too large. `strerror` says what."""


def open_regular(
    path: Path | str, flags: int = os.O_RDONLY, *, inside: int | None = None
) -> int:
    """Open a regular file, which another process may have replaced by anything, without blocking.

    Args:
        path: The file; a relative path is within the open folder `inside`.
        flags: Those of open(2); a file that `O_CREAT` makes is for its owner alone.
        inside: The descriptor of a folder.

    Returns:
        The descriptor.

    Raises:
        UnusableFile: It is a symbolic link, a named pipe, a device, a folder or a socket.
        OSError: It cannot be opened.
    """
    with contextlib.suppress(FileNotFoundError):  # a device is not even opened
        _check_regular(os.lstat(path) if inside is None else _stat_in(path, inside))
    descriptor = os.open(path, flags | _SAFE, 0o600, dir_fd=inside)
    try:
        _check_regular(os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: Path, most: int | None = None) -> bytes:
    """Return the content of a regular file.

    Args:
        path: The file.
        most: The largest size in bytes; None is no limit.

    Raises:
        UnusableFile: It is not a regular file, or is larger.
        OSError: It cannot be read.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        data = file.read() if most is None else file.read(most + 1)
    if most is not None and len(data) > most:
        raise UnusableFile(errno.EINVAL, f"is larger than {most} bytes")
    return data


def is_regular(found: os.stat_result) -> bool:
    """Return whether this is a regular file."""
    return stat.S_ISREG(found.st_mode)


def _check_regular(found: os.stat_result) -> None:
    """Raise UnusableFile if this is not a regular file."""
    if not is_regular(found):
        what = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise UnusableFile(errno.EINVAL, f"is {what}, not a regular file")


_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _stat_in(name: Path | str, folder: int) -> os.stat_result:
    return os.stat(name, dir_fd=folder, follow_symlinks=False)


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
    write_new(temporary, data, 0o666, durable=durable)
    temporary.replace(path)


def write_new(
    path: Path, data: bytes, mode: int = 0o600, *, durable: bool = False
) -> None:
    """Write a new file in place of what is there, which is not followed or written to.

    Args:
        path: The file.
        data: Its content.
        mode: Its permissions, less those of the umask.
        durable: Whether the content is on the disk when this returns.

    Raises:
        OSError: It cannot be written; there is a folder at the path.
    """
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE
    file = os.open(path, flags, mode)
    try:
        write_all(file, data)
        if durable:
            os.fsync(file)
    finally:
        os.close(file)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data` to an open file. Raises OSError; a part may be written then."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def append(path: Path, data: bytes) -> None:
    """Append `data` with one write; the file is made, for its owner alone, if it is missing.

    Raises UnusableFile for something else than a regular file, and OSError.
    """
    file = open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, data)
    finally:
        os.close(file)


def copy_content(source: int, target: int) -> None:
    """Write all of the open file `source`, from its beginning, to the open file `target`. Raises OSError."""
    offset = 0
    while piece := os.pread(source, _PIECE, offset):
        write_all(target, piece)
        offset += len(piece)


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
        descriptor = open_regular(path)
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
    descriptor = open_regular(path, os.O_RDWR | os.O_CREAT)
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
    descriptor = os.open(path, os.O_RDONLY | _SAFE, dir_fd=inside)
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


# ------------------------------------------------------------------ removing


def remove_tree(path: Path) -> None:
    """Remove a folder of this user, also if read-only or closed folders are in it. Raises OSError."""
    shutil.rmtree(path, onerror=_make_writable_and_retry)


def _make_writable_and_retry(function: Callable[..., Any], path: str, _: Any) -> None:
    """Give the owner access to the folders, then call `function` again."""
    for folder in (Path(path).parent, Path(path)):
        if folder.is_dir() and not folder.is_symlink():
            folder.chmod(stat.S_IRWXU)
    if function in (os.open, os.scandir, os.lstat, os.listdir):
        remove_tree(Path(path))
    else:
        function(path)
