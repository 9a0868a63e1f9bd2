"""Five hundred browsers on the live page: how soon all see a change, and what the server needs of memory."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from midwatch.model import Key, Severity, Violation
from midwatch.store.protocol import Opening
from midwatch.store.sql import open_store

from ._server import serving
from .report import Row, against_bound

BROWSERS, CHANGES = 500, 10


async def run() -> Sequence[Row]:
    """Return the rows. Another process than the server makes the changes. Takes about half a minute."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with serving(folder) as (port, pid), contextlib.AsyncExitStack() as stack:
            store = await open_store(f"sqlite:///{folder / 'midwatch.db'}")
            stack.push_async_callback(store.close)
            await store.open_ticket(_opening(0), "bench")
            readers = await asyncio.gather(
                *(_browser(port, stack) for _ in range(BROWSERS))
            )
            seconds = []
            for number in range(1, CHANGES + 1):
                waiting = [asyncio.create_task(_change(reader)) for reader in readers]
                began = time.perf_counter()
                await store.open_ticket(_opening(number), "bench")
                await asyncio.gather(*waiting)
                seconds.append(time.perf_counter() - began)
            memory = psutil.Process(pid).memory_info().rss / 1e6
    return [
        against_bound(
            f"change seen by {BROWSERS} browsers, slowest of {CHANGES}",
            max(seconds),
            1,
            "s",
        ),
        against_bound(
            f"change seen by {BROWSERS} browsers, median",
            statistics.median(seconds),
            1,
            "s",
        ),
        against_bound(f"memory with {BROWSERS} open pages", memory, 150, "MB"),
    ]


def _opening(number: int) -> Opening:
    key = Key("team", "host_down", f"host-{number}")
    return Opening(Violation(key, Severity.WARNING, f"host-{number} does not answer"))


async def _browser(port: int, stack: contextlib.AsyncExitStack) -> asyncio.StreamReader:
    """Open the stream of changes, as a page does."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    stack.callback(writer.close)
    writer.write(
        b"GET /changes HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: text/event-stream\r\n\r\n"
    )
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    return reader


async def _change(reader: asyncio.StreamReader) -> None:
    while b"event: " not in await reader.readline():
        pass
