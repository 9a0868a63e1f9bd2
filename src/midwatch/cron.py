"""The times of a cron expression in a time zone, also across changes of its clock.

The five fields and the names with @ are those of crontab(5), without the extensions of `croniter`, so that Kubernetes
reads an expression in the same way. Where a time zone sets its clock, the rules are those of Debian's cron(8):

- A time that the clock skips is due at the end of the gap; a time that it repeats is due the first time only.
- An expression that runs through the hours (its minute or its hour begins with `*`) follows the hours as they pass: there is
  nothing to run in a gap, and a repeated hour runs again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from midwatch.errors import SettingsError

_NAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_FIELDS = ("minute", "hour", "day of month", "month", "day of week")
_FIELD = re.compile(r"[0-9*,/-]+")
_NAMED_FIELD = re.compile(r"([0-9*,/-]|[A-Za-z]{3})+")
_HORIZON = timedelta(days=366 * 8 + 2)
"""An expression without a time in it has none: 29 February comes at least once in 8 years."""


class Cron:
    """A cron expression in a time zone. Raises ValueError, which says what is wrong with the expression.

    Args:
        expression: Five fields, or a name such as @daily.
        zone: The time zone whose clock it is read by.
    """

    def __init__(self, expression: str, zone: tzinfo) -> None:
        fields = _NAMES.get(expression.strip().lower(), expression).split()
        if len(fields) != len(_FIELDS):
            raise ValueError(
                f"not a cron expression: it has {len(fields)} fields and needs 5, such as 0 6 * * mon-fri"
            )
        for name, field in zip(_FIELDS, fields, strict=True):
            allowed = _NAMED_FIELD if name in ("month", "day of week") else _FIELD
            if not allowed.fullmatch(field):
                raise ValueError(f"not a cron expression: its {name} is {field[:40]!r}")
        self._text = " ".join(fields)
        self._zone = zone
        self._by_hours = fields[0].startswith("*") or fields[1].startswith("*")
        croniter = _croniter()
        try:
            croniter(self._text, datetime(2026, 1, 1)).get_next(datetime)
        except ValueError as error:  # all errors of croniter are
            raise ValueError(f"not a cron expression: {error}") from None

    def next(self, after: datetime) -> datetime | None:
        """Return the first time after an aware time, in UTC; None if there is none within 8 years."""
        return self._next_by_hours(after) if self._by_hours else self._next(after)

    def between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Yield the times after `after`, up to and with `until`, in UTC."""
        at = self.next(after)
        while at is not None and at <= until:
            yield at
            at = self.next(at)

    # -------------------------------------------------- the clock on the wall

    def _next(self, after: datetime) -> datetime | None:
        for wall in self._walls(after.astimezone(self._zone).replace(tzinfo=None)):
            at = self._instant(wall)
            if at > after:
                return at
        return None

    def _next_by_hours(self, after: datetime) -> datetime | None:
        """Go from one change of the offset to the next: between two of them the clock runs evenly."""
        start, before = after.astimezone(UTC), timedelta()
        while start - after < _HORIZON:
            offset = self._offset(start)
            base = (start + offset - before).replace(tzinfo=None)
            wall = next(self._walls(base), None)
            if wall is None:
                return None
            at = wall.replace(tzinfo=UTC) - offset
            if self._offset(at) == offset:
                return at
            # The change itself may be a time.
            start, before = self._change(start, at), timedelta(seconds=1)
        return None

    def _walls(self, after: datetime) -> Iterator[datetime]:
        times = _croniter()(self._text, after)
        while True:
            try:
                wall: datetime = times.get_next(datetime)
            except ValueError:  # CroniterBadDateError: no date in 50 years
                return
            if wall - after > _HORIZON:
                return
            yield wall

    def _instant(self, wall: datetime) -> datetime:
        """Return the first instant at which the clock shows `wall`, or the end of the gap that skips it."""
        at = wall.replace(tzinfo=self._zone).astimezone(UTC)
        if at.astimezone(self._zone).replace(tzinfo=None) == wall:
            return at
        day = timedelta(days=1)
        return self._change(at - day, at + day)

    def _offset(self, at: datetime) -> timedelta:
        return at.astimezone(self._zone).utcoffset() or timedelta()

    def _change(self, low: datetime, high: datetime) -> datetime:
        """Return the first second in (low, high] that has not the offset of `low`, if only one change is in it."""
        before = self._offset(low)
        while high - low > timedelta(seconds=1):
            middle = (low + (high - low) / 2).replace(microsecond=0)
            if middle <= low:
                middle = high - timedelta(seconds=1)
            low, high = (
                (middle, high) if self._offset(middle) == before else (low, middle)
            )
        return high.replace(microsecond=0)


def _croniter() -> Any:
    try:
        from croniter import croniter
    except ModuleNotFoundError:
        raise SettingsError(
            "schedules need the package croniter",
            path="schedules",
            hint="pip install 'midwatch[schedules]'",
        ) from None
    return croniter
