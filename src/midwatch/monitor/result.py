"""What the cycles of a subject did, for the log, the heartbeat and the metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from midwatch.model import Observation


@dataclass(frozen=True, slots=True)
class Poll:
    """One attempt to observe a subject: an observation, or the error that prevented it."""

    observation: Observation | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Cycle:
    """What one cycle did, for one subject or for all of them.

    `seconds` is its wall time. `changed` is filled where tickets opened: it lists what differs from
    when every invariant held. `silenced` counts the violations that a silence keeps from opening a ticket.
    """

    subjects: int = 0
    unobservable: int = 0
    unsaved: int = 0
    open: int = 0
    opened: int = 0
    resolved: int = 0
    seconds: float = 0.0
    changed: str = ""
    silenced: int = 0


Result = Literal["observed", "unobservable", "unsaved"]


@dataclass(slots=True)
class SubjectStats:
    """What the cycles of a subject did since the start of the process, for the metrics."""

    cycles: Counter[Result] = field(default_factory=Counter)
    seconds: float = 0.0
    opened: int = 0
    resolved: int = 0
    last: Result | None = None
    last_success: datetime | None = None

    @property
    def known(self) -> bool:
        """Whether the subject's tickets were read: before that, 0 tickets would be wrong."""
        return bool(self.cycles["observed"] or self.cycles["unobservable"])

    def add(self, cycle: Cycle, seconds: float, now: datetime) -> None:
        self.last = _result(cycle)
        self.cycles[self.last] += 1
        self.seconds += seconds
        self.opened += cycle.opened
        self.resolved += cycle.resolved
        if self.last == "observed":
            self.last_success = now


def _result(cycle: Cycle) -> Result:
    if cycle.unsaved:
        return "unsaved"
    return "unobservable" if cycle.unobservable else "observed"
