"""A cycle of the monitor over many broken components, on a SQLite file that is synchronized at each commit.

"Unchanged" sees the same breaks again; its floor is the difference of two sets in plain Python. "Opening" saves a ticket for each
component; its floor is a bare row for each with what a person sees of it, found by its key, and a row of its history, in one commit. Where tickets resolve and open, the cycle is compared with an unchanged one:
it costs what changed, not what there is. Nobody listens to the log.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import sqlite3
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

from midwatch.lifecycle import collect_rarely
from midwatch.model import Observation, Signal
from midwatch.monitor.loop import MonitorLoop
from midwatch.store.sql import open_store
from midwatch.testing.fakes import FakeSubject

from ._meter import Cost, Meter
from .report import SIZES, Row, against_bound, compared, turns

CHANGED = 50
ROUNDS = 5
UNCHANGED_AIM, OPENING_AIM, CHANGED_AIM, MEGABYTES = 2.0, 2.0, 3.0, 80.0
MOST = 100_000
"""Components of one subject; nobody has more."""


async def run() -> Sequence[Row]:
    """Return the rows. The largest size comes first, as memory that was used once hides what comes after."""
    collect_rarely()  # as the daemon does
    rows: list[Row] = []
    for size in sorted((size for size in SIZES if size <= MOST), reverse=True):
        with tempfile.TemporaryDirectory(prefix="midwatch-bench-") as folder:
            rows += [
                *await _cycles(Path(folder), size),
                *await _opening(Path(folder), size),
            ]
    return rows


def _look(size: int, first: int = 0) -> Observation:
    """Return a new observation with `size` broken components, from number `first` on."""
    signals = tuple(
        Signal("alive", f"pod-{number}", "it does not answer", holds=False)
        for number in range(first, first + size)
    )
    return Observation(signals, frozenset({"*"}))


async def _opening(folder: Path, size: int) -> list[Row]:
    numbers = itertools.count()

    async def ours() -> Cost:
        store = await open_store(f"sqlite:///{folder / f'opening-{next(numbers)}.db'}")
        monitor = MonitorLoop(store, [FakeSubject("bench", [_look(size)])])
        with Meter() as meter:
            cycle = await monitor.cycle()
        assert cycle.opened == size
        await monitor.close()
        await store.close()
        return meter.cost

    async def bare() -> Cost:
        database = _database(folder / f"bare-{next(numbers)}.db")
        rows = [
            ("bench", "alive", signal.component, "warning", "open", signal.message)
            for signal in _look(size).signals
        ]
        opened = [(number, "opened", "monitor") for number in range(1, size + 1)]
        with Meter() as meter:
            database.execute("BEGIN")
            at = "CURRENT_TIMESTAMP"
            database.executemany(
                f"INSERT INTO tickets VALUES (NULL, ?, ?, ?, ?, ?, ?, {at}, {at})", rows
            )
            database.executemany(
                f"INSERT INTO history VALUES (NULL, ?, ?, ?, {at})", opened
            )
            database.execute("COMMIT")
        database.close()
        return meter.cost

    samples = await turns({"cycle": ours, "bare inserts": bare}, 2)
    name = "monitor: opening, a cycle in which every component breaks"
    return compared(name, samples, {"bare inserts": OPENING_AIM}, size=size)


def _database(file: Path) -> sqlite3.Connection:
    database = sqlite3.connect(file, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        database.execute(f"PRAGMA {pragma}")
    database.execute(
        "CREATE TABLE tickets (id INTEGER PRIMARY KEY, subject TEXT, invariant TEXT, component TEXT, severity TEXT,"
        " status TEXT, message TEXT, opened_at TEXT, seen_at TEXT, UNIQUE (subject, invariant, component))"
    )
    database.execute(
        "CREATE TABLE history (id INTEGER PRIMARY KEY, ticket INTEGER, action TEXT, actor TEXT, at TEXT)"
    )
    return database


async def _cycles(folder: Path, size: int) -> list[Row]:
    database = f"sqlite:///{folder / 'midwatch.db'}"
    observation, first = _look(size), 0
    before = _resident()
    store = await open_store(database)
    subject = FakeSubject("bench", [observation])
    monitor = MonitorLoop(store, [subject])
    await monitor.cycle()
    await asyncio.sleep(0)  # until then the loop holds what the cycle returned
    grown = _resident() - before

    async def cycle(step: int) -> Cost:
        nonlocal first
        first += step
        subject.then(_look(size, first))
        with Meter() as meter:
            seen = await monitor.cycle()
        assert (seen.opened, seen.resolved) == (step, step)
        return meter.cost

    async def difference() -> Cost:
        signals = _look(size).signals
        known = {(signal.invariant, signal.component) for signal in signals}
        with Meter() as meter:
            seen = {(s.invariant, s.component) for s in signals if not s.holds}
            assert not (seen - known) and not (known - seen)
        return meter.cost

    quiet = {"cycle": lambda: cycle(0), "set difference": difference}
    changing = {"cycle": lambda: cycle(CHANGED), "unchanged": lambda: cycle(0)}
    unchanged, changed = await turns(quiet, ROUNDS), await turns(changing, ROUNDS)
    await monitor.close()
    await store.close()
    with Meter() as meter:
        store = await open_store(database)
        subject = FakeSubject("bench", [_look(size, first)])
        again = await MonitorLoop(store, [subject]).cycle()
    assert not again.opened
    await store.close()
    few, many = f"{2 * CHANGED} changes", "monitor: restart, its first cycle"
    return [
        *compared(
            "monitor: unchanged cycle",
            unchanged,
            {"set difference": UNCHANGED_AIM},
            size=size,
        ),
        *compared(f"monitor: {few}", changed, {"unchanged": CHANGED_AIM}, size=size),
        *_restart(many, meter.cost, size),
        *_memory(grown, size),
    ]


def _restart(name: str, cost: Cost, size: int) -> list[Row]:
    return [
        against_bound(name, 1000 * seconds, None, "ms", measure=measure, size=size)
        for measure, seconds in (("processor", cost.processor), ("wall", cost.wall))
    ]


def _memory(grown: float, size: int) -> list[Row]:
    """Only of the largest size: it came first."""
    if size != min(MOST, max(SIZES)):
        return []
    name = "monitor: memory with a ticket for every component"
    return [against_bound(name, grown, MEGABYTES, "MB", measure="memory", size=size)]


def _resident() -> float:
    gc.collect()
    return float(psutil.Process().memory_info().rss) / 1e6
