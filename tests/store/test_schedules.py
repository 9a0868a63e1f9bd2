"""Schedules on a store: missed times, daemons side by side, policies, and a daemon that dies in between."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Connection, Integer, Text, column, table

from midwatch.errors import Conflict
from midwatch.lifecycle import Liveness
from midwatch.logs import quiet_log
from midwatch.schedule_settings import RepositorySettings, ScheduleSettings
from midwatch.scheduler import SETTLE_AFTER, Scheduler, key_of
from midwatch.session.events import Phase
from midwatch.session.manager import SessionManager
from midwatch.session.records import SessionSpec, this_host
from midwatch.session.status import SessionStatus
from midwatch.settings import SessionSettings
from midwatch.store.engine import open_transactions, parse_database
from midwatch.store.schedules import Run, SqlSchedules
from midwatch.store.schema import Instant
from midwatch.store.sessions import SqlSessions, SqlTranscripts
from midwatch.store.sql import SqlStore, open_store
from midwatch.store.upgrade import _config, upgrade_database
from midwatch.testing.fakes import ManualClock

DAY = datetime(2026, 11, 2, 6, 0, 30, tzinfo=UTC)
HOURLY = ScheduleSettings.model_validate(
    {
        "name": "tidy",
        "cron": "0 * * * *",
        "prompt": "Tidy.",
        "repositories": [{"url": "https://git.example.com/app"}],
    }
)


class Starts:
    """Starts sessions that run until a test ends them, or that do not start."""

    def __init__(self, sessions: SqlSessions, clock: ManualClock) -> None:
        self.sessions, self.clock = sessions, clock
        self.ids: list[str] = []
        self.fails = False

    async def run_schedule(self, name: str, session_id: str) -> None:
        if self.fails:
            raise Conflict("8 sessions that were started here are running")
        self.ids.append(session_id)
        spec = SessionSpec(session_id, self.clock.now(), "/", (), "m", prompt=name)
        await self.sessions.save_spec(spec)

    async def end(self, session_id: str, phase: Phase = Phase.COMPLETED) -> None:
        await self.sessions.save_status(session_id, SessionStatus(phase=phase))


class Desk:
    """Two daemons on one store, each with connections of its own."""

    def __init__(self, stores: list[SqlStore], folder: Path) -> None:
        self.clock = ManualClock(DAY)
        self.schedules = SqlSchedules(stores[0].transactions, self.clock.database)
        self.stores = stores
        self.folder = folder
        sessions = SqlSessions(stores[0].transactions, self.clock.database)
        self.starts = Starts(sessions, self.clock)

    def daemon(self, schedule: ScheduleSettings = HOURLY, at: int = 0) -> Scheduler:
        transactions = self.stores[at].transactions
        manager = SessionManager(
            SqlSessions(transactions, self.clock.database),
            SqlTranscripts(transactions),
            SessionSettings(folder=self.folder),
        )
        return Scheduler(
            [schedule],
            SqlSchedules(transactions, self.clock.database),
            self.starts,
            manager,
            quiet_log(),
            self.clock,
            Liveness(self.clock),
        )

    async def tick(self, *daemons: Scheduler) -> None:
        await asyncio.gather(*(one.tick() for one in daemons))
        for one in daemons:
            await asyncio.gather(*one._starting)

    async def pass_time(self, **of: float) -> None:
        await self.clock.advance(timedelta(**of).total_seconds())

    async def count(self, schedule: ScheduleSettings = HOURLY) -> int:
        return (await self.schedules.history(key_of(schedule))).missed_count

    async def last_reason(self) -> str:
        missed = (await self.schedules.history(key_of(HOURLY))).missed
        assert missed is not None
        return missed.reason


@pytest.fixture
async def desk(shared_database: str, tmp_path: Path) -> AsyncIterator[Desk]:
    stores = [await open_store(shared_database) for _ in range(2)]
    yield Desk(stores, tmp_path / "state")
    for one in stores:
        await one.close()


async def test_two_daemons_start_each_time_once(desk: Desk) -> None:
    daemons = [desk.daemon(at=0), desk.daemon(at=1)]
    await desk.tick(daemons[0])
    await desk.pass_time(seconds=9)
    await desk.tick(*daemons)
    assert desk.starts.ids == [], "it is not time"
    for hour in range(1, 4):
        await desk.pass_time(hours=1)
        await desk.tick(*daemons)
        assert len(desk.starts.ids) == hour
        await desk.starts.end(desk.starts.ids[-1])
    found = await desk.schedules.history(key_of(HOURLY))
    ran = found.ran
    assert ran and (ran.session, ran.phase) == (desk.starts.ids[-1], "Completed")
    assert ran.at == datetime(2026, 11, 2, 9, tzinfo=UTC) and found.missed is None


async def test_times_without_a_daemon_are_missed_and_said(desk: Desk) -> None:
    await desk.tick(desk.daemon())
    await desk.pass_time(hours=4, minutes=5)
    await desk.tick(desk.daemon())
    assert len(desk.starts.ids) == 1, "the last one is within its deadline"
    assert await desk.count() == 3
    await desk.pass_time(minutes=30, days=2)
    await desk.tick(desk.daemon())
    assert len(desk.starts.ids) == 1, "the last one is too late"
    assert await desk.count() == 3 + 48
    assert "no daemon ran" in await desk.last_reason()


async def test_what_was_not_enabled_or_had_other_times_is_not_missed(
    desk: Desk,
) -> None:
    off = HOURLY.model_copy(update={"enabled": False})
    for schedule in (HOURLY, off, HOURLY, HOURLY.model_copy(update={"cron": "@daily"})):
        await desk.tick(desk.daemon(schedule))
        await desk.tick(desk.daemon(schedule))
        await desk.pass_time(hours=5 if schedule.enabled is False else 0.1)
    assert await desk.count() == 0


async def test_a_clock_that_was_ahead_loses_no_time_and_repeats_none(
    desk: Desk,
) -> None:
    await desk.tick(desk.daemon())
    await desk.pass_time(hours=48)  # a wrong clock
    await desk.tick(desk.daemon())
    assert len(desk.starts.ids) == 1
    await desk.starts.end(desk.starts.ids[0])
    desk.clock._wall = DAY + timedelta(seconds=5)
    await desk.tick(desk.daemon())
    desk.clock._wall = DAY
    for _ in range(48):
        await desk.pass_time(hours=1)
        await desk.tick(desk.daemon())
        await desk.starts.end(desk.starts.ids[-1])
    assert len(desk.starts.ids) == 48, "each hour once, the last by the wrong clock"


@pytest.mark.parametrize("policy, started", [("Forbid", 1), ("Allow", 2)])
async def test_while_the_last_session_runs(
    desk: Desk, policy: str, started: int
) -> None:
    daemon = desk.daemon(HOURLY.model_copy(update={"concurrency": policy}))
    await desk.tick(daemon)
    for _ in range(2):
        await desk.pass_time(hours=1)
        for one in desk.starts.ids:  # it is alive
            await desk.starts.sessions.heartbeat(one, "elsewhere:1", desk.clock.now())
        await desk.tick(daemon)
    assert len(desk.starts.ids) == started
    if policy == "Forbid":
        assert "still runs" in await desk.last_reason()
        await desk.starts.end(desk.starts.ids[0])
        await desk.pass_time(hours=1)
        await desk.tick(daemon)
        assert len(desk.starts.ids) == 2


@pytest.mark.parametrize("policy, started", [("Forbid", 0), ("Allow", 1)])
async def test_a_run_by_hand_is_as_any_other(
    desk: Desk, policy: str, started: int
) -> None:
    daemon = desk.daemon(HOURLY.model_copy(update={"concurrency": policy}))
    await desk.tick(daemon)
    await desk.pass_time(minutes=50)
    await desk.schedules.started_by_hand(key_of(HOURLY), "s-by-hand")
    await desk.starts.run_schedule("tidy", "s-by-hand")
    await desk.schedules.started_by_hand(key_of(HOURLY), "s-never-started")
    desk.starts.ids.clear()
    await desk.pass_time(minutes=10)
    await desk.starts.sessions.heartbeat("s-by-hand", "far:1", desk.clock.now())
    await desk.tick(daemon)
    assert len(desk.starts.ids) == started
    if policy == "Forbid":
        assert "session s-by-hand of 2026-11-02 06:50 UTC" in await desk.last_reason()
        await desk.starts.end("s-by-hand")
        await desk.pass_time(hours=1)
        await desk.tick(daemon)
        assert len(desk.starts.ids) == 1, "the other one has no record"


OTHER_TIMES = HOURLY.model_copy(update={"cron": "30 * * * *"})
ELSEWHERE = HOURLY.model_copy(
    update={
        "repositories": [RepositorySettings(url="https://git.example.com/elsewhere")]
    }
)
NOT_ENABLED = HOURLY.model_copy(update={"enabled": False})


@pytest.mark.parametrize("other", [OTHER_TIMES, ELSEWHERE, NOT_ENABLED])
async def test_daemons_whose_settings_differ_do_not_disturb_each_other(
    desk: Desk, other: ScheduleSettings
) -> None:
    """They have a schedule of one name; the second one starts again all the time."""
    one = desk.daemon(HOURLY.model_copy(update={"concurrency": "Allow"}))
    second = other.model_copy(update={"concurrency": "Allow"})
    await desk.tick(one)
    for _ in range(3):
        await desk.tick(desk.daemon(second, at=1))
        await desk.pass_time(minutes=1)
        await desk.tick(one)
        await desk.pass_time(minutes=31)
        await desk.tick(one, desk.daemon(second, at=1))
        await desk.pass_time(minutes=28)
        await desk.tick(one, desk.daemon(second, at=1))
    each = 3 if other.enabled else 0
    assert len(desk.starts.ids) == 3 + each
    assert await desk.count() == await desk.count(other) == 0


async def test_a_daemon_judges_its_own_schedules_alone(desk: Desk) -> None:
    one, other = desk.daemon(), desk.daemon(ELSEWHERE, at=1)
    await desk.tick(one, other)
    await desk.pass_time(hours=1)
    (seen,) = (
        s for k, s in (await desk.schedules.seen()).items() if k == key_of(HOURLY)
    )
    claim = Run("tidy", DAY.replace(hour=7, second=0), "claimed", "s-killed")
    assert await desk.schedules.claim(key_of(HOURLY), seen, claim.at, [claim], 0)
    await desk.pass_time(hours=2)  # the first one was killed
    await desk.tick(other)
    assert await desk.count() == 0 and await desk.count(ELSEWHERE) == 2
    await desk.tick(desk.daemon())
    assert await desk.count() == 2, "the time of its claim, and the one after it"
    assert len(desk.starts.ids) == 2


async def test_replace_stops_the_runner_first(desk: Desk) -> None:
    daemon = desk.daemon(HOURLY.model_copy(update={"concurrency": "Replace"}))
    await desk.tick(daemon)
    await desk.pass_time(hours=1)
    await desk.tick(daemon)
    (first,) = desk.starts.ids
    runner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        name = f"{this_host()}:{runner.pid}"
        await desk.pass_time(hours=1)
        await desk.starts.sessions.heartbeat(first, name, desk.clock.now())
        await daemon.tick()
        assert await asyncio.to_thread(runner.wait, 60) == -15
        await desk.starts.end(first, Phase.STOPPED)
        while daemon._starting:
            await desk.clock.advance(1)
            await asyncio.sleep(0)
    finally:
        runner.kill()
        runner.wait()
    assert len(desk.starts.ids) == 2 and await desk.count() == 0


async def test_a_session_that_cannot_start_is_a_missed_time(desk: Desk) -> None:
    daemon = desk.daemon()
    await desk.tick(daemon)
    desk.starts.fails = True
    await desk.pass_time(hours=1)
    await desk.tick(daemon)
    assert await desk.count() == 1
    assert "8 sessions" in await desk.last_reason()


KILLED = """
import asyncio, os, signal, sys
from datetime import UTC, datetime
from midwatch.store.schedules import Run, SqlSchedules
from midwatch.store.sql import open_store

