"""Tickets: what the monitor saves, batches, what people do, and what is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

from midwatch.errors import Conflict, NotFound, StaleWatch
from midwatch.model import Facts, Key, Severity, Ticket, TicketStatus, Usage, Violation
from midwatch.store.protocol import Changes, Earlier, Finish, Opening, TicketFilter
from midwatch.testing.store_conformance.stand import LEASE, Stand, ids, opening, raises


async def an_opening_becomes_a_ticket(stand: Stand) -> None:
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
    saved = await stand.cycle(changes)
    (ticket,) = saved.opened
    assert (await stand.store.watch("db")).tickets == saved.opened
    assert ticket == await stand.store.ticket(ticket.id)
    assert (ticket.key, ticket.severity, ticket.message) == (
        key,
        Severity.CRITICAL,
        "97 of 100",
    )
    assert ticket.facts == {**facts, "value": 97.0, "limit": 90.0}
    assert ticket.opened_at == ticket.last_seen_at == stand.clock.now
    assert ticket.first_seen_at == stand.clock.now - timedelta(seconds=12)
    assert (ticket.status, ticket.held, ticket.seen) == (
        TicketStatus.OPEN,
        False,
        True,
    )
    assert (ticket.occurrence_count, ticket.attempts) == (1, 0)
    assert ticket.flapping
    (row,) = await stand.store.history(ticket.id)
    assert (row.action, row.before, row.after) == ("open", None, "open")
    assert row.at == stand.clock.now


async def a_key_has_one_unresolved_ticket(stand: Stand) -> None:
    """A second opening of a key fails, and nothing else of its cycle stays."""
    (first,) = await stand.open("a")
    before = await stand.store.watch("db")
    await raises(
        StaleWatch, stand.cycle(Changes((opening("b"), opening("a")), (first.id,)))
    )
    assert await stand.store.watch("db") == before
    await stand.open("a", subject="other")
    await stand.store.resolve(first.id, "ann", "restarted")
    again = (await stand.cycle(Changes((opening("a", previous_id=first.id),)))).opened
    assert again[0].previous_id == first.id


async def only_one_of_two_writers_opens(stand: Stand) -> None:
    """Two cycles computed from one revision: the second is stale."""
    revision = (await stand.store.watch("db")).revision
    changes = Changes((opening("a"),))
    saved = await stand.store.save_cycle("db", revision, changes)
    assert saved.revision > revision
    assert await stand.store.revision("db") == saved.revision
    await raises(
        StaleWatch, stand.store.save_cycle("db", revision, changes, state={"x": 1})
    )
    watch = await stand.store.watch("db")
    assert (ids(watch.tickets), watch.state) == (ids(saved.opened), {})
    (ticket,) = saved.opened
    assert ticket.occurrence_count == watch.tickets[0].occurrence_count


async def an_unchanged_cycle_counts_all_the_same(stand: Stand) -> None:
    """The revision stays; count and last time of what is seen go up."""
    (ticket,) = await stand.open("a")
    revision = await stand.store.revision("db")
    for _ in range(3):
        stand.clock.move(30)
        assert (await stand.cycle()).revision == revision
    seen = await stand.store.ticket(ticket.id)
    assert (seen.occurrence_count, seen.last_seen_at) == (4, stand.clock.now)


async def what_is_missing_does_not_count(stand: Stand) -> None:
    """A missing ticket keeps its last time; a returned one counts on."""
    missed, seen = await stand.open("a", "b")
    stand.clock.move(30)
    await stand.cycle()
    last = stand.clock.now
    stand.clock.move(30)
    await stand.cycle(Changes(missing=(missed.id,)))
    stand.clock.move(30)
    await stand.cycle()
    ticket = await stand.store.ticket(missed.id)
    assert (ticket.seen, ticket.occurrence_count, ticket.last_seen_at) == (
        False,
        2,
        last,
    )
    assert (await stand.store.ticket(seen.id)).occurrence_count == 4
    stand.clock.move(30)
    await stand.cycle(Changes(returned=(missed.id,)))
    await stand.cycle()
    ticket = await stand.store.ticket(missed.id)
    assert (ticket.seen, ticket.occurrence_count) == (True, 4)
    assert ticket.last_seen_at == stand.clock.now


async def observation_resolves(stand: Stand) -> None:
    """Resolved with time, reason and audit row, final count kept, out of the queue."""
    (ticket,) = await stand.open("a")
    stand.clock.move(30)
    await stand.cycle(Changes(resolved=(ticket.id,)))
    await stand.cycle()
    resolved = await stand.store.ticket(ticket.id)
    assert resolved.status is TicketStatus.RESOLVED and resolved.resolution
    assert resolved.resolved_at == stand.clock.now
    assert (resolved.occurrence_count, resolved.last_seen_at) == (1, ticket.opened_at)
    row = (await stand.store.history(ticket.id))[-1]
    assert (row.action, row.before, row.after) == ("resolve", "open", "resolved")
    assert (await stand.store.watch("db")).tickets == ()
    assert await stand.nothing_due()


async def a_held_ticket_does_not_resolve_by_itself(stand: Stand) -> None:
    held, free = await stand.open("a", "b")
    await stand.store.hold(held.id, True, "ann")
    await stand.cycle(Changes(resolved=(held.id, free.id)))
    assert ids((await stand.store.watch("db")).tickets) == (held.id,)
    await stand.store.hold(held.id, False, "ann")
    await stand.cycle(Changes(resolved=(held.id,)))
    assert (await stand.store.watch("db")).tickets == ()


async def failed_looks_are_counted_in_a_row(stand: Stand) -> None:
    """A failure leaves tickets and state alone; a good look sets the count to nought."""
    revision = (await stand.store.watch("db")).revision
    await stand.store.save_cycle(
        "db", revision, Changes((opening("a"),)), state={"seen": [1]}
    )
    before = await stand.store.watch("db")
    stand.clock.move(30)
    for _ in range(2):
        assert (await stand.fail("timed out")).revision == before.revision
    after = await stand.store.watch("db")
    assert after.failures == 2
    assert (after.tickets, after.state) == (before.tickets, before.state)
    await stand.cycle()
    assert (await stand.store.watch("db")).failures == 0


async def a_failed_look_can_open_a_ticket(stand: Stand) -> None:
    """That of a subject that cannot be observed: it counts failed looks, and they resolve nothing."""
    (known,) = await stand.open("a")
    stand.clock.move(30)
    changes = Changes((opening("db", invariant="subject_unobservable"),))
    (ticket,) = (await stand.fail("timed out", changes)).opened
    for _ in range(2):
        stand.clock.move(30)
        await stand.fail("timed out", Changes(again=(ticket.id,)))
    seen = await stand.store.ticket(ticket.id)
    assert (seen.occurrence_count, seen.last_seen_at) == (3, stand.clock.now)
    stand.clock.move(30)
    await stand.cycle(Changes(resolved=(ticket.id,)))
    ended = await stand.store.ticket(ticket.id)
    assert (ended.occurrence_count, ended.last_seen_at) == (3, seen.last_seen_at)
    assert (await stand.store.ticket(known.id)).occurrence_count == 2


async def earlier_openings_are_known(stand: Stand) -> None:
    """The latest ticket of each key and how often it opened; another subject's do not count."""
    keys = [Key("db", "connections", name) for name in ("a", "b", "never")]
    last = {}
    for components in (("a",), ("a", "b"), ("a",)):
        for ticket in await stand.open(*components):
            last[ticket.key] = ticket.id
            await stand.store.resolve(ticket.id, "ann", "gone")
        stand.clock.move(600)
    await stand.open("never", subject="other")
    await stand.cycle(Changes((opening("never", invariant="deadlocks"),)))
    found = await stand.store.earlier("db", keys, 1201)
    assert found == {
        keys[0]: Earlier(last[keys[0]], 2),
        keys[1]: Earlier(last[keys[1]], 1),
    }
    assert await stand.store.earlier("db", [], 3600) == {}


