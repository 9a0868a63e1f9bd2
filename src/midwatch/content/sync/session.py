"""A local folder and its copy behind the content proxy, kept equal while somebody works in either."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from midwatch.content.errors import ContentUnavailable, Superseded
from midwatch.content.sync.client import ContentClient
from midwatch.content.sync.roots import Roots
from midwatch.content.sync.round import Outcome, Rounds, Scope, Step
from midwatch.content.sync.scan import Ignored, Scanner
from midwatch.content.sync.transfer import in_thread
from midwatch.content.tree import INBOX
from midwatch.errors import MidwatchError, PermanentError, TemporaryError
from midwatch.lifecycle import Clock, StopEvent, SystemClock, first

_WATCH_SECONDS = 50.0
_LONGEST_PAUSE = 60.0
_BREATH_SECONDS = 1.0
"""Until the folder is watched again: by then it has been read, or the proxy is in trouble."""
_MANY = 500
"""Files read anew, before the cache of what they are is written again."""


@dataclass(frozen=True, slots=True)
class SyncReport:
    """A push: the version that both sides have (empty if something here is still to come), entries sent and
    brought, bytes both ways, requests, and where the other side's versions were kept. `notes` are about what does not
    travel; `unsent` are those of them about what is here and should, but could not be read.
    """

    version: str
    files: int
    brought: int
    bytes: int
    requests: int
    conflicts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unsent: tuple[str, ...] = ()


class WorkspaceSync:
    """Keeps `roots` (top folder's name → local folder) equal to the client's folder; remembers in `state`.

    `state` is a folder of its own. `remote_owned` files only get the lines that are new at the proxy. `ignored` paths are left
    alone on both sides. Of the top folders `local_owned` nothing is taken any more after the pull: what they changed there
    is kept as their side of a conflict. `last_error` and `last_success` tell how it goes, `heard` gets every report.

    A client with an attempt claims the folder at the pull. When a later one has, everything here raises Superseded
    and nothing is sent any more.
    """

    def __init__(
        self,
        client: ContentClient,
        roots: Mapping[str, Path],
        state: Path,
        *,
        clock: Clock | None = None,
        interval: float = 5.0,
        remote_owned: frozenset[str] = frozenset({INBOX}),
        local_owned: frozenset[str] = frozenset(),
        ignored: Ignored | None = None,
        step: Step = lambda name: None,
    ) -> None:
        self.last_error: MidwatchError | None = None
        self.last_success: datetime | None = None
        self.heard: Callable[[SyncReport], None] = lambda report: None
        self._superseded: Superseded | None = None
        self._client = client
        self._clock = clock or SystemClock()
        self._interval = interval
        self._state = state
        places = Roots({name: place.absolute() for name, place in roots.items()})
        ignored = _also(ignored, places, state.absolute())
        self._places = places
        self._scanner = Scanner(places, ignored=ignored, cache=state / "files.json")
        scope = Scope(places, remote_owned, ignored, local_owned)
        self._rounds = Rounds(client, scope, self._scanner, state, step)
        self._turn = asyncio.Lock()
        self._nudged = asyncio.Event()
        self._watched = ""

    async def pull(self) -> SyncReport:
        """Bring what the proxy has; what is different here stays, and is sent by the next push."""
        return await self._one(self._pull)

    async def _pull(self) -> Outcome:
        if self._client.attempt is not None:
            await self._client.claim()
        return await self._rounds.run(push=False)

    async def pull_from(self, folder: str) -> SyncReport:
        """Begin with what another folder has, which is only read. What is here already stays."""
        return await self._one(lambda: self._rounds.adopt(folder))

    async def push(self, *, last: bool = False) -> SyncReport:
        """Make both sides equal. `last`: nothing works in the folders any more."""
        return await self._one(
            lambda: self._rounds.run(push=True, last=last, unchanged=self._is_watched())
        )

    def nudge(self) -> None:
        """Something has changed: do not wait for the interval."""
        self._nudged.set()

    async def run(self, stop: StopEvent) -> None:
        """Push again and again until the stop, which ends it at once; the last push is the caller's.

        Errors are told by `last_error`; after one the wait grows. Superseded ends it as well.
        """
        stopping = asyncio.create_task(stop.wait(), name="stop")
        keeping = asyncio.create_task(self._keep_equal(), name="sync")
        watching = asyncio.create_task(self._watch(), name="sync watch")
        try:
            await asyncio.wait({stopping, keeping}, return_when="FIRST_COMPLETED")
            if keeping.done():
                keeping.result()
        finally:
            for task in (stopping, keeping, watching):
                task.cancel()
            await asyncio.gather(stopping, keeping, watching, return_exceptions=True)

    # ------------------------------------------------------------------ one at a time

    async def _one(self, round: Callable[[], Awaitable[Outcome]]) -> SyncReport:
        async with self._turn:
            if self._superseded is not None:
                raise self._superseded
            client = self._client
            requests, moved = client.requests, client.sent + client.received
            try:
                await in_thread(self._make_places)
                outcome = await round()
                await in_thread(self._scanner.save, least=_MANY)
            except OSError as error:
                self.last_error = ContentUnavailable(f"{self._state}: {error.strerror}")
                raise self.last_error from error
            except MidwatchError as error:
                self.last_error = error
                if isinstance(error, Superseded):
                    self._superseded = error
                raise
            self.last_error, self.last_success = None, self._clock.now()
            report = SyncReport(
                outcome.version,
                outcome.sent,
                outcome.brought,
                client.sent + client.received - moved,
                client.requests - requests,
                outcome.conflicts,
                outcome.notes,
                outcome.unsent,
            )
            self.heard(report)
            return report

    def _make_places(self) -> None:
        for place in (self._state, *self._places.places.values()):
            place.mkdir(parents=True, exist_ok=True)

    # ------------------------------------------------------------------ waiting

    async def _keep_equal(self) -> None:
        failed = 0
        while True:
            self._nudged.clear()
            try:
                await self.push()
                failed = 0
            except Superseded:
                return
            except MidwatchError as error:
                failed += 1
                await self._clock.sleep(self._pause(error, failed))
            else:
                await first(self._clock.sleep(self._interval), self._nudged.wait())

    def _pause(self, error: MidwatchError, failed: int) -> float:
        """Seconds after so many failures in a row."""
        longest = max(self._interval, _LONGEST_PAUSE)
        pause = min(self._interval * 2.0 ** min(failed - 1, 10), longest)
        if isinstance(error, PermanentError):
            pause = longest
        if isinstance(error, TemporaryError) and error.retry_after is not None:
            pause = min(max(pause, error.retry_after), longest)
        return pause * random.uniform(0.5, 1.0)

    async def _watch(self) -> None:
        """Nudge when somebody else changes the folder."""
        while True:
            async with self._turn:
                version = self._rounds.base.version
            if not version:
                await self._clock.sleep(self._interval)
                continue
            self._watched = version
            try:
                changed = await self._client.wait_for_change(version, _WATCH_SECONDS)
            except MidwatchError:
                changed, self._watched = False, ""
                await self._clock.sleep(self._interval)
            finally:
                self._watched = ""
            # Our own commit is a change as well; after it the base is another.
            async with self._turn:
                theirs = changed and version == self._rounds.base.version
            if theirs:
                self.nudge()
                await self._clock.sleep(min(self._interval, _BREATH_SECONDS))

    def _is_watched(self) -> bool:
        return bool(self._watched) and self._watched == self._rounds.base.version


def _also(ignored: Ignored | None, places: Roots, state: Path) -> Ignored | None:
    """What is remembered is not synchronised, wherever it is."""
    own = {
        f"{name}/{state.relative_to(place).as_posix()}"
        for name, place in places.places.items()
        if state.is_relative_to(place)
    }
    if not own:
        return ignored
    if ignored is None:
        return own.__contains__
    given = ignored
    return lambda path: path in own or given(path)
