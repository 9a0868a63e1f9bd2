"""Open a database at the schema of this version, which a SQLite file is brought to.

alembic applies migrations, and is imported only if there is one to apply.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from midwatch.errors import NotFound, SchemaMismatch
from midwatch.store.engine import (
    UPGRADE_SECONDS,
    Lock,
    Transactions,
    missing_file,
    open_transactions,
    parse_database,
)
from midwatch.store.schema import REVISION
from midwatch.store.sqlite import Renewal

if TYPE_CHECKING:
    from alembic.config import Config

TABLES = Path(__file__).with_name("tables.sql")
"""What makes the tables of a new SQLite database; `python -m tools.prepared` writes it from their definitions."""


async def open_current(
    database: str,
    *,
    create: bool = True,
    renewed: Callable[[str], object] | None = None,
) -> Transactions:
    """Open the database at a URL and check its schema.

    A SQLite file is migrated, and created if it is missing. A PostgreSQL database is migrated by
    `midwatch db upgrade` alone.

    Args:
        database: `sqlite:///FILE` or `postgresql://USER@HOST/DATABASE`.
        create: Whether a missing SQLite file is created.
        renewed: Called with one line when a SQLite file that was deleted while it was open has been
            made again; without it none is. The transaction that found this out raises StoreUnavailable.

    Raises:
        NotFound: The SQLite file is missing, and `create` is false.
        SettingsError: `database` is not the URL of a supported database.
        SchemaMismatch: A PostgreSQL database was not migrated, or a later version made it.
        StoreUnavailable: The database does not answer.
    """
    url = parse_database(database)
    if not create and (missing := missing_file(url)):
        raise NotFound(
            f"there is no database {missing}",
            hint="check the setting `database`; a daemon or `midwatch db upgrade` creates it",
        )
    renew = None if renewed is None else Renewal(_upgrade, renewed)
    transactions = open_transactions(url, renew)
    try:
        await require_schema(transactions)
    except BaseException:
        await transactions.close()
        raise
    return transactions


async def require_schema(transactions: Transactions) -> None:
    """Check the schema, and migrate a SQLite file. Raises SchemaMismatch."""
    present = await transactions.read(present_revision)
    if present == REVISION:
        if transactions.dialect == "sqlite":
            await transactions.run(present_revision)  # fails if it cannot be written
        return
    if transactions.dialect == "sqlite":
        await upgrade(transactions)
        return
    found = f"is at {present}" if present else "has no Midwatch tables"
    raise SchemaMismatch(f"the database {found}; this version needs {REVISION}")


async def upgrade_database(database: str) -> str | None:
    """Apply the missing migrations to the database at a URL in one transaction, however large its tables are.

    Returns:
        The revision before, or None for an empty database.

    Raises:
        SettingsError: `database` is not the URL of a supported database.
        SchemaMismatch: A later version made the database.
        StoreUnavailable: The database does not answer.
    """
    transactions = open_transactions(parse_database(database), longest=UPGRADE_SECONDS)
    try:
        return await upgrade(transactions)
    finally:
        await transactions.close()


async def upgrade(transactions: Transactions) -> str | None:
    """Apply the missing migrations in one transaction, or make the tables of an empty SQLite database.

    Returns:
        The revision before, or None for an empty database.

    Raises:
        SchemaMismatch: A later version made the database.
    """
    return await transactions.migrate(_upgrade)


def present_revision(connection: Connection) -> str | None:
    """Return the revision of the database, or None for an empty one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return None if found is None else str(found)


def _upgrade(connection: Connection) -> str | None:
    if connection.dialect.name == "sqlite":
        if (before := present_revision(connection)) == REVISION:
            return before
        if before is None and not inspect(connection).get_table_names():
            _create(connection)
        else:
            _migrate(connection)
        from midwatch.store.statistics import write_statistics

        write_statistics(connection)
        return before
    return _migrate(connection)


def _create(connection: Connection) -> None:
    """Make the tables in an empty SQLite database, many times faster than the migrations do."""
    from midwatch.store.memory import create_words
    from midwatch.store.ticket_search import create_ticket_texts

    for statement in TABLES.read_text(encoding="utf-8").split(";\n"):
        connection.exec_driver_sql(statement)
    create_words(connection)
    create_ticket_texts(connection)
    insert = text("INSERT INTO alembic_version (version_num) VALUES (:revision)")
    connection.execute(insert, {"revision": REVISION})


def _migrate(connection: Connection) -> str | None:
    from alembic import command
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    if connection.dialect.name == "postgresql":
        # Of two upgrades at the same time the second waits, and finds nothing to do.
        lock = text(f"SELECT pg_advisory_xact_lock({Lock.UPGRADE:d})")
        connection.execute(lock)
    before = present_revision(connection)
    config = _config(connection)
    try:
        if before is not None:
            ScriptDirectory.from_config(config).get_revision(before)
        command.upgrade(config, "head")
    except CommandError as error:
        raise SchemaMismatch(
            f"the database is at revision {before}, which this version does not know",
            hint="a later version of Midwatch made it; upgrade Midwatch",
        ) from error
    return before


def _config(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "midwatch:store/migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
