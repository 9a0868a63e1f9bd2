"""The pod's folders and their copy behind the content proxy: fetched first, kept in step, saved last."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any, Protocol

from ...content.errors import ContentUnavailable
from ...errors import MidwatchError, PermanentError, TemporaryError
from ...lifecycle import Clock, Stop
from ..statuses import Condition
from .hints import hint_for

CONDITION = "WorkspaceSaved"
FETCH_FOR = 90.0
"""Seconds of tries to reach the proxy before the session is given up: it must not begin with nothing."""
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 10.0
_LOOK = 5.0  # seconds between two looks at how the sync fares
_WIND_UP = 5.0  # seconds that a push under way gets before the last one


class Sync(Protocol):
    """What is needed of `content.sync.WorkspaceSync`."""

    last_error: MidwatchError | None
    last_success: datetime | None

    async def pull(self) -> Any: ...
    async def pull_from(self, folder: str, /) -> Any: ...
    async def push(self, *, last: bool = False) -> Any: ...
    async def run(self, stop: Stop, /) -> None: ...
    def nudge(self) -> None: ...


class Keeper:
    """`fetch` at first, `beside` the session, `save` at the end. Without a sync all of it is nothing.

    `tell` gets the condition whenever it changes. What was never fetched is never saved: an empty
    folder must not go over a full one.
    """

    def __init__(
        self, sync: Sync | None, clock: Clock, tell: Callable[[Condition], None]
    ) -> None:
        self._sync = sync
        self._clock = clock
        self._tell = tell
        self._told: Condition | None = None
        self._fetched = False

    @property
    def present(self) -> bool:
        return self._sync is not None

    async def fetch(self) -> None:
        """Bring the session's folder here. Raises ContentUnavailable after tries, and what is permanent."""
        if self._sync is None:
            why = "there is no content proxy: it lasts as long as its volume"
            return self._say(Condition(CONDITION, "Unknown", "OnVolume", why))
        await self._tried(self._sync.pull)
        self._fetched = True

    async def fetch_from(self, folder: str) -> None:
        """Bring another session's folder here, as ours. Raises as `fetch`."""
        assert self._sync is not None
        sync, self._fetched = self._sync, False
        await self._tried(lambda: sync.pull_from(folder))
        self._fetched = True

    @contextlib.asynccontextmanager
    async def beside(self) -> AsyncIterator[None]:
        """While inside, changes travel both ways."""
        if self._sync is None:
            yield
            return
        stop = Stop(self._clock)
        syncing = asyncio.create_task(self._sync.run(stop), name="sync")
        looking = asyncio.create_task(self._look(syncing), name="look at the sync")
        try:
            yield
        finally:
            stop.set("the session ends")
            looking.cancel()
            await asyncio.wait({syncing}, timeout=_WIND_UP)
            syncing.cancel()
            await asyncio.gather(syncing, looking, return_exceptions=True)

    def nudge(self) -> None:
        """Something worth saving has happened."""
        if self._sync is not None and self._fetched:
            self._sync.nudge()

    async def save(self, within: float) -> None:
        """Push what there is, for so many seconds; how it went is in the condition."""
        if self._sync is None or not self._fetched:
            return
        sync = self._sync
        try:
            async with asyncio.timeout(within):
                await self._tried(lambda: sync.push(last=True), for_seconds=within)
        except (TimeoutError, asyncio.CancelledError) as error:
            self._say(_not_saved(ContentUnavailable("there was no time to save all")))
            if isinstance(error, asyncio.CancelledError):
                raise
        except MidwatchError as error:
            self._say(_not_saved(error))
        else:
            self._say(Condition(CONDITION, "True", "Saved"))

    async def _tried(
        self, work: Callable[[], Any], for_seconds: float = FETCH_FOR
    ) -> None:
        """Do it, again and again while the proxy is away."""
        deadline, wait = self._clock.monotonic() + for_seconds, _FIRST_WAIT
        while True:
            try:
                await work()
                return
            except TemporaryError as error:
                pause = max(wait, error.retry_after or 0.0)
                if self._clock.monotonic() + pause > deadline:
                    raise
                self._say(_not_saved(error))
                wait = min(wait * 2, _LONGEST_WAIT)
                await self._clock.sleep(pause)

    async def _look(self, syncing: asyncio.Task[None]) -> None:
        """Tell how the sync fares; one that has given up shows as well."""
        assert self._sync is not None
        while True:
            error = self._sync.last_error
            if syncing.done() and not syncing.cancelled():
                raised = syncing.exception()
                error = raised if isinstance(raised, MidwatchError) else error
            if error is not None:
                self._say(_not_saved(error))
            elif self._sync.last_success is not None:
                self._say(Condition(CONDITION, "True", "Saved"))
            await self._clock.sleep(_LOOK)

    def _say(self, condition: Condition) -> None:
        if condition != self._told:
            self._told = condition
            self._tell(condition)


def _not_saved(error: MidwatchError) -> Condition:
    kind = type(error).__name__
    again = "" if isinstance(error, PermanentError) else "; it is tried again"
    hint = hint_for(kind, error.hint)
    return Condition(CONDITION, "False", kind, f"{error.message} ({hint}{again})")
