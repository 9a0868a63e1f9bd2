"""`midwatch up` with 200 and with 2,000 http and 20 postgres subjects, against the same GETs and SELECTs by httpx2 and psycopg alone.

Both run in processes of their own, one after the other, and their processor time counts. The servers that they watch
are real: one of HTTP on loopback, and a PostgreSQL with its own cluster.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from midwatch.testing.postgres import PrivatePostgres

from ._server import running
from .report import Row, against_bound, against_floor, sized

POSTGRES = 20
INTERVALS = sized({200: 10.0, 2_000: 20.0}, {200: 3.0})
"""Seconds between two polls of a subject, by the number of pages."""
ROUNDS = 3
MOST_FROZEN_MS, MOST_P99_MS, MOST_MB, MOST_RATIO = 50.0, 20.0, 100.0, 2.0


async def run() -> Sequence[Row]:
    return [
        row for pages, interval in INTERVALS.items() for row in _run(pages, interval)
    ]


def _run(pages: int, interval: float) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="midwatch-bench-") as name:
        folder = Path(name)
        with (
            socket.create_server(("127.0.0.1", 0), backlog=500) as listening,
            PrivatePostgres() as server,
        ):
            os.set_inheritable(listening.fileno(), True)
            number = listening.fileno()
            with running(folder, [*_from_here(), "answer", str(number)], number):
                _write(
                    folder, pages, interval, listening.getsockname()[1], server.dsn()
                )
                ours = _measure(folder, interval, "ours")
                bare = _measure(folder, interval, "bare", "watched.json")
    return _rows(pages, ours, bare)


def _rows(pages: int, ours: Any, bare: Any) -> list[Row]:
    what = f"up, {pages:,} http and {POSTGRES} postgres subjects"
    most = MOST_MB if pages == min(INTERVALS) else None
    taken, least = (statistics.median(one["steady"]) for one in (ours, bare))
    return [
        against_bound(
            f"{what}: start, loop frozen", ours["frozen"] * 1000, MOST_FROZEN_MS, "ms"
        ),
        Row(
            f"{what}: start, processor time",
            ours["start"],
            bare["start"],
            ours["start"] / bare["start"],
            "",
            True,
            "s",
        ),
        against_floor(
            f"{what}: a cycle, processor time, against GETs and SELECTs",
            taken * 1000,
            least * 1000,
            MOST_RATIO,
        ),
        against_bound(
            f"{what}: steady, loop late, p99", ours["p99"] * 1000, MOST_P99_MS, "ms"
        ),
        against_bound(
            f"{what}: steady, loop frozen",
            ours["frozen_steady"] * 1000,
            MOST_FROZEN_MS,
            "ms",
        ),
        against_bound(f"{what}: memory", ours["memory"], most, "MB"),
    ]


def _from_here() -> list[str]:
    """Return a command that runs the child from any folder."""
    root = str(Path(__file__).parent.parent)
    code = f"import sys; sys.path.insert(0, {root!r}); import runpy; runpy.run_module('bench._up_child', run_name='__main__', alter_sys=True)"
    return [sys.executable, "-c", code]


def _write(folder: Path, pages: int, interval: float, port: int, dsn: str) -> None:
    """Write the settings of what watches, and the list of what is watched."""
    urls = [f"http://127.0.0.1:{port}/{one}" for one in range(pages)]
    subjects = [
        *(
            {"name": f"web-{at}", "kind": "http", "url": url}
            for at, url in enumerate(urls)
        ),
        *(
            {"name": f"db-{at}", "kind": "postgres", "dsn": dsn}
            for at in range(POSTGRES)
        ),
    ]
    settings = {
        "database": "sqlite:///midwatch.db",
        "monitor": {"interval": f"{interval:g}s"},
        "subjects": subjects,
    }
    (folder / "midwatch.yaml").write_text(json.dumps(settings))
    watched = {"http": urls, "postgres": [dsn] * POSTGRES}
    (folder / "watched.json").write_text(json.dumps(watched))


def _measure(folder: Path, interval: float, what: str, *more: str) -> Any:
    done = subprocess.run(
        [*_from_here(), what, str(interval), str(ROUNDS), *more],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=interval * (ROUNDS + 1) + 120,
    )
    return json.loads(done.stdout.splitlines()[-1])
