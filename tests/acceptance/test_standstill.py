"""A real process that is stopped during its polls finds nothing wrong with a server that is well."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ..processes import Midwatch
from ..waiting import PATIENCE, wait_until
from .cli import environ

STOPPED = 3.0  # seconds; longer than the subject's timeout


class Freezer(ThreadingHTTPServer):
    """A server that is well, and stops its client while that waits for the answer, `times` times."""

    def __init__(self, times: int) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.times = times
        self.pid: int | None = None
        self.known = threading.Event()
        self.lock = threading.Lock()

    def freeze(self) -> None:
        self.known.wait(PATIENCE)
        with self.lock:
            if self.times == 0 or self.pid is None:
                return
            self.times -= 1
            os.kill(self.pid, signal.SIGSTOP)
            time.sleep(STOPPED)  # that is what happens, not a wait for it
            os.kill(self.pid, signal.SIGCONT)


class Answer(BaseHTTPRequestHandler):
    server: Freezer

    def do_GET(self) -> None:
        self.server.freeze()
        time.sleep(0.2)  # the timeout of a client that was stopped runs out before
        with contextlib.suppress(OSError):
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def freezer(request: pytest.FixtureRequest) -> Iterator[Freezer]:
    with Freezer(request.param) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


def start(folder: Path, server: Freezer, *command: str) -> Midwatch:
    subject = {
        "name": "shop",
        "kind": "http",
        "timeout": "2s",
        "url": f"http://127.0.0.1:{server.server_port}/",
    }
    settings = {
        "database": f"sqlite:///{folder}/m.db",
        "monitor": {"interval": "200ms", "unobservable_after": 1},
        "subjects": [subject],
    }
    (folder / "midwatch.yaml").write_text(json.dumps(settings))
    with (folder / "out").open("w") as out:
        process = Midwatch(
            command, cwd=folder, env=environ(folder), stdout=out, stderr=out
        )
    server.pid = process.pid
    server.known.set()
    return process


@pytest.mark.parametrize("freezer", [2], indirect=True)
def test_a_monitor_that_was_stopped_opens_no_ticket(
    freezer: Freezer, tmp_path: Path
) -> None:
    with start(tmp_path, freezer, "monitor") as process:
        try:
            wait_until(lambda: freezer.times == 0)
            before = _cycles(tmp_path)
            wait_until(lambda: _cycles(tmp_path) >= before + 3)
        finally:
            process.kill()
    events = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [one for one in events if one["event"] == "ticket opened"] == []


def _cycles(folder: Path) -> int:
    return (folder / "out").read_text().count('"event": "cycle"')


@pytest.mark.parametrize("freezer", [1], indirect=True)
def test_a_check_that_was_stopped_is_made_again(
    freezer: Freezer, tmp_path: Path
) -> None:
    with start(tmp_path, freezer, "check") as process:
        assert process.wait(PATIENCE) == 0, (tmp_path / "out").read_text()
    assert "✔ subject shop (http): observed" in (tmp_path / "out").read_text()
    assert freezer.times == 0
