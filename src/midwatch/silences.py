"""Silences: for how long, and for which violations, no ticket opens and no message is sent.

A silence has matchers on labels, a start, an end, an author and a reason. With a recurrence it holds only in windows
between its start and its end, such as each Sunday from 2 to 4 o'clock in Berlin.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from midwatch.errors import MidwatchError
from midwatch.matchers import (
    InvalidMatcher,
    Matcher,
    check_matchers,
    match_all,
    parse_matcher_groups,
    parse_matchers,
)
from midwatch.model import Facts, Key, Severity, Ticket, Violation
from midwatch.recurrence import (
    LONGEST_TEXT,
    InvalidSilence,
    NoRecurrences,
    Recurrence,
)
from midwatch.units import LONGEST_DURATION, format_duration

__all__ = [
    "Hold",
    "InForce",
    "InvalidMatcher",
    "InvalidSilence",
    "Labels",
    "Matcher",
    "NoRecurrences",
    "Recurrence",
    "Silence",
    "SilencedViolation",
    "Silencing",
    "describe",
    "hold",
    "in_force",
    "labels_of",
    "labels_of_ticket",
    "labels_of_violation",
    "matching",
    "parse_matcher_groups",
    "parse_matchers",
    "unusable",
    "why_silent",
]

# ------------------------------------------------------------------ silences


@dataclass(frozen=True, slots=True)
class Silence:
    """A silence as it is stored. It ends at `ends_at`, or at `expired_at` where a person ended it before."""

    id: int
    matchers: tuple[Matcher, ...]
    starts_at: datetime
    ends_at: datetime
    author: str
    reason: str
    created_at: datetime
    rrule: str | None = None
    window_seconds: float | None = None
    timezone: str | None = None
    expired_at: datetime | None = None
    expired_by: str | None = None

    @property
    def recurrence(self) -> Recurrence | None:
        if self.rrule is None or self.window_seconds is None:
            return None
        return Recurrence(self.rrule, self.window_seconds, self.timezone or "UTC")

    @property
    def end(self) -> datetime:
        """When it ends for good."""
        return min(self.ends_at, self.expired_at or self.ends_at)

    @property
    def matchers_text(self) -> str:
        return ", ".join(map(str, self.matchers))

    def ended(self, now: datetime) -> bool:
        """Return whether it never holds again."""
        return now >= self.end

    def active_until(self, now: datetime) -> datetime | None:
        """Return until when it holds without a break, or None if it does not hold now.

        Raises:
            NoRecurrences: It recurs, and python-dateutil is not installed.
        """
        if not self.starts_at <= now < self.end:
            return None
        recurrence = self.recurrence
        if recurrence is None:
            return self.end
        length = timedelta(seconds=recurrence.window_seconds)
        starts = recurrence.windows(self.starts_at, self.ends_at)
        at = bisect_right(starts, now) - 1
        if at < 0 or now >= starts[at] + length:
            return None
        until = starts[at] + length
        while at + 1 < len(starts) and starts[at + 1] <= until:
            at += 1
            until = starts[at] + length
        return min(until, self.end)

    def active(self, now: datetime) -> bool:
        """Return whether it holds at a time. Raises as `active_until` does."""
        return self.active_until(now) is not None

    def next_start(self, now: datetime) -> datetime | None:
        """Return when it begins to hold after a time at which it does not; None if it never does."""
        if now < self.starts_at and self.recurrence is None:
            return self.starts_at if self.starts_at < self.end else None
        if self.recurrence is None:
            return None
        starts = self.recurrence.windows(self.starts_at, self.ends_at)
        at = bisect_right(starts, now)
        return starts[at] if at < len(starts) and starts[at] < self.end else None

    def check(self) -> None:
        """Raise InvalidSilence, InvalidMatcher or another PermanentError unless all of it makes sense."""
        check_matchers(self.matchers)
        if all(one.matches({}) for one in self.matchers):
            raise InvalidSilence(
                "a silence needs a matcher that does not match the empty text: it would silence everything",
                hint='add one such as subject="db1"',
            )
        if None in (self.starts_at.tzinfo, self.ends_at.tzinfo):
            raise InvalidSilence("the start and the end of a silence need an offset")
        if self.starts_at >= self.ends_at:
            raise InvalidSilence("a silence ends after it starts")
        if self.ends_at <= self.created_at:
            raise InvalidSilence("the end of the silence is past")
        longest = timedelta(seconds=LONGEST_DURATION)
        if (
            self.ends_at - self.created_at > longest
            or self.created_at - self.starts_at > longest
        ):
            raise InvalidSilence(
                "a silence starts and ends within a hundred years of now"
            )
        for name, text in (("an author", self.author), ("a reason", self.reason)):
            if not text.strip():
                raise InvalidSilence(f"a silence needs {name}")
            if len(text) > LONGEST_TEXT:
                raise InvalidSilence(
                    f"{name} has at most {LONGEST_TEXT} characters in a silence"
                )
        if (recurrence := self.recurrence) is not None:
            recurrence.check()
            if not recurrence.windows(self.starts_at, self.ends_at):
                raise InvalidSilence("the silence has no window before its end")


# ------------------------------------------------------------------ what they silence

Labels = Mapping[str, str]
OWN_LABELS = ("subject", "kind", "invariant", "component", "severity")
"""The labels that every violation has. Where an alert has one of the same name, Midwatch's counts."""
_LABEL_FACT = "label_"
NEVER_SILENT = frozenset({"investigation"})
"""Invariants that no silence keeps silent: somebody asked, and waits for the answer."""
_NAME = "alertname"  # a fact and a label of an alert


