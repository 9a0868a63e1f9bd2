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
import fcntl
import itertools
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from midwatch.content.durable import sync_all
from midwatch.content.errors import ContentUnavailable
from midwatch.content.paths import check_folder
from midwatch.content.server.disk import write_file

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