async def state_is_kept_until_it_changes(stand: Stand) -> None:
    """None leaves the state as it is; the documents come back as they were."""
    state = {"counters": {"deadlocks": 3, "ratio": 0.25}, "list": [1, None, "ü", True]}
    revision = (await stand.store.watch("db")).revision
    await stand.store.save_cycle("db", revision, Changes(), state=state)
    await stand.store.save_cycle("db", revision, Changes())
    assert (await stand.store.watch("db")).state == state
    assert (await stand.store.watch("other")).state == {}


async def openings_of_a_key_are_remembered(stand: Stand) -> None:
    """Tickets of the last seconds come oldest first, resolved ones included."""
    key = Key("db", "connections", "a")
    opened: list[Ticket] = []
    for _ in range(3):
        opened += await stand.open("a")
        await stand.cycle(Changes(resolved=(opened[-1].id,)))
        stand.clock.move(600)
    await stand.open("b")
    assert ids(await stand.store.openings(key, 3600)) == ids(opened)
    assert ids(await stand.store.openings(key, 1201)) == ids(opened[1:])


async def first_aid_is_kept(stand: Stand) -> None:
    first, second, other = await stand.open("a", "b", "c")
    first_aid = {"summary": "look at pid 4711", "claims": [{"quote": "pid=4711"}]}
    await stand.store.save_first_aid((first.id, second.id), first_aid)
    for ticket in (first, second):
        assert (await stand.store.ticket(ticket.id)).first_aid == first_aid
    assert (await stand.store.ticket(other.id)).first_aid is None


