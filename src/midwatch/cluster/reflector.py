"""Reflectors list and watch: what they fill is up to date, and what they know of that is on record."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from midwatch.cluster.errors import (
    ClusterRefused,
    ClusterUnavailable,
    ResourceGone,
)
from midwatch.errors import MidwatchError, TemporaryError
from midwatch.lifecycle import Backoff, Clock, Liveness
from midwatch.logs import Log
from midwatch.model import Json

RESYNC = 300.0
"""Seconds between two full lists, which find what a broken watch did not deliver."""
_MAX_PAUSE = 15.0
"""Seconds until the next attempt after an error that was not expected."""
_SLACK = 60.0
"""Seconds beyond its own timeout after which a watch counts as stuck."""


@dataclass(frozen=True, slots=True)
class WatchTimes:
    """Durations of a reflector, in seconds.

    Attributes:
        backoff: The first wait after a failure; it doubles with each further one.
        backoff_max: The longest such wait.
        request_timeout: For each request.
        watch_timeout: After which the server ends a watch.
        silence: After which a watch without any event or bookmark is opened again.
        resync: Between two lists.
        refused_wait: The least wait after a refusal (403, 404), which lasts until somebody changes something.
        spread: The share of `watch_timeout` by which a watch may end earlier, so that not all are opened at once.
    """

    backoff: float
    backoff_max: float
    request_timeout: float
    watch_timeout: float
    silence: float
    resync: float = RESYNC
    refused_wait: float = 0.0
    spread: float = 0.0


class Watched(Protocol):
    """A collection of objects that a reflector follows."""

    async def read_list(self) -> str:
        """Read all objects, drop what is gone, and return the resource version to watch from."""
        ...

    def watch(
        self, version: str, *, seconds: int, silence: float
    ) -> AbstractAsyncContextManager[AsyncIterator[tuple[str, Json]]]:
        """Open a watch from a version, as `Connection.open_watch` does."""
        ...

    def apply(self, type_: str, body: Json) -> None:
        """Take over an object that was added, modified or deleted."""
        ...


@dataclass
class WatchStats:
    """How long each watch has been down: from the attempt to open it until the server accepts it."""

    clock: Clock
    _down: dict[str, float | None] = field(default_factory=dict)
    _ever_open: set[str] = field(default_factory=set)

    def opening(self, watch: str) -> None:
        """Record an attempt to open a watch, named `NAMESPACE/PLURAL`."""
        if self._down.get(watch) is None:
            self._down[watch] = self.clock.monotonic()

    def opened(self, watch: str) -> None:
        """Record that the server accepted a watch."""
        self._down[watch] = None
        self._ever_open.add(watch)

    def down(self) -> dict[str, float]:
        """Return the seconds that the worst watch of each resource has been down; 0 while all are open."""
        now, worst = self.clock.monotonic(), dict[str, float]()
        for watch, since in self._down.items():
            resource = watch.rpartition("/")[2]
            seconds = 0.0 if since is None else now - since
            worst[resource] = max(worst.get(resource, 0.0), seconds)
        return worst

    def watches(self) -> int:
        """Return the number of watches that were open at least once."""
        return len(self._ever_open)


class Reflector:
    """Follows a collection of objects.

    It lists, then watches from there. An interrupted watch resumes where it stopped. When the server has dropped
    that history (410), the next list finds deletions; a list also runs every `resync` seconds.

    Args:
        watched: The collection.
        name: Its name in logs and in `stats`: `NAMESPACE/PLURAL`.
        missing_hint: What to do where the server does not know the kind.

    Attributes:
        listed: Is set once the first list was read.
        failure: The error of the last attempt; None while the watch is open.
    """

    def __init__(
        self,
        watched: Watched,
        name: str,
        times: WatchTimes,
        *,
        stats: WatchStats,
        progress: Liveness,
        clock: Clock,
        log: Log,
        missing_hint: str | None = None,
    ) -> None:
        self._watched = watched
        self.name = name
        self._times = times
        self._stats = stats
        self._progress = progress
        self._clock = clock
        self._log = log
        self._missing_hint = missing_hint
        self.listed = asyncio.Event()
        self.failure: MidwatchError | None = None
        self._version: str | None = None
        self._list_at = 0.0
        self._first_wait = min(1.0, times.backoff)
        self._backoff = Backoff(times.backoff, times.backoff_max)
        self._logged: str | None = None
        self._last_sign = self._lost_since = clock.monotonic()
        self._open = False

    def lost_for(self) -> float:
        """Return the seconds for which nothing could be noticed: 0 while the watch is open, infinite without a list to go on from."""
        if self._version is None:
            return math.inf
        return 0.0 if self._open else self._clock.monotonic() - self._lost_since

    async def run(self) -> None:
        """List and watch until cancelled."""
        while True:
            pause = self._first_wait
            try:
                await self._list_and_watch()
                self._backoff.reset()
            except MidwatchError as error:
                pause = self._failed(error)
            except (
                Exception
            ):  # the outermost guard: one bad object must not end the watch
                self._log.exception("a watch failed", watch=self.name)
                self._version, pause = None, _MAX_PAUSE
                self.failure = TemporaryError("an object could not be read")
            await self._clock.sleep(pause)

    async def _list_and_watch(self) -> None:
        self._report_alive()
        if self._version is None or self._clock.monotonic() >= self._list_at:
            await self._list()
            self._report_alive()
        assert self._version is not None
        left = self._list_at - self._clock.monotonic()
        times = self._times
        shorter = random.uniform(0, times.spread)
        seconds = max(1, math.ceil(min(times.watch_timeout * (1 - shorter), left)))
        # The server ends the watch in time unless it is down.
        with contextlib.suppress(TimeoutError):
            async with (
                asyncio.timeout(seconds + times.request_timeout),
                self._watched.watch(
                    self._version, seconds=seconds, silence=times.silence
                ) as events,
            ):
                self._opened()
                try:
                    async for type_, body in events:
                        self._apply(type_, body)
                finally:
                    self._closed()

    async def _list(self) -> None:
        self._version = await self._watched.read_list()
        self._list_at = self._clock.monotonic() + self._times.resync
        self._lost_since = self._clock.monotonic()
        self.listed.set()

    def _apply(self, type_: str, body: Json) -> None:
        self._backoff.reset()
        self._last_sign = self._clock.monotonic()
        if type_ != "BOOKMARK":
            self._watched.apply(type_, body)
        self._version = body["metadata"]["resourceVersion"]

    def _report_alive(self) -> None:
        """Report to the liveness probe, and until when the next report is due."""
        times = self._times
        within = times.watch_timeout + times.request_timeout + times.backoff_max
        self._progress.expect(f"watch {self.name}", within + _SLACK)
        self._stats.opening(self.name)

    def _opened(self) -> None:
        self._stats.opened(self.name)
        self._open, self.failure = True, None
        self._last_sign = self._clock.monotonic()
        if self._logged is not None:
            self._log.info("watching again", watch=self.name)
            self._logged = None

    def _closed(self) -> None:
        """Record since when nothing is noticed: a watch that was silent may have been dead for that long."""
        now = self._clock.monotonic()
        silent = now - self._last_sign >= self._times.silence
        self._open, self._lost_since = False, self._last_sign if silent else now

    def _failed(self, error: MidwatchError) -> float:
        """Return the seconds until the next attempt. A repeated failure is logged once."""
        self.failure = error
        retry_after = 0.0
        if isinstance(error, ClusterUnavailable):
            retry_after = error.retry_after or 0.0
        if not isinstance(error, ClusterUnavailable) or error.status == 410:
            self._version = None
        wait = min(max(retry_after, self._backoff.next()), self._times.backoff_max)
        if is_refused(error):
            wait = max(wait, self._times.refused_wait)
        if error.message != self._logged:
            missing = isinstance(error, ResourceGone) and self._missing_hint
            hint = missing or error.hint
            self._log.warning(
                "cannot watch", watch=self.name, error=error.message, hint=hint
            )
            self._logged = error.message
        return wait


def is_refused(error: MidwatchError | None) -> bool:
    """Return whether a kind cannot be read until somebody changes something: a role (403), or what is installed (404)."""
    if isinstance(error, ClusterRefused):
        return error.status == 403
    return isinstance(error, ResourceGone)
