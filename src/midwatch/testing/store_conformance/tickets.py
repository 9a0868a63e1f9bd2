"""Checks of tickets: cycles of the monitor, batches, actions of people, and queries."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

from midwatch.errors import Conflict, NotFound, StaleWatch
from midwatch.model import (
    Facts,
    Key,
    OpenTicket,
    Severity,
    Ticket,
    TicketStatus,
    Usage,
    Violation,
)
from midwatch.store.protocol import (
    Changes,
    Earlier,
    Finish,
    Opening,
    TicketFilter,
)
from midwatch.testing.store_conformance.fixture import (
    LEASE,
    StoreFixture,
    ids,
    opening,
    raises,
)


async def an_opening_becomes_a_ticket(fixture: StoreFixture) -> None:
    """Every field of a violation is kept, with its age and an audit row."""
    key = Key("db", "connections", "pool-1")
    facts: Facts = {
        "pid": 4711,
        "user": "app",
        "share": 0.5,
        "idle": True,
        "gone": None,
    }
    violation = Violation(key, Severity.CRITICAL, "97 of 100", 97.0, 90.0, facts)
    changes = Changes((Opening(violation, 12.0, None, True),))
    (ticket,) = await fixture.cycle(changes)
    (watched,) = (await fixture.store.watch("db")).tickets
    assert watched == OpenTicket(ticket.id, key, Severity.CRITICAL, new=True)
    assert ticket == await fixture.store.ticket(ticket.id)
    assert (ticket.key, ticket.severity, ticket.message) == (
        key,
        Severity.CRITICAL,
        "97 of 100",
    )
    assert ticket.facts == {**facts, "value": 97.0, "limit": 90.0}
    assert ticket.opened_at == ticket.last_seen_at == fixture.clock.now
    assert ticket.first_seen_at == fixture.clock.now - timedelta(seconds=12)
    assert (ticket.status, ticket.held, ticket.seen) == (
        TicketStatus.OPEN,
        False,
        True,
    )
    assert (ticket.occurrence_count, ticket.attempts) == (1, 0)
    assert ticket.flapping
    (row,) = await fixture.store.history(ticket.id)
    assert (row.action, row.before, row.after) == ("open", None, "open")
    assert row.at == fixture.clock.now


async def a_key_has_one_unresolved_ticket(fixture: StoreFixture) -> None:
    """A second opening of a key fails, and nothing else of its cycle stays."""
    (first,) = await fixture.open("a")
    before = await fixture.store.watch("db")
    await raises(
        StaleWatch, fixture.cycle(Changes((opening("b"), opening("a")), (first.id,)))
    )
    assert await fixture.store.watch("db") == before
    await fixture.open("a", subject="other")
    await fixture.store.resolve(first.id, "ann", "restarted")
    again = await fixture.cycle(Changes((opening("a", previous_id=first.id),)))
    assert again[0].previous_id == first.id


async def only_one_of_two_writers_opens(fixture: StoreFixture) -> None:
    """Two cycles computed from one revision: the second is stale."""
    revision = (await fixture.store.watch("db")).revision
    changes = Changes((opening("a"),))
    saved = await fixture.store.save_cycle("db", revision, changes)
    assert saved.revision > revision
    assert await fixture.store.revision("db") == saved.revision
    await raises(
        StaleWatch, fixture.store.save_cycle("db", revision, changes, state={"x": 1})
    )
    watch = await fixture.store.watch("db")
    assert (ids(watch.tickets), watch.state) == (tuple(saved.opened), {})


async def an_unchanged_cycle_counts_all_the_same(fixture: StoreFixture) -> None:
    """The revision stays; count and last time of the tickets in the observation increase."""
    (ticket,) = await fixture.open("a")
    revision = await fixture.store.revision("db")
    for _ in range(3):
        fixture.clock.move(30)
        await fixture.cycle()
        assert await fixture.store.revision("db") == revision
    seen = await fixture.store.ticket(ticket.id)
    assert (seen.occurrence_count, seen.last_seen_at) == (4, fixture.clock.now)


async def what_is_missing_does_not_count(fixture: StoreFixture) -> None:
    """A missing ticket keeps its last time; a returned one counts on."""
    missed, seen = await fixture.open("a", "b")
    fixture.clock.move(30)
    await fixture.cycle()
    last = fixture.clock.now
    fixture.clock.move(30)
    await fixture.cycle(Changes(missing=(missed.id,)))
    fixture.clock.move(30)
    await fixture.cycle()
    ticket = await fixture.store.ticket(missed.id)
    assert (ticket.seen, ticket.occurrence_count, ticket.last_seen_at) == (
        False,
        2,
        last,
    )
    assert (await fixture.store.ticket(seen.id)).occurrence_count == 4
    fixture.clock.move(30)
    await fixture.cycle(Changes(returned=(missed.id,)))
    await fixture.cycle()
    ticket = await fixture.store.ticket(missed.id)
    assert (ticket.seen, ticket.occurrence_count) == (True, 4)
    assert ticket.last_seen_at == fixture.clock.now


async def observation_resolves(fixture: StoreFixture) -> None:
    """Resolved with time, reason and audit row, final count kept, out of the queue."""
    (ticket,) = await fixture.open("a")
    fixture.clock.move(30)
    await fixture.cycle(Changes(resolved=(ticket.id,)))
    await fixture.cycle()
    resolved = await fixture.store.ticket(ticket.id)
    assert resolved.status is TicketStatus.RESOLVED and resolved.resolution
    assert resolved.resolved_at == fixture.clock.now
    assert (resolved.occurrence_count, resolved.last_seen_at) == (1, ticket.opened_at)
    row = (await fixture.store.history(ticket.id))[-1]
    assert (row.action, row.before, row.after) == ("resolve", "open", "resolved")
    assert (await fixture.store.watch("db")).tickets == ()
    assert await fixture.nothing_due()


async def a_held_ticket_does_not_resolve_by_itself(fixture: StoreFixture) -> None:
    held, free = await fixture.open("a", "b")
    await fixture.store.hold(held.id, True, "ann")
    await fixture.cycle(Changes(resolved=(held.id, free.id)))
    assert ids((await fixture.store.watch("db")).tickets) == (held.id,)
    await fixture.store.hold(held.id, False, "ann")
    await fixture.cycle(Changes(resolved=(held.id,)))
    assert (await fixture.store.watch("db")).tickets == ()


async def failed_looks_are_counted_in_a_row(fixture: StoreFixture) -> None:
    """A failure leaves tickets and state alone; a successful observation resets the count to zero."""
    revision = (await fixture.store.watch("db")).revision
    await fixture.store.save_cycle(
        "db", revision, Changes((opening("a"),)), state={"seen": [1]}
    )
    before = await fixture.store.watch("db")
    fixture.clock.move(30)
    for _ in range(2):
        await fixture.fail("timed out")
    after = await fixture.store.watch("db")
    assert (after.revision, after.failures) == (before.revision, 2)
    assert (after.tickets, after.state) == (before.tickets, before.state)
    await fixture.cycle()
    assert (await fixture.store.watch("db")).failures == 0


async def a_failed_look_can_open_a_ticket(fixture: StoreFixture) -> None:
    """That of a subject that cannot be observed: it counts failed observations, which resolve nothing."""
    (known,) = await fixture.open("a")
    fixture.clock.move(30)
    changes = Changes((opening("db", invariant="subject_unobservable"),))
    (ticket,) = await fixture.fail("timed out", changes)
    for _ in range(2):
        fixture.clock.move(30)
        await fixture.fail("timed out", Changes(again=(ticket.id,)))
    seen = await fixture.store.ticket(ticket.id)
    assert (seen.occurrence_count, seen.last_seen_at) == (3, fixture.clock.now)
    fixture.clock.move(30)
    await fixture.cycle(Changes(resolved=(ticket.id,)))
    ended = await fixture.store.ticket(ticket.id)
    assert (ended.occurrence_count, ended.last_seen_at) == (3, seen.last_seen_at)
    assert (await fixture.store.ticket(known.id)).occurrence_count == 2


async def earlier_openings_are_known(fixture: StoreFixture) -> None:
    """The latest ticket of each key and how often it opened; another subject's do not count."""
    keys = [Key("db", "connections", name) for name in ("a", "b", "never")]
    last = {}
    for components in (("a",), ("a", "b"), ("a",)):
        for ticket in await fixture.open(*components):
            last[ticket.key] = ticket.id
            await fixture.store.resolve(ticket.id, "ann", "gone")
        fixture.clock.move(600)
    await fixture.open("never", subject="other")
    await fixture.cycle(Changes((opening("never", invariant="deadlocks"),)))
    found = await fixture.store.earlier("db", keys, 1201)
    assert found == {
        keys[0]: Earlier(last[keys[0]], 2),
        keys[1]: Earlier(last[keys[1]], 1),
    }
    assert await fixture.store.earlier("db", [], 3600) == {}


