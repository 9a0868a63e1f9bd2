"""The part of the store protocol that the on-call stack needs.

What is said of `midwatch.store.protocol` holds here too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Protocol

from midwatch.model import Key, Severity


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """A place in the feed of changes: behind the audit row with this id. `Cursor(0)` is before all."""

    audit_id: int

    def __str__(self) -> str:
        return str(self.audit_id)

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Return the cursor that `str` wrote. Raises ValueError."""
        if not (text.isascii() and text.isdecimal()) or len(text) > 18:
            raise ValueError(f"not a cursor: {text[:40]!r}")
        return cls(int(text))


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a ticket, as the feed has it.

    Attributes:
        cursor: Its place in the feed. No two changes have the same.
        ticket_id: The ticket.
        at: When, by the database's clock.
        actor: Who or what changed it.
        action: "open", "first_aid", "acknowledge", "hold", "unhold", "diagnose", "give up", "requeue", "join",
            "session", "retry", "resolve", …
        before: Its status before; None for a ticket that opened.
        after: Its status after.
        why: The reason in a few words.
        key: What the ticket is about.
        severity: The severity of the ticket.
        batch: The batch that the ticket is in now.
        message: The message of the ticket.
    """

    cursor: Cursor
    ticket_id: int
    at: datetime
    actor: str
    action: str
    before: str | None
    after: str | None
    why: str
    key: Key
    severity: Severity
    batch: int
    message: str

    @property
    def subject(self) -> str:
        return self.key.subject

    @property
    def invariant(self) -> str:
        return self.key.invariant

    @property
    def component(self) -> str:
        return self.key.component


@dataclass(frozen=True, slots=True)
class SubjectState:
    """A subject as its last observations left it.

    Attributes:
        last_good_at: The last observation that succeeded.
        last_look_at: The last observation, whether it succeeded or not.
        failures: Failed observations since the last one that succeeded.
        last_error: Why the last failed one failed.
        unresolved: Numbers of unresolved tickets by severity.
    """

    name: str
    last_good_at: datetime | None
    last_look_at: datetime | None
    failures: int
    last_error: str | None
    unresolved: Mapping[Severity, int] = field(default_factory=dict)


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


class OnCallStore(Protocol):
    """The feed of changes, silences, pushed alerts, deliveries, tokens and investigations."""

    # -------------------------------------------------- the feed of changes
    def on_change(self, listener: Callable[[], object]) -> None:
        """Call `listener` after each change of a ticket by this process, on the event loop of the change."""
        ...

    async def changes(
        self, after: Cursor | None = None, limit: int = 500
    ) -> list[Change]:
        """Return the changes that follow a place in the feed.

        The order is that in which they were written, except that changes of concurrent transactions may be interleaved.
        No change appears later in front of one that was returned: a reader that goes on from the last one misses none.

        Args:
            after: The cursor of the last change that the reader had; None is the beginning. One beyond the end is
                of another database, and counts as None.
            limit: The largest number of changes.
        """
        ...

    async def last_cursor(self) -> Cursor:
        """Return the present end of the feed: every change that is committed later follows it."""
        ...

    async def save_cursor(self, name: str, cursor: Cursor) -> None:
        """Store how far the reader `name` has come."""
        ...

    async def cursor(self, name: str) -> Cursor | None:
        """Return how far the reader `name` has come, or None for a new one."""
        ...

    # -------------------------------------------------- silences

    # -------------------------------------------------- pushed alerts

    # -------------------------------------------------- deliveries

    # -------------------------------------------------- tokens

    # -------------------------------------------------- investigations and idempotent requests

    # -------------------------------------------------- the page

    async def unresolved_counts(self) -> Mapping[Severity, int]:
        """Return how many tickets are unresolved, by severity. Severities without any are left out."""
        ...

    async def subject_states(self) -> list[SubjectState]:
        """Return every subject that was ever observed, by name."""
        ...

    async def figures(self, days: int) -> Figures:
        """Return the figures of the last `days` days in UTC, today included."""
        ...
