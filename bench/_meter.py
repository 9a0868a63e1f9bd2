"""What work costs: wall time, and processor time of every process that takes part.

A server that the benchmark started takes part too: PostgreSQL with its backends, a scripted API, a worker. So
whatever a side leaves to others is still on its bill.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

LIMIT = 300.0
"""Seconds that a command may take."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of `wall` and `processor` time, and `memory` of the largest process in megabytes (0 if not measured)."""

    wall: float
    processor: float = 0.0
    memory: float = 0.0


def children_seconds() -> float:
    """Return the processor time of all that this process started, whether alive or waited for; in steps of 10 ms."""
    used = sum(os.times()[2:4])
    for process in psutil.Process().children(recursive=True):
        try:
            used += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:  # ended since: it is on its parent's bill
            pass
    return used


class Meter:
    """`with Meter() as meter: …` measures the block; then `meter.cost` holds what it cost."""

    cost: Cost

    def __enter__(self) -> Self:
        # Looking at the others costs time itself, which is not measured.
        self._others = children_seconds()
        self._own = time.process_time()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *failed: object) -> None:
        wall = time.perf_counter() - self._began
        own = time.process_time() - self._own
        self.cost = Cost(wall, own + children_seconds() - self._others)


async def command_cost(
    *command: str, cwd: Path, env: Mapping[str, str] | None = None, limit: float = LIMIT
) -> Cost:
    """Run a command in a process session of its own, and wait for all that it started.

    Both sides of a pair are started this way, so that the scheduler treats them alike (it shares the processor out
    among process sessions). The processor time is exact, not counted in ticks.

    Raises:
        RuntimeError: It failed, or took more than `limit` seconds.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(Path(__file__).with_name("_command.py"))),
        *command,
        cwd=cwd,
        env=dict(env) if env is not None else plain_environment(cwd),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(limit):
            said, errors = await process.communicate()
    except TimeoutError:
        process.terminate()  # its subprocesses end with it
        await process.communicate()
        raise RuntimeError(f"{command} took more than {limit:g} s") from None
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}: {errors!r}")
    return Cost(**json.loads(said))


def plain_environment(home: Path) -> dict[str, str]:
    """Return the environment of a command that sees nothing of the caller's settings."""
    path = os.environ.get("PATH", os.defpath)
    return {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8"}
