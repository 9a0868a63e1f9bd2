"""Claims and calls: order, leases, lost claims, and how each outcome of a call leaves the tickets."""

from __future__ import annotations

import asyncio

from midwatch.errors import ClaimLost, Conflict
from midwatch.model import Evidence, Grounded, Severity, TicketStatus, Usage
from midwatch.store.protocol import Changes, Finish
from midwatch.testing.store_conformance.stand import LEASE, Stand, ids, raises


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


async def a_call_is_noted_before_it_is_made(stand: Stand) -> None:
    first, second = await stand.open("a", "b")
    diagnosis = await stand.begin(await stand.claim(), usd=0.75)
    noted = await stand.store.diagnosis(diagnosis)
    assert (noted.outcome, noted.cost_usd) == ("running", 0.75)
    assert (noted.model, noted.prompt_version) == ("claude-test", "7")
    assert (noted.started_at, noted.finished_at) == (stand.clock.now, None)
    for ticket in (first, second):
        assert await stand.store.diagnoses(ticket.id) == [noted]


async def an_answer_is_stored_whole(stand: Stand) -> None:
    """Every field comes back; the tickets are diagnosed, with an audit row, off the queue."""
    first, second = await stand.open("a", "b")
    claim = await stand.claim()
    diagnosis = await stand.begin(claim, usd=1.0)
    stand.clock.move(4)
    evidence = Evidence("E1", "Activity", "pg_stat_activity", stand.clock.now, "pid 1")
    finish = Finish(
        "answered",
        Usage(1000, 200, 30, 4),
        0.125,
        {"summary": "a lock", "timeline": [{"at": "12:00"}]},
        "# A lock",
        "high",
        Grounded(3, 4),
        None,
        "req_1",
        (evidence,),
        ids(claim.tickets),
    )
    assert await stand.store.finish(claim, diagnosis, finish)
    stored = await stand.store.diagnosis(diagnosis)
    for name in ("outcome", "usage", "cost_usd", "answer", "markdown", "confidence"):
        assert getattr(stored, name) == getattr(finish, name)
    for name in ("grounded", "error", "request_id", "evidence", "explains"):
        assert getattr(stored, name) == getattr(finish, name)
    assert stored.finished_at == stand.clock.now
    for ticket in (first, second):
        after = await stand.store.ticket(ticket.id)
        assert after.status is TicketStatus.DIAGNOSED
        assert (after.diagnosis_id, after.attempts) == (diagnosis, 1)
        row = (await stand.store.history(ticket.id))[-1]
        assert (row.actor, row.before, row.after) == ("agent", "open", "diagnosed")
    assert await stand.nothing_due()
    assert await stand.store.spent_today() == 0.125


async def finishing_twice_changes_nothing(stand: Stand) -> None:
    """The first commit succeeded although its client saw an error; it says so again."""
    for number, finish in enumerate(
        (Finish("answered", cost_usd=0.5), Finish("retry", cost_usd=0.5, retry_in=60))
    ):
        (ticket,) = await stand.open(f"c{number}")
        claim, diagnosis = await stand.diagnose(finish)
        spent = await stand.store.spent_today()
        before = await stand.store.ticket(ticket.id)
        stand.clock.move(1)
        assert await stand.store.finish(claim, diagnosis, finish)
        assert await stand.store.spent_today() == spent
        assert await stand.store.ticket(ticket.id) == before
        assert len(await stand.store.diagnoses(ticket.id)) == 1
        assert len(set(await stand.actions(ticket))) == len(await stand.actions(ticket))


async def what_is_not_explained_queues_again(stand: Stand) -> None:
    """In a batch of its own, at once, with its own severity and a first attempt."""
    (explained,) = await stand.open("a", severity=Severity.CRITICAL, group_wait=1)
    others = await stand.open("b", "c", group_wait=1)
    stand.clock.move(1)
    foreign = (await stand.open("x", subject="other", group_wait=60))[0]
    finish = Finish("answered", explains=(explained.id, foreign.id))
    claim, diagnosis = await stand.diagnose(finish)
    again = await stand.claim()
    assert ids(again.tickets) == ids(others)
    assert (again.attempt, again.severity) == (1, Severity.WARNING)
    assert again.batch != claim.batch
    for ticket in others:
        assert (await stand.store.ticket(ticket.id)).diagnosis_id is None
        assert await stand.actions(ticket) == ["open", "requeue"]
        assert [each.id for each in await stand.store.diagnoses(ticket.id)] == [
            diagnosis
        ]
    assert (await stand.store.ticket(foreign.id)).status is TicketStatus.OPEN


async def an_answer_that_explains_nothing_is_for_all(stand: Stand) -> None:
    """Else the same batch would be asked and paid for without an end."""
    tickets = await stand.open("a", "b")
    _, diagnosis = await stand.diagnose(Finish("answered", explains=()))
    for ticket in tickets:
        assert (await stand.store.ticket(ticket.id)).diagnosis_id == diagnosis
    assert await stand.nothing_due()


