"""Alerts from the webhook to the durable ticket, against a bare Starlette handler that inserts one row.

Both are processes of their own on a SQLite file that is synchronized at each commit, and get the same requests over connections
that stay open. Every alert is a new one, so each opens a ticket.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ._posts import Load, bare, load, p99, post
from ._server import serving
from .report import Row, against_bound, against_floor, paired

GROUPS, OF_GROUP = 40, 100
REQUESTS, ROUNDS = 300, 5
_numbers = itertools.count()


async def run() -> Sequence[Row]:
    """Return the rows. Takes about half a minute."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with serving(folder) as (ours, _), bare(folder) as floor:
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
        against_bound("alert webhook, p99 of a request", 1000 * p99(taken), 50, "ms"),
        _at_least(
            "alert webhook, alerts a second in groups of 100",
            GROUPS * OF_GROUP / groups.seconds,
            2000,
        ),
    ]


def _at_least(name: str, value: float, least: float) -> Row:
    return Row(name, value, None, None, f"≥ {least:g}", value >= least, "/s")


async def _load(port: int, requests: int, alerts: int) -> Load:
    return await load(port, [_request(alerts) for _ in range(requests)])


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
    return post("/hooks/alertmanager", body)


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
