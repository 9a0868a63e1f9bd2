"""The pod's folders and their copy behind the content proxy: fetched first, kept in step, saved last."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any, Protocol

from midwatch.content.errors import ContentUnavailable, Superseded
from midwatch.errors import MidwatchError, PermanentError, TemporaryError
from midwatch.kube.pod.hints import hint_for
from midwatch.kube.pod.saved import CONDITION, Saved
from midwatch.kube.statuses import Condition
from midwatch.lifecycle import Clock, Stop

FETCH_FOR = 900.0
"""Seconds of tries to reach the proxy before the session is given up, since it must not begin with nothing. A node that is lost
often takes the proxy along; its volume comes to another node after some 6 to 10 minutes."""
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 10.0
_LOOK = 5.0  # seconds between two looks at how the sync fares
WIND_UP = 5.0
"""Seconds that a push under way gets before the last one, at most."""


class Sync(Protocol):
    """What is needed of `content.sync.WorkspaceSync`."""

    last_error: MidwatchError | None
    last_success: datetime | None
    heard: Callable[[Any], None]

    async def pull(self) -> Any: ...
    async def pull_from(self, folder: str, /) -> Any: ...
    async def push(self, *, last: bool = False) -> Any: ...
    async def run(self, stop: Stop, /) -> None: ...
    def nudge(self) -> None: ...


class Keeper:
    """`fetch` at first, `beside` the session, `save` at the end. Without a sync all of it is nothing.

    `tell` gets the condition whenever it changes, `note` lines for the log. What was never fetched is never
    saved: an empty folder must not go over a full one. Where a later attempt has claimed the folder, `lost` says so
    (`on_lost` hears of it once), and nothing is saved any more.
    """

    def __init__(
        self,
        sync: Sync | None,
        clock: Clock,
        tell: Callable[[Condition], None],
        wind_up: float = WIND_UP,
        *,
        note: Callable[[str], None] = lambda text: None,
        on_lost: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.lost: Superseded | None = None
        self._sync = sync
        self._clock = clock
        self._tell = tell
        self._wind_up = wind_up
        self._note = note
        self._on_lost = on_lost
        self._saved = Saved()
        self._ending = False
        self._told: Condition | None = None
        self._fetched = False

    @property
    def present(self) -> bool:
        return self._sync is not None

    async def fetch(
        self,
        within: float = FETCH_FOR,
        waiting: Callable[[str], None] = lambda why: None,
    ) -> None:
        """Bring the session's folder here, within so many seconds; `waiting` is told why that takes longer.

        Raises ContentUnavailable when they are over, and what is permanent.
        """
        if self._sync is None:
            why = "there is no content proxy: it lasts as long as its volume"
            return self._say(Condition(CONDITION, "Unknown", "OnVolume", why))
        await self._tried(self._sync.pull, within, waiting)
        self._fetched = True

    async def fetch_from(
        self,
        folder: str,
        within: float = FETCH_FOR,
        waiting: Callable[[str], None] = lambda why: None,
    ) -> None:
        """Bring another session's folder here, as ours. Raises as `fetch`."""
        assert self._sync is not None
        sync, self._fetched = self._sync, False
        await self._tried(lambda: sync.pull_from(folder), within, waiting)
        self._fetched = True

    @contextlib.asynccontextmanager
    async def beside(self) -> AsyncIterator[None]:
        """While inside, changes travel both ways."""
        if self._sync is None:
            yield
            return
        stop, self._sync.heard = Stop(self._clock), self._hear
        syncing = asyncio.create_task(self._sync.run(stop), name="sync")
        looking = asyncio.create_task(self._look(syncing), name="look at the sync")
        try:
            yield
        finally:
            stop.set("the session ends")
            looking.cancel()
            await asyncio.wait({syncing}, timeout=self._wind_up)
            syncing.cancel()
            await asyncio.gather(syncing, looking, return_exceptions=True)

    def nudge(self) -> None:
        """Something worth saving has happened."""
        if self._sync is not None and self._fetched:
            self._sync.nudge()

    async def save(self, within: float) -> None:
        """Push what there is, for so many seconds; how it went is in the condition."""
        if self._sync is None or not self._fetched or self.lost is not None:
            return
        sync, self._ending = self._sync, True
        sync.heard = self._hear
        try:
            async with asyncio.timeout(within):
                await self._tried(lambda: sync.push(last=True), within)
        except (TimeoutError, asyncio.CancelledError) as error:
            self._say(_not_saved(ContentUnavailable("there was no time to save all")))
            if isinstance(error, asyncio.CancelledError):
                raise
        except Superseded:
            pass  # it is told by `lost`
        except MidwatchError as error:
            self._say(_not_saved(error))

    async def _tried(
        self,
        work: Callable[[], Any],
        within: float,
        waiting: Callable[[str], None] = lambda why: None,
    ) -> None:
        """Do it, again and again while the proxy is away."""
        deadline, wait = self._clock.monotonic() + within, _FIRST_WAIT
        while True:
            try:
                await work()
                return
            except Superseded as error:
                self._lose(error)
                raise
            except TemporaryError as error:
                pause = max(wait, error.retry_after or 0.0)
                if self._clock.monotonic() + pause > deadline:
                    raise _given_up(error, within) from error
                condition = _not_saved(error)
                self._say(condition)
                waiting(condition.message)
                wait = min(wait * 2, _LONGEST_WAIT)
                await self._clock.sleep(pause)

    async def _look(self, syncing: asyncio.Task[None]) -> None:
        """Tell what goes wrong with the sync, at once if it has given up."""
        assert self._sync is not None
        while True:
            error = self._sync.last_error
            if isinstance(error, Superseded):
                return self._lose(error)
            if error is not None:
                self._say(_not_saved(error))
            if syncing.done():
                return
            sleeping = asyncio.ensure_future(self._clock.sleep(_LOOK))
            try:
                await asyncio.wait({syncing, sleeping}, return_when="FIRST_COMPLETED")
            finally:
                sleeping.cancel()
                await asyncio.gather(sleeping, return_exceptions=True)

    def _hear(self, report: Any) -> None:
        for line in self._saved.hear(report, last=self._ending):
            self._note(line)
        self._say(self._saved.condition())

    def _lose(self, error: Superseded) -> None:
        if self.lost is None:
            self.lost = error
            self._on_lost(error.message)

    def _say(self, condition: Condition) -> None:
        if condition != self._told:
            self._told = condition
            self._tell(condition)


def _given_up(error: TemporaryError, within: float) -> TemporaryError:
    if not isinstance(error, ContentUnavailable):
        return error
    why = f"{error.message}; it was tried for {within:.0f} s"
    return ContentUnavailable(why, hint=error.hint)


def _not_saved(error: MidwatchError) -> Condition:
    kind = type(error).__name__
    again = "" if isinstance(error, PermanentError) else "; it is tried again"
    hint = hint_for(kind, error.hint)
    return Condition(CONDITION, "False", kind, f"{error.message} ({hint}{again})")
