"""The processes of `bench.up`: what watches, what it is compared with, and the servers that are watched.

`python -m bench._up_child ours INTERVAL ROUNDS` runs `midwatch up` in the present folder, and `bare … URLS` requests the
same URLs and runs the same statements, with httpx2 and psycopg alone, over a
new connection each time. Both print a line of JSON: processor seconds by
round, the lateness of a timer, and the memory.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

TICK = 0.02
"""Seconds between two looks at how late the event loop is."""


def spent() -> float:
    """Return the processor seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def memory() -> float:
    """Return the resident memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


class Lateness:
    """How late a timer of the event loop is, in seconds, without the time in which this process did not run.

    Other processes on the same processors would count otherwise: a tick counts as late for as long as this
    process itself used the processor.
    """

    def __init__(self) -> None:
        self.found: list[float] = []

    async def watch(self) -> None:
        while True:
            due, used = time.monotonic() + TICK, spent()
            await asyncio.sleep(TICK)
            late = time.monotonic() - due
            self.found.append(max(0.0, min(late, spent() - used)))

    def take(self) -> list[float]:
        found, self.found = self.found, []
        return sorted(found)


async def measured(
    work: Callable[[], Awaitable[object]], interval: float, rounds: int, began: float
) -> None:
    """Run `work`, and print what it took to start and in each of some rounds of `interval` seconds."""
    lateness = Lateness()
    ticks = asyncio.create_task(lateness.watch())
    running = asyncio.ensure_future(work())
    await asyncio.sleep(interval)
    start, at_start = spent() - began, lateness.take()
    steady = []
    for _ in range(rounds):
        before = spent()
        await asyncio.sleep(interval)
        steady.append(spent() - before)
    late = lateness.take()
    report = {
        "start": start,
        "frozen": at_start[-1],
        "steady": steady,
        "frozen_steady": late[-1],
        "p99": late[len(late) * 99 // 100],
        "memory": memory(),
    }
    print(json.dumps(report), flush=True)
    ticks.cancel()
    running.cancel()
    os._exit(0)


async def ours(interval: float, rounds: int) -> None:
    from midwatch.cli.app import Edge
    from midwatch.cli.running import run_up

    gc.disable()  # as `midwatch` does
    edge = Edge(dict(os.environ), Path("midwatch.yaml"))
    await measured(lambda: run_up(edge), interval, rounds, 0.0)


async def observed(dsn: str) -> list[tuple[str, Mapping[str, object] | None]]:
    """Return the statements of one observation of a server."""
    from midwatch.subjects.postgres.connection import Connection
    from midwatch.subjects.postgres.settings import PostgresSettings
    from midwatch.subjects.postgres.subject import PostgresSubject

    found = []
    execute = Connection.execute

    async def recorded(
        self: Connection, statement: str, params: Mapping[str, object] | None = None
    ) -> Any:
        found.append((statement, params))
        return await execute(self, statement, params)

    Connection.execute = recorded  # type: ignore[method-assign]
    subject = PostgresSubject(
        PostgresSettings.model_validate({"name": "one", "dsn": dsn})
    )
    await subject.observe({})
    return found


async def bare(interval: float, rounds: int, urls: Path) -> None:
    import httpx2
    import psycopg

    given = json.loads(urls.read_text())
    statements = await observed(given["postgres"][0])

    limits = httpx2.Limits(max_keepalive_connections=0)
    client = httpx2.AsyncClient(verify=False, trust_env=False, limits=limits)

    async def get(url: str) -> None:
        assert (await client.get(url)).status_code == 200

    async def select(dsn: str) -> None:
        connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
        async with connection:
            for statement, params in statements:
                cursor = await connection.execute(statement.encode(), params)
                await cursor.fetchall()

    async def cycles() -> None:
        while True:
            due = time.monotonic() + interval
            jobs = [*map(get, given["http"]), *map(select, given["postgres"])]
            pace = interval / 2 / len(jobs)
            running = []
            for job in jobs:
                running.append(asyncio.create_task(job))
                await asyncio.sleep(pace)
            await asyncio.gather(*running)
            await asyncio.sleep(due - time.monotonic())

    await measured(cycles, interval, rounds, spent())


async def answer(listening: socket.socket) -> None:
    """Answer each request of a connection with 200 and a short body."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n")
            await writer.drain()

    async def quietly(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(quietly, sock=listening) as server:
        await server.serve_forever()


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "answer":
        asyncio.run(answer(socket.socket(fileno=int(rest[0]))))
    elif what == "ours":
        asyncio.run(ours(float(rest[0]), int(rest[1])))
    else:
        asyncio.run(bare(float(rest[0]), int(rest[1]), Path(rest[2])))
