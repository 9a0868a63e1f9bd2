"""One run of a session, from its workspace to its end, told while it happens."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import shutil
import sys
from collections.abc import AsyncIterator

from midwatch.cli.session.attaching import chat
from midwatch.cli.session.choices import session_options
from midwatch.cli.session.cloning import shown_progress
from midwatch.cli.session.desk import Desk
from midwatch.cli.session.kept import Kept
from midwatch.cli.session.pages import repository_line, summary_line
from midwatch.cli.session.places import Place
from midwatch.cli.session.pushing import push_and_tell
from midwatch.cli.session.request import Request
from midwatch.cli.session.telling import Teller, aside, aside_error
from midwatch.cli.wiring import here
from midwatch.errors import MidwatchError, TemporaryError
from midwatch.lifecycle import Stop, SystemClock, signals_set
from midwatch.redaction import Redactor
from midwatch.session.agentic_session import (
    AsyncAgenticSession,
    SessionResult,
    SessionStopped,
    end_unprepared,
    stop_when_told,
    unless_stopped,
)
from midwatch.session.events import Phase
from midwatch.session.records import HEARTBEAT, SessionSpec
from midwatch.workspace.record import Workspace, open_workspace
from midwatch.workspace.setup import setup_workspace_async


class Runner:
    """Carries a request out. After `run`, the session is in a terminal phase, in every record."""

    def __init__(self, desk: Desk, request: Request, teller: Teller) -> None:
        self._desk = desk
        self._request = request
        self._teller = teller
        self._place: Place = desk.places.place(request.id)
        self._redactor: Redactor = desk.redactor()
        self._kept = Kept(desk, request, self._place, self._redactor)
        self._git = desk.workspace_options(self._place)

    async def run(self) -> SessionResult:
        """Raises what ended the session badly, and SessionStopped; returns what is Completed."""
        gc.enable()  # `main` turned it off for the start
        self._desk.access()  # without a key, nothing is begun
        self._place.folder.make()
        stop = Stop()
        with self._place.owned(), signals_set(stop):
            workspace = await self._prepare(stop)
            error, result = await self._converse(workspace, stop)
        await self._tell_end(result)
        if error is not None:
            raise error
        if result.phase is not Phase.COMPLETED:
            raise SessionStopped(
                f"the session was stopped: {result.reason}",
                hint=f"`midwatch session resume {result.session_id}` goes on with it",
            )
        if self._request.push:
            await push_and_tell(self._desk, self._place, self._teller)
        return result

    # -------------------------------------------------- the workspace

    async def _prepare(self, stop: Stop) -> Workspace:
        with self._place.folder.locked():
            if self._request.moved:
                # What the program has on this disk is older than the store's transcript.
                shutil.rmtree(self._place.programs_own, ignore_errors=True)
            await self._kept.save_spec(self._spec())
            try:
                async with self._heartbeat():
                    return await self._cloned(stop)
            except MidwatchError as error:
                await self._end_unprepared(error)
                raise

    def _spec(self) -> SessionSpec:
        request, now = self._request, SystemClock().now()
        return SessionSpec(
            id=request.id,
            created_at=now,
            cwd=str(self._place.workspace),
            model=session_options(self._desk.settings.sessions, request.choices).model,
            interactive=request.interactive,
            forked_from=request.forked_from,
            ticket=request.ticket,
        )

    async def _cloned(self, stop: Stop) -> Workspace:
        request = self._request
        specs = [repository.spec() for repository in request.repositories]
        with shown_progress(quiet=self._teller.as_json) as on_progress:
            setting_up = setup_workspace_async(
                specs,
                self._place.workspace,
                request.main,
                options=self._git,
                on_progress=on_progress,
            )
            await unless_stopped(setting_up, stop)
        return open_workspace(self._place.state)

    @contextlib.asynccontextmanager
    async def _heartbeat(self) -> AsyncIterator[None]:
        async def beat() -> None:
            while True:
                with contextlib.suppress(TemporaryError):
                    now = SystemClock().now()
                    await self._kept.heartbeat(self._request.id, here(), now)
                await asyncio.sleep(HEARTBEAT)

        beating = asyncio.create_task(beat(), name="heartbeat")
        try:
            yield
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    async def _end_unprepared(self, error: MidwatchError) -> None:
        """Write how a run ended that never had a program."""
        status = end_unprepared(
            self._place.folder, self._redactor, SystemClock(), error
        )
        await self._kept.save_status(self._request.id, status)

    # -------------------------------------------------- the conversation

    def _session(self, workspace: Workspace) -> AsyncAgenticSession:
        desk, request = self._desk, self._request
        spent = request.carried.cost_usd if request.carried else 0.0
        return AsyncAgenticSession(
            client=desk.access(),
            workspace=workspace,
            options=session_options(desk.settings.sessions, request.choices, spent),
            interactive=request.interactive,
            session_id=request.id,
            folder=self._place.folder.path,
            forked_from=request.forked_from,
            ticket=request.ticket,
            records=self._kept,
            transcripts=desk.transcripts,
            workspace_options=self._git,
            redactor=self._redactor,
        )

    async def _converse(
        self, workspace: Workspace, stop: Stop
    ) -> tuple[MidwatchError | None, SessionResult]:
        session = self._session(workspace)
        ended_badly: MidwatchError | None = None
        async with session:
            beside = [asyncio.create_task(stop_when_told(session, stop), name="stop")]
            if self._request.interactive and sys.stdin.isatty():
                beside.append(asyncio.create_task(chat(self._place), name="chat"))
            try:
                async for event in session.execute(self._request.prompt):
                    self._teller.event(event)
            except MidwatchError as error:
                ended_badly = error
            finally:
                for task in beside:
                    task.cancel()
                await asyncio.gather(*beside, return_exceptions=True)
            return ended_badly, await self._results(session)

    async def _results(self, session: AsyncAgenticSession) -> SessionResult:
        """The results; a repository that cannot be looked at does not hide how it ended."""
        try:
            return await session.get_results()
        except MidwatchError as error:
            aside_error("the repositories could not be looked at", error)
            return await session.get_results(repositories=False)

    async def _tell_end(self, result: SessionResult) -> None:
        teller = self._teller
        if teller.as_json:
            from midwatch.cli.session.documents import result_document

            teller.document(result_document(result))
            return
        teller.answer(result.text)
        teller.plain()
        for state in result.repositories:
            teller.plain(repository_line(state))
        teller.phase(result.phase, summary_line(result))
        if self._request.push and result.phase is not Phase.COMPLETED:
            aside(f"nothing is pushed: `midwatch session push {result.session_id}`")
