"""A `midwatch serve` of its own for a benchmark, on a SQLite file."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

DURABLE = {"fsync": True, "synchronous_commit": True, "full_page_writes": True}
"""Settings of a `PrivatePostgres` that loses no commit when the machine loses power, as a real server is set."""


@contextlib.asynccontextmanager
async def serving(
    folder: Path, more: Mapping[str, Any] | None = None
) -> AsyncIterator[tuple[int, int]]:
    """Serve from `folder`, with a subject that takes alerts and `more` settings. Yields the port and the id of the process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    settings = {
        "server": {"listen": f"127.0.0.1:{port}"},
        "subjects": [
            {
                "name": "team",
                "kind": "alerts",
                "sender": "alertmanager",
                "most_tickets": 100_000,
            }
        ],
        **(more or {}),
    }
    (folder / "midwatch.yaml").write_text(json.dumps(settings))
    program = str(Path(sys.executable).with_name("midwatch"))
    with running(folder, [program, "serve"]) as pid:
        await reachable(port)
        yield port, pid


@contextlib.contextmanager
def running(folder: Path, command: Sequence[str], *files: int) -> Iterator[int]:
    """Run a command while the block runs. Yields the id of its process."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, pass_fds=files
        )
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()


async def reachable(port: int) -> None:
    """Wait until something listens on a port of loopback."""
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return
