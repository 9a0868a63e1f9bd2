"""Where things are on the volume, who may change them, and what a crash left behind.

::

    .midwatch-content                    there while the volume is
    folders/NAMESPACE/NAME.UID/
        manifest.jsonl                   the one commit point: replaced as a whole
        lock                             held by who changes the folder, in any process
        chunks/ab/abcdef…
    beside/RANDOM/                       of one process: files that are not whole yet; its `lock` tells
                                         whether the process lives
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from midwatch.content.errors import (
    ChunksMissing,
    ContentFull,
    ContentUnavailable,
    StreamBroken,
)
from midwatch.content.tree import CHUNK, check_folder, checked
from midwatch.errors import MidwatchError
from midwatch.files import sync_all
from midwatch.settings import ContentSettings

# ------------------------------------------------------------ disk
# The volume's disk: how a file is written to it, and what its errors mean to a client.


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


_MARK = ".midwatch-content"
_LOCK = "lock"
_POLL = 0.01
_FRESH = 60.0
"""Seconds: a folder in use is not noted more often."""
_LONGEST_LOCK = 20.0
"""Seconds: some ten times what a small commit to half a million entries takes, twice the first."""


class Volume:
    """The folders on one volume. Everything here raises OSError; several processes may share it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders = root / "folders"
        self._beside = root / "beside" / uuid.uuid4().hex
        self._names = itertools.count()
        self._folders.mkdir(parents=True, exist_ok=True)
        self._alive = _place_of_process(self._beside)
        (root / _MARK).touch()
        self.clean()

    def close(self) -> None:
        shutil.rmtree(self._beside, ignore_errors=True)
        os.close(self._alive)

    def path(self, folder: str) -> Path:
        """The folder's place. Raises PathRefused for what is no folder's id."""
        return self._folders / check_folder(folder)

    def new_name(self) -> Path:
        """For a file or a folder on its way in or out; goes with this process."""
        return self._beside / str(next(self._names))

    def check_mounted(self) -> None:
        """What is not there counts as empty only as long as the volume is. Raises ContentUnavailable."""
        if not (self.root / _MARK).exists():
            raise ContentUnavailable(
                "the volume of the content proxy is gone",
                hint="check that it is mounted; the proxy starts anew when it is",
            )

    def probe(self) -> None:
        """Write, sync and remove a file, as a commit does."""
        path = self.new_name()
        try:
            write_file(path, b"probe")
            sync_all([path])
        finally:
            path.unlink(missing_ok=True)
        self.check_mounted()

    def clean(self) -> None:
        """Remove what processes left beside that are no more."""
        for place in (self.root / "beside").iterdir():
            if place.name.startswith("."):
                continue
            with contextlib.suppress(FileNotFoundError):
                lock = os.open(place / _LOCK, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(place, ignore_errors=True)
                except BlockingIOError:
                    pass
                finally:
                    os.close(lock)

    def names(self) -> list[str]:
        """The ids of all folders."""
        return sorted(
            f"{namespace.name}/{folder.name}"
            for namespace in self._folders.iterdir()
            for folder in namespace.iterdir()
        )

    @contextlib.contextmanager
    def locked(self, folder: str) -> Iterator[Path]:
        """The folder's place, made if need be; nobody else changes it. Raises ContentUnavailable."""
        self.check_mounted()
        place = self.path(folder)
        lock = _lock_in(place)
        try:
            yield place
        finally:
            os.close(lock)

    def use(self, folder: str) -> None:
        """Note that somebody reads or writes a folder, if there is one: its own time tells when."""
        place = self.path(folder)
        with contextlib.suppress(OSError):  # nobody's reading fails of it
            if place.stat().st_mtime < time.time() - _FRESH:
                os.utime(place)

    def used(self, folder: str) -> float:
        """When a folder was used last, in seconds of the epoch; a commit counts. Not yet, without one."""
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
        """Take a folder away at once, then all that is in it; whether it was there, not used since `before`.

        `check` is called when nobody else changes it; what it raises keeps the folder.
        """
        if not self.path(folder).exists():
            self.check_mounted()
            return False
        away = self.new_name()
        with self.locked(folder) as place:
            check()
            if self.used(folder) >= before:
                return False
            place.replace(away)
            sync_all([place.parent])
        shutil.rmtree(away, ignore_errors=True)
        return True

    def sync_new(self, folder: str) -> None:
        """Return when a folder that was just made will be found after a crash of the machine."""
        place = self.path(folder)
        sync_all([place, place.parent, self._folders, self.root])


def _place_of_process(place: Path) -> int:
    """The folder, with a lock in it that is held before anybody can see it; the lock."""
    unseen = place.with_name(f".{place.name}")
    unseen.mkdir(parents=True)
    lock = _opened(unseen / _LOCK)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    unseen.rename(place)
    return lock


def _lock_in(place: Path) -> int:
    """The lock of a folder that is at its place still when the lock is held."""
    deadline = time.monotonic() + _LONGEST_LOCK
    while True:
        place.mkdir(parents=True, exist_ok=True)
        try:
            lock = _opened(place / _LOCK)
        except FileNotFoundError:  # it was taken away just now
            continue
        if _held(lock, deadline) and _is_at(lock, place / _LOCK):
            return lock
        os.close(lock)
        if time.monotonic() >= deadline:
            raise ContentUnavailable(
                "the folder is being changed by another process for too long",
                retry_after=1.0,
            )


def _held(lock: int, deadline: float) -> bool:
    """Polled: a flock that blocks would hold its thread for ever."""
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL)


