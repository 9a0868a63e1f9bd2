"""The pages of sessions: the list, one session as it runs, its diff, its permission requests, and its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Query, Request
from starlette.responses import RedirectResponse, Response

from midwatch.errors import Conflict, MidwatchError, NotFound, TemporaryError
from midwatch.lifecycle import first
from midwatch.server.auth import Principal, reads, steers_sessions
from midwatch.server.context import ServerContext
from midwatch.server.page.event_view import EventView, event_views, permission_fields
from midwatch.server.page.live_changes import event_text, stream
from midwatch.server.page.page_routes import page_routes
from midwatch.server.page.rendering import Pages
from midwatch.server.problems import status_of
from midwatch.session.log import EventReader
from midwatch.session.manager import SessionManager
from midwatch.session.options import git_environment
from midwatch.session.records import StoredSession
from midwatch.workspace import inspect
from midwatch.workspace.inspect import Diff
from midwatch.workspace.record import open_workspace

_MOST_LISTED = 200
_MOST_SHOWN = 500
"""Events of a session that a page begins with: the last ones."""
_INTERVAL = 0.1
"""Seconds between two looks at a log that grows: all that has come since is sent at once."""
_AT_ONCE = 2000
_STATUS_INTERVAL = 2.0
_KEEP_ALIVE = 15.0

Who = Annotated[Principal, Depends(reads)]
Worker = Annotated[Principal, Depends(steers_sessions)]


def router(context: ServerContext, pages: Pages) -> APIRouter:
    """Return the routes of sessions."""
    return SessionPages(context, pages).router()


class SessionPages:
    """What the pages of sessions read and do."""

    def __init__(self, context: ServerContext, pages: Pages) -> None:
        self._context = context
        self._pages = pages

    def router(self) -> APIRouter:
        routes = page_routes(self._pages)
        routes.add_api_route("/sessions", self.list_, methods=["GET"])
        one = "/sessions/{session_id}"
        routes.add_api_route(one, self.show, methods=["GET"])
        routes.add_api_route(f"{one}/diff", self.diff, methods=["GET"])
        routes.add_api_route(f"{one}/events", self.events, methods=["GET"])
        for name in ("approve", "deny", "interrupt", "end", "send"):
            act = getattr(self, name)
            routes.add_api_route(f"{one}/{name}", act, methods=["POST"])
        return routes

    @property
    def _manager(self) -> SessionManager:
        return self._context.sessions

    # ------------------------------------------------------------------ read

    async def list_(self, request: Request, who: Who) -> Response:
        sessions = await self._manager.list(limit=_MOST_LISTED)
        return self._pages.page(
            request, who, "sessions.html", "sessions", sessions=sessions
        )

    async def show(self, request: Request, who: Who, session_id: str) -> Response:
        return await self._show(request, who, session_id)

    async def _show(
        self,
        request: Request,
        who: Principal,
        session_id: str,
        error: MidwatchError | None = None,
    ) -> Response:
        session = await self._manager.get(session_id)
        local = self._is_local(session)
        events = await asyncio.to_thread(self._last_events, session) if local else []
        return self._pages.page(
            request,
            who,
            "session.html",
            "sessions",
            status=200 if error is None else status_of(error),
            problem="" if error is None else error.one_line(),
            session=session,
            alive=self._manager.alive(session),
            local=local,
            events=events,
            last=events[-1].seq if events else 0,
            requests=[
                (one, permission_fields(one))
                for one in session.status.pending_permissions
            ],
        )

    def _is_local(self, session: StoredSession) -> bool:
        return session.is_local(self._manager.paths(session.id))

    def _last_events(self, session: StoredSession) -> list[EventView]:
        after = max(session.status.last_seq - _MOST_SHOWN, 0)
        path = self._manager.paths(session.id).folder.outbox
        found: list[EventView] = []
        reader = EventReader(path, after)
        while events := reader.poll():
            found = [*found, *event_views(events)][-_MOST_SHOWN:]
        return found

    async def diff(self, request: Request, who: Who, session_id: str) -> Response:
        session = await self._manager.get(session_id)
        found, problem = [], ""
        try:
            found = await self._diffs(session)
        except MidwatchError as error:
            problem = error.one_line()
        return self._pages.page(
            request,
            who,
            "diff.html",
            "sessions",
            session=session,
            diffs=[(name, one, _lines(one)) for name, one in found],
            problem=problem,
        )

    async def _diffs(self, session: StoredSession) -> list[tuple[str, Diff]]:
        manager = self._manager
        paths = manager.folders.existing(session.id)
        workspace = open_workspace(paths.state)
        await manager.remove_mount_points(session.id)
        environment = git_environment(
            self._context.settings.sessions, self._context.environ
        )
        git = manager.workspace_options(session.id, environment).git()
        found = [await inspect.diffs_of(one, git) for one in workspace.repos]
        return [diff for diffs in found for diff in diffs]

    # ------------------------------------------------------------------ live

    async def events(
        self,
        request: Request,
        who: Who,
        session_id: str,
        after: Annotated[int, Query(ge=0)] = 0,
    ) -> Response:
        known = request.headers.get("last-event-id", "")
        start = int(known[:18]) if known.isascii() and known.isdecimal() else after
        session = await self._manager.get(session_id)
        if not self._is_local(session):
            raise NotFound(f"session {session_id} is not on this machine")
        return stream(self._events(session, start, request.scope.get("root_path", "")))

    async def _events(
        self, session: StoredSession, after: int, base: str
    ) -> AsyncIterator[str]:
        """Yield the events behind a number in groups, and that the status has changed; end with the run."""
        stop, clock = self._context.stop, self._context.clock
        path = self._manager.paths(session.id).folder.outbox
        reader = await asyncio.to_thread(EventReader, path, after)
        shown, looked, sent = _shown_status(session), 0.0, clock.monotonic()
        yield "retry: 1000\n\n"
        while not stop:
            found = await asyncio.to_thread(reader.poll, _AT_ONCE)
            now = clock.monotonic()
            if found:
                text = self._pages.part(
                    "session_events.html", "events_of", event_views(found), base=base
                )
                yield event_text("events", text, str(found[-1].seq))
                sent = now
            if now - looked >= _STATUS_INTERVAL or (found and _asks(found)):
                looked = now
                with contextlib.suppress(TemporaryError):  # its events are in a file
                    session = await self._manager.get(session.id)
                if (status := _shown_status(session)) != shown:
                    shown, sent = status, now
                    yield event_text("status", "changed")
            ended = session.status.phase.terminal and not self._manager.alive(session)
            if ended and not found:
                yield event_text("end", str(session.status.phase))
                return
            if now - sent >= _KEEP_ALIVE:
                sent = now
                yield ": alive\n\n"
            if len(found) < _AT_ONCE:
                await first(clock.sleep(_INTERVAL), stop.wait())

    # ------------------------------------------------------------------ change

    async def approve(
        self,
        request: Request,
        who: Worker,
        session_id: str,
        request_id: Annotated[str, Form(max_length=200)],
    ) -> Response:
        def act() -> object:
            return self._manager.approve(session_id, request_id)

        what = f"allowed request {request_id}"
        return await self._done(request, who, session_id, what, act)

    async def deny(
        self,
        request: Request,
        who: Worker,
        session_id: str,
        request_id: Annotated[str, Form(max_length=200)],
        why: Annotated[str, Form(max_length=2000)] = "",
    ) -> Response:
        def act() -> object:
            return self._manager.deny(session_id, request_id, why)

        what = f"denied request {request_id}"
        return await self._done(request, who, session_id, what, act)

    async def interrupt(
        self, request: Request, who: Worker, session_id: str
    ) -> Response:
        def act() -> object:
            return self._manager.interrupt(session_id)

        return await self._done(request, who, session_id, "ended the turn", act)

    async def end(self, request: Request, who: Worker, session_id: str) -> Response:
        def act() -> object:
            # Without the interrupt it would end only once its turn has ended.
            self._manager.interrupt(session_id)
            return self._manager.end(session_id)

        return await self._done(request, who, session_id, "stopped it", act)

    async def send(
        self,
        request: Request,
        who: Worker,
        session_id: str,
        text: Annotated[str, Form(max_length=20_000)],
    ) -> Response:
        def act() -> object:
            return self._manager.send(session_id, text)

        return await self._done(request, who, session_id, "sent a message", act)

    async def _done(
        self,
        request: Request,
        who: Principal,
        session_id: str,
        what: str,
        act: Callable[[], object],
    ) -> Response:
        """Act, note who did it in the history of the session's ticket, and show the session."""
        session = await self._manager.get(session_id)
        try:
            if not self._manager.alive(session):
                raise Conflict(f"session {session_id} does not run")
            await asyncio.to_thread(act)
        except MidwatchError as error:
            return await self._show(request, who, session_id, error)
        self._context.log.info("session", id=session_id, did=what, by=who.name)
        if session.ticket is not None:
            await self._manager.store.note(session.ticket, session_id, who.name, what)
        base = request.scope.get("root_path", "")
        return RedirectResponse(f"{base}/sessions/{session_id}", 303)


def _asks(events: Any) -> bool:
    return any(
        one.type in ("permission_request", "permission_answer", "phase", "result")
        for one in events
    )


def _shown_status(session: StoredSession) -> Mapping[str, Any]:
    """Return what of a status the page shows beside its events."""
    status = session.status
    return {
        "phase": status.phase,
        "reason": status.reason,
        "pending": [one.request_id for one in status.pending_permissions],
        "cost": round(status.cost_usd, 4),
        "turns": status.turns,
        "repositories": session.repositories,
    }


_MOST_LINES = 20_000


def _lines(diff: Diff) -> list[tuple[str, str]]:
    """Return the lines of a diff, each with its kind: "added", "removed", "place" or ""."""
    shown = []
    for line in diff.text.split("\n")[:_MOST_LINES]:
        kind = ""
        if line.startswith(("+++", "---", "@@", "diff ", "index ")):
            kind = "place"
        elif line.startswith("+"):
            kind = "added"
        elif line.startswith("-"):
            kind = "removed"
        shown.append((kind, line))
    return shown
