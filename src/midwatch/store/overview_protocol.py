"""The part of the store protocol that the page reads, and what it returns.

The rules of `midwatch.store.protocol` hold here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Protocol

from midwatch.model import Severity, Ticket


@dataclass(frozen=True, slots=True)
class SubjectState:
    """A subject as its last observations left it.

    Attributes:
        last_good_at: The last observation that succeeded.
        last_look_at: The last observation, whether it succeeded or not.
        failures: Failed observations since the last one that succeeded.
        last_error: Why the last failed one failed.
        unresolved: Numbers of unresolved tickets by severity, without those of investigations.
        watcher: The name of the monitor that watches it, None while none does.
    """

    name: str
    last_good_at: datetime | None
    last_look_at: datetime | None
    failures: int
    last_error: str | None
    unresolved: Mapping[Severity, int] = field(default_factory=dict)
    watcher: str | None = None


@dataclass(frozen=True, slots=True)
class Day:
    """The figures of a day in UTC. `to_*` are medians in seconds of the tickets that opened on it, None without any."""

    day: date
    opened: int = 0
    to_detect: float | None = None
    to_diagnose: float | None = None
    to_resolve: float | None = None
    cost_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of the days until today, the oldest first, and the tickets of that time by invariant, most first."""

    days: tuple[Day, ...]
    by_invariant: tuple[tuple[str, int], ...]


class OverviewStore(Protocol):
    """Counts, subjects, and figures by day."""

    async def unresolved_counts(self) -> Mapping[Severity, int]:
        """Return how many tickets are unresolved, by severity. Severities without any are left out."""
        ...

    async def subject_states(self) -> list[SubjectState]:
        """Return every subject that was ever observed, by name."""
        ...

    async def most_urgent(self, each: int) -> list[Ticket]:
        """Return the `each` most urgent unresolved tickets of every subject, without those of investigations.

        The most urgent come first, the oldest of equal ones.
        """
        ...

    async def figures(self, days: int) -> Figures:
        """Return the figures of the last `days` days in UTC, today included."""
        ...
