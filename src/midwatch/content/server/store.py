"""Folders on a volume: one manifest each, and the chunks that it names.

The manifest's file is replaced as the last step of a commit, when all chunks that it names are on the disk. So a
folder has one whole version at every instant, also after a crash. All methods block: they run in threads, and
several processes may share one volume.
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
    map_disk_errors,
    usage_of,
)
from midwatch.content.tree import CHUNK, Delta, check_entries, check_shape
from midwatch.files import sync_all
from midwatch.settings import ContentSettings

_MANIFEST = "manifest.jsonl"
_HISTORY_BYTES = 16 << 20
_FOLDER_HISTORY_BYTES = 1 << 20
"""Enough for the last 5,000 or so changed paths of a folder."""
_ITEM_BYTES = 120
"""Approximate bytes that a path or a step takes in addition to its characters."""


# ------------------------------------------------------------------ in memory


class Stamp(NamedTuple):
    """Identifies a version of a manifest's file: each version is a new file."""

    inode: int
    changed: int
    size: int


def _stamp(stat: os.stat_result) -> Stamp:
    return Stamp(stat.st_ino, stat.st_mtime_ns, stat.st_size)


class ManifestCache:
    """The manifests that were used last, up to `limit` bytes. Thread-safe.

    A manifest is valid while its file has the stamp that it had when it was read or written.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._held: OrderedDict[str, tuple[Stamp, Manifest, int]] = OrderedDict()
        self._cost = 0
        self._lock = threading.Lock()

    def get(self, folder: str, stamp: Stamp) -> Manifest | None:
        """Return the manifest, or None if it is not cached or its file has changed."""
        with self._lock:
            held = self._held.get(folder)
            if held is None or held[0] != stamp:
                return None
            self._held.move_to_end(folder)
            return held[1]

    def put(self, folder: str, stamp: Stamp, manifest: Manifest) -> None:
        """Keep a manifest, and drop those that were used least recently."""
        cost = manifest.cost
        with self._lock:
            self._drop(folder)
            self._held[folder] = (stamp, manifest, cost)
            self._cost += cost
            # The last one stays whatever its size: it would be read for every request.
            while self._cost > self._limit and len(self._held) > 1:
                self._drop(next(iter(self._held)))

    def drop(self, folder: str) -> None:
        """Forget a folder."""
        with self._lock:
            self._drop(folder)

    def _drop(self, folder: str) -> None:
        if folder in self._held:
            self._cost -= self._held.pop(folder)[2]


class _Step(NamedTuple):
    before: str
    after: str
    paths: frozenset[str]
    cost: int


@dataclass(slots=True)
class _Steps:
    """The steps of one folder: each begins at the version where the one before it ended."""

    held: deque[_Step] = field(default_factory=deque)
    cost: int = 0


class History:
    """The last changes of folders, so that a client with a recent version is sent the difference only. Thread-safe.

    It is in memory, bounded, and of this process: the whole manifest is sent if the commits in between are not recorded.

    Args:
        limit: Bytes for all folders.
        of_one: Bytes for one folder.
    """

    def __init__(
        self, limit: int = _HISTORY_BYTES, of_one: int = _FOLDER_HISTORY_BYTES
    ) -> None:
        self._limit = limit
        self._of_one = of_one
        self._folders: OrderedDict[str, _Steps] = OrderedDict()
        self._cost = 0
        self._lock = threading.Lock()

    def add(self, folder: str, before: str, after: str, paths: frozenset[str]) -> None:
        """Record a commit that changed these paths of version `before` and made version `after`."""
        cost = _ITEM_BYTES + sum(map(len, paths)) + _ITEM_BYTES * len(paths)
        with self._lock:
            steps = self._folders.setdefault(folder, _Steps())
            if steps.held and steps.held[-1].after != before:
                self._shorten(steps, 0)  # another process committed in between
            steps.held.append(_Step(before, after, paths, cost))
            steps.cost += cost
            self._cost += cost
            self._shorten(steps, self._of_one)
            self._folders.move_to_end(folder)
            while self._cost > self._limit:
                self._drop(next(iter(self._folders)))

    def since(self, folder: str, known: str, current: str) -> frozenset[str] | None:
        """Return the paths that changed from version `known` to `current`; None if some commits in between are not recorded."""
        with self._lock:
            found = self._folders.get(folder)
            steps = list(found.held) if found else []
        if not steps or steps[-1].after != current:
            return None
        paths: set[str] = set()
        for step in reversed(steps):
            paths |= step.paths
            if step.before == known:
                return frozenset(paths)
        return None

    def drop(self, folder: str) -> None:
        """Forget a folder."""
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


# ------------------------------------------------------------------ on the volume


@dataclass(frozen=True, slots=True)
class Edit:
    """A change that the server makes itself: entries, and their new chunks with their hashes."""

    delta: Delta
    chunks: Sequence[tuple[str, bytes]] = ()


class ContentStore:
    """All folders of a volume. Methods raise the errors of this package, and PathRefused for an invalid id.

    Wherever `attempt` is given, a lower one than the folder has is refused with Superseded; 0 is no attempt.
    """

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
        self._quota = Quota(settings)

    # -------------------------------------------------- reading

    @map_disk_errors()
    def stamp(self, folder: str) -> Stamp | None:
        """Return what changes with every version; None without a manifest. Costs one `stat`."""
        try:
            return _stamp(os.stat(self._file(folder)))
        except FileNotFoundError:
            return None

    @map_disk_errors()
    def manifest(self, folder: str, attempt: int = 0) -> Manifest:
        """Return the current manifest; an empty one if nothing was committed yet.

        A manifest that exists and cannot be read is an error, never an empty one.
        """
        self._volume.use(folder)
        return self._manifest(folder, attempt)

    def _manifest(self, folder: str, attempt: int = 0) -> Manifest:
        try:
            with self._file(folder).open("rb") as file:
                stamp = _stamp(os.fstat(file.fileno()))
                found = self._cache.get(folder, stamp)
                if found is None:
                    found = load(file)
                    self._cache.put(folder, stamp, found)
        except FileNotFoundError:
            self._volume.check_mounted()
            found = Manifest()
        if 0 < attempt < found.attempt:
            raise Superseded(found.attempt)
        return found

    def changed_since(
        self, folder: str, version: str, now: Manifest
    ) -> frozenset[str] | None:
        """Return the paths in which `now` may differ from that version; None if that is not known."""
        return self._history.since(folder, version, now.version)

    @map_disk_errors()
    def missing(self, folder: str, names: Iterable[str]) -> list[str]:
        """Return the chunks that do not exist, and keep the others for a while."""
        return self._chunks(folder).missing(names)

    @map_disk_errors()
    def absent(self, folder: str, names: Iterable[str]) -> list[str]:
        """Return the chunks that do not exist."""
        chunks = self._chunks(folder)
        return [name for name in names if chunks.size(name) is None]

    @map_disk_errors()
    def read_chunk(self, folder: str, name: str) -> bytes:
        """Return the bytes of a chunk. Raises ChunksMissing."""
        return self._chunks(folder).read(name)

    # -------------------------------------------------- writing

    @map_disk_errors()
    def write_chunks(
        self, folder: str, frames: Collection[tuple[str, bytes]]
    ) -> frozenset[str]:
        """Store chunks. Return the new ones. Raises ContentFull if the folder's quota is used up."""
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
        if not self._quota.fits(folder, usage_of(frames), chunks.usage):
            lock = self._volume.locked(folder)
            with contextlib.nullcontext() if locked else lock:
                absent = [one for one in frames if chunks.size(one[0]) is None]
                before = self._now().timestamp() - FRESH
                unused = chunks.unused(self._manifest(folder).chunks(), before)
                self._quota.free(folder, usage_of(absent), chunks.usage, unused)
        new = chunks.write(frames)
        added = [(name, data) for name, data in dict(frames).items() if name in new]
        self._quota.record(folder, usage_of(added))
        return new

    def claim(self, folder: str, attempt: int) -> int:
        """Refuse changes of lower attempts from now on. Return the attempt."""
        with map_disk_errors(), self._volume.locked(folder):
            current = self._manifest(folder, attempt)
            if attempt > current.attempt:
                self._volume.sync_new(folder)
                self._replace(folder, replace(current, attempt=attempt))
            return attempt

    def check_attempt(self, folder: str, attempt: int) -> None:
        """Raise Superseded if the attempt is over."""
        if attempt:
            self.manifest(folder, attempt)

    def commit(self, folder: str, base: str, delta: Delta, attempt: int = 0) -> str:
        """Apply a change to version `base`. Return the new version.

        Raises:
            VersionConflict: The folder has another version, and not because of this very commit.
            Superseded: The attempt is over, whatever the version.
        """
        _check_delta(delta)
        cause = cause_of(base, delta)
        with map_disk_errors(), self._volume.locked(folder):
            current = self._manifest(folder, attempt)
            current = replace(current, attempt=max(attempt, current.attempt))
            if current.version == base:
                return self._commit(folder, current, delta, cause)
            if current.cause == cause:
                return current.version
            raise VersionConflict(current.version)

    def edit(self, folder: str, make: Callable[[Manifest], Edit]) -> str:
        """Commit the change that `make` returns for the current manifest, under the lock. Return the new version."""
        with map_disk_errors(), self._volume.locked(folder):
            current = self._manifest(folder)
            edit = make(current)
            _check_delta(edit.delta)
            self._write(folder, edit.chunks, locked=True)
            cause = cause_of(current.version, edit.delta)
            return self._commit(folder, current, edit.delta, cause)

    def _commit(self, folder: str, current: Manifest, delta: Delta, cause: str) -> str:
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
            # Clients that read the old version still get its chunks for a while.
            if entry := current.get(path):
                for name in entry.chunks:
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
        temporary, file = self._volume.temporary_path(), self._file(folder)
        try:
            with temporary.open("xb") as opened:
                new.save(opened)
                opened.flush()
                os.fsync(opened.fileno())
                stamp = _stamp(os.fstat(opened.fileno()))
            temporary.replace(file)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_all([file.parent])
        self._cache.put(folder, stamp, new)

    # -------------------------------------------------- removing

    @map_disk_errors()
    def delete(self, folder: str, attempt: int = 0) -> bool:
        """Delete a folder. Return whether it existed."""

        def check() -> None:
            if attempt:
                self._manifest(folder, attempt)

        deleted = self._volume.remove(folder, check=check)
        self._forget(folder)
        return deleted

    @map_disk_errors()
    def expire(self, folder: str) -> bool:
        """Delete a folder that was not used for `content.keep_for`. Return whether it was deleted."""
        keep_for = self._settings.keep_for
        if keep_for is None:
            return False
        before = self._now().timestamp() - keep_for
        if self._volume.used(folder) >= before:
            return False
        self._forget(folder)
        return self._volume.remove(folder, before)

    def _forget(self, folder: str) -> None:
        self._cache.drop(folder)
        self._history.drop(folder)
        self._quota.drop(folder)

    @map_disk_errors()
    def collect(self, folder: str) -> int:
        """Remove chunks that the manifest does not name and that were not requested within the grace period.

        An upload under way requests its chunks. Should one take longer, its commit names the missing
        chunks, and only those are sent again.

        Returns:
            The number of chunks that were removed.
        """
        chunks = self._chunks(folder)
        before = self._now().timestamp() - self._settings.collect_grace
        if not chunks.unused(self._manifest(folder).chunks(), before):
            return 0
        with self._volume.locked(folder):
            unused = chunks.unused(self._manifest(folder).chunks(), before)
            for path in unused:
                path.unlink(missing_ok=True)
            if unused:
                self._quota.drop(folder)
            return len(unused)

    @map_disk_errors()
    def folders(self) -> list[str]:
        """Return the ids of all folders."""
        return self._volume.names()

    @map_disk_errors()
    def clean(self) -> None:
        """Remove the incomplete files of processes that have ended."""
        self._volume.clean()

    @map_disk_errors()
    def probe(self) -> None:
        """Raise ContentFull or ContentUnavailable if a commit could not be written."""
        self._volume.probe()

    def _file(self, folder: str) -> Path:
        return self._volume.path(folder) / _MANIFEST

    def _chunks(self, folder: str) -> Chunks:
        path = self._volume.path(folder) / "chunks"
        return Chunks(path, self._volume.temporary_path)


def _check_delta(delta: Delta) -> None:
    check_entries(delta.put)
    for path in delta.put:
        if path in delta.removed:
            raise ContentRefused(f"{ascii(path[:200])} is both put and removed")


def _check_chunks(chunks: Chunks, delta: Delta) -> None:
    """Check that all chunks exist and match the sizes of their files."""
    sizes = {name: chunks.size(name) for name in delta.chunks}
    if missing := [name for name, size in sizes.items() if size is None]:
        raise ChunksMissing(sorted(missing))
    for path, entry in delta.put.items():
        for number, name in enumerate(entry.chunks):
            if sizes[name] != min(CHUNK, entry.size - number * CHUNK):
                raise PathRefused(path, "has another size than its chunks")