async def state_is_kept_until_it_changes(fixture: StoreFixture) -> None:
    """None leaves the state as it is; the documents come back as they were."""
    state = {"counters": {"deadlocks": 3, "ratio": 0.25}, "list": [1, None, "ü", True]}
    revision = (await fixture.store.watch("db")).revision
    await fixture.store.save_cycle("db", revision, Changes(), state=state)
    await fixture.store.save_cycle("db", revision, Changes())
    assert (await fixture.store.watch("db")).state == state
    assert (await fixture.store.watch("other")).state == {}


async def openings_of_a_key_are_remembered(fixture: StoreFixture) -> None:
    """Tickets of the last seconds come oldest first, resolved ones included."""
    key = Key("db", "connections", "a")
    opened: list[Ticket] = []
    for _ in range(3):
        opened += await fixture.open("a")
        await fixture.cycle(Changes(resolved=(opened[-1].id,)))
        fixture.clock.move(600)
    await fixture.open("b")
    assert ids(await fixture.store.openings(key, 3600)) == ids(opened)
    assert ids(await fixture.store.openings(key, 1201)) == ids(opened[1:])


async def first_aid_is_kept(fixture: StoreFixture) -> None:
    first, second, other = await fixture.open("a", "b", "c")
    first_aid = {"summary": "look at pid 4711", "claims": [{"quote": "pid=4711"}]}
    await fixture.store.save_first_aid((first.id, second.id), first_aid)
    for ticket in (first, second):
        assert (await fixture.store.ticket(ticket.id)).first_aid == first_aid
    assert (await fixture.store.ticket(other.id)).first_aid is None


