"""Migrations: they create the tables of the schema, once, and have no downgrade."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from midwatch.errors import SchemaMismatch
from midwatch.store.engine import open_transactions, parse_database
from midwatch.store.schema import REVISION, metadata
from midwatch.store.sql import open_store, present_revision, upgrade, upgrade_database


async def test_the_migrations_make_the_tables(database: str) -> None:
    def compared(thing: object, name: str | None, *_: object) -> bool:
        """The index of words is made by each database in its own way."""
        return not str(name).startswith("past_words")

    def differences(connection: Connection) -> list[object]:
        options = {"include_object": compared}
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, metadata))

    transactions = open_transactions(parse_database(database))
    try:
        await upgrade(transactions)
        assert await transactions.run(differences) == []
        assert await transactions.run(present_revision) == REVISION
    finally:
        await transactions.close()


async def test_upgrading_again_does_nothing(empty_postgres: str) -> None:
    assert await upgrade_database(empty_postgres) is None
    assert await upgrade_database(empty_postgres) == REVISION


async def test_two_upgrades_at_once_on_postgres(empty_postgres: str) -> None:
    found = await asyncio.gather(*(upgrade_database(empty_postgres) for _ in range(3)))
    assert sorted(found, key=str) == [REVISION, REVISION, None]


async def test_two_openings_of_a_new_file_at_once(sqlite_file: Path) -> None:
    url = f"sqlite:///{sqlite_file}"
    for store in await asyncio.gather(*(open_store(url) for _ in range(3))):
        assert (await store.watch("db")).tickets == ()
        await store.close()
    assert sqlite_file.stat().st_mode & 0o777 == 0o600


async def test_an_unmigrated_postgres_names_the_command(empty_postgres: str) -> None:
    with pytest.raises(SchemaMismatch, match="has no Midwatch tables") as caught:
        await open_store(empty_postgres)
    assert "midwatch db upgrade" in caught.value.one_line()


async def test_a_later_version_is_left_alone(
    sqlite_file: Path, empty_postgres: str
) -> None:
    """It is neither opened nor upgraded, and the error names the later version."""
    url = f"sqlite:///{sqlite_file}"
    await (await open_store(url)).close()
    with sqlite3.connect(sqlite_file) as lite:
        lite.execute("UPDATE alembic_version SET version_num = '9999'")
    lite.close()
    await upgrade_database(empty_postgres)
    with psycopg.connect(empty_postgres) as postgres:
        postgres.execute("UPDATE alembic_version SET version_num = '9999'")
    for attempt in (
        open_store(url),
        upgrade_database(url),
        upgrade_database(empty_postgres),
    ):
        with pytest.raises(SchemaMismatch) as caught:
            await attempt
        assert "later version" in caught.value.one_line()
    with pytest.raises(SchemaMismatch, match="9999"):
        await open_store(empty_postgres)
