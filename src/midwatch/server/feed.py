"""The live feed of a process: one reader of the store, any number of subscribers."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator

from midwatch.errors import MidwatchError, TemporaryError
from midwatch.lifecycle import Backoff, Clock, StopEvent, SystemClock, first
from midwatch.logs import Log, quiet_log
from midwatch.store.on_call import Change, Cursor
from midwatch.store.protocol import Store

_INTERVAL = 0.5
_GATHER = 0.02
"""Seconds between a change of this process and the read for it: changes in a burst are read together."""
_PAGE = 500
_RECENT = 1000


class ChangeFeed:
    """Follows the changes of all tickets and hands them to subscribers, each in order and without a gap.

    What was read last is kept once for all subscribers. One that is slower, or begins further back, reads from the store
    until it has caught up; so a subscriber has no queue that could grow or overflow.

    Args:
        store: The store. Changes that this process makes in it are seen at once.
        log: Gets a line when the store cannot be read, and when it can again.
        interval: Seconds between two looks for changes of other processes.
        clock: The source of time.
    """

    def __init__(
        self,
        store: Store,
        log: Log | None = None,
        *,
        interval: float = _INTERVAL,
        clock: Clock | None = None,
    ) -> None:
        self._store = store
        self._log = log or quiet_log()
        self._interval = interval
        self._clock = clock or SystemClock()
        self._poked = asyncio.Event()
        self._arrived = asyncio.Event()
        self._ready = asyncio.Event()
        self._ended = False
        # All changes behind `_start` up to `_end`.
        self._recent: list[Change] = []
        self._start = self._end = Cursor(0)
        # Raised when the database was replaced by another one: cursors of the former mean nothing in it.
        self._database = 0
        store.on_change(self.poke)

    @property
    def end(self) -> Cursor:
        """The last place that was read: what a new subscriber begins behind."""
        return self._end

    def poke(self) -> None:
        """Look for changes now."""
        self._poked.set()

    async def run(self, stop: StopEvent) -> None:
        """Read until `stop` is set; then all subscriptions end. Errors of the store are logged, never raised."""
        backoff, failing = Backoff(self._interval, 30.0), False
        try:
            while not stop:
                self._poked.clear()
                wait = self._interval
                try:
                    await self._read()
                    if failing:
                        self._log.info("changes are read again")
                    failing = False
                    backoff.reset()
                except MidwatchError as error:
                    if not failing:
                        self._log.warning("changes not read", error=error.one_line())
                    failing, wait = True, backoff.next()
                await first(self._clock.sleep(wait), stop.wait(), self._poked.wait())
                await stop.pause(_GATHER)
        finally:
            self._ended = True
            self._ready.set()
            self._wake()

    async def subscribe(self, after: Cursor | None = None) -> AsyncIterator[Change]:
        """Yield changes until the feed ends. `run` has to run.

        Args:
            after: The cursor of the last change that the subscriber had; None for what comes from now on.

        Raises:
            PermanentError: The store cannot be read. An outage is waited for.
        """
        await self._ready.wait()
        cursor, database = self._end if after is None else after, self._database
        while not self._ended:
            arrived = self._arrived
            if database != self._database:
                cursor, database = Cursor(0), self._database
            found = await self._behind(cursor)
            for change in found:
                cursor = change.cursor
                yield change
            if not found:
                await arrived.wait()

    async def _read(self) -> None:
        if not self._ready.is_set():
            self._start = self._end = await self._store.last_cursor()
            self._ready.set()
        while found := await self._store.changes(self._end, _PAGE):
            if found[0].cursor <= self._end:
                self._database += 1
                self._recent, self._start = [], Cursor(0)
            self._recent += found
            self._end = found[-1].cursor
            if len(self._recent) > _RECENT:
                self._start = self._recent[-_RECENT - 1].cursor
                del self._recent[:-_RECENT]
            self._wake()

    def _wake(self) -> None:
        arrived, self._arrived = self._arrived, asyncio.Event()
        arrived.set()

    async def _behind(self, cursor: Cursor) -> list[Change]:
        """Return the next changes behind a place; an empty list if there is none yet."""
        while not self._ended:
            if self._start <= cursor <= self._end:
                place = bisect_right(self._recent, cursor, key=lambda one: one.cursor)
                return self._recent[place:]
            try:
                return await self._store.changes(cursor, _PAGE)
            except TemporaryError:
                await self._clock.sleep(self._interval)
        return []
