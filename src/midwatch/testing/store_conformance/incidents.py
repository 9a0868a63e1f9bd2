"""Batches: what appears together is one incident."""

from __future__ import annotations

from ...model import Severity
from ...store.protocol import Changes
from ._stand import Stand, ids, opening


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


CHECKS = (
    one_cycle_makes_one_batch,
    what_appears_within_the_group_wait_joins,
    a_batch_waits_for_its_group,
    a_claimed_batch_is_closed,
    the_worst_ticket_gives_a_batch_its_place,
    a_batch_leaves_the_queue_with_its_last_ticket,
    many_tickets_open_and_resolve_at_once,
)
