"""Reading one file of a folder that others write to: its content as it was at one moment, or None."""

from __future__ import annotations

import os
import stat as stats
from dataclasses import dataclass, field

from midwatch.content.sync.stats import Signature, signature_of
from midwatch.content.tree import CHUNK, Entry, chunk_hash

TRIES = 3
_LARGE = 64 << 20
"""A file of more bytes is read once: whoever writes it is not likely to be done with it the next moment."""


@dataclass(slots=True)
class Captured:
    """The bytes of small files that were just hashed, by hash: they are sent as they were then."""

    room: int = 16 << 20
    largest: int = 256 << 10
    held: dict[str, bytes] = field(default_factory=dict)

    def offer(self, name: str, data: bytes, *, wanted: bool) -> None:
        """`wanted` ones are kept up to a whole chunk each."""
        if len(data) <= (CHUNK if wanted else self.largest) and len(data) <= self.room:
            if self.held.setdefault(name, data) is data:
                self.room -= len(data)


def read_file(
    folder: int, name: str, captured: Captured, *, wanted: bool = False
) -> tuple[Signature, Entry] | None:
    """What is in a file; None for one that is no file any more or keeps changing. Raises OSError."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = os.open(name, flags, dir_fd=folder)
    try:
        for _ in range(TRIES):
            before = os.fstat(file)
            if not stats.S_ISREG(before.st_mode):
                return None
            entry = _content(file, before, captured, wanted)
            signature = signature_of(before)
            if entry and signature_of(os.fstat(file)) == signature:
                return signature, entry
            if before.st_size > _LARGE:
                break
    finally:
        os.close(file)
    return None


def _content(
    file: int, stat: os.stat_result, captured: Captured, wanted: bool
) -> Entry | None:
    """None if it is not as long as its stat says."""
    chunks, size = [], 0
    while data := read_at(file, size):
        name = chunk_hash(data)
        captured.offer(name, data, wanted=wanted)
        chunks.append(name)
        size += len(data)
        if size > stat.st_size:
            return None
    if size != stat.st_size:
        return None
    return Entry("file", stat.st_mode & 0o777, size, tuple(chunks))


def read_at(file: int, offset: int) -> bytes:
    """Up to a chunk, shorter only at the end of the file."""
    data = os.pread(file, CHUNK, offset)
    while data and len(data) < CHUNK:
        more = os.pread(file, CHUNK - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
