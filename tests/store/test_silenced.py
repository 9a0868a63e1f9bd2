"""What a silence does while the monitor runs: on SQLite and PostgreSQL, over restarts and with two monitors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from midwatch.errors import ObservationFailed
from midwatch.model import Observation, Signal, Ticket
from midwatch.monitor.loop import MonitorLoop
from midwatch.settings import MonitorSettings
from midwatch.silences import Matcher, Recurrence, Silence, parse_matchers
from midwatch.store.protocol import TicketFilter
from midwatch.store.sql import SqlStore, open_store
from midwatch.testing.fakes import (
    FakeSubject,
    ManualClock,
    Step,
    broken,
    healthy,
    partly,
)

DOWN = broken("alive", "db")
BLIND = ObservationFailed("the network is gone")
STEP = 30.0
"""Seconds between two cycles."""


@pytest.fixture
async def opened(shared_database: str, clock: ManualClock) -> AsyncIterator[SqlStore]:
    store = await open_store(shared_database, clock=clock.database)
    yield store
    await store.close()


def monitor(
    store: SqlStore, clock: ManualClock, *script: Step, **settings: float
) -> tuple[MonitorLoop, FakeSubject]:
    """A new monitor, as after a restart of the process."""
    subject = FakeSubject("fake", script, kind="fake")
    rules = MonitorSettings.model_validate({"unobservable_after": 2, **settings})
    return MonitorLoop(store, [subject], rules, clock=clock), subject


async def cycles(loop: MonitorLoop, clock: ManualClock, count: int = 1) -> None:
    for _ in range(count):
        await loop.cycle()
        await clock.advance(STEP)


async def silence(
    store: SqlStore,
    text: str = 'invariant="alive"',
    seconds: float = 600,
    recurrence: Recurrence | None = None,
) -> Silence:
    return await store.add_silence(
        parse_matchers(text),
        author="ann",
        reason="upgrade",
        seconds=seconds,
        recurrence=recurrence,
    )


async def tickets(store: SqlStore) -> list[Ticket]:
    return sorted(await store.tickets(TicketFilter()), key=lambda ticket: ticket.id)


async def test_a_silence_that_ends_on_a_broken_invariant_opens_the_ticket(
    opened: SqlStore, clock: ManualClock
) -> None:
    """It says since when the invariant is broken, and the times to detect do not count what was silent."""
    await silence(opened, 'invariant=alive, kind="fake", severity=critical', 100)
    loop, _ = monitor(opened, clock, healthy(), DOWN)
    began = clock.now()
    await cycles(loop, clock, 4)
    assert await tickets(opened) == []
    [kept] = await opened.silenced()
    assert (kept.by, kept.message) == ("silence 1", "db: it is broken")
    assert (kept.first_seen_at - began).total_seconds() == STEP
    await cycles(loop, clock, 2)
    [ticket] = await tickets(opened)
    assert ticket.silenced_by is None
    assert (ticket.opened_at - began).total_seconds() == 4 * STEP
    assert (ticket.first_seen_at - began).total_seconds() == STEP
    assert await opened.silenced() == []
    stats = await opened.stats(3600)
    assert (stats.silenced, stats.silent_now, stats.to_detect) == (1, 0, None)


async def test_a_violation_that_clears_in_time_leaves_no_ticket(
    opened: SqlStore, clock: ManualClock
) -> None:
    made = await silence(opened)
    loop, _ = monitor(opened, clock, DOWN, healthy())
    await cycles(loop, clock, 2)
    await opened.expire_silence(made.id, "ann")
    await cycles(loop, clock, 2)
    assert await tickets(opened) == [] and await opened.silenced() == []
    [past] = await opened.silenced(within=3600)
    assert past.ended_at is not None and past.ticket_id is None


async def test_an_early_end_and_a_second_silence(
    opened: SqlStore, clock: ManualClock
) -> None:
    """What one silence gives up another one keeps; when the last is expired the ticket opens."""
    first, second = await silence(opened), await silence(opened, "subject=fake", 300)
    loop, _ = monitor(opened, clock, DOWN)
    await cycles(loop, clock)
    assert [one.by for one in await opened.silenced()] == [f"silence {first.id}"]
    await opened.expire_silence(first.id, "bob")
    await cycles(loop, clock)
    [kept] = await opened.silenced()
    assert (kept.by, kept.until) == (f"silence {second.id}", second.end)
    await opened.expire_silence(second.id, "bob")
    await cycles(loop, clock)
    [ticket] = await tickets(opened)
    assert (ticket.opened_at - ticket.first_seen_at).total_seconds() == 2 * STEP


async def test_a_new_silence_keeps_an_open_ticket_from_agents_alone(
    opened: SqlStore, clock: ManualClock
) -> None:
    """The ticket stays, counts, and resolves by observation as ever."""
    loop, subject = monitor(opened, clock, DOWN, group_wait=0)
    await cycles(loop, clock)
    await silence(opened, seconds=100)
    await cycles(loop, clock)
    [ticket] = await tickets(opened)
    assert ticket.silenced_at(clock.now()) and ticket.occurrence_count == 2
    assert await opened.claim("agent", lease=30) == []
    await cycles(loop, clock, 4)
    [ticket] = await tickets(opened)
    assert ticket.silenced_by is None and ticket.occurrence_count == 6
    assert len(await opened.claim("agent", lease=30)) == 1
    await silence(opened)
    subject.then(healthy())
    await cycles(loop, clock)
    [ticket] = await tickets(opened)
    assert ticket.resolved and await opened.silenced() == []
    actions = [row.action for row in await opened.history(ticket.id)]
    assert actions == ["open", "silence", "unsilence", "silence", "resolve"]


@pytest.mark.parametrize("hold_for", [0.0, 600.0])
async def test_a_restart_during_a_silence(
    opened: SqlStore, clock: ManualClock, hold_for: float
) -> None:
    """The ticket opens with the end of the silence, however long the invariant has to be broken."""
    slow = Signal("alive", "db", "slow", holds=False, hold_for=hold_for)
    lasting = Observation((slow,), frozenset({"*"}))
    made = await silence(opened, seconds=3600)
    loop, _ = monitor(opened, clock, lasting)
    began = clock.now()
    await cycles(loop, clock, 22)
    assert len(await opened.silenced()) == 1
    again, _ = monitor(opened, clock, lasting)
    await cycles(again, clock)
    assert await tickets(opened) == []
    await opened.expire_silence(made.id, "ann")
    once, _ = monitor(opened, clock, lasting)  # as `monitor --once` does
    await once.cycle()
    [ticket] = await tickets(opened)
    assert ticket.first_seen_at == began


async def test_two_monitors_agree(opened: SqlStore, clock: ManualClock) -> None:
    """One row while it is silent, one ticket afterwards."""
    made = await silence(opened)
    pair = [monitor(opened, clock, DOWN)[0] for _ in range(2)]
    for _ in range(3):
        await asyncio.gather(*(loop.cycle() for loop in pair))
        await clock.advance(STEP)
    assert len(await opened.silenced(within=3600)) == 1
    await opened.expire_silence(made.id, "ann")
    for _ in range(2):
        await asyncio.gather(*(loop.cycle() for loop in pair))
    assert len(await tickets(opened)) == 1 and await opened.silenced() == []


async def test_an_unobservable_subject_under_a_silence(
    opened: SqlStore, clock: ManualClock
) -> None:
    """No ticket tells of it while it is silent; what was silent before is unknown, and neither opens nor clears."""
    made = await silence(opened, "subject=fake")
    loop, subject = monitor(opened, clock, DOWN, BLIND)
    await cycles(loop, clock, 4)
    assert await tickets(opened) == []
    keys = {one.key.invariant for one in await opened.silenced()}
    assert keys == {"alive", "subject_unobservable"}
    await opened.expire_silence(made.id, "ann")
    await cycles(loop, clock)
    assert [one.key.invariant for one in await tickets(opened)] == [
        "subject_unobservable"
    ]
    assert [one.key.invariant for one in await opened.silenced()] == ["alive"]
    subject.then(partly({"alive": "statement time-out"}))
    await cycles(loop, clock)
    assert len(await opened.silenced()) == 1, "still out of sight"
    subject.then(DOWN)
    await cycles(loop, clock)
    assert [(one.key.invariant, one.resolved) for one in await tickets(opened)] == [
        ("subject_unobservable", True),
        ("alive", False),
    ]


async def test_windows_open_and_close_by_themselves(
    opened: SqlStore, clock: ManualClock
) -> None:
    """At noon, when the clock starts, from 12:01 to 12:02, and an hour later on the open ticket."""
    rule = Recurrence("FREQ=DAILY;BYHOUR=12,13;BYMINUTE=1", 60)
    await silence(opened, seconds=86400, recurrence=rule)
    loop, subject = monitor(opened, clock, healthy(), healthy(), DOWN)
    await cycles(loop, clock, 4)
    assert await tickets(opened) == []
    await cycles(loop, clock)
    [ticket] = await tickets(opened)
    assert (ticket.opened_at - ticket.first_seen_at).total_seconds() == 60
    await clock.advance(3600 - 90)
    await cycles(loop, clock)
    [ticket] = await tickets(opened)
    assert ticket.silenced_by == "silence 1"
    await cycles(loop, clock, 3)
    [ticket] = await tickets(opened)
    assert ticket.silenced_by is None


async def test_what_the_sender_of_an_alert_silenced(
    opened: SqlStore, clock: ManualClock
) -> None:
    """Its violation is silent for as long as the sender says so, and cleaned as any other text."""
    by = "Alertmanager silence 4f\x1b[31m"
    quiet = Observation((replace(DOWN.signals[0], silenced_by=by),), frozenset({"*"}))
    loop, subject = monitor(opened, clock, quiet)
    await cycles(loop, clock, 3)
    [kept] = await opened.silenced()
    assert (kept.by, kept.until) == ("Alertmanager silence 4f", None)
    revision = await opened.revision("fake")
    await cycles(loop, clock, 3)
    assert await opened.revision("fake") == revision, "an unchanged cycle writes none"
    subject.then(DOWN)
    await cycles(loop, clock)
    [ticket] = await tickets(opened)
    assert ticket.silenced_by is None
    subject.then(quiet, BLIND)
    await cycles(loop, clock, 3)
    [ticket, blind] = await tickets(opened)
    assert ticket.silenced_by == "Alertmanager silence 4f", "out of sight it stays"
    assert blind.key.invariant == "subject_unobservable"


async def test_labels_of_an_alert_count_and_other_facts_do_not(
    opened: SqlStore, clock: ManualClock
) -> None:
    facts = {"label_team": "shop", "team": "none", "label_subject": "forged"}
    one = replace(DOWN.signals[0], facts=facts)
    other = replace(one, component="b", facts={"team": "shop"})
    both = Observation((one, other), frozenset({"*"}))
    loop, _ = monitor(opened, clock, both)
    await silence(opened, 'team=~"sh.*", subject="fake"')
    await cycles(loop, clock)
    assert [each.key.component for each in await tickets(opened)] == ["b"]
    await silence(opened, 'team!="shop", subject=fake')
    [ticket] = await tickets(opened)
    assert ticket.silenced_by is not None


async def test_a_thousand_silent_violations_cost_one_row_a_cycle(
    opened: SqlStore, clock: ManualClock
) -> None:
    many = broken("alive", *(f"c{number}" for number in range(1000)))
    await silence(opened, "subject=fake", 3600)
    loop, _ = monitor(opened, clock, many)
    await cycles(loop, clock, 2)
    assert len(await opened.silenced()) == 1000
    revision = await opened.revision("fake")
    await cycles(loop, clock, 2)
    assert await opened.revision("fake") == revision


async def test_a_silence_that_cannot_be_applied_silences_nothing(
    opened: SqlStore, clock: ManualClock
) -> None:
    """A rule that another version of a library made wrong, say: a ticket too many is better than one too few."""
    made = await silence(opened, "subject=fake")
    broken_one = replace(made, rrule="FREQ=NEVER", window_seconds=60.0)
    assert broken_one.matchers == (Matcher("subject", "=", "fake"),)
    watch = await opened.watch("fake")
    store = Tampered(opened, replace(watch, silences=(broken_one,)))
    loop, _ = monitor(store, clock, DOWN)  # type: ignore[arg-type]
    await cycles(loop, clock)
    assert len(await tickets(opened)) == 1


class Tampered:
    """A store whose watch is given."""

    def __init__(self, store: SqlStore, watch: object) -> None:
        self._store, self._watch = store, watch

    async def watch(self, *_: object) -> object:
        return self._watch

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)
