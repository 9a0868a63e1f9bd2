"""Folders as clients see them: versions, commits, attempts and quotas.

The manifest is replaced as the last step of a commit, when all chunks that it names are durable. So a folder has one
whole version at every instant, also after a crash. All methods block: they run in threads, and several processes may
share one volume or bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from midwatch.content.errors import (
    ChunksMissing,
    ContentRefused,
    ContentTooLarge,
    PathRefused,
    StreamBroken,
    Superseded,
    VersionConflict,
)
from midwatch.content.server.cache import History, ManifestCache
from midwatch.content.server.folders import Folders, contended
from midwatch.content.server.manifest import Manifest, cause_of
from midwatch.content.server.objects import (
    ManifestChanged,
    Objects,
    Overview,
    Tag,
    map_disk_errors,
)
from midwatch.content.server.quota import FRESH, DiskUsage, Quota, usage_of
from midwatch.content.server.segments import SEGMENT, Place, new_segment
from midwatch.content.tree import CHUNK, Delta, check_entries, check_shape, verify_chunk
from midwatch.settings import ContentSettings

_RENEW_AFTER = 4
"""A segment is kept for longer once a quarter of the grace period is over."""


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of one version: entries, the new chunks that the server adds itself, and the id of the commit if it is known."""

    delta: Delta
    chunks: Sequence[tuple[str, bytes]] = ()
    cause: str = ""