async def main():
    store = await open_store(sys.argv[1])
    at = datetime.fromisoformat(sys.argv[2])
    schedules = SqlSchedules(store.transactions, lambda connection: at)
    [(key, seen)] = (await schedules.seen()).items()
    run = Run("tidy", at, "claimed", "s-000000000001")
    assert await schedules.claim(key, seen, at, [run], 0)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_a_daemon_that_is_killed_after_its_claim(
    desk: Desk, shared_database: str
) -> None:
    daemon = desk.daemon()
    await desk.tick(daemon)
    at = datetime(2026, 11, 2, 7, tzinfo=UTC)
    killed = [sys.executable, "-c", KILLED, shared_database, at.isoformat()]
    done = await asyncio.to_thread(subprocess.run, killed, timeout=120)
    assert done.returncode == -9
    await desk.pass_time(hours=1)
    other = desk.daemon(at=1)
    await desk.tick(other)
    assert await desk.count() == 0, "the daemon may still be starting it"
    await desk.pass_time(seconds=SETTLE_AFTER)
    await desk.tick(other)
    assert await desk.count() == 1 and desk.starts.ids == [], "said, and not made up"
    assert "its daemon ended" in await desk.last_reason()
    await desk.pass_time(seconds=3600 - SETTLE_AFTER)
    await desk.tick(other)
    assert len(desk.starts.ids) == 1, "the next time is not held up"


