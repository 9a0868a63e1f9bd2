"""What a request is answered: JSON in ASCII, and every error as a status with {error, hint}."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from midwatch.content.errors import (
    ChunksMissing,
    ContentDamaged,
    ContentFull,
    ContentRefused,
    ContentTooLarge,
    ContentUnavailable,
    PathRefused,
    StreamBroken,
    Superseded,
    TokenRefused,
    VersionConflict,
)
from midwatch.content.tree import compact
from midwatch.content.wire import SUPERSEDED
from midwatch.errors import MidwatchError, PermanentError, TemporaryError

STATUS: tuple[tuple[type[MidwatchError], int], ...] = (
    (StreamBroken, 400),
    (TokenRefused, 401),
    (ChunksMissing, 409),
    (Superseded, 409),
    (VersionConflict, 412),
    (ContentTooLarge, 413),
    (PathRefused, 422),
    (ContentRefused, 422),
    (ContentDamaged, 500),
    (ContentUnavailable, 503),
    (ContentFull, 507),
)
"""The first that fits; a test proves that every error of this package has one."""


class RequestRefused(PermanentError):
    """A request that cannot be served, with the HTTP status that says so."""

    def __init__(self, status: int, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


class TooBusy(TemporaryError):
    """The content proxy has more to do than it takes on at a time."""

    hint = (
        "wait a moment; if it stays so, raise content.max_streams or run a larger proxy"
    )


class JsonAnswer(Response):
    """ASCII: names that are not Unicode travel as escapes, which UTF-8 could not hold."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return compact(content)


def etag(version: str) -> dict[str, str]:
    return {"etag": f'"{version}"'}


def status_of(error: MidwatchError) -> int:
    if isinstance(error, RequestRefused):
        return error.status
    if isinstance(error, TooBusy):
        return 429
    return next((code for kind, code in STATUS if isinstance(error, kind)), 500)


def error_answer(error: MidwatchError) -> JsonAnswer:
    body: dict[str, Any] = {"error": error.message, "hint": error.hint}
    headers: dict[str, str] = {}
    match error:
        case VersionConflict():
            body["version"] = error.current
            headers = etag(error.current)
        case ChunksMissing():
            body["missing"] = list(error.hashes)
        case Superseded():
            body |= {"code": SUPERSEDED, "attempt": error.current}
        case RequestRefused(status=408):
            headers["connection"] = "close"  # the rest of the request may come for ever
        case TokenRefused():
            headers["www-authenticate"] = "Bearer"
        case TemporaryError() if error.retry_after is not None:
            headers["retry-after"] = f"{error.retry_after:.0f}"
    return JsonAnswer(body, status_of(error), headers)


async def on_midwatch_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MidwatchError)
    request.state.error = error.line()
    return error_answer(error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """What the router itself refuses: an address or a method that is not there."""
    assert isinstance(error, HTTPException)
    body = {"error": error.detail, "hint": "see docs/kubernetes.md for the addresses"}
    return JsonAnswer(body, error.status_code, dict(error.headers or {}))
