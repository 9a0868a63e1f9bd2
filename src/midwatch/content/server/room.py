"""How much of the volume each folder takes: its chunks, whether a manifest names them or not.

`content.max_size` bounds what a manifest names. What was replaced, or never committed, stays for a while and takes room as
well; without a bound one session could fill the volume of all. Twice as much as the manifest may name is enough for one that
replaces all it has.

Known by each process for itself: measured once, then counted, and measured again after an eighth of the bound was
written, so that what another process writes is seen as well.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from midwatch.content.errors import ContentFull
from midwatch.content.tree import CHUNK
from midwatch.settings import ContentSettings

TIMES = 2
"""A folder's chunks may take so many times what its manifest may name."""
FRESH = 60.0
"""Seconds that a chunk is kept after it was asked for, however full the folder is: an upload is about to name it."""
_MEASURE_AFTER = 8
_GOAL = 0.75
"""Of the bound, which is left when there has to be made room: so that it is not at once full again."""


class Taken(NamedTuple):
    """Bytes and files of chunks."""

    bytes: int = 0
    files: int = 0

    def with_(self, other: Taken) -> Taken:
        return Taken(self.bytes + other.bytes, self.files + other.files)

    def without(self, other: Taken) -> Taken:
        return Taken(self.bytes - other.bytes, self.files - other.files)

    def within(self, limit: Taken, part: float = 1.0) -> bool:
        return self.bytes <= limit.bytes * part and self.files <= limit.files * part


@dataclass(slots=True)
class _Known:
    taken: Taken
    written: int = 0


class Room:
    """Safe between threads. Folders are known by their names."""

    def __init__(self, settings: ContentSettings) -> None:
        size = int(settings.max_size)
        files = settings.max_entries + size // CHUNK
        self.limit = Taken(TIMES * size, TIMES * files)
        self._known: dict[str, _Known] = {}
        self._lock = threading.Lock()

    def has(self, folder: str, more: Taken, measure: Callable[[], Taken]) -> bool:
        """Whether so much more fits. Raises what `measure` raises."""
        with self._lock:
            known = self._known.get(folder)
        if known is None or known.written * _MEASURE_AFTER > self.limit.bytes:
            known = self._measured(folder, measure)
        return known.taken.with_(more).within(self.limit)

    def changed(
        self, folder: str, added: Taken = Taken(), gone: Taken = Taken()
    ) -> None:
        with self._lock:
            if known := self._known.get(folder):
                known.taken = known.taken.with_(added).without(gone)
                known.written += added.bytes

    def make(
        self,
        folder: str,
        more: Taken,
        measure: Callable[[], Taken],
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
            gone = Taken(size, 1)
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

    def _measured(self, folder: str, measure: Callable[[], Taken]) -> _Known:
        known = _Known(measure())
        with self._lock:
            self._known[folder] = known
        return known


def taken_by(frames: Collection[tuple[str, bytes]]) -> Taken:
    return Taken(sum(len(data) for _, data in frames), len(frames))


def _stat(path: Path) -> tuple[float, int] | None:
    """When it was last asked for, and its bytes; None where it is gone."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_mtime, found.st_size
