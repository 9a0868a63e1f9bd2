"""What one poll and one ticket cost Midwatch and its PostgreSQL: the measured figures below docs/scaling.md.

Websites on loopback are polled, and tickets are diagnosed by `midwatch agent --once` with a scripted Messages API. The processor time of the
website and of that API is left out; that of the database includes all its backends.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import psycopg

from midwatch.monitor.loop import MonitorLoop
from midwatch.store.engine import open_transactions, parse_database
from midwatch.store.sql import open_store
from midwatch.store.upgrade import upgrade
from midwatch.subjects.http import HttpSettings, HttpSubject
from midwatch.testing.fakes import KEY, open_tickets
from midwatch.testing.postgres import PrivatePostgres

from ._meter import command_cost, plain_environment
from ._server import DURABLE, reachable, running
from .report import Row, Spread, against_bound, sized

SUBJECTS, TICKETS, ROUNDS = sized(200, 20), sized(100, 10), sized(5, 2)
WEBSITE = """
import asyncio, sys

async def answer(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\nconnection: close\\r\\n\\r\\nok")
    await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", int(sys.argv[1]), backlog=1000)
    await server.serve_forever()

asyncio.run(main())
"""
POLL, DATABASE_POLL = "scaling: a poll, monitor", "scaling: a poll, database"
TICKET, DATABASE_TICKET = "scaling: a ticket, agent", "scaling: a ticket, database"
BYTES = "scaling: a ticket, size in the database"


async def run() -> Sequence[Row]:
    """Return the rows. Takes about a minute."""
    with (
        tempfile.TemporaryDirectory(prefix="midwatch-bench-") as name,
        PrivatePostgres(settings=DURABLE, tcp=True) as server,
    ):
        async with _website(Path(name)) as url:
            return [*await _polls(server, url), *await _tickets(server, Path(name))]


def _row(name: str, milliseconds: float) -> Row:
    return against_bound(name, milliseconds, None, "ms", measure="processor")


def _used(server: PrivatePostgres) -> float:
    """Return the processor time of the server with its backends, alive or ended, in seconds."""
    main = psutil.Process(server.pid)
    total = sum(main.cpu_times()[:4])
    for backend in main.children(recursive=True):
        try:
            total += sum(backend.cpu_times()[:2])
        except psutil.NoSuchProcess:  # ended since: it is among the ended of its parent
            pass
    return total


@asynccontextmanager
async def _website(folder: Path) -> AsyncIterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with running(folder, [sys.executable, "-c", WEBSITE, str(port)]):
        await reachable(port)
        yield f"http://127.0.0.1:{port}/"


async def _polls(server: PrivatePostgres, url: str) -> list[Row]:
    transactions = open_transactions(parse_database(server.dsn()))
    await upgrade(transactions)
    await transactions.close()
    store = await open_store(server.dsn())
    subjects = [
        HttpSubject(HttpSettings(name=f"web-{number}", url=url, timeout=60.0))
        for number in range(SUBJECTS)
    ]
    monitor = MonitorLoop(store, subjects)
    own, database = [], []
    for number in range(10 * ROUNDS):
        before, began = _used(server), time.process_time()
        cycle = await monitor.cycle()
        # The first one opens the connections; where the machine stood still, polls were not made.
        if number and not cycle.unobservable:
            own.append((time.process_time() - began) / SUBJECTS * 1000)
            database.append((_used(server) - before) / SUBJECTS * 1000)
        if len(own) == ROUNDS:
            break
    await monitor.close()
    await store.close()
    return [_row(POLL, Spread(own)), _row(DATABASE_POLL, Spread(database))]


async def _tickets(server: PrivatePostgres, folder: Path) -> list[Row]:
    async with _messages_api(folder) as api:
        settings = {
            "database": server.dsn(),
            "agent": {"daily_budget_usd": None},
            "subjects": [{"name": "web", "kind": "http", "url": "http://127.0.0.1:9/"}],
        }
        (folder / "midwatch.yaml").write_text(json.dumps(settings))
        idle, _, _ = await _agent(server, folder, api)
        store = await open_store(server.dsn())
        for number in range(TICKETS):
            await open_tickets(store, f"path-{number}", subject="web")
        busy, database, size = await _agent(server, folder, api)
        [(left,)] = _ask(
            server, "SELECT count(*) FROM tickets WHERE status <> 'diagnosed'"
        )
        assert not left, f"{left} tickets were not diagnosed"
        await store.close()
    return [
        _row(TICKET, (busy - idle) / TICKETS * 1000),
        _row(DATABASE_TICKET, database / TICKETS * 1000),
        against_bound(BYTES, size / TICKETS / 1000, None, "kB"),
    ]


async def _agent(
    server: PrivatePostgres, folder: Path, api: str
) -> tuple[float, float, float]:
    """Run the agent until the queue is empty. Return its processor seconds, the database's, and what the database grew by."""
    environ = plain_environment(folder)
    environ |= {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": api}
    midwatch = str(Path(sys.executable).with_name("midwatch"))
    before, size = _used(server), _size(server)
    cost = await command_cost(midwatch, "agent", "--once", cwd=folder, env=environ)
    return cost.processor, _used(server) - before, _size(server) - size


def _size(server: PrivatePostgres) -> int:
    [(size,)] = _ask(server, "SELECT pg_database_size(current_database())")
    return int(size)


def _ask(server: PrivatePostgres, statement: str) -> list[tuple[int, ...]]:
    with psycopg.connect(server.dsn()) as connection:
        return connection.execute(statement.encode()).fetchall()


@asynccontextmanager
async def _messages_api(folder: Path) -> AsyncIterator[str]:
    """Run the scripted API in a process of its own; yield its address."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "midwatch.testing.messages_api"),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            address = (await process.stdout.readline()).decode().strip()
        yield address
    finally:
        process.terminate()
        await process.wait()
