"""Run the server in a command: `midwatch serve`, or `midwatch up` beside monitor and agent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from midwatch.errors import SettingsError
from midwatch.lifecycle import StopEvent, SystemClock

if TYPE_CHECKING:
    from midwatch.cli.app import App
    from midwatch.cli.metrics import Measured

_EXTRA = frozenset(
    "authlib dateutil fastapi jinja2 jmespath joserfc multipart prometheus_client sse_starlette starlette uvicorn".split()
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
    async with serving(context) as address:
        opened.log.info("server started", address=address)
        yield SERVER, partial(server_samples, context.stats)
