"""`python -m bench._tickets_ours PART DATABASE TICKETS CONCURRENCY`: diagnose tickets.

`agent` is through `AgentRunner`, `store` the same claims, calls and ends without it. Everything but the call to Claude is what a daemon does: evidence is gathered, redacted, put into the prompt, and
the answer is checked against it and stored with it. Prints the seconds of processor time, and of wall time, from the
first claim until the queue is empty.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import UTC, datetime

from midwatch.agent.diagnosis import Prompt
from midwatch.agent.evidence import ContextGatherer
from midwatch.agent.runner import AgentRunner
from midwatch.diagnosis_schema import DiagnosisOutput, Kind, Reply
from midwatch.lifecycle import StopEvent, SystemClock, collect_rarely
from midwatch.model import Evidence, Usage
from midwatch.redaction import Redactor
from midwatch.settings import AgentSettings
from midwatch.store.protocol import Budget, Claim, Finish
from midwatch.store.sql import SqlStore, open_store
from midwatch.testing.fakes import FakeSubject, answer

PIECES = 8
QUOTE = "4711 | shop | idle in transaction"
LINE = f"2026-11-29 10:14:%02d.%03d UTC {QUOTE} | 00:14:%02d | UPDATE orders SET state = 'paid' WHERE id = %d\n"
TEXT = "".join(LINE % (n % 60, n, n % 60, 7919 * n) for n in range(20))
EVIDENCE = {f"sessions of database {n}": TEXT for n in range(PIECES)}
"""Eight pieces of 2 kB, which is what a ticket of a PostgreSQL has."""


class Answering:
    """Answers at once, with a citation that is checked."""

    model = "claude-sonnet-5-5"

    async def ask(self, prompt: Prompt, max_tokens: int) -> Reply:
        output = DiagnosisOutput.model_validate(answer(quote=QUOTE, evidence_id="E2"))
        usage = Usage(9000, 900)
        return Reply(Kind.ANSWERED, output, usage=usage, model=self.model)


async def through_agent(store: SqlStore, tickets: int, concurrency: int) -> None:
    stop, clock, model = StopEvent(), SystemClock(), Answering()
    gatherer = ContextGatherer(
        {"db": FakeSubject("db", evidence=EVIDENCE)}, Redactor(), clock
    )
    settings = AgentSettings(concurrency=concurrency, daily_budget_usd=100_000.0)
    runner = AgentRunner(store, gatherer, lambda: model, settings, name="bench")
    running = asyncio.create_task(runner.run(stop))
    while runner.outcomes["answered"] < tickets:
        await asyncio.wait({running}, timeout=0.05)
        assert not running.done()
    stop.set()
    await running


async def through_store(store: SqlStore, tickets: int, concurrency: int) -> None:
    at = datetime.now(UTC)
    evidence = tuple(
        Evidence(f"E{n}", title, "db", at, text)
        for n, (title, text) in enumerate(EVIDENCE.items(), 1)
    )
    end = Finish("answered", answer=answer(), markdown=TEXT, evidence=evidence)

    async def work(claim: Claim) -> None:
        following = [claim]
        while following:
            call = await store.begin(
                following[0],
                model="claude-sonnet-5-5",
                prompt_version="1",
                reserve_usd=0.1,
                budget=Budget(1000.0),
            )
            assert call is not None
            stored, following = await store.finish_and_claim(
                following[0], call, end, lease=30
            )
            assert stored

    claims = await store.claim("bench", lease=30, limit=concurrency)
    await asyncio.gather(*map(work, claims))


async def main(part: str, database: str, tickets: int, concurrency: int) -> None:
    store = await open_store(database)
    collect_rarely()  # as the daemon does
    processor, wall = time.process_time(), time.monotonic()
    work = {"agent": through_agent, "store": through_store}[part]
    await work(store, tickets, concurrency)
    print(json.dumps([time.process_time() - processor, time.monotonic() - wall]))
    assert (await store.stats(3600)).outcomes == {"answered": tickets}
    await store.close()


if __name__ == "__main__":
    _, what, url, count, at_once = sys.argv
    asyncio.run(main(what, url, int(count), int(at_once)))
