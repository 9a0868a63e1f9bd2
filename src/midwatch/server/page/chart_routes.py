"""The page of charts, and the figures behind it as JSON."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import JSONResponse, Response

from midwatch.server.auth import Principal, reads
from midwatch.server.context import ServerContext
from midwatch.server.page.page_routes import page_routes
from midwatch.server.page.rendering import Pages
from midwatch.store.overview_protocol import Figures

_MOST_DAYS = 366
_PERIODS = (7, 30, 90, 365)

Days = Annotated[int, Query(ge=1, le=_MOST_DAYS)]
Who = Annotated[Principal, Depends(reads)]


def router(context: ServerContext, pages: Pages) -> APIRouter:
    """Return the routes."""
    routes = page_routes(pages)

    async def show(request: Request, who: Who, days: Days = 30) -> Response:
        figures = await context.store.figures(days)
        most = max((number for _, number in figures.by_invariant), default=0)
        return pages.page(
            request,
            who,
            "charts.html",
            "charts",
            figures=figures,
            days=days,
            periods=_PERIODS,
            most=most,
        )

    async def data(request: Request, who: Who, days: Days = 30) -> Response:
        figures = await context.store.figures(days)
        return JSONResponse(_document(figures), headers={"cache-control": "no-store"})

    routes.add_api_route("/charts", show, methods=["GET"])
    routes.add_api_route("/charts/data.json", data, methods=["GET"])
    return routes


def _document(figures: Figures) -> dict[str, Any]:
    days = figures.days
    return {
        "days": [one.day.isoformat() for one in days],
        "opened": [one.opened for one in days],
        "seconds_to_detect": [one.to_detect for one in days],
        "seconds_to_diagnose": [one.to_diagnose for one in days],
        "seconds_to_resolve": [one.to_resolve for one in days],
        "cost_usd": [round(one.cost_usd, 6) for one in days],
        "by_invariant": [
            {"invariant": name, "tickets": number}
            for name, number in figures.by_invariant
        ],
    }
