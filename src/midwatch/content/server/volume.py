"""The layout of the volume: folders, their locks, chunks and quotas, and leftovers of crashes.

::

    .midwatch-content                    exists while the volume is mounted
    folders/NAMESPACE/NAME.UID/
        manifest.jsonl                   the one commit point: replaced as a whole
        lock                             held by the process that changes the folder
        chunks/ab/abcdef…                immutable, named by their SHA-256
    beside/RANDOM/                       incomplete files of one process, which holds its `lock` while it lives
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from midwatch.content.errors import (
    ChunksMissing,
    ContentFull,
    ContentUnavailable,
    StreamBroken,
)
from midwatch.content.tree import CHUNK, check_folder, verify_chunk
from midwatch.errors import MidwatchError
from midwatch.files import is_disk_full, locked_if_free, sync_all, try_lock
from midwatch.settings import ContentSettings

_MARKER = ".midwatch-content"
_LOCK = "lock"
_DAMAGED = ".damaged"
_POLL = 0.01
_USE_PRECISION = 60.0
"""Seconds: the time of use of a folder is not updated more often."""
_LOCK_TIMEOUT = 20.0
"""Seconds: some ten times what a small commit to half a million entries takes, twice the first."""
_QUOTA_FACTOR = 2
"""The chunks of a folder may take this many times `content.max_size`: enough to replace all of it."""
FRESH = 60.0
"""Seconds that a chunk is kept after a request for it, however full the folder is: an upload is about to name it."""
_MEASURE_AFTER = 8
"""Usage is measured again after an eighth of the quota was written, to see the writes of other processes."""
_GOAL = 0.75
"""Fraction of the quota that may be used after space was freed, so that it is not full again at once."""


# ------------------------------------------------------------------ the disk


@contextlib.contextmanager
def map_disk_errors() -> Iterator[None]:
    """Turn an OSError into ContentFull or ContentUnavailable."""
    try:
        yield
    except OSError as error:
        raise map_disk_error(error) from error


def map_disk_error(error: OSError) -> MidwatchError:
    """Return the error for a client. It does not contain paths."""
    why = error.strerror or type(error).__name__
    if is_disk_full(error):
        return ContentFull(f"the volume is full: {why}")
    return ContentUnavailable(
        f"the volume cannot be used: {why}",
        hint="check the volume of the content proxy, its mount and its owner",
    )


def _write_new(path: Path, data: bytes) -> None:
    """Write a new file, not synced. Raises OSError, also if it exists."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(path, flags, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(file, rest) :]
    finally:
        os.close(file)


# ------------------------------------------------------------------ folders


class Volume:
    """The folders on one volume, which several processes may share. All methods may raise OSError."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders = root / "folders"
        self._temporary = root / "beside" / uuid.uuid4().hex
        self._names = itertools.count()
        self._folders.mkdir(parents=True, exist_ok=True)
        # Hidden until its lock is held, so that `clean` of another process does not remove it.
        hidden = self._temporary.with_name(f".{self._temporary.name}")
        hidden.mkdir(parents=True)
        self._alive = _open_lock(hidden)
        try_lock(self._alive)
        hidden.rename(self._temporary)
        (root / _MARKER).touch()
        self.clean()

    def close(self) -> None:
        """Remove this process's incomplete files."""
        shutil.rmtree(self._temporary, ignore_errors=True)
        os.close(self._alive)

    def path(self, folder: str) -> Path:
        """Return the path of a folder. Raises PathRefused if the id is not valid."""
        return self._folders / check_folder(folder)

    def temporary_path(self) -> Path:
        """Return a new path for an incomplete file or a folder to delete; it is removed with this process."""
        return self._temporary / str(next(self._names))

    def check_mounted(self) -> None:
        """Raise ContentUnavailable if the volume is gone: only while it is there, a missing file means empty."""
        if not (self.root / _MARKER).exists():
            raise ContentUnavailable(
                "the volume of the content proxy is gone",
                hint="check that it is mounted, then restart the proxy",
            )

    def probe(self) -> None:
        """Write, sync and remove a file, as a commit does."""
        path = self.temporary_path()
        try:
            _write_new(path, b"probe")
            sync_all([path])
        finally:
            path.unlink(missing_ok=True)
        self.check_mounted()

    def clean(self) -> None:
        """Remove the incomplete files of processes that have ended."""
        for folder in (self.root / "beside").iterdir():
            if folder.name.startswith("."):
                continue
            with contextlib.suppress(FileNotFoundError):
                with locked_if_free(folder / _LOCK) as ended:
                    if ended:
                        shutil.rmtree(folder, ignore_errors=True)

    def names(self) -> list[str]:
        """Return the ids of all folders."""
        return sorted(
            f"{namespace.name}/{folder.name}"
            for namespace in self._folders.iterdir()
            for folder in namespace.iterdir()
        )

    @contextlib.contextmanager
    def locked(self, folder: str) -> Iterator[Path]:
        """Hold the folder's lock; the folder is made if it is missing. Yields its path. Raises ContentUnavailable."""
        self.check_mounted()
        path = self.path(folder)
        lock = _lock_folder(path)
        try:
            yield path
        finally:
            os.close(lock)

    def use(self, folder: str) -> None:
        """Record that a folder is read or written, if it exists, in its modification time."""
        path = self.path(folder)
        with contextlib.suppress(OSError):  # a read must not fail because of this
            if path.stat().st_mtime < time.time() - _USE_PRECISION:
                os.utime(path)

    def used(self, folder: str) -> float:
        """Return when a folder was last used, in seconds since the epoch; infinity if it does not exist."""
        try:
            return self.path(folder).stat().st_mtime
        except FileNotFoundError:
            return float("inf")

    def remove(
        self,
        folder: str,
        before: float = float("inf"),
        check: Callable[[], object] = lambda: None,
    ) -> bool:
        """Delete a folder: rename it, then remove what is in it. Return whether it was deleted.

        Args:
            folder: Its id.
            before: Delete it only if it was last used before this time, in seconds since the epoch.
            check: Called while the lock is held; an error that it raises keeps the folder.
        """
        if not self.path(folder).exists():
            self.check_mounted()
            return False
        deleted = self.temporary_path()
        with self.locked(folder) as path:
            check()
            if self.used(folder) >= before:
                return False
            path.replace(deleted)
            sync_all([path.parent])
        shutil.rmtree(deleted, ignore_errors=True)
        return True

    def sync_new(self, folder: str) -> None:
        """Return when a new folder will survive a crash of the machine."""
        path = self.path(folder)
        sync_all([path, path.parent, self._folders, self.root])


