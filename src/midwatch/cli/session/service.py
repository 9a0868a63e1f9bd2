"""The session manager of the command line, configured by the settings and the environment."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from midwatch.cli.app import Edge, api_access, secrets_of
from midwatch.errors import MidwatchError
from midwatch.provider import ApiAccess
from midwatch.redaction import Redactor
from midwatch.session.errors import KeyRefused
from midwatch.session.manager import SessionManager
from midwatch.session.options import git_environment
from midwatch.settings import Settings
from midwatch.store.engine import Transactions
from midwatch.store.sessions import SqlSessions, SqlTranscripts
from midwatch.store.upgrade import open_current
from midwatch.workspace.setup import WorkspaceOptions

if TYPE_CHECKING:
    from midwatch.store.sql import SqlStore


@dataclass(frozen=True, slots=True)
class SessionContext:
    """The settings, the stores and the manager for a command of `midwatch session`."""

    edge: Edge
    settings: Settings
    transactions: Transactions
    sessions: SqlSessions
    manager: SessionManager

    @property
    def store(self) -> SqlStore:
        """The store of the tickets, which few sessions need."""
        from midwatch.store.sql import SqlStore  # slow to import

        return SqlStore(self.transactions)

    def workspace_options(self, session_id: str) -> WorkspaceOptions:
        """Return the options of a session's workspace, with the git tokens. Raises SettingsError if one is missing."""
        environment = git_environment(self.settings.sessions, self.edge.environ)
        return self.manager.workspace_options(session_id, environment)

    def access(self) -> ApiAccess:
        """Return how the API is reached. Raises KeyRefused without a key, and SettingsError."""
        access = api_access(self.settings, self.edge.environ)
        if access is None:
            raise KeyRefused("there is no API key", hint="set ANTHROPIC_API_KEY")
        return access


@asynccontextmanager
async def open_sessions(
    edge: Edge, *, create: bool = False
) -> AsyncIterator[SessionContext]:
    """Open the database of the settings; close it at the end of the block.

    Args:
        create: Whether a missing SQLite database is created.
    """
    settings = edge.settings()
    transactions = await open_current(settings.database, create=create)
    try:
        sessions = SqlSessions(transactions)
        manager = SessionManager(
            sessions,
            SqlTranscripts(transactions),
            settings.sessions,
            redactor=_redactor(edge, settings),
        )
        yield SessionContext(edge, settings, transactions, sessions, manager)
    finally:
        await transactions.close()


def _redactor(edge: Edge, settings: Settings) -> Redactor:
    """Return a redactor for the key, the database's password and the git tokens.

    A missing token is ignored here: only `workspace_options` needs it.
    """
    known = secrets_of(settings, edge.environ)
    with contextlib.suppress(MidwatchError):
        for one in git_environment(settings.sessions, edge.environ).credentials:
            known.extend(one.secrets)
    return Redactor(known)
