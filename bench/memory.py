"""Resident memory of idle daemons, against a worker of procrastinate that is idle in the same run.

Without procrastinate (`pip install procrastinate`) there is nothing to compare with. The database is there already: a
first start also holds the migrations' tool, 11 MB more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import psutil

from midwatch.store.sql import open_store
from midwatch.testing.fakes import KEY
from midwatch.testing.postgres import PrivatePostgres

from .report import Row, against_floor, sized

ROUNDS = sized(3, 1)
SETTLE = sized(4.0, 1.0)  # seconds after the line that says that it has started
DAEMONS = (
    ("monitor", "cycle", 1.25),
    ("agent", "agent started", 1.5),
    ("up", "cycle", 1.5),
)
"""Commands, the event after which they are idle, and how many times the memory of the worker they may take."""
_SECONDS = 60.0  # longest wait for that event
_WORKER = """
import asyncio, sys, procrastinate
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=sys.argv[1]))
async def main():
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        print('"started"', flush=True)
        await app.run_worker_async(concurrency=1)
asyncio.run(main())
"""


async def run() -> Sequence[Row]:
    if find_spec("procrastinate") is None:
        return []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        midwatch = str(Path(sys.executable).with_name("midwatch"))
        await (await open_store(f"sqlite:///{folder / 'midwatch.db'}")).close()
        # Nothing that could break, so that all are idle.
        command = json.dumps(["echo", json.dumps({"violations": []})])
        subject = f"{{name: job, kind: command, command: {command}}}"
        (folder / "midwatch.yaml").write_text(
            f"monitor: {{interval: 500ms}}\nmetrics: {{port: null}}\nsubjects: [{subject}]\n"
        )
        values: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            with PrivatePostgres() as server:
                worker = (sys.executable, "-c", _WORKER, server.dsn())
                floor = await _idle(folder, '"started"', *worker)
            values.setdefault("worker", []).append(floor)
            for daemon, event, _ in DAEMONS:
                value = await _idle(folder, f'"{event}"', midwatch, daemon)
                values.setdefault(daemon, []).append(value)
        floor = statistics.median(values["worker"])
        return [
            against_floor(
                f"idle {command}: resident memory / worker of procrastinate",
                statistics.median(values[command]),
                floor,
                at_most,
                "MB",
            )
            for command, _, at_most in DAEMONS
        ]


async def _idle(folder: Path, event: str, *command: str) -> float:
    """Return the megabytes of a process some time after it has printed a line with this event."""
    async with _started(folder, *command) as process:
        assert process.stdout is not None
        async with asyncio.timeout(_SECONDS):
            while event.encode() not in (line := await process.stdout.readline()):
                if not line:
                    raise RuntimeError(f"{' '.join(command[:2])} ended")
        await asyncio.sleep(SETTLE)
        return float(psutil.Process(process.pid).memory_info().rss) / 1e6


@contextlib.asynccontextmanager
async def _started(folder: Path, *command: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={
            "PATH": os.defpath,
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "ANTHROPIC_API_KEY": KEY,
        },
        stdin=PIPE,
        stdout=PIPE,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.communicate()
