"""Claim, begin and finish through the store, compared with its statements on the bare driver.

"One by one" claims one batch of one ticket at a time. "50 claims at once" claims fifty such batches
in one call; each is begun and finished separately, as the protocol requires. "batch of 50" is one
incident of fifty tickets: one claim, one call, one finish. The first claim of each run is not
measured: a daemon runs long, and compiles and prepares its statements once.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import psycopg
from sqlalchemy import Connection, Engine

from midwatch.model import Key, Severity, Violation
from midwatch.store.cycles import save_cycle, watch
from midwatch.store.engine import (
    PostgresTransactions,
    Transaction,
    open_transactions,
    parse_database,
)
from midwatch.store.protocol import Budget, Changes, Finish, Opening
from midwatch.store.schema import database_now
from midwatch.store.sql import SqlStore, open_store, upgrade
from midwatch.store.sqlite import SqliteTransactions
from midwatch.testing.postgres import PrivatePostgres

from ._replay import Trace, record, replay_on_postgres, replay_on_sqlite
from .report import Row, against_floor, paired

TICKETS = 200
ROUNDS = 3
AIM = 3.0
CASES = {"one by one": (1, 1), "50 claims at once": (50, 1), "batch of 50": (1, 50)}
"""By name: batches per claim, tickets per batch."""
ANSWER = {"summary": "a lock", "root_cause": "an idle transaction", "claims": [1, 2, 3]}


class Server(Protocol):
    """Makes copies of one database."""

    name: str

    async def prepare(self, tickets_per_batch: int) -> None: ...

    def copy(self) -> str: ...

    async def replay(self, database: str, trace: Trace, warm: int) -> float: ...


class Sqlite:
    name = "SQLite"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._template = folder / "none"

    async def prepare(self, tickets_per_batch: int) -> None:
        self._template = self._folder / f"template-{tickets_per_batch}"
        await fill(f"sqlite:///{self._template}", tickets_per_batch)

    def copy(self) -> str:
        copy = self._folder / f"copy-{next(self._numbers)}"
        shutil.copy(self._template, copy)
        return f"sqlite:///{copy}"

    async def replay(self, database: str, trace: Trace, warm: int) -> float:
        return replay_on_sqlite(database.removeprefix("sqlite:///"), trace, warm)


class Postgres:
    name = "PostgreSQL"

    def __init__(self, server: PrivatePostgres) -> None:
        self._server = server
        self._numbers = itertools.count()
        self._template = "none"

    async def prepare(self, tickets_per_batch: int) -> None:
        self._template = f"template_{tickets_per_batch}"
        self._create(self._template)
        await fill(self._server.dsn(self._template), tickets_per_batch)

    def copy(self) -> str:
        name = f"copy_{next(self._numbers)}"
        self._create(f"{name} TEMPLATE {self._template}")
        return self._server.dsn(name)

    def _create(self, what: str) -> None:
        with psycopg.connect(self._server.dsn(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {what}".encode())

    async def replay(self, database: str, trace: Trace, warm: int) -> float:
        return await replay_on_postgres(database, trace, warm)


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


async def diagnose_all(store: SqlStore, batches_per_claim: int) -> float:
    """Return the seconds until no batch is due."""
    start = time.perf_counter()
    while await diagnose_some(store, batches_per_claim):
        pass
    return time.perf_counter() - start


async def diagnose_some(store: SqlStore, batches: int) -> bool:
    """Claim once. Return false if no batch was due."""
    claims = await store.claim("bench", lease=30, limit=batches)
    for claim in claims:
        call = await store.begin(
            claim,
            model="claude-sonnet-5-5",
            prompt_version="1",
            reserve_usd=0.1,
            budget=Budget(1000.0),
        )
        assert call is not None
        await store.finish(claim, call, Finish("answered", answer=ANSWER))
    return bool(claims)


def _engine(store: SqlStore) -> Engine:
    transactions = store.transactions
    if isinstance(transactions, SqliteTransactions):
        return transactions.engine
    assert isinstance(transactions, PostgresTransactions)
    return transactions.engine.sync_engine


async def _case(server: Server, name: str) -> Row:
    batches_per_claim, tickets_per_batch = CASES[name]
    await server.prepare(tickets_per_batch)

    async def through_store() -> float:
        store = await open_store(server.copy())
        await diagnose_some(store, batches_per_claim)
        seconds = await diagnose_all(store, batches_per_claim)
        await store.close()
        return seconds

    store = await open_store(server.copy())
    trace, end = record(_engine(store))
    await diagnose_some(store, batches_per_claim)
    warm = len(trace)
    await diagnose_all(store, batches_per_claim)
    end()
    await store.close()

    async def floor() -> float:
        return await server.replay(server.copy(), trace, warm)

    store_median, floor_median = await paired(through_store, floor, ROUNDS)
    per_ticket = 1000 / (TICKETS - batches_per_claim * tickets_per_batch)
    return against_floor(
        f"{server.name}, {name}, per ticket",
        store_median * per_ticket,
        floor_median * per_ticket,
        AIM,
    )


async def run() -> Sequence[Row]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="midwatch-bench-") as folder:
        for name in CASES:
            Path(folder, name).mkdir()
            rows.append(await _case(Sqlite(Path(folder, name)), name))
    durable = {"fsync": True, "synchronous_commit": True, "full_page_writes": True}
    for name in CASES:
        with PrivatePostgres(settings=durable) as server:
            rows.append(await _case(Postgres(server), name))
    return rows
