"""Claims and calls: order, leases, lost claims, and how each outcome of a call leaves the tickets."""

from __future__ import annotations

import asyncio

from midwatch.errors import ClaimLost, Conflict
from midwatch.model import Evidence, Grounded, Severity, TicketStatus, Usage
from midwatch.store.protocol import Budget, Changes, Finish, Held
from midwatch.testing.store_conformance.fixture import LEASE, StoreFixture, ids, raises


async def critical_first_then_oldest(fixture: StoreFixture) -> None:
    for component, severity in (
        ("info", Severity.INFO),
        ("warning", Severity.WARNING),
        ("critical-1", Severity.CRITICAL),
        ("critical-2", Severity.CRITICAL),
        ("warning-2", Severity.WARNING),
    ):
        await fixture.open(component, severity=severity)
        fixture.clock.move(1)
    claims = [await fixture.claim()]
    claims += await fixture.store.claim("agent", lease=LEASE, limit=3)
    claims += await fixture.store.claim("agent", lease=LEASE, limit=3)
    assert [claim.tickets[0].key.component for claim in claims] == [
        "critical-1",
        "critical-2",
        "warning",
        "warning-2",
        "info",
    ]
    assert {(claim.attempt, claim.holder) for claim in claims} == {(1, "agent")}


async def the_less_urgent_can_be_left(fixture: StoreFixture) -> None:
    """When only the reserve for critical tickets is left of the day's money."""
    await fixture.open("warning")
    least = Severity.CRITICAL
    assert await fixture.store.claim("agent", lease=LEASE, least=least) == []
    await fixture.open("critical", severity=Severity.CRITICAL)
    (claim,) = await fixture.store.claim("agent", lease=LEASE, limit=5, least=least)
    assert claim.severity is Severity.CRITICAL
    assert len(await fixture.store.claim("agent", lease=LEASE, limit=5)) == 1


async def a_batch_is_claimed_once(fixture: StoreFixture) -> None:
    """Also when many callers claim at the same time."""
    tickets = await fixture.open_apart(6)
    answers = await asyncio.gather(
        *(fixture.store.claim(f"agent-{n}", lease=LEASE, limit=2) for n in range(8))
    )
    claims = [claim for answer in answers for claim in answer]
    assert sorted(claim.batch for claim in claims) == sorted(
        ticket.batch for ticket in tickets
    )
    assert await fixture.nothing_due()


async def a_lease_that_ran_out_is_free_again(fixture: StoreFixture) -> None:
    """The new claim increments the attempts, and the call of the old one is marked lost."""
    (ticket,) = await fixture.open("a")
    old = await fixture.claim("old")
    diagnosis = await fixture.begin(old, usd=0.5)
    fixture.clock.move(LEASE - 0.001)
    assert await fixture.nothing_due()
    fixture.clock.move(0.001)
    new = await fixture.claim("new")
    assert (new.batch, new.attempt, ids(new.tickets)) == (old.batch, 2, (ticket.id,))
    assert new.token != old.token
    lost = await fixture.store.diagnosis(diagnosis)
    assert (lost.outcome, lost.cost_usd) == ("lost", 0.5)
    assert lost.error and lost.finished_at == fixture.clock.now


async def a_lost_claim_changes_nothing(fixture: StoreFixture) -> None:
    """Late writes are refused: the cost is kept, the outcome is "late", no ticket is touched."""
    (ticket,) = await fixture.open("a")
    old = await fixture.claim("old")
    diagnosis = await fixture.begin(old, usd=0.5)
    fixture.clock.move(LEASE)
    new = await fixture.claim("new")
    assert not await fixture.store.renew(old, lease=LEASE)
    assert not await fixture.store.release(old, error="mine", retry_in=5)
    await raises(ClaimLost, fixture.begin(old))
    late = Finish("answered", cost_usd=0.25, answer={"summary": "late"})
    for _ in range(2):
        assert not await fixture.store.finish(old, diagnosis, late)
    kept = await fixture.store.diagnosis(diagnosis)
    assert (kept.outcome, kept.cost_usd) == ("late", 0.25)
    assert await fixture.store.spent_today() == 0.25
    untouched = await fixture.store.ticket(ticket.id)
    assert (untouched.status, untouched.diagnosis_id) == (TicketStatus.OPEN, None)
    assert (untouched.last_error, untouched.attempts) == (None, 2)
    assert await fixture.actions(ticket) == ["open"]
    assert await fixture.store.finish(new, await fixture.begin(new), Finish("answered"))


