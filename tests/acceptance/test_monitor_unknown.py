"""What the monitor does not know: it keeps every ticket, resolves nothing, and tells of it once."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from midwatch.errors import ObservationFailed
from midwatch.logs import open_log
from midwatch.model import Json, Observation, Severity, Signal, Ticket
from midwatch.monitor.loop import MonitorLoop
from midwatch.monitor.result import Cycle
from midwatch.redaction import Redactor
from midwatch.settings import LogSettings, MonitorSettings
from midwatch.store.protocol import TicketFilter
from midwatch.store.sql import SqlStore, open_store
from midwatch.testing.fakes import (
    ALIVE,
    DISK,
    FakeSubject,
    Hang,
    ManualClock,
    Step,
    broken,
    healthy,
)

from ..waiting import ScriptedStandstill

DOWN = Observation(
    (*broken("alive", "db").signals, *broken("disk", "/var").signals), frozenset({"*"})
)
NAN = Signal("disk", "/var", "unknown", value=float("nan"))


class Shaken(FakeSubject):
    """A subject during whose next observations Midwatch stands still, each for a number of seconds."""

    def __init__(self, script: Sequence[Step], standstill: ScriptedStandstill) -> None:
        super().__init__("fake", script, timeout=10)
        self.standstill = standstill
        self.stands: list[float] = []

    async def observe(self, previous: Json) -> Observation:
        if self.stands:
            self.standstill.stand(self.stands.pop(0))
        return await super().observe(previous)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/midwatch.db"


@pytest.fixture
async def kept(file: str, clock: ManualClock) -> AsyncIterator[SqlStore]:
    """A store in a file."""
    opened = await open_store(file, clock=clock.database)
    yield opened
    await opened.close()


def watching(
    store: SqlStore, clock: ManualClock, subject: FakeSubject, **settings: float
) -> MonitorLoop:
    rules = MonitorSettings.model_validate({"unobservable_after": 3, **settings})
    return MonitorLoop(store, [subject], rules, clock=clock)


async def cycles(loop: MonitorLoop, clock: ManualClock, count: int) -> None:
    for _ in range(count):
        await loop.cycle()
        await clock.advance(30)


async def tickets(store: SqlStore) -> dict[tuple[str, str], Ticket]:
    found = await store.tickets(TicketFilter(limit=1000))
    return {(one.key.invariant, one.key.component): one for one in found}


def unresolved(found: dict[tuple[str, str], Ticket]) -> set[tuple[str, str]]:
    return {key for key, ticket in found.items() if not ticket.resolved}


BOTH = {("alive", "db"), ("disk", "/var")}
WHOLE, PART = ("subject_unobservable", "observation"), ("subject_unobservable", "disk")
WAYS: dict[str, tuple[Step, set[tuple[str, str]], tuple[str, str], Severity]] = {
    "the subject cannot be reached": (
        ObservationFailed("no route to host"),
        BOTH,
        WHOLE,
        Severity.CRITICAL,
    ),
    "an invariant timed out": (
        Observation((), frozenset({"*"}), {"disk": "timeout"}),
        {("disk", "/var")},
        PART,
        Severity.WARNING,
    ),
    "a permission was taken": (
        Observation(
            (), frozenset({"*"}), unsupported={"disk": "no permission (grant it)"}
        ),
        {("disk", "/var")},
        PART,
        Severity.WARNING,
    ),
}
SILENT: dict[str, Step] = {
    "the value is no number": Observation((NAN,), frozenset({"*"})),
    "the value is missing": Observation((replace(NAN, value=None),), frozenset({"*"})),
    "nothing is covered and nothing said": Observation((), frozenset({"alive"})),
}


@pytest.mark.parametrize("way", WAYS)
async def test_each_way_of_not_knowing_keeps_the_ticket_and_is_told(
    way: str, kept: SqlStore, clock: ManualClock, file: str
) -> None:
    step, hidden, told, severity = WAYS[way]
    subject = FakeSubject("fake", [DOWN])
    await cycles(watching(kept, clock, subject), clock, 1)
    subject.then(step)
    loop = watching(kept, clock, subject)  # as after a restart
    await cycles(loop, clock, 2)
    assert unresolved(await tickets(kept)) == hidden
    await cycles(loop, clock, 20)
    found = await tickets(kept)
    assert unresolved(found) == hidden | {told} and found[told].severity is severity
    assert len(found) == 3, "once, however long it lasts"
    subject.then(DOWN)
    await cycles(loop, clock, 1)
    assert (await tickets(kept))[told].resolved, "it can be seen again"
    subject.then(healthy())
    await cycles(loop, clock, 1)
    assert not unresolved(await tickets(kept))


@pytest.mark.parametrize("way", SILENT)
async def test_a_component_without_a_state_keeps_its_ticket(
    way: str, kept: SqlStore, clock: ManualClock
) -> None:
    subject = FakeSubject("fake", [DOWN])
    loop = watching(kept, clock, subject)
    await cycles(loop, clock, 1)
    subject.then(SILENT[way])
    await cycles(loop, clock, 20)
    assert unresolved(await tickets(kept)) == {("disk", "/var")}


async def test_a_poll_without_an_end_keeps_the_ticket(
    kept: SqlStore, clock: ManualClock
) -> None:
    subject = FakeSubject("fake", [DOWN, Hang()], timeout=5)
    loop = watching(kept, clock, subject)
    await cycles(loop, clock, 1)
    for _ in range(3):
        cycle = asyncio.create_task(loop.cycle())
        while not cycle.done():
            await asyncio.sleep(0)
            await clock.advance(1)
    assert unresolved(await tickets(kept)) == BOTH | {WHOLE}


NEVER = Observation(
    (), frozenset({"*"}), unsupported={"disk": "track_counts is off (turn it on)"}
)


async def test_what_was_never_seen_is_said_once_and_opens_nothing(
    kept: SqlStore, clock: ManualClock
) -> None:
    lines = io.StringIO()
    log = open_log(LogSettings(format="json"), lines, Redactor())
    loop = MonitorLoop(kept, [FakeSubject("fake", [NEVER])], clock=clock, log=log)
    await cycles(loop, clock, 20)
    assert await tickets(kept) == {}
    [line] = map(json.loads, lines.getvalue().splitlines())
    assert line["event"] == "invariant cannot be checked"
    assert line["invariant"] == "disk" and "turn it on" in line["reason"]


async def test_polls_of_processes_of_their_own_count_together(
    kept: SqlStore, clock: ManualClock
) -> None:
    """As `monitor --once` from cron: each poll is a new process."""
    unseen = replace(healthy(), unavailable={"disk": "permission denied"})
    for number in range(1, 6):
        await watching(kept, clock, FakeSubject("fake", [unseen])).cycle()
        assert unresolved(await tickets(kept)) == ({PART} if number >= 3 else set())
    await watching(kept, clock, FakeSubject("fake", [healthy()])).cycle()
    assert not unresolved(await tickets(kept))


async def test_taken_told_given_resolved_and_known_after_a_restart(
    kept: SqlStore, clock: ManualClock, file: str
) -> None:
    subject = FakeSubject("fake", [NEVER])
    await cycles(watching(kept, clock, subject), clock, 5)
    subject.then(healthy({"own": 1}))
    await cycles(watching(kept, clock, subject), clock, 1)
    again = await open_store(file, clock=clock.database)
    subject.then(replace(NEVER, state={"own": 2}))
    loop = watching(again, clock, subject)
    await cycles(loop, clock, 5)
    found = await tickets(again)
    assert unresolved(found) == {PART}
    assert found[PART].severity is DISK.severity is Severity.WARNING
    assert "turn it on" in found[PART].message
    assert subject.looks[-1] == {"own": 2}, "the subject does not see our note"
    subject.then(healthy())
    await cycles(loop, clock, 1)
    assert not unresolved(await tickets(again))
    disabled = FakeSubject("fake", [NEVER], invariants=[ALIVE])
    await cycles(watching(again, clock, disabled), clock, 5)
    assert not unresolved(await tickets(again)), "nobody asks for it any more"
    await again.close()


# ------------------------------------------------------------------ standstill

TIMED_OUT = ObservationFailed("no answer within 8 s")


def shaken(
    store: SqlStore, clock: ManualClock, *script: Step
) -> tuple[MonitorLoop, Shaken]:
    """Return a monitor that tells of the first failure."""
    standstill = ScriptedStandstill(clock.monotonic)
    subject = Shaken(script, standstill)
    rules = MonitorSettings(unobservable_after=1)
    loop = MonitorLoop(store, [subject], rules, clock=clock, standstill=standstill)
    return loop, subject


async def through(loop: MonitorLoop, clock: ManualClock) -> Cycle:
    """Run a cycle to its end, also where it waits for the network to settle."""
    cycle = asyncio.create_task(loop.cycle())
    while not cycle.done():
        for _ in range(20):
            await asyncio.sleep(0)
        if clock.sleeping and clock.sleeping[0] != 10:  # not the limit of a poll
            await clock.advance(clock.sleeping[0])
    return await cycle


@pytest.mark.parametrize("result", [TIMED_OUT, DOWN, healthy()])
async def test_a_poll_in_which_midwatch_stood_still_is_neither_failure_nor_success(
    result: Step, store: SqlStore, clock: ManualClock
) -> None:
    loop, subject = shaken(store, clock, broken("disk", "/"), result)
    await loop.cycle()
    before = await tickets(store)
    for _ in range(4):
        subject.stands = [12, 12, 12]
        cycle = await through(loop, clock)
        assert cycle.unobservable == 1 and not cycle.opened and not cycle.resolved
    assert await tickets(store) == before


@pytest.mark.parametrize("stood", [12, 1.5])
async def test_the_poll_is_made_again_in_the_same_cycle(
    stood: float, store: SqlStore, clock: ManualClock
) -> None:
    loop, subject = shaken(store, clock, TIMED_OUT, healthy())
    subject.stands = [stood]
    cycle = await through(loop, clock)
    assert (cycle.unobservable, cycle.opened) == (0, 0) and len(subject.looks) == 2


async def test_a_network_that_comes_up_after_the_machine_woke_is_waited_for(
    store: SqlStore, clock: ManualClock
) -> None:
    no_network = ObservationFailed("the host name cannot be resolved")
    loop, subject = shaken(store, clock, no_network, no_network, healthy())
    subject.standstill.stand(8 * 3600)
    cycle = await through(loop, clock)
    assert (cycle.unobservable, cycle.opened) == (0, 0) and clock.monotonic() == 30


async def test_a_real_outage_is_found_after_a_standstill(
    store: SqlStore, clock: ManualClock
) -> None:
    loop, subject = shaken(store, clock, DOWN)
    subject.stands = [12]
    assert (await through(loop, clock)).opened == 2


async def test_a_short_standstill_does_not_hide_what_is_well(
    store: SqlStore, clock: ManualClock
) -> None:
    loop, subject = shaken(store, clock, DOWN, healthy())
    await loop.cycle()
    subject.stands = [1.5] * 3
    assert (await through(loop, clock)).resolved == 2 and len(subject.looks) == 2


async def test_nothing_but_standstills_is_told_in_the_end(
    store: SqlStore, clock: ManualClock
) -> None:
    loop, subject = shaken(store, clock, TIMED_OUT)
    opened, started = 0, clock.monotonic()
    while not opened and clock.monotonic() < 600:
        subject.stands = [12] * 3
        opened += (await through(loop, clock)).opened
        await clock.advance(10)
    [ticket] = (await tickets(store)).values()
    assert "Midwatch itself stood still" in ticket.message
    assert 180 <= clock.monotonic() - started < 300


async def test_a_duration_does_not_run_while_midwatch_stands_still(
    store: SqlStore, clock: ManualClock
) -> None:
    slow = Observation(
        (Signal("alive", "db", "slow", holds=False, hold_for=60),), frozenset({"*"})
    )
    loop, subject = shaken(store, clock, slow)
    await through(loop, clock)
    await clock.advance(600)
    subject.standstill.stand(590)
    await clock.advance(30)  # settled: 40 s awake since it began
    assert not (await through(loop, clock)).opened
    await clock.advance(30)
    assert (await through(loop, clock)).opened == 1
    [ticket] = (await tickets(store)).values()
    assert (ticket.opened_at - ticket.first_seen_at).total_seconds() == 70


async def test_a_blocked_loop_makes_no_healthy_subject_fail(store: SqlStore) -> None:
    """The real clocks, and a plug-in that blocks every other subject for longer than its timeout."""

    class Blocking(FakeSubject):
        async def observe(self, previous: Json) -> Observation:
            await asyncio.sleep(0.1)
            if not self.looks:
                self.looks.append(previous)
                time.sleep(1.5)
            return healthy()

    class Slow(FakeSubject):
        async def observe(self, previous: Json) -> Observation:
            async with asyncio.timeout(0.9):
                await asyncio.sleep(0.2)
            return healthy()

    subjects = [Slow(f"well{i}", timeout=1) for i in range(5)]
    loop = MonitorLoop(
        store,
        [*subjects, Blocking("plug-in")],
        MonitorSettings(unobservable_after=1),
    )
    cycle = await loop.once()
    await loop.close()
    assert (cycle.subjects, cycle.unobservable, cycle.opened) == (6, 0, 0)
