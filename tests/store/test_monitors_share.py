"""Monitors on one store share the subjects: each is watched by one, whatever happens to the monitors."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from midwatch.errors import StoreBusy
from midwatch.fair_shares import Member
from midwatch.lifecycle import StopEvent
from midwatch.model import Json, Observation
from midwatch.monitor.loop import MonitorLoop
from midwatch.settings import MonitorSettings
from midwatch.store.engine import Lock
from midwatch.store.protocol import TicketFilter
from midwatch.store.sql import SqlStore, open_store
from midwatch.testing.fakes import (
    FakeSubject,
    ManualClock,
    broken,
    healthy,
    open_tickets,
)

from ..waiting import PATIENCE

INTERVAL, LEASE = 30.0, 40.0
RULES = MonitorSettings(interval=INTERVAL, lease=LEASE, group_wait=0)


@dataclass
class Polls:
    """Who observed which subject when."""

    clock: ManualClock
    of: dict[str, list[tuple[float, str]]] = field(default_factory=dict)

    def add(self, subject: str, monitor: str) -> None:
        self.of.setdefault(subject, []).append((self.clock.monotonic(), monitor))

    def owners(self) -> Counter[str]:
        return Counter(polls[-1][1] for polls in self.of.values())


class Recorded(FakeSubject):
    """A subject that says when it is observed. Every tenth is broken."""

    def __init__(self, name: str, monitor: str, polls: Polls) -> None:
        well = healthy() if int(name[1:]) % 10 else broken("alive", "db")
        super().__init__(name, [well])
        self.monitor, self.polls = monitor, polls

    async def observe(self, previous: Json) -> Observation:
        self.polls.add(self.name, self.monitor)
        return await super().observe(previous)


class Connection:
    """A monitor's way to the store: it counts the calls that run, and can be cut as if the process had been killed."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self.running = 0
        self.calls: Counter[str] = Counter()
        self.cut = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if not asyncio.iscoroutinefunction(method):
            return method

        async def call(*args: Any, **more: Any) -> Any:
            if self.cut:
                raise StoreBusy("killed")
            self.running += 1
            self.calls[name] += 1
            try:
                return await method(*args, **more)
            finally:
                self.running -= 1

        return call


@dataclass
class World:
    """Some monitors on one store, with one clock."""

    clock: ManualClock
    store: SqlStore
    polls: Polls
    running: dict[
        str, tuple[asyncio.Task[None], Connection, MonitorLoop, StopEvent]
    ] = field(default_factory=dict)

    def start(
        self, name: str, subjects: Iterable[str], rules: MonitorSettings = RULES
    ) -> MonitorLoop:
        connection, stop = Connection(self.store), StopEvent(self.clock)
        loop = MonitorLoop(
            connection,  # type: ignore[arg-type]
            [Recorded(one, name, self.polls) for one in subjects],
            rules,
            clock=self.clock,
            name=name,
        )
        task = asyncio.create_task(loop.run(stop))
        self.running[name] = task, connection, loop, stop
        return loop

    async def kill(self, name: str) -> None:
        """End a monitor as kill -9 does: nothing of it reaches the store any more."""
        task, connection, loop, _ = self.running.pop(name)
        connection.cut = True
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def stop(self, name: str) -> None:
        task, _, loop, stop = self.running.pop(name)
        stop.set()
        await task
        await loop.close()

    async def run(self, seconds: float) -> None:
        """Let time pass; what is due at one time ends before more of it does."""
        end = self.clock.monotonic() + seconds
        while (left := end - self.clock.monotonic()) > 0:
            await self.settle()
            await self.clock.advance(min([left, *self.clock.sleeping[:1]]))
        await self.settle()

    async def settle(self) -> None:
        quiet = 0
        async with asyncio.timeout(PATIENCE):
            while quiet < 25:
                await asyncio.sleep(0)
                busy = any(one.running for _, one, _, _ in self.running.values())
                quiet = 0 if busy else quiet + 1
                if busy:
                    await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def a_world(database: str) -> AsyncIterator[World]:
    clock = ManualClock()
    store = await open_store(database, clock=clock.database)
    world = World(clock, store, Polls(clock))
    try:
        yield world
    finally:
        for name in list(world.running):
            await world.stop(name)
        await store.close()


def names(count: int) -> list[str]:
    return [f"s{number}" for number in range(count)]