async def one_cycle_makes_one_batch(fixture: StoreFixture) -> None:
    tickets = await fixture.open("a", "b", "c")
    assert len({ticket.batch for ticket in tickets}) == 1
    claim = await fixture.claim()
    assert sorted(ids(claim.tickets)) == sorted(ids(tickets))
    assert claim.batch == tickets[0].batch


async def what_appears_within_the_group_wait_joins(fixture: StoreFixture) -> None:
    """The same subject, young and unclaimed; everything else starts a batch of its own."""
    (first,) = await fixture.open("a", group_wait=10)
    fixture.clock.move(9)
    (joined,) = await fixture.open("b", group_wait=10)
    (elsewhere,) = await fixture.open("a", subject="other", group_wait=10)
    fixture.clock.move(2)
    (later,) = await fixture.open("c", group_wait=10)
    assert joined.batch == first.batch
    assert len({first.batch, elsewhere.batch, later.batch}) == 3


async def a_batch_waits_for_its_group(fixture: StoreFixture) -> None:
    """It cannot be claimed before the group wait is over; joining does not prolong that."""
    (first,) = await fixture.open("a", group_wait=10)
    fixture.clock.move(9)
    (second,) = await fixture.open("b", group_wait=10)
    assert await fixture.nothing_due()
    fixture.clock.move(1)
    assert ids((await fixture.claim()).tickets) == (first.id, second.id)