async def one_cycle_makes_one_batch(stand: Stand) -> None:
    tickets = await stand.open("a", "b", "c")
    assert len({ticket.batch for ticket in tickets}) == 1
    claim = await stand.claim()
    assert sorted(ids(claim.tickets)) == sorted(ids(tickets))
    assert claim.batch == tickets[0].batch


async def what_appears_within_the_group_wait_joins(stand: Stand) -> None:
    """The same subject, young and unclaimed; everything else starts a batch of its own."""
    (first,) = await stand.open("a", group_wait=10)
    stand.clock.move(9)
    (joined,) = await stand.open("b", group_wait=10)
    (elsewhere,) = await stand.open("a", subject="other", group_wait=10)
    stand.clock.move(2)
    (later,) = await stand.open("c", group_wait=10)
    assert joined.batch == first.batch
    assert len({first.batch, elsewhere.batch, later.batch}) == 3


async def a_batch_waits_for_its_group(stand: Stand) -> None:
    """It cannot be claimed before the group wait is over; joining does not prolong that."""
    (first,) = await stand.open("a", group_wait=10)
    stand.clock.move(9)
    (second,) = await stand.open("b", group_wait=10)
    assert await stand.nothing_due()
    stand.clock.move(1)
    assert ids((await stand.claim()).tickets) == (first.id, second.id)


async def a_claimed_batch_is_closed(stand: Stand) -> None:
    """What opens after the claim was taken is another incident."""
    (first,) = await stand.open("a")
    claim = await stand.claim()
    (second,) = await stand.open("b", group_wait=60)
    assert second.batch != first.batch
    assert ids(claim.tickets) == (first.id,)
    assert await stand.store.release(claim)
    (third,) = await stand.open("c", group_wait=60)
    assert third.batch == second.batch


async def the_worst_ticket_gives_a_batch_its_place(stand: Stand) -> None:
    """A critical ticket that joins a batch of warnings brings all of it forward."""
    await stand.open("old", subject="other")
    stand.clock.move(1)
    await stand.open("a", group_wait=10)
    await stand.open("b", severity=Severity.CRITICAL, group_wait=10)
    stand.clock.move(10)
    claim = await stand.claim()
    assert [ticket.key.component for ticket in claim.tickets] == ["b", "a"]
    assert claim.severity is Severity.CRITICAL


async def a_batch_leaves_the_queue_with_its_last_ticket(stand: Stand) -> None:
    first, second = await stand.open("a", "b")
    await stand.cycle(Changes(resolved=(first.id,)))
    claim = await stand.claim()
    assert ids(claim.tickets) == (second.id,)
    await stand.store.release(claim)
    await stand.store.resolve(second.id, "ann", "gone")
    assert await stand.nothing_due()


