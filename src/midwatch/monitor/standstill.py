"""How long this process stood still. What a poll found meanwhile is not the subject's doing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

BEAT = 0.1
"""Seconds between two beats. Everything that the loop does waits as long as a beat is late."""
_USUAL = 0.02  # seconds that a beat is late on a machine that is well
_NOTICEABLE = 1.0  # seconds that can change a result, or a tenth of a shorter timeout
MOST_ATTEMPTS = 3
"""How often a poll is made in one cycle while the process stands still during each."""


class Standstill:
    """Counts the seconds in which this process could not answer anything.

    It was stopped, it had no processor time, its event loop was blocked (then a timer, the beat, is late), or
    the machine was suspended (then boot time went on, and monotonic time did not).

    Args:
        monotonic: Seconds without those of a suspended machine.
        boottime: Seconds with those of a suspended machine.
    """

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        boottime: Callable[[], float] | None = None,
    ) -> None:
        self._monotonic = monotonic
        self._boottime = boottime or _boottime
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._late = 0.0
        self._ahead = self._boottime() - monotonic()

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
        return self._late + self._overdue()

    def seconds(self) -> float:
        """Return `late`, and the seconds for which the machine was suspended."""
        suspended = self._boottime() - self._monotonic() - self._ahead
        return self.late() + max(0.0, suspended)

    def _overdue(self) -> float:
        if self._loop is None:
            return 0.0
        return max(0.0, self._monotonic() - self._due - _USUAL)

    def _beat_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = self._monotonic() + BEAT
        self._timer = loop.call_later(BEAT, self._beat, loop)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._late += self._overdue()
        self._beat_later(loop)


def _boottime() -> float:
    """Return the seconds of the clock that goes on while the machine is suspended.

    On macOS that is CLOCK_MONOTONIC, which `time.monotonic` does not read.
    """
    clock = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def spoils(stood: float, timeout: float, *, bad: bool) -> bool:
    """Return whether a standstill makes the result of a poll unknown.

    A result that is bad may be one of the standstill: a timeout that ran out, a slow answer. A good one is as
    good as before, unless it is old.

    Args:
        stood: Seconds that the process stood still during the poll.
        timeout: Seconds that the poll may take.
        bad: Whether the poll failed, or found something new that is broken.
    """
    if stood >= max(timeout / 2, _NOTICEABLE):
        return True
    return bad and stood >= min(_NOTICEABLE, timeout / 10)


def reason(stood: float) -> str:
    """Return the line that says why a poll is unknown."""
    return (
        f"Midwatch itself stood still for {stood:.1f} s of the observation: it was stopped or suspended, "
        "got too little processor time, or a plug-in blocked it"
    )
