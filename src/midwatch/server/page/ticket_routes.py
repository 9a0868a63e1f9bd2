"""The pages of tickets: the list, one ticket, its buttons, and the stream of changes."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Query, Request
from starlette.responses import RedirectResponse, Response

from midwatch.agent.recent_changes import (
    NearChange,
    change_line,
    distance,
    heading,
)
from midwatch.errors import MidwatchError, NotFound
from midwatch.json_shapes import (
    pull_request_state,
    runbook_url,
    settled,
    ticket_runbooks,
)
from midwatch.model import UNRESOLVED, AuditRow, Severity, Ticket
from midwatch.runbooks.excerpt import first_steps
from midwatch.server.auth import (
    Principal,
    approves_actions,
    changes_silences,
    changes_tickets,
    reads,
    steers_sessions,
)
from midwatch.server.context import ServerContext
from midwatch.server.page.answer_view import diagnosis_view, first_aid_view
from midwatch.server.page.live_changes import LiveChanges, stream
from midwatch.server.page.page_routes import page_routes
from midwatch.server.page.rendering import Pages, stamp
from midwatch.server.page.ticket_query import PAGE, STATUSES, TicketQuery
from midwatch.server.problems import RequestRefused, status_of
from midwatch.store.on_call import Cursor
from midwatch.store.protocol import Brief, TicketFilter
from midwatch.subjects.actionable import ActionCheck
from midwatch.system_changes import SystemChange
from midwatch.text import one_line
from midwatch.units import check_url

_MOST_OF_INCIDENT = 20
_MOST_FACTS = 40
_MOST_PAST = 5
_LONGEST_REASON = 2000

Who = Annotated[Principal, Depends(reads)]
Changer = Annotated[Principal, Depends(changes_tickets)]
Approver = Annotated[Principal, Depends(approves_actions)]
Why = Annotated[str, Form(max_length=_LONGEST_REASON)]


def router(context: ServerContext, pages: Pages) -> APIRouter:
    """Return the routes of tickets."""
    return TicketPages(context, pages).router()


class TicketPages:
    """What the pages of tickets read and do."""

    def __init__(self, context: ServerContext, pages: Pages) -> None:
        self._context = context
        self._store = context.store
        self._pages = pages
        self._live = LiveChanges(context, pages, self._with_brief)

    def router(self) -> APIRouter:
        routes = page_routes(self._pages)
        routes.add_api_route("/", self.home, methods=["GET"])
        routes.add_api_route("/tickets", self.list_, methods=["GET"])
        routes.add_api_route("/tickets/{ticket_id}", self.show, methods=["GET"])
        routes.add_api_route("/changes", self.changes, methods=["GET"])
        for name in ("acknowledge", "hold", "unhold", "retry", "resolve", "silence"):
            path = f"/tickets/{{ticket_id}}/{name}"
            routes.add_api_route(path, getattr(self, name), methods=["POST"])
        routes.add_api_route(
            "/tickets/{ticket_id}/fix",
            self.fix,
            methods=["POST"],
        )
        routes.add_api_route(
            "/tickets/{ticket_id}/approve-pull-requests",
            self.approve_pull_requests,
            methods=["POST"],
        )
        routes.add_api_route(
            "/tickets/{ticket_id}/actions/{action_id}/approve",
            self.approve,
            methods=["POST"],
        )
        return routes

    # ------------------------------------------------------------------ read

    async def home(self, request: Request) -> Response:
        return _to(request, "/tickets")

    async def list_(self, request: Request, who: Who) -> Response:
        query = TicketQuery.of(request.query_params)
        # Before the list is read: a change in between comes again, and none is missed.
        cursor = await self._store.last_cursor()
        found = await self._store.tickets(query.filter())
        shown = found[:PAGE]
        return self._pages.page(
            request,
            who,
            "tickets.html",
            "tickets",
            query=query,
            tickets=shown,
            briefs=await self._briefs(shown),
            more=shown[-1] if len(found) > PAGE else None,
            counts=await self._store.unresolved_counts(),
            subjects=sorted(subject.name for subject in self._context.subjects),
            statuses=[(one, one.replace("_", " ")) for one in STATUSES],
            severities=list(Severity),
            cursor=cursor,
        )

    async def show(
        self,
        request: Request,
        who: Who,
        ticket_id: int,
        tried: Annotated[str, Query(max_length=40)] = "",
    ) -> Response:
        """Show a ticket; with `tried`, what this action would do now."""
        if not tried:
            return await self._show(request, who, ticket_id)
        try:
            check = await self._context.actions.dry_run(who, ticket_id, tried)
        except MidwatchError as error:
            return await self._show(request, who, ticket_id, error)
        return await self._show(request, who, ticket_id, tried=(tried, check))

    async def changes(
        self,
        request: Request,
        who: Who,
        after: Annotated[str, Query(max_length=100)] = "",
        ticket: int | None = None,
    ) -> Response:
        # A browser that connects again by itself says so in the header; one whose page goes on, in the address.
        text = request.headers.get("last-event-id") or after
        try:
            cursor = Cursor.parse(text) if text else None
        except ValueError:
            raise RequestRefused(
                f"{text!r:.60} is no place in the changes",
                hint="leave `after` out to begin with what comes from now on",
            ) from None
        base = request.scope.get("root_path", "")
        return stream(self._live.events(cursor, ticket, base))

    # ------------------------------------------------------------------ change

    async def acknowledge(
        self, request: Request, who: Changer, ticket_id: int, why: Why = ""
    ) -> Response:
        act = self._context.actions.acknowledge(who, ticket_id, why)
        return await self._done(request, who, ticket_id, act)

    async def hold(
        self, request: Request, who: Changer, ticket_id: int, why: Why = ""
    ) -> Response:
        act = self._context.actions.hold(who, ticket_id, True, why)
        return await self._done(request, who, ticket_id, act)

    async def unhold(
        self, request: Request, who: Changer, ticket_id: int, why: Why = ""
    ) -> Response:
        act = self._context.actions.hold(who, ticket_id, False, why)
        return await self._done(request, who, ticket_id, act)

    async def retry(
        self, request: Request, who: Changer, ticket_id: int, why: Why = ""
    ) -> Response:
        act = self._context.actions.retry(who, ticket_id, why)
        return await self._done(request, who, ticket_id, act)

    async def resolve(
        self, request: Request, who: Changer, ticket_id: int, why: Why = ""
    ) -> Response:
        act = self._context.actions.resolve(who, ticket_id, why)
        return await self._done(request, who, ticket_id, act)

    async def silence(
        self,
        request: Request,
        who: Annotated[Principal, Depends(changes_silences)],
        ticket_id: int,
        seconds: Annotated[float, Form(gt=0, le=366 * 86400)],
        why: Why = "",
    ) -> Response:
        act = self._context.actions.silence(who, ticket_id, seconds, why)
        return await self._done(request, who, ticket_id, act)

    async def fix(
        self,
        request: Request,
        who: Annotated[Principal, Depends(steers_sessions)],
        ticket_id: int,
        prompt: Annotated[str, Form(max_length=20_000)] = "",
        key: Annotated[str, Form(max_length=100)] = "",
        pull_request: Annotated[bool, Form()] = False,
    ) -> Response:
        act = self._context.actions.fix_once(
            who, ticket_id, prompt, key or _new_key(), pull_request=pull_request
        )
        return await self._done(
            request,
            who,
            ticket_id,
            act,
            lambda one: (
                f"/tickets/{ticket_id}" if one.resource else f"/sessions/{one.session}"
            ),
        )

    async def approve_pull_requests(
        self,
        request: Request,
        who: Annotated[Principal, Depends(steers_sessions)],
        ticket_id: int,
    ) -> Response:
        act = self._context.actions.approve_pull_requests(who, ticket_id)
        return await self._done(request, who, ticket_id, act)

    async def approve(
        self, request: Request, who: Approver, ticket_id: int, action_id: str
    ) -> Response:
        act = self._context.actions.approve(who, ticket_id, action_id, "page")
        return await self._done(
            request, who, ticket_id, act, lambda run: f"/tickets/{run.ticket_id}"
        )

    async def _done(
        self,
        request: Request,
        who: Principal,
        ticket_id: int,
        act: Awaitable[Any],
        place: Callable[[Any], str] | None = None,
    ) -> Response:
        """Answer with the ticket as it is now; where that was refused, with the reason on it."""
        try:
            done = await act
        except NotFound:
            raise
        except MidwatchError as error:
            return await self._show(request, who, ticket_id, error)
        return _to(request, place(done) if place else f"/tickets/{ticket_id}")

    # ------------------------------------------------------------------ what a page shows

    async def _show(
        self,
        request: Request,
        who: Principal,
        ticket_id: int,
        error: MidwatchError | None = None,
        tried: tuple[str, ActionCheck | None] = ("", None),
    ) -> Response:
        values = await self._details(ticket_id)
        return self._pages.page(
            request,
            who,
            "ticket.html",
            "tickets",
            status=200 if error is None else status_of(error),
            problem="" if error is None else error.one_line(),
            tried=tried,
            **values,
        )

    async def _details(self, ticket_id: int) -> Mapping[str, Any]:
        store = self._store
        cursor = await store.last_cursor()
        ticket = await store.ticket(ticket_id)
        attempts = await store.diagnoses(ticket_id)
        diagnosis = settled(ticket, attempts)
        of_batch = TicketFilter(
            UNRESOLVED, batch=ticket.batch, limit=_MOST_OF_INCIDENT + 1
        )
        incident = await store.tickets(of_batch)
        others = [one for one in incident if one.id != ticket.id][:_MOST_OF_INCIDENT]
        ids = [one.id for one in incident] or [ticket.id]
        past = await store.past([ticket], _MOST_PAST + 1)
        near = await self._context.changes.before([ticket])
        return {
            "ticket": ticket,
            "cursor": cursor,
            "attempts": attempts,
            "diagnosis": diagnosis,
            "answer": None if diagnosis is None else diagnosis_view(diagnosis, ids),
            "aid": first_aid_view(ticket, diagnosis),
            "waiting": _waiting(ticket),
            "facts": list(_facts(ticket)),
            "runbook_url": runbook_url(ticket),
            "runbooks": [
                (one, first_steps(one["text"]))
                for one in ticket_runbooks(ticket, diagnosis)
            ],
            "incident": others,
            "briefs": await self._briefs(others),
            "past": [one for one in past if one.ticket.id != ticket.id][:_MOST_PAST],
            "history": _history(ticket, await store.history(ticket_id), near),
            "changes": [_shown(one.change, ticket) for one in near],
            "sessions": await store.sessions_of(ticket_id),
            "fix_key": _new_key(),
            "cluster": self._context.settings.server.session_cluster,
            "pull_requests": [
                (one, pull_request_state(one), _link(one.url))
                for one in await store.pull_requests_of(ticket_id)
            ],
            "approvable": await self._context.actions.ticket_actions(ticket_id),
        }

    async def _briefs(self, tickets: Sequence[Ticket]) -> Mapping[int, Brief]:
        wanted = {one.diagnosis_id for one in tickets if one.diagnosis_id is not None}
        return await self._store.briefs(sorted(wanted)) if wanted else {}

    async def _with_brief(self, ticket_id: int) -> tuple[Ticket, Brief | None]:
        ticket = await self._store.ticket(ticket_id)
        briefs = await self._briefs([ticket])
        return ticket, briefs.get(ticket.diagnosis_id or 0)


def _new_key() -> str:
    """Return a key for a form: sent twice, as by a double click, it is one request."""
    return secrets.token_urlsafe(12)


def _to(request: Request, path: str) -> RedirectResponse:
    return RedirectResponse(request.scope.get("root_path", "") + path, 303)


def _shown(change: SystemChange, ticket: Ticket) -> Mapping[str, Any]:
    """Return what the page shows of a change."""
    return {
        "at": change.at,
        "distance": distance(change, ticket.first_seen_at),
        "heading": heading(change),
        "text": change_line(change),
        "files": change.files,
        "link": _link(change.link),
        "observed": change.observed,
    }


def _history(
    ticket: Ticket, rows: Sequence[AuditRow], near: Sequence[NearChange]
) -> list[Mapping[str, Any]]:
    """Return the moments of a ticket, the latest first, with marks where something was changed."""
    moments: list[Mapping[str, Any]] = [
        {"at": row.at, "row": row, "change": None} for row in rows
    ]
    moments += [
        {"at": one.change.at, "row": None, "change": _shown(one.change, ticket)}
        for one in near
    ]
    order = sorted(enumerate(moments), key=lambda one: (one[1]["at"], one[0]))
    return [moment for _, moment in reversed(order)]


def _waiting(ticket: Ticket) -> str:
    """Return what a ticket without a diagnosis waits for."""
    if ticket.resolved:
        return ""
    if ticket.attempts and ticket.next_attempt_at is not None:
        tried = "once" if ticket.attempts == 1 else f"{ticket.attempts} times"
        why = f" {one_line(ticket.last_error, 300)}" if ticket.last_error else ""
        return f"Claude was asked {tried}; next {stamp(ticket.next_attempt_at)}.{why}"
    return "A diagnosis follows once an agent takes the ticket."


def _facts(ticket: Ticket) -> Sequence[tuple[str, str, str]]:
    """Return the facts of a ticket: names, values, and links of those that are addresses."""
    shown = []
    for name, value in list(ticket.facts.items())[:_MOST_FACTS]:
        if value is None or value == "":
            continue
        text = one_line(str(value), 500)
        shown.append((one_line(str(name), 60), text, _link(value)))
    return shown


def _link(value: object) -> str:
    """Return an address of http or https as it is; "" for anything else."""
    if not isinstance(value, str) or not value.startswith(("http://", "https://")):
        return ""
    try:
        return check_url(value)
    except ValueError:
        return ""