def _is_at(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), os.lstat(path))
    except FileNotFoundError:
        return False


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


# ------------------------------------------------------------ room
# How much of the volume each folder takes: its chunks, whether a manifest names them or not.
#
# `content.max_size` bounds what a manifest names. What was replaced, or never committed, stays for a while and takes room as
# well; without a bound one session could fill the volume of all. Twice as much as the manifest may name is enough for one that
# replaces all it has.
#
# Known by each process for itself: measured once, then counted, and measured again after an eighth of the bound was
# written, so that what another process writes is seen as well.

TIMES = 2
"""A folder's chunks may take so many times what its manifest may name."""
FRESH = 60.0
"""Seconds that a chunk is kept after it was asked for, however full the folder is: an upload is about to name it."""
_MEASURE_AFTER = 8
_GOAL = 0.75
"""Of the bound, which is left when there has to be made room: so that it is not at once full again."""


class DiskUsage(NamedTuple):
    """Bytes and files of chunks."""

    bytes: int = 0
    files: int = 0

    def with_(self, other: DiskUsage) -> DiskUsage:
        return DiskUsage(self.bytes + other.bytes, self.files + other.files)

    def without(self, other: DiskUsage) -> DiskUsage:
        return DiskUsage(self.bytes - other.bytes, self.files - other.files)

    def within(self, limit: DiskUsage, part: float = 1.0) -> bool:
        return self.bytes <= limit.bytes * part and self.files <= limit.files * part


@dataclass(slots=True)
class _Known:
    taken: DiskUsage
    written: int = 0


class Quota:
    """Safe between threads. Folders are known by their names."""

    def __init__(self, settings: ContentSettings) -> None:
        size = int(settings.max_size)
        files = settings.max_entries + size // CHUNK
        self.limit = DiskUsage(TIMES * size, TIMES * files)
        self._known: dict[str, _Known] = {}
        self._lock = threading.Lock()

    def has(
        self, folder: str, more: DiskUsage, measure: Callable[[], DiskUsage]
    ) -> bool:
        """Whether so much more fits. Raises what `measure` raises."""
        with self._lock:
            known = self._known.get(folder)
        if known is None or known.written * _MEASURE_AFTER > self.limit.bytes:
            known = self._measured(folder, measure)
        return known.taken.with_(more).within(self.limit)

    def changed(
        self, folder: str, added: DiskUsage = DiskUsage(), gone: DiskUsage = DiskUsage()
    ) -> None:
        with self._lock:
            if known := self._known.get(folder):
                known.taken = known.taken.with_(added).without(gone)
                known.written += added.bytes

    def make(
        self,
        folder: str,
        more: DiskUsage,
        measure: Callable[[], DiskUsage],
        idle: Collection[Path],
    ) -> None:
        """Remove chunks that nothing needs, the oldest first, until `more` fits well. Raises ContentFull, OSError."""
        left = self._measured(folder, measure).taken
        times = {path: _stat(path) for path in idle}
        found = [(stat, path) for path, stat in times.items() if stat is not None]
        for (_, size), path in sorted(found):
            if left.with_(more).within(self.limit, _GOAL):
                break
            path.unlink(missing_ok=True)
            gone = DiskUsage(size, 1)
            left = left.without(gone)
            self.changed(folder, gone=gone)
        if not left.with_(more).within(self.limit):
            raise ContentFull(
                f"the session's folder takes {left.bytes} bytes in {left.files} chunks, with what was replaced or not "
                f"committed yet; it may take {self.limit.bytes} in {self.limit.files}",
                hint="others are not concerned; leave out what need not be kept, or raise content.max_size; "
                "it is tried again",
                retry_after=FRESH / 2,
            )

    def drop(self, folder: str) -> None:
        with self._lock:
            self._known.pop(folder, None)

    def _measured(self, folder: str, measure: Callable[[], DiskUsage]) -> _Known:
        known = _Known(measure())
        with self._lock:
            self._known[folder] = known
        return known


