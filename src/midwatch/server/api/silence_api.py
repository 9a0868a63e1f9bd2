"""Silences."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from midwatch.json_shapes import silence_document
from midwatch.matchers import parse_matcher_groups
from midwatch.model import Json
from midwatch.server.api import models
from midwatch.server.api.answers import (
    ChangesSilences,
    IdempotencyKey,
    IfNoneMatch,
    Once,
    Reader,
    answer,
    aware,
    problems,
    written,
)
from midwatch.server.api.paging import Cursor, Limit, page_of, read_cursor
from midwatch.server.context import ServerContext
from midwatch.server.problems import Unprocessable
from midwatch.silences import Recurrence, Silence
from midwatch.store.schema import LARGEST_ID

SilenceId = Annotated[int, Path(ge=1, le=LARGEST_ID, description="Its number.")]


def router(context: ServerContext) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/silences", tags=["silences"])
    _add_reading(routes, context)
    _add_changes(routes, context)
    return routes


def _add_reading(routes: APIRouter, context: ServerContext) -> None:
    store = context.store

    @routes.get(
        "", response_model=models.Page[models.SilenceShape], responses=problems()
    )
    async def list_silences(
        who: Reader,
        ended: bool = False,
        limit: Limit = 50,
        cursor: Cursor = None,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """List silences, the newest first; with `ended` those that have ended too."""
        found = await store.silences(include_ended=ended)
        after = LARGEST_ID if cursor is None else int(read_cursor(cursor, int)[0])
        behind = sorted(
            (one for one in found if one.id < after), key=lambda one: -one.id
        )
        page = page_of(behind[: limit + 1], limit, lambda one: [one.id])
        counts = await _counts(context)
        now = context.clock.now()
        document = page.document(lambda one: silence_document(one, now, counts[one.id]))
        return answer(document, if_none_match=if_none_match)

    @routes.get(
        "/{silence_id}", response_model=models.SilenceShape, responses=problems(404)
    )
    async def read_silence(
        who: Reader, silence_id: SilenceId, if_none_match: IfNoneMatch = None
    ) -> Response:
        """Return a silence."""
        found = await store.silence(silence_id)
        document = await silence_shape(context, found)
        return answer(document, if_none_match=if_none_match)


def _add_changes(routes: APIRouter, context: ServerContext) -> None:
    store, once = context.store, Once(context)

    @routes.post(
        "",
        status_code=201,
        response_model=models.SilenceShape,
        responses=written(409),
    )
    async def add_silence(
        request: Request,
        who: ChangesSilences,
        asked: models.NewSilence,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Add a silence. Tickets that it matches are silent at once."""

        async def act() -> Response:
            made = await _add(context, asked, who.name)
            where = {"location": f"/api/v1/silences/{made.id}"}
            document = await silence_shape(context, made)
            return answer(document, status=201, headers=where)

        return await once(request, who, idempotency_key, act)

    @routes.delete(
        "/{silence_id}",
        response_model=models.SilenceShape,
        responses=problems(404, 409),
    )
    async def expire_silence(who: ChangesSilences, silence_id: SilenceId) -> Response:
        """End a silence now. It stays, with who ended it."""
        ended = await store.expire_silence(silence_id, who.name)
        return answer(await silence_shape(context, ended))


async def silence_shape(context: ServerContext, silence: Silence) -> Json:
    """Return a silence as JSON, with the number of violations that it keeps silent."""
    counts = await _counts(context)
    return silence_document(silence, context.clock.now(), counts[silence.id])


async def _counts(context: ServerContext) -> Counter[int | None]:
    return Counter(one.silence_id for one in await context.store.silenced())


async def _add(context: ServerContext, asked: models.NewSilence, by: str) -> Silence:
    """Add a silence. Raises InvalidSilence and the like if it makes no sense."""
    if (asked.rrule is None) is not (asked.window_seconds is None):
        raise Unprocessable("rrule and window_seconds belong together")
    recurrence = None
    if asked.rrule is not None and asked.window_seconds is not None:
        recurrence = Recurrence(asked.rrule, asked.window_seconds, asked.timezone)
    return await context.store.add_silence(
        parse_matcher_groups(asked.matchers),
        author=by,
        reason=context.redactor.text(asked.reason.strip()),
        starts_at=aware(asked.starts_at),
        ends_at=aware(asked.ends_at),
        seconds=asked.seconds,
        recurrence=recurrence,
    )
