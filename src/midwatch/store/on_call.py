"""The part of the store protocol that the on-call stack needs.

What is said of `midwatch.store.protocol` holds here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from midwatch.model import Key, Severity
from midwatch.silences import Hold, Matcher, Recurrence, Silence


@dataclass(frozen=True, slots=True)
class SilencedViolation:
    """A violation that a silence keeps or kept silent.

    Attributes:
        by: What keeps it silent: "silence 3", or what the sender of the alert says.
        silence_id: The silence; None if the sender keeps it silent.
        until: When the silence ends by itself; None if only the sender knows.
        first_seen_at: When it was first seen while it was silent.
        ended_at: When it cleared or became audible; None while it lasts.
        ticket_id: The ticket that was open when it began, or that opened when the silence ended.
    """

    id: int
    key: Key
    severity: Severity
    message: str
    by: str
    silence_id: int | None
    until: datetime | None
    first_seen_at: datetime
    ended_at: datetime | None = None
    ticket_id: int | None = None


@dataclass(frozen=True, slots=True)
class Silencing:
    """A violation that is silent from now on. It was first observed `seen_for` seconds ago.

    Attributes:
        held: What keeps it silent.
        why: The line for the history of its ticket.
        ticket_id: Its ticket, if one is open.
    """

    key: Key
    severity: Severity
    message: str
    held: Hold
    why: str
    seen_for: float = 0.0
    ticket_id: int | None = None


class OnCallStore(Protocol):
    """The feed of changes, silences, pushed alerts, deliveries, tokens and investigations."""

    # -------------------------------------------------- the feed of changes

    # -------------------------------------------------- silences
    async def add_silence(
        self,
        matchers: Sequence[Matcher],
        *,
        author: str,
        reason: str,
        starts_at: datetime | None = None,
        ends_at: datetime | None = None,
        seconds: float | None = None,
        recurrence: Recurrence | None = None,
    ) -> Silence:
        """Add a silence. Open tickets that it matches are silent at once.

        Args:
            matchers: Conditions on the labels of a violation; all must hold.
            author: Who makes it.
            reason: Why.
            starts_at: When it starts; by default now.
            ends_at: When it ends; this or `seconds` is given.
            seconds: Seconds from its start to its end.
            recurrence: Windows in which it holds; by default it holds all the time.

        Raises:
            InvalidSilence: It makes no sense, or matches everything.
            InvalidMatcher: A matcher is wrong.
            NoRegexEngine, NoRecurrences: A library that it needs is not installed.
        """
        ...

    async def silences(self, include_ended: bool = False) -> list[Silence]:
        """Return the silences that hold or will hold, the next to end first; with the ended ones, the newest first."""
        ...

    async def silence(self, silence_id: int) -> Silence:
        """Return a silence. Raises NotFound."""
        ...

    async def expire_silence(self, silence_id: int, actor: str) -> Silence:
        """End a silence now. Open tickets that no other one matches are audible at once.

        Raises:
            NotFound: There is no such silence.
            Conflict: It has ended already.
        """
        ...

    async def silenced(
        self, subject: str | None = None, within: float | None = None
    ) -> list[SilencedViolation]:
        """Return the violations that are silent now, the most urgent first.

        Args:
            subject: Only those of this subject.
            within: Instead those that were first seen in the last `within` seconds, the newest first.
        """
        ...

    # -------------------------------------------------- pushed alerts

    # -------------------------------------------------- deliveries

    # -------------------------------------------------- tokens

    # -------------------------------------------------- investigations and idempotent requests