async def a_claimed_batch_is_closed(fixture: StoreFixture) -> None:
    """What opens after the claim was taken is another incident."""
    (first,) = await fixture.open("a")
    claim = await fixture.claim()
    (second,) = await fixture.open("b", group_wait=60)
    assert second.batch != first.batch
    assert ids(claim.tickets) == (first.id,)
    assert await fixture.store.release(claim)
    (third,) = await fixture.open("c", group_wait=60)
    assert third.batch == second.batch


async def the_worst_ticket_gives_a_batch_its_place(fixture: StoreFixture) -> None:
    """A critical ticket that joins a batch of warnings brings all of it forward."""
    await fixture.open("old", subject="other")
    fixture.clock.move(1)
    await fixture.open("a", group_wait=10)
    await fixture.open("b", severity=Severity.CRITICAL, group_wait=10)
    fixture.clock.move(10)
    claim = await fixture.claim()
    assert [ticket.key.component for ticket in claim.tickets] == ["b", "a"]
    assert claim.severity is Severity.CRITICAL


async def a_batch_leaves_the_queue_with_its_last_ticket(fixture: StoreFixture) -> None:
    first, second = await fixture.open("a", "b")
    await fixture.cycle(Changes(resolved=(first.id,)))
    claim = await fixture.claim()
    assert ids(claim.tickets) == (second.id,)
    await fixture.store.release(claim)
    await fixture.store.resolve(second.id, "ann", "gone")
    assert await fixture.nothing_due()


async def many_tickets_open_and_resolve_at_once(fixture: StoreFixture) -> None:
    """More of them than a statement takes parameters on any database."""
    openings = tuple(opening(f"c{number}") for number in range(1200))
    opened = await fixture.cycle(Changes(openings))
    assert [ticket.key.component for ticket in opened] == [
        each.violation.key.component for each in openings
    ]
    await fixture.cycle(Changes(missing=ids(opened)))
    await fixture.cycle(Changes(returned=ids(opened)))
    await fixture.store.save_first_aid(ids(opened), {"summary": "one cause"})
    claim = await fixture.claim()
    assert len(claim.tickets) == len(opened)
    await fixture.begin(claim)
    await fixture.cycle(Changes(resolved=ids(opened)))
    assert (await fixture.store.watch("db")).tickets == ()


NO_TICKET = (0, -1, 4711, 2**31, 2**63, 10**30)


async def every_step_leaves_an_audit_row(fixture: StoreFixture) -> None:
    (ticket,) = await fixture.open("a")
    fixture.clock.move(5)
    await fixture.store.acknowledge(ticket.id, "ann", "on it")
    await fixture.store.hold(ticket.id, True, "ann", "flaps")
    await fixture.store.hold(ticket.id, False, "bob")
    await fixture.store.retry(ticket.id, "bob", "again")
    await fixture.store.resolve(ticket.id, "ann", "fixed")
    rows = await fixture.store.history(ticket.id)
    assert [(row.action, row.actor, row.before, row.after) for row in rows[1:]] == [
        ("acknowledge", "ann", "open", "acknowledged"),
        ("hold", "ann", "acknowledged", "acknowledged"),
        ("unhold", "bob", "acknowledged", "acknowledged"),
        ("retry", "bob", "acknowledged", "acknowledged"),
        ("resolve", "ann", "acknowledged", "resolved"),
    ]
    assert [row.why for row in rows[1:]] == ["on it", "flaps", "", "again", "fixed"]
    assert {row.at for row in rows[1:]} == {fixture.clock.now}
    assert {row.ticket_id for row in rows} == {ticket.id}


async def acknowledging_keeps_a_diagnosis(fixture: StoreFixture) -> None:
    (ticket,) = await fixture.open("a")
    _, diagnosis = await fixture.diagnose()
    after = await fixture.store.acknowledge(ticket.id, "ann")
    assert (after.status, after.diagnosis_id) == (TicketStatus.DIAGNOSED, diagnosis)
    assert (after.acknowledged_by, after.acknowledged_at) == ("ann", fixture.clock.now)


