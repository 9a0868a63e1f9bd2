"""Watched subjects, and figures about tickets and daemons."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from midwatch.errors import NotFound
from midwatch.json_shapes import stats_document
from midwatch.model import Json
from midwatch.server.api import models
from midwatch.server.api.answers import IfNoneMatch, Reader, answer, problems
from midwatch.server.api.paging import whole
from midwatch.server.context import ServerContext
from midwatch.store.overview_protocol import SubjectState
from midwatch.subjects.base import Subject

_STALE_CYCLES = 3
"""Intervals without an observation after which what a subject sees is unknown."""
_MOST_SECONDS = 100 * 365 * 86400.0
_DAEMON_PERIODS = 3


def router(context: ServerContext) -> APIRouter:
    """Return the routes."""
    routes = APIRouter()
    subjects = {one.name: one for one in context.subjects}

    async def every() -> dict[str, Json]:
        states = {one.name: one for one in await context.store.subject_states()}
        now = context.clock.now()
        interval_of = context.settings.interval_of
        return {
            name: _shape(
                name,
                subjects.get(name),
                states.get(name),
                now,
                _STALE_CYCLES * interval_of(name),
            )
            for name in sorted({*subjects, *states})
        }

    @routes.get(
        "/subjects",
        tags=["subjects"],
        response_model=models.Page[models.SubjectShape],
        responses=problems(),
    )
    async def list_subjects(who: Reader, if_none_match: IfNoneMatch = None) -> Response:
        """List subjects: those of the settings, and those that were ever observed."""
        page = whole(list((await every()).values()))
        return answer(page.document(lambda one: one), if_none_match=if_none_match)

    @routes.get(
        "/subjects/{name}",
        tags=["subjects"],
        response_model=models.SubjectShape,
        responses=problems(404),
    )
    async def read_subject(
        who: Reader,
        name: Annotated[str, Path(max_length=200)],
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """Return a subject."""
        found = (await every()).get(name)
        if found is None:
            raise NotFound(f"there is no subject {name[:80]!r}")
        return answer(found, if_none_match=if_none_match)

    _add_stats(routes, context)
    return routes


def _add_stats(routes: APIRouter, context: ServerContext) -> None:
    @routes.get(
        "/stats", tags=["stats"], response_model=models.Stats, responses=problems()
    )
    async def read_stats(
        who: Reader,
        seconds: Annotated[
            float,
            Query(gt=0, le=_MOST_SECONDS, description="The period back from now."),
        ] = 7
        * 86400.0,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """Return figures about tickets, calls and daemons of a period."""
        store, settings = context.store, context.settings
        periods = (settings.monitor.interval, settings.agent.poll_interval, 10.0)
        document = stats_document(
            await store.stats(seconds),
            await store.spent_today(),
            settings.agent.daily_budget_usd,
            await store.pauses(),
            await store.daemons(_DAEMON_PERIODS * max(periods)),
            await store.delivery_counts(seconds),
        )
        return answer(document, if_none_match=if_none_match)


def _shape(
    name: str,
    subject: Subject | None,
    state: SubjectState | None,
    now: datetime,
    stale_after: float,
) -> Json:
    seen_at = state.last_good_at if state else None
    known = (
        state is not None
        and seen_at is not None
        and not state.failures
        and (now - seen_at).total_seconds() <= stale_after
    )
    unresolved = state.unresolved if state else {}
    broken = "broken" if unresolved else "ok"
    return {
        "name": name,
        "kind": subject.kind if subject else None,
        "state": broken if known else "unknown",
        "last_seen_at": seen_at,
        "last_polled_at": state.last_look_at if state else None,
        "watched_by": state.watcher if state else None,
        "failures": state.failures if state else 0,
        "last_error": state.last_error if state else None,
        "unresolved": {one.label: count for one, count in sorted(unresolved.items())},
        "invariants": [
            {"id": one.id, "title": one.title, "severity": one.severity.label}
            for one in (subject.invariants if subject else ())
        ],
    }
