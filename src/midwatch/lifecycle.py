"""Stopping well: one stop event, signals, waits that end at once, injected time."""

from __future__ import annotations

import asyncio
import contextlib
import signal
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
