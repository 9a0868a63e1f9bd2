"""An agent in a process of its own that is killed at a point the test names."""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from midwatch.agent.claude import Claude
from midwatch.agent.evidence import ContextGatherer
from midwatch.agent.investigation import Investigator
from midwatch.agent.runner import AgentRunner
from midwatch.lifecycle import StopEvent, SystemClock, stop_on_signals
from midwatch.redaction import Redactor
from midwatch.settings import AgentSettings
from midwatch.store.schema import database_now
from midwatch.store.sql import SqlStore, open_store
from midwatch.subjects.tools import Answer, Arguments, Tool
from midwatch.testing.fakes import FakeSubject


async def _length(asked: Arguments) -> Answer:
    return Answer("length", f"the queue has {os.getpid()} entries")


QUEUE = Tool("queue", "The length of the queue.", Arguments, _length)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_around(store: SqlStore, method: str, *, after: bool) -> None:
    """Make `store.method` the last thing that is done, or that is not done any more."""
    real = getattr(store, method)

    async def deadly(*arguments: Any, **options: Any) -> Any:
        if not after:
            die()
        await real(*arguments, **options)
        die()

    setattr(store, method, deadly)


def kill_before_commit(store: SqlStore) -> None:
    """Die inside the transaction that stores the diagnosis, when all is written but the commit."""
    real = store.transactions.run

    async def run(function: Any, *arguments: Any, **options: Any) -> Any:
        def deadly(connection: Any) -> Any:
            result = function(connection, *arguments, **options)
            changed = connection.exec_driver_sql(
                "SELECT count(*) FROM diagnoses WHERE outcome = 'answered'"
            ).scalar()
            if changed:
                die()
            return result

        return await real(deadly)

    store.transactions.run = run  # type: ignore[method-assign]


def arm(store: SqlStore, point: str) -> None:
    if point == "before the commit":
        kill_before_commit(store)
    elif point != "none":
        when, method = point.split()
        kill_around(store, method, after=when == "after")


async def main(
    database: str, base_url: str, point: str, lease: float, ahead: float, poll: float
) -> None:

    def clock_of_store(connection: Connection) -> datetime:
        return database_now(connection) + timedelta(seconds=ahead)

    store = await open_store(database, clock=clock_of_store)
    arm(store, point)
    clock = SystemClock()
    model = Claude("claude-sonnet-5-5", 600, "sk-ant-test", base_url)
    subjects = {"fake": FakeSubject("fake", tools=[QUEUE])}
    gatherer = ContextGatherer(subjects, Redactor(), clock, store.past)
    runner = AgentRunner(
        store,
        gatherer,
        lambda: model,
        AgentSettings(lease=lease, poll_interval=poll),
        name=f"agent {os.getpid()}",
        investigator=Investigator(gatherer, subjects),
    )
    stop = StopEvent()
    with stop_on_signals(stop):
        await runner.run(stop)
    await model.close()
    await store.close()


def run(
    database: str,
    base_url: str,
    point: str,
    lease: float,
    ahead: float,
    poll: float = 0.05,
) -> None:
    """Run an agent until a signal ends it.

    Args:
        database: URL of its store.
        base_url: Where the API is.
        point: Where it kills itself, such as "after claim", or "none".
        lease: Seconds.
        ahead: Seconds that the clock of its store is ahead.
        poll: Seconds between two polls of an empty queue.
    """
    asyncio.run(main(database, base_url, point, lease, ahead, poll))
