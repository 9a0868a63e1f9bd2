"""Stores to test: SQLite in memory and in a file, and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from midwatch.store import indexes  # noqa: F401  (with it the metadata has all tables)
from midwatch.store.schema import metadata
from midwatch.store.upgrade import upgrade_database
from midwatch.testing.postgres import PrivatePostgres

_numbers = itertools.count()
# TRUNCATE makes new files for all tables and indexes, of which a test fills few.
_CLEAR = "; ".join(
    (
        "SET session_replication_role = replica",  # in any order, and without triggers
        *(f"DELETE FROM {table}" for table in (*metadata.tables, "past_words")),
        "SELECT setval(format('%I', sequencename)::regclass, start_value, false) FROM pg_sequences",
    )
).encode()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PrivatePostgres]:
    """Start one server for the session. Tests that stop a server start their own.

    No table is analyzed: for one that has a page the planner may read all of it, whatever indexes it has.
    """
    with PrivatePostgres(settings={"autovacuum": False}) as server:
        yield server


@pytest.fixture(scope="session")
def migrated(postgres: PrivatePostgres) -> str:
    asyncio.run(upgrade_database(postgres.dsn()))
    return postgres.dsn()


@pytest.fixture
def postgres_database(migrated: str) -> str:
    """Return the URL of a migrated PostgreSQL database without rows.

    To clear a database is many times faster than to create one.
    """
    with psycopg.connect(migrated, autocommit=True) as connection:
        connection.execute(_CLEAR)
    return migrated


@pytest.fixture
def empty_postgres(postgres: PrivatePostgres) -> str:
    """Return the URL of a new PostgreSQL database without tables."""
    name = f"empty_{next(_numbers)}"
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return postgres.dsn(name)


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("store") / "migrated.db"
    asyncio.run(upgrade_database(f"sqlite:///{file}"))
    return file


@pytest.fixture
def sqlite_file(tmp_path: Path) -> Path:
    return tmp_path / "midwatch.db"


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> str:
    """Return the URL of an empty database of each kind; the one in memory is migrated when it is opened."""
    if request.param == "memory":
        return "sqlite://"
    return _shared(request, request.param)


@pytest.fixture(params=["sqlite", "postgres"])
def shared_database(request: pytest.FixtureRequest) -> str:
    """Return a URL as `database`, of the kinds that several processes can share."""
    return _shared(request, request.param)


def _shared(request: pytest.FixtureRequest, kind: str) -> str:
    if kind == "sqlite":
        file = request.getfixturevalue("sqlite_file")
        shutil.copy(request.getfixturevalue("migrated_file"), file)
        return f"sqlite:///{file}"
    return str(request.getfixturevalue("postgres_database"))


@pytest.fixture
def shared_sqlite(request: pytest.FixtureRequest) -> str:
    """Return the URL of an empty SQLite database in a file."""
    return _shared(request, "sqlite")