async def the_claim_of_a_process_that_ended_is_free(fixture: StoreFixture) -> None:
    """Before its lease is over; of any other process, and of one without a name, it is not."""
    await fixture.open("a")
    await fixture.open("b")
    store = fixture.store
    [dead] = await store.claim("dead", lease=LEASE, process="host 7 100")
    diagnosis = await fixture.begin(dead, usd=0.5)
    nameless = await fixture.claim("nameless")
    assert await store.claim("heir", lease=LEASE, ended=["host 7 99"]) == []
    held = {one.token: one for one in await store.claims_held()}
    assert held[dead.token] == Held(dead.token, "host 7 100", LEASE)
    assert held[nameless.token].process is None
    [claim] = await store.claim("heir", lease=LEASE, limit=5, ended=["host 7 100"])
    assert (claim.batch, claim.attempt, claim.begun) == (dead.batch, 2, True)
    lost = await store.diagnosis(diagnosis)
    assert (lost.outcome, lost.cost_usd) == ("lost", 0.5)
    await raises(ClaimLost, fixture.begin(dead))


async def an_end_and_the_next_claim_are_one(fixture: StoreFixture) -> None:
    """Whether the end is stored or refused; while a pause lasts, nothing is claimed."""
    await fixture.open_apart(4)
    store = fixture.store
    [first] = await store.claim("agent", lease=LEASE, process="host 7 100")
    assert not first.begun
    call, good = await fixture.begin(first), Finish("answered")
    stored, [second] = await store.finish_and_claim(first, call, good, lease=LEASE)
    assert stored and (second.holder, second.process) == ("agent", "host 7 100")
    assert (await store.ticket(first.tickets[0].id)).diagnosis_id == call
    late = await fixture.begin(second)
    fixture.clock.move(LEASE)
    taken = await fixture.claim("other")
    assert taken.batch == second.batch
    stored, [third] = await store.finish_and_claim(second, late, good, lease=LEASE)
    assert not stored and third.batch not in (first.batch, second.batch)
    await store.pause("outage", 60, "529", "agent")
    call = await fixture.begin(third)
    assert await store.finish_and_claim(third, call, good, lease=LEASE) == (True, [])
    assert await fixture.nothing_due()
    await store.unpause("outage")
    assert not await fixture.nothing_due()


async def renewing_keeps_a_claim(fixture: StoreFixture) -> None:
    await fixture.open("a")
    claim = await fixture.claim()
    for _ in range(3):
        fixture.clock.move(LEASE - 1)
        assert await fixture.store.renew(claim, lease=LEASE)
        assert await fixture.nothing_due()
    fixture.clock.move(LEASE)
    assert (await fixture.claim()).batch == claim.batch


async def a_late_heartbeat_saves_what_nobody_took(fixture: StoreFixture) -> None:
    """A lease that has expired belongs to its holder until another one claims."""
    await fixture.open("a")
    claim = await fixture.claim()
    fixture.clock.move(LEASE * 10)
    assert await fixture.store.renew(claim, lease=LEASE)
    assert await fixture.nothing_due()
    fixture.clock.move(LEASE * 10)
    diagnosis = await fixture.begin(claim)
    assert await fixture.store.finish(claim, diagnosis, Finish("answered"))


async def a_short_lease_does_not_shorten_a_long_one(fixture: StoreFixture) -> None:
    """Daemons of different settings on one store: each lease is its holder's."""
    await fixture.open("a")
    await fixture.claim("patient", lease=600)
    fixture.clock.move(5)
    assert await fixture.store.claim("hasty", lease=1) == []


