"""Past incidents: an older database or a SQLite without FTS5 has them too, and of each word the newest are kept."""

from __future__ import annotations

import contextlib
import sqlite3
from datetime import timedelta
from pathlib import Path

from alembic import command
from sqlalchemy import Connection, select, text

from midwatch.model import Ticket, Violation
from midwatch.store.engine import open_transactions, parse_database
from midwatch.store.protocol import Changes, Opening
from midwatch.store.schema import (
    batches,
    database_now,
    subjects,
    tickets,
)
from midwatch.store.sql import SqlStore, open_store
from midwatch.store.sums import hourly_tickets
from midwatch.store.upgrade import _config, upgrade_database
from midwatch.testing.store_conformance.fixture import opening


async def now_open(store: SqlStore, message: str) -> Ticket:
    violation = opening("now", subject="proxy", invariant="status").violation
    new = Opening(Violation(violation.key, violation.severity, message))
    revision = (await store.watch("proxy")).revision
    saved = await store.save_cycle("proxy", revision, Changes((new,)))
    return await store.ticket(saved.opened[0])


async def test_a_rare_word_decides_among_many(shared_database: str) -> None:
    """Of frequent words the newest are kept, of which there are enough; the oldest incident is found by its own word."""
    store = await open_store(shared_database)
    rare = await now_open(store, "hyperscaler: the pool has too many connections")
    await store.resolve(rare.id, "ann", "restarted pgbouncer")
    for _ in range(100):
        other = await now_open(store, "the pool has too many connections")
        await store.resolve(other.id, "ann", "restarted")
    found = await store.search_past("hyperscaler connections pool")
    assert found[0].ticket.id == rare.id and len(found) > 1
    if store.transactions.dialect == "postgresql":
        count = text("SELECT count(*) FROM past_words WHERE word = 'connections'")
        kept = await store.transactions.run(lambda c: c.scalar(count))
        assert 40 <= kept < 60
    await store.close()


async def test_a_sqlite_without_fts5_finds_by_key(sqlite_file: Path) -> None:
    """Without the table of words, as such a SQLite makes it, nothing else changes."""
    store = await open_store(f"sqlite:///{sqlite_file}")
    with contextlib.closing(sqlite3.connect(sqlite_file)) as connection:
        connection.execute("DROP TABLE past_words")
    for _ in range(2):
        ticket = await now_open(store, "the pool has too many connections")
        await store.resolve(ticket.id, "ann", "restarted")
    ticket = await now_open(store, "the pool has too many connections")
    found = await store.past([ticket])
    assert [one.same_key for one in found] == [True, True]
    assert await store.search_past("connections") == []
    await store.close()


async def test_an_upgrade_finds_what_was_before(
    sqlite_file: Path, empty_postgres: str
) -> None:
    """An upgrade from before there were past incidents, words of them in a table, and sums by hour."""
    for database in (f"sqlite:///{sqlite_file}", empty_postgres):
        transactions = open_transactions(parse_database(database))
        await transactions.run(lambda c: command.upgrade(_config(c), "0004"))
        await transactions.run(_resolve_one)
        await transactions.close()
        await upgrade_database(database)
        store = await open_store(database)
        [found] = await store.search_past("pgbouncer")
        assert found.ticket.message == "the pool has too many connections"
        assert (await store.past([await now_open(store, "another pool")]))[0].same_key
        assert await store.transactions.run(_opened_by_hour) == [1]
        assert sum(day.opened for day in (await store.figures(5)).days) == 2
        await store.close()


def _opened_by_hour(connection: Connection) -> list[int]:
    return list(connection.scalars(select(hourly_tickets.c.opened)))


def _resolve_one(connection: Connection) -> None:
    """Write a ticket that was resolved by hand, two days ago."""
    then = database_now(connection) - timedelta(days=2)
    new = {"revision": 0, "cycle": 0, "failures": 0, "state": {}}
    connection.execute(subjects.insert(), {"name": "proxy", **new})
    batch = {"subject": "proxy", "severity": 1, "opened_at": then, "set_at": then}
    connection.execute(batches.insert(), {"id": 1, "queued": False, **batch})
    ticket = {
        "id": 1,
        "subject": "proxy",
        "invariant": "status",
        "component": "now",
        "severity": 1,
        "status": "resolved",
        "message": "the pool has too many connections",
        "facts": {},
        "first_seen_at": then,
        "opened_at": then,
        "last_seen_at": then,
        "occurrence_count": 1,
        "batch_id": 1,
        "resolved_at": then,
        "resolution": "restarted pgbouncer",
    }
    connection.execute(tickets.insert(), ticket)
    if connection.dialect.name == "postgresql":
        for table in ("batches", "tickets"):
            connection.execute(text(f"SELECT nextval('{table}_id_seq')"))
