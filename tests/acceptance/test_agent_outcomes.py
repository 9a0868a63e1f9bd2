"""Every row of the outcome table, with the real SDK against the scripted Messages API."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from midwatch.agent.claude import Claude
from midwatch.agent.evidence import ContextGatherer
from midwatch.agent.runner import AgentRunner, Blocked
from midwatch.errors import StoreBusy
from midwatch.lifecycle import StopEvent
from midwatch.model import Severity, Ticket, TicketStatus
from midwatch.redaction import Redactor
from midwatch.settings import AgentSettings
from midwatch.store.protocol import Claim, Finish, TicketFilter
from midwatch.store.sql import SqlStore
from midwatch.testing.fakes import FakeSubject, ManualClock, answer, open_tickets
from midwatch.testing.messages_api import (
    Answer,
    Cut,
    Drip,
    Hang,
    Hold,
    Pings,
    Raw,
    Reply,
    Reset,
    Rule,
    ScriptedMessagesAPI,
    Truncated,
    Usage,
    bad_request,
    cut_by_max_tokens,
    empty_body,
    forbidden,
    html_page,
    overloaded,
    prompt_too_long,
    rate_limited,
    refusal,
    request_too_large,
    server_error,
    spend_limit_reached,
    unauthorized,
    unknown_model,
)

from ..waiting import PATIENCE
from .cli import comes_true

LOG = "\n".join(
    f"2026-03-01 11:59:{n:02} worker[{n}] pid 4711 line {n}" for n in range(50)
)
QUOTE = "worker[7] pid 4711 line 7"
GOOD = Answer(
    structured=answer(quote=QUOTE, evidence_id="E2"),
    usage=Usage(input_tokens=1000, output_tokens=500),
)
FENCED = Answer(f"```json\n{json.dumps(GOOD.structured)}\n```", usage=GOOD.usage)


class Bench:
    """An agent on a store and a scripted API, with time that the test moves."""

    def __init__(self, store: SqlStore, clock: ManualClock) -> None:
        self.store = store
        self.clock = clock
        self.stop = StopEvent(clock)
        self.opened: list[Claude] = []
        self.api: ScriptedMessagesAPI

    def script(self, *replies: Reply) -> None:
        self.api = ScriptedMessagesAPI(Rule(list(replies)))

    def agent(
        self,
        *,
        timeout: float = 20.0,
        subject: FakeSubject | None = None,
        base_url: str | None = None,
        **settings: object,
    ) -> AgentRunner:
        model = Claude(
            "claude-sonnet-5-5",
            timeout,
            "sk-ant-test",
            base_url or self.api.base_url,
            now=self.clock.now,
        )
        self.opened.append(model)
        watched = subject or FakeSubject("fake", evidence={"Log": LOG})
        gatherer = ContextGatherer(
            {"fake": watched}, Redactor(), self.clock, self.store.past
        )
        return AgentRunner(
            self.store,
            gatherer,
            lambda: model,
            AgentSettings.model_validate(settings),
            clock=self.clock,
            random=lambda: 1.0,
            name=f"agent {len(self.opened)}",
        )

    async def drain(self, **settings: object) -> Blocked | None:
        return await self.agent(**settings).drain(self.stop)  # type: ignore[arg-type]


@pytest.fixture
async def bench(store: SqlStore, clock: ManualClock) -> AsyncIterator[Bench]:
    made = Bench(store, clock)
    made.script(GOOD)
    made.api.start()
    yield made
    for model in made.opened:
        await model.close()
    made.api.stop()


Script = Callable[..., None]


@pytest.fixture
def script(bench: Bench) -> Script:
    def use(*replies: Reply) -> None:
        bench.api.stop()
        bench.script(*replies)
        bench.api.start()

    return use


async def one_ticket(bench: Bench, **changes: object) -> Ticket:
    return (await open_tickets(bench.store, "db", **changes))[0]  # type: ignore[arg-type]


async def test_a_valid_answer_diagnoses_the_ticket(bench: Bench) -> None:
    ticket = await one_ticket(bench)
    assert await bench.drain() is None
    after = await bench.store.ticket(ticket.id)
    assert after.status is TicketStatus.DIAGNOSED and after.diagnosis_id
    stored = await bench.store.diagnosis(after.diagnosis_id)
    assert stored.outcome == "answered" and stored.confidence == "high"
    assert stored.grounded and (stored.grounded.verified, stored.grounded.total) == (
        1,
        1,
    )
    assert stored.usage.input_tokens == 1000 and stored.usage.output_tokens == 500
    assert stored.cost_usd == pytest.approx(1000 * 2e-6 + 500 * 10e-6)
    assert stored.evidence[1].text == LOG and stored.answer and stored.markdown
    assert await bench.store.spent_today() == pytest.approx(stored.cost_usd)
    assert [row.action for row in await bench.store.history(ticket.id)] == [
        "open",
        "diagnose",
    ]


async def test_an_invented_quote_lowers_the_confidence(
    bench: Bench, script: Script
) -> None:
    script(Answer(structured=answer(quote="pid 9999 did it", evidence_id="E2")))
    ticket = await one_ticket(bench)
    await bench.drain()
    [stored] = await bench.store.diagnoses(ticket.id)
    assert stored.grounded and stored.grounded.verified == 0
    assert stored.confidence == "low"


@pytest.mark.parametrize(
    "reply",
    [
        server_error(500),
        server_error(408),
        server_error(409),
        overloaded(),
        Reset(),
        html_page(),
        empty_body(),
        Truncated(GOOD),
        Cut(GOOD),
        Raw(200, b'{"type": "something else"}'),
    ],
    ids=str,
)
async def test_what_may_pass_is_tried_again_later(
    bench: Bench, script: Script, reply: Reply
) -> None:
    script(reply, GOOD)
    ticket = await one_ticket(bench)
    await bench.drain(backoff=15)
    waiting = await bench.store.ticket(ticket.id)
    assert waiting.status is TicketStatus.OPEN and waiting.attempts == 1
    assert waiting.last_error and waiting.next_attempt_at
    assert (waiting.next_attempt_at - bench.clock.now()).total_seconds() == 15
    await bench.drain()
    assert len(bench.api.calls) == 1, "it waits"
    await bench.clock.advance(15)
    await bench.drain()
    assert (await bench.store.ticket(ticket.id)).status is TicketStatus.DIAGNOSED
    outcomes = [stored.outcome for stored in await bench.store.diagnoses(ticket.id)]
    assert outcomes == ["retry", "answered"]


@pytest.mark.parametrize(
    "reply", [Hang(), Pings(interval=0.05), Drip(GOOD, size=1, interval=0.05)], ids=str
)
async def test_a_call_has_a_wall_clock(
    bench: Bench, script: Script, reply: Reply
) -> None:
    script(reply)
    ticket = await one_ticket(bench)
    await bench.agent(timeout=0.4).drain(bench.stop)
    assert "0.4 s" in ((await bench.store.ticket(ticket.id)).last_error or "")


async def test_attempts_are_capped_and_the_ticket_is_given_up(
    bench: Bench, script: Script
) -> None:
    script(server_error())
    ticket = await one_ticket(bench)
    agent = bench.agent(outage_after=100, max_attempts=5)
    for _ in range(8):
        await agent.drain(bench.stop)
        await bench.clock.advance(1000)
    after = await bench.store.ticket(ticket.id)
    assert len(bench.api.calls) == 5 and after.status is TicketStatus.GIVEN_UP
    stored = await bench.store.diagnosis(after.diagnosis_id or 0)
    assert stored.outcome == "error" and "500" in (stored.error or "")


async def test_an_outage_pauses_everybody_instead_of_burning_attempts(
    bench: Bench, script: Script
) -> None:
    script(overloaded())
    tickets = [(await open_tickets(bench.store, f"c{n}"))[0] for n in range(6)]
    agent = bench.agent(outage_after=3, outage_pause=60, backoff=1)
    blocked = await agent.drain(bench.stop)
    assert blocked and blocked.reason.startswith("outage") and blocked.seconds == 60
    assert len(bench.api.calls) == 3
    for _ in range(10):
        await bench.clock.advance(61)
        await agent.drain(bench.stop)
    assert len(bench.api.calls) == 13, "one probe for each pause"
    attempts = [(await bench.store.ticket(ticket.id)).attempts for ticket in tickets]
    assert sum(attempts) == 2, "the two before the outage was recognised"


@pytest.mark.parametrize(
    ("reply", "seconds"),
    [(rate_limited(retry_after=7), 7), (rate_limited(), 60)],
    ids=str,
)
async def test_a_rate_limit_pauses_every_worker_of_the_store(
    bench: Bench, script: Script, reply: Reply, seconds: float
) -> None:
    script(reply, GOOD)
    ticket = await one_ticket(bench)
    assert (await bench.drain()) == Blocked(
        (await bench.agent()._paused()).reason, seconds  # type: ignore[union-attr]
    )
    after = await bench.store.ticket(ticket.id)
    assert after.attempts == 0 and after.status is TicketStatus.OPEN
    assert await bench.agent().drain(bench.stop), "another daemon waits as well"
    assert len(bench.api.calls) == 1
    await bench.clock.advance(seconds)
    assert await bench.drain() is None
    assert (await bench.store.ticket(ticket.id)).status is TicketStatus.DIAGNOSED


async def test_a_pause_ends_at_once_on_shutdown(bench: Bench, script: Script) -> None:
    script(rate_limited(retry_after=3600))
    await one_ticket(bench)
    running = asyncio.create_task(bench.agent().run(bench.stop))
    await bench.api.wait_for_requests(1, timeout=PATIENCE)
    while not await bench.store.pauses():
        await asyncio.sleep(0.01)
    bench.stop.set("test")
    await asyncio.wait_for(running, PATIENCE)
    assert len(bench.api.calls) == 1


async def test_a_spent_account_limit_waits_longer_than_a_minute(
    bench: Bench, script: Script
) -> None:
    script(spend_limit_reached(), GOOD)
    await one_ticket(bench)
    blocked = await bench.drain()
    assert (
        blocked and blocked.reason.startswith("spend_limit") and blocked.seconds == 3600
    )


@pytest.mark.parametrize(
    "reply", [unauthorized(), forbidden(), unknown_model()], ids=str
)
async def test_a_wrong_key_or_model_spends_no_attempts(
    bench: Bench, script: Script, reply: Reply
) -> None:
    script(reply, reply, GOOD)
    ticket = await one_ticket(bench)
    agent = bench.agent(auth_probe_interval=60)
    blocked = await agent.drain(bench.stop)
    assert blocked and blocked.reason.startswith("auth") and blocked.seconds == 60
    await bench.clock.advance(60)
    assert await agent.drain(bench.stop)
    assert (await bench.store.ticket(ticket.id)).attempts == 0
    await bench.clock.advance(60)
    assert await agent.drain(bench.stop) is None
    assert (await bench.store.ticket(ticket.id)).status is TicketStatus.DIAGNOSED


@pytest.mark.parametrize(
    "reply", [bad_request(), request_too_large(), prompt_too_long()], ids=str
)
async def test_a_refused_request_is_tried_once_with_less(
    bench: Bench, script: Script, reply: Reply
) -> None:
    script(reply)
    ticket = await one_ticket(bench)
    await bench.drain(context_tokens=1600)
    first, second = bench.api.calls
    assert len(second.prompt) < len(first.prompt)
    after = await bench.store.ticket(ticket.id)
    stored = await bench.store.diagnoses(ticket.id)
    assert [one.outcome for one in stored] == ["retry", "error"]
    assert after.status is TicketStatus.DIAGNOSED and after.diagnosis_id == stored[1].id


async def test_a_gateway_without_schemas_is_asked_in_words(
    bench: Bench, script: Script
) -> None:
    script(bad_request("output_config: Extra inputs are not permitted"), FENCED)
    ticket = await one_ticket(bench)
    await bench.drain()
    first, second = bench.api.calls
    assert first.output_schema and not second.output_schema
    assert '"explained_tickets"' in second.prompt
    [_, stored] = await bench.store.diagnoses(ticket.id)
    assert (stored.outcome, stored.confidence) == ("answered", "high")


@pytest.mark.parametrize("text", ["", "I cannot help with that."])
async def test_a_refusal_is_stored_as_refused(
    bench: Bench, script: Script, text: str
) -> None:
    script(refusal(text, usage=Usage(input_tokens=900, output_tokens=3)))
    ticket = await one_ticket(bench)
    await bench.drain()
    [stored] = await bench.store.diagnoses(ticket.id)
    assert stored.outcome == "refused" and stored.usage.input_tokens == 900
    assert stored.cost_usd > 0 and len(bench.api.calls) == 1


async def test_a_cut_answer_gets_a_higher_limit_then_what_parses_is_stored(
    bench: Bench, script: Script
) -> None:
    script(cut_by_max_tokens(GOOD, keep=0.4))
    ticket = await one_ticket(bench)
    await bench.drain()
    limits = [call.body["max_tokens"] for call in bench.api.calls]
    assert limits == [8000, 16000]
    *_, stored = await bench.store.diagnoses(ticket.id)
    assert stored.outcome == "cut" and stored.answer
    assert stored.answer["summary"].startswith("Summary")


async def test_an_answer_that_does_not_fit_is_asked_again_with_the_error_shown(
    bench: Bench, script: Script
) -> None:
    script(Answer(text='{"summary": 3}'))
    ticket = await one_ticket(bench)
    await bench.drain()
    first, second = bench.api.calls
    for problem in ("summary: 3 is not text", "verdict: is missing"):
        assert problem not in first.prompt
        assert problem in second.prompt
    outcomes = [stored.outcome for stored in await bench.store.diagnoses(ticket.id)]
    assert outcomes == ["retry", "error"]


async def test_any_other_exception_becomes_the_diagnosis(bench: Bench) -> None:
    class Faulty(FakeSubject):
        def sources(self, tickets: object) -> list[object]:  # type: ignore[override]
            raise RuntimeError("a fault in somebody's subject")

    ticket = await one_ticket(bench)
    await bench.agent(subject=Faulty("fake")).drain(bench.stop)
    after = await bench.store.ticket(ticket.id)
    [stored] = await bench.store.diagnoses(ticket.id)
    assert after.status is TicketStatus.DIAGNOSED and not bench.api.calls
    assert stored.outcome == "error" and "RuntimeError" in (stored.error or "")
    again = await bench.store.retry(ticket.id, "me")
    assert again.status is TicketStatus.OPEN, "and a person can put it back"


async def test_a_spent_budget_leaves_the_reserve_to_critical_tickets(
    bench: Bench,
) -> None:
    plain = [await one_ticket(bench)]
    plain += await open_tickets(bench.store, "db2")
    agent = bench.agent(daily_budget_usd=0.175, critical_reserve=0.5)
    assert await agent.drain(bench.stop) is None
    statuses = [(await bench.store.ticket(ticket.id)).status for ticket in plain]
    assert statuses == [TicketStatus.DIAGNOSED, TicketStatus.OPEN]
    assert (await bench.store.ticket(plain[1].id)).attempts == 0
    for component in ("core", "core2"):
        await open_tickets(bench.store, component, severity=Severity.CRITICAL)
    await agent.drain(bench.stop)
    assert len(bench.api.calls) == 3, "critical ones still go through"
    await open_tickets(bench.store, "core3", severity=Severity.CRITICAL)
    await bench.clock.advance(12 * 3600)
    assert await agent.drain(bench.stop) is None
    assert len(bench.api.calls) > 3, "a new day, a new budget"


async def test_without_a_key_nothing_is_claimed(bench: Bench) -> None:
    ticket = await one_ticket(bench)
    agent = bench.agent()
    agent.model = lambda: None
    blocked = await agent.drain(bench.stop)
    assert blocked and "no API key" in blocked.reason
    assert (await bench.store.ticket(ticket.id)).attempts == 0


# ------------------------------------------------------------------ what happens meanwhile


async def during_a_call(
    bench: Bench, script: Script
) -> tuple[Ticket, Hold, asyncio.Task[Blocked | None]]:
    hold = Hold(GOOD)
    script(hold)
    ticket = await one_ticket(bench)
    draining = asyncio.create_task(bench.drain())
    await hold.arrived()
    return ticket, hold, draining


async def test_a_ticket_resolved_during_the_call_keeps_its_state_and_gets_the_diagnosis(
    bench: Bench, script: Script
) -> None:
    ticket, hold, draining = await during_a_call(bench, script)
    await bench.store.resolve(ticket.id, "me", "it was the network")
    hold.release()
    await draining
    after = await bench.store.ticket(ticket.id)
    assert after.status is TicketStatus.RESOLVED and after.diagnosis_id
    [past] = await bench.store.past([after])
    assert past.root_cause == "process 4711 holds the lock"


@pytest.mark.parametrize("what", ["hold", "acknowledge"])
async def test_a_ticket_held_or_acknowledged_during_the_call_is_diagnosed(
    bench: Bench, script: Script, what: str
) -> None:
    ticket, hold, draining = await during_a_call(bench, script)
    if what == "hold":
        await bench.store.hold(ticket.id, True, "me")
    else:
        await bench.store.acknowledge(ticket.id, "me")
    hold.release()
    await draining
    after = await bench.store.ticket(ticket.id)
    assert after.status is TicketStatus.DIAGNOSED
    assert after.held == (what == "hold")
    assert after.acknowledged_by == ("me" if what == "acknowledge" else None)


async def test_the_lease_is_renewed_during_a_long_call(
    bench: Bench, script: Script
) -> None:
    ticket, hold, draining = await during_a_call(bench, script)
    for _ in range(20):
        await bench.clock.advance(10)
        await asyncio.sleep(0.01)  # the renewal runs on the store's thread
        assert not await bench.store.claim("thief", lease=30)
    hold.release()
    await draining
    assert (await bench.store.ticket(ticket.id)).status is TicketStatus.DIAGNOSED


async def test_a_stop_grants_grace_then_gives_the_ticket_back(
    bench: Bench, script: Script
) -> None:
    ticket, _, draining = await during_a_call(bench, script)
    bench.stop.set("SIGTERM")
    await asyncio.sleep(0)
    await bench.clock.advance(2.9)
    assert not draining.done()
    await bench.clock.advance(0.2)
    blocked = await asyncio.wait_for(draining, PATIENCE)
    assert blocked and blocked.reason == "stopped"
    after = await bench.store.ticket(ticket.id)
    assert after.status is TicketStatus.OPEN and after.attempts == 0
    assert [one.outcome for one in await bench.store.diagnoses(ticket.id)] == ["lost"]
    assert await bench.store.claim("next", lease=30), "and it is free at once"


def connecting(port: int) -> int:
    """Return how many connections to the port wait for it to take them (SYN_SENT in proc(5))."""
    rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
    to = f":{port:04X}"
    return sum(row.split()[2].endswith(to) and row.split()[3] == "02" for row in rows)


async def test_a_call_that_was_never_sent_costs_nothing(bench: Bench) -> None:
    """The server has no room for another connection, so the request stays here."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        port = server.getsockname()[1]
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        await comes_true(lambda: connecting(port) > 0, PATIENCE)
        before = connecting(port)
        ticket = await one_ticket(bench)
        agent = bench.agent(base_url=f"http://127.0.0.1:{port}")
        draining = asyncio.create_task(agent.drain(bench.stop))
        await comes_true(lambda: connecting(port) > before, PATIENCE)
        assert await bench.store.spent_today() > 0, "the worst case is set aside"
        bench.stop.set("SIGTERM")
        await asyncio.sleep(0)
        await bench.clock.advance(3.1)
        await asyncio.wait_for(draining, PATIENCE)
    [stored] = await bench.store.diagnoses(ticket.id)
    assert (stored.outcome, stored.cost_usd) == ("lost", 0.0)
    assert await bench.store.spent_today() == 0