async def a_released_batch_is_free_at_once(fixture: StoreFixture) -> None:
    """Without an attempt; its call, if any, is marked lost."""
    (ticket,) = await fixture.open("a")
    claim = await fixture.claim()
    diagnosis = await fixture.begin(claim, usd=0.5)
    assert await fixture.store.release(claim)
    assert not await fixture.store.release(claim)
    assert (await fixture.store.diagnosis(diagnosis)).outcome == "lost"
    assert (await fixture.store.ticket(ticket.id)).attempts == 0
    again = await fixture.claim()
    assert (again.batch, again.attempt) == (claim.batch, 1)
    assert not await fixture.store.finish(claim, diagnosis, Finish("answered"))


async def a_release_can_wait_and_count(fixture: StoreFixture) -> None:
    (ticket,) = await fixture.open("a")
    claim = await fixture.claim()
    assert await fixture.store.release(
        claim, retry_in=20, error="no evidence", counted=True
    )
    waiting = await fixture.store.ticket(ticket.id)
    assert (waiting.attempts, waiting.last_error) == (1, "no evidence")
    assert waiting.next_attempt_at == fixture.clock.after(20)
    fixture.clock.move(19)
    assert await fixture.nothing_due()
    fixture.clock.move(1)
    assert (await fixture.claim()).attempt == 2


async def a_call_is_noted_before_it_is_made(fixture: StoreFixture) -> None:
    first, second = await fixture.open("a", "b")
    diagnosis = await fixture.begin(await fixture.claim(), usd=0.75)
    noted = await fixture.store.diagnosis(diagnosis)
    assert (noted.outcome, noted.cost_usd) == ("running", 0.75)
    assert (noted.model, noted.prompt_version) == ("claude-test", "7")
    assert (noted.started_at, noted.finished_at) == (fixture.clock.now, None)
    for ticket in (first, second):
        assert await fixture.store.diagnoses(ticket.id) == [noted]


async def an_answer_is_stored_whole(fixture: StoreFixture) -> None:
    """Every field comes back; the tickets are diagnosed, with an audit row, off the queue."""
    first, second = await fixture.open("a", "b")
    claim = await fixture.claim()
    diagnosis = await fixture.begin(claim, usd=1.0)
    fixture.clock.move(4)
    evidence = Evidence(
        "E1", "Activity", "pg_stat_activity", fixture.clock.now, "pid 1"
    )
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
    assert await fixture.store.finish(claim, diagnosis, finish)
    stored = await fixture.store.diagnosis(diagnosis)
    for name in ("outcome", "usage", "cost_usd", "answer", "markdown", "confidence"):
        assert getattr(stored, name) == getattr(finish, name)
    for name in ("grounded", "error", "request_id", "evidence", "explains"):
        assert getattr(stored, name) == getattr(finish, name)
    assert stored.finished_at == fixture.clock.now
    for ticket in (first, second):
        after = await fixture.store.ticket(ticket.id)
        assert after.status is TicketStatus.DIAGNOSED
        assert (after.diagnosis_id, after.attempts) == (diagnosis, 1)
        row = (await fixture.store.history(ticket.id))[-1]
        assert (row.actor, row.before, row.after) == ("agent", "open", "diagnosed")
    assert await fixture.nothing_due()
    assert await fixture.store.spent_today() == 0.125


async def finishing_twice_changes_nothing(fixture: StoreFixture) -> None:
    """A repeated write after a commit that the client saw fail returns the same result."""
    for number, finish in enumerate(
        (Finish("answered", cost_usd=0.5), Finish("retry", cost_usd=0.5, retry_in=60))
    ):
        (ticket,) = await fixture.open(f"c{number}")
        claim, diagnosis = await fixture.diagnose(finish)
        spent = await fixture.store.spent_today()
        before = await fixture.store.ticket(ticket.id)
        fixture.clock.move(1)
        assert await fixture.store.finish(claim, diagnosis, finish)
        assert await fixture.store.spent_today() == spent
        assert await fixture.store.ticket(ticket.id) == before
        assert len(await fixture.store.diagnoses(ticket.id)) == 1
        assert len(set(await fixture.actions(ticket))) == len(
            await fixture.actions(ticket)
        )


