"""The page of deliveries: which messages were sent to people and programs, which wait, and which were given up."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from midwatch.server.auth import Principal, reads
from midwatch.server.context import ServerContext
from midwatch.server.page.page_routes import page_routes
from midwatch.server.page.rendering import Pages
from midwatch.store.deliveries import CALLBACK

_MOST_DELIVERIES = 200
_STATES = ("all", "due", "sent", "given_up", "dropped")

Who = Annotated[Principal, Depends(reads)]
State = Annotated[Literal["all", "due", "sent", "given_up", "dropped"], Query()]


def router(context: ServerContext, pages: Pages) -> APIRouter:
    """Return the route."""
    routes, store = page_routes(pages), context.store

    async def deliveries(request: Request, who: Who, state: State = "all") -> Response:
        states = () if state == "all" else (state,)
        found = await store.deliveries(states=states, limit=_MOST_DELIVERIES)
        return pages.page(
            request,
            who,
            "deliveries.html",
            "deliveries",
            # The address of a callback may have a key in it.
            deliveries=[
                (one, CALLBACK if one.route == CALLBACK else one.target)
                for one in found
            ],
            state=state,
            states=[(one, one.replace("_", " ")) for one in _STATES],
        )

    routes.add_api_route("/deliveries", deliveries, methods=["GET"])
    return routes
