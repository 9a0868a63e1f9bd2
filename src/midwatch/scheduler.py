"""Start the sessions of schedules at their times: each time once, by any of the daemons on one store.

A daemon claims a time by a row in the store before it starts the session. A time that no session starts for is recorded
and logged as missed, with the reason. Daemons with other settings can be on the store: each looks at its own schedules alone.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Protocol

from midwatch.errors import MidwatchError, NotFound, TemporaryError
from midwatch.lifecycle import Clock, Liveness, StopEvent, cancel
from midwatch.logs import Log
from midwatch.schedule_settings import ScheduleSettings
from midwatch.session.manager import SessionManager
from midwatch.session.records import new_session_id, this_host
from midwatch.store.schedules import Run, ScheduleKey, Seen, SqlSchedules
from midwatch.units import format_count, format_duration

LONGEST_WAIT = 30.0
"""Seconds after which the clock is read again at the latest: it may have been set, and the machine suspended."""
SETTLE_AFTER = 240.0
"""Seconds after which a claim without a session counts as that of a daemon that has ended; a start takes less, also one that
stops another session first."""
_STOP_SECONDS = 120.0
_POLL = 0.2
_SLACK = 60.0
"""Seconds that the clocks of daemons may differ by before one counts as set back."""
_MOST_TIMES = 2000
"""Times of one schedule that are looked at at once: with more, the oldest of them are not counted."""
_MOST_KEPT = 100
"""Missed times of one interruption that are recorded, the newest; the others are counted."""
_NOT_RUNNING = "no daemon ran at this time, or the machine was suspended"


class StartsSchedules(Protocol):
    """What starts the sessions."""

    async def run_schedule(self, name: str, session_id: str) -> None:
        """Start the session of a schedule, and return once it is in the store. Raises MidwatchError."""


def key_of(schedule: ScheduleSettings) -> ScheduleKey:
    """Return what the store knows a schedule by."""
    return ScheduleKey(schedule.name, schedule.fingerprint, schedule.definition)


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be done about the times of a schedule that have come.

    Attributes:
        until: The last of them.
        start: The one to start a session for; None if it is too late for any.
        missed: The newest of the others, oldest first.
        missed_count: How many others there are.
    """

    until: datetime
    start: datetime | None
    missed: Sequence[Run]
    missed_count: int


def due_times(schedule: ScheduleSettings, after: datetime, now: datetime) -> Due | None:
    """Return what has come due after `after`, up to `now`; None if nothing has. Pure.

    Only the last time can start a session, as one of Kubernetes' CronJobs: the sessions of earlier ones would do
    the same work at the same moment.
    """
    deadline = timedelta(seconds=schedule.starting_deadline)
    times = schedule.times
    found = list(islice(times.between(after, now), _MOST_TIMES))
    if len(found) == _MOST_TIMES:  # perhaps more: go on near the present
        recent = times.between(max(found[-1], now - deadline), now)
        found += islice(recent, _MOST_TIMES)
    if not found:
        return None
    last = found[-1]
    start = last if now - last <= deadline else None
    left = found[:-1] if start else found
    missed = [
        Run(schedule.name, at, "missed", reason=_NOT_RUNNING)
        for at in left[-_MOST_KEPT:]
    ]
    return Due(last, start, missed, len(left))