async def what_is_not_explained_queues_again(fixture: StoreFixture) -> None:
    """In a batch of its own, at once, with its own severity and a first attempt."""
    (explained,) = await fixture.open("a", severity=Severity.CRITICAL, group_wait=1)
    others = await fixture.open("b", "c", group_wait=1)
    fixture.clock.move(1)
    foreign = (await fixture.open("x", subject="other", group_wait=60))[0]
    finish = Finish("answered", explains=(explained.id, foreign.id))
    claim, diagnosis = await fixture.diagnose(finish)
    again = await fixture.claim()
    assert ids(again.tickets) == ids(others)
    assert (again.attempt, again.severity) == (1, Severity.WARNING)
    assert again.batch != claim.batch
    for ticket in others:
        left_out = await fixture.store.ticket(ticket.id)
        assert (left_out.diagnosis_id, left_out.left_out_by) == (None, diagnosis)
        assert await fixture.actions(ticket) == ["open", "requeue"]
        assert [each.id for each in await fixture.store.diagnoses(ticket.id)] == [
            diagnosis
        ]
    assert (await fixture.store.ticket(foreign.id)).status is TicketStatus.OPEN


async def the_only_ticket_is_settled_in_any_case(fixture: StoreFixture) -> None:
    """Whether the answer names nothing or something else: the next one would say the same."""
    for component, explains in (("a", ()), ("b", (4711,))):
        (ticket,) = await fixture.open(component)
        _, diagnosis = await fixture.diagnose(Finish("answered", explains=explains))
        after = await fixture.store.ticket(ticket.id)
        assert (after.status, after.diagnosis_id) == (TicketStatus.DIAGNOSED, diagnosis)
        assert after.left_out_by is None
        assert await fixture.nothing_due()


async def an_answer_that_names_none_is_tried_once_more(fixture: StoreFixture) -> None:
    """The second one gives the tickets up; they show both. Asked again by a person, each ends with one call."""
    tickets = await fixture.open("a", "b")
    _, first = await fixture.diagnose(Finish("answered", explains=()))
    for ticket in tickets:
        waiting = await fixture.store.ticket(ticket.id)
        assert (waiting.status, waiting.left_out_by) == (TicketStatus.OPEN, first)
    claim, second = await fixture.diagnose(Finish("answered", explains=(4711,)))
    assert ids(claim.tickets) == ids(tickets)
    assert await fixture.nothing_due()
    for ticket in tickets:
        after = await fixture.store.ticket(ticket.id)
        assert after.status is TicketStatus.GIVEN_UP
        assert (after.diagnosis_id, after.left_out_by) == (None, second)
        row = (await fixture.store.history(ticket.id))[-1]
        assert row.action == "give up" and row.why == after.last_error
        assert f"{first} and by {second}" in row.why
    await fixture.store.retry(tickets[0].id, "ann")
    _, third = await fixture.diagnose(Finish("answered", explains=()))
    assert (await fixture.store.ticket(tickets[0].id)).diagnosis_id == third


async def what_is_left_out_again_gets_an_answer_of_its_own(
    fixture: StoreFixture,
) -> None:
    """New tickets do not join it: its end does not depend on what else breaks."""
    a, b, c, d = await fixture.open("a", "b", "c", "d", group_wait=5)
    fixture.clock.move(5)
    await fixture.diagnose(Finish("answered", explains=(a.id,)))
    (late,) = await fixture.open("late", group_wait=5)
    claim, second = await fixture.diagnose(Finish("answered", explains=(b.id,)))
    assert ids(claim.tickets) == (b.id, c.id, d.id)
    for ticket in (c, d):
        claim, diagnosis = await fixture.diagnose(Finish("answered", explains=()))
        assert ids(claim.tickets) == (ticket.id,) and claim.attempt == 1
        after = await fixture.store.ticket(ticket.id)
        assert (after.diagnosis_id, after.left_out_by) == (diagnosis, second)
    fixture.clock.move(5)
    assert ids((await fixture.claim()).tickets) == (late.id,)


