"""Synchronise local folders with the content proxy while programs write to either."""

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
from midwatch.content.sync.round import RoundResult, Rounds, Scope, Step
from midwatch.content.sync.scan import Ignored, Scanner
from midwatch.content.sync.transfer import in_thread
from midwatch.content.tree import INBOX
from midwatch.errors import MidwatchError, PermanentError, TemporaryError
from midwatch.files import make_usable
from midwatch.lifecycle import Backoff, Clock, StopEvent, SystemClock, background, first

_WATCH_SECONDS = 50.0
_LONGEST_PAUSE = 60.0
_WATCH_PAUSE = 1.0
"""Seconds until the folder is watched again: by then it has been read, or the proxy is in trouble."""
_SAVE_AFTER = 500
"""Files that are hashed before the cache is saved again."""


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a pull or push did.

    Attributes:
        version: The version that both sides have; empty if some changes were not applied locally yet.
        files: Entries that were sent.
        applied: Entries that were changed locally.
        bytes: Bytes of chunks, both ways.
        requests: HTTP requests.
        conflicts: Where the other side's entries were stored.
        notes: Messages about what is not synchronised.
        unsent: Those of the notes that are about local files that could not be read.
        unapplied: Messages about changes of the other side that could not be made here.
    """

    version: str
    files: int
    applied: int
    bytes: int
    requests: int
    conflicts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unsent: tuple[str, ...] = ()
    unapplied: tuple[str, ...] = ()


class WorkspaceSync:
    """Keeps local folders equal to a folder of the content proxy.

    A client with an attempt claims the folder at the pull. Once a later attempt has claimed it, all methods raise
    Superseded and nothing is sent any more.

    Args:
        client: The proxy's folder.
        roots: The local folders by the name of their top folder.
        state: A local folder for the sync's own files.
        clock: The clock.
        interval: Seconds between two pushes.
        remote_owned: Files that the proxy's side alone writes; only their new lines are appended here.
        local_owned: Top folders that the local side alone writes after the pull; changes of the other side are
            stored as conflicts.
        ignored: Returns whether a path is not synchronised, on either side.
        step: Called with the name of each step before it, in tests.

    Attributes:
        last_error: The error of the last pull or push, None if it succeeded.
        last_success: When a pull or push last succeeded.
        on_report: Called with every report.
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
        self.on_report: Callable[[SyncReport], None] = lambda report: None
        self._superseded: Superseded | None = None
        self._client = client
        self._clock = clock or SystemClock()
        self._interval = interval
        self._longest_pause = max(interval, _LONGEST_PAUSE)
        self._state = state
        self._roots = Roots({name: path.absolute() for name, path in roots.items()})
        ignored = _ignore_state(ignored, self._roots, state.absolute())
        self._scanner = Scanner(
            self._roots, ignored=ignored, cache=state / "files.json"
        )
        scope = Scope(self._roots, remote_owned, ignored, local_owned)
        self._rounds = Rounds(client, scope, self._scanner, state, step)
        self._lock = asyncio.Lock()
        self._nudged = asyncio.Event()
        self._watched = ""

    async def pull(self) -> SyncReport:
        """Apply the proxy's changes; local changes stay, and are sent by the next push."""
        return await self._run(self._pull)

    async def _pull(self) -> RoundResult:
        if self._client.attempt is not None:
            await self._client.claim()
        return await self._rounds.run(push=False)

    async def pull_from(self, folder: str) -> SyncReport:
        """Copy the entries of another folder, which is only read; local changes stay."""
        return await self._run(lambda: self._rounds.adopt(folder))

    async def push(self, *, last: bool = False) -> SyncReport:
        """Make both sides equal.

        Args:
            last: Whether no program runs in the folders any more.
        """
        return await self._run(
            lambda: self._rounds.run(push=True, last=last, unchanged=self._is_watched())
        )

    def nudge(self) -> None:
        """Push at once instead of after the interval."""
        self._nudged.set()

    async def run(self, stop: StopEvent) -> None:
        """Push repeatedly until the stop, which ends a push under way; the caller makes the last one.

        `last_error` has the error of a push; after one the pause grows. Superseded ends the run as well.
        """
        async with background(self._watch()):
            await first(self._push_repeatedly(), stop.wait())

    # ------------------------------------------------------------------ one at a time

    async def _run(self, work: Callable[[], Awaitable[RoundResult]]) -> SyncReport:
        async with self._lock:
            if self._superseded is not None:
                raise self._superseded
            client = self._client
            requests, moved = client.requests, client.sent + client.received
            try:
                await in_thread(self._make_folders)
                result = await work()
                await in_thread(self._scanner.save, least=_SAVE_AFTER)
            except OSError as error:
                self.last_error = ContentUnavailable(
                    f"{error.filename or self._state}: {error.strerror}",
                    hint="check the local folders and their permissions",
                )
                raise self.last_error from error
            except MidwatchError as error:
                self.last_error = error
                if isinstance(error, Superseded):
                    self._superseded = error
                raise
            self.last_error, self.last_success = None, self._clock.now()
            report = SyncReport(
                result.version,
                result.sent,
                result.applied,
                client.sent + client.received - moved,
                client.requests - requests,
                result.conflicts,
                result.notes,
                result.unsent,
                result.unapplied,
            )
            self.on_report(report)
            return report

    def _make_folders(self) -> None:
        for path in (self._state, *self._roots.folders.values()):
            path.mkdir(parents=True, exist_ok=True)
            make_usable(path)

    # ------------------------------------------------------------------ waiting

    async def _push_repeatedly(self) -> None:
        backoff = Backoff(self._interval, self._longest_pause)
        while True:
            self._nudged.clear()
            try:
                await self.push()
            except Superseded:
                return
            except MidwatchError as error:
                await self._clock.sleep(self._pause_after(error, backoff.next()))
            else:
                backoff.reset()
                await first(self._clock.sleep(self._interval), self._nudged.wait())

    def _pause_after(self, error: MidwatchError, pause: float) -> float:
        """Return the seconds to wait, which are `pause` unless the error asks for more."""
        if isinstance(error, PermanentError):
            pause = self._longest_pause
        if isinstance(error, TemporaryError) and error.retry_after is not None:
            pause = min(max(pause, error.retry_after), self._longest_pause)
        return pause * random.uniform(0.5, 1.0)

    async def _watch(self) -> None:
        """Nudge when another client changes the folder."""
        while True:
            async with self._lock:
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
            # A commit of this side is a change as well, but it also changes the base.
            async with self._lock:
                by_others = changed and version == self._rounds.base.version
            if by_others:
                self.nudge()
                await self._clock.sleep(min(self._interval, _WATCH_PAUSE))

    def _is_watched(self) -> bool:
        return bool(self._watched) and self._watched == self._rounds.base.version


def _ignore_state(ignored: Ignored | None, roots: Roots, state: Path) -> Ignored | None:
    """Return `ignored`, extended by the sync's own folder if it is in one of the roots."""
    own = {
        f"{name}/{state.relative_to(path).as_posix()}"
        for name, path in roots.folders.items()
        if state.is_relative_to(path)
    }
    if not own:
        return ignored
    if ignored is None:
        return own.__contains__
    given = ignored
    return lambda path: path in own or given(path)
