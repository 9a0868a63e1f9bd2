"""What all routes of the server share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from midwatch.agent.links import Links
from midwatch.agent.recent_changes import RecentChanges
from midwatch.lifecycle import Clock, StopEvent, background
from midwatch.logs import Log
from midwatch.redaction import Redactor
from midwatch.server.authentication import Authenticator
from midwatch.server.feed import ChangeFeed
from midwatch.server.metrics import ServerStats
from midwatch.settings import Settings
from midwatch.store.protocol import Store
from midwatch.subjects.base import Subject

if TYPE_CHECKING:
    from midwatch.server.actions import Actions
    from midwatch.server.page.rendering import Pages
    from midwatch.session.manager import SessionManager


@dataclass(slots=True, kw_only=True)
class ServerContext:
    """What all routes of the server share.

    Attributes:
        stop: Set when the process has to end.
        stats: What the server counts.
        lifespans: Each is entered before the first request and left after the last one, such as a poller.
        authenticator: Finds out who sends a request.
        feed: The feed of changes.
        actions: What people and programs do to tickets.
        sessions: Sessions of Claude Code.
        pages: The templates of the page, once the application is made.
        changes: Finds the changes that count for tickets.
    """

    settings: Settings
    store: Store
    subjects: Sequence[Subject]
    redactor: Redactor
    links: Links
    log: Log
    clock: Clock
    environ: Mapping[str, str]
    stop: StopEvent
    stats: ServerStats = field(default_factory=ServerStats)
    lifespans: list[Callable[[], AbstractAsyncContextManager[object]]] = field(
        default_factory=list
    )
    authenticator: Authenticator = field(init=False)
    feed: ChangeFeed = field(init=False)
    actions: Actions = field(init=False)
    sessions: SessionManager = field(init=False)
    pages: Pages | None = field(init=False, default=None)
    changes: RecentChanges = field(init=False)

    def __post_init__(self) -> None:
        self.authenticator = Authenticator(
            self.settings.server, self.store, self.clock, self.log
        )
        kinds = {one.name: one.kind for one in self.subjects}
        self.changes = RecentChanges(
            self.store, self.settings.changes, self.clock, self.links.reached, kinds
        )
        self.feed = ChangeFeed(self.store, self.log, clock=self.clock)
        self.lifespans.append(self._run)

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        try:
            async with background(self.feed.run(self.stop)):
                yield
        finally:
            await self.authenticator.close()
