"""Checks of what programs do: tickets that no monitor opens, and diagnoses that no agent makes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from midwatch.errors import Conflict, NotFound
from midwatch.model import Ticket, TicketStatus
from midwatch.store.protocol import Finish
from midwatch.testing.store_conformance.fixture import (
    StoreFixture,
    ids,
    opening,
    raises,
)


async def a_ticket_opens_outside_of_an_observation(fixture: StoreFixture) -> None:
    """One per key, with a batch and an actor of its own; the subject's observations are not counted."""
    (watched,) = await fixture.open("a")
    before = (await fixture.store.watch("db")).revision
    opened = await fixture.store.open_ticket(opening("b"), "ann")
    fixture.clock.move(5)
    again = await fixture.store.open_ticket(opening("b"), "bob")
    assert (again.id, again.occurrence_count) == (opened.id, 2)
    assert again.last_seen_at == fixture.clock.now and not again.seen
    assert opened.batch != watched.batch
    assert (await fixture.store.ticket(watched.id)).occurrence_count == 1
    assert (await fixture.store.watch("db")).revision > before
    (row,) = await fixture.store.history(opened.id)
    assert (row.actor, row.action, row.after) == ("ann", "open", "open")
    assert await fixture.store.open_ticket(opening("a"), "ann") == watched
    other = await fixture.store.open_ticket(opening("c", subject="new"), "ann")
    assert ids((await fixture.store.watch("new")).tickets) == (other.id,)
    await fixture.store.resolve(opened.id, "ann", "done")
    assert (await fixture.store.open_ticket(opening("b"), "ann")).id > other.id


async def a_diagnosis_can_be_made_elsewhere(fixture: StoreFixture) -> None:
    """A ticket that waits becomes diagnosed and leaves the queue; the others of its batch stay in it."""
    one, two = await fixture.open("a", "b")
    finish = Finish("answered", answer={"summary": "s"}, markdown="m", confidence="low")
    await fixture.store.acknowledge(one.id, "ann")
    after = await _diagnosed(fixture, one, finish)
    assert (after.status, after.acknowledged_by) == (TicketStatus.DIAGNOSED, "ann")
    (stored,) = await fixture.store.diagnoses(one.id)
    assert (stored.id, stored.answer, stored.markdown, stored.model) == (
        after.diagnosis_id,
        {"summary": "s"},
        "m",
        "own",
    )
    assert stored.explains == (one.id,) and stored.finished_at == fixture.clock.now
    assert await fixture.store.spent_today() == 0
    row = (await fixture.store.history(one.id))[-1]
    assert (row.actor, row.action, row.before, row.after) == (
        "ann",
        "diagnose",
        "acknowledged",
        "diagnosed",
    )
    assert ids((await fixture.claim()).tickets) == (two.id,)
    await raises(NotFound, _diagnosed(fixture, replace(one, id=99), finish))


async def the_last_diagnosis_of_a_batch_ends_its_wait(fixture: StoreFixture) -> None:
    (ticket,) = await fixture.open("a")
    await _diagnosed(fixture, ticket)
    assert await fixture.nothing_due()
    newer = await _diagnosed(fixture, ticket)
    found = await fixture.store.diagnoses(ticket.id)
    assert len(found) == 2 and found[-1].id == newer.diagnosis_id


async def a_diagnosis_leaves_a_resolved_ticket_resolved(fixture: StoreFixture) -> None:
    (ticket,) = await fixture.open("a")
    resolved = await fixture.store.resolve(ticket.id, "ann", "restarted")
    after = await _diagnosed(fixture, ticket)
    assert after == replace(resolved, diagnosis_id=after.diagnosis_id)
    assert after.diagnosis_id is not None and after.resolution == "restarted"
    assert await fixture.nothing_due()


async def a_diagnosis_waits_for_that_of_an_agent(fixture: StoreFixture) -> None:
    """Unless the ticket is resolved: then both are kept."""
    one, two = await fixture.open("a", "b")
    claim = await fixture.claim()
    call = await fixture.begin(claim)
    await raises(Conflict, _diagnosed(fixture, one))
    await fixture.store.resolve(two.id, "ann", "restarted")
    own = await _diagnosed(fixture, two)
    assert await fixture.store.finish(claim, call, Finish("answered"))
    for ticket, expected in (one, [call]), (two, [call, own.diagnosis_id]):
        found = await fixture.store.diagnoses(ticket.id)
        assert [one.id for one in found] == expected
    assert (await fixture.store.ticket(two.id)).status is TicketStatus.RESOLVED


async def _diagnosed(
    fixture: StoreFixture, ticket: Ticket, finish: Finish = Finish("answered")
) -> Ticket:
    return await fixture.store.update_diagnosis(
        ticket.id, finish, actor="ann", model="own", prompt_version="none"
    )


CHECKS: tuple[Callable[[StoreFixture], Awaitable[None]], ...] = (
    a_ticket_opens_outside_of_an_observation,
    a_diagnosis_can_be_made_elsewhere,
    the_last_diagnosis_of_a_batch_ends_its_wait,
    a_diagnosis_leaves_a_resolved_ticket_resolved,
    a_diagnosis_waits_for_that_of_an_agent,
)
