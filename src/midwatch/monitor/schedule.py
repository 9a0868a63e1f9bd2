"""When each subject is observed: once in each interval, the monitor's or its own, and not all of them at the same time. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping

_PACE = 0.02
"""Seconds between the starts of two observations, if the interval has room for that."""
_LATE = 5
"""Starts that may follow one another at once after a delay."""


class Schedule:
    """The times at which subjects are due, in monotonic seconds.

    Args:
        interval: Seconds between two observations of a subject.
        own: Those of subjects that have an interval of their own, by name.
    """

    def __init__(self, interval: float, own: Mapping[str, float] = {}) -> None:
        self._shortest = min([interval, *own.values()])
        self._interval = interval
        self._own = own
        self._due: dict[str, float] = {}
        self._queue: list[tuple[float, str]] = []
        self._not_before = 0.0

    def keep(self, names: Collection[str], now: float) -> list[str]:
        """Observe these subjects from now on: one that is new is due at once. Return those that are left out now."""
        gone = [name for name in self._due if name not in names]
        for name in gone:
            del self._due[name]
        for name in sorted(set(names) - self._due.keys()):
            self._put(name, now)
        return gone

    def take(self, now: float) -> str | None:
        """Return a subject that is due, and plan its next observation; None if it is not time for one."""
        if self.wait(now) > 0:
            return None
        _, name = heapq.heappop(self._queue)
        self._put(name, now + self._own.get(name, self._interval))
        pace = min(_PACE, self._shortest / (len(self._due) + 1))
        # What starts late does not delay the others, unless by more than a few can make up for.
        self._not_before = max(self._not_before, now - _LATE * pace) + pace
        return name

    def wait(self, now: float) -> float:
        """Return the seconds until a subject may be due; infinity without subjects."""
        while self._queue and self._due.get(self._queue[0][1]) != self._queue[0][0]:
            heapq.heappop(
                self._queue
            )  # it is not observed any more, or at another time
        if not self._queue:
            return float("inf")
        return max(0.0, self._queue[0][0] - now, self._not_before - now)

    def _put(self, name: str, due: float) -> None:
        self._due[name] = due
        heapq.heappush(self._queue, (due, name))
