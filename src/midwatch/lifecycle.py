"""Stopping well: one stop event, signals, waits that end at once, injected time."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where time comes from. Tests inject one that they move themselves."""

    def now(self) -> datetime:
        """The wall clock, aware, in UTC. It may be stepped; never measure with it."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary point; never goes back."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Stop:
    """The one stop event of a process; every wait of a daemon ends when it is set."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._event = asyncio.Event()
        self._clock = clock or SystemClock()
        self.reason = ""

    def __bool__(self) -> bool:
        return self._event.is_set()

    def set(self, reason: str = "") -> None:
        self.reason = self.reason or reason
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()

    async def pause(self, seconds: float) -> bool:
        """Wait so long, or until the stop; true if it is time to stop."""
        if self or seconds <= 0:
            await asyncio.sleep(0)
            return bool(self)
        await wait_for(self._event, seconds, self._clock)
        return bool(self)


async def wait_for(event: asyncio.Event, seconds: float, clock: Clock) -> None:
    """Until the event is set, or so many seconds are over."""
    waits = [
        asyncio.ensure_future(event.wait()),
        asyncio.ensure_future(clock.sleep(seconds)),
    ]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waits:
            task.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


@contextlib.contextmanager
def signals_set(stop: Stop, also: Callable[[], None] = lambda: None) -> Iterator[None]:
    """While inside, SIGTERM and SIGINT set `stop` and call `also` (where the platform lets a
    loop handle them)."""

    def told(number: signal.Signals) -> None:
        stop.set(number.name)
        also()

    loop = asyncio.get_running_loop()
    installed = []
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, told, number)
            installed.append(number)
        except (NotImplementedError, RuntimeError, ValueError):
            pass
    try:
        yield
    finally:
        for number in installed:
            loop.remove_signal_handler(number)


# ------------------------------------------------------------ progress
# Whether the loops of a process still come round: what a liveness probe has to know, and no more.
#
# A service that is away does not count. A loop that tries it again and again comes round; to start the
# process anew would not bring the service back.

Alive = Callable[[float], None]
"""A sign of life, with the seconds until the next one at the latest."""


class Progress:
    """A dead man's switch for each loop: it says by when it will be heard of again."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._due: dict[str, float] = {}

    def expect(self, loop: str, within: float) -> None:
        """The loop lives; the next word from it comes within so many seconds."""
        self._due[loop] = self._clock.monotonic() + within

    def rest(self, loop: str) -> None:
        """The loop waits for work, for as long as that takes."""
        self._due.pop(loop, None)

    def late(self) -> dict[str, float]:
        """Loops that should have been heard of, and for how many seconds; empty if all is well."""
        now = self._clock.monotonic()
        return {loop: now - due for loop, due in self._due.items() if due < now}


# ------------------------------------------------------------ shielding
# Keeping what this process knows from other processes of its user.

_SET_DUMPABLE = 4  # PR_SET_DUMPABLE, see prctl(2)


def shield_process() -> bool:
    """Close this process's environment and memory to all but root; whether that was possible.

    Claude's Bash runs as the same user, and `/proc/PID/environ` has the keys that the runner was started
    with. It is for this process alone: a program that it starts is open again (execve(2) says so), so
    that no secret may be in a child's environment while Claude works. Linux only.
    """
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).prctl(_SET_DUMPABLE, 0, 0, 0, 0) == 0)
