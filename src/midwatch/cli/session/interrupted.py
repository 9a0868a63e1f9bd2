"""Pull requests of sessions whose process was killed between the end of the session and the push: a daemon opens them.

The process of `midwatch session fix --pr` holds a lock until it is done. A session of this machine that is Completed, whose
record says that its pull requests are to be opened, and whose lock is free is one that no process works on any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from midwatch.cli.session.publish import (
    is_tried_again,
    not_opened,
    publish_session,
    published_line,
)
from midwatch.cli.session.service import SessionContext
from midwatch.errors import MidwatchError, NotFound, TemporaryError
from midwatch.lifecycle import Clock, StopEvent, SystemClock
from midwatch.logs import Log
from midwatch.pull_requests.publisher import Published
from midwatch.session.errors import DiskFull, FolderUnusable, SessionBusy
from midwatch.session.events import Phase
from midwatch.session.options import PullRequestsAsked
from midwatch.session.records import StoredSession
from midwatch.text import one_line

_POLL = 15.0
_HOUR = 3600.0
_ELSEWHERE = 600.0
"""Seconds after the end of a session on another machine: what is still to be opened then has been left there."""
_TRIED_WITHIN = timedelta(days=7)
_CREATED_WITHIN = 30 * 24 * _HOUR
"""Seconds: an interactive session may be open for long before it ends."""
_ACTOR = "midwatch"
_LATER = "pull requests are opened later"


class InterruptedSessions:
    """Continues `midwatch session fix --pr` for processes that have died.

    Args:
        context: The stores and settings.
        interval: `pull_requests.interval`, in seconds.
        log: Gets one line for each session that is continued, for each new failure, and for what was left on another machine.
        clock: The source of time.
    """

    def __init__(
        self,
        context: SessionContext,
        interval: float,
        log: Log,
        clock: Clock | None = None,
    ) -> None:
        self._context = context
        self._interval = interval
        self._log = log
        self._clock = clock or SystemClock()
        self._said: dict[str, str] = {}

    async def run(self, stop: StopEvent) -> None:
        """Look every few seconds, until the stop. Errors are logged once."""
        while not stop:
            try:
                await self.once()
                self._said.pop("", None)
            except MidwatchError as error:  # the database is away
                self._warn("", "sessions are not continued", error.one_line())
            except Exception:  # a bug here must not end the daemon
                self._log.exception("sessions are not continued")
            if await stop.pause(min(_POLL, self._interval)):
                return

    async def once(self) -> int:
        """Continue what is due now, and return for how many sessions that was tried. Raises the errors of the store."""
        tried = 0
        for session in await self._context.sessions.unpublished(_CREATED_WITHIN):
            try:
                tried += await self._look(session)
            except (SessionBusy, NotFound):  # another process was first, or removed it
                continue
            except (DiskFull, FolderUnusable) as error:  # of this session's folder
                self._warn(session.id, _LATER, error.one_line(), session)
        return tried

    async def _look(self, session: StoredSession) -> bool:
        paths = self._context.manager.paths(session.id)
        if not session.is_local(paths):
            self._say_elsewhere(session)
            return False
        asked = PullRequestsAsked.of(session.options)
        if asked is None or paths.published_elsewhere:
            return False
        if asked.retry_at is not None and self._clock.now() < asked.retry_at:
            return False
        with paths.publishing():
            return await self._continue(session.id)

    async def _continue(self, session_id: str) -> bool:
        """Open the pull requests of a session, whose lock is held. Return whether it was tried."""
        manager = self._context.manager
        session = await manager.get(session_id)
        asked = PullRequestsAsked.of(session.options)
        done = session.status.phase is Phase.COMPLETED and not manager.alive(session)
        if asked is None or not done:
            return False
        age = self._clock.now() - (session.status.ended_at or session.heartbeat_at)
        if age > _TRIED_WITHIN:
            why = f"none could be opened within {_TRIED_WITHIN.days} days"
            await self._give_up(session, why)
            return False
        wait = min(max(self._interval, age.total_seconds() / 10), _HOUR)
        retry_at = self._clock.now() + timedelta(seconds=wait)
        later = PullRequestsAsked(asked.by, asked.new, retry_at)
        await manager.save_asked(session_id, later)
        if asked.retry_at is None:
            await self._note(
                session, "its process ended before its pull requests; a daemon goes on"
            )
        try:
            results = await publish_session(
                self._context, session_id, asked.by, new=asked.new, as_begun=True
            )
        except MidwatchError as error:
            await self._failed(session, error, isinstance(error, TemporaryError))
        else:
            await self._published(session, results)
        return True

    async def _published(
        self, session: StoredSession, results: Sequence[Published]
    ) -> None:
        outcome = ", ".join(map(published_line, results))
        self._log.info(
            "a session was continued whose process had ended",
            ticket=session.ticket,
            session=session.id,
            outcome=outcome,
        )
        if (error := not_opened(results)) is not None:
            await self._failed(session, error, any(map(is_tried_again, results)))

    async def _failed(
        self, session: StoredSession, error: MidwatchError, later: bool
    ) -> None:
        why = self._context.manager.redactor.text(error.one_line())
        if later:
            self._warn(session.id, _LATER, why, session)
        else:
            await self._give_up(session, why)

    async def _give_up(self, session: StoredSession, why: str) -> None:
        await self._context.manager.save_asked(session.id, None)
        self._warn(session.id, "pull requests are not opened", why, session)
        await self._note(session, f"no pull request: {one_line(why, 500)}")

    async def _note(self, session: StoredSession, why: str) -> None:
        if session.ticket is not None:
            sessions = self._context.sessions
            await sessions.note(session.ticket, session.id, _ACTOR, why)

    def _warn(
        self, key: str, what: str, why: str, session: StoredSession | None = None
    ) -> None:
        if self._said.get(key) == why:
            return
        self._said[key] = why
        more = {"ticket": session.ticket, "session": session.id} if session else {}
        self._log.warning(what, **more, reason=one_line(why, 500))

    def _say_elsewhere(self, session: StoredSession) -> None:
        if session.status.phase is not Phase.COMPLETED or session.id in self._said:
            return
        if session.silent_for < _ELSEWHERE:
            return
        self._said[session.id] = session.host
        self._log.warning(
            "pull requests of a session are left: its workspace is not on this machine",
            ticket=session.ticket,
            session=session.id,
            host=session.host,
            hint=f"`midwatch session pr {session.id}` there",
        )
