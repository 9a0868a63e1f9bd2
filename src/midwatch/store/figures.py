"""What lists of tickets ask for and what they show, past incidents, and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from midwatch.model import (
    DiagnosisOutcome,
    Grounded,
    Severity,
    Ticket,
    TicketStatus,
    Usage,
)


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a ticket in a list: the next page begins behind it, whatever opened meanwhile."""

    severity: Severity
    opened_at: datetime
    id: int

    @classmethod
    def of(cls, ticket: Ticket) -> Place:
        return cls(ticket.severity, ticket.opened_at, ticket.id)


@dataclass(frozen=True, slots=True)
class TicketFilter:
    """Which tickets to list. None or an empty sequence matches any.

    Attributes:
        newest_first: The order; without statuses it is always this one. Else the most severe and then the oldest
            come first.
        text: Words, each of which is part of the message, the subject, the invariant, the component or the
            resolution, in lower or upper case (of ASCII letters, on SQLite).
        after: Only tickets behind this place.
    """

    statuses: Sequence[TicketStatus] = ()
    subject: str | None = None
    severity: Severity | None = None
    batch: int | None = None
    limit: int = 50
    invariant: str | None = None
    text: str = ""
    newest_first: bool = False
    after: Place | None = None


@dataclass(frozen=True, slots=True)
class Brief:
    """The summary of a diagnosis, for lists."""

    outcome: DiagnosisOutcome
    verdict: str | None = None
    confidence: str | None = None


Listed = tuple[list[Ticket], dict[int, Brief]]
"""Tickets, and the summary of the diagnosis of each that has one, by the ticket's id."""


@dataclass(frozen=True, slots=True)
class Past:
    """A resolved ticket with its diagnosis or its resolution, as evidence for later tickets.

    `grounded` says how many claims of the diagnosis were found in its evidence, None if that was not checked.
    `verified` is true where the diagnosis identified the cause and most of its claims were found.
    """

    ticket: Ticket
    summary: str | None
    root_cause: str | None
    same_key: bool
    confidence: str | None = None
    grounded: Grounded | None = None
    verified: bool = False
    verdict: str | None = None

    @property
    def mark(self) -> str:
        """What the diagnosis claimed and how much of it was verified; it is never shown without."""
        found = self.grounded or Grounded(0, 0)
        return (
            f"an earlier diagnosis, verdict {self.verdict or 'unknown'}, {found.verified} of {found.total} claims found in its evidence, "
            f"confidence {self.confidence or 'unknown'}"
        )


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures since `since`. `to_*` are medians in seconds, or None without a measurement.

    A fault began after the last observation that did not show it, so `to_see`, from that one to the first that did,
    is the longest it can have taken. `to_confirm` is the time from there to the ticket (the invariant's `for`), and
    `to_detect` is both. Tickets that a silence kept back are in neither. `silenced` counts the violations that
    became silent, and `silent_now` those that are so.
    """

    since: datetime
    opened: int
    unresolved: int
    resolved: int
    outcomes: Mapping[str, int]
    to_diagnose: float | None
    to_resolve: float | None
    to_detect: float | None
    usage: Usage
    cost_usd: float
    given_up: int = 0
    to_see: float | None = None
    to_confirm: float | None = None
    silenced: int = 0
    silent_now: int = 0
