"""`python -m bench._peers_queue PEER DATABASE JOBS CONCURRENCY`: work through as many jobs with another queue.

Each job stores one document of the size of a diagnosis with its evidence, by the least that does it: one statement on a
connection that stays open, committed by itself. Prints the seconds of processor time, and of wall time, from the start
of the worker until its queue is empty.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import psycopg

DOCUMENT = json.dumps({"evidence": ["4711 | shop | idle in transaction " * 58] * 8})
"""What a job stores: 17 kB."""
_TABLE = "CREATE TABLE answers (job integer, document text)"
_STORE = "INSERT INTO answers VALUES (%s, %s)"

Figures = tuple[float, float]


class Watch:
    """Counts jobs, and measures from `start` to the last of them."""

    def __init__(self, jobs: int) -> None:
        self._left = jobs
        self._start = (0.0, 0.0)
        self.done = asyncio.Event()
        self.used: Figures = (0.0, 0.0)

    def start(self) -> None:
        self._start = time.process_time(), time.monotonic()

    def one(self) -> None:
        self._left -= 1
        if not self._left:
            self.stop()

    def stop(self) -> None:
        processor, wall = self._start
        self.used = time.process_time() - processor, time.monotonic() - wall
        self.done.set()


async def procrastinate(database: str, jobs: int, concurrency: int) -> Figures:
    from procrastinate import App, PsycopgConnector

    app = App(connector=PsycopgConnector(conninfo=database))
    results = await _results(database)

    @app.task(name="job")
    async def job(number: int) -> None:
        await results.execute(_STORE, (number, DOCUMENT))

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        await job.batch_defer_async(*({"number": n} for n in range(jobs)))
        watch = Watch(jobs)
        watch.start()
        await app.run_worker_async(
            wait=False, concurrency=concurrency, install_signal_handlers=False
        )
        watch.stop()
    await _check(results, jobs)
    return watch.used


async def pgqueuer(database: str, jobs: int, concurrency: int) -> Figures:
    """It takes ten jobs at once, as it does by itself: fewer have no sense there, and more tasks run than asked for."""
    from pgqueuer import QueueManager
    from pgqueuer.db import PsycopgDriver
    from pgqueuer.models import Job
    from pgqueuer.queries import Queries
    from pgqueuer.types import QueueExecutionMode

    results = await _results(database)
    connection = await psycopg.AsyncConnection.connect(database, autocommit=True)
    driver = PsycopgDriver(connection)
    await Queries(driver).install()
    manager = QueueManager(Queries(driver))

    @manager.entrypoint("job")
    async def job(one: Job) -> None:
        assert one.payload is not None
        await results.execute(_STORE, (int(one.payload), DOCUMENT))

    await Queries(driver).enqueue(
        ["job"] * jobs, [str(n).encode() for n in range(jobs)], [0] * jobs
    )
    watch = Watch(jobs)
    watch.start()
    await manager.run(mode=QueueExecutionMode.drain)
    watch.stop()
    await _check(results, jobs)
    return watch.used


async def huey(database: str, jobs: int, concurrency: int) -> Figures:
    """One worker, in this process, as its consumer would run it; the queue's own database waits for the disk."""
    from huey import SqliteHuey

    queue = SqliteHuey(filename=database, fsync=True)
    results = sqlite3.connect(f"{database}.answers", isolation_level=None)
    results.execute("PRAGMA journal_mode=WAL")
    results.execute("PRAGMA synchronous=FULL")
    results.execute(_TABLE)

    @queue.task()
    def job(number: int) -> None:
        results.execute(_STORE.replace("%s", "?"), (number, DOCUMENT))

    for number in range(jobs):
        job(number)
    watch = Watch(jobs)
    watch.start()
    while (task := queue.dequeue()) is not None:
        queue.execute(task)
    watch.stop()
    [(stored,)] = results.execute("SELECT count(*) FROM answers")
    assert stored == jobs
    return watch.used


async def _results(database: str) -> psycopg.AsyncConnection[Any]:
    results = await psycopg.AsyncConnection.connect(database, autocommit=True)
    await results.execute(_TABLE)
    return results


async def _check(results: psycopg.AsyncConnection[Any], jobs: int) -> None:
    row = await (await results.execute("SELECT count(*) FROM answers")).fetchone()
    assert row == (jobs,)
    await results.close()


PEERS: dict[str, Callable[[str, int, int], Coroutine[Any, Any, Figures]]] = {
    "procrastinate": procrastinate,
    "pgqueuer": pgqueuer,
    "huey": huey,
}


if __name__ == "__main__":
    _, peer, url, count, at_once = sys.argv
    print(json.dumps(asyncio.run(PEERS[peer](url, int(count), int(at_once)))))