async def every_order_of_answers_ends(fixture: StoreFixture) -> None:
    """With at most one call a ticket and one more, whatever the answers name."""
    for name_one in (
        (True,),
        (False,),
        (True, False),
        (False, True),
        (True, True, False),
    ):
        tickets = await fixture.open(*(f"{name_one}-{n}" for n in range(6)))
        calls = 0
        while claims := await fixture.store.claim("agent", lease=LEASE):
            calls += 1
            assert calls <= len(tickets) + 1
            named = ids(claims[0].tickets)[: name_one[calls % len(name_one)]]
            finish = Finish("answered", explains=(*named, 4711))
            diagnosis = await fixture.begin(claims[0])
            assert await fixture.store.finish(claims[0], diagnosis, finish)
        for ticket in tickets:
            after = await fixture.store.ticket(ticket.id)
            assert after.diagnosis_id or after.status is TicketStatus.GIVEN_UP


async def a_ticket_resolved_during_the_call_stays_so(fixture: StoreFixture) -> None:
    """It keeps its state and still gets the diagnosis."""
    by_hand, observed, left = await fixture.open("a", "b", "c")
    claim = await fixture.claim()
    diagnosis = await fixture.begin(claim)
    await fixture.store.resolve(by_hand.id, "ann", "restarted")
    await fixture.cycle(Changes(resolved=(observed.id,)))
    assert await fixture.store.finish(claim, diagnosis, Finish("answered"))
    for ticket in (by_hand, observed):
        after = await fixture.store.ticket(ticket.id)
        assert (after.status, after.diagnosis_id) == (TicketStatus.RESOLVED, diagnosis)
        last = (await fixture.store.history(ticket.id))[-1]
        assert (last.action, last.before, last.after) == ("diagnose", *["resolved"] * 2)
    assert (await fixture.store.ticket(left.id)).status is TicketStatus.DIAGNOSED


async def a_batch_resolved_during_the_call_keeps_its_diagnosis(
    fixture: StoreFixture,
) -> None:
    (ticket,) = await fixture.open("a")
    claim = await fixture.claim()
    diagnosis = await fixture.begin(claim)
    await fixture.cycle(Changes(resolved=(ticket.id,)))
    assert await fixture.store.renew(claim, lease=30)
    assert await fixture.store.finish(claim, diagnosis, Finish("answered"))
    after = await fixture.store.ticket(ticket.id)
    assert (after.status, after.diagnosis_id) == (TicketStatus.RESOLVED, diagnosis)


async def a_person_may_act_during_the_call(fixture: StoreFixture) -> None:
    """A held ticket stays held; an acknowledged one keeps the name of the person."""
    held, acknowledged = await fixture.open("a", "b")
    claim = await fixture.claim()
    diagnosis = await fixture.begin(claim)
    await fixture.store.hold(held.id, True, "ann")
    await fixture.store.acknowledge(acknowledged.id, "bob")
    await raises(Conflict, fixture.store.retry(held.id, "ann"))
    assert await fixture.store.finish(claim, diagnosis, Finish("answered"))
    for ticket in (held, acknowledged):
        assert (await fixture.store.ticket(ticket.id)).status is TicketStatus.DIAGNOSED
    assert (await fixture.store.ticket(held.id)).held
    after = await fixture.store.ticket(acknowledged.id)
    assert (after.acknowledged_by, after.acknowledged_at) == ("bob", fixture.clock.now)
    row = (await fixture.store.history(acknowledged.id))[-1]
    assert (row.before, row.after) == ("acknowledged", "diagnosed")