def labels_of(key: Key, severity: Severity, facts: Facts, kind: str = "") -> Labels:
    """Return the labels of a violation or a ticket: those that every one has, and those of its alert.

    Args:
        key: Its key.
        severity: Its severity.
        facts: Its facts. The labels of an alert are those whose names begin with "label_".
        kind: The kind of its subject.
    """
    own = {
        "subject": key.subject,
        "kind": kind,
        "invariant": key.invariant,
        "component": key.component,
        "severity": severity.label,
    }
    named = {_NAME: str(facts[_NAME])} if facts.get(_NAME) else {}
    return {
        **named,
        **{
            name.removeprefix(_LABEL_FACT): str(value)
            for name, value in facts.items()
            if name.startswith(_LABEL_FACT) and value is not None
        },
        **own,
    }


def labels_of_violation(violation: Violation, kind: str = "") -> Labels:
    """Return the labels of a violation; `kind` is that of its subject."""
    return labels_of(violation.key, violation.severity, violation.facts, kind)


def labels_of_ticket(ticket: Ticket, kind: str = "") -> Labels:
    """Return the labels of a ticket; `kind` is that of its subject."""
    return labels_of(ticket.key, ticket.severity, ticket.facts, kind)


def matching(
    silences: Iterable[Silence], labels: Labels, now: datetime
) -> list[Silence]:
    """Return the silences that hold at a time and match the labels.

    Raises:
        NoRecurrences: One recurs, and python-dateutil is not installed.
    """
    return [
        one for one in silences if one.active(now) and match_all(one.matchers, labels)
    ]


@dataclass(frozen=True, slots=True)
class Hold:
    """What keeps a violation silent now: the silence that lasts longest, or one of the alert's sender.

    Attributes:
        by: What to call it, such as "silence 3" or "Alertmanager silence 4f…".
        until: When it ends by itself; None if only the sender knows.
        silence_id: The silence, or None for one of the sender.
    """

    by: str
    until: datetime | None = None
    silence_id: int | None = None


InForce = Sequence[tuple[Silence, datetime]]
"""Silences that hold, each with the time until which it does, the last to end first."""


def in_force(silences: Iterable[Silence], now: datetime) -> InForce:
    """Return the silences that hold at a time. One that cannot be evaluated here does not: see `unusable`."""
    found: list[tuple[Silence, datetime]] = []
    for one in silences:
        try:
            until = one.active_until(now)
            check_matchers(one.matchers)
        except MidwatchError:
            continue
        if until is not None:
            found.append((one, until))
    return sorted(found, key=lambda pair: (pair[1], pair[0].id), reverse=True)


def hold(silences: InForce, labels: Labels, sender: str = "") -> Hold | None:
    """Return what keeps a violation silent, or None.

    Args:
        silences: The silences that hold now.
        labels: The labels of the violation.
        sender: What the sender of the alert says silences it; empty if nothing does.
    """
    if labels.get("invariant") in NEVER_SILENT:
        return None
    for one, until in silences:
        if match_all(one.matchers, labels):
            return Hold(f"silence {one.id}", until, one.id)
    return Hold(sender) if sender else None


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


def unusable(silences: Iterable[Silence], now: datetime) -> dict[int, str]:
    """Return, by id, why silences cannot be evaluated here: a library is not installed."""
    found: dict[int, str] = {}
    for one in silences:
        try:
            one.active_until(now)
            check_matchers(one.matchers)
        except MidwatchError as error:
            found[one.id] = error.one_line()
    return found


def describe(silence: Silence) -> str:
    """Return one line for a history: its number, its reason, who made it."""
    lasts = format_duration((silence.end - silence.starts_at).total_seconds())
    return (
        f"silence {silence.id} of {silence.author} for {lasts}: "
        f"{' '.join(silence.reason.split())}"
    )


def why_silent(held: Hold, known: InForce) -> str:
    """Return the line for a ticket's history that says what keeps it silent."""
    return next(
        (describe(one) for one, _ in known if one.id == held.silence_id), held.by
    )