async def test_a_killed_call_costs_its_worst_case_until_the_next_one_is_answered(
    bench: Bench, script: Script
) -> None:
    """A call that was sent and cut off may be billed; the answer to the same question tells for how much."""
    ticket, _, draining = await during_a_call(bench, script)
    worst = await bench.store.spent_today()
    bench.clock.step_wall_clock(31)  # as after SIGKILL: the lease ends, nobody says why
    [claim] = await bench.store.claim("next", lease=30)
    await bench.clock.advance(11)
    await asyncio.wait_for(draining, PATIENCE)
    await bench.store.release(claim)
    assert await bench.store.spent_today() == worst > 0
    script(GOOD)
    await bench.drain()
    lost, answered = await bench.store.diagnoses(ticket.id)
    assert (lost.outcome, answered.outcome) == ("late", "answered")
    assert lost.cost_usd == answered.cost_usd < worst
    assert await bench.store.spent_today() == pytest.approx(2 * answered.cost_usd)


async def test_an_answer_within_the_grace_is_kept(bench: Bench, script: Script) -> None:
    ticket, hold, draining = await during_a_call(bench, script)
    bench.stop.set("SIGTERM")
    hold.release()
    await draining
    assert (await bench.store.ticket(ticket.id)).status is TicketStatus.DIAGNOSED


