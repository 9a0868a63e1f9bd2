"""The addresses that alerts are sent to."""

from __future__ import annotations

from fastapi import APIRouter

from midwatch.server.context import ServerContext


def router(context: ServerContext) -> APIRouter:
    """Return the routes."""
    return APIRouter()
