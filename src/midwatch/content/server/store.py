"""Folders on a volume: one manifest each, and the chunks that it names.

The manifest's file is replaced as the last step of a commit, when all chunks that it names are on the
disk. So at every instant, and after a crash at any, a folder has one whole version. Everything here
works in a thread, and several processes may do it on one volume.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from midwatch.content.errors import (
    ChunksMissing,
    ContentRefused,
    ContentTooLarge,
    PathRefused,
    Superseded,
    VersionConflict,
)
from midwatch.content.server.manifest import Manifest, cause_of, load
from midwatch.content.server.volume import (
    FRESH,
    Chunks,
    Quota,
    Volume,
    disk_errors,
    taken_by,
)
from midwatch.content.tree import CHUNK, Delta, check_entries, check_shape
from midwatch.files import sync_all
from midwatch.settings import ContentSettings

# ------------------------------------------------------------ cache
# Manifests that were used last, as many as fit into a number of bytes; safe between threads.


class Mark(NamedTuple):
    """What tells one manifest's file from the next: each is a file of its own."""

    inode: int
    changed: int
    size: int


class ManifestCache:
    """A manifest counts as long as its file has the mark that it had when it was read or written."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._held: OrderedDict[str, tuple[Mark, Manifest, int]] = OrderedDict()
        self._cost = 0
        self._lock = threading.Lock()

    def get(self, folder: str, mark: Mark) -> Manifest | None:
        with self._lock:
            held = self._held.get(folder)
            if held is None or held[0] != mark:
                return None
            self._held.move_to_end(folder)
            return held[1]

    def put(self, folder: str, mark: Mark, manifest: Manifest) -> None:
        cost = manifest.cost
        with self._lock:
            self._drop(folder)
            self._held[folder] = (mark, manifest, cost)
            self._cost += cost
            # The last one stays whatever its size: it would be read for every request.
            while self._cost > self._limit and len(self._held) > 1:
                self._drop(next(iter(self._held)))

    def drop(self, folder: str) -> None:
        with self._lock:
            self._drop(folder)

    def _drop(self, folder: str) -> None:
        if folder in self._held:
            self._cost -= self._held.pop(folder)[2]


# ------------------------------------------------------------ history
# How folders came from one version to the next, so that who knows a recent one is told the difference only.
#
# In memory, bounded, and of this process: where it does not know, the whole manifest is sent.

_ALL = 16 << 20
_OF_ONE = 1 << 20
"""Bytes, of all folders and of one: that holds its last some 5,000 changed paths."""
_EACH = 120
"""Bytes that a path or a step takes beyond its characters, about."""


class _Step(NamedTuple):
    before: str
    after: str
    paths: frozenset[str]
    cost: int


@dataclass(slots=True)
class _Steps:
    """Of one folder: each begins where the one before it ended."""

    held: deque[_Step] = field(default_factory=deque)
    cost: int = 0


class History:
    """Safe between threads."""

    def __init__(self, limit: int = _ALL, of_one: int = _OF_ONE) -> None:
        self._limit = limit
        self._of_one = of_one
        self._folders: OrderedDict[str, _Steps] = OrderedDict()
        self._cost = 0
        self._lock = threading.Lock()

    def add(self, folder: str, before: str, after: str, paths: frozenset[str]) -> None:
        """A commit that made `after` of `before` by changing these paths."""
        cost = _EACH + sum(map(len, paths)) + _EACH * len(paths)
        with self._lock:
            steps = self._folders.setdefault(folder, _Steps())
            if steps.held and steps.held[-1].after != before:
                self._shorten(steps, 0)  # another process was in between
            steps.held.append(_Step(before, after, paths, cost))
            steps.cost += cost
            self._cost += cost
            self._shorten(steps, self._of_one)
            self._folders.move_to_end(folder)
            while self._cost > self._limit:
                self._drop(next(iter(self._folders)))

    def since(self, folder: str, known: str, present: str) -> frozenset[str] | None:
        """The paths that changed on the way from `known` to `present`; None where the way is not known."""
        with self._lock:
            found = self._folders.get(folder)
            steps = list(found.held) if found else []
        if not steps or steps[-1].after != present:
            return None
        paths: set[str] = set()
        for step in reversed(steps):
            paths |= step.paths
            if step.before == known:
                return frozenset(paths)
        return None

    def drop(self, folder: str) -> None:
        with self._lock:
            self._drop(folder)

    def _drop(self, folder: str) -> None:
        if steps := self._folders.pop(folder, None):
            self._cost -= steps.cost

    def _shorten(self, steps: _Steps, limit: int) -> None:
        while steps.cost > limit:
            cost = steps.held.popleft().cost
            steps.cost -= cost
            self._cost -= cost


_MANIFEST = "manifest.jsonl"


@dataclass(frozen=True, slots=True)
class Edit:
    """A change that the server makes itself: entries, and the chunks of them by their hashes."""

    delta: Delta
    chunks: Sequence[tuple[str, bytes]] = ()


class ContentStore:
    """Raises the errors of this package, and PathRefused for what is no folder's id."""

    def __init__(
        self,
        volume: Volume,
        settings: ContentSettings,
        now: Callable[[], datetime],
    ) -> None:
        self._volume = volume
        self._settings = settings
        self._now = now
        self._cache = ManifestCache(settings.cache_size)
        self._history = History()
        self._room = Quota(settings)

    # -------------------------------------------------- reading

    def mark(self, folder: str) -> Mark | None:
        """What changes with every version; None without a manifest. One `stat`."""
        with disk_errors():
            try:
                return _mark(os.stat(self._file(folder)))
            except FileNotFoundError:
                return None

    def manifest(self, folder: str, attempt: int = 0) -> Manifest:
        """The folder's present one; an empty one where nothing was committed yet.

        A manifest that is there and cannot be read is an error, never an empty one. Raises Superseded for an
        attempt that is over; 0 is none.
        """
        with disk_errors():
            self._volume.use(folder)
            found = self._manifest(folder)
        _check_attempt(found, attempt)
        return found

    def _manifest(self, folder: str) -> Manifest:
        try:
            with self._file(folder).open("rb") as file:
                mark = _mark(os.fstat(file.fileno()))
                known = self._cache.get(folder, mark)
                if known is None:
                    known = load(file)
                    self._cache.put(folder, mark, known)
                return known
        except FileNotFoundError:
            self._volume.check_mounted()
            return Manifest()

    def changed_since(
        self, folder: str, version: str, now: Manifest
    ) -> frozenset[str] | None:
        """The paths in which `now` may differ from that version; None where that is not known (any more)."""
        return self._history.since(folder, version, now.version)

    def missing(self, folder: str, names: Iterable[str]) -> list[str]:
        """Those chunks that are not there."""
        with disk_errors():
            return self._chunks(folder).missing(names)

    def absent(self, folder: str, names: Iterable[str]) -> list[str]:
        """As `missing`, without keeping those that are there."""
        with disk_errors():
            chunks = self._chunks(folder)
            return [name for name in names if chunks.size(name) is None]

    def read_chunk(self, folder: str, name: str) -> bytes:
        with disk_errors():
            return self._chunks(folder).read(name)

    # -------------------------------------------------- writing

    def write_chunks(
        self, folder: str, frames: Collection[tuple[str, bytes]]
    ) -> frozenset[str]:
        """Those that were new. Raises ContentFull for a folder that takes too much of the volume already."""
        with disk_errors():
            self._volume.check_mounted()
            self._volume.use(folder)
            return self._write(folder, frames)

    def _write(
        self,
        folder: str,
        frames: Collection[tuple[str, bytes]],
        *,
        locked: bool = False,
    ) -> frozenset[str]:
        chunks = self._chunks(folder)
        if not self._room.has(folder, taken_by(frames), chunks.taken):
            lock = self._volume.locked(folder)
            with contextlib.nullcontext() if locked else lock:
                absent = [one for one in frames if chunks.size(one[0]) is None]
                before = self._now().timestamp() - FRESH
                idle = chunks.idle(self._manifest(folder).chunks(), before)
                self._room.make(folder, taken_by(absent), chunks.taken, idle)
        new = chunks.write(frames)
        added = [(name, data) for name, data in dict(frames).items() if name in new]
        self._room.changed(folder, taken_by(added))
        return new

    def claim(self, folder: str, attempt: int) -> int:
        """From now on no lower attempt changes the folder. Raises Superseded for one that is lower itself."""
        with disk_errors(), self._volume.locked(folder):
            current = self._manifest(folder)
            _check_attempt(current, attempt)
            if attempt > current.attempt:
                self._volume.sync_new(folder)
                self._replace(folder, replace(current, attempt=attempt))
            return attempt

    def check_attempt(self, folder: str, attempt: int) -> None:
        """Raises Superseded for one that is over; 0 is none."""
        if attempt:
            self.manifest(folder, attempt)

    def commit(self, folder: str, base: str, delta: Delta, attempt: int = 0) -> str:
        """The version that `delta` makes of `base`.

        Raises VersionConflict where the folder has another version, unless this very commit made it,
        and Superseded for an attempt that is over, whatever the version.
        """
        _check_delta(delta)
        cause = cause_of(base, delta)
        with disk_errors(), self._volume.locked(folder):
            current = self._manifest(folder)
            _check_attempt(current, attempt)
            current = replace(current, attempt=max(attempt, current.attempt))
            if current.version == base:
                return self._committed(folder, current, delta, cause)
            if current.cause == cause:
                return current.version
            raise VersionConflict(current.version)

    def edit(self, folder: str, make: Callable[[Manifest], Edit]) -> str:
        """Commit what `make` has to change of the present manifest; nobody is in between."""
        with disk_errors(), self._volume.locked(folder):
            current = self._manifest(folder)
            edit = make(current)
            _check_delta(edit.delta)
            self._write(folder, edit.chunks, locked=True)
            cause = cause_of(current.version, edit.delta)
            return self._committed(folder, current, edit.delta, cause)

    def _committed(
        self, folder: str, current: Manifest, delta: Delta, cause: str
    ) -> str:
        new = current.changed(delta, cause, self._now())
        if new.version == current.version:
            return current.version
        self._check_limits(new)
        check_shape(new.slots, new.kind)
        chunks = self._chunks(folder)
        _check_chunks(chunks, delta)
        chunks.sync(delta.chunks)
        if not current.cause:
            self._volume.sync_new(folder)
        self._replace(folder, new)
        changed = frozenset((*delta.put, *delta.removed))
        self._history.add(folder, current.version, new.version, changed)
        for path in changed:
            # Whoever reads the old version still gets its chunks for a while.
            for name in _chunks_of(current, path):
                chunks.renew(name)
        return new.version

    def _check_limits(self, new: Manifest) -> None:
        if len(new) > self._settings.max_entries:
            raise ContentTooLarge(
                f"{len(new)} entries are more than content.max_entries, {self._settings.max_entries}"
            )
        if new.size > self._settings.max_size:
            raise ContentTooLarge(
                f"{new.size} bytes are more than content.max_size, {self._settings.max_size:.0f}"
            )

    def _replace(self, folder: str, new: Manifest) -> None:
        beside, file = self._volume.new_name(), self._file(folder)
        try:
            with beside.open("xb") as written:
                new.save(written)
                written.flush()
                os.fsync(written.fileno())
                mark = _mark(os.fstat(written.fileno()))
            beside.replace(file)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
        sync_all([file.parent])
        self._cache.put(folder, mark, new)

    # -------------------------------------------------- removing

    def delete(self, folder: str, attempt: int = 0) -> bool:
        """Whether there was one. Raises Superseded for an attempt that is over."""

        def check() -> None:
            if attempt:
                _check_attempt(self._manifest(folder), attempt)

        with disk_errors():
            deleted = self._volume.remove(folder, check=check)
            self._forget(folder)
            return deleted

    def expire(self, folder: str) -> bool:
        """Remove a folder that nobody used for `keep_for`; whether it was one."""
        keep_for = self._settings.keep_for
        if keep_for is None:
            return False
        before = self._now().timestamp() - keep_for
        with disk_errors():
            if self._volume.used(folder) >= before:
                return False
            self._forget(folder)
            return self._volume.remove(folder, before)

    def _forget(self, folder: str) -> None:
        self._cache.drop(folder)
        self._history.drop(folder)
        self._room.drop(folder)

    def collect(self, folder: str) -> int:
        """Remove chunks that no manifest names and nobody asked for since the grace; how many.

        An upload under way asks for its chunks. Should one take longer, its commit names what
        is missing, and only that is sent again.
        """
        chunks = self._chunks(folder)
        before = self._now().timestamp() - self._settings.collect_grace
        with disk_errors():
            if not chunks.idle(self._manifest(folder).chunks(), before):
                return 0
            with self._volume.locked(folder):
                idle = chunks.idle(self._manifest(folder).chunks(), before)
                for path in idle:
                    path.unlink(missing_ok=True)
                if idle:
                    self._room.drop(folder)
                return len(idle)

    def folders(self) -> list[str]:
        with disk_errors():
            return self._volume.names()

    def clean(self) -> None:
        """Remove what processes left that are no more."""
        with disk_errors():
            self._volume.clean()

    def probe(self) -> None:
        """Raises ContentFull or ContentUnavailable where a commit could not be written."""
        with disk_errors():
            self._volume.probe()

    def _file(self, folder: str) -> Path:
        return self._volume.path(folder) / _MANIFEST

    def _chunks(self, folder: str) -> Chunks:
        return Chunks(self._volume.path(folder) / "chunks", self._volume.new_name)


def _mark(found: os.stat_result) -> Mark:
    return Mark(found.st_ino, found.st_mtime_ns, found.st_size)


def _check_attempt(current: Manifest, attempt: int) -> None:
    """0 is a request of no attempt: a person's, or a tool's."""
    if 0 < attempt < current.attempt:
        raise Superseded(current.attempt)


def _check_delta(delta: Delta) -> None:
    check_entries(delta.put)
    for path in delta.put:
        if path in delta.removed:
            raise ContentRefused(f"{ascii(path[:200])} is both put and removed")


def _check_chunks(chunks: Chunks, delta: Delta) -> None:
    """All chunks are there, and as long as the sizes of the files say."""
    sizes = {name: chunks.size(name) for name in delta.chunks}
    if missing := [name for name, size in sizes.items() if size is None]:
        raise ChunksMissing(sorted(missing))
    for path, entry in delta.put.items():
        for number, name in enumerate(entry.chunks):
            if sizes[name] != min(CHUNK, entry.size - number * CHUNK):
                raise PathRefused(path, "has another size than its chunks")


def _chunks_of(manifest: Manifest, path: str) -> Sequence[str]:
    entry = manifest.get(path)
    return entry.chunks if entry else ()
