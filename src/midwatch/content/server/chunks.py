"""The chunks of one folder on the volume: immutable files `ab/abcdef…`, named by their SHA-256.

One is written beside, synced and renamed, so that what has the name has the bytes. The time of its file
tells when it was last asked for: what nothing names is kept for a while after that.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from midwatch.content.durable import sync_all
from midwatch.content.errors import ChunksMissing, StreamBroken
from midwatch.content.server.disk import write_file
from midwatch.content.server.room import Taken
from midwatch.content.wire import checked

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

    def taken(self) -> Taken:
        """What all of them take, also those that are damaged."""
        found = Taken()
        for path in self._files():
            with contextlib.suppress(FileNotFoundError):
                found = found.with_(Taken(path.lstat().st_size, 1))
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