async def a_ticket_resolved_during_the_call_stays_so(stand: Stand) -> None:
    """It keeps its state and still gets the diagnosis."""
    by_hand, observed, left = await stand.open("a", "b", "c")
    claim = await stand.claim()
    diagnosis = await stand.begin(claim)
    await stand.store.resolve(by_hand.id, "ann", "restarted")
    await stand.cycle(Changes(resolved=(observed.id,)))
    assert await stand.store.finish(claim, diagnosis, Finish("answered"))
    for ticket in (by_hand, observed):
        after = await stand.store.ticket(ticket.id)
        assert (after.status, after.diagnosis_id) == (TicketStatus.RESOLVED, diagnosis)
        assert "diagnose" not in await stand.actions(ticket)
    assert (await stand.store.ticket(left.id)).status is TicketStatus.DIAGNOSED


async def a_batch_resolved_during_the_call_keeps_its_diagnosis(stand: Stand) -> None:
    (ticket,) = await stand.open("a")
    claim = await stand.claim()
    diagnosis = await stand.begin(claim)
    await stand.cycle(Changes(resolved=(ticket.id,)))
    assert await stand.store.renew(claim, lease=30)
    assert await stand.store.finish(claim, diagnosis, Finish("answered"))
    after = await stand.store.ticket(ticket.id)
    assert (after.status, after.diagnosis_id) == (TicketStatus.RESOLVED, diagnosis)


async def a_person_may_act_during_the_call(stand: Stand) -> None:
    """What was held stays held; what was acknowledged says by whom."""
    held, acknowledged = await stand.open("a", "b")
    claim = await stand.claim()
    diagnosis = await stand.begin(claim)
    await stand.store.hold(held.id, True, "ann")
    await stand.store.acknowledge(acknowledged.id, "bob")
    await raises(Conflict, stand.store.retry(held.id, "ann"))
    assert await stand.store.finish(claim, diagnosis, Finish("answered"))
    for ticket in (held, acknowledged):
        assert (await stand.store.ticket(ticket.id)).status is TicketStatus.DIAGNOSED
    assert (await stand.store.ticket(held.id)).held
    after = await stand.store.ticket(acknowledged.id)
    assert (after.acknowledged_by, after.acknowledged_at) == ("bob", stand.clock.now)
    row = (await stand.store.history(acknowledged.id))[-1]
    assert (row.before, row.after) == ("acknowledged", "diagnosed")


async def a_failed_call_waits_its_turn(stand: Stand) -> None:
    """Counted or not; the error shows on the ticket until the next attempt ends."""
    (ticket,) = await stand.open("a")
    await stand.diagnose(Finish("retry", error="529 overloaded", retry_in=15))
    waiting = await stand.store.ticket(ticket.id)
    assert (waiting.status, waiting.diagnosis_id) == (TicketStatus.OPEN, None)
    assert (waiting.attempts, waiting.last_error) == (1, "529 overloaded")
    assert waiting.next_attempt_at == stand.clock.after(15)
    assert await stand.nothing_due()
    stand.clock.move(15)
    await stand.diagnose(Finish("retry", error="429", counted=False))
    waiting = await stand.store.ticket(ticket.id)
    assert (waiting.attempts, waiting.last_error) == (1, "429")
    assert waiting.next_attempt_at is None
    claim, diagnosis = await stand.diagnose()
    assert claim.attempt == 2
    done = await stand.store.ticket(ticket.id)
    assert (done.last_error, done.diagnosis_id) == (None, diagnosis)
    outcomes = [each.outcome for each in await stand.store.diagnoses(ticket.id)]
    assert outcomes == ["retry", "retry", "answered"]


async def a_claim_may_make_several_calls(stand: Stand) -> None:
    """With `keep` the claim goes on after a call: once more with a smaller context."""
    (ticket,) = await stand.open("a")
    claim = await stand.claim()
    too_long = await stand.begin(claim)
    keep = Finish("retry", error="too long", cost_usd=0.25, keep=True)
    assert await stand.store.finish(claim, too_long, keep)
    assert await stand.nothing_due()
    assert await stand.store.finish(
        claim, await stand.begin(claim), Finish("answered", cost_usd=0.5)
    )
    calls = await stand.store.diagnoses(ticket.id)
    assert [call.outcome for call in calls] == ["retry", "answered"]
    assert (await stand.store.ticket(ticket.id)).attempts == 1
    assert await stand.store.spent_today() == 0.75


async def errors_and_refusals_are_diagnoses(stand: Stand) -> None:
    """The ticket leaves the queue and says why."""
    for component in ("refused", "cut", "error"):
        (ticket,) = await stand.open(component)
        finish = Finish(component, error=f"it was {component}")
        _, diagnosis = await stand.diagnose(finish)
        after = await stand.store.ticket(ticket.id)
        assert (after.status, after.diagnosis_id) == (TicketStatus.DIAGNOSED, diagnosis)
        assert after.last_error == f"it was {component}"
        assert await stand.nothing_due()


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
    a_call_is_noted_before_it_is_made,
    an_answer_is_stored_whole,
    finishing_twice_changes_nothing,
    what_is_not_explained_queues_again,
    an_answer_that_explains_nothing_is_for_all,
    a_ticket_resolved_during_the_call_stays_so,
    a_batch_resolved_during_the_call_keeps_its_diagnosis,
    a_person_may_act_during_the_call,
    a_failed_call_waits_its_turn,
    a_claim_may_make_several_calls,
    errors_and_refusals_are_diagnoses,
)