def taken_by(frames: Collection[tuple[str, bytes]]) -> DiskUsage:
    return DiskUsage(sum(len(data) for _, data in frames), len(frames))


def _stat(path: Path) -> tuple[float, int] | None:
    """When it was last asked for, and its bytes; None where it is gone."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_mtime, found.st_size


# ------------------------------------------------------------ chunks
# The chunks of one folder on the volume: immutable files `ab/abcdef…`, named by their SHA-256.
#
# One is written beside, synced and renamed, so that what has the name has the bytes. The time of its file
# tells when it was last asked for: what nothing names is kept for a while after that.

_DAMAGED = ".damaged"


class Chunks:
    """Everything here raises OSError, and works in a thread.

    `new_name` gives a path for a file that is not whole yet, on the same file system.
    """

    def __init__(self, folder: Path, new_name: Callable[[], Path]) -> None:
        self.folder = folder
        self._new_name = new_name

    def size(self, name: str) -> int | None:
        """Bytes of a chunk; None without it."""
        try:
            return os.lstat(self._path(name)).st_size
        except FileNotFoundError:
            return None

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those that are not there; those that are will be kept for a while."""
        return [name for name in names if not self.renew(name)]

    def renew(self, name: str) -> bool:
        """Keep a chunk for a while, if it is there."""
        try:
            os.utime(self._path(name), follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def write(self, frames: Collection[tuple[str, bytes]]) -> frozenset[str]:
        """Store chunks after a look at their hashes; those that were new. Raises StreamBroken."""
        new = {n: data for n, data in frames if checked(n, data) and not self.renew(n)}
        beside = {name: self._new_name() for name in new}
        try:
            for name, data in new.items():
                write_file(beside[name], data)
            sync_all(beside.values())
            for name, path in beside.items():
                self._place(path, name)
        except OSError:
            for path in beside.values():
                path.unlink(missing_ok=True)
            raise
        return frozenset(new)

    def _place(self, path: Path, name: str) -> None:
        place = self._path(name)
        try:
            path.replace(place)
        except FileNotFoundError:
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)

    def sync(self, names: Iterable[str]) -> None:
        """Return when these chunks will be found after a crash of the machine too."""
        folders = {self._path(name).parent for name in names}
        if folders:
            sync_all([*folders, self.folder])

    def read(self, name: str) -> bytes:
        """The bytes of a chunk. Raises ChunksMissing; what is damaged is set aside and missing."""
        path = self._path(name)
        try:
            return checked(name, path.read_bytes())
        except FileNotFoundError:
            raise ChunksMissing([name]) from None
        except StreamBroken:
            # Out of the way, so that whoever still has the content can send it again.
            path.replace(path.with_name(name + _DAMAGED))
            raise ChunksMissing([name], "a chunk on the volume is damaged") from None

    def idle(self, named: Collection[bytes], before: float) -> list[Path]:
        """Files that `named` does not have and nobody asked for since `before`, in seconds."""
        return [
            path
            for path in self._files()
            if not _is_named(path.name, named) and _touched(path) < before
        ]

    def taken(self) -> DiskUsage:
        """What all of them take, also those that are damaged."""
        found = DiskUsage()
        for path in self._files():
            with contextlib.suppress(FileNotFoundError):
                found = found.with_(DiskUsage(path.lstat().st_size, 1))
        return found

    def _files(self) -> Iterator[Path]:
        with contextlib.suppress(FileNotFoundError):
            for folder in sorted(self.folder.iterdir()):
                with os.scandir(folder) as entries:
                    yield from [folder / entry.name for entry in entries]

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name


def _is_named(name: str, named: Collection[bytes]) -> bool:
    try:
        return bytes.fromhex(name) in named
    except ValueError:
        return False


def _touched(path: Path) -> float:
    """When a chunk was last asked for; never, for one that is gone already."""
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return float("inf")
