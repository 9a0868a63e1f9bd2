"""The index of the texts of resolved tickets."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text

from midwatch.store import ticket_search, tickets
from midwatch.store.engine import Transaction
from midwatch.store.figures import TicketFilter
from midwatch.store.sql import SqlStore, open_store
from midwatch.testing.store_conformance.fixture import ids, opening

BEFORE = "DROP TRIGGER tickets_resolved; DROP TRIGGER tickets_inserted_resolved; DROP TABLE ticket_texts"
MIGRATION = import_module("midwatch.store.migrations.versions.0015_ticket_texts")


async def _resolved(store: SqlStore, component: str) -> int:
    ticket = await store.open_ticket(opening(component), "ann")
    await store.resolve(ticket.id, "ann", "restarted the pooler")
    return ticket.id


def _migrate(connection: Connection) -> None:
    for statement in BEFORE.split("; "):
        connection.execute(text(statement))
    with Operations.context(MigrationContext.configure(connection)):
        MIGRATION.upgrade()


def _indexed(tx: Transaction, words: str) -> list[int] | None:
    """Return the ids that the index has for some words; None where it is not used."""
    query = ticket_search.resolved_with(tx, words.split())
    return None if query is None else sorted(row[0] for row in tx.all(query))


async def test_a_ticket_that_was_resolved_before_there_was_an_index_is_in_it(
    sqlite_file: Path,
) -> None:
    store = await open_store(f"sqlite:///{sqlite_file}")
    earlier = await _resolved(store, "zebrafish")
    await store.transactions.migrate(_migrate)
    later = await _resolved(store, "Zebrafish 2")
    assert await store._read(_indexed, "ZEBRA") == [earlier, later]
    await store.close()


async def test_a_list_is_the_same_whether_the_index_is_used_or_not(
    shared_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store(shared_database)
    first = await _resolved(store, "zebrafish")
    second = await _resolved(store, "Zebrafish 2")
    long = await _resolved(store, "ÄRGER 🔥🔥🔥 \n%_" + "x" * 5000)
    still_open = (await store.open_ticket(opening("zebrafish 3"), "ann")).id
    assert await store._read(_indexed, "ZEBRA") == [first, second]
    assert await store._read(_indexed, "zebra POOLER fish") == [first, second]
    assert await store._read(_indexed, "🔥🔥🔥 xxx%") == []
    assert await store._read(_indexed, "ze") is None
    words = {
        "zebra": (still_open, second, first),
        "fish pooler": (second, first),
        "fish 2": (second,),
        "Ärger": (long,),
        "🔥🔥🔥 %_x": (long,),
        "flibbertigibbet": (),
    }

    async def found() -> dict[str, tuple[int, ...]]:
        queries = {one: TicketFilter(text=one) for one in words}
        return {word: ids(await store.tickets(one)) for word, one in queries.items()}

    by_order = await found()
    monkeypatch.setattr(tickets, "_NEAR", 1)
    assert await found() == by_order == words
    monkeypatch.setattr(ticket_search, "_MOST_FOUND", 1)
    assert await store._read(_indexed, "zebra") is None
    assert await found() == words
    await store.close()
