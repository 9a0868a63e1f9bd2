"""A manifest as the server holds it: compact, since half a million entries may be in memory at once.

It is stored as one JSON document a line: a head ``{"format", "version", "entries", "bytes", "cause", "attempt", "serial",
"segments", "retired", "dropped", "lost"}``, then ``[path, entry, seconds]`` for each entry, sorted by path; `seconds` is the
time of its last change. The version is computed again when the file is read, so that a damaged file is never taken for
a tree. Format 1 of an earlier version has nothing about segments: each chunk is a file of its own.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, BinaryIO

from midwatch.content.errors import ContentDamaged
from midwatch.content.server.segments import chunk_file
from midwatch.content.tree import (
    EMPTY,
    Delta,
    Entry,
    Kind,
    entry_from_json,
    entry_text,
    json_text,
    version_of,
)

_FORMAT = 2
_FORMAT_OF_CHUNK_FILES = 1
_TIME = 10
"""Digits of the seconds: enough from 2001 until 2286."""
_PIECE = 4096
"""Entries that are joined at a time."""
_MAX_LINE = 64_000_000  # a file of some 900 GB
_KINDS: dict[bytes, Kind] = {b"f": "file", b"d": "folder", b"l": "symlink"}
_HASH = re.compile(rb'"([0-9a-f]{64})"')
_compact = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().raw_decode


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """The entries of a folder.

    Attributes:
        version: The version of the tree.
        size: Bytes of all files.
        cause: The id of the commit that made it; recognises a commit that is repeated because its response was lost.
        slots: By sorted path, an entry's JSON followed by its ten digits of seconds.
        attempt: The highest attempt that has claimed the folder; 0 without any. Not part of the version.
        serial: Grows with every manifest of the folder, so that none is ever the same as an earlier one.
        segments: The segments that have its chunks, in the order in which they came.
        retired: Segments that nothing needs any more, and since when, in seconds since the epoch.
        dropped: Segments that are being deleted: nothing may name them again.
        lost: Chunks whose bytes in the segments are damaged.
    """

    version: str = EMPTY
    size: int = 0
    cause: str = ""
    slots: Mapping[str, bytes] = field(default_factory=dict)
    attempt: int = 0
    serial: int = 0
    segments: tuple[str, ...] = ()
    retired: Mapping[str, int] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.slots)

    def get(self, path: str) -> Entry | None:
        """Return the entry at a path, or None."""
        slot = self.slots.get(path)
        return None if slot is None else entry_from_json(json.loads(slot[:-_TIME]))

    def kind(self, path: str) -> Kind | None:
        """Return the kind of the entry at a path, or None."""
        slot = self.slots.get(path)
        return None if slot is None else _KINDS[slot[2:3]]

    def changed_at(self, path: str) -> int:
        """Return when the entry was last changed, in seconds since the epoch."""
        return int(self.slots[path][-_TIME:])

    def changed(self, delta: Delta, cause: str, now: datetime) -> Manifest:
        """Return the manifest after this change."""
        slots = dict(self.slots)
        size = self.size - sum(self._size(path) for path in delta.put)
        for path in delta.removed:
            size -= self._size(path)
            slots.pop(path, None)
        seconds = f"{max(int(now.timestamp()), 10 ** (_TIME - 1)):0{_TIME}}"
        for path, entry in delta.put.items():
            size += entry.size
            slots[path] = (entry_text(entry) + seconds).encode("ascii")
        slots = {path: slots[path] for path in sorted(slots)}
        return replace(
            self, version=_version(slots), size=size, cause=cause, slots=slots
        )

    def using(self, segments: Iterable[str]) -> Manifest:
        """Return the manifest that needs these segments as well."""
        more = [name for name in segments if name not in self.segments]
        if not more:
            return self
        retired = {n: at for n, at in self.retired.items() if n not in more}
        return replace(self, segments=(*self.segments, *more), retired=retired)

    def without(self, segments: Collection[str], now: float) -> Manifest:
        """Return the manifest that does not need these segments any more."""
        return replace(
            self,
            segments=tuple(name for name in self.segments if name not in segments),
            retired={**self.retired, **dict.fromkeys(segments, int(now))},
        )

    @property
    def is_blank(self) -> bool:
        """Return whether it says nothing that no manifest would not say."""
        return not (self.slots or self.attempt or self.segments)

    def _size(self, path: str) -> int:
        entry = self.get(path)
        return entry.size if entry else 0

    def chunks(self) -> set[bytes]:
        """Return the hashes that the entries name, and perhaps a symlink's target that looks like one."""
        return {
            bytes.fromhex(found.decode("ascii"))
            for slot in self.slots.values()
            for found in _HASH.findall(slot)
        }

    @property
    def cost(self) -> int:
        """Return the approximate bytes of memory."""
        return sum(len(s) + len(p) for p, s in self.slots.items()) + 220 * len(self)

    def document(self) -> Iterator[bytes]:
        """Yield `{"version": …, "tree": {path: entry, …}}` in pieces of some 500 kB."""
        yield b'{"version":"' + self.version.encode("ascii") + b'","tree":{'
        yield from _entries(self.slots)
        yield b"}}"

    def difference(self, since: str, paths: Collection[str]) -> Iterator[bytes]:
        """Yield `{"version": …, "since": …, "removed": […], "put": {…}}` in pieces, with these paths as they are now."""
        removed = [path for path in paths if path not in self.slots]
        head = {"version": self.version, "since": since, "removed": removed}
        yield _compact(head).encode("ascii")[:-1] + b',"put":{'
        put = {path: self.slots[path] for path in paths if path in self.slots}
        yield from _entries(put)
        yield b"}}"

    def save(self) -> Iterator[bytes]:
        """Yield the stored form in pieces."""
        head = {
            "format": _FORMAT,
            "version": self.version,
            "entries": len(self),
            "bytes": self.size,
            "cause": self.cause,
            "attempt": self.attempt,
            "serial": self.serial,
            "segments": self.segments,
            "retired": self.retired,
            "dropped": sorted(self.dropped),
            "lost": sorted(self.lost),
        }
        yield _compact(head).encode("ascii") + b"\n"
        for piece in _pieces(self.slots):
            yield b"".join(
                b"[%b,%b,%b]\n" % (json_text(p).encode(), s[:-_TIME], s[-_TIME:])
                for p, s in piece
            )


