"""What one reading of a source found beside its lines, and how much it may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midwatch.units import format_size


@dataclass(slots=True)
class Budget:
    """What a reading may take: until when, on the clock of `now`, and how many bytes."""

    until: float
    bytes_left: int
    now: Callable[[], float] = time.monotonic

    @property
    def is_spent(self) -> bool:
        return self.bytes_left <= 0 or self.now() >= self.until

    def take(self, size: int) -> None:
        self.bytes_left -= size


@dataclass(slots=True)
class Reading:
    """What one reading of a source found beside its lines.

    Attributes:
        began: When it began, in epoch seconds: what was written later may be missing.
        place: Where the next one goes on; of JSON types.
        behind: Bytes, or records, that are there and were not read yet; 1 where the number is not known.
        lost: Why lines that were written cannot be read any more; empty if none are lost.
        lost_bytes: How many bytes that are, as far as it is known.
        vanished: Files that were read to their end and are gone, or hold something else: what was written to them since is unknown.
        problems: What cannot be read now: parts of the source that are unknown.
        denied: What a permission keeps from being seen, with the remedy.
        left_out: What a pattern matches and is no log.
        unseen: Paths of files and folders of which is not known what is there: nothing is known to be gone from them.
    """

    began: float
    place: Any = None
    behind: int = 0
    lost: str = ""
    lost_bytes: int = 0
    vanished: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    denied: str = ""
    left_out: list[str] = field(default_factory=list)
    unseen: set[str] = field(default_factory=set)

    def fail(self, why: str) -> None:
        """Record that a part of the source cannot be read."""
        self.problems.append(why)

    def is_unseen(self, path: str) -> bool:
        """Return whether it is not known what is there: the file, or a folder that it is in, cannot be looked at."""
        folders = (str(one) for one in Path(path).parents)
        return bool(self.unseen) and not self.unseen.isdisjoint([path, *folders])

    def lose(self, why: str, size: int) -> None:
        """Record that `size` bytes (0 if not known) of what was written are lost."""
        self.lost_bytes += size
        self.lost = self.lost or why

    @property
    def lost_text(self) -> str:
        known = f" ({format_size(self.lost_bytes)} at least)" if self.lost_bytes else ""
        return f"{self.lost}{known}" if self.lost else ""
