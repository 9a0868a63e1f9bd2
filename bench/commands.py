"""`midwatch tickets list` on 10,000 tickets, against a Python that does nothing."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from midwatch.store.sql import open_store
from midwatch.testing.fakes import open_tickets

from .report import Round, Row, paired

TICKETS = 10_000
ROUNDS = 11
AIM = 300.0  # ms


async def run() -> Sequence[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        await _seed(folder)
        midwatch = str(Path(sys.executable).with_name("midwatch"))
        nothing = process(folder, sys.executable, "-c", "pass")
        listed = process(folder, midwatch, "tickets", "list")
        everything = process(folder, midwatch, "tickets", "list", "--limit", "10000")
        return [
            await _row("tickets list, the first 50 of 10,000", listed, nothing, AIM),
            await _row("tickets list, all 10,000 of them", everything, nothing, None),
        ]


async def _row(name: str, ours: Round, floor: Round, aim: float | None) -> Row:
    taken, least = (1000 * seconds for seconds in await paired(ours, floor, ROUNDS))
    target = "" if aim is None else f"≤ {aim:g} ms"
    return Row(name, taken, least, taken / least, target, aim is None or taken <= aim)


async def _seed(folder: Path) -> None:
    (folder / "midwatch.yaml").write_text("database: sqlite:///midwatch.db\n")
    store = await open_store(f"sqlite:///{folder / 'midwatch.db'}")
    components = [f"component-{number}" for number in range(TICKETS)]
    await open_tickets(store, *components)
    await store.close()


def process(folder: Path, *command: str) -> Round:
    """Return a round that runs a command to its end and drops its output."""

    async def once() -> float:
        began = time.perf_counter()
        started = await asyncio.create_subprocess_exec(
            *command,
            cwd=folder,
            env={"PATH": os.defpath, "HOME": str(folder), "LANG": "C.UTF-8"},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        if code := await started.wait():
            raise RuntimeError(f"{' '.join(command)} ended with {code}")
        return time.perf_counter() - began

    return once
