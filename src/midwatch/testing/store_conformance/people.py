"""What people do to tickets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ...errors import Conflict, NotFound
from ...model import Ticket, TicketStatus
from ...store.protocol import Finish
from ._stand import Stand, ids, raises

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


CHECKS = (
    every_step_leaves_an_audit_row,
    acknowledging_keeps_a_diagnosis,
    resolving_by_hand_ends_a_ticket,
    a_person_makes_the_monitor_look_again,
    retry_puts_a_ticket_back,
    retry_does_not_wait,
    retry_takes_a_ticket_from_a_dead_holder,
    what_is_not_there_is_not_found,
)
