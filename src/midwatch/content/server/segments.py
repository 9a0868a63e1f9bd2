"""Segments: immutable objects that hold many chunks each, and the index of where a chunk is. Pure.

A segment is eight bytes of magic, then 36 bytes for each chunk (its SHA-256 and its length, big-endian), then the
bytes of the chunks in that order. Its name tells how many there are, so that one read of known length has the head.
A volume of an earlier version has a file a chunk, `chunks/ab/abcdef…`: it is a segment of one chunk without a head.
"""

from __future__ import annotations

import re
import struct
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

SEGMENT = 4 << 20
"""Bytes of chunks after which a segment is complete; a chunk more at most."""
SMALL = 1 << 20
"""A segment with fewer bytes is worth merging with others."""
MANY = 32
"""Small segments of a folder before they are merged."""
MOVED = 256 << 20
"""Bytes that are moved in one pass over a folder, a segment more at most."""
PLACE_BYTES = 300
"""Approximate bytes of memory that a chunk takes in an index."""
_MAGIC = b"MWSEG\0\0\1"
_ITEM = struct.Struct(">32sI")
_NAME = re.compile(r"segments/[0-9a-f]{32}\.([0-9]{1,7})", re.ASCII)
_CHUNK = re.compile(r"chunks/[0-9a-f]{2}/([0-9a-f]{64})", re.ASCII)


class Stored(NamedTuple):
    """A segment as it is listed: its name within the folder, its bytes, and when it was written (seconds, epoch)."""

    name: str
    size: int
    modified: float


class Place(NamedTuple):
    """Where a chunk is: bytes `start` to `start + length` of a segment."""

    segment: str
    start: int
    length: int


def new_segment(frames: Sequence[tuple[str, bytes]]) -> tuple[str, bytes]:
    """Return the name and the bytes of a segment with these chunks, whose hashes are verified already."""
    name = f"segments/{uuid.uuid4().hex}.{len(frames)}"
    head = [_ITEM.pack(bytes.fromhex(n), len(data)) for n, data in frames]
    return name, b"".join([_MAGIC, *head, *(data for _, data in frames)])


def chunk_file(chunk: str) -> str:
    """Return the name of a chunk's own file, as an earlier version wrote it."""
    return f"chunks/{chunk[:2]}/{chunk}"


def chunk_of(name: str) -> str | None:
    """Return the chunk that is a file of its own with this name; None for a segment or anything else."""
    found = _CHUNK.fullmatch(name)
    return found[1] if found else None


def head_length(name: str) -> int:
    """Return the bytes of a segment's head; 0 for anything that is not a segment."""
    found = _NAME.fullmatch(name)
    return len(_MAGIC) + int(found[1]) * _ITEM.size if found else 0


def parse_head(name: str, head: bytes) -> dict[bytes, Place]:
    """Return where the chunks of a segment are, by their hashes; nothing for a head that is not one."""
    if len(head) != head_length(name) or not head.startswith(_MAGIC):
        return {}
    start, places = len(head), {}
    for chunk, length in _ITEM.iter_unpack(head[len(_MAGIC) :]):
        places[chunk] = Place(name, start, length)
        start += length
    return places


# ------------------------------------------------------------------ the index


@dataclass(frozen=True, slots=True)
class Index:
    """Where the chunks of some segments are. Of a chunk that is in several the last segment counts.

    Attributes:
        segments: The segments, in order.
        places: By the hash of the chunk.
    """

    segments: tuple[str, ...] = ()
    places: Mapping[bytes, Place] = field(default_factory=dict)

    @property
    def cost(self) -> int:
        """Return the approximate bytes of memory."""
        return PLACE_BYTES * len(self.places)

    def lacks(self, segments: Sequence[str]) -> list[str]:
        """Return those of the segments whose heads are needed to index them instead."""
        known = set(self.segments)
        return [name for name in segments if name not in known]

    def changed(
        self, segments: Sequence[str], heads: Mapping[str, Mapping[bytes, Place]]
    ) -> Index:
        """Return the index of other segments.

        Args:
            segments: The segments, in order: those that stay, then new ones.
            heads: The places in the new ones.
        """
        gone = set(self.segments) - set(segments)
        places = (
            {c: place for c, place in self.places.items() if place.segment not in gone}
            if gone
            else dict(self.places)
        )
        for name in segments:
            places.update(heads.get(name, {}))
        return Index(tuple(segments), places)


# ------------------------------------------------------------------ compaction


@dataclass(frozen=True, slots=True)
class Compaction:
    """What to do so that a folder has few segments, mostly of chunks that its manifest names.

    Attributes:
        unneeded: Segments without any such chunk.
        moved: The chunks to write to new segments, in their order.
        emptied: The segments that are then without any.
    """

    unneeded: frozenset[str] = frozenset()
    moved: tuple[bytes, ...] = ()
    emptied: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.unneeded or self.moved)

    def without_moves(self) -> Compaction:
        """Return what can be done without any space."""
        return Compaction(self.unneeded)


def plan_compaction(
    index: Index, named: Collection[bytes], sizes: Mapping[str, int]
) -> Compaction:
    """Plan for segments that are mostly replaced content, for small ones when they are many, and for chunks' own files.

    Args:
        index: The segments of the manifest.
        named: The hashes that the manifest names.
        sizes: The bytes of each segment that is stored.
    """
    used: dict[str, int] = dict.fromkeys(index.segments, 0)
    chunks: dict[str, list[bytes]] = {}
    for chunk in named:
        if place := index.places.get(chunk):
            used[place.segment] += place.length
            chunks.setdefault(place.segment, []).append(chunk)
    unneeded = frozenset(name for name, length in used.items() if not length)
    kept = [name for name in index.segments if name not in unneeded]
    small = [name for name in kept if sizes.get(name, SMALL) < SMALL]
    emptied = [
        name
        for name in kept
        if chunk_of(name) or used[name] * 2 < sizes.get(name, 0) - head_length(name)
    ]
    if len(small) >= MANY:
        emptied = list(dict.fromkeys([*small, *emptied]))
    emptied = list(_up_to(emptied, used, MOVED))
    moved = [
        chunk
        for name in emptied
        for chunk in sorted(chunks[name], key=lambda c: index.places[c].start)
    ]
    return Compaction(unneeded, tuple(moved), frozenset(emptied))


def _up_to(names: Iterable[str], used: Mapping[str, int], limit: int) -> Iterator[str]:
    total = 0
    for name in names:
        yield name
        total += used[name]
        if total >= limit:
            return
