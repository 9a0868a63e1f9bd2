"""Answers of the API: JSON with an entity tag, conditional requests, and requests that are carried out once."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Depends, Header, Request
from starlette.responses import Response

from midwatch.errors import MidwatchError
from midwatch.json_shapes import dump
from midwatch.model import Json
from midwatch.server.api.models import Problem
from midwatch.server.auth import (
    Principal,
    approves_actions,
    changes_silences,
    changes_tickets,
    investigates,
    reads,
    reports_changes,
    steers_sessions,
)
from midwatch.server.context import ServerContext
from midwatch.server.problems import (
    MEDIA_TYPE,
    RequestRefused,
    Unprocessable,
    problem_of,
    status_of,
)

IfMatch = Annotated[
    str | None,
    Header(max_length=500, description="Change it only if it has this ETag."),
]
IfNoneMatch = Annotated[
    str | None,
    Header(max_length=2000, description="Answer 304 if it still has this ETag."),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="The same request with the same key is carried out once; for a day it has the same answer.",
    ),
]
_TAG = re.compile(r'"(\d{1,18})-[0-9a-f]{16}"')


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what the document says of the errors of a route, with those that every route has."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    every = sorted({400, 401, 403, 422, 503, *statuses})
    return {
        one: {"model": Problem, "content": content, "description": _MEANING[one]}
        for one in every
    }


def written(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the same for a route that takes a body."""
    return problems(413, 415, *statuses)


_MEANING = {
    400: "The request is wrong.",
    401: "It does not say who sends it.",
    403: "The role or the token does not allow it.",
    404: "There is no such thing.",
    409: "It does not fit the present state.",
    412: "It was changed since it was read.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "A parameter or the body is not valid.",
    503: "The database is away, busy or full; see Retry-After.",
}


Reader = Annotated[Principal, Depends(reads)]
ChangesTickets = Annotated[Principal, Depends(changes_tickets)]
ChangesSilences = Annotated[Principal, Depends(changes_silences)]
StartsSessions = Annotated[Principal, Depends(steers_sessions)]
ApprovesActions = Annotated[Principal, Depends(approves_actions)]
Investigates = Annotated[Principal, Depends(investigates)]
ReportsChanges = Annotated[Principal, Depends(reports_changes)]


def aware(at: datetime | None) -> datetime | None:
    """Return an instant; one without an offset is in UTC. Raises Unprocessable for one that no database takes."""
    if at is None:
        return None
    try:
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError:
        raise Unprocessable("a time is out of range") from None


# ------------------------------------------------------------------ entity tags


def answer(
    document: Any,
    *,
    status: int = 200,
    version: int | None = None,
    if_none_match: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return a document with its entity tag, or 304 if the client has it.

    The tag of what can be changed begins with its version: a change with If-Match compares that alone, as counts and times
    that only an observation moves do not matter to who decides.
    """
    body = dump(document)
    digest = hashlib.sha256(body).hexdigest()[:16]
    tag = f'"{digest}"' if version is None else f'"{version}-{digest}"'
    all_headers = {"etag": tag, **(headers or {})}
    if if_none_match is not None and _matches(if_none_match, tag):
        return Response(status_code=304, headers=all_headers)
    return Response(body, status, all_headers, "application/json")


def text_answer(text: str, media_type: str, if_none_match: str | None) -> Response:
    """Return a text with its entity tag, or 304 if the client has it."""
    body = text.encode()
    headers = {"etag": f'"{hashlib.sha256(body).hexdigest()[:16]}"'}
    if if_none_match is not None and _matches(if_none_match, headers["etag"]):
        return Response(status_code=304, headers=headers)
    return Response(body, 200, headers, f"{media_type}; charset=utf-8")


def _matches(condition: str, tag: str) -> bool:
    named = [one.strip().removeprefix("W/") for one in condition.split(",")]
    return tag in named or "*" in named


def version_in(if_match: str | None) -> int | None:
    """Return the version in If-Match; None if any will do. Raises RequestRefused for anything else."""
    if if_match is None or if_match.strip() == "*":
        return None
    found = _TAG.fullmatch(if_match.strip())
    if found is None:
        raise RequestRefused(
            "If-Match is not an ETag of this resource",
            hint="use the ETag of a GET, or *",
        )
    return int(found[1])


# ------------------------------------------------------------------ requests that are carried out once

_REPLAYED = ("location", "etag")


class Once:
    """Carries out a request with an idempotency key once, and repeats its answer."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    async def __call__(
        self,
        request: Request,
        who: Principal,
        key: str | None,
        act: Callable[[], Awaitable[Response]],
    ) -> Response:
        """Return the answer of `act`, or the stored one.

        Raises:
            Unprocessable: The key was used for another request.
            Conflict: The first request with the key is still being carried out.
        """
        if key is None:
            return await act()
        store, owner = self._context.store, f"{who.via} {who.name}"
        digest = await _digest(request)
        known = await store.begin_request(owner, key, digest)
        if known is not None:
            if known.digest != digest:
                raise Unprocessable(
                    "this idempotency key was used for another request",
                    hint="use a new key for each request",
                )
            return _replayed(known.status, known.answer)
        stored: Json | None = None
        status = 0
        try:
            try:
                response = await act()
            except MidwatchError as error:
                if status_of(error) >= 500:
                    raise
                response = problem_of(error)
            status, stored = response.status_code, _stored(response)
        finally:
            await store.end_request(owner, key, status, stored)
        return response


def _stored(response: Response) -> Json:
    headers = {
        name: response.headers[name] for name in _REPLAYED if name in response.headers
    }
    return {
        "body": bytes(response.body).decode(),
        "media_type": response.headers.get("content-type", ""),
        "headers": headers,
    }


def _replayed(status: int, stored: Json) -> Response:
    headers = {**stored["headers"], "idempotency-replayed": "true"}
    return Response(
        stored["body"], status, headers, media_type=stored["media_type"] or None
    )


async def _digest(request: Request) -> str:
    parts = [
        request.method,
        request.url.path,
        request.url.query,
        request.headers.get("if-match", ""),
        _canonical(await request.body()),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _canonical(body: bytes) -> str:
    """Return JSON in one form: whether a client writes spaces makes it no other request."""
    try:
        return json.dumps(json.loads(body), sort_keys=True) if body else ""
    except (ValueError, RecursionError):
        return body.decode(errors="backslashreplace")