def _lock_folder(folder: Path) -> int:
    """Return the locked lock file of a folder that has not been deleted meanwhile.

    Polled: a flock that blocks would hold its thread for ever.
    """
    deadline = time.monotonic() + _LOCK_TIMEOUT
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = _open_lock(folder)
        except FileNotFoundError:  # the folder was deleted just now
            continue
        if try_lock(lock) and _is_at(lock, folder / _LOCK):
            return lock
        os.close(lock)
        if time.monotonic() >= deadline:
            raise ContentUnavailable(
                f"another process has held the lock of the folder for {_LOCK_TIMEOUT:g} s",
                retry_after=1.0,
            )
        time.sleep(_POLL)


def _open_lock(folder: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(folder / _LOCK, flags, 0o600)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.lstat(path))
    except FileNotFoundError:
        return False


# ------------------------------------------------------------------ chunks


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """Bytes and files of chunks."""

    bytes: int = 0
    files: int = 0

    def __add__(self, other: DiskUsage) -> DiskUsage:
        return DiskUsage(self.bytes + other.bytes, self.files + other.files)

    def __sub__(self, other: DiskUsage) -> DiskUsage:
        return DiskUsage(self.bytes - other.bytes, self.files - other.files)

    def within(self, limit: DiskUsage, part: float = 1.0) -> bool:
        """Return whether this is at most that part of the limit."""
        return self.bytes <= limit.bytes * part and self.files <= limit.files * part


NOTHING = DiskUsage()


def usage_of(frames: Collection[tuple[str, bytes]]) -> DiskUsage:
    """Return what these chunks take on the disk."""
    return DiskUsage(sum(len(data) for _, data in frames), len(frames))


class Chunks:
    """The chunks of one folder. All methods block and may raise OSError.

    A chunk is written to a temporary file, synced and renamed, so that a file with its name has its bytes.
    The modification time of the file is the time of the last request for it: chunks that are not named by a
    manifest are kept for a while after that.

    Args:
        folder: Their folder.
        temporary_path: Returns a path for an incomplete file, on the same file system.
    """

    def __init__(self, folder: Path, temporary_path: Callable[[], Path]) -> None:
        self.folder = folder
        self._temporary_path = temporary_path

    def size(self, name: str) -> int | None:
        """Return the bytes of a chunk, or None if there is no such chunk."""
        try:
            return os.lstat(self._path(name)).st_size
        except FileNotFoundError:
            return None

    def missing(self, names: Iterable[str]) -> list[str]:
        """Return the chunks that do not exist, and keep the others for a while."""
        return [name for name in names if not self.renew(name)]

    def renew(self, name: str) -> bool:
        """Keep a chunk for a while. Return whether it exists."""
        try:
            os.utime(self._path(name), follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def write(self, frames: Collection[tuple[str, bytes]]) -> frozenset[str]:
        """Verify and store chunks. Return the names of the new ones. Raises StreamBroken."""
        new = {
            n: data for n, data in frames if verify_chunk(n, data) and not self.renew(n)
        }
        temporary = {name: self._temporary_path() for name in new}
        try:
            for name, data in new.items():
                _write_new(temporary[name], data)
            sync_all(temporary.values())
            for name, path in temporary.items():
                self._rename(path, name)
        except OSError:
            for path in temporary.values():
                path.unlink(missing_ok=True)
            raise
        return frozenset(new)

    def _rename(self, path: Path, name: str) -> None:
        target = self._path(name)
        try:
            path.replace(target)
        except FileNotFoundError:
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)

    def sync(self, names: Iterable[str]) -> None:
        """Return when these chunks will survive a crash of the machine."""
        folders = {self._path(name).parent for name in names}
        if folders:
            sync_all([*folders, self.folder])

    def read(self, name: str) -> bytes:
        """Return the bytes of a chunk. Raises ChunksMissing, also for a damaged one, which is set aside."""
        path = self._path(name)
        try:
            return verify_chunk(name, path.read_bytes())
        except FileNotFoundError:
            raise ChunksMissing([name]) from None
        except StreamBroken:
            # Renamed, so that a client that has the content can send it again.
            path.replace(path.with_name(name + _DAMAGED))
            raise ChunksMissing([name], "a chunk on the volume is damaged") from None

    def unused(self, named: Collection[bytes], before: float) -> list[Path]:
        """Return the files that are not `named` and were last requested before that time (seconds, epoch)."""
        return [
            path
            for path in self._files()
            if not _is_named(path.name, named) and _requested_at(path) < before
        ]

    def usage(self) -> DiskUsage:
        """Return what all chunks take, also damaged ones."""
        total = NOTHING
        for path in self._files():
            with contextlib.suppress(FileNotFoundError):
                total += DiskUsage(path.lstat().st_size, 1)
        return total

    def _files(self) -> Iterator[Path]:
        with contextlib.suppress(FileNotFoundError):
            for folder in sorted(self.folder.iterdir()):
                with os.scandir(folder) as entries:
                    yield from [folder / entry.name for entry in entries]

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name


