"""Silences: for how long, and for which violations, no ticket opens and nobody is told.

A silence has matchers on labels, a start, an end, an author and a reason. With a recurrence it holds only in windows
between its start and its end, such as each Sunday from 2 to 4 o'clock in Berlin.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

from midwatch.errors import MidwatchError, PermanentError
from midwatch.matchers import (
    InvalidMatcher,
    Matcher,
    check_matchers,
    match_all,
    parse_matcher_groups,
    parse_matchers,
)
from midwatch.model import Facts, Key, Severity, Ticket, Violation
from midwatch.units import LONGEST_DURATION, format_duration

__all__ = [
    "Hold",
    "InvalidMatcher",
    "InvalidSilence",
    "Labels",
    "Matcher",
    "NoRecurrences",
    "Recurrence",
    "Silence",
    "describe",
    "hold",
    "labels_of",
    "labels_of_ticket",
    "labels_of_violation",
    "matching",
    "parse_matcher_groups",
    "parse_matchers",
    "unusable",
]

MOST_WINDOWS = 4000
"""Windows of one silence: one a day for ten years."""
LONGEST_WINDOW = 366 * 86400.0
"""Seconds."""
LONGEST_TEXT = 500
"""Characters of an author, a reason or a rule."""


class InvalidSilence(PermanentError):
    """A silence is wrong."""

    command_exit_code = 2


class NoRecurrences(PermanentError):
    """Recurring silences need python-dateutil."""

    hint = "pip install 'midwatch[silences]'"


# ------------------------------------------------------------------ recurring windows

_NUMBERS = {
    "BYHOUR": (0, 23),
    "BYMINUTE": (0, 59),
    "BYMONTH": (1, 12),
    "BYMONTHDAY": (-31, 31),
    "BYYEARDAY": (-366, 366),
    "BYWEEKNO": (-53, 53),
    "BYSETPOS": (-366, 366),
    "INTERVAL": (1, 1000),
    "COUNT": (1, MOST_WINDOWS),
}
_SINGLE = ("FREQ", "INTERVAL", "COUNT", "WKST")
_MOST_VALUES = 31
_MOST_TIMES = 24
_FREQUENCIES = ("DAILY", "WEEKLY", "MONTHLY", "YEARLY")
_DAY = re.compile(r"([+-]?[1-5]?\d)?(MO|TU|WE|TH|FR|SA|SU)")


@dataclass(frozen=True, slots=True)
class Recurrence:
    """Windows that recur: each begins at an occurrence of `rrule` and lasts `window_seconds`.

    `rrule` is a rule of RFC 5545 without UNTIL, such as `FREQ=WEEKLY;BYDAY=SU;BYHOUR=2;BYMINUTE=0`. Its times are those of
    `timezone`, an IANA name; what it does not say comes from the start of the silence. A time that a change
    of the clocks skips begins as much later, and one that comes twice counts the first time, as RFC 5545 says.
    A window lasts its seconds whatever the clocks do.
    """

    rrule: str
    window_seconds: float
    timezone: str = "UTC"

    def check(self) -> None:
        """Raise InvalidSilence unless rule, length and time zone are right and cheap to compute."""
        if not 1 <= self.window_seconds <= LONGEST_WINDOW:
            raise InvalidSilence(
                "a window lasts 1 second at least and 366 days at most"
            )
        _zone(self.timezone)
        _check_rule(self.rrule)

    def windows(self, starts_at: datetime, ends_at: datetime) -> Sequence[datetime]:
        """Return the starts of all windows between two times, in order and in UTC.

        Raises:
            InvalidSilence: The rule is wrong, or there are more than MOST_WINDOWS.
            NoRecurrences: python-dateutil is not installed.
        """
        return _windows(self.rrule, self.timezone, starts_at, ends_at)


def _check_rule(rule: str) -> None:
    if len(rule) > LONGEST_TEXT:
        raise _wrong_rule(f"it is longer than {LONGEST_TEXT} characters")
    parts: dict[str, list[str]] = {}
    for part in rule.split(";"):
        name, equals, text = part.partition("=")
        if not equals or name in parts:
            raise _wrong_rule(f"{part[:40]!r} is not one NAME=VALUE")
        parts[name] = text.split(",")
    for name, values in parts.items():
        if len(values) > (1 if name in _SINGLE else _MOST_VALUES):
            raise _wrong_rule(f"{name} has too many values")
        for value in values:
            _check_value(name, value)
    if "FREQ" not in parts:
        raise _wrong_rule("FREQ is missing")
    times = len(parts.get("BYHOUR", "1")) * len(parts.get("BYMINUTE", "1"))
    if times > _MOST_TIMES:
        raise _wrong_rule(f"it has {times} times a day; {_MOST_TIMES} are the limit")


def _check_value(name: str, value: str) -> None:
    if name == "FREQ":
        fine = value in _FREQUENCIES
    elif name == "WKST":
        fine = bool(re.fullmatch("MO|TU|WE|TH|FR|SA|SU", value))
    elif name == "BYDAY":
        day = _DAY.fullmatch(value)
        # dateutil finds no place for a 53rd weekday in a year that has 52 of them.
        fine = day is not None and (not day[1] or 1 <= abs(int(day[1])) <= 52)
    elif name == "UNTIL":
        raise _wrong_rule("it has UNTIL; the end of the silence ends its windows")
    elif name in _NUMBERS:
        low, high = _NUMBERS[name]
        number = int(value) if re.fullmatch(r"[+-]?\d{1,4}", value, re.ASCII) else None
        fine = number is not None and low <= number <= high
        fine = fine and (number != 0 or low == 0)
    else:
        raise _wrong_rule(f"{name[:20]!r} is not known")
    if not fine:
        raise _wrong_rule(f"{name}={value[:40]} is not possible")


def _wrong_rule(why: str) -> InvalidSilence:
    hint = (
        "write a rule of RFC 5545, such as FREQ=WEEKLY;BYDAY=SU;BYHOUR=2;BYMINUTE=0; "
        "FREQ is DAILY, WEEKLY, MONTHLY or YEARLY"
    )
    return InvalidSilence(f"the rule is wrong: {why}", hint=hint)


@functools.lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown, a path, a folder
        raise InvalidSilence(
            f"the time zone {name[:60]!r} is not known",
            hint="use an IANA name such as Europe/Berlin",
        ) from None


@functools.lru_cache(maxsize=256)
def _windows(
    rule: str, timezone: str, starts_at: datetime, ends_at: datetime
) -> Sequence[datetime]:
    try:
        from dateutil.rrule import rrulestr
    except ImportError:
        raise NoRecurrences() from None
    zone = _zone(timezone)
    _check_rule(rule)
    start = starts_at.astimezone(zone).replace(tzinfo=None, microsecond=0)
    end = ends_at.astimezone(zone).replace(tzinfo=None)
    # dateutil searches for the next occurrence until the year 9999, which takes a minute for a rule without any. The
    # calendar repeats every 400 years, to the weekday: so the search begins as late as it can.
    shift = (9999 - end.year) // 400 * 400
    first, last = _moved(start, shift), _moved(end, shift)
    try:
        found: list[datetime] = []
        for one in islice(rrulestr(rule, dtstart=first), MOST_WINDOWS + 1):
            if one >= last:
                break
            local = _moved(one, -shift)
            found.append(local.replace(tzinfo=zone).astimezone(UTC))
    except (ValueError, IndexError, OverflowError) as error:
        raise _wrong_rule(str(error)) from None
    if len(found) > MOST_WINDOWS:
        raise InvalidSilence(
            f"the silence has more than {MOST_WINDOWS:,} windows",
            hint="give it an earlier end, or a rule with fewer windows",
        )
    return tuple(sorted(set(found)))


def _moved(time: datetime, years: int) -> datetime:
    return time.replace(year=time.year + years)


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
    return {
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
        NoRegexEngine: One has a regular expression, and google-re2 is not installed.
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
        until: When it ends if nobody changes it; None if only the sender knows.
        silence_id: The silence, or None for one of the sender.
    """

    by: str
    until: datetime | None = None
    silence_id: int | None = None


def hold(
    silences: Iterable[Silence], labels: Labels, now: datetime, sender: str = ""
) -> Hold | None:
    """Return what keeps a violation silent, or None. A silence that cannot be evaluated keeps nothing silent.

    Args:
        silences: The silences that have not ended.
        labels: The labels of the violation.
        now: The time.
        sender: What the sender of the alert says silences it; empty if nothing does.
    """
    best: Hold | None = None
    for one in silences:
        try:
            until = one.active_until(now)
            if until is None or not match_all(one.matchers, labels):
                continue
        except MidwatchError:
            continue  # `unusable` says so
        if best is None or best.until is None or until > best.until:
            best = Hold(f"silence {one.id}", until, one.id)
    return best or (Hold(sender) if sender else None)


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
