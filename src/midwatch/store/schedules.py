"""The times of schedules on SQL. A row per schedule and time is the claim on it, so that no time runs twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, delete, select, update

from midwatch.store.engine import Transaction, TransactionalStore
from midwatch.store.schedule_tables import CLAIMED_RUN, scheduled_runs, schedules
from midwatch.store.schema import sessions

KEPT = timedelta(days=30)
"""How long a time is kept. The count of missed times stays."""
_MOST_LAST = 20
_runs = scheduled_runs.c


@dataclass(frozen=True, slots=True)
class Run:
    """What became of one time of a schedule.

    Attributes:
        state: `claimed` until its session is in the store, then `started`; or `missed`.
        session: The id of its session; None if none was to start.
        reason: Why it was missed.
        phase: The phase of its session, None without a record of it.
    """

    schedule: str
    at: datetime
    state: str
    session: str | None = None
    reason: str = ""
    phase: str | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """How far the times of a schedule were looked at.

    Attributes:
        definition: What they follow from; see `ScheduleSettings.definition`.
        until: No time up to this one is looked at again.
        missed: How many times were missed.
    """

    definition: str
    until: datetime
    missed: int = 0


class SqlSchedules(TransactionalStore):
    """The times of schedules. Errors are those of `midwatch.store.errors`."""

    async def seen(self) -> dict[str, Seen]:
        """Return how far each schedule was looked at, by name."""
        return await self._read(_seen)

    async def begin(self, name: str, definition: str, at: datetime) -> None:
        """Look at the times of a definition from `at` on; those of an earlier definition are void."""
        await self._run(_begin, name, definition, at)

    async def rewind(self, name: str, before: datetime, at: datetime) -> None:
        """Look again at what follows `at`, as the clock was ahead. A time for which a session was to start stays taken."""
        await self._run(_rewind, name, before, at)

    async def claim(
        self, name: str, before: Seen, until: datetime, runs: Sequence[Run], missed: int
    ) -> bool:
        """Record what becomes of the times between `before.until` and `until`.

        Args:
            name: The schedule.
            before: How far it was looked at when `runs` were made.
            until: How far it is now.
            runs: Missed times, and the claim of one to start.
            missed: How many times are missed; more than in `runs` if there were too many to keep.

        Returns:
            False, and nothing is recorded, if another daemon did that already, or has a row for the claimed time.
        """
        return await self._run(_claim, name, before, until, runs, missed)

    async def started(self, run: Run) -> None:
        """Record that the session of a claimed time is in the store."""
        await self._run(_started, run)

    async def miss(self, run: Run, reason: str) -> None:
        """Record that no session starts for a claimed time."""
        await self._run(_miss, run, reason)

    async def settle(self, limit: float) -> list[Run]:
        """Settle claims older than `limit` seconds, whose daemon has ended. Return those that were missed.

        One whose session is in the store has started, whatever became of the daemon.
        """
        return await self._run(_settle, limit)

    async def running(self, name: str, but: str) -> list[Run]:
        """Return the runs of a schedule whose session has no end on record, newest first, without the session `but`."""
        return await self._read(_running, name, but)

    async def last(self, name: str) -> tuple[Run | None, Run | None]:
        """Return the last time of a schedule that had a session, and the last one that was missed."""
        return await self._read(_last, name)


def _seen(work: Transaction) -> dict[str, Seen]:
    rows = work.all(select(schedules))
    return {row.name: Seen(row.definition, row.seen_until, row.missed) for row in rows}


def _begin(work: Transaction, name: str, definition: str, at: datetime) -> None:
    new = {"definition": definition, "seen_until": at}
    work.insert_or_update(schedules, {"name": name, "missed": 0, **new}, new)


def _rewind(work: Transaction, name: str, before: datetime, at: datetime) -> None:
    if _advance(work, name, before, {"seen_until": at}):
        void = (_runs.schedule == name, _runs.at > at, _runs.session_id.is_(None))
        work.execute(delete(scheduled_runs).where(*void))


def _advance(
    work: Transaction, name: str, before: datetime, values: dict[str, Any]
) -> bool:
    own = (schedules.c.name == name, schedules.c.seen_until == before)
    return bool(work.execute(update(schedules).where(*own).values(values)).rowcount)


def _claim(
    work: Transaction,
    name: str,
    before: Seen,
    until: datetime,
    runs: Sequence[Run],
    missed: int,
) -> bool:
    values = {"seen_until": until, "missed": schedules.c.missed + missed}
    if not _advance(work, name, before.until, values):
        return False
    old = (_runs.schedule == name, _runs.at < work.now - KEPT)
    work.execute(delete(scheduled_runs).where(*old))
    claimed = True
    for run in runs:
        row = {
            "schedule": name,
            "at": run.at,
            "state": run.state,
            "session_id": run.session,
            "reason": run.reason,
            "claimed_at": work.now,
        }
        new = work.insert_or_update(scheduled_runs, row)
        claimed = claimed and (new or run.state == "missed")
    return claimed


def _started(work: Transaction, run: Run) -> None:
    _save(work, run, {"state": "started"})


def _miss(work: Transaction, run: Run, reason: str) -> None:
    if _save(work, run, {"state": "missed", "reason": reason}):
        work.execute(
            update(schedules)
            .where(schedules.c.name == run.schedule)
            .values(missed=schedules.c.missed + 1)
        )


def _save(work: Transaction, run: Run, values: dict[str, Any]) -> bool:
    own = (_runs.schedule == run.schedule, _runs.at == run.at, CLAIMED_RUN)
    statement = update(scheduled_runs).where(*own).values(values)
    return bool(work.execute(statement).rowcount)


def _settle(work: Transaction, limit: float) -> list[Run]:
    old = _runs.claimed_at < work.now - timedelta(seconds=limit)
    missed = []
    for row in work.all(_with_phase().where(CLAIMED_RUN, old)):
        run = _run_of(row)
        if run.phase is not None:
            _started(work, run)
        else:
            _miss(work, run, "its daemon ended before the session had started")
            missed.append(run)
    return missed


def _running(work: Transaction, name: str, but: str) -> list[Run]:
    found = _with_phase().where(
        _runs.schedule == name, _runs.session_id != but, _runs.state != "missed"
    )
    newest = found.order_by(_runs.at.desc()).limit(_MOST_LAST)
    runs = map(_run_of, work.all(newest))
    return [one for one in runs if not (one.state == "started" and _ended(one))]


def _ended(run: Run) -> bool:
    from midwatch.session.events import Phase

    # A session without a record was removed.
    return run.phase is None or Phase(run.phase).terminal


def _last(work: Transaction, name: str) -> tuple[Run | None, Run | None]:
    newest = _with_phase().where(_runs.schedule == name).order_by(_runs.at.desc())
    ran = work.one(newest.where(_runs.session_id.is_not(None)).limit(1))
    missed = work.one(newest.where(_runs.state == "missed").limit(1))
    return ran and _run_of(ran), missed and _run_of(missed)


def _with_phase() -> Any:
    return select(*_runs, sessions.c.phase).select_from(
        scheduled_runs.outerjoin(sessions, sessions.c.id == _runs.session_id)
    )


def _run_of(row: Row[Any]) -> Run:
    return Run(row.schedule, row.at, row.state, row.session_id, row.reason, row.phase)
