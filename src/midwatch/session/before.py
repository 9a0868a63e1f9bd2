"""What whoever runs sessions does around one: prepare its workspace, stop it, close what never began."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from midwatch.errors import MidwatchError, PermanentError
from midwatch.events import Phase, PhaseChanged, failure
from midwatch.lifecycle import Clock, Stop
from midwatch.redaction import Redactor
from midwatch.session.errors import RunnerCrashed
from midwatch.session.folder import SessionFolder
from midwatch.session.journal import Journal
from midwatch.session.session import AsyncAgenticSession
from midwatch.status import SessionStatus

T = TypeVar("T")
GO_ON = "Go on with what you were doing when you were interrupted."
"""What a session is told whose turn ended with its runner, and not because anybody wanted it."""
_ASK_AGAIN = 0.5  # seconds between two requests to stop: the session may not be up yet


class SessionStopped(PermanentError):
    """The session was stopped before it was done."""


async def unless_stopped(work: Coroutine[Any, Any, T], stop: Stop) -> T:
    """The outcome of `work`; SessionStopped, once it is undone, if the stop comes first."""
    working = asyncio.create_task(work, name="preparation")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({working, stopping}, return_when="FIRST_COMPLETED")
        if not working.done():
            raise SessionStopped(stop.reason or "stopped")
        return await working
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


async def stop_when_told(session: AsyncAgenticSession, stop: Stop) -> None:
    """Pass a stop on to a session, until this is cancelled."""
    await stop.wait()
    while True:
        session.stop(stop.reason)
        await asyncio.sleep(_ASK_AGAIN)


def end_unprepared(
    folder: SessionFolder, redactor: Redactor, clock: Clock, error: MidwatchError
) -> SessionStatus:
    """Write into the outbox how a run ended that never had a program; the status it has then.

    SessionStopped makes it Stopped, any other error Failed. Raises DiskFull and FolderUnusable.
    """
    journal = Journal(folder, redactor, clock.now)
    try:
        run = journal.ledger.run
        if run and not journal.ledger.phase.terminal:
            reason = RunnerCrashed.__name__
            journal.emit(PhaseChanged(phase=Phase.FAILED, run=run, reason=reason))
        run += 1
        journal.emit(PhaseChanged(phase=Phase.CREATING, run=run))
        stopped = isinstance(error, SessionStopped)
        if not stopped:
            journal.emit(failure(error))
        phase = Phase.STOPPED if stopped else Phase.FAILED
        reason = error.message if stopped else type(error).__name__
        journal.emit(PhaseChanged(phase=phase, run=run, reason=reason))
        return journal.status
    finally:
        journal.close()