async def resolving_by_hand_ends_a_ticket(fixture: StoreFixture) -> None:
    """Also a held ticket; its count then stays, and resolving it again is a conflict."""
    (ticket,) = await fixture.open("a")
    await fixture.store.hold(ticket.id, True, "ann")
    await fixture.cycle()
    seen = fixture.clock.now
    fixture.clock.move(30)
    resolved = await fixture.store.resolve(ticket.id, "ann", "was a test")
    await fixture.cycle()
    assert await fixture.store.ticket(ticket.id) == resolved
    assert resolved.status is TicketStatus.RESOLVED
    assert (resolved.resolved_at, resolved.resolution) == (
        fixture.clock.now,
        "was a test",
    )
    assert (resolved.occurrence_count, resolved.last_seen_at) == (2, seen)
    await raises(Conflict, fixture.store.resolve(ticket.id, "bob", "again"))
    await raises(Conflict, fixture.store.acknowledge(ticket.id, "bob"))
    await raises(Conflict, fixture.store.hold(ticket.id, True, "bob"))
    await raises(Conflict, fixture.store.retry(ticket.id, "bob"))
    assert await fixture.store.ticket(ticket.id) == resolved


async def a_person_makes_the_monitor_look_again(fixture: StoreFixture) -> None:
    """Whatever a person does raises the revision of that subject alone."""
    (ticket,) = await fixture.open("a")
    await fixture.open("a", subject="other")
    other = await fixture.store.revision("other")
    steps: tuple[Callable[[], Awaitable[Ticket]], ...] = (
        lambda: fixture.store.acknowledge(ticket.id, "ann"),
        lambda: fixture.store.hold(ticket.id, True, "ann"),
        lambda: fixture.store.retry(ticket.id, "ann"),
        lambda: fixture.store.resolve(ticket.id, "ann", "done"),
    )
    for step in steps:
        before = await fixture.store.revision("db")
        await step()
        assert await fixture.store.revision("db") > before
    assert await fixture.store.revision("other") == other


async def retry_puts_a_ticket_back(fixture: StoreFixture) -> None:
    """In a batch of its own, at its first attempt; the old diagnoses stay."""
    first, second = await fixture.open("a", "b")
    _, diagnosis = await fixture.diagnose(Finish("error", error="400"))
    after = await fixture.store.retry(first.id, "ann")
    assert (after.status, after.diagnosis_id) == (TicketStatus.OPEN, None)
    assert (after.attempts, after.last_error) == (0, None)
    claim = await fixture.claim()
    assert (ids(claim.tickets), claim.attempt) == ((first.id,), 1)
    assert claim.batch != second.batch
    assert [call.id for call in await fixture.store.diagnoses(first.id)] == [diagnosis]
    assert (await fixture.store.ticket(second.id)).diagnosis_id == diagnosis


async def retry_does_not_wait(fixture: StoreFixture) -> None:
    """A ticket that waits for its next attempt is due at once; its companions wait on."""
    first, second = await fixture.open("a", "b")
    await fixture.diagnose(Finish("retry", retry_in=600))
    await fixture.store.retry(first.id, "ann")
    assert ids((await fixture.claim()).tickets) == (first.id,)
    assert await fixture.nothing_due()
    fixture.clock.move(600)
    claims = await fixture.store.claim("agent", lease=30, limit=5)
    assert (second.id,) in [ids(claim.tickets) for claim in claims]


async def retry_takes_a_ticket_from_a_dead_holder(fixture: StoreFixture) -> None:
    """Once the lease ran out; should that holder live after all, it finishes the others."""
    first, second = await fixture.open("a", "b")
    claim = await fixture.claim("slow")
    diagnosis = await fixture.begin(claim)
    fixture.clock.move(30)
    await fixture.store.retry(first.id, "ann")
    assert await fixture.store.finish(claim, diagnosis, Finish("answered"))
    after = await fixture.store.ticket(first.id)
    assert (after.status, after.diagnosis_id) == (TicketStatus.OPEN, None)
    assert (await fixture.store.ticket(second.id)).diagnosis_id == diagnosis


