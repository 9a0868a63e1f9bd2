"""The quota of a folder: bounds what it takes, named by its manifest or not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Container
from dataclasses import dataclass

from midwatch.content.errors import ContentFull
from midwatch.content.server.segments import Stored
from midwatch.content.tree import CHUNK
from midwatch.settings import ContentSettings

_FACTOR = 2
"""The segments of a folder may take this many times `content.max_size`: enough to replace all of it."""
FRESH = 60.0
"""Seconds that a segment is kept, however full the folder is: an upload is about to name it."""
_MEASURE_AFTER = 8
"""Usage is measured again after an eighth of the quota was written, to see the writes of other processes."""
_GOAL = 0.75
"""Fraction of the quota that may be used after space was freed, so that it is not full again at once."""


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """Bytes and number of segments."""

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


def usage_of(segments: Collection[Stored]) -> DiskUsage:
    """Return what these segments take."""
    return DiskUsage(sum(segment.size for segment in segments), len(segments))


@dataclass(slots=True)
class _Measured:
    usage: DiskUsage
    written: int = 0


class Quota:
    """Bounds the segments of each folder, named by a manifest or not. Thread-safe.

    `content.max_size` bounds what a manifest names. Content that was replaced or never committed stays for a
    while as well; without a quota one session could fill the volume of all. Each process measures a folder
    once, then counts.
    """

    def __init__(self, settings: ContentSettings) -> None:
        size = int(settings.max_size)
        files = settings.max_entries + size // CHUNK
        self.limit = DiskUsage(_FACTOR * size, _FACTOR * files)
        self._folders: dict[str, _Measured] = {}
        self._lock = threading.Lock()

    def fits(
        self, folder: str, more: DiskUsage, measure: Callable[[], DiskUsage]
    ) -> bool:
        """Return whether the folder may take `more`. Raises what `measure` raises."""
        with self._lock:
            known = self._folders.get(folder)
        if known is None or known.written * _MEASURE_AFTER > self.limit.bytes:
            known = _Measured(measure())
            with self._lock:
                self._folders[folder] = known
        return (known.usage + more).within(self.limit)

    def record(self, folder: str, added: DiskUsage) -> None:
        """Count a segment that was written."""
        with self._lock:
            if known := self._folders.get(folder):
                known.usage += added
                known.written += added.bytes

    def to_free(
        self, usage: DiskUsage, more: DiskUsage, unused: Collection[Stored]
    ) -> list[Stored]:
        """Return the unused segments to delete, the oldest first, so that `more` fits well."""
        chosen = []
        for segment in sorted(unused, key=lambda s: s.modified):
            if (usage + more).within(self.limit, _GOAL):
                break
            chosen.append(segment)
            usage -= DiskUsage(segment.size, 1)
        return chosen

    def check(self, usage: DiskUsage, more: DiskUsage) -> None:
        """Raise ContentFull if a folder with this usage may not take `more`."""
        if not (usage + more).within(self.limit):
            raise ContentFull(
                f"the session's folder takes {usage.bytes} bytes in {usage.files} segments, including replaced and "
                f"uncommitted content; its limit is {self.limit.bytes} bytes in {self.limit.files} segments",
                hint="other sessions are not affected; leave out files that need not be kept, or raise "
                "content.max_size; the write is retried",
                retry_after=FRESH / 2,
            )

    def drop(self, folder: str) -> None:
        """Forget a folder; it is measured again when it is needed."""
        with self._lock:
            self._folders.pop(folder, None)

    def drop_others(self, folders: Container[str]) -> None:
        """Forget all but these folders."""
        with self._lock:
            self._folders = {
                folder: known
                for folder, known in self._folders.items()
                if folder in folders
            }
