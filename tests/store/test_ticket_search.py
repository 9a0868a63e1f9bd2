"""The index of the texts of resolved tickets on SQLite."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text

from midwatch.store import ticket_search
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


def _indexed(tx: Transaction, word: str) -> list[int] | None:
    """Return the ids that the index has for a word; None where it is not used."""
    query = ticket_search.resolved_with(tx, [word])
    return None if query is None else [row.rowid for row in tx.all(query)]


async def test_a_resolved_ticket_is_found_by_the_index(
    sqlite_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is one that was resolved before there was one, and lists are the same where it is not used."""
    store = await open_store(f"sqlite:///{sqlite_file}")
    earlier = await _resolved(store, "zebrafish")
    await store.transactions.migrate(_migrate)
    later = await _resolved(store, "Zebrafish 2")
    still_open = (await store.open_ticket(opening("zebrafish 3"), "ann")).id
    assert await store._read(_indexed, "ZEBRA") == [earlier, later]
    assert await store._read(_indexed, "ze") is None

    async def found() -> list[tuple[int, ...]]:
        queries = (TicketFilter(text=one) for one in ("zebra", "fish pooler", "2"))
        return [ids(await store.tickets(one)) for one in queries]

    by_index = await found()
    assert by_index == [(still_open, later, earlier), (later, earlier), (later,)]
    monkeypatch.setattr(ticket_search, "_MOST_FOUND", 1)
    assert await store._read(_indexed, "zebra") is None
    assert await found() == by_index
    await store.close()
