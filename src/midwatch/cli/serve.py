"""Run the server in a command: `midwatch serve`, or `midwatch up` beside monitor and agent."""

from __future__ import annotations

import gc
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from midwatch.cli.app import Edge
from midwatch.errors import SettingsError
from midwatch.lifecycle import StopEvent, SystemClock

if TYPE_CHECKING:
    from midwatch.cli.app import App
    from midwatch.cli.metrics import Measured
    from midwatch.cli.session.cluster_sessions import SessionResources
    from midwatch.cli.session.service import SessionContext
    from midwatch.lifecycle import Liveness
    from midwatch.scheduler import Scheduler
    from midwatch.server.actions import Actions
    from midwatch.server.fix_processes import FixProcesses
    from midwatch.session.manager import SessionManager
    from midwatch.store.sessions import SqlSessions

_MAIN = "from midwatch.cli.main import main; main()"
_EXTRA = frozenset(
    "authlib dateutil fastapi jinja2 jmespath joserfc multipart prometheus_client sse_starlette starlette uvicorn".split()
)
"""The packages of the extra `server`."""


@contextmanager
def needs_server(what: str = "the server", extra: str = "server") -> Iterator[None]:
    """Import packages of the extra `server` in the block.

    Args:
        what: What needs them, as the error says it.
        extra: The extra to install for that; it includes `server`.

    Raises:
        SettingsError: One is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise SettingsError(
            f"{what} needs the package {error.name}",
            hint=f"pip install 'midwatch[{extra}]'",
        ) from None


@asynccontextmanager
async def server_running(opened: App, stop: StopEvent) -> AsyncIterator[Measured]:
    """Run the server while the block runs. Yields its metrics. Raises SettingsError if it cannot start."""
    with needs_server():
        from midwatch.server.app import serving
        from midwatch.server.context import ServerContext
        from midwatch.server.metrics import SERVER, server_samples
    context = ServerContext(
        settings=opened.settings,
        store=opened.store,
        subjects=opened.subjects,
        redactor=opened.redactor,
        links=opened.links,
        log=opened.log,
        clock=SystemClock(),
        environ=opened.model.environ,
        stop=stop,
    )
    context.sessions, context.actions = sessions_and_actions(opened)
    async with serving(context) as address:
        # What the imports made stays: the collector would look at all of it again, 0.1 s in which it answers no one.
        gc.freeze()
        opened.log.info("server started", address=address)
        yield SERVER, partial(server_samples, context.stats)


def sessions_and_actions(opened: App) -> tuple[SessionManager, Actions]:
    """Return what reads sessions, and what changes tickets and starts sessions."""
    from midwatch.agent.approved_actions import ApprovedActions
    from midwatch.server.actions import Actions

    manager, starts = session_processes(opened)
    approved = ApprovedActions(opened.store, opened.subjects, opened.redactor)
    cluster = _session_resources(opened)
    return manager, Actions(opened.store, opened.redactor, starts, approved, cluster)


def _session_resources(opened: App) -> SessionResources | None:
    """Return what creates sessions in the cluster of the settings; None without one."""
    chosen = opened.settings.server.session_cluster
    if chosen is None:
        return None
    from midwatch.cli.session.cluster_sessions import SessionResources

    return SessionResources(session_context(opened), chosen)


def session_context(opened: App) -> SessionContext:
    """Return what a command of `midwatch session` has, for the daemons."""
    from midwatch.cli.session.service import SessionContext

    sessions, manager = _sessions(opened)
    edge = Edge(opened.model.environ, opened.config)
    transactions = opened.store.transactions
    return SessionContext(edge, opened.settings, transactions, sessions, manager)


def _sessions(opened: App) -> tuple[SqlSessions, SessionManager]:
    """Return the records of sessions, and what reads and changes them."""
    from midwatch.session.manager import SessionManager
    from midwatch.store.sessions import SqlSessions, SqlTranscripts

    sessions = SqlSessions(opened.store.transactions)
    manager = SessionManager(
        sessions,
        SqlTranscripts(opened.store.transactions),
        opened.settings.sessions,
        redactor=opened.redactor,
    )
    return sessions, manager


def session_processes(opened: App) -> tuple[SessionManager, FixProcesses]:
    """Return what reads sessions, and what starts them, each as a process of its own: it outlives this one."""
    from midwatch.server.fix_processes import FixProcesses

    sessions, manager = _sessions(opened)
    config = [] if opened.config is None else ["--config", str(opened.config)]
    starts = FixProcesses(
        [sys.executable, "-c", _MAIN, *config],
        opened.model.environ,
        sessions,
        opened.redactor,
        opened.log,
        SystemClock(),
    )
    return manager, starts


def scheduler(opened: App, progress: Liveness) -> Scheduler | None:
    """Return what starts the sessions of schedules; None without a schedule."""
    if not opened.settings.schedules:
        return None
    from midwatch.scheduler import Scheduler
    from midwatch.store.schedules import SqlSchedules

    manager, processes = session_processes(opened)
    return Scheduler(
        opened.settings.schedules,
        SqlSchedules(opened.store.transactions),
        processes,
        manager,
        opened.log,
        SystemClock(),
        progress,
    )
