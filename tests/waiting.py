"""How long tests wait, and how: for a state, with one generous deadline."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from midwatch.lifecycle import SystemClock
from midwatch.monitor.standstill import Standstill

PATIENCE = 90.0
"""Seconds that anything awaited may take on a machine that is busy with other work.

Correct code needs far less. A test that shows that a wait ends early uses a wait of ten minutes
or without an end, so that a fault takes longer than this.
"""


PATIENT = {"connect_timeout": 20, "statement_timeout": 20}
"""Settings of a subject whose server answers in time, also on such a machine."""


class LeapingClock(SystemClock):
    """The machine's clock, which a test sets ahead instead of waiting."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self._ahead

    def leap(self, seconds: float) -> None:
        self._ahead += seconds


class ScriptedStandstill(Standstill):
    """The process stands still as the test says, on the clock of the test."""

    def start(self) -> None:
        pass

    def _count(self) -> None:
        pass

    def stand(self, seconds: float) -> None:
        self._late += seconds
        if seconds >= 5:
            self._settled = self._monotonic() + min(seconds, 30)


def wait_until(condition: Callable[[], bool], timeout: float = PATIENCE) -> None:
    """Return once `condition` is true. Raises TimeoutError after `timeout` seconds.

    It is asked every 10 ms, and less often if to ask takes long: what is awaited has most of the processor.
    """
    deadline = time.monotonic() + timeout
    while True:
        began = time.monotonic()
        if condition():
            return
        if (now := time.monotonic()) > deadline:
            raise TimeoutError(f"not true after {timeout:g} s")
        time.sleep(min(max(0.01, 9 * (now - began)), 0.5))


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z" and os.path.exists(f"/proc/{pid}")
