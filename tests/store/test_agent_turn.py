"""What a ticket through `AgentRunner` asks of the database: statements and commits, counted where they arrive."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import pairwise

import psycopg

from midwatch.agent.diagnosis import Prompt
from midwatch.agent.evidence import ContextGatherer
from midwatch.agent.runner import AgentRunner
from midwatch.diagnosis_schema import DiagnosisOutput, Kind, Reply
from midwatch.lifecycle import StopEvent, SystemClock
from midwatch.model import TicketStatus, Usage
from midwatch.redaction import Redactor
from midwatch.settings import AgentSettings
from midwatch.store.protocol import TicketFilter
from midwatch.store.sql import SqlStore, open_store
from midwatch.store.sqlite import SqliteTransactions
from midwatch.store.upgrade import upgrade_database
from midwatch.testing.fakes import FakeSubject, answer, open_tickets
from midwatch.testing.postgres import PrivatePostgres

from ..waiting import PATIENCE

TICKETS = 6


class NothingBetween(SystemClock):
    """No wait ends, so that neither heartbeats nor polls come between the tickets."""

    def __init__(self) -> None:
        self.begun: set[float] = set()

    async def sleep(self, seconds: float) -> None:
        self.begun.add(seconds)
        await asyncio.Event().wait()

    async def quiet(self) -> None:
        """Wait until the heartbeat and the watch of claims wait."""
        async with asyncio.timeout(PATIENCE):
            while not {10.0, 1.0} <= self.begun:
                await asyncio.sleep(0.01)


class Model:
    """Answers as soon as nothing else uses the store, and calls `asked` before."""

    model = "claude-sonnet-5-5"

    def __init__(
        self, asked: Callable[[], object], quiet: Callable[[], Awaitable[None]]
    ) -> None:
        self._asked, self._quiet = asked, quiet

    async def ask(self, prompt: Prompt, max_tokens: int) -> Reply:
        await self._quiet()
        self._asked()
        output = DiagnosisOutput.model_validate(answer())
        return Reply(Kind.ANSWERED, output, usage=Usage(10, 10), model=self.model)


async def statements(store: SqlStore, count: Callable[[], list[str]]) -> list[str]:
    """Return the statements from the third call to the fifth: those of two tickets."""
    for number in range(TICKETS):
        await open_tickets(store, f"c{number}")
    at_calls: list[list[str]] = []
    clock = NothingBetween()
    model = Model(lambda: at_calls.append(count()), clock.quiet)
    gatherer = ContextGatherer(
        {"fake": FakeSubject(evidence={"log": "a line"})}, Redactor(), SystemClock()
    )
    runner = AgentRunner(
        store,
        gatherer,
        lambda: model,
        AgentSettings(poll_interval=5),
        clock=clock,
    )
    stop = StopEvent(clock)
    running = asyncio.create_task(runner.run(stop))
    while runner.outcomes["answered"] < TICKETS:
        await asyncio.wait({running}, timeout=0.01)
        assert not running.done()
    stop.set()
    await running
    diagnosed = await store.tickets(TicketFilter((TicketStatus.DIAGNOSED,)))
    assert len(diagnosed) == TICKETS
    return at_calls[4][len(at_calls[2]) :]


async def test_on_postgres(postgres: PrivatePostgres, empty_postgres: str) -> None:
    """Counted in the server's log: a check of the connection or of the clock would be there too."""
    await upgrade_database(empty_postgres)
    name = empty_postgres.partition("?")[0].rpartition("/")[2]
    with psycopg.connect(empty_postgres, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} SET log_statement = 'all'".encode())
    mark = f"@{name} midwatch LOG:"

    def count() -> list[str]:
        lines = postgres.log_file.read_text().splitlines()
        return [line.partition(mark)[2] for line in lines if mark in line]

    store = await open_store(empty_postgres)
    found = await statements(store, count)
    await store.close()
    commits = [line for line in found if line.endswith("COMMIT")]
    begins = [line for line in found if line.endswith("BEGIN")]
    assert (len(commits), len(begins)) == (2 * 2, 2 * 2)
    assert len(found) - len(commits) - len(begins) == 2 * 4, found


async def test_on_sqlite(shared_sqlite: str) -> None:
    """Counted in the driver."""
    store = await open_store(shared_sqlite)
    assert isinstance(store.transactions, SqliteTransactions)
    found: list[str] = []

    connection = store.transactions.engine.raw_connection()
    connection.driver_connection.set_trace_callback(found.append)
    connection.close()
    turn = await statements(store, found.copy)
    await store.close()
    # SQLite shows a statement again behind a trigger that it reaches, and as comments what its own modules ask.
    ours = [one for one in turn if not one.startswith("--")]
    words = Counter(
        one.split()[0] for before, one in pairwise(["", *ours]) if one != before
    )
    assert words == {
        **dict.fromkeys(("BEGIN", "COMMIT"), 2 * 2),
        "PRAGMA": 2 * 4,  # how long a transaction waits for its beginning
        **{"SELECT": 2 * 3, "UPDATE": 2 * 6, "INSERT": 2 * 3},
    }, turn
