"""Many monitors that share many subjects, some of which are killed while others join: who is looked at, and how often.

The subjects are pages of one server, which notes each request. A subject may be asked more than once an interval only where
it changes hands: after a monitor was killed or has joined.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path

from midwatch.store.protocol import TicketFilter
from midwatch.store.sql import open_store
from midwatch.store.upgrade import upgrade_database
from midwatch.testing.postgres import PrivatePostgres

from ._server import DURABLE, running
from .report import Row, against_bound, sized

MONITORS, SUBJECTS, KILLS = sized((20, 2000, 3), (3, 60, 1))
INTERVAL, LEASE = sized((20.0, 30.0), (1.0, 4.0))
"""Seconds."""
STILL = 3 * INTERVAL
"""Seconds without a kill, once each monitor has its share again."""
BROKEN_EACH = 20
"""Each subject of so many is broken."""
PATIENCE = 300.0
"""Seconds until all monitors have started and all subjects are watched."""
Looks = dict[int, list[float]]
"""When each subject was looked at, in seconds of the monotonic clock."""


async def run() -> Sequence[Row]:
    """Return how long a subject went without a look, and what was done twice."""
    with (
        tempfile.TemporaryDirectory(prefix="midwatch-bench-") as folder,
        PrivatePostgres(settings={**DURABLE, "max_connections": 300}) as database,
    ):
        await upgrade_database(database.dsn())
        looks: Looks = defaultdict(list)
        async with _pages(looks) as port:
            began, still = await _watch(Path(folder), database.dsn(), port, looks)
        store = await open_store(database.dsn())
        tickets = await store.tickets(TicketFilter(limit=2 * SUBJECTS))
        await store.close()
    ended = time.monotonic()
    times = {
        subject: [one for one in found if one >= began - INTERVAL]
        for subject, found in looks.items()
    }
    gaps = [b - a for found in times.values() for a, b in pairwise([*found, ended])]
    most = round(STILL / INTERVAL) + 1
    extra = sum(
        max(0, sum(since <= one < since + STILL for one in found) - most)
        for since in still
        for found in looks.values()
    )
    title = f"{MONITORS} monitors, {KILLS} killed"
    keys = {one.key for one in tickets}
    bound = LEASE + INTERVAL
    return [
        against_bound(f"{title}: longest time without a look", max(gaps), bound, "s"),
        against_bound(f"{title}: looks at what another looks at", extra, 0, "looks"),
        against_bound(
            f"{title}: tickets doubled", len(tickets) - len(keys), 0, "tickets"
        ),
        against_bound(
            f"{title}: broken subjects without a ticket",
            -(-SUBJECTS // BROKEN_EACH) - len(keys),
            0,
            "subjects",
        ),
    ]


@contextlib.asynccontextmanager
async def _pages(looks: Looks) -> AsyncIterator[int]:
    """Serve a page for each subject. Yields the port."""

    async def answer(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with (
            contextlib.suppress(OSError, asyncio.IncompleteReadError),
            contextlib.closing(writer),
        ):
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                number = int(request.split(b" ", 2)[1].lstrip(b"/"))
                looks[number].append(time.monotonic())
                status = b"200 OK" if number % BROKEN_EACH else b"503 Unavailable"
                writer.write(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % status)

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def _watch(
    folder: Path, database: str, port: int, looks: Looks
) -> tuple[float, list[float]]:
    """Return since when all is shared, and when each stretch of `STILL` seconds began."""
    address = f"http://127.0.0.1:{port}"
    settings = {
        "database": database,
        "monitor": {"interval": f"{INTERVAL}s", "lease": f"{LEASE}s"},
        "subjects": [
            {"name": f"page-{number}", "kind": "http", "url": f"{address}/{number}"}
            for number in range(SUBJECTS)
        ],
    }
    (folder / "midwatch.yaml").write_text(json.dumps(settings))
    chance, still = random.Random(20), list[float]()
    program = str(Path(sys.executable).with_name("midwatch"))
    with contextlib.ExitStack() as stack:

        def monitor() -> int:
            return stack.enter_context(running(folder, [program, "monitor"]))

        pids = [monitor() for _ in range(MONITORS)]
        await _shared(database)
        began = time.monotonic()
        for _ in range(KILLS):
            await asyncio.sleep(chance.uniform(0, INTERVAL))
            os.kill(pids.pop(chance.randrange(len(pids))), signal.SIGKILL)
            await asyncio.sleep(LEASE + INTERVAL)
            pids.append(monitor())
            await _shared(database)
            await asyncio.sleep(LEASE + INTERVAL)
            still.append(time.monotonic())
            await asyncio.sleep(STILL)
    return began, still


async def _shared(database: str) -> None:
    """Wait until each subject has a monitor, and each monitor its share."""
    store = await open_store(database)
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                shares: dict[str | None, int] = defaultdict(int)
                for state in await store.subject_states():
                    shares[state.watcher] += 1
                even = max(shares.values(), default=0) <= -(-SUBJECTS // MONITORS)
                if even and None not in shares and sum(shares.values()) == SUBJECTS:
                    return
                await asyncio.sleep(0.5)
    finally:
        await store.close()
