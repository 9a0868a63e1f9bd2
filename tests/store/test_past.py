"""Past incidents: their number costs no time, and an older database or a SQLite without FTS5 has them too."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path

from alembic import command
from sqlalchemy import Connection, text

from midwatch.model import Ticket, Violation
from midwatch.store.protocol import Changes, Opening
from midwatch.store.schema import REVISION, tickets
from midwatch.store.sql import SqlStore, _config, open_store
from midwatch.testing.store_conformance.fixture import opening

MANY, AT_ONCE, RARE_ID = 100_000, 20_000, 104_711
NUMBERS = (
    "WITH RECURSIVE numbers(n) AS"
    " (SELECT CAST(:first AS bigint) UNION ALL SELECT n + 1 FROM numbers WHERE n < :last)"
)


async def filled(store: SqlStore, like: Ticket, first: int, count: int) -> None:
    """Add past incidents that share most of their words; one has a word of its own."""
    for start in range(first, first + count, AT_ONCE):
        last = min(start + AT_ONCE, first + count) - 1
        await store.transactions.run(_fill, like.id, start, last)


def _fill(connection: Connection, like: int, first: int, last: int) -> None:
    """Add copies of a ticket with these ids."""
    values = {"like": like, "first": first, "last": last, "rare": RARE_ID}
    own = {"id": "n", "component": "'pool-' || n", "status": "'resolved'"}
    names = ", ".join(f'"{column.name}"' for column in tickets.columns)
    copied = ", ".join(own.get(one.name, f"t.{one.name}") for one in tickets.columns)
    connection.execute(
        text(
            f"{NUMBERS} INSERT INTO tickets ({names})"
            f" SELECT {copied} FROM numbers, tickets AS t WHERE t.id = :like"
        ),
        values,
    )
    connection.execute(
        text(
            f"{NUMBERS} INSERT INTO past_incidents (ticket_id, subject, invariant, component, words)"
            " SELECT n, 'db', 'connections', 'pool-' || n,"
            " 'pool many connections restarted service ' || n"
            " || CASE WHEN n = :rare THEN ' hyperscaler pgbouncer' ELSE '' END FROM numbers"
        ),
        values,
    )
    if connection.dialect.name == "sqlite":
        connection.execute(
            text(
                "INSERT INTO past_words (rowid, words) SELECT ticket_id, words FROM past_incidents"
                " WHERE ticket_id >= :first"
            ),
            values,
        )


async def now_open(store: SqlStore, message: str) -> Ticket:
    violation = opening("now", subject="proxy", invariant="status").violation
    new = Opening(Violation(violation.key, violation.severity, message))
    revision = (await store.watch("proxy")).revision
    saved = await store.save_cycle("proxy", revision, Changes((new,)))
    return saved.opened[0]


async def seconds(store: SqlStore, ticket: Ticket) -> float:
    """Return the shortest of some searches: others use the machine too."""
    found = []
    for _ in range(7):
        began = time.perf_counter()
        await store.past([ticket])
        found.append(time.perf_counter() - began)
    return min(found)


async def test_the_time_of_a_search_does_not_grow(shared_database: str) -> None:
    store = await open_store(shared_database)
    message = (
        "hyperscaler pgbouncer: the pool has too many connections, service restarted"
    )
    ticket = await now_open(store, message)
    await filled(store, ticket, 1000, 1000)
    few = await seconds(store, ticket)
    await filled(store, ticket, 100_000, MANY)
    many = await seconds(store, ticket)
    found = await store.past([ticket])
    await store.close()
    assert found[0].ticket.id == RARE_ID, "the rare word decides"
    assert many < max(4 * few, 0.2), (few, many)


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


async def test_an_upgrade_finds_the_incidents_of_before(
    shared_database: str,
) -> None:
    """What the migration reads is what the store would have remembered."""
    store = await open_store(shared_database)
    ticket = await now_open(store, "the pool has too many connections")
    await store.resolve(ticket.id, "ann", "restarted pgbouncer")
    open_ = await now_open(store, "another pool")

    def remember_again(connection: Connection) -> None:
        connection.execute(text("DROP TABLE past_incidents"))
        if connection.dialect.name == "sqlite":
            connection.execute(text("DROP TABLE past_words"))
        command.stamp(_config(connection), "0004")
        command.upgrade(_config(connection), "0005")
        command.stamp(_config(connection), REVISION)

    await store.transactions.run(remember_again)
    [found] = await store.search_past("pgbouncer")
    assert found.ticket.id == ticket.id != open_.id
    assert (await store.past([open_]))[0].same_key
    await store.close()