class Scheduler:
    """Starts the sessions of schedules until it is stopped.

    Args:
        schedules: The group `schedules` of the settings.
        store: How far their times were looked at, and the claims.
        starts: Starts a session as a process of its own.
        sessions: Says whether a session still runs.
        log: Where starts and missed times are reported.
        clock: The source of time.
        progress: The liveness that a health probe asks.
    """

    def __init__(
        self,
        schedules: Sequence[ScheduleSettings],
        store: SqlSchedules,
        starts: StartsSchedules,
        sessions: SessionManager,
        log: Log,
        clock: Clock,
        progress: Liveness,
    ) -> None:
        self._schedules = schedules
        self._store = store
        self._starts = starts
        self._sessions = sessions
        self._log = log
        self._clock = clock
        self._progress = progress
        self._keys = {one.name: key_of(one) for one in schedules}
        self._begun: set[str] = set()
        self._starting: set[asyncio.Task[None]] = set()

    async def run(self, stop: StopEvent) -> None:
        """Start sessions until `stop` is set. Errors of the store and of sessions are logged, never raised.

        A session that is starting goes on: it is a process of its own.
        """
        try:
            while not stop:
                self._progress.expect("schedules", LONGEST_WAIT + 180.0)
                try:
                    await self.tick()
                except MidwatchError as error:
                    self._log.warning("schedules not read", error=error.one_line())
                await stop.pause(self._seconds())
        finally:
            await cancel(*self._starting)

    def _seconds(self) -> float:
        now = self._clock.now()
        nexts = (one.times.next(now) for one in self._schedules if one.enabled)
        waits = [(at - now).total_seconds() for at in nexts if at is not None]
        return min([LONGEST_WAIT, *waits])

    async def tick(self) -> None:
        """Claim what is due now, and begin to start it. Raises MidwatchError."""
        for run in await self._store.settle([*self._keys.values()], SETTLE_AFTER):
            self._say_missed(run, run.reason)
        seen = await self._store.seen()
        for schedule in self._schedules:
            now = self._clock.now()
            known = seen.get(self._keys[schedule.name])
            if until := await self._seen(schedule, known, now):
                await self._look(schedule, until, now)

    async def _seen(
        self, schedule: ScheduleSettings, seen: Seen | None, now: datetime
    ) -> Seen | None:
        """Return how far the times of a schedule were looked at; None if it is not enabled."""
        name, key = schedule.name, self._keys[schedule.name]
        first = name not in self._begun
        if not schedule.enabled:
            if first:
                await self._store.supersede(key)
        elif first or seen is None:
            seen = await self._store.begin(key, now)
        elif seen.superseded:
            await self._store.resume(key)
        self._begun.add(name)
        return seen if schedule.enabled else None

    async def _look(
        self, schedule: ScheduleSettings, seen: Seen, now: datetime
    ) -> None:
        name, key = schedule.name, self._keys[schedule.name]
        if seen.until > now + timedelta(seconds=_SLACK):
            await self._store.rewind(key, seen.until, now)
            ahead = format_duration((seen.until - now).total_seconds())
            self._log.warning("clock was set back", schedule=name, by=ahead)
            return
        due = await asyncio.to_thread(due_times, schedule, seen.until, now)
        if due is None:
            return
        runs = list(due.missed)
        claim = None
        if due.start is not None:
            claim = Run(name, due.start, "claimed", new_session_id())
            runs.append(claim)
        if not await self._store.claim(key, seen, due.until, runs, due.missed_count):
            return  # another daemon has it
        if due.missed_count:
            last = due.missed[-1]
            times = format_count(due.missed_count, "time")
            self._say_missed(last, f"{last.reason}; {times} in all")
        if claim is not None:
            task = asyncio.create_task(
                self._start(schedule, claim), name=f"start {name}"
            )
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    # -------------------------------------------------- one session

    async def _start(self, schedule: ScheduleSettings, claim: Run) -> None:
        """Start the session of a claimed time, or record why not. Never raises MidwatchError."""
        assert claim.session is not None
        try:
            if reason := await self._held_up(schedule, claim):
                await self._miss(claim, reason)
                return
            await self._starts.run_schedule(schedule.name, claim.session)
        except MidwatchError as error:
            await self._miss(claim, error.one_line())
            return
        self._log.info(
            "scheduled session started",
            schedule=schedule.name,
            at=claim.at.isoformat(),
            session=claim.session,
        )
        try:
            await self._store.started(self._keys[claim.schedule], claim)
        except MidwatchError as error:  # `settle` does it later
            self._log.warning("start not recorded", error=error.one_line())

    async def _miss(self, claim: Run, reason: str) -> None:
        self._say_missed(claim, reason)
        try:
            await self._store.miss(self._keys[claim.schedule], claim, reason)
        except MidwatchError as error:  # `settle` does it later
            self._log.warning("missed time not recorded", error=error.one_line())

    def _say_missed(self, run: Run, reason: str) -> None:
        self._log.warning(
            "scheduled time missed",
            schedule=run.schedule,
            at=run.at.isoformat(),
            reason=reason,
        )

    async def _held_up(self, schedule: ScheduleSettings, claim: Run) -> str:
        """Return why the schedule's concurrency lets no session start; empty if it lets one. Replace stops the others."""
        if schedule.concurrency == "Allow":
            return ""
        key = self._keys[schedule.name]
        for run in await self._store.running(key, claim.session or ""):
            if not await self._runs(run):
                continue
            if schedule.concurrency == "Forbid":
                return f"session {run.session} of {run.at:%Y-%m-%d %H:%M} UTC still runs (concurrency: Forbid)"
            await self._stop(run)
        return ""

    async def _runs(self, run: Run) -> bool:
        assert run.session is not None
        try:
            session = await self._sessions.get(run.session)  # closes a crashed one
        except NotFound:
            return run.state == "claimed"
        return not session.status.phase.terminal

    async def _stop(self, run: Run) -> None:
        """Stop a session, which saves its work. Raises TemporaryError if it does not end, or runs elsewhere."""
        assert run.session is not None
        limit = self._clock.monotonic() + _STOP_SECONDS
        sent = False
        while await self._runs(run):
            if self._clock.monotonic() > limit:
                raise TemporaryError(f"session {run.session} does not stop")
            sent = sent or await self._signal(run.session)
            await self._clock.sleep(_POLL)

    async def _signal(self, session_id: str) -> bool:
        """Send SIGTERM to the runner of a session. Return false while it has none yet."""
        try:
            session = await self._sessions.get(session_id)
        except NotFound:
            return False
        host, _, process = (session.runner or "").rpartition(":")
        if not process.isdecimal():
            return False
        if host != this_host() or not self._sessions.alive(session):
            raise TemporaryError(
                f"session {session_id} runs on {host}, where this daemon cannot stop it"
            )
        try:
            os.kill(int(process), signal.SIGTERM)
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise TemporaryError(
                f"session {session_id} cannot be stopped: {why}"
            ) from None
        return True
