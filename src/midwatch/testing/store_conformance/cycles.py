"""What the monitor saves: openings, counts, resolution by observation, failed looks."""

from __future__ import annotations

from datetime import timedelta

from ...errors import StaleWatch
from ...model import Facts, Key, Severity, Ticket, TicketStatus, Violation
from ...store.protocol import Changes, Earlier, Opening
from ._stand import Stand, ids, opening, raises


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
    """Oldest first, resolved ones too, within so many seconds."""
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
)