async def test_a_lost_claim_ends_the_call(bench: Bench, script: Script) -> None:
    ticket, _, draining = await during_a_call(bench, script)
    bench.clock.step_wall_clock(31)  # the lease ended unnoticed, as under SIGSTOP
    [thief] = await bench.store.claim("thief", lease=30)
    await bench.clock.advance(11)
    await asyncio.wait_for(draining, PATIENCE)
    assert await bench.store.renew(thief, lease=30), "the thief's claim was not touched"
    assert (await bench.store.ticket(ticket.id)).status is TicketStatus.OPEN


async def test_an_attempt_that_always_dies_is_given_up_without_a_call(
    bench: Bench,
) -> None:
    ticket = await one_ticket(bench)
    for _ in range(5):
        assert await bench.store.claim("dies", lease=30)
        await bench.clock.advance(31)
    await bench.drain(max_attempts=5)
    [stored] = await bench.store.diagnoses(ticket.id)
    assert stored.outcome == "error" and "5 attempts" in (stored.error or "")
    assert not bench.api.calls
    assert (await bench.store.ticket(ticket.id)).status is TicketStatus.GIVEN_UP
    diagnosed = TicketFilter((TicketStatus.DIAGNOSED,))
    assert await bench.store.tickets(diagnosed) == []
    assert not await bench.store.claim("another", lease=30), "it left the queue"
    assert (await bench.store.stats(3600)).given_up == 1
    again = await bench.store.retry(ticket.id, "ann", "the agent has more memory")
    assert again.status is TicketStatus.OPEN
    assert await bench.store.claim("another", lease=30)