async def what_is_not_there_is_not_found(fixture: StoreFixture) -> None:
    for number in NO_TICKET:
        await raises(NotFound, fixture.store.ticket(number))
        await raises(NotFound, fixture.store.history(number))
        await raises(NotFound, fixture.store.diagnosis(number))
        await raises(NotFound, fixture.store.acknowledge(number, "ann"))
        await raises(NotFound, fixture.store.hold(number, True, "ann"))
        await raises(NotFound, fixture.store.resolve(number, "ann", "why"))
        await raises(NotFound, fixture.store.retry(number, "ann"))


async def tickets_are_filtered_and_limited(fixture: StoreFixture) -> None:
    (old,) = await fixture.open("old")
    fixture.clock.move(1)
    (info,) = await fixture.open("info", severity=Severity.INFO)
    fixture.clock.move(1)
    (critical,) = await fixture.open("critical", severity=Severity.CRITICAL)
    (other,) = await fixture.open("other", subject="other")
    await fixture.store.resolve(info.id, "ann", "gone")
    unresolved = (TicketStatus.OPEN, TicketStatus.ACKNOWLEDGED, TicketStatus.DIAGNOSED)

    async def listed(query: TicketFilter) -> tuple[int, ...]:
        return ids(await fixture.store.tickets(query))

    assert await listed(TicketFilter(unresolved)) == (critical.id, old.id, other.id)
    assert await listed(TicketFilter()) == (other.id, critical.id, info.id, old.id)
    assert await listed(TicketFilter((TicketStatus.RESOLVED,))) == (info.id,)
    assert await listed(TicketFilter(subject="other")) == (other.id,)
    assert await listed(TicketFilter(severity=Severity.CRITICAL)) == (critical.id,)
    assert await listed(TicketFilter(batch=old.batch)) == (old.id,)
    assert await listed(TicketFilter(unresolved, limit=1)) == (critical.id,)
    assert await listed(TicketFilter(limit=0)) == ()
    assert await listed(TicketFilter(subject="db' OR '1'='1")) == ()


async def the_past_teaches(fixture: StoreFixture) -> None:
    """What was found and what resolved it: the same key first, then this subject, newest first."""
    answer = {"summary": "a lock", "root_cause": "an idle transaction"}
    for component, subject in (("other", "db"), ("a", "db"), ("a", "elsewhere")):
        (ticket,) = await fixture.open(component, subject=subject)
        await fixture.diagnose(Finish("answered", answer=answer))
        await fixture.cycle(Changes(resolved=(ticket.id,)), subject)
        fixture.clock.move(60)
    (now,) = await fixture.open("a")
    past = await fixture.store.past([now])
    assert [(each.ticket.key.subject, each.ticket.key.component) for each in past] == [
        ("db", "a"),
        ("db", "other"),
        ("elsewhere", "a"),
    ]
    assert [each.same_key for each in past] == [True, False, False]
    assert (past[0].summary, past[0].root_cause) == ("a lock", "an idle transaction")
    assert past[0].ticket.resolution
    assert await fixture.store.past([]) == []
    assert len(await fixture.store.past([now], limit=2)) == 2


async def the_past_finds_its_key_among_many(fixture: StoreFixture) -> None:
    """However many other components of the subject broke since."""
    names = ["a", *(f"c{number}" for number in range(40))]
    for name in names:
        (ticket,) = await fixture.open(name)
        await fixture.store.resolve(ticket.id, "ann", f"restarted {name}")
        fixture.clock.move(1)
    (now,) = await fixture.open("a")
    past = await fixture.store.past([now], limit=3)
    assert [each.ticket.key.component for each in past] == ["a", "c39", "c38"]


