"""Debian's Prometheus and Alertmanager on loopback, with a rule that a test makes fire."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from ..waiting import PATIENCE, wait_until

MISSING = [
    name
    for name in ("prometheus", "prometheus-alertmanager")
    if shutil.which(name) is None
]
_RULES = """
groups:
- name: test
  interval: 200ms
  rules:
  - alert: Watchdog
    expr: vector(1)
    labels: {severity: none}
  - alert: DiskFull
    expr: fault == 1
    labels: {severity: critical}
    annotations: {summary: "{{ $labels.disk }} is full", runbook_url: "https://runbooks.example/disk"}
"""
_PROMETHEUS = """
global: {{scrape_interval: 200ms, evaluation_interval: 200ms, external_labels: {{cluster: east, replica: a}}}}
rule_files: [rules.yml]
scrape_configs: [{{job_name: faults, static_configs: [{{targets: ['127.0.0.1:{faults}']}}]}}]
alerting:
  alert_relabel_configs: [{{action: labeldrop, regex: replica}}, {{target_label: site, replacement: berlin}}]
  alertmanagers: [{{static_configs: [{{targets: ['127.0.0.1:{manager}']}}]}}]
"""
_ALERTMANAGER = """
route: {{receiver: midwatch, group_by: [alertname], group_wait: 100ms, group_interval: 500ms, repeat_interval: 1s}}
receivers:
- name: midwatch
  webhook_configs: [{{url: '{url}', send_resolved: true, max_alerts: 0}}]
"""


@dataclass
class Alerting:
    """The two programs. A disk in `full` makes the rule DiskFull fire for it."""

    folder: Path
    faults: int
    manager: int
    prometheus: int
    full: set[str] = field(default_factory=set)
    disks: set[str] = field(default_factory=set)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def prometheus_url(self) -> str:
        return f"http://127.0.0.1:{self.prometheus}"

    @property
    def manager_url(self) -> str:
        return f"http://127.0.0.1:{self.manager}"

    def break_disk(self, *disks: str) -> None:
        self.disks |= {*disks}
        self.full |= {*disks}

    def start_prometheus(self) -> None:
        self._start(
            "prometheus",
            "prometheus",
            "--config.file=prometheus.yml",
            f"--storage.tsdb.path={self.folder}/data",
            f"--web.listen-address=127.0.0.1:{self.prometheus}",
            "--rules.alert.resend-delay=5s",
        )

    def start_manager(self, webhook: str) -> None:
        (self.folder / "alertmanager.yml").write_text(_ALERTMANAGER.format(url=webhook))
        self._start(
            "manager",
            "prometheus-alertmanager",
            "--config.file=alertmanager.yml",
            f"--storage.path={self.folder}/manager",
            f"--web.listen-address=127.0.0.1:{self.manager}",
            "--cluster.listen-address=",
        )

    def stop(self, name: str) -> None:
        process = self.running.pop(name)
        process.kill()
        process.wait(PATIENCE)

    def silence(self, disk: str) -> str:
        """Silence a disk for an hour. Return the id of the silence."""
        now = datetime.now(UTC)
        body = {
            "matchers": [
                {"name": "disk", "value": disk, "isRegex": False, "isEqual": True}
            ],
            "startsAt": (now - timedelta(seconds=1)).isoformat(),
            "endsAt": (now + timedelta(hours=1)).isoformat(),
            "createdBy": "ada",
            "comment": "it is being replaced",
        }
        return str(self._call("POST", "silences", body)["silenceID"])

    def unsilence(self, silence: str) -> None:
        self._call("DELETE", f"silence/{silence}")

    def ready(self) -> bool:
        """Return whether Alertmanager knows the heartbeat alert."""
        return self.state(alertname="Watchdog") != ""

    def state(self, **labels: str) -> str:
        """Return the state of an alert at Alertmanager; empty if it has none with these labels."""
        try:
            found = self._call("GET", "alerts")
        except OSError:
            return ""
        states = (
            one["status"]["state"]
            for one in found
            if labels.items() <= one["labels"].items()
        )
        return next(states, "")

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        request = Request(
            f"{self.manager_url}/api/v2/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        with urlopen(request, timeout=PATIENCE) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def _start(self, name: str, program: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [program, *arguments], cwd=self.folder, stdout=log, stderr=log
            )


@contextlib.contextmanager
def alerting(folder: Path, webhook: str, manager: int) -> Iterator[Alerting]:
    """Run both programs until the end of the block; Alertmanager listens at a port and pushes to `webhook`."""
    folder.mkdir()
    stack = Alerting(folder, 0, manager, free_port())

    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            lines = [
                f'fault{{disk="{disk}"}} {int(disk in stack.full)}'
                for disk in sorted(stack.disks)
            ]
            body = "\n".join([*lines, ""]).encode()
            self.send_response(200)
            self.send_header("content-type", "text/plain; version=0.0.4")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Metrics)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    stack.faults = server.server_port
    (folder / "rules.yml").write_text(_RULES)
    (folder / "prometheus.yml").write_text(
        _PROMETHEUS.format(faults=stack.faults, manager=stack.manager)
    )
    try:
        stack.start_manager(webhook)
        stack.start_prometheus()
        wait_until(stack.ready)
        yield stack
    finally:
        for name in list(stack.running):
            stack.stop(name)
        server.shutdown()
        thread.join()
        server.server_close()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
