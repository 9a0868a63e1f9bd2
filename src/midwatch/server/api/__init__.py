"""The HTTP API for programs, below `/api/v1`.

Its JSON is that of the command line (docs/json.md). Errors are problem details (RFC 9457).
"""

from __future__ import annotations

from fastapi import APIRouter

from midwatch.server.api import (
    action_api,
    change_api,
    diagnosis_api,
    investigation_api,
    session_api,
    silence_api,
    subject_api,
    ticket_api,
)
from midwatch.server.context import ServerContext

PREFIX = "/api/v1"


def router(context: ServerContext) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix=PREFIX)
    for part in (
        ticket_api,
        action_api,
        diagnosis_api,
        session_api,
        subject_api,
        silence_api,
        change_api,
        investigation_api,
    ):
        routes.include_router(part.router(context))
    return routes
