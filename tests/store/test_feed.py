"""The feed of changes while others write: no change is skipped, none is seen before it is certain."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, select, update
from sqlalchemy.pool import NullPool

from midwatch.store.engine import Transaction, audit_row, parse_database
from midwatch.store.feed import Change, Cursor
from midwatch.store.schema import audit, database_now, tickets
from midwatch.store.sql import SqlStore

from ..waiting import PATIENCE
from .test_side_by_side import WORKER, filled

WRITERS = 4
TRANSACTIONS = 60
"""Of each writer."""


@pytest.fixture
def engine(postgres_database: str) -> Engine:
    """Return what opens connections whose transactions a test ends itself."""
    return create_engine(parse_database(postgres_database), poolclass=NullPool)


@contextmanager
def transaction(engine: Engine) -> Iterator[Transaction]:
    """Begin a transaction, and commit it at the end of the block."""
    with engine.begin() as connection:
        yield Transaction(connection, database_now)


def note(tx: Transaction, why: str) -> None:
    tx.note([audit_row(1, "ann", "note", "open", "open", why)])


async def whys(store: SqlStore, after: Cursor) -> list[str]:
    return [change.why for change in await store.changes(after)]


async def test_a_row_with_a_lower_id_that_commits_later_is_not_skipped(
    postgres_database: str, engine: Engine
) -> None:
    """What was written behind it waits until it is certain, and no longer."""
    store = await filled(postgres_database, tickets=1)
    start = await store.last_cursor()
    with transaction(engine) as slow:
        note(slow, "slow")
        with transaction(engine) as quick:
            note(quick, "quick")
        assert await whys(store, start) == []
        assert await store.last_cursor() == start
    assert await whys(store, start) == ["slow", "quick"]
    await store.close()


async def test_a_row_of_an_old_transaction_is_not_skipped(
    postgres_database: str, engine: Engine
) -> None:
    """It began, and changed a ticket, long before it wrote its audit row."""
    store = await filled(postgres_database, tickets=1)
    start = await store.last_cursor()
    with transaction(engine) as old:
        old.execute(update(tickets).values(held=True))
        with transaction(engine) as quick:
            note(quick, "quick")
        (change,) = await store.changes(start)
        note(old, "old")
    assert await whys(store, change.cursor) == ["old"]
    await store.close()


async def test_what_is_rolled_back_holds_nothing_up(
    postgres_database: str, engine: Engine
) -> None:
    store = await filled(postgres_database, tickets=1)
    start = await store.last_cursor()
    with engine.connect() as connection:
        note(Transaction(connection, database_now), "never")
        with transaction(engine) as quick:
            note(quick, "quick")
        connection.rollback()
        assert await whys(store, start) == ["quick"]
    await store.close()


async def test_other_programs_hold_nothing_up(
    postgres_database: str, engine: Engine
) -> None:
    """Neither by a long transaction nor by advisory locks of their own."""
    store = await filled(postgres_database, tickets=1)
    start = await store.last_cursor()
    with psycopg.connect(postgres_database) as other:
        other.execute("CREATE TABLE theirs (id int)")
        other.execute("SELECT pg_current_xact_id(), txid_current_snapshot()")
        other.execute("SELECT pg_advisory_xact_lock_shared(1), pg_advisory_lock(7, 1)")
        other.execute("SELECT pg_advisory_xact_lock(-1)")
        with transaction(engine) as quick:
            note(quick, "quick")
        assert await whys(store, start) == ["quick"]
        other.rollback()
    await store.close()


async def test_a_writer_that_is_killed_in_the_middle_holds_nothing_up(
    shared_database: str,
) -> None:
    store = await filled(shared_database, tickets=1)
    start = await store.last_cursor()
    command = [sys.executable, str(WORKER), shared_database, "note", "victim"]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.kill()
    await store.acknowledge(1, "ann", "quick")
    deadline = time.monotonic() + PATIENCE
    while not (found := await whys(store, start)) and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert found == ["quick"]
    await store.close()


async def test_a_reader_beside_many_writers_sees_each_change_once(
    postgres_database: str, engine: Engine
) -> None:
    """In the order of the cursors, while transactions of all lengths commit and roll back."""
    store = await filled(postgres_database, tickets=1)
    start = await store.last_cursor()
    ended_writers = threading.Semaphore(0)

    def write(seed: int) -> None:
        chance = random.Random(seed)
        with engine.connect() as connection:
            for number in range(TRANSACTIONS):
                tx = Transaction(connection, database_now)
                for part in range(chance.randint(1, 3)):
                    note(tx, f"{seed}.{number}.{part}")
                    time.sleep(chance.choice((0, 0, 0.001, 0.01)))
                if chance.random() < 0.2:
                    connection.rollback()
                else:
                    connection.commit()
        ended_writers.release()

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(WRITERS)]
    for thread in threads:
        thread.start()
    read: list[Change] = []
    cursor, ended = start, 0
    while (page := await store.changes(cursor, limit=7)) or ended < WRITERS:
        read += page
        cursor = page[-1].cursor if page else cursor
        ended += not page and ended_writers.acquire(blocking=False)
    for thread in threads:
        thread.join(PATIENCE)
    with transaction(engine) as tx:
        rows = tx.all(
            select(audit.c.id).where(audit.c.id > start.audit_id).order_by(audit.c.id)
        )
    assert [change.cursor for change in read] == [Cursor(row.id) for row in rows]
    assert len(read) > TRANSACTIONS
    assert await store.changes(cursor) == []
    await store.close()
