"""A real `midwatch serve` on loopback for a test, and a client that hides nothing of HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from ..processes import start
from ..waiting import PATIENCE
from .cli import MIDWATCH, environ


@dataclass(frozen=True, slots=True)
class Running:
    """A running server.

    Attributes:
        url: Without a path.
        pid: Of its process.
        http: A client of it.
        log_file: What the process wrote.
    """

    url: str
    pid: int
    http: httpx2.Client
    log_file: Path

    def log(self) -> list[dict[str, Any]]:
        """Return the lines of the log so far."""
        return [json.loads(line) for line in self.log_file.read_text().splitlines()]


@contextmanager
def server_process(
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    command: str = "serve",
    env: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """Run the server in `folder` with these settings while the block runs; its database is there too.

    Args:
        folder: Where it runs.
        settings: Written to its `midwatch.yaml`; `server.listen` is a free port of loopback unless they say more.
        command: `serve` or `up`.
        env: More variables of its environment.
    """
    written = dict(settings or {})
    written["server"] = {"listen": "127.0.0.1:0", **written.get("server", {})}
    (folder / "midwatch.yaml").write_text(json.dumps(written))
    log_file = folder / "server.log"
    with log_file.open("wb") as log:
        process = start(
            [MIDWATCH, command],
            cwd=folder,
            env=environ(folder, **(env or {})),
            stdout=log,
            stderr=log,
        )
    try:
        url = _address(process, log_file)
        with httpx2.Client(base_url=url, timeout=PATIENCE) as http:
            yield Running(url, process.pid, http, log_file)
        process.terminate()
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait(PATIENCE)


def _address(process: Any, log_file: Path) -> str:
    """Wait until the server says where it listens."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for line in log_file.read_text().splitlines():
            if line.startswith("{") and "server started" in line:
                return str(json.loads(line)["address"])
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise AssertionError(log_file.read_text())
