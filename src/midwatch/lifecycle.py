"""The life cycle of a daemon: time, the stop event, signals, tasks, back-off, liveness."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, Protocol, TypeVar

from midwatch._moved import renamed

T = TypeVar("T")


LARGE_TEXT = 50_000
"""Characters of text that are handled on the event loop, within a few milliseconds."""


async def off_loop(size: int, work: Callable[..., T], *args: Any) -> T:
    """Return `work(*args)`. A thread does it if that handles more than `LARGE_TEXT` characters of text.

    Args:
        size: How many characters that is, about.
        work: Pure, or at least nothing that the event loop changes meanwhile.
        args: Its arguments.
    """
    if size <= LARGE_TEXT:
        return work(*args)
    return await asyncio.to_thread(work, *args)


_YOUNG = 20_000
"""New objects from which on the garbage collector looks at them. With Python's own 700 that takes a third of a large cycle."""


def collect_rarely() -> None:
    """Turn the garbage collector on for a daemon that has started.

    What is there now stays until the end: to look through it again and again would stop the loop for 0.1 s each time.
    """
    gc.freeze()
    gc.set_threshold(_YOUNG)
    gc.enable()


def collect_from_now_on() -> None:
    """Do the same with what a daemon knows once it has seen everything, if it collects rarely at all."""
    if gc.get_freeze_count():
        gc.collect(0)
        gc.freeze()


class Clock(Protocol):
    """The source of time. Tests inject one that they set themselves."""

    def now(self) -> datetime:
        """Return the wall-clock time, aware, in UTC. It may be stepped: never measure with it."""
        ...

    def monotonic(self) -> float:
        """Return seconds since an arbitrary point; they never decrease."""
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


class StopEvent:
    """The one stop event of a process; every wait of a daemon ends when it is set."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._event = asyncio.Event()
        self._clock = clock or SystemClock()
        self.reason = ""

    def __bool__(self) -> bool:
        return self._event.is_set()

    def set(self, reason: str = "") -> None:
        """Request the stop. The first reason is kept."""
        self.reason = self.reason or reason
        self._event.set()

    async def wait(self) -> None:
        """Wait until the stop."""
        await self._event.wait()

    async def pause(self, seconds: float) -> bool:
        """Wait for `seconds`, or until the stop. Return whether it is time to stop."""
        if self or seconds <= 0:
            await asyncio.sleep(0)
            return bool(self)
        await first(self._clock.sleep(seconds), self._event.wait())
        return bool(self)


@contextlib.contextmanager
def stop_on_signals(
    stop: StopEvent, also: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Set `stop` and call `also` on SIGTERM and SIGINT while the block runs.

    Nothing happens where the platform does not let an event loop handle signals.
    """

    def received(number: signal.Signals) -> None:
        stop.set(number.name)
        also()

    loop = asyncio.get_running_loop()
    installed = []
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, received, number)
            installed.append(number)
        except (NotImplementedError, RuntimeError, ValueError):
            pass
    try:
        yield
    finally:
        for number in installed:
            loop.remove_signal_handler(number)


# ------------------------------------------------------------------ tasks


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until each has ended, however it ends."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def first(
    work: Awaitable[T], *others: Awaitable[object], grace: float = 0.0
) -> T | None:
    """Return the result of `work`, or None if one of `others` ends before it.

    Whatever is still running at the end is cancelled, and has ended when this returns.

    Args:
        work: Whose result is returned. An error that it raises is raised here.
        others: What ends the wait, such as `stop.wait()` or `clock.sleep(30)`.
        grace: Seconds that `work` gets to end by itself after one of `others` has ended.
    """
    task = asyncio.ensure_future(work)
    rest = [asyncio.ensure_future(other) for other in others]
    try:
        await asyncio.wait({task, *rest}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done() and grace > 0:
            await asyncio.wait({task}, timeout=grace)
        return task.result() if task.done() else None
    finally:
        await cancel(task, *rest)


@contextlib.asynccontextmanager
async def background(*work: Coroutine[Any, Any, object]) -> AsyncIterator[None]:
    """Run coroutines while the block runs; they are cancelled and have ended when it ends.

    An error that one of them raises is dropped: each handles its own.
    """
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        await cancel(*tasks)


_loaded: set[str] = set()


async def load_modules(*names: str) -> None:
    """Import modules, on a thread where that is still to do: a large one takes longer than the event loop may wait."""
    for name in names:
        if name not in _loaded:
            await asyncio.to_thread(import_module, name)
            _loaded.add(name)


class Backoff:
    """Waits that double from `start` up to `limit`, in seconds; `reset` begins again at `start`."""

    def __init__(self, start: float, limit: float) -> None:
        self._start, self._limit = start, limit
        self._failures = 0

    def next(self) -> float:
        """Return the seconds to wait after one more failure."""
        wait = min(self._start * 2.0 ** min(self._failures, 32), self._limit)
        self._failures += 1
        return wait

    def reset(self) -> None:
        """Forget the failures, after a success."""
        self._failures = 0


# ------------------------------------------------------------------ the process

Alive = Callable[[float], None]
"""Report that a loop runs, with the most seconds until its next report."""


class Liveness:
    """What a liveness probe asks: are the loops of this process still running?

    A service that is down does not count: a loop that retries is running, and a restart of the process
    would not bring the service back.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._due: dict[str, float] = {}

    def expect(self, loop: str, within: float) -> None:
        """Record that the loop runs and will report again `within` this number of seconds."""
        self._due[loop] = self._clock.monotonic() + within

    def expect_nothing(self, loop: str) -> None:
        """Record that the loop waits for work, for as long as that takes."""
        self._due.pop(loop, None)

    def late(self) -> dict[str, float]:
        """Return the loops that are overdue, and by how many seconds; empty if all is well."""
        now = self._clock.monotonic()
        return {loop: now - due for loop, due in self._due.items() if due < now}


_SET_DUMPABLE = 4  # PR_SET_DUMPABLE, see prctl(2)


def set_nondumpable() -> bool:
    """Close this process's environment and memory to all but root. Return whether that was possible.

    Claude's Bash runs as the same user, and `/proc/PID/environ` holds the keys that the runner was started
    with. This covers this process alone: a program that it starts is dumpable again (execve(2)), so no secret
    may be in a child's environment while Claude works. Linux only.
    """
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).prctl(_SET_DUMPABLE, 0, 0, 0, 0) == 0)


def __getattr__(name: str) -> object:
    return renamed(__name__, name)
