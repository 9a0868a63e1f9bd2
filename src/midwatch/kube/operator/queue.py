"""Names of sessions that something happened to: each is worked on by one worker at a time, and again if
something happened meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections import deque

from midwatch.kube.operator.index import Key
from midwatch.lifecycle import Clock, Progress, SystemClock

_LOOP = "queue"


class Queue:
    """`backoff` is the first wait after a failure, in seconds; it doubles up to `longest`.

    While a session waits, one has to be taken within `stuck_after` seconds of the one before.
    """

    def __init__(
        self,
        backoff: float,
        longest: float,
        chance: random.Random | None = None,
        *,
        clock: Clock | None = None,
        progress: Progress | None = None,
        stuck_after: float = 300.0,
    ) -> None:
        self._backoff, self._longest = backoff, longest
        self._chance = chance or random.Random()
        self._clock = clock or SystemClock()
        self._progress = progress or Progress(self._clock)
        self._stuck_after = stuck_after
        self._ready: deque[tuple[Key, float]] = deque()
        self._waiting: set[Key] = set()
        self._at_work: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._something = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ready)

    def working(self) -> int:
        """Sessions that are worked on now."""
        return len(self._at_work)

    def oldest(self) -> float:
        """Seconds that the first in the queue has waited; 0 if there is none."""
        return self._clock.monotonic() - self._ready[0][1] if self._ready else 0.0

    def add(self, key: Key) -> None:
        """Work on it, as soon as nobody does."""
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()
        if key in self._waiting:
            return
        self._waiting.add(key)
        if key not in self._at_work:
            self._push(key)

    def later(self, key: Key, seconds: float) -> None:
        """Work on it after so long, if nothing happens to it before."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= due:
            return
        if timer is not None:
            timer.cancel()
        self._timers[key] = loop.call_at(due, self._due, key)

    def failed(self, key: Key, at_least: float = 0.0) -> float:
        """It did not work: try again later, each time later. The seconds until then."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        wait = min(self._backoff * 2.0 ** min(failures, 20), self._longest)
        wait = max(at_least, wait * self._chance.uniform(0.7, 1.0))
        self.later(key, wait)
        return wait

    def failures(self, key: Key) -> int:
        """In a row, up to now."""
        return self._failures.get(key, 0)

    def worked(self, key: Key) -> None:
        self._failures.pop(key, None)

    async def take(self) -> Key:
        """The next one. Call `done` with it afterwards."""
        while not self._ready:
            self._something.clear()
            await self._something.wait()
        key, _ = self._ready.popleft()
        if self._ready:
            self._progress.expect(_LOOP, self._stuck_after)
        else:
            self._progress.rest(_LOOP)
        self._waiting.discard(key)
        self._at_work.add(key)
        return key

    def done(self, key: Key) -> None:
        self._at_work.discard(key)
        if key in self._waiting:
            self._push(key)

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _due(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)

    def _push(self, key: Key) -> None:
        if not self._ready:
            self._progress.expect(_LOOP, self._stuck_after)
        self._ready.append((key, self._clock.monotonic()))
        self._something.set()
