"""Tickets: list, read, change."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from midwatch.json_shapes import (
    diagnosis_document,
    history_document,
    pull_request_document,
    ticket_document,
    ticket_summary,
)
from midwatch.model import UNRESOLVED, Diagnosis, Severity, Ticket, TicketStatus
from midwatch.server.actions import session_of
from midwatch.server.api import models
from midwatch.server.api.answers import (
    ChangesSilences,
    ChangesTickets,
    IdempotencyKey,
    IfMatch,
    IfNoneMatch,
    Once,
    Reader,
    StartsSessions,
    answer,
    problems,
    version_in,
    written,
)
from midwatch.server.api.paging import Cursor, Limit, page_of, read_cursor, whole
from midwatch.server.api.silence_api import silence_shape
from midwatch.server.context import ServerContext
from midwatch.store.figures import Place
from midwatch.store.protocol import Brief, Store, TicketFilter
from midwatch.store.schema import LARGEST_ID

TicketId = Annotated[int, Path(ge=1, le=LARGEST_ID, description="Its number.")]


class Order(StrEnum):
    URGENT = "urgent"
    NEWEST = "newest"


def router(context: ServerContext) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/tickets", tags=["tickets"])
    _add_reading(routes, context.store)
    _add_one(routes, context.store)
    _add_changes(routes, context)
    _add_more(routes, context)
    _add_approval(routes, context)
    return routes


def _add_reading(routes: APIRouter, store: Store) -> None:
    @routes.get(
        "", response_model=models.Page[models.TicketSummary], responses=problems()
    )
    async def list_tickets(
        who: Reader,
        status: Annotated[list[TicketStatus] | None, Query(max_length=5)] = None,
        subject: Annotated[str | None, Query(max_length=200)] = None,
        invariant: Annotated[str | None, Query(max_length=200)] = None,
        severity: Annotated[models.SeverityName | None, Query()] = None,
        batch: Annotated[int | None, Query(ge=1, le=LARGEST_ID)] = None,
        q: Annotated[
            str, Query(max_length=500, description="Words that it must have.")
        ] = "",
        order: Order = Order.URGENT,
        limit: Limit = 50,
        cursor: Cursor = None,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """List tickets: without `status` those that are not resolved, the most urgent and oldest first."""
        query = TicketFilter(
            statuses=tuple(status or UNRESOLVED),
            subject=subject,
            severity=None if severity is None else Severity.parse(severity),
            batch=batch,
            limit=limit + 1,
            invariant=invariant,
            text=q,
            newest_first=order is Order.NEWEST,
            after=None if cursor is None else _place_in(cursor),
        )
        page = page_of(await store.tickets(query), limit, _place_of)
        briefs = await briefs_of(store, page.entries)
        document = page.document(lambda one: ticket_summary(one, briefs.get(one.id)))
        return answer(document, if_none_match=if_none_match)


def _add_one(routes: APIRouter, store: Store) -> None:
    @routes.get("/{ticket_id}", response_model=models.Ticket, responses=problems(404))
    async def read_ticket(
        who: Reader, ticket_id: TicketId, if_none_match: IfNoneMatch = None
    ) -> Response:
        """Return a ticket. Its ETag serves for If-Match."""
        version = await store.version(ticket_id)
        ticket = await store.ticket(ticket_id)
        sessions = await store.sessions_of(ticket_id)
        pulls = await store.pull_requests_of(ticket_id)
        diagnosis = await diagnosis_of(store, ticket)
        document = ticket_document(ticket, diagnosis, sessions, pulls)
        return answer(document, version=version, if_none_match=if_none_match)

    @routes.get(
        "/{ticket_id}/history",
        response_model=models.Page[models.HistoryEntry],
        responses=problems(404),
    )
    async def read_history(
        who: Reader, ticket_id: TicketId, if_none_match: IfNoneMatch = None
    ) -> Response:
        """Return every change of a ticket, the oldest first."""
        page = whole(await store.history(ticket_id))
        return answer(page.document(history_document), if_none_match=if_none_match)

    @routes.get(
        "/{ticket_id}/diagnoses",
        response_model=models.Page[models.Diagnosis],
        responses=problems(404),
    )
    async def list_diagnoses(
        who: Reader, ticket_id: TicketId, if_none_match: IfNoneMatch = None
    ) -> Response:
        """Return every attempt at a diagnosis of a ticket, the oldest first."""
        ticket = await store.ticket(ticket_id)
        page = whole(await store.diagnoses(ticket_id))
        document = page.document(lambda one: diagnosis_document(ticket, one))
        return answer(document, if_none_match=if_none_match)


def _place_of(ticket: Ticket) -> list[Any]:
    return [int(ticket.severity), ticket.opened_at, ticket.id]


def _place_in(cursor: str) -> Place:
    severity, opened_at, id_ = read_cursor(cursor, int, datetime, int)
    return Place(severity, opened_at, id_)


async def briefs_of(store: Store, found: Any) -> dict[int, Brief]:
    """Return the outcome of each ticket's diagnosis, by the ticket's id."""
    wanted = {one.diagnosis_id for one in found if one.diagnosis_id is not None}
    briefs = await store.briefs(sorted(wanted)) if wanted else {}
    return {
        one.id: briefs[one.diagnosis_id]
        for one in found
        if one.diagnosis_id is not None and one.diagnosis_id in briefs
    }


async def diagnosis_of(store: Store, ticket: Ticket) -> Diagnosis | None:
    """Return the diagnosis that settled a ticket."""
    if ticket.diagnosis_id is None:
        return None
    return await store.diagnosis(ticket.diagnosis_id)


def _add_changes(routes: APIRouter, context: ServerContext) -> None:
    once, actions = Once(context), context.actions

    async def changed(ticket: Ticket) -> Response:
        version = await context.store.version(ticket.id)
        briefs = await briefs_of(context.store, [ticket])
        document = ticket_summary(ticket, briefs.get(ticket.id))
        return answer(document, version=version)

    def add(
        name: str, change: Callable[..., Awaitable[Ticket]], text: str, body: Any
    ) -> None:
        async def route(
            request: Request,
            who: ChangesTickets,
            ticket_id: TicketId,
            asked: body,
            if_match: IfMatch = None,
            idempotency_key: IdempotencyKey = None,
        ) -> Response:
            async def act() -> Response:
                version = version_in(if_match)
                return await changed(
                    await change(who, ticket_id, asked.why, version=version)
                )

            return await once(request, who, idempotency_key, act)

        route.__annotations__["asked"] = body
        routes.add_api_route(
            f"/{{ticket_id}}/{name}",
            route,
            methods=["POST"],
            name=f"{name}_ticket",
            operation_id=f"{name}_ticket",
            summary=text,
            response_model=models.TicketSummary,
            responses=written(404, 409, 412),
        )

    async def hold(who: Any, ticket_id: int, why: str, **more: Any) -> Ticket:
        return await actions.hold(who, ticket_id, True, why, **more)

    async def unhold(who: Any, ticket_id: int, why: str, **more: Any) -> Ticket:
        return await actions.hold(who, ticket_id, False, why, **more)

    add("acknowledge", actions.acknowledge, "Record that you work on it", models.Why)
    add("hold", hold, "Keep it from resolving by itself", models.Why)
    add("unhold", unhold, "Let it resolve by itself again", models.Why)
    add("retry", actions.retry, "Put it back into the queue", models.Why)
    add("resolve", actions.resolve, "Resolve it by hand", models.Reason)


def _add_more(routes: APIRouter, context: ServerContext) -> None:
    once, actions = Once(context), context.actions

    @routes.post(
        "/{ticket_id}/silence",
        status_code=201,
        response_model=models.SilenceShape,
        responses=written(404, 409),
    )
    async def silence_ticket(
        request: Request,
        who: ChangesSilences,
        ticket_id: TicketId,
        asked: models.SilenceTicket,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Silence the violation that a ticket is about."""

        async def act() -> Response:
            made = await actions.silence(who, ticket_id, asked.seconds, asked.why)
            where = {"location": f"/api/v1/silences/{made.id}"}
            document = await silence_shape(context, made)
            return answer(document, status=201, headers=where)

        return await once(request, who, idempotency_key, act)

    @routes.post(
        "/{ticket_id}/fix",
        status_code=202,
        response_model=models.StartedSession,
        responses=written(404, 409),
    )
    async def fix_ticket(
        request: Request,
        who: StartsSessions,
        ticket_id: TicketId,
        asked: models.Fix,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Start a session of Claude Code that works on a ticket, in the repositories of its subject."""

        async def act() -> Response:
            started = await actions.fix(
                who,
                ticket_id,
                asked.prompt,
                interactive=asked.interactive,
                pull_request=asked.pull_request,
                session_id=session_of(who, ticket_id, idempotency_key),
            )
            here = f"/api/v1/sessions/{started.session}"
            of_ticket = f"/api/v1/tickets/{ticket_id}"
            where = {"location": of_ticket if started.resource else here}
            return answer(asdict(started), status=202, headers=where)

        return await once(request, who, idempotency_key, act)


def _add_approval(routes: APIRouter, context: ServerContext) -> None:
    once, actions = Once(context), context.actions

    @routes.post(
        "/{ticket_id}/approve-pull-requests",
        response_model=list[models.PullRequest],
        responses=written(404, 409),
    )
    async def approve_pull_requests(
        request: Request,
        who: StartsSessions,
        ticket_id: TicketId,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Approve what waits for it: it is pushed, and the pull requests are opened."""

        async def act() -> Response:
            await actions.approve_pull_requests(who, ticket_id)
            pulls = await context.store.pull_requests_of(ticket_id)
            return answer([pull_request_document(one) for one in pulls])

        return await once(request, who, idempotency_key, act)