def _requested_at(path: Path) -> float:
    """Return when a chunk was last requested, in seconds since the epoch; infinity if it is gone."""
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _is_named(name: str, named: Collection[bytes]) -> bool:
    try:
        return bytes.fromhex(name) in named
    except ValueError:
        return False


# ------------------------------------------------------------------ quotas


@dataclass(slots=True)
class _Measured:
    usage: DiskUsage
    written: int = 0


class Quota:
    """Bounds the chunks of each folder, named by a manifest or not. Thread-safe.

    `content.max_size` bounds what a manifest names. Chunks that were replaced or never committed stay for a
    while as well; without a quota one session could fill the volume of all. Each process measures a folder
    once, then counts.
    """

    def __init__(self, settings: ContentSettings) -> None:
        size = int(settings.max_size)
        files = settings.max_entries + size // CHUNK
        self.limit = DiskUsage(_QUOTA_FACTOR * size, _QUOTA_FACTOR * files)
        self._folders: dict[str, _Measured] = {}
        self._lock = threading.Lock()

    def fits(
        self, folder: str, more: DiskUsage, measure: Callable[[], DiskUsage]
    ) -> bool:
        """Return whether the folder may take `more`. Raises what `measure` raises."""
        with self._lock:
            known = self._folders.get(folder)
        if known is None or known.written * _MEASURE_AFTER > self.limit.bytes:
            known = self._measure(folder, measure)
        return (known.usage + more).within(self.limit)

    def record(
        self, folder: str, added: DiskUsage = NOTHING, removed: DiskUsage = NOTHING
    ) -> None:
        """Count chunks that were written or removed."""
        with self._lock:
            if known := self._folders.get(folder):
                known.usage = known.usage + added - removed
                known.written += added.bytes

    def free(
        self,
        folder: str,
        more: DiskUsage,
        measure: Callable[[], DiskUsage],
        unused: Collection[Path],
    ) -> None:
        """Remove unused chunks, the oldest first, until `more` fits well. Raises ContentFull, OSError."""
        usage = self._measure(folder, measure).usage
        for _, size, path in sorted(_files_by_age(unused)):
            if (usage + more).within(self.limit, _GOAL):
                break
            path.unlink(missing_ok=True)
            removed = DiskUsage(size, 1)
            usage -= removed
            self.record(folder, removed=removed)
        if not (usage + more).within(self.limit):
            raise ContentFull(
                f"the session's folder takes {usage.bytes} bytes in {usage.files} chunks, including replaced and "
                f"uncommitted ones; its limit is {self.limit.bytes} bytes in {self.limit.files} chunks",
                hint="other sessions are not affected; leave out files that need not be kept, or raise "
                "content.max_size; the write is retried",
                retry_after=FRESH / 2,
            )

    def drop(self, folder: str) -> None:
        """Forget a folder; it is measured again when it is needed."""
        with self._lock:
            self._folders.pop(folder, None)

    def _measure(self, folder: str, measure: Callable[[], DiskUsage]) -> _Measured:
        known = _Measured(measure())
        with self._lock:
            self._folders[folder] = known
        return known


def _files_by_age(paths: Iterable[Path]) -> Iterator[tuple[float, int, Path]]:
    """Yield the modification time, bytes and path of each file that still exists."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            stat = path.lstat()
            yield stat.st_mtime, stat.st_size, path
