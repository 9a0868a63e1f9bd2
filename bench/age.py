"""What reading costs at any age: the time with so many resolved tickets, as a multiple of that with 1,000.

Each operation is one call of the store. Its time is the processor time of this process and, on PostgreSQL, of the
server's, the median of some calls.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import psutil
import psycopg

from midwatch.model import UNDIAGNOSED, Key, Severity, Ticket, TicketStatus
from midwatch.store.figures import Place, TicketFilter
from midwatch.store.sessions import SqlSessions
from midwatch.store.sql import SqlStore, open_store
from midwatch.testing.postgres import PrivatePostgres

from ._aged import INVARIANTS, RARE, age
from .report import SIZES, Row

RATIO = 1.5
BOUNDS = {
    "past, one invariant": 5.0,
    "past, ten invariants": 5.0,
}
"""The most that an operation takes at any size, in ms."""
OF_A_PERIOD = {
    "stats of 30 days": 100.0,
    "figures of 30 days": 100.0,
    "delivery_counts": 10.0,
}
"""The same of what reads all of a period, which is more in a larger database: its ratio does not count."""
CALLS, MOST_CALLS = 15, 100
"""Calls of an operation, and the most of one that is fast."""
_UNRESOLVED = tuple(one for one in TicketStatus if one is not TicketStatus.RESOLVED)
_RESOLVED = (TicketStatus.RESOLVED,)

Operation = Callable[[SqlStore], Awaitable[object]]


def operations(now: Ticket, middle: datetime) -> dict[str, Operation]:
    """Return the operations by name; `now` is a ticket that is open, `middle` half the age of the database."""
    ten = [
        replace(now, key=Key(f"db-{n}", f"invariant-{n}", f"pool-{n}"))
        for n in range(INVARIANTS)
    ]
    hot = [Key("db-3", f"invariant-{n}", "hot") for n in range(INVARIANTS)]
    behind = Place(Severity.WARNING, middle, 1)

    def listed(**given: object) -> Operation:
        return lambda store: store.tickets(TicketFilter(limit=5, **given))  # type: ignore[arg-type]

    return {
        "past, one invariant": lambda store: store.past(ten[:1]),
        "past, ten invariants": lambda store: store.past(ten),
        "search_past": lambda store: store.search_past(f"{RARE} connections latency"),
        "idle claim": lambda store: store.claim("bench", lease=30),
        "earlier, one key": lambda store: store.earlier("db-3", hot[:1], 3600),
        "earlier, ten keys": lambda store: store.earlier("db-3", hot, 3600),
        "openings of a key": lambda store: store.openings(hot[0], 3600),
        "join": lambda store: store.join("db-1", ["db-2"], 60.0),
        "watch": lambda store: store.watch("db-1"),
        "list": listed(),
        "list unresolved": listed(statuses=_UNRESOLVED),
        "list undiagnosed": listed(statuses=UNDIAGNOSED),
        "list resolved": listed(statuses=_RESOLVED),
        "list newest resolved": listed(statuses=_RESOLVED, newest_first=True),
        "list resolved of a subject": listed(statuses=_RESOLVED, subject="db-7"),
        "list of a subject": listed(subject="db-7"),
        "list of an invariant": listed(invariant="invariant-4"),
        "list of a subject and an invariant": listed(
            subject="db-7", invariant="invariant-4", severity=Severity.INFO
        ),
        "list of a severity": listed(severity=Severity.CRITICAL),
        "list of all statuses, urgent first": listed(statuses=tuple(TicketStatus)),
        "page in the middle": listed(
            statuses=_RESOLVED, newest_first=True, after=behind
        ),
        "page in the middle, urgent first": listed(statuses=_RESOLVED, after=behind),
        "page in the middle, of a subject": listed(subject="db-7", after=behind),
        "list of a batch": listed(batch=500),
        "search, frequent word": listed(text="connections"),
        "search, rare word": listed(text=RARE),
        "search, unknown word": listed(text="flibbertigibbet"),
        "stats of 30 days": lambda store: store.stats(30 * 86400.0),
        "figures of 30 days": lambda store: store.figures(30),
        "unresolved_counts": lambda store: store.unresolved_counts(),
        "subject_states": lambda store: store.subject_states(),
        "history": lambda store: store.history(now.id),
        "diagnoses of a ticket": lambda store: store.diagnoses(500),
        "changes, none": _no_changes,
        "changes, behind": _changes,
        "targets_due": lambda store: store.targets_due(),
        "claim_delivery": lambda store: store.claim_delivery("slack", lease=30.0),
        "deliveries": lambda store: store.deliveries(),
        "deliveries given up": lambda store: store.deliveries(states=("given_up",)),
        "delivery_counts": lambda store: store.delivery_counts(86400.0),
        "silences": lambda store: store.silences(),
        "silenced": lambda store: store.silenced(),
        "pushed_alerts": lambda store: store.pushed_alerts("db-1"),
        "prune_deliveries, nothing": lambda store: store.prune_deliveries(90 * 86400.0),
        "forget_alerts, nothing": lambda store: store.forget_alerts(90 * 86400.0),
        "investigations": lambda store: store.investigations(),
        "sessions": lambda store: SqlSessions(store.transactions).listed(limit=50),
    }


async def _no_changes(store: SqlStore) -> object:
    return await store.changes(await store.last_cursor())


async def _changes(store: SqlStore) -> object:
    last = await store.last_cursor()
    return await store.changes(replace(last, audit_id=last.audit_id - 100))


async def measured(
    database: str, count: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Return the milliseconds of each operation on a database with `count` resolved tickets.

    `clock` has the processor time of other processes that take part.
    """
    store = await open_store(database)
    [now] = await store.tickets(TicketFilter(_UNRESOLVED, limit=1))
    now = replace(
        now,
        message=f"{RARE}: the pool has too many connections, service restarted, clients waiting",
    )
    middle = (await store.ticket(count // 2)).opened_at
    found: dict[str, float] = {}
    for name, operation in operations(now, middle).items():
        for _ in range(2):
            await operation(store)
        taken = []
        began = time.monotonic()
        for call in range(MOST_CALLS):
            others, own = clock(), time.process_time()
            await operation(store)
            own = time.process_time() - own  # without what the clock takes
            taken.append(1000 * (own + clock() - others))
            if time.monotonic() - began > (15 if call < CALLS else 0.5):
                break
        found[name] = statistics.median(taken)
    await store.close()
    return found


def rows(server: str, by_size: dict[int, dict[str, float]]) -> list[Row]:
    found = []
    least = min(by_size)
    for name, base in by_size[least].items():
        for size, values in by_size.items():
            if size == least:
                continue
            value = values[name]
            met, aim = value <= RATIO * base, f"≤ {RATIO:g}×"
            if (bound := BOUNDS.get(name)) is not None:
                met, aim = met and value <= bound, f"{aim}, ≤ {bound:g} ms"
            if (bound := OF_A_PERIOD.get(name)) is not None:
                met, aim = value <= bound, f"≤ {bound:g} ms"
            found.append(
                Row(
                    f"{server}, {name}, {size:,} tickets",
                    value,
                    base,
                    value / base,
                    aim,
                    met,
                )
            )
    return found


def _server_time(parent: psutil.Process) -> Callable[[], float]:
    """Return a clock of the processor time of the backends of a server."""

    def clock() -> float:
        nanoseconds = 0
        for process in parent.children(recursive=True):
            try:
                nanoseconds += int(
                    Path(f"/proc/{process.pid}/schedstat").read_text().split()[0]
                )
            except (OSError, psutil.Error):
                continue
        return nanoseconds / 1e9

    return clock


async def run(sizes: Sequence[int] = SIZES) -> Sequence[Row]:
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="midwatch-bench-") as name:
        by_size = {}
        for size in sizes:
            database = f"sqlite:///{Path(name) / f'{size}.db'}"
            await age(database, size)
            by_size[size] = await measured(database, size, lambda: 0.0)
            os.unlink(Path(name) / f"{size}.db")
        found += rows("SQLite", by_size)
    # What autovacuum does after so many inserts is not what a call costs: it is done before. Of a statement that comes again the
    # server keeps a plan where the database is small, and makes one for each call where it is large, which takes a millisecond
    # at any size: here it makes one in each.
    settings = {"autovacuum": "off", "plan_cache_mode": "force_custom_plan"}
    with PrivatePostgres(settings=settings) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            for size in sizes:
                connection.execute(f"CREATE DATABASE age_{size}".encode())
        by_size = {}
        for size in sizes:
            database = server.dsn(f"age_{size}")
            await age(database, size)
            with psycopg.connect(database, autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE")
            by_size[size] = await measured(
                database, size, _server_time(_postmaster(database))
            )
        found += rows("PostgreSQL", by_size)
    return found


def _postmaster(database: str) -> psutil.Process:
    with psycopg.connect(database) as connection:
        [pid] = connection.execute("SELECT pg_backend_pid()").fetchone() or (0,)
        parent = psutil.Process(pid).parent()
    assert parent is not None
    return parent