async def errors_are_never_knowledge(fixture: StoreFixture) -> None:
    """Nor what resolved by itself without an answer, nor what is not resolved, nor other kinds."""
    for outcome in ("error", "refused", "cut"):
        (ticket,) = await fixture.open("a")
        answer = {"summary": outcome, "root_cause": outcome}
        await fixture.diagnose(Finish(outcome, answer=answer, error="no"))
        await fixture.cycle(Changes(resolved=(ticket.id,)))
    await fixture.open("unresolved")
    await fixture.diagnose(Finish("answered", answer={"summary": "x"}))
    deadlocks = Changes((opening("a", invariant="deadlocks"),))
    (kind,) = await fixture.cycle(deadlocks)
    await fixture.diagnose(Finish("answered", answer={"summary": "x"}))
    await fixture.cycle(Changes(resolved=(kind.id,)))
    (now,) = await fixture.open("a")
    assert await fixture.store.past([now]) == []
    await fixture.store.resolve(now.id, "ann", "raised max_connections")
    (again,) = await fixture.open("a")
    (past,) = await fixture.store.past([again])
    assert (past.ticket.resolution, past.summary) == ("raised max_connections", None)


async def the_figures_are_medians_of_the_period(fixture: StoreFixture) -> None:
    empty = await fixture.store.stats(3600)
    assert (empty.opened, empty.to_detect, empty.cost_usd) == (0, None, 0)
    assert (empty.usage, dict(empty.outcomes)) == (Usage(), {})
    await fixture.open("too old")
    fixture.clock.move(7200)
    for number, seconds in enumerate((2.0, 4.0, 9.0)):
        violation = opening(f"c{number}").violation
        (ticket,) = await fixture.cycle(Changes((Opening(violation, seconds),)))
        claims = await fixture.store.claim("agent", lease=LEASE, limit=2)
        claim = next(each for each in claims if each.batch == ticket.batch)
        call = await fixture.begin(claim, usd=1.0)
        fixture.clock.move(seconds)
        finish = Finish("answered", Usage(10, 1, 2, 3), 0.5)
        assert await fixture.store.finish(claim, call, finish)
        fixture.clock.move(10)
        if number:
            await fixture.store.resolve(ticket.id, "ann", "done")
    found = await fixture.store.stats(3600)
    assert (found.opened, found.unresolved, found.resolved) == (3, 1, 2)
    assert (found.to_confirm, found.to_diagnose, found.to_resolve) == (4.0, 4.0, 16.5)
    # After the last observation 7200, 12 and 14 seconds passed until the next one.
    assert (found.to_see, found.to_detect) == (14.0, 23.0)
    assert (found.usage, found.cost_usd) == (Usage(30, 3, 6, 9), 1.5)
    assert dict(found.outcomes) == {"answered": 3}
    assert found.since == fixture.clock.after(-3600)


CHECKS = (
    an_opening_becomes_a_ticket,
    a_key_has_one_unresolved_ticket,
    only_one_of_two_writers_opens,
    an_unchanged_cycle_counts_all_the_same,
    what_is_missing_does_not_count,
    observation_resolves,
    a_held_ticket_does_not_resolve_by_itself,
    failed_looks_are_counted_in_a_row,
    a_failed_look_can_open_a_ticket,
    earlier_openings_are_known,
    state_is_kept_until_it_changes,
    openings_of_a_key_are_remembered,
    first_aid_is_kept,
    one_cycle_makes_one_batch,
    what_appears_within_the_group_wait_joins,
    a_batch_waits_for_its_group,
    a_claimed_batch_is_closed,
    the_worst_ticket_gives_a_batch_its_place,
    a_batch_leaves_the_queue_with_its_last_ticket,
    many_tickets_open_and_resolve_at_once,
    every_step_leaves_an_audit_row,
    acknowledging_keeps_a_diagnosis,
    resolving_by_hand_ends_a_ticket,
    a_person_makes_the_monitor_look_again,
    retry_puts_a_ticket_back,
    retry_does_not_wait,
    retry_takes_a_ticket_from_a_dead_holder,
    what_is_not_there_is_not_found,
    tickets_are_filtered_and_limited,
    the_past_teaches,
    the_past_finds_its_key_among_many,
    errors_are_never_knowledge,
    the_figures_are_medians_of_the_period,
)
