"""The server: its application, its socket, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from midwatch import __version__
from midwatch.errors import SettingsError
from midwatch.http_serving import (
    Server,
    address_of,
    listening,
    protocol_with_timeout,
)
from midwatch.server import api, hooks, mcp, page, problems
from midwatch.server.context import ServerContext

_GRACE = 2
"""Seconds that requests in flight get after a stop."""


def create_app(context: ServerContext) -> FastAPI:
    """Return the application with all routes."""
    app = FastAPI(title="Midwatch", version=__version__, docs_url=None, redoc_url=None)
    app.state.context = context
    problems.add_handlers(app)
    app.add_api_route("/healthz", _alive, include_in_schema=False)
    for part in (hooks, api, mcp, page):
        app.include_router(part.router(context))
    return app


async def _alive() -> dict[str, str]:
    return {"status": "ok"}


@contextlib.asynccontextmanager
async def serving(context: ServerContext) -> AsyncIterator[str]:
    """Serve while the block runs. Yields the URL, without a path.

    Raises:
        SettingsError: The server cannot start.
    """
    if context.settings.server.listen is None:
        raise SettingsError(
            "no address to listen on is set",
            path="server.listen",
            hint="use HOST:PORT, such as 127.0.0.1:8470",
        )
    host, port = context.settings.server.listen
    with listening(host, port, setting="server.listen") as opened:
        async with contextlib.AsyncExitStack() as stack:
            app = create_app(context)
            for lifespan in context.lifespans:
                await stack.enter_async_context(lifespan())
            server = Server(_config(app))
            task = asyncio.create_task(server.serve([opened]), name="server")
            try:
                yield address_of(opened)
            finally:
                context.stop.set("the server ends")
                server.should_exit = True
                await task


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol_with_timeout(30.0),
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE,
    )
