"""Alerts from the webhook to the durable ticket, against a bare Starlette handler that inserts one row.

Both are processes of their own on a SQLite file that is synchronized at each commit, and get the same requests over connections
that stay open. Every alert is a new one, so each opens a ticket.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ._server import reachable, running, serving
from .report import Row, against_bound, against_floor, paired

SENDERS = 8
GROUPS, OF_GROUP = 40, 100
REQUESTS, ROUNDS = 300, 5
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Load:
    """How a run went: its seconds, and those of each request."""

    seconds: float
    each: tuple[float, ...]


async def run() -> Sequence[Row]:
    """Return the rows. Takes about half a minute."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with serving(folder) as (ours, _), _bare(folder) as floor:
            singles: list[Load] = []

            async def ours_once() -> float:
                singles.append(await _load(ours, REQUESTS, 1))
                return singles[-1].seconds

            async def floor_once() -> float:
                return (await _load(floor, REQUESTS, 1)).seconds

            one, least = await paired(ours_once, floor_once, ROUNDS)
            groups = await _load(ours, GROUPS, OF_GROUP)
    taken = [each for single in singles[1:] for each in single.each]
    return [
        against_floor(
            "alert webhook, one alert a request",
            1000 * one / REQUESTS,
            1000 * least / REQUESTS,
            3.0,
        ),
        _at_least("alert webhook, requests a second", REQUESTS / one, 300),
        against_bound("alert webhook, p99 of a request", 1000 * _p99(taken), 50, "ms"),
        _at_least(
            "alert webhook, alerts a second in groups of 100",
            GROUPS * OF_GROUP / groups.seconds,
            2000,
        ),
    ]


def _p99(seconds: Sequence[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.99) - 1]


def _at_least(name: str, value: float, least: float) -> Row:
    return Row(name, value, None, None, f"≥ {least:g}", value >= least, "/s")


# ------------------------------------------------------------------ the load


async def _load(port: int, requests: int, alerts: int) -> Load:
    bodies = [_request(alerts) for _ in range(requests)]
    left = iter(bodies)
    taken: list[float] = []

    async def sender() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for body in left:
            began = time.perf_counter()
            writer.write(body)
            await _answer(reader)
            taken.append(time.perf_counter() - began)
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(sender() for _ in range(SENDERS)))
    return Load(time.perf_counter() - began, tuple(taken))


async def _answer(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    [length] = [
        int(line.split(b":")[1])
        for line in head.lower().splitlines()
        if line.startswith(b"content-length")
    ]
    await reader.readexactly(length)


def _request(alerts: int) -> bytes:
    body = json.dumps(
        {
            "version": "4",
            "groupKey": '{}:{alertname="HostDown"}',
            "truncatedAlerts": 0,
            "status": "firing",
            "receiver": "midwatch",
            "externalURL": "http://alertmanager.example",
            "alerts": [_alert(next(_numbers)) for _ in range(alerts)],
        }
    ).encode()
    head = (
        "POST /hooks/alertmanager HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _alert(number: int) -> dict[str, object]:
    return {
        "status": "firing",
        "labels": {
            "alertname": "HostDown",
            "cluster": "eu-1",
            "environment": "production",
            "instance": f"host-{number}:9100",
            "job": "node",
            "severity": "warning",
            "team": "platform",
        },
        "annotations": {
            "summary": f"host-{number} does not answer",
            "description": f"host-{number}:9100 of job node has been down for more than 5 minutes.",
            "runbook_url": "https://runbooks.example/host-down",
        },
        "startsAt": "2026-03-01T10:00:00.123Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus.example/graph?g0.expr=up+%3D%3D+0&g0.tab=1",
        "fingerprint": f"{number:016x}",
    }


# ------------------------------------------------------------------ the floor


@contextlib.contextmanager
def _listening() -> Iterator[tuple[int, int]]:
    """Yield the descriptor of a socket that listens, and its port."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        opened.listen(128)
        opened.set_inheritable(True)
        yield opened.fileno(), opened.getsockname()[1]


@contextlib.asynccontextmanager
async def _bare(folder: Path) -> AsyncIterator[int]:
    with _listening() as (descriptor, port):
        command = [
            sys.executable,
            str(Path(__file__).with_name("_bare_handler.py")),
            str(folder / "bare.db"),
            str(descriptor),
        ]
        with running(folder, command, descriptor):
            await reachable(port)
            yield port
