"""Counts of lines by when they were written: those of a shape within a window, and the rate of a source. Pure.

A moment is a short time, and has a number: number n begins n times its `width` (seconds) after 1970.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from midwatch.model import Json
from midwatch.subjects.logs.line_times import shares
from midwatch.subjects.series import Series

_WINDOWS = 36  # windows of the rate that are compared with
_ENOUGH = 12  # windows without which no rate is judged
_MOST_OPEN = 3000  # windows that are counted at the same time
_STANDS_OUT = 6.0  # deviations above the median
_SIGMA = 1.4826  # of a normal distribution, in median absolute deviations

Steps = dict[int, float]
"""How many lines were written in each moment."""

# ------------------------------------------------------------------ the lines of a shape


def merged(series: Series, new: Mapping[int, float], now: float, width: float) -> Steps:
    """Return the steps of a series and new ones; what is later than now (the clock was set back) is now."""
    newest = int(now // width)
    found: Steps = {}
    for (_, before), (at, count) in zip(series, series[1:]):
        number = min(newest, int(at // width))
        found[number] = found.get(number, 0.0) + count - before
    for number, count in new.items():
        number = min(newest, number)
        found[number] = found.get(number, 0.0) + count
    return found


def fullest(
    steps: Steps, new: Mapping[int, float], now: float, window: float, width: float
) -> tuple[float, float]:
    """Return how many lines the fullest window has, and when it ended: that until now, or one that ended with a new step."""
    start = now - window
    most, until = 0.0, now
    for number, count in steps.items():
        inside = (number + 1) * width - start  # a part of the moment in which it begins
        most += count * min(1.0, max(0.0, inside / width))
    size = round(window / width)
    for last in new:
        end = (last + 1) * width
        if end > now:  # that until now has all of it
            continue
        count = sum(steps.get(last - back, 0.0) for back in range(size))
        if count > most:
            most, until = count, end
    return most, until


def series_of(series: Series, steps: Steps, start: float, width: float) -> Series:
    """Return the series of steps that reach beyond a time; those before are its first point."""
    total = series[0][1] if series else 0.0
    found: Series = []
    for number in sorted(steps):
        if (number + 1) * width <= start:
            total += steps[number]
            continue
        if not found:
            found.append([number * width, round(total, 3)])
        total += steps[number]
        found.append([(number + 0.5) * width, round(total, 3)])
    return found or [[start, round(total, 3)]]


# ------------------------------------------------------------------ the rate of a source


class Compared(NamedTuple):
    """A window beside those before it.

    Attributes:
        lines: How many it has.
        usual: The median of those before it.
        deviation: Their deviation, at least that of a count that varies by chance.
        end: When it ended, in epoch seconds.
    """

    lines: float
    usual: float
    deviation: float
    end: float

    @property
    def times(self) -> float:
        return self.lines / max(self.usual, 1.0)

    @property
    def stands_out(self) -> bool:
        return self.lines - self.usual > _STANDS_OUT * self.deviation


@dataclass(slots=True)
class Rate:
    """How many lines there are in windows of the same length.

    Attributes:
        since: When the first window that is not closed began, in epoch seconds.
        window: Their length, in seconds.
        open: The lines of that window, and of those after it.
        windows: The lines of the windows before, oldest first.
        latest: The latest closed window, None while there are too few before it.
    """

    since: float
    window: float
    open: list[float] = field(default_factory=list)
    windows: list[float] = field(default_factory=list)
    latest: Compared | None = None

    @classmethod
    def of(cls, raw: Any, since: float, window: float) -> Rate:
        """Return it from stored state; a new one for anything else."""
        try:
            began, latest = float(raw["since"]), raw["latest"]
            found = cls(
                min(began, since),
                window,
                [float(one) for one in raw["open"]][:_MOST_OPEN],
                [float(one) for one in raw["windows"]][-_WINDOWS:],
                None if latest is None else Compared(*map(float, latest)),
            )
        except (KeyError, TypeError, ValueError):
            return cls(since, window)
        return found

    def to_state(self) -> Json:
        return {
            "since": self.since,
            "open": [round(one, 1) for one in self.open],
            "windows": [round(one, 1) for one in self.windows],
            "latest": None if self.latest is None else list(self.latest),
        }

    def add(self, at: float, count: float) -> None:
        """Count lines that were written at a time. What came after its window was closed counts in none, but for little."""
        number = math.floor((at - self.since) / self.window)
        if number >= -1:
            self._add(number, count)

    def spread(self, start: float, end: float, count: float) -> None:
        """Count lines that were written at some time from `start` to `end`."""
        if count:
            for number, share in shares(start, end, self.window, self.since).items():
                self._add(number, count * share)

    def _add(self, number: int, count: float) -> None:
        number = min(max(0, number), _MOST_OPEN - 1)
        self.open += [0.0] * (number + 1 - len(self.open))
        self.open[number] += count

    def close(self, now: float) -> list[Compared]:
        """Return the windows that are over, beside those before each of them."""
        found = []
        for _ in range(int((now - self.since) / self.window)):
            count = self.open.pop(0) if self.open else 0.0
            self.since += self.window
            if len(self.windows) >= _ENOUGH:
                self.latest = self._compared(count)
                found.append(self.latest)
            self.windows = [*self.windows, count][-_WINDOWS:]
        return found

    def _compared(self, count: float) -> Compared:
        usual = statistics.median(self.windows)
        away = statistics.median(abs(one - usual) for one in self.windows)
        deviation = max(_SIGMA * away, math.sqrt(usual), 1.0)
        return Compared(count, usual, deviation, self.since)
