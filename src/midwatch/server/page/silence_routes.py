"""The page of silences: what is kept silent and until when, with a button that ends it."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from midwatch.server.auth import Principal, changes_silences, reads
from midwatch.server.context import ServerContext
from midwatch.server.page.page_routes import page_routes
from midwatch.server.page.rendering import Pages

_MOST_SILENCES = 200

Who = Annotated[Principal, Depends(reads)]


def router(context: ServerContext, pages: Pages) -> APIRouter:
    """Return the routes."""
    routes, store = page_routes(pages), context.store

    async def silences(request: Request, who: Who, ended: bool = False) -> Response:
        found = await store.silences(include_ended=ended)
        return pages.page(
            request,
            who,
            "silences.html",
            "silences",
            silences=found[:_MOST_SILENCES],
            left_out=max(len(found) - _MOST_SILENCES, 0),
            silent=Counter(one.silence_id for one in await store.silenced()),
            ended=ended,
        )

    async def expire(
        request: Request,
        who: Annotated[Principal, Depends(changes_silences)],
        silence_id: int,
    ) -> Response:
        await store.expire_silence(silence_id, who.name)
        base = request.scope.get("root_path", "")
        return RedirectResponse(f"{base}/silences", 303)

    routes.add_api_route("/silences", silences, methods=["GET"])
    routes.add_api_route("/silences/{silence_id}/expire", expire, methods=["POST"])
    return routes