async def test_each_subject_is_watched_by_one_while_monitors_come_and_die(
    shared_database: str,
) -> None:
    on_server = shared_database.startswith("postgresql")
    monitors, subjects = (4, 20) if on_server else (6, 60)
    chance = random.Random(11)
    every = names(subjects)
    async with a_world(shared_database) as world:
        for number in range(monitors):
            world.start(f"m{number}", every)
        await world.run(2 * INTERVAL)
        for event in range(4):
            for name in chance.sample(sorted(world.running), chance.randint(1, 3)):
                await world.kill(name) if event % 3 else await world.stop(name)
            await world.run(chance.uniform(5, 1.5 * LEASE))
            for number in range(monitors - len(world.running)):
                world.start(f"m{number} {event}", every)
            await world.run(chance.uniform(5, 1.5 * LEASE))
        await world.run(LEASE + 2 * INTERVAL)
        counts = world.polls.owners()
        states = {one.name: one.watcher for one in await world.store.subject_states()}
        assert states == {name: polls[-1][1] for name, polls in world.polls.of.items()}
        assert counts.keys() == world.running.keys()
        assert max(counts.values()) - min(counts.values()) <= 1
        _check_polls(world, every)
        tickets = await world.store.tickets(TicketFilter(limit=1000))
        assert len(tickets) == subjects // 10


def _check_polls(world: World, every: list[str]) -> None:
    """No gap longer than a lease and an interval, and no second poll in an interval but where the watcher changes."""
    end = world.clock.monotonic()
    for subject in every:
        polls = world.polls.of[subject]
        times = [time for time, _ in polls]
        late = [b - a for a, b in zip(times, [*times[1:], end], strict=True)]
        assert max(late) <= LEASE + INTERVAL + 2, (subject, polls)
        for (before, one), (after, other) in zip(polls, polls[1:], strict=False):
            assert one != other or after - before > INTERVAL - 0.001, (subject, polls)
        for (before, one), (_, other), (after, third) in zip(
            polls, polls[1:], polls[2:], strict=False
        ):
            back = one == third != other
            assert not back or after - before > INTERVAL, (subject, polls)


async def test_settings_may_differ(shared_database: str) -> None:
    """A subject that one monitor knows is its own; the others make up for that."""
    async with a_world(shared_database) as world:
        world.start("a", names(40))
        world.start("b", names(20))
        await world.run(3 * INTERVAL)
        assert world.polls.owners() == {"a": 20, "b": 20}
        await world.kill("a")
        await world.run(LEASE + 2 * INTERVAL)
        states = {one.name: one.watcher for one in await world.store.subject_states()}
        assert Counter(states.values()) == {"b": 20, None: 20}


async def test_who_stood_still_past_its_lease_neither_observes_nor_writes(
    shared_database: str,
) -> None:
    """What it saw is refused: another one watches the subject since. It joins again once it runs."""
    async with a_world(shared_database) as world:
        loop = world.start("a", names(4))
        await world.run(5)
        connection = world.running["a"][1]
        stay, thawed = connection.stay, asyncio.Event()

        async def frozen(*args: Any, **more: Any) -> Any:
            await thawed.wait()
            return await stay(*args, **more)

        connection.stay = frozen  # type: ignore[attr-defined]
        world.start("b", names(4))
        await world.run(LEASE + INTERVAL)
        assert world.polls.owners() == {"b": 4}
        before = await world.store.tickets(TicketFilter())
        late = loop.monitors[1]
        late.subject = FakeSubject("s1", [broken("alive", "late")])
        assert (await late.cycle()).subjects == 0
        late.subject = Recorded("s1", "a", world.polls)
        unchanged = asyncio.create_task(late.cycle())
        await world.run(2)  # it waits for others to be saved with
        assert (await unchanged).subjects == 0
        assert await world.store.tickets(TicketFilter()) == before
        thawed.set()
        await world.run(LEASE + 2 * INTERVAL)
        assert world.polls.owners() == {"a": 2, "b": 2}


async def test_a_lone_monitor_pays_nothing_for_sharing(database: str) -> None:
    """The lease is renewed by the write of the heartbeat, and observations without changes are one more."""
    async with a_world(database) as world:
        world.start("one", [f"s{number}1" for number in range(10)], MonitorSettings())
        await world.run(INTERVAL + 5)
        calls = world.running["one"][1].calls
        before = calls.copy()
        await world.run(10 * INTERVAL)
        assert calls - before == {"stay": 10, "save_unchanged": 10}


async def test_a_lease_and_a_ticket_wait_for_no_one_who_shares(
    postgres_database: str,
) -> None:
    """A monitor may stand still while it shares, or a ticket be saved for long: all others go on."""
    member = Member("a", "a", "", frozenset({"db"}), LEASE)
    async with contextlib.AsyncExitStack() as stack:
        store = await open_store(postgres_database)
        stack.push_async_callback(store.close)
        other = await psycopg.AsyncConnection.connect(postgres_database)
        stack.push_async_callback(other.close)
        await other.execute(
            f"SELECT pg_advisory_xact_lock_shared({Lock.SILENCES:d})".encode()
        )
        share = await store.share(member, {})
        assert share.subjects == {"db"}
        await other.execute(f"SELECT pg_advisory_xact_lock({Lock.SHARES:d})".encode())
        assert await store.stay(member, share, {})
        assert await open_tickets(store, "disk", subject="db")
        with pytest.raises(StoreBusy):
            await store.share(Member("b", "b", "", frozenset({"db"}), LEASE), {})
        stayed = await store.stay(member, share, {})
        assert stayed and stayed.version == share.version
