"""The page of subjects: what each sees now, when it was last seen, and what is unknown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from midwatch.model import Ticket
from midwatch.server.auth import Principal, reads
from midwatch.server.context import ServerContext
from midwatch.server.page.page_routes import page_routes
from midwatch.server.page.rendering import Pages
from midwatch.store.overview_protocol import SubjectState
from midwatch.subjects.base import Subject

_MOST_TICKETS = 10
_STALE_CYCLES = 3
"""Intervals without an observation after which what a subject sees is unknown."""


@dataclass(frozen=True, slots=True)
class SubjectView:
    """A subject, and the monitor that watches it. `unknown` is why its state is unknown, "" where it is known; `holds` are titles of invariants."""

    name: str
    kind: str
    seen_at: datetime | None
    unknown: str
    tickets: Sequence[Ticket]
    more: int
    holds: Sequence[str]
    watcher: str


def router(context: ServerContext, pages: Pages) -> APIRouter:
    """Return the route."""
    routes = page_routes(pages)
    by_name = {subject.name: subject for subject in context.subjects}

    async def show(
        request: Request, who: Annotated[Principal, Depends(reads)]
    ) -> Response:
        cursor = await context.store.last_cursor()
        states = {one.name: one for one in await context.store.subject_states()}
        found: dict[str, list[Ticket]] = {}
        # Of the rest only the number is shown.
        for ticket in await context.store.most_urgent(_MOST_TICKETS):
            found.setdefault(ticket.key.subject, []).append(ticket)
        views = [
            _view(
                context,
                name,
                by_name.get(name),
                states.get(name),
                found.get(name, []),
            )
            for name in sorted({*by_name, *states})
        ]
        return pages.page(
            request, who, "subjects.html", "subjects", subjects=views, cursor=cursor
        )

    routes.add_api_route("/subjects", show, methods=["GET"])
    return routes


def _view(
    context: ServerContext,
    name: str,
    subject: Subject | None,
    state: SubjectState | None,
    tickets: Sequence[Ticket],
) -> SubjectView:
    number = sum(state.unresolved.values()) if state else 0
    number = max(number, len(tickets))
    # An alert's invariant is `alert:NAME`; the subject lists `alert`.
    broken = {one.key.invariant.partition(":")[0] for one in tickets}
    stale_after = _STALE_CYCLES * context.settings.interval_of(name)
    unknown = _unknown(context, subject, state, stale_after)
    every = subject.invariants if subject else ()
    holds = [one.title for one in every if one.id not in broken]
    return SubjectView(
        name,
        subject.kind if subject else "",
        state.last_good_at if state else None,
        unknown,
        tickets,
        number - len(tickets),
        [] if unknown or number > len(tickets) else holds,
        (state.watcher if state else None) or "",
    )


def _unknown(
    context: ServerContext,
    subject: Subject | None,
    state: SubjectState | None,
    stale_after: float,
) -> str:
    """Return why the state of a subject is unknown; "" where it is known."""
    if subject is None:
        return "it is not in the settings of this process"
    if state is None or state.last_good_at is None:
        error = state.last_error if state else None
        return f"it was never observed: {error}" if error else "it was never observed"
    if state.failures:
        return (
            f"the last observation failed: {state.last_error or 'no reason is known'}"
        )
    age = (context.clock.now() - state.last_good_at).total_seconds()
    if age > stale_after:
        return "no monitor has observed it for a while"
    return ""