class ContentStore:
    """All folders. Methods raise the errors of this package, and PathRefused for an invalid id.

    Wherever `attempt` is given, a lower one than the folder has is refused with Superseded; 0 is no attempt.
    """

    def __init__(
        self,
        objects: Objects,
        settings: ContentSettings,
        now: Callable[[], datetime],
    ) -> None:
        self.poll = objects.poll
        self.disk_usage = objects.disk_usage
        self._objects = objects
        self._settings = settings
        self._now = now
        self._folders = Folders(objects, ManifestCache(settings.cache_size), now)
        self._history = History()
        self._quota = Quota(settings)
        self._settled: dict[str, tuple[Tag | None, frozenset[str]]] = {}

    # -------------------------------------------------- reading

    @map_disk_errors()
    def tag(self, folder: str) -> Tag | None:
        """Return what changes with every manifest; None without one."""
        return self._objects.tag(folder)

    @map_disk_errors()
    def manifest(self, folder: str, attempt: int = 0) -> Manifest:
        """Return the current manifest; an empty one if nothing was committed yet.

        A manifest that exists and cannot be read is an error, never an empty one.
        """
        self._objects.use(folder)
        found = self._folders.current(folder)[1]
        _check_attempt(found, attempt)
        return found

    def check_attempt(self, folder: str, attempt: int) -> None:
        """Raise Superseded if the attempt is over."""
        if attempt:
            self.manifest(folder, attempt)

    def changed_since(
        self, folder: str, version: str, now: Manifest
    ) -> frozenset[str] | None:
        """Return the paths in which `now` may differ from that version; None if that is not known."""
        return self._history.since(folder, version, now.version)

    @map_disk_errors()
    def missing(self, folder: str, names: Sequence[str]) -> list[str]:
        """Return the chunks that do not exist, and keep the others for a while."""
        manifest = self._folders.current(folder)[1]
        listed = self._folders.stored(folder)
        found = self._folders.find(folder, manifest, names, listed)
        before = self._now().timestamp() - self._settings.collect_grace / _RENEW_AFTER
        for name in {place.segment for place in found.values()}:
            if name not in manifest.segments and listed[name].modified < before:
                self._objects.renew(folder, listed[name])
        return [name for name in names if name not in found]

    @map_disk_errors()
    def absent(self, folder: str, names: Sequence[str]) -> list[str]:
        """Return the chunks that do not exist."""
        manifest = self._folders.current(folder)[1]
        found = self._folders.find(folder, manifest, names)
        return [name for name in names if name not in found]

    def read_chunk(self, folder: str, name: str) -> bytes:
        """Return the bytes of a chunk. Raises ChunksMissing."""
        [(_, data)] = next(self.read_chunks(folder, [name]))
        return data

    def read_chunks(
        self, folder: str, names: Sequence[str]
    ) -> Iterator[list[tuple[str, bytes]]]:
        """Yield chunks with their names, in order, about a segment's bytes at a time. Raises ChunksMissing."""
        with map_disk_errors():
            manifest = self._folders.current(folder)[1]
            found = self._folders.find(folder, manifest, names)
        if absent := [name for name in names if name not in found]:
            raise ChunksMissing(absent)
        for part in _parts(names, found):
            with map_disk_errors():
                data = self._folders.read(folder, [found[name] for name in part])
                yield [
                    (name, self._verify(folder, name, found[name], data[found[name]]))
                    for name in part
                ]

    def _verify(self, folder: str, name: str, place: Place, data: bytes) -> bytes:
        """Return the bytes of a chunk. One that is damaged is from then on missing: a client that has it can send it."""

        def change(now: Manifest) -> Manifest:
            places = self._folders.index(folder, now).places
            if places.get(bytes.fromhex(name)) != place:
                return now  # moved or removed meanwhile
            return replace(now, lost=now.lost | {name})

        try:
            return verify_chunk(name, data)
        except StreamBroken:
            self._folders.update(folder, change)
            raise ChunksMissing([name], "a stored chunk is gone or damaged") from None

    # -------------------------------------------------- writing

    @map_disk_errors()
    def write_chunks(self, folder: str, frames: Collection[tuple[str, bytes]]) -> int:
        """Store chunks. Return how many are new. Raises ContentFull if the folder's quota is used up."""
        self._objects.use(folder)
        manifest = self._folders.current(folder)[1]
        segment, new = self._write(folder, manifest, frames)
        if not manifest.lost.isdisjoint(new):
            self._replace_lost(folder, segment, new)
        return len(new)

    def _replace_lost(self, folder: str, segment: str, new: frozenset[str]) -> None:
        """Let the manifest name a segment that has chunks again which were damaged."""

        def change(now: Manifest) -> Manifest:
            stored = self._folders.stored(folder)
            if segment not in stored or segment in now.dropped:
                return now
            return replace(now.using([segment]), lost=now.lost - new)

        self._folders.update(folder, change, [segment])

    def _write(
        self, folder: str, manifest: Manifest, frames: Iterable[tuple[str, bytes]]
    ) -> tuple[str, frozenset[str]]:
        """Verify and store the chunks that the manifest does not have. Return their segment and their names."""
        places = self._folders.index(folder, manifest).places
        new = {
            name: data
            for name, data in frames
            if verify_chunk(name, data)
            and (name in manifest.lost or bytes.fromhex(name) not in places)
        }
        if not new:
            return "", frozenset()
        segment, content = new_segment(list(new.items()))
        more = DiskUsage(len(content), 1)
        if not self._quota.fits(folder, more, lambda: self._usage(folder)):
            self._make_room(folder, more)
        self._folders.put(folder, segment, content)
        self._quota.record(folder, more)
        return segment, frozenset(new)

    def _usage(self, folder: str) -> DiskUsage:
        return usage_of(self._objects.segments(folder))

    def _make_room(self, folder: str, more: DiskUsage) -> None:
        """Delete what nothing needs, the oldest first, and move the rest together. Raises ContentFull."""
        tag, manifest = self._folders.current(folder)
        listed = self._folders.stored(folder)
        if plan := self._folders.plan(folder, manifest, listed):
            self._folders.compact(folder, tag, manifest, plan)
            manifest = self._folders.current(folder)[1]
            listed = self._folders.stored(folder)
        before = self._now().timestamp() - FRESH
        unused = [
            one
            for one in listed.values()
            if one.name not in manifest.segments and one.modified < before
        ]
        freed = self._quota.to_free(usage_of(listed.values()), more, unused)
        self._folders.drop(folder, {one.name for one in freed})
        self._quota.drop(folder)
        self._quota.check(usage_of(listed.values()) - usage_of(freed), more)

    @map_disk_errors()
    def claim(self, folder: str, attempt: int) -> int:
        """Refuse changes of lower attempts from now on. Return the attempt."""

        def change(now: Manifest) -> Manifest:
            _check_attempt(now, attempt)
            return replace(now, attempt=attempt)

        self._folders.update(folder, change)
        return attempt

    @map_disk_errors()
    def commit(self, folder: str, base: str, delta: Delta, attempt: int = 0) -> str:
        """Apply a change to version `base`. Return the new version.

        Raises:
            VersionConflict: The folder has another version, and not because of this very commit.
            Superseded: The attempt is over, whatever the version.
        """
        _check_delta(delta)
        cause = cause_of(base, delta)

        def make(current: Manifest) -> Edit | None:
            _check_attempt(current, attempt)
            if current.version == base:
                return Edit(delta, cause=cause)
            if current.cause == cause:
                return None
            raise VersionConflict(current.version)

        return self._commit(folder, make, attempt)

    @map_disk_errors()
    def edit(self, folder: str, make: Callable[[Manifest], Edit]) -> str:
        """Commit the change that `make` returns for the current manifest. Return the new version."""
        tried = set()

        def once(current: Manifest) -> Edit | None:
            if current.cause in tried:
                # A request to the bucket was repeated, and refused because it had been carried out.
                return None
            edit = make(current)
            _check_delta(edit.delta)
            tried.add(cause_of(current.version, edit.delta))
            return edit

        return self._commit(folder, once)

    def _commit(
        self, folder: str, make: Callable[[Manifest], Edit | None], attempt: int = 0
    ) -> str:
        """Commit what `make` returns, computed again whenever another process was quicker."""
        for tag, current in self._folders.attempts(folder):
            edit = make(current)
            if edit is None:
                return current.version
            delta = edit.delta
            self._write(folder, current, edit.chunks)
            new = self._changed(current, edit, attempt)
            if new.version == current.version:
                return current.version
            needed = self._needed(folder, current, delta)
            try:
                self._folders.replace(folder, tag, new.using(needed), needed)
            except ManifestChanged:
                continue
            changed = frozenset((*delta.put, *delta.removed))
            self._history.add(folder, current.version, new.version, changed)
            return new.version
        raise contended()

    def _changed(self, current: Manifest, edit: Edit, attempt: int) -> Manifest:
        """Return the manifest after a change, if that is within the limits."""
        cause = edit.cause or cause_of(current.version, edit.delta)
        new = replace(
            current.changed(edit.delta, cause, self._now()),
            attempt=max(attempt, current.attempt),
        )
        limits = self._settings
        if len(new) > limits.max_entries:
            raise ContentTooLarge(
                f"{len(new)} entries are more than content.max_entries, {limits.max_entries}"
            )
        if new.size > limits.max_size:
            raise ContentTooLarge(
                f"{new.size} bytes are more than content.max_size, {limits.max_size:.0f}"
            )
        check_shape(new.slots, new.kind)
        return new

    def _needed(self, folder: str, current: Manifest, delta: Delta) -> list[str]:
        """Return the segments that the manifest needs after this change and does not name yet.

        Raises ChunksMissing, and PathRefused if a chunk has another size than its place in its file says.
        """
        found = self._folders.find(folder, current, delta.chunks)
        if missing := delta.chunks - found.keys():
            raise ChunksMissing(sorted(missing))
        for path, entry in delta.put.items():
            for number, name in enumerate(entry.chunks):
                if found[name].length != min(CHUNK, entry.size - number * CHUNK):
                    raise PathRefused(path, "has another size than its chunks")
        return sorted(
            {place.segment for place in found.values()}.difference(current.segments)
        )

    # -------------------------------------------------- removing

    @map_disk_errors()
    def delete(self, folder: str, attempt: int = 0) -> bool:
        """Delete a folder. Return whether it existed."""
        for tag, manifest in self._folders.attempts(folder):
            _check_attempt(manifest, attempt)
            try:
                return self._remove(folder, tag, manifest)
            except ManifestChanged:
                continue
        raise contended()

    def _remove(self, folder: str, tag: Tag | None, manifest: Manifest) -> bool:
        removed = self._folders.remove(folder, tag, manifest)
        self._history.drop(folder)
        self._quota.drop(folder)
        self._settled.pop(folder, None)
        return removed

    @map_disk_errors()
    def overview(self) -> list[Overview]:
        """Return all folders, and forget what was known of others: another process may have deleted them."""
        found = list(self._objects.overview())
        # One that was made meanwhile is forgotten as well, and looked at again when it is needed.
        present = {one.folder for one in found}
        self._quota.drop_others(present)
        for folder in self._settled.keys() - present:
            self._settled.pop(folder, None)
        return found

    @map_disk_errors()
    def expire(self, seen: Overview) -> bool:
        """Delete a folder that was not used for `content.keep_for`. Return whether it was deleted."""
        keep_for = self._settings.keep_for
        if keep_for is None or seen.used >= self._now().timestamp() - keep_for:
            return False
        try:
            tag, manifest = self._folders.current(seen.folder)
            return tag == seen.tag and self._remove(seen.folder, tag, manifest)
        except ManifestChanged:
            return False

    @map_disk_errors()
    def collect(self, seen: Overview) -> int:
        """Compact a folder, and delete the segments that nothing has needed for the grace period.

        An upload under way writes segments that no manifest names yet. Should it take longer, its commit names
        the missing chunks, and only those are sent again.

        Returns:
            The number of segments that were deleted.
        """
        folder = seen.folder
        state = seen.tag, frozenset(one.name for one in seen.segments)
        if self._settled.get(folder) == state:
            return 0
        tag, manifest = self._folders.current(folder)
        listed = self._folders.stored(folder)
        if plan := self._folders.plan(folder, manifest, listed):
            self._folders.compact(folder, tag, manifest, plan)
            manifest = self._folders.current(folder)[1]
        loose = {n: one for n, one in listed.items() if n not in manifest.segments}
        before = self._now().timestamp() - self._settings.collect_grace
        unused = {
            name
            for name, one in loose.items()
            if manifest.retired.get(name, one.modified) < before
        }
        dropped = self._folders.drop(folder, unused)
        if dropped:
            self._quota.drop(folder)
        elif manifest.is_blank and not listed:
            self._objects.forget(folder, tag, before)
            self._quota.drop(folder)
        elif not plan and not loose:
            self._settled[folder] = state
        return dropped

    @map_disk_errors()
    def clean(self) -> None:
        """Remove what processes that have ended did not complete."""
        self._objects.clean()

    @map_disk_errors()
    def probe(self) -> None:
        """Raise ContentFull or ContentUnavailable if a commit could not be written."""
        self._objects.probe()


def _check_attempt(manifest: Manifest, attempt: int) -> None:
    if 0 < attempt < manifest.attempt:
        raise Superseded(manifest.attempt)


def _check_delta(delta: Delta) -> None:
    check_entries(delta.put)
    for path in delta.put:
        if path in delta.removed:
            raise ContentRefused(f"{ascii(path[:200])} is both put and removed")


def _parts(names: Iterable[str], found: dict[str, Place]) -> Iterator[list[str]]:
    """Yield parts of about a segment's bytes."""
    part: list[str] = []
    size = 0
    for name in names:
        part.append(name)
        size += found[name].length
        if size >= SEGMENT:
            yield part
            part, size = [], 0
    if part:
        yield part
