"""Checks of silences: what they do to violations, to open tickets, to cycles under way and to the queue."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

from midwatch.errors import ClaimLost, Conflict, NotFound, StaleWatch
from midwatch.model import Key, Severity, Ticket
from midwatch.silences import (
    Hold,
    InvalidSilence,
    Matcher,
    Recurrence,
    Silence,
    Silencing,
)
from midwatch.store.protocol import Changes, Finish
from midwatch.testing.store_conformance.fixture import (
    LEASE,
    StoreFixture,
    ids,
    opening,
    raises,
)

ON_DB = (Matcher("subject", "=", "db"),)
HOSTILE = (Matcher('a "b"\\\n', "!=", "\U0001f642\\"), Matcher("subject", "=", "db"))


async def _silence(
    fixture: StoreFixture,
    component: str | None = None,
    seconds: float = 600,
    start: float = 0,
) -> Silence:
    matchers = (
        ON_DB if component is None else (Matcher("component", "=", component), *ON_DB)
    )
    return await fixture.store.add_silence(
        matchers,
        author="ann",
        reason="upgrade",
        starts_at=fixture.clock.after(start),
        seconds=seconds,
    )


def _silencing(component: str, held: Hold, ticket: Ticket | None = None) -> Silencing:
    key = Key("db", "connections", component)
    return Silencing(
        key, Severity.WARNING, "m", held, "why", 30, ticket.id if ticket else None
    )


async def a_silence_is_kept_until_it_ends(fixture: StoreFixture) -> None:
    """It is listed while it holds or will hold; afterwards only with the ended ones."""
    store, clock = fixture.store, fixture.clock
    later = await _silence(fixture, start=60, seconds=60)
    first = await store.add_silence(
        HOSTILE, author="ann \u202e", reason="x" * 500, ends_at=clock.after(30)
    )
    assert await store.silences() == [first, later]
    assert first.matchers == HOSTILE and first.created_at == clock.now
    assert (first.active(clock.now), later.active(clock.now)) == (True, False)
    clock.move(30)
    assert await store.silences() == [later]
    assert await store.silences(include_ended=True) == [first, later]
    assert await store.silence(first.id) == first
    await raises(Conflict, store.expire_silence(first.id, "bob"))
    await raises(NotFound, store.silence(99))
    await raises(NotFound, store.expire_silence(2**70, "bob"))
    ended = await store.expire_silence(later.id, "bob")
    assert (ended.expired_at, ended.expired_by) == (clock.now, "bob")
    assert ended.end == clock.now and await store.silences() == []
    await raises(Conflict, store.expire_silence(later.id, "bob"))


async def windows_are_kept(fixture: StoreFixture) -> None:
    recurrence = Recurrence("FREQ=DAILY;BYHOUR=2;BYMINUTE=0", 3600, "Europe/Berlin")
    made = await fixture.store.add_silence(
        ON_DB, author="a", reason="r", seconds=86400 * 3, recurrence=recurrence
    )
    assert made.recurrence == recurrence
    assert (await fixture.store.silences())[0] == made
    assert made.next_start(fixture.clock.now) == fixture.clock.now.replace(
        hour=1, minute=0
    ) + timedelta(days=1)


async def a_senseless_silence_is_refused(fixture: StoreFixture) -> None:
    add = fixture.store.add_silence
    for matchers in ((), (Matcher("subject", "!=", "x"),), (Matcher("a", "=", ""),)):
        refused = add(matchers, author="a", reason="r", seconds=60)
        await raises(InvalidSilence, refused)
    for seconds in (None, 0, -1, float("nan"), float("inf"), 1e12):
        refused = add(ON_DB, author="a", reason="r", seconds=seconds)
        await raises(InvalidSilence, refused)
    past = fixture.clock.after(-1)
    await raises(InvalidSilence, add(ON_DB, author="a", reason="r", ends_at=past))
    await raises(InvalidSilence, add(ON_DB, author="a", reason=" ", seconds=60))
    never = Recurrence("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", 60)
    refused = add(ON_DB, author="a", reason="r", seconds=60, recurrence=never)
    await raises(InvalidSilence, refused)
    assert await fixture.store.silences(include_ended=True) == []


async def a_cycle_that_does_not_know_a_silence_is_refused(
    fixture: StoreFixture,
) -> None:
    """So a ticket cannot open for what became silent during the poll, nor stay silent when that ended."""
    store = fixture.store
    watch = await store.watch("db", "postgres")
    made = await _silence(fixture)
    changes = Changes((opening("a"),))
    stale = store.save_cycle(
        "db", watch.revision, changes, silences=watch.silences_revision
    )
    await raises(StaleWatch, stale)
    fresh = await store.watch("db")
    assert fresh.silences == (made,) and fresh.now == fixture.clock.now
    await store.expire_silence(made.id, "ann")
    late = store.save_cycle(
        "db", fresh.revision, changes, silences=fresh.silences_revision
    )
    await raises(StaleWatch, late)
    now = await store.watch("db")
    saved = await store.save_cycle(
        "db", now.revision, changes, silences=now.silences_revision
    )
    assert len(saved.opened) == 1 and saved.now == fixture.clock.now


async def a_silent_violation_is_recorded_until_it_is_audible(
    fixture: StoreFixture,
) -> None:
    """One row for as long as it is silent without a break, whatever silence does it; then its ticket."""
    store, clock = fixture.store, fixture.clock
    first, second = await _silence(fixture), await _silence(fixture, seconds=900)
    held = Hold(f"silence {first.id}", first.end, first.id)
    await fixture.cycle(Changes(silenced=(_silencing("a", held),)))
    (row,) = await store.silenced()
    assert (row.key.component, row.message, row.by) == ("a", "m", held.by)
    assert row.first_seen_at == clock.after(-30) and row.until == first.end
    other = Hold(f"silence {second.id}", second.end, second.id)
    await fixture.cycle(
        Changes(silenced=(_silencing("a", other), _silencing("b", Hold("its sender"))))
    )
    changed, sender = sorted(await store.silenced("db"), key=lambda one: one.id)
    assert changed == replace(row, by=other.by, until=second.end, silence_id=second.id)
    assert (sender.by, sender.until, sender.silence_id) == ("its sender", None, None)
    assert (await store.watch("db")).silenced == (changed, sender)
    assert await store.silenced("other") == []
    keys = (changed.key, sender.key)
    (ticket,) = await fixture.cycle(Changes((opening("a"),), audible=keys))
    assert await store.silenced() == []
    past = {one.key.component: one for one in await store.silenced(within=60)}
    assert past["a"].ticket_id == ticket.id
    assert past["b"].ticket_id is None and past["b"].ended_at == clock.now
    actions = await fixture.actions(ticket)
    assert actions == ["open", "unsilence"]
    assert (await store.stats(60)).silenced == 2


async def an_open_ticket_is_silent_at_once(fixture: StoreFixture) -> None:
    """When the silence is made, not with the next cycle; and audible at once when it is expired."""
    store = fixture.store
    await store.watch("db", "postgres")
    one, other = await fixture.open("a", "b")
    made = await store.add_silence(
        (Matcher("component", "=", "a"), Matcher("kind", "=", "postgres")),
        author="ann",
        reason="upgrade",
        seconds=600,
    )
    silent = await store.ticket(one.id)
    assert (silent.silenced_by, silent.silenced_until) == (
        f"silence {made.id}",
        made.end,
    )
    assert silent.silenced_at(fixture.clock.now)
    assert not silent.silenced_at(made.end)
    assert (await store.ticket(other.id)).silenced_by is None
    (row,) = await store.silenced()
    assert row.ticket_id == one.id
    second = await _silence(fixture, seconds=60)
    await store.expire_silence(made.id, "bob")
    assert (await store.ticket(one.id)).silenced_by == f"silence {second.id}"
    await store.expire_silence(second.id, "bob")
    assert (await store.ticket(one.id)).silenced_by is None
    assert [
        (row.action, row.actor)
        for row in await store.history(one.id)
        if "silence" in row.action
    ] == [("silence", "ann"), ("unsilence", "bob")]


async def what_its_sender_silenced_stays_so(fixture: StoreFixture) -> None:
    """A silence that ends does not make a ticket audible that its sender keeps silent."""
    store = fixture.store
    (one,) = await fixture.open("a")
    await fixture.cycle(
        Changes(silenced=(_silencing("a", Hold("Alertmanager silence 4f"), one),))
    )
    made = await _silence(fixture, "b")
    await store.expire_silence(made.id, "ann")
    assert (await store.ticket(one.id)).silenced_by == "Alertmanager silence 4f"


async def a_resolved_ticket_is_not_silent(fixture: StoreFixture) -> None:
    store = fixture.store
    one, other = await fixture.open("a", "b")
    await _silence(fixture)
    await store.resolve(one.id, "ann", "done")
    await fixture.cycle(Changes(resolved=(other.id,)))
    assert await store.silenced() == []
    assert (await store.ticket(one.id)).silenced_by is None
    assert len(await store.silenced(within=60)) == 2


async def a_silent_ticket_is_not_claimed(fixture: StoreFixture) -> None:
    """Nor does it keep others from it; when its silence has ended it is, also without a monitor."""
    store = fixture.store
    (one,) = await fixture.open("a", severity=Severity.CRITICAL)
    (other,) = await fixture.open("b")
    await _silence(fixture, "a", seconds=600)
    assert ids((await fixture.claim()).tickets) == (other.id,)
    assert await fixture.nothing_due()
    fixture.clock.move(600)
    claims = await store.claim("agent", lease=LEASE, limit=5)
    assert sorted(ids(claims[0].tickets) + ids(claims[-1].tickets)) == [
        one.id,
        other.id,
    ]


async def a_batch_that_is_silent_in_part_is_claimed_in_part(
    fixture: StoreFixture,
) -> None:
    """The silent tickets wait in a batch of their own, and a person who asks for a batch has all of it."""
    store, clock = fixture.store, fixture.clock
    one, two, three = await fixture.open("a", "b", "c")
    await _silence(fixture, "a", seconds=300)
    await _silence(fixture, "c", seconds=300)
    claim, _ = await fixture.diagnose(Finish("answered"))
    assert ids(claim.tickets) == (two.id,) and claim.attempt == 1
    assert await fixture.nothing_due()
    apart = await store.ticket(one.id)
    assert apart.batch == (await store.ticket(three.id)).batch != one.batch
    assert (await fixture.actions(one))[-1] == "requeue"
    (asked,) = await store.claim("ann", lease=LEASE, batch=apart.batch)
    assert ids(asked.tickets) == (one.id, three.id)
    await store.release(asked)
    clock.move(300)
    assert ids((await fixture.claim()).tickets) == (one.id, three.id)


async def a_claim_without_a_call_ends_with_a_silence(fixture: StoreFixture) -> None:
    """Nothing is paid for it; a call that was begun ends as any other."""
    store = fixture.store
    (one,) = await fixture.open("a")
    claim = await fixture.claim()
    made = await _silence(fixture)
    await raises(ClaimLost, fixture.begin(claim))
    assert await fixture.nothing_due()
    await store.expire_silence(made.id, "ann")
    again = await fixture.claim()
    assert again.attempt == 1
    diagnosis = await fixture.begin(again)
    await _silence(fixture)
    assert await store.finish(again, diagnosis, Finish("answered"))
    assert (await store.ticket(one.id)).diagnosis_id == diagnosis


async def silences_made_at_once_are_all_known(fixture: StoreFixture) -> None:
    """Each takes the next revision, so that no cycle misses one."""
    (one,) = await fixture.open("a")
    made = await asyncio.gather(*(_silence(fixture) for _ in range(6)))
    watch = await fixture.store.watch("db")
    assert len(watch.silences) == 6 and watch.silences_revision == 6
    await asyncio.gather(
        *(fixture.store.expire_silence(each.id, "ann") for each in made)
    )
    assert (await fixture.store.watch("db")).silences_revision == 12
    assert (await fixture.store.ticket(one.id)).silenced_by is None


CHECKS = (
    a_silence_is_kept_until_it_ends,
    windows_are_kept,
    a_senseless_silence_is_refused,
    a_cycle_that_does_not_know_a_silence_is_refused,
    a_silent_violation_is_recorded_until_it_is_audible,
    an_open_ticket_is_silent_at_once,
    what_its_sender_silenced_stays_so,
    a_resolved_ticket_is_not_silent,
    a_silent_ticket_is_not_claimed,
    a_batch_that_is_silent_in_part_is_claimed_in_part,
    a_claim_without_a_call_ends_with_a_silence,
    silences_made_at_once_are_all_known,
)
