"""How long this process stood still. What a poll found meanwhile is not the subject's doing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

BEAT = 0.1
"""Seconds between two beats. Everything that the loop does waits as long as a beat is late."""
_USUAL = 0.02  # seconds that a beat is late on a machine that is well
_NOTICEABLE = 1.0  # seconds that can change a result, or a tenth of a shorter timeout
_LONG = 5.0  # seconds after which connections are lost and a network is not up yet
_SETTLES = 30.0  # seconds at most until all is as before
MOST_ATTEMPTS = 3
"""How often a poll is made in one cycle while the process stands still during each."""


@dataclass(frozen=True, slots=True)
class Mark:
    """The seconds that the process had stood still at the start of a poll, and whether it had just done so."""

    seconds: float
    settling: bool


class Standstill:
    """Counts the seconds in which this process could not answer anything.

    It was stopped, it had no processor time, its event loop was blocked (then a timer, the beat, is late), the
    machine was suspended (then boot time went on, and monotonic time did not), or it is a virtual one that
    was paused (then its wall clock is stepped forward afterwards).

    Args:
        monotonic: Seconds without those of a suspended machine.
        boottime: Seconds with those of a suspended machine.
        wall: Seconds of the wall clock.
    """

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        boottime: Callable[[], float] | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._monotonic = monotonic
        self._boottime = boottime or _boottime
        self._wall = wall
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._late = self._suspended = 0.0
        self._ahead = self._boottime() - monotonic()
        self._wall_ahead = wall() - self._boottime()
        self._settled = monotonic()

    def start(self) -> None:
        """Beat in the running event loop; do nothing where that happens already."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self.stop()
            self._loop = loop
            self._beat_later(loop)

    def stop(self) -> None:
        """Stop the beat. The seconds so far stay."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop = self._timer = None

    def late(self) -> float:
        """Return the seconds of monotonic time in which the process did not run, since the first start."""
        self._count()
        return self._late

    def suspended(self) -> float:
        """Return the seconds for which the machine was suspended, since the first start: monotonic time has none of them."""
        self._count()
        return self._suspended

    def mark(self) -> Mark:
        """Return the mark of this moment, for `spoils`."""
        self._count()
        return Mark(self._late + self._suspended, self.settling() > 0)

    def since(self, mark: Mark) -> float:
        """Return the seconds for which the process stood still since the mark, suspended or not."""
        self._count()
        return self._late + self._suspended - mark.seconds

    def settling(self) -> float:
        """Return the seconds until the network is likely to be as it was before a long standstill."""
        self._count()
        return max(0.0, self._settled - self._monotonic())

    def spoils(self, mark: Mark, timeout: float, *, bad: bool) -> bool:
        """Return whether a standstill since the mark, or just before it, makes the result of a poll unknown.

        A result that is bad may be one of the standstill: a timeout that ran out, a slow answer, a network
        that is not up again. A good one is as good as ever, unless it is old.

        Args:
            mark: From the start of the poll.
            timeout: Seconds that the poll may take.
            bad: Whether the poll failed, or found something new that is broken.
        """
        stood = self.since(mark)
        if stood >= max(timeout / 2, _NOTICEABLE):
            return True
        return bad and (mark.settling or stood >= min(_NOTICEABLE, timeout / 10))

    def reason(self, mark: Mark) -> str:
        """Return the line that says why a poll is unknown."""
        return (
            f"Midwatch itself stood still for {self.since(mark):.1f} s of the observation, or just before: it was "
            "stopped or suspended, got too little processor time, or a plug-in blocked it"
        )

    def _count(self) -> None:
        """Add what has passed since the last beat."""
        now, boottime = self._monotonic(), self._boottime()
        gap = max(0.0, boottime - now - self._ahead)
        stepped = self._wall() - boottime - self._wall_ahead
        if stepped >= _LONG:
            gap += stepped
        self._ahead = boottime - now
        self._wall_ahead += stepped
        self._suspended += gap
        overdue = now - self._due
        if self._loop is not None and overdue > 0:
            self._late += max(0.0, overdue - _USUAL)
            self._due = now
            gap += overdue
        if gap >= _LONG:
            self._settled = now + min(gap, _SETTLES)

    def _beat_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = self._monotonic() + BEAT
        self._timer = loop.call_later(BEAT, self._beat, loop)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._count()
        self._beat_later(loop)


def _boottime() -> float:
    """Return the seconds of the clock that goes on while the machine is suspended.

    On macOS that is CLOCK_MONOTONIC, which `time.monotonic` does not read.
    """
    clock = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
    return time.monotonic() if clock is None else time.clock_gettime(clock)