async def many_tickets_open_and_resolve_at_once(stand: Stand) -> None:
    """More of them than a statement takes parameters on any database."""
    openings = tuple(opening(f"c{number}") for number in range(1200))
    opened = (await stand.cycle(Changes(openings))).opened
    assert [ticket.key.component for ticket in opened] == [
        each.violation.key.component for each in openings
    ]
    await stand.cycle(Changes(missing=ids(opened)))
    await stand.cycle(Changes(returned=ids(opened)))
    await stand.store.save_first_aid(ids(opened), {"summary": "one cause"})
    claim = await stand.claim()
    assert len(claim.tickets) == len(opened)
    await stand.begin(claim)
    await stand.cycle(Changes(resolved=ids(opened)))
    assert (await stand.store.watch("db")).tickets == ()


NO_TICKET = (0, -1, 4711, 2**31, 2**63, 10**30)


async def every_step_leaves_an_audit_row(stand: Stand) -> None:
    (ticket,) = await stand.open("a")
    stand.clock.move(5)
    await stand.store.acknowledge(ticket.id, "ann", "on it")
    await stand.store.hold(ticket.id, True, "ann", "flaps")
    await stand.store.hold(ticket.id, False, "bob")
    await stand.store.retry(ticket.id, "bob", "again")
    await stand.store.resolve(ticket.id, "ann", "fixed")
    rows = await stand.store.history(ticket.id)
    assert [(row.action, row.actor, row.before, row.after) for row in rows[1:]] == [
        ("acknowledge", "ann", "open", "acknowledged"),
        ("hold", "ann", "acknowledged", "acknowledged"),
        ("unhold", "bob", "acknowledged", "acknowledged"),
        ("retry", "bob", "acknowledged", "acknowledged"),
        ("resolve", "ann", "acknowledged", "resolved"),
    ]
    assert [row.why for row in rows[1:]] == ["on it", "flaps", "", "again", "fixed"]
    assert {row.at for row in rows[1:]} == {stand.clock.now}
    assert {row.ticket_id for row in rows} == {ticket.id}


async def acknowledging_keeps_a_diagnosis(stand: Stand) -> None:
    (ticket,) = await stand.open("a")
    _, diagnosis = await stand.diagnose()
    after = await stand.store.acknowledge(ticket.id, "ann")
    assert (after.status, after.diagnosis_id) == (TicketStatus.DIAGNOSED, diagnosis)
    assert (after.acknowledged_by, after.acknowledged_at) == ("ann", stand.clock.now)


async def resolving_by_hand_ends_a_ticket(stand: Stand) -> None:
    """A held one too; afterwards its count stands still, and doing it again is a conflict."""
    (ticket,) = await stand.open("a")
    await stand.store.hold(ticket.id, True, "ann")
    await stand.cycle()
    seen = stand.clock.now
    stand.clock.move(30)
    resolved = await stand.store.resolve(ticket.id, "ann", "was a test")
    await stand.cycle()
    assert await stand.store.ticket(ticket.id) == resolved
    assert resolved.status is TicketStatus.RESOLVED
    assert (resolved.resolved_at, resolved.resolution) == (
        stand.clock.now,
        "was a test",
    )
    assert (resolved.occurrence_count, resolved.last_seen_at) == (2, seen)
    await raises(Conflict, stand.store.resolve(ticket.id, "bob", "again"))
    await raises(Conflict, stand.store.acknowledge(ticket.id, "bob"))
    await raises(Conflict, stand.store.hold(ticket.id, True, "bob"))
    await raises(Conflict, stand.store.retry(ticket.id, "bob"))
    assert await stand.store.ticket(ticket.id) == resolved


async def a_person_makes_the_monitor_look_again(stand: Stand) -> None:
    """Whatever a person does raises the revision of that subject alone."""
    (ticket,) = await stand.open("a")
    await stand.open("a", subject="other")
    other = await stand.store.revision("other")
    steps: tuple[Callable[[], Awaitable[Ticket]], ...] = (
        lambda: stand.store.acknowledge(ticket.id, "ann"),
        lambda: stand.store.hold(ticket.id, True, "ann"),
        lambda: stand.store.retry(ticket.id, "ann"),
        lambda: stand.store.resolve(ticket.id, "ann", "done"),
    )
    for step in steps:
        before = await stand.store.revision("db")
        await step()
        assert await stand.store.revision("db") > before
    assert await stand.store.revision("other") == other


