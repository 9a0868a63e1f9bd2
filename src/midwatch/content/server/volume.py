"""Folders on a volume, which several processes may share.

::

    .midwatch-content                    exists while the volume is mounted
    folders/NAMESPACE/NAME.UID/
        manifest.jsonl                   the one commit point: replaced as a whole
        lock                             held by the process that replaces the manifest or deletes the folder
        segments/ID.COUNT                immutable: many chunks each
        chunks/ab/abcdef…                immutable: a chunk each, of an earlier version
    beside/RANDOM/                       incomplete files of one process, which holds its `lock` while it lives
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from midwatch.content.errors import ContentUnavailable
from midwatch.content.server.objects import ManifestChanged, Overview, Tag
from midwatch.content.server.segments import (
    Place,
    Stored,
    chunk_of,
    head_length,
    parse_head,
)
from midwatch.content.tree import check_folder
from midwatch.files import locked_if_free, sync_all, try_lock, write_all

_MARKER = ".midwatch-content"
_MANIFEST = "manifest.jsonl"
_LOCK = "lock"
_SEGMENTS = "segments"
_CHUNKS = "chunks"
_POLL = 0.01
_USE_PRECISION = 60.0
"""Seconds: the time of use of a folder is not updated more often."""
_LOCK_TIMEOUT = 20.0
"""Seconds: some hundred times what it takes to replace a large manifest."""


_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def _write_new(path: Path, data: bytes) -> None:
    """Write and sync a new file. Raises OSError, also if it exists."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(path, flags, 0o600)
    try:
        write_all(file, data)
        os.fsync(file)
    finally:
        os.close(file)


# ------------------------------------------------------------------ folders


