"""Short commands against a Python that does nothing, in processor time: `tickets list` on 10,000 tickets, and `--help`."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from midwatch.store.sql import open_store
from midwatch.testing.fakes import open_tickets

from .report import Round, Row, against_floor, paired

TICKETS = 10_000
ROUNDS = 11
COMMANDS = (
    ("tickets list, the first 50 of 10,000", ("tickets", "list"), 9.0),
    ("--help", ("--help",), 8.0),
)


async def run() -> Sequence[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        await _seed(folder)
        midwatch = str(Path(sys.executable).with_name("midwatch"))
        nothing = process(folder, sys.executable, "-c", "pass")
        rows = []
        for what, arguments, at_most in COMMANDS:
            ours = process(folder, midwatch, *arguments)
            taken, least = await paired(ours, nothing, ROUNDS)
            name = f"{what}: processor time / python -c pass"
            rows.append(against_floor(name, taken * 1000, least * 1000, at_most))
        return rows


async def _seed(folder: Path) -> None:
    (folder / "midwatch.yaml").write_text("database: sqlite:///midwatch.db\n")
    store = await open_store(f"sqlite:///{folder / 'midwatch.db'}")
    components = [f"component-{number}" for number in range(TICKETS)]
    await open_tickets(store, *components)
    await store.close()


def process(folder: Path, *command: str) -> Round:
    """Return a round that runs a command to its end, and returns its processor seconds."""

    def once() -> float:
        started = subprocess.Popen(
            command,
            cwd=folder,
            env={"PATH": os.defpath, "HOME": str(folder), "LANG": "C.UTF-8"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, used = os.wait4(started.pid, 0)
        started.returncode = os.waitstatus_to_exitcode(status)
        if started.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {started.returncode}")
        return used.ru_utime + used.ru_stime

    return lambda: asyncio.to_thread(once)