async def retry_puts_a_ticket_back(stand: Stand) -> None:
    """In a batch of its own, at its first attempt; the old diagnoses stay."""
    first, second = await stand.open("a", "b")
    _, diagnosis = await stand.diagnose(Finish("error", error="400"))
    after = await stand.store.retry(first.id, "ann")
    assert (after.status, after.diagnosis_id) == (TicketStatus.OPEN, None)
    assert (after.attempts, after.last_error) == (0, None)
    claim = await stand.claim()
    assert (ids(claim.tickets), claim.attempt) == ((first.id,), 1)
    assert claim.batch != second.batch
    assert [call.id for call in await stand.store.diagnoses(first.id)] == [diagnosis]
    assert (await stand.store.ticket(second.id)).diagnosis_id == diagnosis


async def retry_does_not_wait(stand: Stand) -> None:
    """A ticket that waits for its next attempt is due at once; its companions wait on."""
    first, second = await stand.open("a", "b")
    await stand.diagnose(Finish("retry", retry_in=600))
    await stand.store.retry(first.id, "ann")
    assert ids((await stand.claim()).tickets) == (first.id,)
    assert await stand.nothing_due()
    stand.clock.move(600)
    claims = await stand.store.claim("agent", lease=30, limit=5)
    assert (second.id,) in [ids(claim.tickets) for claim in claims]


async def retry_takes_a_ticket_from_a_dead_holder(stand: Stand) -> None:
    """Once the lease ran out; should that holder live after all, it finishes the others."""
    first, second = await stand.open("a", "b")
    claim = await stand.claim("slow")
    diagnosis = await stand.begin(claim)
    stand.clock.move(30)
    await stand.store.retry(first.id, "ann")
    assert await stand.store.finish(claim, diagnosis, Finish("answered"))
    after = await stand.store.ticket(first.id)
    assert (after.status, after.diagnosis_id) == (TicketStatus.OPEN, None)
    assert (await stand.store.ticket(second.id)).diagnosis_id == diagnosis


async def what_is_not_there_is_not_found(stand: Stand) -> None:
    for number in NO_TICKET:
        await raises(NotFound, stand.store.ticket(number))
        await raises(NotFound, stand.store.history(number))
        await raises(NotFound, stand.store.diagnosis(number))
        await raises(NotFound, stand.store.acknowledge(number, "ann"))
        await raises(NotFound, stand.store.hold(number, True, "ann"))
        await raises(NotFound, stand.store.resolve(number, "ann", "why"))
        await raises(NotFound, stand.store.retry(number, "ann"))


async def tickets_are_filtered_and_limited(stand: Stand) -> None:
    (old,) = await stand.open("old")
    stand.clock.move(1)
    (info,) = await stand.open("info", severity=Severity.INFO)
    stand.clock.move(1)
    (critical,) = await stand.open("critical", severity=Severity.CRITICAL)
    (other,) = await stand.open("other", subject="other")
    await stand.store.resolve(info.id, "ann", "gone")
    unresolved = (TicketStatus.OPEN, TicketStatus.ACKNOWLEDGED, TicketStatus.DIAGNOSED)

    async def listed(query: TicketFilter) -> tuple[int, ...]:
        return ids(await stand.store.tickets(query))

    assert await listed(TicketFilter(unresolved)) == (critical.id, old.id, other.id)
    assert await listed(TicketFilter()) == (other.id, critical.id, info.id, old.id)
    assert await listed(TicketFilter((TicketStatus.RESOLVED,))) == (info.id,)
    assert await listed(TicketFilter(subject="other")) == (other.id,)
    assert await listed(TicketFilter(severity=Severity.CRITICAL)) == (critical.id,)
    assert await listed(TicketFilter(batch=old.batch)) == (old.id,)
    assert await listed(TicketFilter(unresolved, limit=1)) == (critical.id,)
    assert await listed(TicketFilter(limit=0)) == ()
    assert await listed(TicketFilter(subject="db' OR '1'='1")) == ()


