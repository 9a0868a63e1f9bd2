"""Resident memory of an idle `midwatch monitor`, against a Python that does nothing.

The database is there already: a first start also holds the migrations' tool, 11 MB more.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from midwatch.store.sql import open_store
from midwatch.testing.postgres import PrivatePostgres

from .report import Row

CYCLES = 6
AIM = 60.0  # MB
_SECONDS = 60.0  # longest wait for that many cycles


async def run() -> Sequence[Row]:
    with tempfile.TemporaryDirectory() as name, PrivatePostgres() as server:
        folder = Path(name)
        midwatch = str(Path(sys.executable).with_name("midwatch"))
        floor = await _bare(folder)
        await (await open_store(f"sqlite:///{folder / 'midwatch.db'}")).close()
        rows = []
        for what, subjects in (
            ("host", "- {name: box, kind: host}\n"),
            (
                "host and postgres",
                "- {name: box, kind: host}\n"
                f"- {{name: db, kind: postgres, dsn: '{server.dsn()}'}}\n",
            ),
        ):
            (folder / "midwatch.yaml").write_text(
                f"monitor: {{interval: 500ms}}\nsubjects:\n{subjects}"
            )
            value = await _monitor(folder, midwatch)
            rows.append(
                Row(
                    f"idle monitor, {what}: resident memory",
                    value,
                    floor,
                    value / floor,
                    f"≤ {AIM:g} MB",
                    value <= AIM,
                    "MB",
                )
            )
        return rows


async def _bare(folder: Path) -> float:
    program = "import sys; print('here', flush=True); sys.stdin.read()"
    async with _started(folder, sys.executable, "-c", program) as process:
        assert process.stdout is not None
        await process.stdout.readline()
        return _resident(process)


async def _monitor(folder: Path, midwatch: str) -> float:
    """Return the megabytes after some cycles; the first one opens the tickets."""
    async with _started(folder, midwatch, "monitor") as process:
        assert process.stdout is not None
        seen = 0
        async with asyncio.timeout(_SECONDS):
            while seen < CYCLES:
                line = await process.stdout.readline()
                if not line:
                    raise RuntimeError("the monitor ended")
                seen += b'"cycle"' in line
        return _resident(process)


def _resident(process: Process) -> float:
    return float(psutil.Process(process.pid).memory_info().rss) / 1e6


@asynccontextmanager
async def _started(folder: Path, *command: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={"PATH": os.defpath, "HOME": str(folder), "LANG": "C.UTF-8"},
        stdin=PIPE,
        stdout=PIPE,
    )
    try:
        yield process
    finally:
        process.terminate()
        await process.communicate()