async def test_what_an_answer_does_not_explain_gets_a_call_of_its_own(
    bench: Bench, script: Script
) -> None:
    tickets = await open_tickets(bench.store, "a", "b", "c")
    ids = [ticket.id for ticket in tickets]
    script(
        Answer(structured=answer(explains=ids[:2])),
        Answer(structured=answer(explains=ids[2:])),
    )
    await bench.drain()
    first, second = [call.prompt for call in bench.api.calls]
    assert all(f"Ticket {id_} " in first for id_ in ids)
    assert f"Ticket {ids[2]} " in second and f"Ticket {ids[0]} " not in second
    diagnoses = [(await bench.store.ticket(id_)).diagnosis_id for id_ in ids]
    assert diagnoses[0] == diagnoses[1] != diagnoses[2]


async def test_without_a_cause_an_answer_settles_what_it_names(
    bench: Bench, script: Script
) -> None:
    a, b, c = await open_tickets(bench.store, "a", "b", "c")
    healthy = {"verdict": "no_fault", "root_cause": ""}
    script(
        Answer(structured=answer(explains=[a.id, 4711], **healthy)),
        Answer(structured=answer(explains=[4711], **healthy)),
    )
    await bench.drain()
    first, second = await bench.store.diagnoses(b.id)
    assert (first.explains, second.explains) == ((a.id,), ())
    assert (await bench.store.ticket(a.id)).diagnosis_id == first.id
    for left_out in (b, c):
        after = await bench.store.ticket(left_out.id)
        assert after.status is TicketStatus.GIVEN_UP
        assert (after.diagnosis_id, after.left_out_by) == (None, second.id)
    assert len(bench.api.calls) == 2