async def test_an_upgrade_keeps_what_was_looked_at_and_what_runs(
    sqlite_file: Path, empty_postgres: str, tmp_path: Path
) -> None:
    """Before 0014 there was a row for a name alone."""
    for database in (f"sqlite:///{sqlite_file}", empty_postgres):
        transactions = open_transactions(parse_database(database))
        await transactions.run(lambda c: command.upgrade(_config(c), "0013"))
        await transactions.run(_looked_at)
        await transactions.close()
        await upgrade_database(database)
        desk = Desk([await open_store(database)], tmp_path)
        await desk.pass_time(hours=1)
        await desk.tick(desk.daemon())
        found = await desk.schedules.history(key_of(HOURLY))
        assert found.missed_count == 7 and found.ran is not None
        assert [found.ran.session] == desk.starts.ids
        await desk.stores[0].close()


def _looked_at(connection: Connection) -> None:
    def insert(into: str, types: dict[str, Any], **values: Any) -> None:
        columns: list[Any] = [column(one, type_) for one, type_ in types.items()]
        connection.execute(table(into, *columns).insert(), values)

    insert(
        "schedules",
        {"name": Text, "definition": Text, "seen_until": Instant, "missed": Integer},
        name="tidy",
        definition="0 * * * * UTC",
        seen_until=DAY,
        missed=7,
    )
    insert(
        "scheduled_runs",
        {
            **dict.fromkeys(("schedule", "state", "session_id", "reason"), Text),
            **dict.fromkeys(("at", "claimed_at"), Instant),
        },
        schedule="tidy",
        at=DAY,
        state="started",
        session_id="s-earlier",
        reason="",
        claimed_at=DAY,
    )
