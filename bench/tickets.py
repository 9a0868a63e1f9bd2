"""A ticket through `AgentRunner`, from claim to stored diagnosis, beside a job through the queues that people know.

Each side runs in a process of its own, waits for the disk with every commit, has the same concurrency, and stores a
document of the same size for each ticket. What the database server used counts too. The call to Claude is left out;
evidence is gathered, redacted and put into the prompt, and the answer is checked against it, which no queue does: the
rows "store alone" are claims, calls and ends without that work.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import psutil
import psycopg

from midwatch.testing.postgres import PrivatePostgres

from . import store as store_bench
from .report import Row, against_floor, sized

TICKETS = sized(200, 40)
ROUNDS = sized(3, 1)
OURS = {
    "ticket through AgentRunner": ("bench._tickets_ours", "agent"),
    "ticket, store alone": ("bench._tickets_ours", "store"),
}
AIMS = {"procrastinate": 1.0, "pgqueuer": 1.0, "huey": 2.0}
DURABLE = {"fsync": True, "synchronous_commit": True, "full_page_writes": True}

Measure = Callable[[Sequence[str], int], Awaitable[float]]


async def _seconds(*command: str) -> float:
    """Run a side in a process of its own. Return the processor seconds that it prints."""
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *command, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await started.communicate()
    if started.returncode:
        raise RuntimeError(f"{' '.join(command)} failed")
    return float(json.loads(out.splitlines()[-1])[0])


def server_seconds(pid: int) -> float:
    """Return the processor seconds of a server and of all its processes, also of those that have ended."""
    main = psutil.Process(pid)
    total = 0.0
    for child in main.children(recursive=True):
        try:
            total += sum(child.cpu_times()[:2])
        except psutil.NoSuchProcess:  # ended since: it is on its parent's bill below
            pass
    return total + sum(main.cpu_times()[:4])


def on_postgres(server: PrivatePostgres) -> Measure:
    numbers = itertools.count()

    async def measure(side: Sequence[str], concurrency: int) -> float:
        name = f"run_{next(numbers)}"
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        if side in OURS.values():
            await store_bench.fill(server.dsn(name), 1, TICKETS)
        before = server_seconds(server.pid)
        arguments = (server.dsn(name), str(TICKETS), str(concurrency))
        used = await _seconds(*side, *arguments)
        return used + server_seconds(server.pid) - before

    return measure


def on_sqlite(folder: Path) -> Measure:
    numbers = itertools.count()
    template = folder / "template"

    async def measure(side: Sequence[str], concurrency: int) -> float:
        file = folder / f"run-{next(numbers)}"
        database = str(file)
        if side in OURS.values():
            if not template.exists():
                await store_bench.fill(f"sqlite:///{template}", 1, TICKETS)
            shutil.copy(template, file)
            database = f"sqlite:///{file}"
        return await _seconds(*side, database, str(TICKETS), str(concurrency))

    return measure


async def compare(
    where: str, measure: Measure, peers: Sequence[str], concurrency: int
) -> list[Row]:
    """Return a row for each of ours and each peer: all take turns, and medians are compared."""
    sides: Mapping[str, tuple[str, str]] = {
        **OURS,
        **{peer: ("bench._peers_queue", peer) for peer in peers},
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, side in sides.items():
            taken[name].append(await measure(side, concurrency) * 1000 / TICKETS)
    median = {name: statistics.median(some) for name, some in taken.items()}
    return [
        against_floor(
            f"{where}, {concurrency} at once, {own} against {peer}",
            median[own],
            median[peer],
            AIMS[peer],
            measure="processor",
            against=peer,
        )
        for own in OURS
        for peer in peers
    ]


async def run() -> Sequence[Row]:
    rows: list[Row] = []
    with PrivatePostgres(settings=DURABLE) as server:
        measure = on_postgres(server)
        for concurrency in (1, 8):
            peers = ("procrastinate", "pgqueuer")
            rows += await compare("PostgreSQL", measure, peers, concurrency)
    with tempfile.TemporaryDirectory(prefix="midwatch-bench-") as folder:
        rows += await compare("SQLite", on_sqlite(Path(folder)), ("huey",), 1)
    return rows
