"""Answers to requests that fail: problem details as JSON (RFC 9457), each with a status and a hint."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from midwatch.agent.reported_changes import InvalidChange
from midwatch.errors import (
    ClaimLost,
    Conflict,
    MidwatchError,
    NotFound,
    Outdated,
    PermanentError,
    SchemaMismatch,
    StaleWatch,
    StoreRejected,
    SubjectTaken,
    TemporaryError,
)
from midwatch.matchers import InvalidMatcher
from midwatch.silences import InvalidSilence, NoRecurrences

MEDIA_TYPE = "application/problem+json"
_RETRY_AFTER = 5.0
"""Seconds, for an error that does not say when a retry can help."""


class RequestRefused(PermanentError):
    """The request cannot be served."""

    status = 400


class Unauthenticated(RequestRefused):
    """The request does not say who sends it."""

    status = 401


class Forbidden(RequestRefused):
    """The sender of the request may not do this."""

    status = 403


class TooSlow(RequestRefused):
    """The request did not arrive in time."""

    status = 408


class TooLarge(RequestRefused):
    """The body of the request is too large."""

    status = 413


class Unsupported(RequestRefused):
    """The body of the request has a form that is not read here."""

    status = 415


class Misdirected(RequestRefused):
    """The request is for another host."""

    status = 421


class Unprocessable(RequestRefused):
    """The body of the request does not say what it has to."""

    status = 422


class TooManyHeaders(RequestRefused):
    """The request has too many header fields."""

    status = 431


STATUS: tuple[tuple[type[MidwatchError], int], ...] = (
    (NotFound, 404),
    (Outdated, 412),
    (Conflict, 409),
    (ClaimLost, 409),
    (StaleWatch, 409),
    (SubjectTaken, 409),
    (InvalidMatcher, 422),
    (InvalidSilence, 422),
    (InvalidChange, 422),
    (NoRecurrences, 422),
    (SchemaMismatch, 503),
    (StoreRejected, 503),
    (TemporaryError, 503),
)
"""The first match counts."""


def status_of(error: MidwatchError) -> int:
    """Return the HTTP status for an error."""
    if isinstance(error, RequestRefused):
        return error.status
    return next((code for kind, code in STATUS if isinstance(error, kind)), 500)


def problem(
    status: int, detail: str, hint: str = "", headers: dict[str, str] | None = None
) -> JSONResponse:
    """Return the answer for a request that failed."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    if hint:
        body["hint"] = hint
    return JSONResponse(body, status, headers, MEDIA_TYPE)


def problem_of(error: MidwatchError) -> JSONResponse:
    """Return the answer for an error."""
    status = status_of(error)
    headers = {}
    if status in (408, 413):
        headers["connection"] = (
            "close"  # the rest of the body may never come, or be long
        )
    if status == 503:
        seconds = getattr(error, "retry_after", None) or _RETRY_AFTER
        headers["retry-after"] = str(max(math.ceil(seconds), 1))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return problem(status, error.message, error.hint, headers)


async def _on_midwatch_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MidwatchError)
    request.state.error = error.one_line()
    return problem_of(error)


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an error of the router."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, MidwatchError):
        # FastAPI wraps what is raised while it reads a body.
        return await _on_midwatch_error(request, error.__cause__)
    return problem(
        error.status_code, str(error.detail), headers=dict(error.headers or {})
    )


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return problem(422, f"{where}: {first['msg']}")


async def _on_unexpected(request: Request, error: Exception) -> JSONResponse:
    return problem(500, "the server failed", "see its log")


def add_handlers(app: FastAPI) -> None:
    """Answer the errors of Midwatch, of the router and of validation as problems."""
    app.add_exception_handler(MidwatchError, _on_midwatch_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Exception, _on_unexpected)
