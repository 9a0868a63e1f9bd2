"""Read the repositories of the watched subjects in turns, and remove old changes, beside the cycles of the monitor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

from midwatch.change_settings import ChangeSettings
from midwatch.errors import MidwatchError
from midwatch.lifecycle import Clock, StopEvent, cancel
from midwatch.logs import Log
from midwatch.store.protocol import Store

if TYPE_CHECKING:
    from midwatch.agent.repository_changes import (
        RepositoryChanges,
        WatchedRepository,
    )

_AT_ONCE = 4
"""Repositories that are read at the same time."""
_FRESH = 10.0
"""Seconds after a reading within which an opening ticket does not ask for another one."""
_OPENING_SECONDS = 0.3
"""How long first aid waits for a reading; one that takes longer is there for the diagnosis."""
_FORGET_EVERY = 3600.0


class ChangeReader:
    """Reads repositories, each at most once at a time.

    Args:
        repositories: Reads one; None where no subject has any.
        store: Where changes are stored.
        settings: How often repositories are read, and how long changes are kept.
        clock: The source of time.
        log: Where failures are logged, once until a repository can be read again.
    """

    def __init__(
        self,
        repositories: RepositoryChanges | None,
        store: Store,
        settings: ChangeSettings,
        clock: Clock,
        log: Log,
    ) -> None:
        self._repositories = repositories
        self._store = store
        self._settings = settings
        self._clock = clock
        self._log = log
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._read_at: dict[str, float] = {}
        self._failing: set[str] = set()

    async def run(
        self, stop: StopEvent, watched: Callable[[], Collection[str]]
    ) -> None:
        """Read the repositories of the watched subjects again and again until `stop` is set. Errors are logged, never raised."""
        forgot = -_FORGET_EVERY
        interval = self._settings.poll_interval
        try:
            while not stop:
                if interval is not None:
                    await self.read(watched())
                if self._clock.monotonic() - forgot >= _FORGET_EVERY:
                    forgot = self._clock.monotonic()
                    await self._forget(stop)
                if await stop.pause(interval or _FORGET_EVERY):
                    break
        finally:
            await self.close()

    async def close(self) -> None:
        """End what is being read."""
        await cancel(*self._running.values())

    async def read(self, subjects: Collection[str]) -> None:
        """Read the repositories of subjects now. Errors are logged, never raised."""
        await self._wait(self._start(self._of(subjects)))

    async def before_first_aid(self, subjects: Collection[str]) -> None:
        """Read the repositories of subjects on which tickets open, but wait for that only a moment."""
        if self._settings.poll_interval is None:
            return
        now = self._clock.monotonic()
        due = [
            one
            for one in self._of(subjects)
            if now - self._read_at.get(one.name, -_FRESH) >= _FRESH
        ]
        if tasks := self._start(due):
            await asyncio.wait(tasks, timeout=_OPENING_SECONDS)

    def _of(self, subjects: Collection[str]) -> list[WatchedRepository]:
        known = () if self._repositories is None else self._repositories.repositories
        return [one for one in known if one.subject in subjects]

    def _start(self, some: Iterable[WatchedRepository]) -> list[asyncio.Task[None]]:
        return [self._running.get(one.name) or self._begin(one) for one in some]

    def _begin(self, repository: WatchedRepository) -> asyncio.Task[None]:
        name = repository.name
        task = asyncio.create_task(self._read(repository), name=f"read {name}")
        self._running[name] = task
        task.add_done_callback(lambda _: self._running.pop(name, None))
        return task

    @staticmethod
    async def _wait(tasks: Collection[asyncio.Task[None]]) -> None:
        if tasks:
            await asyncio.wait(tasks)

    async def _read(self, repository: WatchedRepository) -> None:
        assert self._repositories is not None
        subject, url = repository.subject, repository.url
        try:
            async with self._turns:
                found = await self._repositories.read(repository)
        except MidwatchError as error:
            await self._failed(repository, error)
            return
        except Exception as error:  # a bug here must not end the monitor
            self._log.exception("repository not read", subject=subject)
            await self._failed(repository, MidwatchError(type(error).__name__))
            return
        finally:
            self._read_at[repository.name] = self._clock.monotonic()
        self._failing.discard(repository.name)
        if found:
            self._log.info(
                "repository changed", subject=subject, url=url, changes=found
            )

    async def _failed(
        self, repository: WatchedRepository, error: MidwatchError
    ) -> None:
        assert self._repositories is not None
        if repository.name not in self._failing:
            self._failing.add(repository.name)
            self._log.warning(
                "repository not read",
                subject=repository.subject,
                error=error.one_line(),
            )
        try:
            await self._repositories.failed(repository, error.one_line())
        except MidwatchError as failure:
            self._log.warning("not recorded", error=failure.one_line())

    async def _forget(self, stop: StopEvent) -> None:
        """Remove changes that are too old, some at a time."""
        try:
            while not stop and await self._store.forget_changes(
                self._settings.keep_for
            ):
                pass
        except MidwatchError as error:
            self._log.warning("old changes not removed", error=error.one_line())
