"""What every change of a folder is made of: its manifest, where its chunks are, and the removal of segments."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime

from midwatch.content.errors import ContentUnavailable, StreamBroken
from midwatch.content.server.cache import ManifestCache
from midwatch.content.server.manifest import Manifest, load
from midwatch.content.server.objects import ManifestChanged, Objects, Tag
from midwatch.content.server.segments import (
    MOVED,
    SEGMENT,
    Compaction,
    Index,
    Place,
    Stored,
    head_length,
    new_segment,
    parse_head,
    plan_compaction,
)
from midwatch.content.tree import verify_chunk

_TRIES = 30
"""Tries to replace a manifest that other processes replace as well."""
_LONGEST_PAUSE = 0.5


class Folders:
    """The folders of a volume or a bucket. Methods raise OSError and the errors of this package.

    Args:
        objects: Where they are kept.
        cache: What is known of them.
        now: The clock.
    """

    def __init__(
        self, objects: Objects, cache: ManifestCache, now: Callable[[], datetime]
    ) -> None:
        self.objects = objects
        self.cache = cache
        self.now = now

    # -------------------------------------------------- the manifest

    def current(self, folder: str) -> tuple[Tag | None, Manifest]:
        """Return the manifest with its tag. Raises OSError as well."""
        known = self.cache.get(folder)
        tag: Tag | None
        try:
            tag, file = self.objects.manifest(folder, known.tag)
        except FileNotFoundError:
            tag, found = None, Manifest()
        else:
            found = known.manifest
            if file is not None:
                with file:
                    found = load(file)
                self.cache.put_manifest(folder, tag, found)
        return tag, found

    def update(
        self,
        folder: str,
        change: Callable[[Manifest], Manifest],
        needed: Collection[str] = (),
    ) -> Manifest:
        """Replace the manifest by what `change` makes of the current one, whichever that is then. Return the new one."""
        for tag, current in self.attempts(folder):
            new = change(current)
            if _same(new, current):
                return current
            try:
                return self.replace(folder, tag, new, needed)
            except ManifestChanged:
                continue
        raise contended()

    def attempts(self, folder: str) -> Iterator[tuple[Tag | None, Manifest]]:
        """Yield the current manifest and its tag, again after a pause while other processes are quicker."""
        pause = 0.0
        for _ in range(_TRIES):
            yield self.current(folder)
            time.sleep(random.uniform(0, pause))
            pause = min(_LONGEST_PAUSE, pause * 2 or 0.005)

    def replace(
        self, folder: str, tag: Tag | None, new: Manifest, needed: Collection[str]
    ) -> Manifest:
        new = replace(new, serial=new.serial + 1)
        written = self.objects.replace(folder, new.save(), tag, needed)
        self.cache.put_manifest(folder, written, new)
        return new

    # -------------------------------------------------- where chunks are

    def index(self, folder: str, manifest: Manifest) -> Index:
        """Return where the chunks of the manifest's segments are."""
        known = self.cache.get(folder)
        if known.index.segments == manifest.segments:
            return known.index
        lacking = known.index.lacks(manifest.segments)
        heads = {name: known.loose[name] for name in lacking if name in known.loose}
        unknown = [name for name in lacking if name not in heads]
        if unknown:
            heads.update(self.objects.heads(folder, unknown))
        index = known.index.changed(manifest.segments, heads)
        loose = {n: head for n, head in known.loose.items() if n not in heads}
        self.cache.put_index(folder, index, loose)
        return index

    def find(
        self,
        folder: str,
        manifest: Manifest,
        names: Iterable[str],
        listed: Mapping[str, Stored] | None = None,
    ) -> dict[str, Place]:
        """Return where these chunks are, as far as they exist; segments that no manifest names are listed if needed."""
        index, found, rest = self.index(folder, manifest), {}, []
        for name in names:
            place = index.places.get(bytes.fromhex(name))
            if place is not None and name not in manifest.lost:
                found[name] = place
            else:
                rest.append(name)
        if rest:
            if listed is None:
                listed = {one.name: one for one in self.objects.segments(folder)}
            loose = self._loose(folder, manifest, listed)
            for name in rest:
                if place := loose.get(bytes.fromhex(name)):
                    found[name] = place
        return found

    def _loose(
        self, folder: str, manifest: Manifest, listed: Collection[str]
    ) -> dict[bytes, Place]:
        """Return where the chunks of segments are that exist, that no manifest names, and that are not being deleted."""
        known = self.cache.get(folder)
        named = {*manifest.segments, *manifest.dropped}
        names = [name for name in listed if name not in named]
        unknown = [name for name in names if name not in known.loose]
        heads = self.objects.heads(folder, unknown) if unknown else {}
        loose = {n: heads[n] if n in heads else known.loose[n] for n in names}
        self.cache.put_index(folder, known.index, loose)
        return {
            chunk: place for head in loose.values() for chunk, place in head.items()
        }

    def stored(self, folder: str) -> dict[str, Stored]:
        """Return the segments that exist, by name."""
        return {one.name: one for one in self.objects.segments(folder)}

    # -------------------------------------------------- segments

    def read(self, folder: str, places: Collection[Place]) -> dict[Place, bytes]:
        """Return what is at these places; nothing for a segment that is gone."""
        by_segment: dict[str, list[Place]] = {}
        for place in places:
            by_segment.setdefault(place.segment, []).append(place)
        read: dict[Place, bytes] = {}
        for segment, wanted in by_segment.items():
            try:
                pieces = self.objects.read(
                    folder, segment, [(place.start, place.length) for place in wanted]
                )
            except FileNotFoundError:
                pieces = [b""] * len(wanted)
            read.update(zip(wanted, pieces, strict=True))
        return read

    def put(self, folder: str, name: str, data: bytes) -> None:
        """Store a segment, and remember where its chunks are."""
        self.objects.write(folder, name, data)
        known = self.cache.get(folder)
        head = parse_head(name, data[: head_length(name)])
        self.cache.put_index(folder, known.index, {**known.loose, name: head})

    def drop(self, folder: str, names: Collection[str]) -> int:
        """Delete segments, unless the manifest needs them by now. Return how many. See `Objects` for why this is safe."""
        if not names:
            return 0
        listed = frozenset(self.stored(folder))

        def change(now: Manifest) -> Manifest:
            free = listed.intersection(names).difference(now.segments)
            retired = {n: at for n, at in now.retired.items() if n not in free}
            dropped = now.dropped.intersection(listed) | free
            return replace(now, dropped=dropped, retired=retired)

        dropped = self.update(folder, change).dropped
        self.objects.delete(folder, dropped)
        return len(dropped)

    def plan(
        self, folder: str, manifest: Manifest, listed: Mapping[str, Stored]
    ) -> Compaction:
        """Plan the compaction of a folder, as far as there is space for it."""
        index = self.index(folder, manifest)
        sizes = {name: one.size for name, one in listed.items()}
        plan = plan_compaction(index, manifest.chunks(), sizes)
        usage = self.objects.disk_usage() if plan.moved else None
        if usage is not None and usage[1] < 2 * MOVED:
            return plan.without_moves()
        return plan

    def compact(
        self, folder: str, tag: Tag | None, manifest: Manifest, plan: Compaction
    ) -> bool:
        """Do what is planned for this manifest. Return whether it was still the current one."""
        index = self.index(folder, manifest)
        places = [index.places[chunk] for chunk in plan.moved]
        written, lost, frames, size = [], set(manifest.lost), [], 0
        for number, place in enumerate(places):
            name = plan.moved[number].hex()
            data = self.read(folder, [place])[place]
            try:
                frames.append((name, verify_chunk(name, data)))
                size += len(data)
            except StreamBroken:
                lost.add(name)
            if frames and (size >= SEGMENT or number == len(places) - 1):
                segment, content = new_segment(frames)
                self.put(folder, segment, content)
                written.append(segment)
                frames, size = [], 0
        gone = plan.unneeded | plan.emptied
        now = self.now().timestamp()
        new = replace(manifest.using(written).without(gone, now), lost=frozenset(lost))
        try:
            self.replace(folder, tag, new, written)
        except ManifestChanged:
            return False
        return True

    def remove(self, folder: str, tag: Tag | None, manifest: Manifest) -> bool:
        """Delete a folder that still has this manifest. Return whether it existed. Raises ManifestChanged."""
        names = frozenset(self.stored(folder))
        tombstone = Manifest(serial=manifest.serial + 1, dropped=names)
        removed = self.objects.remove(folder, tag, tombstone.save(), names)
        self.cache.drop(folder)
        return removed


def contended() -> ContentUnavailable:
    """Return the error for a folder that other processes change faster than this one can."""
    return ContentUnavailable(
        "other processes change the folder all the time", retry_after=1.0
    )


def _same(one: Manifest, other: Manifest) -> bool:
    """Return whether a manifest of the same entries says the same."""
    return (one.attempt, one.segments, one.retired, one.dropped, one.lost) == (
        other.attempt,
        other.segments,
        other.retired,
        other.dropped,
        other.lost,
    )
