"""Recurring windows of silences: a rule of RFC 5545 in a time zone, with a length."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

from midwatch.errors import PermanentError

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

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
    `timezone`, an IANA name; what it does not say comes from the start of the silence, but a time of day that it says
    begins with its minute. A time that a change
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
        zone(self.timezone)
        _check_rule(self.rrule)

    def from_now_on(self) -> Recurrence:
        """Return the recurrence of a silence that starts now: BYHOUR=2 means 2:00, not 2:17 because it is 15:17."""
        if "BYHOUR" not in self.rrule or "BYMINUTE" in self.rrule:
            return self
        return replace(self, rrule=f"{self.rrule};BYMINUTE=0")

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
        fine = day is not None and (not day[1] or 1 <= abs(int(day[1])) <= 53)
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
def zone(name: str) -> ZoneInfo:
    """Return a time zone by its IANA name. Raises InvalidSilence."""
    from zoneinfo import ZoneInfo

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
    place = zone(timezone)
    _check_rule(rule)
    start = starts_at.astimezone(place).replace(tzinfo=None, microsecond=0)
    if "BYHOUR" in rule or "BYMINUTE" in rule:
        start = start.replace(second=0)
    end = ends_at.astimezone(place).replace(tzinfo=None)
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
            found.append(local.replace(tzinfo=place).astimezone(UTC))
    except IndexError:  # of dateutil, for BYDAY=53MO in a month
        raise _wrong_rule("BYDAY asks for a weekday that no month has") from None
    except (ValueError, OverflowError) as error:
        raise _wrong_rule(str(error)) from None
    if len(found) > MOST_WINDOWS:
        raise InvalidSilence(
            f"the silence has more than {MOST_WINDOWS:,} windows",
            hint="give it an earlier end, or a rule with fewer windows",
        )
    return tuple(sorted(set(found)))


def _moved(time: datetime, years: int) -> datetime:
    return time.replace(year=time.year + years)
