"""What the commands of sessions share: the store's records, the places, the secrets to hide."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from midwatch.cli.session.choices import git_environment, workspace_options
from midwatch.cli.session.places import Place, Places, this_host
from midwatch.cli.wiring import Edge, api_key, secrets_of
from midwatch.redaction import Redactor
from midwatch.session.errors import KeyRefused
from midwatch.session.events import Phase
from midwatch.session.options import ApiAccess
from midwatch.session.records import HEARTBEAT, FolderRecords
from midwatch.session.status import SessionStatus
from midwatch.settings import Settings
from midwatch.store.sessions import SqlSessions, SqlTranscripts, StoredSession
from midwatch.store.sql import SqlStore, open_store
from midwatch.workspace.environment import GitEnvironment
from midwatch.workspace.setup import WorkspaceOptions

SILENT = 4 * HEARTBEAT
"""Seconds without a heartbeat after which a runner of another machine has crashed."""
_UNFINISHED = tuple(phase for phase in Phase if not phase.terminal)


@dataclass(frozen=True, slots=True)
class Desk:
    edge: Edge
    settings: Settings
    store: SqlStore
    sessions: SqlSessions
    transcripts: SqlTranscripts
    places: Places

    def git_environment(self) -> GitEnvironment:
        return git_environment(self.settings.sessions, self.edge.environ)

    def workspace_options(self, place: Place) -> WorkspaceOptions:
        environment = self.git_environment()
        return workspace_options(
            self.settings.sessions, self.places, place, environment
        )

    def redactor(self) -> Redactor:
        """Knows the key, the database's password and the tokens for git."""
        tokens = self.git_environment().credentials
        known = [secret for one in tokens for secret in one.secrets]
        return Redactor([*secrets_of(self.settings, self.edge.environ), *known])

    def access(self) -> ApiAccess:
        """How Claude is reached. Raises KeyRefused where there is no key."""
        key = api_key(self.settings, self.edge.environ)
        if not key:
            raise KeyRefused("there is no API key", hint="set ANTHROPIC_API_KEY")
        return ApiAccess(key, self.edge.environ.get("ANTHROPIC_BASE_URL") or None)

    async def session(self, session_id: str) -> StoredSession:
        """A session as it stands, closed if its runner is gone. Raises NotFound."""
        self.places.place(session_id)
        found = await self.sessions.get(session_id)
        if await self._close_if_crashed(found):
            return await self.sessions.get(session_id)
        return found

    async def close_crashed(self) -> None:
        """Mark as failed what is in no terminal phase and has no runner any more."""
        for session in await self.sessions.listed(phases=_UNFINISHED):
            await self._close_if_crashed(session)

    async def _close_if_crashed(self, session: StoredSession) -> bool:
        if session.status.phase.terminal or self.alive(session):
            return False
        place = self.places.place(session.id)
        if is_here(session, place) and (ended := ending_told_by(place, session)):
            await self.sessions.save_status(session.id, ended)
            return True
        return await self.sessions.fail_crashed(session)

    def alive(self, session: StoredSession) -> bool:
        """Whether its runner lives: exactly known here, by its heartbeat elsewhere."""
        place = self.places.place(session.id)
        if is_here(session, place):
            return place.running
        return session.silent_for < SILENT and not session.status.phase.terminal


def is_here(session: StoredSession, place: Place) -> bool:
    """Whether a session was last run on this machine, in this place."""
    where = (session.options.get("host"), session.options.get("folder"))
    return where == (this_host(), str(place.folder.path)) and place.exists


def ending_told_by(place: Place, session: StoredSession) -> SessionStatus | None:
    """The end that is in the session's folder, where the database was away when it came."""
    status = FolderRecords(place.folder.path).load_status()
    if status is None or not status.phase.terminal:
        return None
    known = session.status
    later = (status.run, status.last_seq) > (known.run, known.last_seq)
    return status if later else None


@asynccontextmanager
async def open_desk(edge: Edge) -> AsyncIterator[Desk]:
    settings = edge.settings()
    store = await open_store(settings.database)
    try:
        yield Desk(
            edge,
            settings,
            store,
            SqlSessions(store.transactions),
            SqlTranscripts(store.transactions),
            Places.of(settings.sessions),
        )
    finally:
        await store.close()
