"""`midwatch serve` runs the server: the page, the API, MCP and the addresses that alerts are sent to."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import typer

from midwatch.cli.app import App, Edge, open_app
from midwatch.cli.daemons import end_in
from midwatch.errors import SettingsError
from midwatch.lifecycle import StopEvent, SystemClock, stop_on_signals

if TYPE_CHECKING:
    from midwatch.server.context import ServerContext

app = typer.Typer()

_MAIN = "from midwatch.cli.main import main; main()"
_EXTRA = frozenset(
    "authlib dateutil fastapi jinja2 jmespath multipart prometheus_client sse_starlette starlette uvicorn".split()
)
"""The packages of the extra `server`."""


@contextmanager
def needs_server() -> Iterator[None]:
    """Import packages of the extra `server` in the block. Raises SettingsError if one is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise SettingsError(
            f"the server needs the package {error.name}",
            hint="pip install 'midwatch[server]'",
        ) from None


@app.command()
def serve(context: typer.Context) -> None:
    """Serve the page, the API, MCP and the addresses for alerts at `server.listen`, until SIGTERM."""
    asyncio.run(_serve(context.obj))


async def _serve(edge: Edge) -> None:
    async with open_app(edge, sys.stdout, create=True) as opened:
        stop = StopEvent()
        with stop_on_signals(stop, end_in):
            async with served(edge, opened, stop):
                await stop.wait()
            opened.log.info("server stopped", reason=stop.reason)


@asynccontextmanager
async def served(edge: Edge, opened: App, stop: StopEvent) -> AsyncIterator[str]:
    """Run the server while the block runs. Yields its URL. Raises SettingsError if it cannot start."""
    with needs_server():
        from midwatch.server.app import serving
        from midwatch.server.context import ServerContext
    context = ServerContext(
        settings=opened.settings,
        store=opened.store,
        subjects=opened.subjects,
        redactor=opened.redactor,
        links=opened.links,
        log=opened.log,
        clock=SystemClock(),
        environ=edge.environ,
        stop=stop,
    )
    _add_sessions(edge, opened, context)
    async with serving(context) as address:
        opened.log.info("server started", address=address)
        yield address


def _add_sessions(edge: Edge, opened: App, context: ServerContext) -> None:
    """Add what reads and starts sessions. Each is a process of its own: it outlives the server."""
    from midwatch.server.actions import Actions
    from midwatch.server.fix_processes import FixProcesses
    from midwatch.session.manager import SessionManager
    from midwatch.store.sessions import SqlSessions, SqlTranscripts

    sessions = SqlSessions(opened.store.transactions)
    context.sessions = SessionManager(
        sessions,
        SqlTranscripts(opened.store.transactions),
        opened.settings.sessions,
        redactor=opened.redactor,
    )
    config = [] if edge.config is None else ["--config", str(edge.config)]
    starts = FixProcesses(
        [sys.executable, "-c", _MAIN, *config],
        edge.environ,
        sessions,
        opened.redactor,
        opened.log,
        context.clock,
    )
    context.actions = Actions(opened.store, opened.redactor, starts)