def load(file: BinaryIO) -> Manifest:
    """Read a manifest that `save` has written. Raises ContentDamaged if it is not whole."""
    try:
        head = json.loads(file.readline(_MAX_LINE))
        if head["format"] not in (_FORMAT, _FORMAT_OF_CHUNK_FILES):
            raise ContentDamaged(
                "a manifest of the content proxy has an unknown format",
                hint="run the version of Midwatch that wrote it, or a later one",
            )
        slots = dict(
            _slot(line) for line in iter(lambda: file.readline(_MAX_LINE), b"")
        )
        found = Manifest(_version(slots), head["bytes"], head["cause"], slots)
        found = replace(
            found,
            attempt=int(head.get("attempt", 0)),  # earlier versions wrote none
            **(_segments(head) if head["format"] == _FORMAT else _chunk_files(found)),
        )
        whole = head["version"] == found.version and head["entries"] == len(slots)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ContentDamaged(
            "a manifest of the content proxy cannot be read"
        ) from error
    if not whole:
        raise ContentDamaged("a manifest of the content proxy is not what was written")
    return found


def _segments(head: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "serial": int(head["serial"]),
        "segments": tuple(head["segments"]),
        "retired": {name: int(at) for name, at in head["retired"].items()},
        "dropped": frozenset(head["dropped"]),
        "lost": frozenset(head["lost"]),
    }


def _chunk_files(manifest: Manifest) -> dict[str, Any]:
    names = sorted(chunk.hex() for chunk in manifest.chunks())
    return {"segments": tuple(map(chunk_file, names))}


def _slot(line: bytes) -> tuple[str, bytes]:
    text = line.decode("ascii")
    path, end = _decode(text, 1)
    # `path,` before; `,seconds]` and the newline after.
    return path, line[end + 1 : -_TIME - 3] + line[-_TIME - 2 : -2]


def _version(slots: Mapping[str, bytes]) -> str:
    """Return the same as `tree.version_of`, from sorted slots."""
    digest = hashlib.sha256()
    for piece in _pieces(slots):
        digest.update(
            b"".join(
                b"[%b,%b]\n" % (json_text(p).encode(), s[:-_TIME]) for p, s in piece
            )
        )
    return digest.hexdigest()


def _entries(slots: Mapping[str, bytes]) -> Iterator[bytes]:
    """Yield the members of a JSON object: paths and entries."""
    comma = b""
    for piece in _pieces(slots):
        entries = (json_text(p).encode() + b":" + s[:-_TIME] for p, s in piece)
        yield comma + b",".join(entries)
        comma = b","


def _pieces(slots: Mapping[str, bytes]) -> Iterator[list[tuple[str, bytes]]]:
    items = iter(slots.items())
    while piece := list(itertools.islice(items, _PIECE)):
        yield piece


def cause_of(base: str, delta: Delta) -> str:
    """Return the id of a commit: a hash of the version that it starts from and of its changes."""
    digest = hashlib.sha256(base.encode())
    digest.update(version_of(delta.put).encode())
    for path in sorted(delta.removed):
        digest.update(json_text(path).encode() + b"\n")
    return digest.hexdigest()