async def test_a_paid_answer_outlives_a_busy_store(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticket = await one_ticket(bench)
    finish, refused = bench.store.finish, 0

    async def busy(claim: Claim, diagnosis_id: int, ending: Finish) -> bool:
        nonlocal refused
        if (refused := refused + 1) < 4:
            raise StoreBusy()
        return await finish(claim, diagnosis_id, ending)

    monkeypatch.setattr(bench.store, "finish", busy)
    draining = asyncio.create_task(bench.drain())
    while not draining.done():
        await asyncio.sleep(0.01)
        await bench.clock.advance(1)
    assert (await bench.store.ticket(ticket.id)).status is TicketStatus.DIAGNOSED
    assert len(bench.api.calls) == 1


async def test_critical_goes_first(bench: Bench) -> None:
    await open_tickets(bench.store, "minor", severity=Severity.INFO)
    await open_tickets(bench.store, "plain", severity=Severity.WARNING)
    await open_tickets(bench.store, "core", severity=Severity.CRITICAL)
    await bench.drain()
    order = [call.prompt for call in bench.api.calls]
    assert ["core" in order[0], "plain" in order[1], "minor" in order[2]] == [True] * 3


async def test_errors_are_never_served_as_knowledge(
    bench: Bench, script: Script
) -> None:
    script(bad_request("secret of the error"), bad_request("secret of the error"), GOOD)
    ticket = await one_ticket(bench)
    await bench.drain(context_tokens=1600)
    await bench.store.resolve(
        ticket.id, "monitor", "the invariant was observed to hold again"
    )
    await one_ticket(bench)
    await bench.drain()
    assert "secret of the error" not in bench.api.calls[-1].prompt
