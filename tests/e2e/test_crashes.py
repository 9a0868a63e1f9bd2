"""What a death costs: agents in real processes, killed and stopped, on one SQLite file.

Calls are counted at the scripted API. A crash costs at most one repeated call, and the
next agent is on the ticket as soon as the lease is over: its store is a lease ahead.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from midwatch.model import Diagnosis, Ticket, TicketStatus
from midwatch.store.sql import SqlStore, open_store
from midwatch.testing.fakes import answer, open_tickets
from midwatch.testing.messages_api import (
    Answer,
    Hold,
    Rule,
    ScriptedMessagesAPI,
    ToolUse,
)

from ..scripts import Script
from ..waiting import PATIENCE

LEASE = 60.0
"""Seconds: nobody who lives loses one, however slow the machine is."""
OVER = LEASE + 1
GOOD = Answer(structured=answer())


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'midwatch.db'}"


@pytest.fixture
async def shared(database: str) -> AsyncIterator[SqlStore]:
    opened = await open_store(database)
    yield opened
    await opened.close()


@contextlib.contextmanager
def agent(
    database: str,
    api: ScriptedMessagesAPI,
    point: str = "none",
    ahead: float = 0,
    lease: float = LEASE,
    poll: float = 0.05,
) -> Iterator[Script]:
    arguments = (database, api.base_url, point, lease, ahead, poll)
    code = f"from tests.e2e import crashing_agent as agent; agent.run{arguments!r}"
    process = Script(code)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait()


async def ended(process: Script) -> int:
    """Return the exit code; that of a signal is negative."""
    return await asyncio.to_thread(process.wait)


async def until_diagnosed(store: SqlStore, ticket: Ticket) -> list[Diagnosis]:
    deadline = time.monotonic() + PATIENCE
    while (await store.ticket(ticket.id)).status is not TicketStatus.DIAGNOSED:
        assert time.monotonic() < deadline, "the ticket was never diagnosed"
        await asyncio.sleep(0.05)
    return await store.diagnoses(ticket.id)


@pytest.mark.parametrize(
    ("point", "calls"),
    [
        ("before claim", 1),
        ("after claim", 1),
        ("before begin", 1),
        ("after begin", 1),
        ("before finish_and_claim", 2),
        ("before the commit", 2),
        ("after finish_and_claim", 1),
    ],
)
async def test_kill_9_costs_at_most_one_call(
    shared: SqlStore, database: str, point: str, calls: int
) -> None:
    [ticket] = await open_tickets(shared, "db")
    with ScriptedMessagesAPI(Rule(GOOD)) as api:
        with agent(database, api, point) as dying:
            assert await ended(dying) == -signal.SIGKILL
        with agent(database, api, ahead=OVER):
            stored = await until_diagnosed(shared, ticket)
    assert len(api.calls) == calls
    assert [one.outcome for one in stored].count("answered") == 1


async def test_kill_9_during_the_call(shared: SqlStore, database: str) -> None:
    [ticket] = await open_tickets(shared, "db")
    hold = Hold(GOOD)
    with ScriptedMessagesAPI(Rule([hold, GOOD])) as api:
        with agent(database, api) as dying:
            await hold.arrived()
            dying.kill()
        with agent(database, api, ahead=OVER):
            stored = await until_diagnosed(shared, ticket)
    assert len(api.calls) == 2
    assert [one.outcome for one in stored] == ["lost", "answered"]
    assert stored[0].cost_usd > 0, "what may have been billed stays on the day's bill"


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_an_agent_of_the_same_host_takes_over_at_once(
    shared: SqlStore, database: str
) -> None:
    """It waits neither for the lease nor for its next poll: both are an hour away."""
    hour = 3600.0
    [ticket] = await open_tickets(shared, "db")
    hold = Hold(GOOD)
    with ScriptedMessagesAPI(Rule([hold, GOOD])) as api:
        with agent(database, api, lease=hour) as dying:
            await hold.arrived()
            with agent(database, api, lease=hour, poll=hour):
                await until_agents(shared, 2)
                assert len(api.calls) == 1
                dying.kill()
                stored = await until_diagnosed(shared, ticket)
    assert [one.outcome for one in stored] == ["lost", "answered"]


async def test_an_agent_elsewhere_wakes_when_the_lease_ends(
    shared: SqlStore, database: str
) -> None:
    """Its next poll is an hour away. Of the holder nothing is known, as of one on another host."""
    [ticket] = await open_tickets(shared, "db")
    elsewhere = "host other pid:[1] time:[1] 1 1"
    assert await shared.claim("elsewhere", lease=1, process=elsewhere)
    with ScriptedMessagesAPI(Rule(GOOD)) as api, agent(database, api, poll=3600):
        stored = await until_diagnosed(shared, ticket)
    assert [one.outcome for one in stored] == ["answered"]
    assert (await shared.ticket(ticket.id)).attempts == 2


async def until_agents(store: SqlStore, count: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while len(await store.daemons(3600)) < count:
        assert time.monotonic() < deadline, "not all agents started"
        await asyncio.sleep(0.05)


async def test_kill_9_in_a_round_costs_that_round(
    shared: SqlStore, database: str
) -> None:
    [ticket] = await open_tickets(shared, "db")
    hold, asks = Hold(GOOD), Answer(tool_uses=[ToolUse("queue")])
    with ScriptedMessagesAPI(Rule([asks, hold, GOOD])) as api:
        with agent(database, api) as dying:
            await hold.arrived()
            found = f"the queue has {dying.pid} entries"
            dying.kill()
        with agent(database, api, ahead=OVER):
            stored = await until_diagnosed(shared, ticket)
    assert [one.outcome for one in stored] == ["asked", "lost", "answered"]
    assert found in api.calls[-1].prompt, "what was asked for is not asked for again"


async def test_a_daemon_stopped_past_its_lease_changes_nothing(
    shared: SqlStore, database: str
) -> None:
    [ticket] = await open_tickets(shared, "db")
    hold = Hold(Answer(structured=answer("an old story")))
    with ScriptedMessagesAPI(Rule([hold, GOOD])) as api:
        with agent(database, api) as sleeper:
            await hold.arrived()
            sleeper.send_signal(signal.SIGSTOP)
            with agent(database, api, ahead=OVER):
                await until_diagnosed(shared, ticket)
            hold.release()
            sleeper.send_signal(signal.SIGCONT)
            await settled(shared, ticket)
        stored = await shared.diagnoses(ticket.id)
    assert [one.outcome for one in stored][1] == "answered"
    assert stored[0].outcome in ("late", "lost")
    after = await shared.ticket(ticket.id)
    assert after.diagnosis_id == stored[1].id
    assert [row.action for row in await shared.history(ticket.id)] == [
        "open",
        "diagnose",
    ]


async def settled(store: SqlStore, ticket: Ticket) -> None:
    """Until the woken daemon has tried its write, or has seen that the claim is gone."""
    for _ in range(40):
        if (await store.diagnoses(ticket.id))[0].outcome == "late":
            return
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_a_hanging_call(
    shared: SqlStore, database: str, number: signal.Signals
) -> None:
    [ticket] = await open_tickets(shared, "db")
    hold = Hold()
    with (
        ScriptedMessagesAPI(Rule(hold)) as api,
        agent(database, api) as process,
    ):
        await hold.arrived()
        process.send_signal(number)
        # The call itself would hang for ten minutes.
        assert await ended(process) == 0
    after = await shared.ticket(ticket.id)
    assert after.status is TicketStatus.OPEN and after.attempts == 0
    assert await shared.claim("next", lease=30)


@pytest.mark.parametrize("daemons", [2, 8])
async def test_many_daemons_diagnose_each_ticket_once(
    shared: SqlStore, database: str, daemons: int
) -> None:
    tickets = 24 if daemons == 8 else 60
    for number in range(tickets):
        await open_tickets(shared, f"c{number}")
    with ScriptedMessagesAPI(Rule(GOOD)) as api, contextlib.ExitStack() as stack:
        for _ in range(daemons):
            stack.enter_context(agent(database, api))
        await asyncio.to_thread(api.wait_for_requests_sync, tickets, timeout=PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while (await shared.stats(3600)).outcomes.get("answered", 0) < tickets:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
    assert len(api.calls) == tickets
    assert (await shared.stats(3600)).outcomes == {"answered": tickets}
