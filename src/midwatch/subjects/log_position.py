"""Positions in log files, by which a file is recognised after it was rotated. Pure."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARK = 64
"""Bytes before a position, by which a file is recognised."""
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4")


@dataclass(frozen=True, slots=True)
class LogPosition:
    """Where reading of a log ended.

    `file` is its inode number; 0 where that is not known. `mark` is the length and digest of the bytes
    just before the position: they tell a file from another of the same name.
    """

    path: str
    file: int
    offset: int
    mark: str = ""

    @classmethod
    def of(cls, raw: Any) -> LogPosition | None:
        """Return the position from stored state; None for anything else."""
        try:
            place = str(raw["path"]), int(raw["file"]), int(raw["offset"])
            return cls(*place, str(raw.get("mark", "")))
        except (AttributeError, KeyError, TypeError, ValueError):
            return None


def mark_of(before: bytes) -> str:
    """Return the mark of a position before which a file has these bytes (`MARK` of them at most)."""
    return f"{len(before)}:{hashlib.sha256(before).hexdigest()[:16]}"


def rotated_name(path: Path) -> re.Pattern[str]:
    """Return what the names match that logrotate gives a file: `server.log.1`, `server-20260101.log.gz`."""
    stem, suffix = re.escape(path.stem), re.escape(path.suffix)
    return re.compile(rf"{stem}(?:{suffix}[.-]?\d.*|[.-]\d.*{suffix}.*)")
