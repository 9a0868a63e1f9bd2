"""The life of a ticket in the store, from claim to finish, against the least durable work.

The floor is the bare driver with one commit a batch, which writes as many bytes: the answer, its rendering and the evidence of a real
diagnosis. `bench.tickets` has the same through the agent, beside other queues.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from sqlalchemy import Connection

from midwatch.model import Evidence, Json, Key, Severity, Violation
from midwatch.store.cycles import save_cycle, watch
from midwatch.store.engine import Transaction, open_transactions, parse_database
from midwatch.store.protocol import Budget, Changes, Finish, Opening
from midwatch.store.schema import database_now
from midwatch.store.sql import SqlStore, open_store
from midwatch.store.upgrade import upgrade
from midwatch.testing.postgres import PrivatePostgres

from ._meter import Cost, Meter
from ._server import DURABLE
from .report import Row, compared, sized, turns

TICKETS = sized(200, 100)
ROUNDS = 5
CASES = {"one by one": (1, 1), "50 claims at once": (50, 1), "batch of 50": (1, 50)}
"""By name: batches per claim, tickets per batch."""
EVIDENCE = tuple(
    Evidence(
        f"E{number}",
        f"Source {number}",
        "bench",
        datetime(2026, 1, 1, tzinfo=UTC),
        f"2026-01-01 12:00:0{number} UTC [4711] LOG:  process 4711 still waits for ShareLock\n"
        * 50,
    )
    for number in range(1, 7)
)
"""Some 24 kB, as a diagnosis on PostgreSQL has."""
ANSWER: Json = {
    "summary": "A transaction that is idle holds a lock, and others queue up behind it. "
    * 3,
    "root_cause": "The checkout service updates an order, then waits for a payment. "
    * 5,
    "claims": [
        {
            "text": f"claim {n}: process 4711 waits",
            "evidence": "E1",
            "quote": "process 4711 still waits for ShareLock",
        }
        for n in range(8)
    ],
}
MARKDOWN = (
    "# The cause\n\n"
    + "Process 4711 waits for a lock that an idle transaction holds. " * 50
)


async def fill(database: str, tickets_per_batch: int, tickets: int = TICKETS) -> None:
    """Migrate a new database and open the tickets."""
    transactions = open_transactions(parse_database(database))
    await upgrade(transactions)

    def open_all(connection: Connection) -> None:
        tx = Transaction(connection, database_now)
        revision = watch(tx, "db").revision
        for start in range(0, tickets, tickets_per_batch):
            numbers = range(start, start + tickets_per_batch)
            changes = Changes(tuple(map(_opening, numbers)))
            saved = save_cycle(tx, "db", revision, changes)
            revision = saved.revision

    await transactions.run(open_all)
    await transactions.close()


def _opening(number: int) -> Opening:
    key = Key("db", "connections", f"pool-{number}")
    return Opening(Violation(key, Severity.WARNING, "97 of 100 connections", 97, 90))


async def diagnose_all(store: SqlStore, batches_per_claim: int) -> None:
    """Claim, begin and finish until no batch is due."""
    while claims := await store.claim("bench", lease=30, limit=batches_per_claim):
        for claim in claims:
            call = await store.begin(
                claim,
                model="claude-sonnet-5-5",
                prompt_version="1",
                reserve_usd=0.1,
                budget=Budget(1000.0),
            )
            assert call is not None
            finish = Finish(
                "answered", answer=ANSWER, markdown=MARKDOWN, evidence=EVIDENCE
            )
            assert await store.finish(claim, call, finish)


def _written() -> str:
    """Return what the floor writes for a batch: as many bytes as a diagnosis has."""
    evidence = [[one.id, one.title, one.source, one.text] for one in EVIDENCE]
    return json.dumps([ANSWER, MARKDOWN, evidence])


def _openings(number: int, size: int) -> list[tuple[int, int]]:
    """Return ticket and batch for the floor."""
    return [(ticket, ticket // size) for ticket in range(number)]


CREATE = (
    "CREATE TABLE diagnoses (batch INTEGER PRIMARY KEY, written TEXT)",
    "CREATE TABLE tickets (id INTEGER PRIMARY KEY, batch INTEGER, status TEXT)",
    "CREATE INDEX by_batch ON tickets (batch)",
)


async def _bare_sqlite(file: Path, size: int) -> Cost:
    database = sqlite3.connect(file, isolation_level=None)
    for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", *CREATE):
        database.execute(statement)
    database.execute("BEGIN")
    database.executemany(
        "INSERT INTO tickets VALUES (?, ?, 'open')", _openings(TICKETS, size)
    )
    database.execute("COMMIT")
    written = _written()
    with Meter() as meter:
        for batch in range(TICKETS // size):
            database.execute("BEGIN IMMEDIATE")
            database.execute("INSERT INTO diagnoses VALUES (?, ?)", (batch, written))
            database.execute(
                "UPDATE tickets SET status = 'diagnosed' WHERE batch = ?", (batch,)
            )
            database.execute("COMMIT")
    database.close()
    return meter.cost


async def _bare_postgres(dsn: str, size: int) -> Cost:
    async with await psycopg.AsyncConnection.connect(dsn) as database:
        for statement in CREATE:
            await database.execute(statement.encode())
        async with database.cursor() as cursor:
            await cursor.executemany(
                "INSERT INTO tickets VALUES (%s, %s, 'open')", _openings(TICKETS, size)
            )
        await database.commit()
        written = _written()
        with Meter() as meter:
            for batch in range(TICKETS // size):
                await database.execute(
                    "INSERT INTO diagnoses VALUES (%s, %s)", (batch, written)
                )
                await database.execute(
                    "UPDATE tickets SET status = 'diagnosed' WHERE batch = %s", (batch,)
                )
                await database.commit()
    return meter.cost


async def _through_store(database: str, batches_per_claim: int) -> Cost:
    store = await open_store(database)
    with Meter() as meter:
        await diagnose_all(store, batches_per_claim)
    await store.close()
    return meter.cost


async def _rows(
    kind: str,
    name: str,
    copy: Callable[[], str],
    bare: Callable[[int], Awaitable[Cost]],
) -> list[Row]:
    batches_per_claim, tickets_per_batch = CASES[name]
    samples = await turns(
        {
            "store": lambda: _through_store(copy(), batches_per_claim),
            "bare driver, one commit a batch": lambda: bare(tickets_per_batch),
        },
        ROUNDS,
    )
    return compared(f"store: {kind}, {name}, a ticket", samples, {}, each=TICKETS)


async def _on_sqlite(folder: Path, name: str) -> list[Row]:
    numbers, template = itertools.count(), folder / "template"
    await fill(f"sqlite:///{template}", CASES[name][1])

    def copy() -> str:
        made = folder / f"copy-{next(numbers)}"
        shutil.copy(template, made)
        return f"sqlite:///{made}"

    return await _rows(
        "SQLite",
        name,
        copy,
        lambda size: _bare_sqlite(folder / f"bare-{next(numbers)}", size),
    )


async def _on_postgres(server: PrivatePostgres, name: str) -> list[Row]:
    numbers, template = itertools.count(), "template_" + name.replace(" ", "_")

    def create(what: str) -> None:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {what}".encode())

    def copy() -> str:
        made = f"{template}_copy_{next(numbers)}"
        create(f"{made} TEMPLATE {template}")
        return server.dsn(made)

    def bare(size: int) -> Awaitable[Cost]:
        made = f"{template}_bare_{next(numbers)}"
        create(made)
        return _bare_postgres(server.dsn(made), size)

    create(template)
    await fill(server.dsn(template), CASES[name][1])
    return await _rows("PostgreSQL", name, copy, bare)


async def run() -> Sequence[Row]:
    rows: list[Row] = []
    for name in CASES:
        with tempfile.TemporaryDirectory(prefix="midwatch-bench-") as folder:
            rows += await _on_sqlite(Path(folder), name)
    with PrivatePostgres(settings=DURABLE) as server:
        for name in CASES:
            rows += await _on_postgres(server, name)
    return rows
