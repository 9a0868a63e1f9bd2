"""Migrations: they create the tables of the schema, once, and have no downgrade."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, create_engine, inspect, text

from midwatch.errors import SchemaMismatch
from midwatch.store import sqlite
from midwatch.store.engine import open_transactions, parse_database
from midwatch.store.schema import REVISION, metadata
from midwatch.store.sql import open_store
from midwatch.store.upgrade import _migrate, present_revision, upgrade, upgrade_database

from ..waiting import PATIENCE


async def test_the_migrations_make_the_tables(database: str) -> None:
    def compared(thing: object, name: str | None, *_: object) -> bool:
        """The indexes of words and texts are made by each database in its own way."""
        return not str(name).startswith(("past_words", "ticket_texts"))

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


async def test_a_new_sqlite_database_is_as_the_migrations_make_it(
    sqlite_file: Path, tmp_path: Path
) -> None:
    """A new one is made without them, by a process that has imported nothing else: modules have tables of their own."""
    migrated = tmp_path / "migrated.db"
    transactions = open_transactions(parse_database(f"sqlite:///{migrated}"))
    await transactions.migrate(_migrate)
    await transactions.close()
    code = (
        "import asyncio, sys; from midwatch.store.upgrade import upgrade_database;"
        " asyncio.run(upgrade_database(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{sqlite_file}"]
    subprocess.run(command, check=True)
    assert _described(sqlite_file) == _described(migrated)


def _described(file: Path) -> dict[str, object]:
    """Return all that a SQLite file says of its tables; the order of columns does not matter."""
    opened = create_engine(f"sqlite:///{file}")
    found: dict[str, object] = {}
    with opened.connect() as connection:
        inspector = inspect(connection)
        for table in inspector.get_table_names():
            found[table] = {
                "columns": {
                    column["name"]: (
                        str(column["type"]),
                        column["nullable"],
                        str(column["default"]).strip("'"),
                    )
                    for column in inspector.get_columns(table)
                },
                "key": inspector.get_pk_constraint(table),
                "references": _sorted(inspector.get_foreign_keys(table)),
                "unique": _sorted(inspector.get_unique_constraints(table)),
                "checks": _sorted(inspector.get_check_constraints(table)),
                "indexes": {
                    index["name"]: (
                        index["column_names"],
                        bool(index["unique"]),
                        str(index.get("dialect_options", {}).get("sqlite_where")),
                    )
                    for index in inspector.get_indexes(table)
                },
            }
        others = "SELECT type, name, sql FROM sqlite_schema WHERE type NOT IN ('table', 'index')"
        found["others"] = _sorted(connection.execute(text(others)).all())
        virtual = "SELECT sql FROM sqlite_schema WHERE sql LIKE 'CREATE VIRTUAL%'"
        found["virtual"] = _sorted(connection.execute(text(virtual)).all())
        version = text("SELECT version_num FROM alembic_version")
        found["revision"] = connection.execute(version).scalars().all()
    opened.dispose()
    return found


def _sorted(rows: Iterable[object]) -> list[object]:
    return sorted(rows, key=repr)


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


@contextmanager
def _migrating(file: Path, journal: str = "WAL") -> Iterator[sqlite3.Connection]:
    """Let another connection hold a migration that takes longer than any other transaction may."""
    lite = sqlite3.connect(file, isolation_level=None)
    lite.execute(f"PRAGMA journal_mode={journal}")
    lite.execute("BEGIN IMMEDIATE")
    try:
        yield lite
    finally:
        lite.close()


@pytest.mark.parametrize(("journal", "seconds"), [("WAL", 0.01), ("DELETE", 60.0)])
async def test_an_opening_waits_for_a_migration(
    sqlite_file: Path, monkeypatch: pytest.MonkeyPatch, journal: str, seconds: float
) -> None:
    """Also in a file that has no write-ahead log yet: SQLite lets who wants one fail at once while another writes."""
    monkeypatch.setattr(sqlite, "SQLITE_BUSY_SECONDS", seconds)
    with _migrating(sqlite_file, journal) as lite:
        opening = asyncio.create_task(open_store(f"sqlite:///{sqlite_file}"))
        done, _ = await asyncio.wait({opening}, timeout=0.3)
        assert not done
        lite.execute("COMMIT")
        store = await opening
        assert (await store.watch("db")).tickets == ()
        await store.close()


async def test_an_opening_that_waits_for_a_migration_can_be_cancelled(
    sqlite_file: Path,
) -> None:
    with _migrating(sqlite_file):
        opening = asyncio.create_task(open_store(f"sqlite:///{sqlite_file}"))
        await asyncio.wait({opening}, timeout=0.1)
        opening.cancel()
        done, _ = await asyncio.wait({opening}, timeout=PATIENCE)
        assert done and opening.cancelled()


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
