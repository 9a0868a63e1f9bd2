"""What probes ask: `/healthz` (the process answers) and `/readyz` (so does its database)."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from midwatch.errors import StoreUnavailable
from midwatch.server.context import ServerContext
from midwatch.store.protocol import notice_of

_TIMEOUT = 2.0
"""Seconds that the database gets to answer a probe."""


def router(context: ServerContext) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(
        include_in_schema=False, default_response_class=PlainTextResponse
    )

    @routes.get("/healthz")
    async def alive() -> str:
        notice = notice_of(context.store)
        return f"ok\n{notice}\n" if notice else "ok\n"

    @routes.get("/readyz")
    async def ready() -> str:
        if context.stop:
            raise StoreUnavailable("the server is stopping", hint="")
        try:
            async with asyncio.timeout(_TIMEOUT):
                await context.store.pauses()
        except TimeoutError:
            raise StoreUnavailable(
                f"the database did not answer within {_TIMEOUT:g} s"
            ) from None
        return "ok\n"

    return routes
