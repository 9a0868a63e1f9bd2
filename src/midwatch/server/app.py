"""The server: its application, its socket, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial

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
from midwatch.server import (
    api,
    change_hooks,
    hooks,
    mcp,
    page,
    probes,
    problems,
    sign_in,
)
from midwatch.server.api.openapi import openapi
from midwatch.server.authentication import is_loopback
from midwatch.server.context import ServerContext
from midwatch.server.guard import Guard
from midwatch.server.limits import LONGEST_HEAD
from midwatch.server.page.page_routes import add_error_pages
from midwatch.server.page.rendering import Pages
from midwatch.server_settings import ServerSettings

_KEEP_ALIVE = 75
"""Seconds that a connection may be idle: longer than a proxy keeps one that it may use again."""
_GRACE = 2
"""Seconds that requests in flight get after a stop."""


def create_app(context: ServerContext) -> FastAPI:
    """Return the application with all routes."""
    app = FastAPI(
        title="Midwatch",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
        redirect_slashes=False,
    )
    app.state.context = context
    problems.add_handlers(app)
    context.pages = Pages(context.clock)
    add_error_pages(app, context.pages)
    # Routes are tried in their order: alerts come by the hundred a second.
    for part in (change_hooks, hooks, probes, sign_in, api, mcp, page):
        app.include_router(part.router(context))
    app.openapi = partial(openapi, app)  # type: ignore[method-assign]
    _match_once(app)
    return app


def _match_once(app: FastAPI) -> None:
    """Match an address of no route. FastAPI makes what included routes need for that once: else the first request waits."""
    for route in app.routes:
        route.matches({"type": "http", "method": "GET", "path": "", "headers": []})


@contextlib.asynccontextmanager
async def serving(context: ServerContext) -> AsyncIterator[str]:
    """Serve while the block runs. Yields the URL, without a path.

    Raises:
        SettingsError: The server cannot start.
    """
    settings = context.settings.server
    if settings.listen is None:
        raise SettingsError(
            "no address to listen on is set",
            path="server.listen",
            hint="use HOST:PORT, such as 127.0.0.1:8470",
        )
    scheme = "https" if settings.certificate_file else "http"
    with listening(*settings.listen, setting="server.listen") as opened:
        async with contextlib.AsyncExitStack() as stack:
            app = create_app(context)
            if not (context.authenticator.is_secure or _is_local(settings)):
                context.log.warning(
                    "requests are not encrypted",
                    hint="set server.url to an https address",
                )
            for lifespan in context.lifespans:
                await stack.enter_async_context(lifespan())
            server = Server(_config(Guard(app, context), settings))
            task = asyncio.create_task(server.serve([opened]), name="server")
            try:
                yield address_of(opened, scheme)
            finally:
                context.stop.set("the server ends")
                server.should_exit = True
                await task


def _is_local(settings: ServerSettings) -> bool:
    return settings.listen is not None and is_loopback(settings.listen[0])


def _config(app: ASGIApp, settings: ServerSettings) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http=protocol_with_timeout(settings.request_time),
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.max_requests + settings.max_streams + 500,
        h11_max_incomplete_event_size=2 * LONGEST_HEAD,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=_GRACE,
        ssl_certfile=settings.certificate_file,
        ssl_keyfile=settings.certificate_key_file,
    )
    try:
        config.load()
    except OSError as error:  # one of TLS is one too
        raise SettingsError(
            f"the certificate or its key cannot be used: {error.strerror or error}",
            path="server.certificate_file",
            hint="both files must be in PEM, and the key without a password",
        ) from None
    return config
