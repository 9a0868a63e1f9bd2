"""Several processes on one store."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection

from midwatch.model import UNRESOLVED
from midwatch.store.cycles import save_cycle, watch
from midwatch.store.engine import Transaction
from midwatch.store.protocol import Changes, TicketFilter
from midwatch.store.schema import database_now
from midwatch.store.sql import SqlStore, open_store
from midwatch.testing.store_conformance.fixture import opening

from ..waiting import PATIENCE

WORKER = Path(__file__).with_name("worker.py")
TICKETS = 200
AT_ONCE = 50
"""Tickets of one transaction, which may take 20 s, also on a busy machine."""


async def filled(database: str, tickets: int = TICKETS) -> SqlStore:
    """Return a store with `tickets` tickets, each in its own batch."""

    def fill(connection: Connection, first: int) -> None:
        tx = Transaction(connection, database_now)
        revision = watch(tx, "db").revision
        for number in range(first, min(first + AT_ONCE, tickets)):
            changes = Changes((opening(f"c{number}"),))
            saved = save_cycle(tx, "db", revision, changes)
            revision = saved.revision

    store = await open_store(database)
    for first in range(0, tickets, AT_ONCE):
        await store.transactions.run(fill, first)
    return store


@contextmanager
def worker(database: str, step: str, name: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(WORKER), database, step, name]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize(
    ("shared_database", "workers"),
    [("sqlite", 4), ("postgres", 4)],
    indirect=["shared_database"],
)
async def test_each_ticket_is_diagnosed_once(
    shared_database: str, workers: int
) -> None:
    store = await filled(shared_database)
    with ExitStack() as stack:
        processes = [
            stack.enter_context(worker(shared_database, "drain", f"agent-{number}"))
            for number in range(workers)
        ]
        for process in processes:
            assert await asyncio.to_thread(_line, process) == "claimed\n"
        printed = await asyncio.gather(
            *(
                asyncio.to_thread(process.communicate, "\n", PATIENCE)
                for process in processes
            )
        )
    assert [process.returncode for process in processes] == [0] * workers
    shares = [[int(word) for word in out.split()] for out, _ in printed]
    done = [ticket for share in shares for ticket in share]
    assert len(done) == len(set(done)) == TICKETS
    assert all(shares), "each had work while the others did"
    figures = await store.stats(3600)
    assert dict(figures.outcomes) == {"answered": TICKETS}
    assert await store.spent_today() == pytest.approx(TICKETS * 0.01)
    assert await store.claim("late", lease=30) == []
    await store.close()


async def test_a_kill_in_the_middle_of_a_transaction_costs_nothing(
    shared_database: str,
) -> None:
    store = await filled(shared_database, tickets=3)
    with worker(shared_database, "hang", "victim") as process:
        assert _line(process) == "writing\n"
        process.kill()
        process.wait(PATIENCE)
        claims = []
        deadline = time.monotonic() + PATIENCE
        while not claims and time.monotonic() < deadline:
            claims = await store.claim("heir", lease=30, limit=5)
    assert len(claims) == 3
    assert [claim.attempt for claim in claims] == [1, 1, 1]
    await store.close()


async def test_monitors_that_open_linked_tickets_at_once_open_one_incident(
    shared_database: str,
) -> None:
    """Each subject has a monitor of its own; all of them save in the same moment."""
    names = ("shop", "api", "db", "box")

    async def save(store: SqlStore, name: str, number: int) -> None:
        revision = (await store.watch(name)).revision
        new = opening(f"c{number}", subject=name)
        await store.save_cycle(
            name,
            revision,
            Changes((new,)),
            group_wait=3600,
            linked=set(names) - {name},
        )

    async with AsyncExitStack() as stack:
        stores = [await open_store(shared_database) for _ in names]
        for store in stores:
            stack.push_async_callback(store.close)
        for number in range(10):
            await asyncio.gather(
                *(save(*each, number) for each in zip(stores, names, strict=True))
            )
            found = await stores[0].tickets(TicketFilter(UNRESOLVED))
            assert len(found) == len(names)
            assert len({ticket.batch for ticket in found}) == 1
            [claim] = await stores[0].claim("agent", lease=3600, batch=found[0].batch)
            assert len(claim.tickets) == len(names)
            for ticket in found:
                await stores[0].resolve(ticket.id, "ann", "gone")


async def test_who_waited_for_another_monitor_sees_the_incident_that_it_opened(
    shared_database: str,
) -> None:
    """Its transaction read the time before it waited, so the incident is younger than that."""
    began = datetime(2026, 3, 1, 12, tzinfo=UTC)
    seconds = [
        20
    ]  # as each reading of the second one's clock has it, the last one again and again
    first = await open_store(
        shared_database, clock=lambda _: began + timedelta(seconds=10)
    )
    second = await open_store(
        shared_database,
        clock=lambda _: began
        + timedelta(seconds=seconds.pop(0) if seconds[1:] else seconds[0]),
    )
    seconds.insert(0, 0)
    for store, name, other in ((first, "api", "shop"), (second, "shop", "api")):
        revision = (await first.watch(name)).revision
        changes = Changes((opening("c", subject=name),))
        await store.save_cycle(name, revision, changes, group_wait=3600, linked={other})
    found = await first.tickets(TicketFilter(UNRESOLVED))
    assert len(found) == 2 and len({ticket.batch for ticket in found}) == 1
    await first.close()
    await second.close()