async def a_failed_call_waits_its_turn(fixture: StoreFixture) -> None:
    """Counted or not; the error shows on the ticket until the next attempt ends."""
    (ticket,) = await fixture.open("a")
    await fixture.diagnose(Finish("retry", error="529 overloaded", retry_in=15))
    waiting = await fixture.store.ticket(ticket.id)
    assert (waiting.status, waiting.diagnosis_id) == (TicketStatus.OPEN, None)
    assert (waiting.attempts, waiting.last_error) == (1, "529 overloaded")
    assert waiting.next_attempt_at == fixture.clock.after(15)
    assert await fixture.nothing_due()
    fixture.clock.move(15)
    await fixture.diagnose(Finish("retry", error="429", counted=False))
    waiting = await fixture.store.ticket(ticket.id)
    assert (waiting.attempts, waiting.last_error) == (1, "429")
    assert waiting.next_attempt_at is None
    claim, diagnosis = await fixture.diagnose()
    assert claim.attempt == 2
    done = await fixture.store.ticket(ticket.id)
    assert (done.last_error, done.diagnosis_id) == (None, diagnosis)
    outcomes = [each.outcome for each in await fixture.store.diagnoses(ticket.id)]
    assert outcomes == ["retry", "retry", "answered"]


async def a_claim_may_make_several_calls(fixture: StoreFixture) -> None:
    """With `keep` the claim goes on after a call: once more with a smaller context."""
    (ticket,) = await fixture.open("a")
    claim = await fixture.claim()
    too_long = await fixture.begin(claim)
    keep = Finish("retry", error="too long", cost_usd=0.25, keep=True)
    assert await fixture.store.finish(claim, too_long, keep)
    assert await fixture.nothing_due()
    assert await fixture.store.finish(
        claim, await fixture.begin(claim), Finish("answered", cost_usd=0.5)
    )
    calls = await fixture.store.diagnoses(ticket.id)
    assert [call.outcome for call in calls] == ["retry", "answered"]
    assert (await fixture.store.ticket(ticket.id)).attempts == 1
    assert await fixture.store.spent_today() == 0.75


async def a_call_keeps_what_it_was_begun_with(fixture: StoreFixture) -> None:
    """The evidence that an investigation asked for outlives the daemon that asked."""
    (ticket,) = await fixture.open("a")
    claim = await fixture.claim()
    at = fixture.clock.after(0)
    asked = Evidence("E1", "table", "db: table", at, "fillfactor=33", command="table x")
    assert await fixture.store.begin(
        claim,
        model="claude-test",
        prompt_version="7",
        reserve_usd=0.0,
        budget=Budget(None),
        evidence=(asked,),
    )
    assert await fixture.store.release(claim)
    [call] = await fixture.store.diagnoses(ticket.id)
    assert (call.outcome, call.evidence) == ("lost", (asked,))


async def errors_and_refusals_are_diagnoses(fixture: StoreFixture) -> None:
    """The ticket leaves the queue and has the error."""
    for component in ("refused", "cut", "error"):
        (ticket,) = await fixture.open(component)
        finish = Finish(component, error=f"it was {component}")
        _, diagnosis = await fixture.diagnose(finish)
        after = await fixture.store.ticket(ticket.id)
        assert (after.status, after.diagnosis_id) == (TicketStatus.DIAGNOSED, diagnosis)
        assert after.last_error == f"it was {component}"
        assert await fixture.nothing_due()


CHECKS = (
    critical_first_then_oldest,
    the_less_urgent_can_be_left,
    a_batch_is_claimed_once,
    a_lease_that_ran_out_is_free_again,
    a_lost_claim_changes_nothing,
    the_claim_of_a_process_that_ended_is_free,
    an_end_and_the_next_claim_are_one,
    renewing_keeps_a_claim,
    a_late_heartbeat_saves_what_nobody_took,
    a_short_lease_does_not_shorten_a_long_one,
    a_released_batch_is_free_at_once,
    a_release_can_wait_and_count,
    a_call_is_noted_before_it_is_made,
    an_answer_is_stored_whole,
    finishing_twice_changes_nothing,
    what_is_not_explained_queues_again,
    the_only_ticket_is_settled_in_any_case,
    an_answer_that_names_none_is_tried_once_more,
    what_is_left_out_again_gets_an_answer_of_its_own,
    every_order_of_answers_ends,
    a_ticket_resolved_during_the_call_stays_so,
    a_batch_resolved_during_the_call_keeps_its_diagnosis,
    a_person_may_act_during_the_call,
    a_failed_call_waits_its_turn,
    a_claim_may_make_several_calls,
    a_call_keeps_what_it_was_begun_with,
    errors_and_refusals_are_diagnoses,
)
