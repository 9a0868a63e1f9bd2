"""Claims: order, leases, and what becomes of a claim that was lost."""

from __future__ import annotations

import asyncio

from ...errors import ClaimLost
from ...model import Severity, TicketStatus
from ...store.protocol import Finish
from ._stand import LEASE, Stand, ids, raises


async def critical_first_then_oldest(stand: Stand) -> None:
    for component, severity in (
        ("info", Severity.INFO),
        ("warning", Severity.WARNING),
        ("critical-1", Severity.CRITICAL),
        ("critical-2", Severity.CRITICAL),
        ("warning-2", Severity.WARNING),
    ):
        await stand.open(component, severity=severity)
        stand.clock.move(1)
    claims = [await stand.claim()]
    claims += await stand.store.claim("agent", lease=LEASE, limit=3)
    claims += await stand.store.claim("agent", lease=LEASE, limit=3)
    assert [claim.tickets[0].key.component for claim in claims] == [
        "critical-1",
        "critical-2",
        "warning",
        "warning-2",
        "info",
    ]
    assert {(claim.attempt, claim.holder) for claim in claims} == {(1, "agent")}


async def the_less_urgent_can_be_left(stand: Stand) -> None:
    """When only the reserve for critical tickets is left of the day's money."""
    await stand.open("warning")
    least = Severity.CRITICAL
    assert await stand.store.claim("agent", lease=LEASE, least=least) == []
    await stand.open("critical", severity=Severity.CRITICAL)
    (claim,) = await stand.store.claim("agent", lease=LEASE, limit=5, least=least)
    assert claim.severity is Severity.CRITICAL
    assert len(await stand.store.claim("agent", lease=LEASE, limit=5)) == 1


async def a_batch_is_claimed_once(stand: Stand) -> None:
    """However many ask at the same moment."""
    tickets = await stand.open_apart(6)
    answers = await asyncio.gather(
        *(stand.store.claim(f"agent-{n}", lease=LEASE, limit=2) for n in range(8))
    )
    claims = [claim for answer in answers for claim in answer]
    assert sorted(claim.batch for claim in claims) == sorted(
        ticket.batch for ticket in tickets
    )
    assert await stand.nothing_due()


async def a_lease_that_ran_out_is_free_again(stand: Stand) -> None:
    """The new claim counts on, and the call of the old one is marked lost."""
    (ticket,) = await stand.open("a")
    old = await stand.claim("old")
    diagnosis = await stand.begin(old, usd=0.5)
    stand.clock.move(LEASE - 0.001)
    assert await stand.nothing_due()
    stand.clock.move(0.001)
    new = await stand.claim("new")
    assert (new.batch, new.attempt, ids(new.tickets)) == (old.batch, 2, (ticket.id,))
    assert new.token != old.token
    lost = await stand.store.diagnosis(diagnosis)
    assert (lost.outcome, lost.cost_usd) == ("lost", 0.5)
    assert lost.error and lost.finished_at == stand.clock.now


async def a_lost_claim_changes_nothing(stand: Stand) -> None:
    """Late writes are refused: the cost is kept, the outcome is "late", no ticket is touched."""
    (ticket,) = await stand.open("a")
    old = await stand.claim("old")
    diagnosis = await stand.begin(old, usd=0.5)
    stand.clock.move(LEASE)
    new = await stand.claim("new")
    assert not await stand.store.renew(old, lease=LEASE)
    assert not await stand.store.release(old, error="mine", retry_in=5)
    await raises(ClaimLost, stand.begin(old))
    late = Finish("answered", cost_usd=0.25, answer={"summary": "late"})
    for _ in range(2):
        assert not await stand.store.finish(old, diagnosis, late)
    kept = await stand.store.diagnosis(diagnosis)
    assert (kept.outcome, kept.cost_usd) == ("late", 0.25)
    assert await stand.store.spent_today() == 0.25
    untouched = await stand.store.ticket(ticket.id)
    assert (untouched.status, untouched.diagnosis_id) == (TicketStatus.OPEN, None)
    assert (untouched.last_error, untouched.attempts) == (None, 2)
    assert await stand.actions(ticket) == ["open"]
    assert await stand.store.finish(new, await stand.begin(new), Finish("answered"))


async def renewing_keeps_a_claim(stand: Stand) -> None:
    await stand.open("a")
    claim = await stand.claim()
    for _ in range(3):
        stand.clock.move(LEASE - 1)
        assert await stand.store.renew(claim, lease=LEASE)
        assert await stand.nothing_due()
    stand.clock.move(LEASE)
    assert (await stand.claim()).batch == claim.batch


async def a_late_heartbeat_saves_what_nobody_took(stand: Stand) -> None:
    """A lease that ran out stays its holder's until somebody else claims."""
    await stand.open("a")
    claim = await stand.claim()
    stand.clock.move(LEASE * 10)
    assert await stand.store.renew(claim, lease=LEASE)
    assert await stand.nothing_due()
    stand.clock.move(LEASE * 10)
    diagnosis = await stand.begin(claim)
    assert await stand.store.finish(claim, diagnosis, Finish("answered"))


async def a_short_lease_does_not_shorten_a_long_one(stand: Stand) -> None:
    """Daemons of different settings on one store: each lease is its holder's."""
    await stand.open("a")
    await stand.claim("patient", lease=600)
    stand.clock.move(5)
    assert await stand.store.claim("hasty", lease=1) == []


async def a_released_batch_is_free_at_once(stand: Stand) -> None:
    """Without an attempt; its call, if any, is marked lost."""
    (ticket,) = await stand.open("a")
    claim = await stand.claim()
    diagnosis = await stand.begin(claim, usd=0.5)
    assert await stand.store.release(claim)
    assert not await stand.store.release(claim)
    assert (await stand.store.diagnosis(diagnosis)).outcome == "lost"
    assert (await stand.store.ticket(ticket.id)).attempts == 0
    again = await stand.claim()
    assert (again.batch, again.attempt) == (claim.batch, 1)
    assert not await stand.store.finish(claim, diagnosis, Finish("answered"))


async def a_release_can_wait_and_count(stand: Stand) -> None:
    (ticket,) = await stand.open("a")
    claim = await stand.claim()
    assert await stand.store.release(
        claim, retry_in=20, error="no evidence", counted=True
    )
    waiting = await stand.store.ticket(ticket.id)
    assert (waiting.attempts, waiting.last_error) == (1, "no evidence")
    assert waiting.next_attempt_at == stand.clock.after(20)
    stand.clock.move(19)
    assert await stand.nothing_due()
    stand.clock.move(1)
    assert (await stand.claim()).attempt == 2


CHECKS = (
    critical_first_then_oldest,
    the_less_urgent_can_be_left,
    a_batch_is_claimed_once,
    a_lease_that_ran_out_is_free_again,
    a_lost_claim_changes_nothing,
    renewing_keeps_a_claim,
    a_late_heartbeat_saves_what_nobody_took,
    a_short_lease_does_not_shorten_a_long_one,
    a_released_batch_is_free_at_once,
    a_release_can_wait_and_count,
)
