"""The page for people: tickets, sessions, subjects, silences, deliveries and charts, readable without JavaScript."""

from __future__ import annotations

from fastapi import APIRouter

from midwatch.server.context import ServerContext
from midwatch.server.page import (
    chart_routes,
    delivery_routes,
    session_routes,
    silence_routes,
    subject_routes,
    ticket_routes,
)


def router(context: ServerContext) -> APIRouter:
    """Return the routes."""
    pages = context.pages
    assert pages is not None
    whole = APIRouter(include_in_schema=False)
    for part in (
        ticket_routes,
        session_routes,
        subject_routes,
        silence_routes,
        delivery_routes,
        chart_routes,
    ):
        whole.include_router(part.router(context, pages))
    whole.include_router(pages.static.router())
    return whole
