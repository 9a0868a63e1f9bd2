"""Sessions of Claude Code."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from midwatch.json_shapes import session_document, session_row
from midwatch.server.api import models
from midwatch.server.api.answers import IfNoneMatch, Reader, answer, problems
from midwatch.server.api.paging import Cursor, Limit, page_of, read_cursor
from midwatch.server.context import ServerContext
from midwatch.session.events import Phase
from midwatch.store.schema import LARGEST_ID


def router(context: ServerContext) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/sessions", tags=["sessions"])

    @routes.get(
        "", response_model=models.Page[models.SessionSummary], responses=problems()
    )
    async def list_sessions(
        who: Reader,
        phase: Annotated[list[Phase] | None, Query(max_length=6)] = None,
        ticket: Annotated[int | None, Query(ge=1, le=LARGEST_ID)] = None,
        limit: Limit = 50,
        cursor: Cursor = None,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """List sessions, the newest first."""
        after = None
        if cursor is not None:
            created_at, id_ = read_cursor(cursor, datetime, str)
            after = (created_at, id_)
        found = await context.sessions.list(
            phases=phase or (), ticket=ticket, limit=limit + 1, after=after
        )
        page = page_of(found, limit, lambda one: [one.created_at, one.id])
        return answer(page.document(session_row), if_none_match=if_none_match)

    @routes.get("/{session_id}", response_model=models.Session, responses=problems(404))
    async def read_session(
        who: Reader,
        session_id: Annotated[str, Path(max_length=63)],
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """Return a session."""
        found = await context.sessions.get(session_id)
        return answer(session_document(found), if_none_match=if_none_match)

    return routes
