"""The page for people."""

from __future__ import annotations

from fastapi import APIRouter

from midwatch.server.context import ServerContext


def router(context: ServerContext) -> APIRouter:
    """Return the routes."""
    return APIRouter()
