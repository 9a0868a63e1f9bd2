"""The times of schedules on SQL. A row per schedule and time is the claim on it, so that no time runs twice.

Daemons with different settings can share a store: each judges the times of its own schedules alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, delete, func, select, update

from midwatch.store.engine import Transaction, TransactionalStore
from midwatch.store.schedule_tables import CLAIMED_RUN, scheduled_runs, schedules
from midwatch.store.schema import sessions

KEPT = timedelta(days=30)
"""How long a time is kept. The count of missed times stays."""
_MOST_LAST = 20
_runs = scheduled_runs.c
_seen_by = schedules.c


@dataclass(frozen=True, slots=True)
class ScheduleKey:
    """What tells a schedule from others on one store; see `ScheduleSettings` for its parts.

    Claims, sessions and missed times belong to name and fingerprint. How far its times were looked at belongs to the definition
    too, so that daemons whose settings have other times for it do not disturb each other.
    """

    name: str
    fingerprint: str
    definition: str


@dataclass(frozen=True, slots=True)
class Run:
    """What became of one time of a schedule, or a run by hand.

    Attributes:
        at: The time; that of the start by hand, which is never a whole second, as all times of schedules are.
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
        until: No time up to this one is looked at again.
        superseded: Whether a daemon has started since whose settings have other times, or in which it is not enabled.
    """

    until: datetime
    superseded: bool = False


@dataclass(frozen=True, slots=True)
class History:
    """What became of a schedule.

    Attributes:
        ran: The last time that had a session, or the last run by hand.
        missed: The last time that was missed.
        missed_count: How many times were missed.
    """

    ran: Run | None
    missed: Run | None
    missed_count: int


class SqlSchedules(TransactionalStore):
    """The times of schedules. Errors are those of `midwatch.store.errors`."""

    async def seen(self) -> dict[ScheduleKey, Seen]:
        """Return how far each schedule was looked at."""
        return await self._read(_seen)

    async def begin(self, key: ScheduleKey, at: datetime) -> Seen:
        """Return how far the times of a schedule were looked at, as its daemon starts: up to `at` if it is new or was superseded.

        The rows of its other times become superseded. A daemon that runs and has those goes on by `resume`.
        """
        return await self._run(_begin, key, at)

    async def resume(self, key: ScheduleKey) -> None:
        """Record that a daemon has these times, although another one has started with others."""
        await self._run(_resume, key)

    async def supersede(self, key: ScheduleKey) -> None:
        """Record that a daemon has started in whose settings the schedule is not enabled."""
        await self._run(_supersede, key, None)

    async def rewind(self, key: ScheduleKey, before: datetime, at: datetime) -> None:
        """Look again at what follows `at`, as the clock was ahead. A time for which a session was to start stays taken."""
        await self._run(_rewind, key, before, at)

    async def claim(
        self,
        key: ScheduleKey,
        before: Seen,
        until: datetime,
        runs: Sequence[Run],
        missed: int,
    ) -> bool:
        """Record what becomes of the times between `before.until` and `until`.

        Args:
            key: The schedule.
            before: How far it was looked at when `runs` were made.
            until: How far it is now.
            runs: Missed times, and the claim of one to start.
            missed: How many times are missed; more than in `runs` if there were too many to keep.

        Returns:
            False, and nothing is recorded, if another daemon did that already, or has a row for the claimed time.
        """
        return await self._run(_claim, key, before, until, runs, missed)

    async def started(self, key: ScheduleKey, run: Run) -> None:
        """Record that the session of a claimed time is in the store."""
        await self._run(_save, key, run, {"state": "started"})

    async def started_by_hand(self, key: ScheduleKey, session_id: str) -> None:
        """Record the session that a person starts. It counts for no time, and `running` returns it."""
        await self._run(_started_by_hand, key, session_id)

    async def miss(self, key: ScheduleKey, run: Run, reason: str) -> None:
        """Record that no session starts for a claimed time."""
        await self._run(_miss, key, run, reason)

    async def settle(self, keys: Sequence[ScheduleKey], limit: float) -> list[Run]:
        """Settle claims on times of these schedules that are older than `limit` seconds: their daemon has ended.

        Returns those that were missed. One whose session is in the store has started, whatever became of the daemon.
        """
        return await self._run(_settle, keys, limit)

    async def running(self, key: ScheduleKey, but: str) -> list[Run]:
        """Return the runs of a schedule whose session has no end on record, newest first, without the session `but`."""
        return await self._read(_running, key, but)

    async def history(self, key: ScheduleKey) -> History:
        """Return what became of a schedule, with its runs by hand."""
        return await self._read(_history, key)


def _of(key: ScheduleKey) -> tuple[ColumnElement[bool], ...]:
    return (_seen_by.name == key.name, _seen_by.fingerprint == key.fingerprint)


def _row_of(key: ScheduleKey) -> tuple[ColumnElement[bool], ...]:
    return (*_of(key), _seen_by.definition == key.definition)


def _runs_of(key: ScheduleKey) -> tuple[ColumnElement[bool], ...]:
    return (_runs.schedule == key.name, _runs.fingerprint == key.fingerprint)


def _seen(work: Transaction) -> dict[ScheduleKey, Seen]:
    return {
        ScheduleKey(row.name, row.fingerprint, row.definition): _seen_of(row)
        for row in work.all(select(schedules))
    }


def _seen_of(row: Row[Any]) -> Seen:
    return Seen(row.seen_until, row.superseded)


def _begin(work: Transaction, key: ScheduleKey, at: datetime) -> Seen:
    _supersede(work, key, key.definition)
    new = {"seen_until": at, "superseded": False}
    work.insert_or_update(schedules, {**asdict(key), "missed": 0, **new})
    again = update(schedules).where(*_row_of(key), _seen_by.superseded)
    work.execute(again.values(new))
    row = work.one(select(schedules).where(*_row_of(key)))
    assert row is not None
    return _seen_of(row)


def _supersede(work: Transaction, key: ScheduleKey, but: str | None) -> None:
    """Mark the rows of a schedule with another definition than `but`, after taking over those from before fingerprints."""
    for table, name in ((schedules, _seen_by.name), (scheduled_runs, _runs.schedule)):
        earlier = (name == key.name, table.c.fingerprint == "")
        own = update(table).where(*earlier)
        work.execute(own.values(fingerprint=key.fingerprint))
    others = [*_of(key), _seen_by.superseded.is_(False)]
    if but is not None:
        others.append(_seen_by.definition != but)
    work.execute(update(schedules).where(*others).values(superseded=True))


def _resume(work: Transaction, key: ScheduleKey) -> None:
    work.execute(update(schedules).where(*_row_of(key)).values(superseded=False))


def _rewind(
    work: Transaction, key: ScheduleKey, before: datetime, at: datetime
) -> None:
    if _advance(work, key, before, {"seen_until": at}):
        void = (*_runs_of(key), _runs.at > at, _runs.session_id.is_(None))
        work.execute(delete(scheduled_runs).where(*void))


def _advance(
    work: Transaction, key: ScheduleKey, before: datetime, values: dict[str, Any]
) -> bool:
    own = (*_row_of(key), _seen_by.seen_until == before)
    return bool(work.execute(update(schedules).where(*own).values(values)).rowcount)


def _claim(
    work: Transaction,
    key: ScheduleKey,
    before: Seen,
    until: datetime,
    runs: Sequence[Run],
    missed: int,
) -> bool:
    values = {"seen_until": until, "missed": _seen_by.missed + missed}
    if not _advance(work, key, before.until, values):
        return False
    _forget_old(work, key)
    claimed = True
    for run in runs:
        new = _insert(work, key, run)
        claimed = claimed and (new or run.state == "missed")
    return claimed


def _insert(work: Transaction, key: ScheduleKey, run: Run) -> bool:
    row = {
        "schedule": key.name,
        "fingerprint": key.fingerprint,
        "at": run.at,
        "state": run.state,
        "session_id": run.session,
        "reason": run.reason,
        "claimed_at": work.now,
    }
    return work.insert_or_update(scheduled_runs, row)


def _forget_old(work: Transaction, key: ScheduleKey) -> None:
    old = (_runs.schedule == key.name, _runs.at < work.now - KEPT)
    work.execute(delete(scheduled_runs).where(*old))


def _started_by_hand(work: Transaction, key: ScheduleKey, session_id: str) -> None:
    _forget_old(work, key)
    at = work.now
    while at.microsecond == 0 or not _insert(
        work, key, Run(key.name, at, "started", session_id)
    ):
        at += timedelta(microseconds=1)


def _miss(work: Transaction, key: ScheduleKey, run: Run, reason: str) -> None:
    if _save(work, key, run, {"state": "missed", "reason": reason}):
        one_more = {"missed": _seen_by.missed + 1}
        work.execute(update(schedules).where(*_row_of(key)).values(one_more))


def _save(
    work: Transaction, key: ScheduleKey, run: Run, values: dict[str, Any]
) -> bool:
    own = (*_runs_of(key), _runs.at == run.at, CLAIMED_RUN)
    statement = update(scheduled_runs).where(*own).values(values)
    return bool(work.execute(statement).rowcount)


def _settle(work: Transaction, keys: Sequence[ScheduleKey], limit: float) -> list[Run]:
    own = {(key.name, key.fingerprint): key for key in keys}
    old = _runs.claimed_at < work.now - timedelta(seconds=limit)
    missed = []
    for row in work.all(_with_phase().where(CLAIMED_RUN, old)):
        key = own.get((row.schedule, row.fingerprint))
        if key is None:
            continue
        run = _run_of(row)
        if run.phase is not None:
            _save(work, key, run, {"state": "started"})
        else:
            reason = "its daemon ended before the session had started"
            _miss(work, key, run, reason)
            missed.append(replace(run, reason=reason))
    return missed


def _running(work: Transaction, key: ScheduleKey, but: str) -> list[Run]:
    found = _with_phase().where(
        *_runs_of(key), _runs.session_id != but, _runs.state != "missed"
    )
    newest = found.order_by(_runs.at.desc()).limit(_MOST_LAST)
    runs = map(_run_of, work.all(newest))
    return [one for one in runs if not (one.state == "started" and _ended(one))]


def _ended(run: Run) -> bool:
    from midwatch.session.events import Phase

    # A session without a record was removed, or did not start.
    return run.phase is None or Phase(run.phase).terminal


def _history(work: Transaction, key: ScheduleKey) -> History:
    newest = _with_phase().where(*_runs_of(key)).order_by(_runs.at.desc())
    ran = work.one(newest.where(_runs.session_id.is_not(None)).limit(1))
    missed = work.one(newest.where(_runs.state == "missed").limit(1))
    count = work.one(select(func.sum(_seen_by.missed)).where(*_of(key)))
    return History(
        ran and _run_of(ran),
        missed and _run_of(missed),
        int((count and count[0]) or 0),
    )


def _with_phase() -> Any:
    return select(*_runs, sessions.c.phase).select_from(
        scheduled_runs.outerjoin(sessions, sessions.c.id == _runs.session_id)
    )


def _run_of(row: Row[Any]) -> Run:
    return Run(row.schedule, row.at, row.state, row.session_id, row.reason, row.phase)