class Volume:
    """The folders on one volume, which several processes may share: `Objects` as files.

    Methods raise OSError, which `map_disk_errors` translates, and ContentUnavailable if the volume is gone.
    """

    poll = 2.0

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

    def _path(self, folder: str) -> Path:
        return self._folders / check_folder(folder)

    def _new_path(self) -> Path:
        """Return a new path for an incomplete file or a folder to delete; it is removed with this process."""
        return self._temporary / str(next(self._names))

    def _check_mounted(self) -> None:
        """Raise ContentUnavailable if the volume is gone: only while it is there, a missing file means empty."""
        if not (self.root / _MARKER).exists():
            raise ContentUnavailable(
                "the volume of the content proxy is gone",
                hint="check that it is mounted, then restart the proxy",
            )

    # -------------------------------------------------- the manifest

    def tag(self, folder: str) -> Tag | None:
        """Return the tag of a folder's manifest: each one is a new file."""
        try:
            return _tag(os.stat(self._path(folder) / _MANIFEST))
        except FileNotFoundError:
            return None

    def manifest(self, folder: str, known: Tag | None) -> tuple[Tag, BinaryIO | None]:
        """Return the manifest and its tag, as `Objects` says."""
        try:
            file = (self._path(folder) / _MANIFEST).open("rb")
        except FileNotFoundError:
            self._check_mounted()
            raise
        tag = _tag(os.fstat(file.fileno()))
        if tag != known:
            return tag, file
        file.close()
        return tag, None

    def replace(
        self,
        folder: str,
        pieces: Iterable[bytes],
        expected: Tag | None,
        needed: Collection[str],
    ) -> Tag:
        """Replace the manifest under the folder's lock, as `Objects` says."""
        temporary = self._new_path()
        try:
            with temporary.open("xb") as opened:
                opened.writelines(pieces)
                opened.flush()
                os.fsync(opened.fileno())
                tag = _tag(os.fstat(opened.fileno()))
            with self._locked(folder) as path:
                self._check(folder, expected, needed)
                if needed:
                    sync_all([*{(path / name).parent for name in needed}, path])
                if expected is None:
                    self._sync_new(path)
                temporary.replace(path / _MANIFEST)
                sync_all([path])
        finally:
            temporary.unlink(missing_ok=True)
        return tag

    def _check(
        self, folder: str, expected: Tag | None, needed: Collection[str] = ()
    ) -> None:
        path = self._path(folder)
        if self.tag(folder) != expected:
            raise ManifestChanged
        if not all((path / name).exists() for name in needed):
            raise ManifestChanged

    def _sync_new(self, path: Path) -> None:
        """Return when a new folder will survive a crash of the machine."""
        inside = [path / name for name in (_SEGMENTS, _CHUNKS)]
        exist = [folder for folder in inside if folder.exists()]
        sync_all([*exist, path, path.parent, self._folders, self.root])

    # -------------------------------------------------- segments

    def write(self, folder: str, name: str, data: bytes) -> None:
        """Write a segment to a temporary file, sync it and rename it, so that a file with its name has its bytes."""
        self._check_mounted()
        temporary, path = self._new_path(), self._path(folder) / name
        try:
            _write_new(temporary, data)
            try:
                temporary.replace(path)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def read(
        self, folder: str, name: str, ranges: Sequence[tuple[int, int]]
    ) -> list[bytes]:
        """Return ranges of a segment, as (start, length). Raises FileNotFoundError."""
        file = os.open(self._path(folder) / name, _READ)
        try:
            return [os.pread(file, length, start) for start, length in ranges]
        finally:
            os.close(file)

    def heads(
        self, folder: str, names: Sequence[str]
    ) -> Mapping[str, Mapping[bytes, Place]]:
        """Return where the chunks of these segments are; nothing for a segment that is gone."""
        return {name: self._head(folder, name) for name in names}

    def _head(self, folder: str, name: str) -> Mapping[bytes, Place]:
        try:
            if chunk := chunk_of(name):
                size = os.lstat(self._path(folder) / name).st_size
                return {bytes.fromhex(chunk): Place(name, 0, size)}
            return parse_head(
                name, self.read(folder, name, [(0, head_length(name))])[0]
            )
        except FileNotFoundError:
            return {}

    def segments(self, folder: str) -> list[Stored]:
        """Return the segments that exist, and the chunks of an earlier version."""
        path = self._path(folder)
        found = list(_files(path / _SEGMENTS, f"{_SEGMENTS}/"))
        with contextlib.suppress(FileNotFoundError):
            for below in sorted(os.listdir(path / _CHUNKS)):
                found += _files(path / _CHUNKS / below, f"{_CHUNKS}/{below}/")
        return found

    def delete(self, folder: str, names: Collection[str]) -> None:
        """Delete segments, and the folders of an earlier version that are empty then."""
        path = self._path(folder)
        for name in names:
            (path / name).unlink(missing_ok=True)
        for above in {name.rpartition("/")[0] for name in names} - {_SEGMENTS}:
            with contextlib.suppress(OSError):
                (path / above).rmdir()
                (path / _CHUNKS).rmdir()

    def renew(self, folder: str, segment: Stored) -> None:
        """Set the time of a segment, which its age is counted from."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._path(folder) / segment.name, follow_symlinks=False)

    # -------------------------------------------------- folders

    def overview(self) -> Iterator[Overview]:
        """Yield all folders."""
        for namespace in sorted(os.listdir(self._folders)):
            for name in sorted(os.listdir(self._folders / namespace)):
                folder = f"{namespace}/{name}"
                with contextlib.suppress(FileNotFoundError):
                    used = self._path(folder).stat().st_mtime
                    yield Overview(
                        folder, self.tag(folder), self.segments(folder), used
                    )

    def remove(
        self,
        folder: str,
        tag: Tag | None,
        tombstone: Iterable[bytes],
        names: Collection[str],
    ) -> bool:
        """Rename the folder under its lock, then remove what is in it. Return whether it existed."""
        if not self._path(folder).exists():
            self._check_mounted()
            return False
        deleted = self._new_path()
        with self._locked(folder) as path:
            self._check(folder, tag)
            path.replace(deleted)
            sync_all([path.parent])
        shutil.rmtree(deleted, ignore_errors=True)
        return True

    def forget(self, folder: str, tag: Tag | None, before: float) -> None:
        """Delete a folder with nothing in it that was not used since this time, unless it has changed."""
        with contextlib.suppress(FileNotFoundError, ManifestChanged):
            if self._path(folder).stat().st_mtime < before:
                self.remove(folder, tag, (), ())

    def use(self, folder: str) -> None:
        """Record that a folder is read or written, if it exists, in its modification time."""
        path = self._path(folder)
        with contextlib.suppress(OSError):  # a read must not fail because of this
            if path.stat().st_mtime < time.time() - _USE_PRECISION:
                os.utime(path)

    # -------------------------------------------------- the whole volume

    def probe(self) -> None:
        """Write, sync and remove a file, as a commit does."""
        path = self._new_path()
        try:
            _write_new(path, b"probe")
        finally:
            path.unlink(missing_ok=True)
        self._check_mounted()

    def clean(self) -> None:
        """Remove the incomplete files of processes that have ended."""
        for folder in (self.root / "beside").iterdir():
            if folder.name.startswith("."):
                continue
            with contextlib.suppress(FileNotFoundError):
                with locked_if_free(folder / _LOCK) as ended:
                    if ended:
                        shutil.rmtree(folder, ignore_errors=True)

    def disk_usage(self) -> tuple[int, int] | None:
        """Return the bytes of the file system, or None if they cannot be read."""
        try:
            usage = shutil.disk_usage(self.root)
        except OSError:
            return None
        return usage.used, usage.free

    @contextlib.contextmanager
    def _locked(self, folder: str) -> Iterator[Path]:
        """Hold the folder's lock; the folder is made if it is missing. Yields its path. Raises ContentUnavailable."""
        self._check_mounted()
        path = self._path(folder)
        lock = _lock_folder(path)
        try:
            yield path
        finally:
            os.close(lock)


def _tag(stat: os.stat_result) -> Tag:
    return Tag(f"{stat.st_ino}-{stat.st_mtime_ns}-{stat.st_size}")


def _files(path: Path, prefix: str) -> Iterator[Stored]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        with os.scandir(path) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    stat = entry.stat(follow_symlinks=False)
                    yield Stored(prefix + entry.name, stat.st_size, stat.st_mtime)


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
