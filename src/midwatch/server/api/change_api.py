"""Changes of the watched systems: deployments, commits, settings, certificates."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from midwatch.agent.reported_changes import ReportedChange, check_report, new_change
from midwatch.json_shapes import change_record_document
from midwatch.model import ChangeKind
from midwatch.redaction import Sanitizer
from midwatch.server.actions import digest_of_key
from midwatch.server.api import models
from midwatch.server.api.answers import (
    IdempotencyKey,
    IfNoneMatch,
    Once,
    Reader,
    ReportsChanges,
    answer,
    aware,
    problems,
    written,
)
from midwatch.server.api.paging import Cursor, Limit, page_of, read_cursor, whole
from midwatch.server.auth import Principal
from midwatch.server.context import ServerContext
from midwatch.store.schema import LARGEST_ID
from midwatch.system_changes import ChangeFilter, SystemChange

ChangeId = Annotated[int, Path(ge=1, le=LARGEST_ID, description="Its number.")]
TicketId = Annotated[
    int | None,
    Query(
        ge=1,
        le=LARGEST_ID,
        description="Only those that count for this ticket, the nearest and weightiest first, on one page.",
    ),
]


def router(context: ServerContext) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/changes", tags=["changes"])
    _add_reading(routes, context)
    _add_reporting(routes, context)
    return routes


def _add_reading(routes: APIRouter, context: ServerContext) -> None:
    store = context.store

    @routes.get(
        "",
        response_model=models.Page[models.ChangeRecord],
        responses=problems(404),
    )
    async def list_changes(
        who: Reader,
        subject: Annotated[str | None, Query(max_length=200)] = None,
        kind: ChangeKind | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        ticket: TicketId = None,
        limit: Limit = 50,
        cursor: Cursor = None,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """List changes of the watched systems, the newest first."""
        if ticket is not None:
            found = await store.ticket(ticket)
            near = await context.changes.before([found])
            onset = found.first_seen_at
            document = whole(near).document(
                lambda one: change_record_document(one.change, onset)
            )
            return answer(document, if_none_match=if_none_match)
        after = None
        if cursor is not None:
            at, id_ = read_cursor(cursor, datetime, int)
            after = (at, id_)
        query = ChangeFilter(
            subject, kind, aware(since), aware(until), limit + 1, after
        )
        page = page_of(
            await store.system_changes(query), limit, lambda one: [one.at, one.id]
        )
        return answer(
            page.document(change_record_document), if_none_match=if_none_match
        )

    @routes.get(
        "/{change_id}", response_model=models.ChangeRecord, responses=problems(404)
    )
    async def read_change(
        who: Reader, change_id: ChangeId, if_none_match: IfNoneMatch = None
    ) -> Response:
        """Return a change."""
        document = change_record_document(await store.system_change(change_id))
        return answer(document, if_none_match=if_none_match)


def _add_reporting(routes: APIRouter, context: ServerContext) -> None:
    once = Once(context)

    @routes.post(
        "",
        status_code=201,
        response_model=models.ChangeRecord,
        responses=written(409),
    )
    async def report_change(
        request: Request,
        who: ReportsChanges,
        asked: models.NewChangeRecord,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Report a change, such as a deployment, so that it is evidence for what breaks after it."""

        async def act() -> Response:
            made = await _report(context, asked, who, idempotency_key)
            where = {"location": f"/api/v1/changes/{made.id}"}
            return answer(change_record_document(made), status=201, headers=where)

        return await once(request, who, idempotency_key, act)


async def _report(
    context: ServerContext,
    asked: models.NewChangeRecord,
    who: Principal,
    idempotency_key: str | None,
) -> SystemChange:
    """Store a change. Raises InvalidChange."""
    at, now = aware(asked.time), context.clock.now()
    known = {one.name for one in context.subjects}
    keep_for = context.settings.changes.keep_for
    check_report(asked.title, at, asked.subject, asked.labels, known, now, keep_for)
    key = (
        digest_of_key(who, idempotency_key) if idempotency_key else secrets.token_hex()
    )
    reported = ReportedChange(
        key=f"api {key}",
        title=asked.title,
        source=f"api {who.name}",
        kind=ChangeKind(asked.kind),
        at=at,
        subject=asked.subject or "",
        labels=asked.labels,
        version_from=asked.version_from,
        version_to=asked.version_to,
        link=asked.link,
        author=asked.author or who.name,
    )
    new = new_change(reported, Sanitizer(context.redactor), now)
    [made] = await context.store.record_changes([new])
    context.stats.changes["api", "stored"] += 1
    return made
