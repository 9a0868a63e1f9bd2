"""The HTTP API, version 1."""

from __future__ import annotations

from fastapi import APIRouter

from midwatch.server.context import ServerContext


def router(context: ServerContext) -> APIRouter:
    """Return the routes."""
    return APIRouter(prefix="/api/v1")
