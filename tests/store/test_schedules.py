"""Schedules on a store: missed times, daemons side by side, policies, and a daemon that dies in between."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from midwatch.errors import Conflict
from midwatch.lifecycle import Liveness
from midwatch.logs import quiet_log
from midwatch.schedule_settings import ScheduleSettings
from midwatch.scheduler import SETTLE_AFTER, Scheduler
from midwatch.session.events import Phase
from midwatch.session.manager import SessionManager
from midwatch.session.records import SessionSpec, this_host
from midwatch.session.status import SessionStatus
from midwatch.settings import SessionSettings
from midwatch.store.schedules import SqlSchedules
from midwatch.store.sessions import SqlSessions, SqlTranscripts
from midwatch.store.sql import SqlStore, open_store
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

    async def count(self) -> int:
        return (await self.schedules.seen())["tidy"].missed

    async def last_reason(self) -> str:
        _, missed = await self.schedules.last("tidy")
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
    ran, missed = await desk.schedules.last("tidy")
    assert ran and (ran.session, ran.phase) == (desk.starts.ids[-1], "Completed")
    assert ran.at == datetime(2026, 11, 2, 9, tzinfo=UTC) and missed is None


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
    seen = (await schedules.seen())["tidy"]
    run = Run("tidy", at, "claimed", "s-000000000001")
    assert await schedules.claim("tidy", seen, at, [run], 0)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_a_daemon_that_is_killed_after_its_claim(
    desk: Desk, shared_database: str
) -> None:
    daemon = desk.daemon()
    await desk.tick(daemon)
    at = datetime(2026, 11, 2, 7, tzinfo=UTC)
    command = [sys.executable, "-c", KILLED, shared_database, at.isoformat()]
    done = await asyncio.to_thread(subprocess.run, command, timeout=120)
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
