"""A cycle of the monitor over 10,000 components with 10,000 open tickets, on a SQLite file.

"Unchanged" sees the same 10,000 breaks again. "100 changes" sees 50 of them gone and 50 others
in their place. Reading the log of a cycle is not part of it: nobody listens.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from midwatch.model import Observation, Signal
from midwatch.monitor.loop import MonitorLoop
from midwatch.store.sql import open_store
from midwatch.testing.fakes import FakeSubject

from .report import Row, against_bound, against_floor

COMPONENTS = 10_000
CHANGED = 50
ROUNDS = 9
UNCHANGED_MS = 100.0
CHANGED_AIM = 3.0
"""A cycle with changes against an unchanged one: it costs what changed, not what there is."""


def _look(first: int) -> Observation:
    """Return a new observation with `COMPONENTS` broken components, from number `first` on."""
    signals = tuple(
        Signal("alive", f"pod-{number}", "it does not answer", holds=False)
        for number in range(first, first + COMPONENTS)
    )
    return Observation(signals, frozenset({"*"}))


async def _rounds(monitor: MonitorLoop, subject: FakeSubject, step: int) -> float:
    """Return the median milliseconds of a cycle in which `step` tickets resolve and as many open."""
    first = _first(monitor)
    times = []
    for number in range(1, ROUNDS + 1):
        subject.then(_look(first + number * step))
        start = time.perf_counter()
        cycle = await monitor.cycle()
        times.append(time.perf_counter() - start)
        assert (len(cycle.opened), cycle.resolved) == (step, step)
    return statistics.median(times) * 1000


def _first(monitor: MonitorLoop) -> int:
    return min(int(key.component[4:]) for key in monitor.watches[0].tickets)


async def run() -> Sequence[Row]:
    with tempfile.TemporaryDirectory(prefix="midwatch-bench-") as folder:
        store = await open_store(f"sqlite:///{Path(folder) / 'midwatch.db'}")
        subject = FakeSubject("bench", [_look(0)])
        monitor = MonitorLoop(store, [subject])
        assert len((await monitor.cycle()).opened) == COMPONENTS
        unchanged = await _rounds(monitor, subject, 0)
        changed = await _rounds(monitor, subject, CHANGED)
        await monitor.close()
        await store.close()
    what = f"monitor: {COMPONENTS:,} components, {COMPONENTS:,} tickets"
    return [
        against_bound(f"{what}, unchanged cycle", unchanged, UNCHANGED_MS, "ms"),
        against_floor(
            f"{what}, {2 * CHANGED} changes", changed, unchanged, CHANGED_AIM
        ),
    ]