async def the_past_teaches(stand: Stand) -> None:
    """What was found and what resolved it: the same key first, then this subject, newest first."""
    answer = {"summary": "a lock", "root_cause": "an idle transaction"}
    for component, subject in (("other", "db"), ("a", "db"), ("a", "elsewhere")):
        (ticket,) = await stand.open(component, subject=subject)
        await stand.diagnose(Finish("answered", answer=answer))
        await stand.cycle(Changes(resolved=(ticket.id,)), subject)
        stand.clock.move(60)
    (now,) = await stand.open("a")
    past = await stand.store.past([now])
    assert [(each.ticket.key.subject, each.ticket.key.component) for each in past] == [
        ("db", "a"),
        ("db", "other"),
        ("elsewhere", "a"),
    ]
    assert [each.same_key for each in past] == [True, False, False]
    assert (past[0].summary, past[0].root_cause) == ("a lock", "an idle transaction")
    assert past[0].ticket.resolution
    assert await stand.store.past([]) == []
    assert len(await stand.store.past([now], limit=2)) == 2


async def the_past_finds_its_key_among_many(stand: Stand) -> None:
    """However many other components of the subject broke since."""
    names = ["a", *(f"c{number}" for number in range(40))]
    for name in names:
        (ticket,) = await stand.open(name)
        await stand.store.resolve(ticket.id, "ann", f"restarted {name}")
        stand.clock.move(1)
    (now,) = await stand.open("a")
    past = await stand.store.past([now], limit=3)
    assert [each.ticket.key.component for each in past] == ["a", "c39", "c38"]


async def errors_are_never_knowledge(stand: Stand) -> None:
    """Nor what resolved by itself without an answer, nor what is not resolved, nor other kinds."""
    for outcome in ("error", "refused", "cut"):
        (ticket,) = await stand.open("a")
        answer = {"summary": outcome, "root_cause": outcome}
        await stand.diagnose(Finish(outcome, answer=answer, error="no"))
        await stand.cycle(Changes(resolved=(ticket.id,)))
    await stand.open("unresolved")
    await stand.diagnose(Finish("answered", answer={"summary": "x"}))
    deadlocks = Changes((opening("a", invariant="deadlocks"),))
    (kind,) = (await stand.cycle(deadlocks)).opened
    await stand.diagnose(Finish("answered", answer={"summary": "x"}))
    await stand.cycle(Changes(resolved=(kind.id,)))
    (now,) = await stand.open("a")
    assert await stand.store.past([now]) == []
    await stand.store.resolve(now.id, "ann", "raised max_connections")
    (again,) = await stand.open("a")
    (past,) = await stand.store.past([again])
    assert (past.ticket.resolution, past.summary) == ("raised max_connections", None)


async def the_figures_are_medians_of_the_period(stand: Stand) -> None:
    empty = await stand.store.stats(3600)
    assert (empty.opened, empty.to_detect, empty.cost_usd) == (0, None, 0)
    assert (empty.usage, dict(empty.outcomes)) == (Usage(), {})
    await stand.open("too old")
    stand.clock.move(7200)
    for number, seconds in enumerate((2.0, 4.0, 9.0)):
        violation = opening(f"c{number}").violation
        saved = await stand.cycle(Changes((Opening(violation, seconds),)))
        claims = await stand.store.claim("agent", lease=LEASE, limit=2)
        claim = next(each for each in claims if each.batch == saved.opened[0].batch)
        call = await stand.begin(claim, usd=1.0)
        stand.clock.move(seconds)
        finish = Finish("answered", Usage(10, 1, 2, 3), 0.5)
        assert await stand.store.finish(claim, call, finish)
        stand.clock.move(10)
        if number:
            await stand.store.resolve(saved.opened[0].id, "ann", "done")
    found = await stand.store.stats(3600)
    assert (found.opened, found.unresolved, found.resolved) == (3, 1, 2)
    assert (found.to_detect, found.to_diagnose, found.to_resolve) == (4.0, 4.0, 16.5)
    assert (found.usage, found.cost_usd) == (Usage(30, 3, 6, 9), 1.5)
    assert dict(found.outcomes) == {"answered": 3}
    assert found.since == stand.clock.after(-3600)


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
