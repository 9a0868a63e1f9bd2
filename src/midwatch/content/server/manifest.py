"""A manifest as the server holds it: compact, since half a million entries may be in memory at once.

On the volume it is one JSON document a line: a head ``{"format", "version", "entries", "bytes", "cause", "attempt"}``,
then ``[path, entry, seconds]`` for each entry in order of path; `seconds` tell when it was last changed.
The version is computed anew when it is read, so that a damaged file is never taken for a tree.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import BinaryIO

from midwatch.content.errors import ContentDamaged
from midwatch.content.tree import EMPTY, Delta, Entry, Kind, entry_from_json, version_of

_FORMAT = 1
_TIME = 10
"""Digits of the seconds: enough until the year 2286, and from 2001 on."""
_PIECE = 4096
"""Entries that are put together at a time."""
_MAX_LINE = 64_000_000  # a file of some 900 GB
_KINDS: dict[bytes, Kind] = {b"f": "file", b"d": "folder", b"l": "symlink"}
_HASH = re.compile(rb'"([0-9a-f]{64})"')
_text = json.JSONEncoder().encode
_compact = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().raw_decode


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """What is in a folder. A slot is an entry's JSON and its ten digits of seconds; paths are in order.

    `size` are the bytes of all files. `cause` tells which commit made it, so that one which is
    repeated since its answer was lost is known again. `attempt` is the highest of a session's runners
    that has claimed the folder; 0 without any. It is no part of the version.
    """

    version: str = EMPTY
    size: int = 0
    cause: str = ""
    slots: Mapping[str, bytes] = field(default_factory=dict)
    attempt: int = 0

    def __len__(self) -> int:
        return len(self.slots)

    def get(self, path: str) -> Entry | None:
        slot = self.slots.get(path)
        return None if slot is None else entry_from_json(json.loads(slot[:-_TIME]))

    def kind(self, path: str) -> Kind | None:
        slot = self.slots.get(path)
        return None if slot is None else _KINDS[slot[2:3]]

    def changed_at(self, path: str) -> int:
        """Seconds since the epoch."""
        return int(self.slots[path][-_TIME:])

    def changed(self, delta: Delta, cause: str, now: datetime) -> Manifest:
        """With this change made."""
        slots = dict(self.slots)
        size = self.size - sum(self._size(path) for path in delta.put)
        for path in delta.removed:
            size -= self._size(path)
            slots.pop(path, None)
        seconds = f"{max(int(now.timestamp()), 10 ** (_TIME - 1)):0{_TIME}}"
        for path, entry in delta.put.items():
            size += entry.size
            slots[path] = (_compact(entry.to_json()) + seconds).encode("ascii")
        slots = {path: slots[path] for path in sorted(slots)}
        return Manifest(_version(slots), size, cause, slots, self.attempt)

    def _size(self, path: str) -> int:
        entry = self.get(path)
        return entry.size if entry else 0

    def chunks(self) -> set[bytes]:
        """Hashes that the entries name, and at most some more that a symlink looks like."""
        return {
            bytes.fromhex(found.decode("ascii"))
            for slot in self.slots.values()
            for found in _HASH.findall(slot)
        }

    @property
    def cost(self) -> int:
        """Bytes of memory, about."""
        return sum(len(s) + len(p) for p, s in self.slots.items()) + 220 * len(self)

    # -------------------------------------------------- outside

    def document(self) -> Iterator[bytes]:
        """`{"version": …, "tree": {path: entry, …}}` in pieces of some 500 kB."""
        yield b'{"version":"' + self.version.encode("ascii") + b'","tree":{'
        yield from _entries(self.slots)
        yield b"}}"

    def difference(self, since: str, paths: Collection[str]) -> Iterator[bytes]:
        """`{"version": …, "since": …, "removed": […], "put": {…}}`: these paths as they are now, in pieces."""
        removed = [path for path in paths if path not in self.slots]
        head = {"version": self.version, "since": since, "removed": removed}
        yield _compact(head).encode("ascii")[:-1] + b',"put":{'
        put = {path: self.slots[path] for path in paths if path in self.slots}
        yield from _entries(put)
        yield b"}}"

    def save(self, file: BinaryIO) -> None:
        head = {
            "format": _FORMAT,
            "version": self.version,
            "entries": len(self),
            "bytes": self.size,
            "cause": self.cause,
            "attempt": self.attempt,
        }
        file.write(_compact(head).encode("ascii") + b"\n")
        for piece in _pieces(self.slots):
            file.write(
                b"".join(
                    b"[%b,%b,%b]\n" % (_text(p).encode(), s[:-_TIME], s[-_TIME:])
                    for p, s in piece
                )
            )


def load(file: BinaryIO) -> Manifest:
    """Raises ContentDamaged for what `save` has not written, or not to its end."""
    try:
        head = json.loads(file.readline(_MAX_LINE))
        if head["format"] != _FORMAT:
            raise ContentDamaged(
                "a manifest has a format that is not known here",
                hint="run the version of Midwatch that wrote it, or a later one",
            )
        slots = dict(
            _slot(line) for line in iter(lambda: file.readline(_MAX_LINE), b"")
        )
        attempt = int(head.get("attempt", 0))  # earlier versions wrote none
        found = Manifest(_version(slots), head["bytes"], head["cause"], slots, attempt)
        whole = head["version"] == found.version and head["entries"] == len(slots)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ContentDamaged("a manifest on the volume cannot be read") from error
    if not whole:
        raise ContentDamaged("a manifest on the volume is not the one that was written")
    return found


def _slot(line: bytes) -> tuple[str, bytes]:
    text = line.decode("ascii")
    path, end = _decode(text, 1)
    # `path,` before, `,seconds]` and the newline behind.
    return path, line[end + 1 : -_TIME - 3] + line[-_TIME - 2 : -2]


def _version(slots: Mapping[str, bytes]) -> str:
    """The same as `tree.version_of`, from slots that are in order of their paths."""
    digest = hashlib.sha256()
    for piece in _pieces(slots):
        digest.update(
            b"".join(b"[%b,%b]\n" % (_text(p).encode(), s[:-_TIME]) for p, s in piece)
        )
    return digest.hexdigest()


def _entries(slots: Mapping[str, bytes]) -> Iterator[bytes]:
    """The members of a JSON object: paths and entries."""
    comma = b""
    for piece in _pieces(slots):
        entries = (_text(p).encode() + b":" + s[:-_TIME] for p, s in piece)
        yield comma + b",".join(entries)
        comma = b","


def _pieces(slots: Mapping[str, bytes]) -> Iterator[list[tuple[str, bytes]]]:
    piece: list[tuple[str, bytes]] = []
    for item in slots.items():
        piece.append(item)
        if len(piece) == _PIECE:
            yield piece
            piece = []
    if piece:
        yield piece


def cause_of(base: str, delta: Delta) -> str:
    """What identifies a commit: where it starts from, and what it changes."""
    digest = hashlib.sha256(base.encode())
    digest.update(version_of(delta.put).encode())
    for path in sorted(delta.removed):
        digest.update(_text(path).encode() + b"\n")
    return digest.hexdigest()
