"""Which files are unchanged since they were hashed: the same idea as git's index.

A file with the same size, times, inode and mode has the same content, unless it was written again within one tick of the
clock that the times are from. So an entry is only believed if the file had been quiet for longer than a tick when it was read.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from midwatch.content.durable import replace_file
from midwatch.content.tree import Entry, compact

Signature = tuple[int, int, int, int, int]
"""Size, mtime and ctime in nanoseconds, inode, mode."""
TICK = 20_000_000
"""Nanoseconds that file times may lag behind: Linux stamps with a clock that ticks every 1 to 10 ms."""
_SECOND = 1_000_000_000
Kept = dict[str, tuple[Signature, Entry]]


def signature_of(stat: os.stat_result) -> Signature:
    return (
        stat.st_size,
        stat.st_mtime_ns,
        stat.st_ctime_ns,
        stat.st_ino,
        stat.st_mode,
    )


def is_racy(signature: Signature, read_at: int) -> bool:
    """Whether a write after `read_at` (nanoseconds of the epoch) could leave the same signature."""
    latest = max(signature[1], signature[2])
    # Times without a fraction are those of a file system that knows seconds only.
    tick = 2 * _SECOND if signature[2] % _SECOND == 0 else TICK
    return latest >= read_at - tick


def save(path: Path, kept: Kept) -> None:
    """Raises OSError. A cache needs no fsync: without it, files are read again."""
    data = {
        name: [*signature, *entry.chunks]
        for name, (signature, entry) in kept.items()
        if entry.kind == "file"
    }
    replace_file(path, compact(data), durable=False)


def load(path: Path) -> Kept:
    """What was saved; nothing if it cannot be read."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        data = json.loads(path.read_bytes())
        return {name: _kept(row) for name, row in data.items()}
    return {}


def _kept(row: list[Any]) -> tuple[Signature, Entry]:
    size, mtime, ctime, inode, bits = (int(number) for number in row[:5])
    entry = Entry("file", bits & 0o777, size, tuple(str(chunk) for chunk in row[5:]))
    return (size, mtime, ctime, inode, bits), entry
