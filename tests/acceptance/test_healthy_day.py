"""A day of the monitor on a healthy set of all kinds opens no ticket."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest

from midwatch.monitor.loop import MonitorLoop
from midwatch.settings import MonitorSettings
from midwatch.store.protocol import TicketFilter
from midwatch.store.sql import open_store
from midwatch.subjects.base import Subject, build_subjects
from midwatch.testing.fakes import ManualClock
from midwatch.testing.postgres import PrivatePostgres

from ..waiting import PATIENCE, wait_until

DAY = 24 * 3600.0
STEP = 900.0  # seconds; longer than the longest `for` of the defaults
RULES = """
groups:
  - name: g
    rules:
      - {alert: Never, expr: vector(0) > 1}
      - {alert: Watchdog, expr: vector(1), labels: {severity: none}}
"""


class Fine(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"status": "ok"}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def web() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Fine)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@contextlib.contextmanager
def prometheus(folder: Path) -> Iterator[int | None]:
    """Run Debian's Prometheus on a free port; None where it is not installed."""
    program = shutil.which("prometheus")
    if program is None:
        yield None
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "rules.yml").write_text(RULES)
    (folder / "prometheus.yml").write_text(
        "global: {evaluation_interval: 1s, scrape_interval: 1s}\nrule_files: [rules.yml]\n"
        f"scrape_configs: [{{job_name: self, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]\n"
    )
    command = [
        program,
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
        try:
            wait_until(lambda: _scraped(port))
            yield port
        finally:
            process.kill()


def _scraped(port: int) -> bool:
    """Return whether Prometheus has scraped itself and evaluated its rules."""
    from urllib.request import urlopen

    def get(path: str) -> Any:
        with urlopen(
            f"http://127.0.0.1:{port}/api/v1/{path}", timeout=PATIENCE
        ) as answer:
            return json.load(answer)["data"]

    try:
        rules = get("rules")["groups"][0]["rules"]
        return bool(get("query?query=up")["result"]) and all(
            rule["health"] == "ok" for rule in rules
        )
    except (OSError, LookupError, ValueError):
        return False


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[list[dict[str, Any]]]:
    """One subject of each kind, as the page docs/subjects.md sets them up."""
    with PrivatePostgres(tcp=True) as server, web() as port, prometheus(tmp_path) as p:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute("CREATE ROLE midwatch LOGIN PASSWORD 'x'")
            admin.execute("GRANT pg_monitor TO midwatch")
            admin.execute("CREATE TABLE stock (id int PRIMARY KEY, n int)")
            admin.execute("INSERT INTO stock SELECT g, 0 FROM generate_series(1, 99) g")
        written: list[dict[str, Any]] = [
            {
                "name": "db",
                "kind": "postgres",
                "dsn": server.dsn("postgres", "midwatch"),
            },
            {
                "name": "shop",
                "kind": "http",
                "url": f"http://127.0.0.1:{port}/health",
                "body_matches": '"status": *"ok"',
            },
            {
                "name": "box",
                "kind": "host",
                "processes": [{"name": "postgres", "min": 2}],
                # That of the machine that runs the tests is not the question here.
                "invariants": {
                    "load": {"limit": 10_000},
                    "disk": {"limit": "100%"},
                    "memory": {"limit": "0.01%"},
                    "swap": {"limit": "100%"},
                },
            },
            {
                "name": "backups",
                "kind": "command",
                "command": ["/bin/echo", '{"violations": []}'],
            },
        ]
        if p is not None:
            rule = {"name": "up", "expr": "up", "below": 1, "component": ["job"]}
            url = f"http://127.0.0.1:{p}"
            one = {"name": "metrics", "kind": "prometheus", "url": url, "rules": [rule]}
            written.append(one)
        yield [{**one, "timeout": "60s"} for one in written]


async def test_a_day_on_a_healthy_set_of_all_kinds_opens_no_ticket(
    settings: list[dict[str, Any]], tmp_path: Path, clock: ManualClock
) -> None:
    store = await open_store(f"sqlite:///{tmp_path}/day.db", clock=clock.database)
    for _ in range(2):  # the second half after a restart
        subjects: list[Subject] = build_subjects(settings)
        rules = MonitorSettings(unobservable_after=1)
        loop = MonitorLoop(store, subjects, rules, clock=clock)
        for _ in range(int(DAY / STEP / 2)):
            cycle = await loop.cycle()
            assert (cycle.subjects, cycle.unsaved) == (len(settings), 0)
            found = await store.tickets(TicketFilter())
            assert [f"{one.key}: {one.message}" for one in found] == []
            assert cycle.unobservable == 0
            await clock.advance(STEP)
        await loop.close()
    for subject in build_subjects(settings):
        observation = await subject.observe({})
        assert not observation.unavailable, subject.name
        await subject.close()
    await store.close()
