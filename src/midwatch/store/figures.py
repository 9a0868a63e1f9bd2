"""Past incidents and figures, as a store returns them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from midwatch.model import Grounded, Ticket, Usage


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
