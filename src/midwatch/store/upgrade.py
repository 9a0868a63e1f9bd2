"""Migrations: alembic applies them, and is imported only if there is one to apply."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from midwatch.errors import SchemaMismatch
from midwatch.store.engine import Transactions
from midwatch.store.schema import REVISION

if TYPE_CHECKING:
    from alembic.config import Config


async def require_schema(transactions: Transactions) -> None:
    """Check the schema, and migrate a SQLite file. Raises SchemaMismatch."""
    present = await transactions.run(present_revision)
    if present == REVISION:
        return
    if transactions.dialect == "sqlite":
        await upgrade(transactions)
        return
    found = f"is at {present}" if present else "has no Midwatch tables"
    raise SchemaMismatch(f"the database {found}; this version needs {REVISION}")


async def upgrade(transactions: Transactions) -> str | None:
    """Apply the missing migrations in one transaction.

    Returns:
        The revision before, or None for an empty database.

    Raises:
        SchemaMismatch: A later version made the database.
    """
    return await transactions.run(_upgrade)


def present_revision(connection: Connection) -> str | None:
    """Return the revision of the database, or None for an empty one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return None if found is None else str(found)


def _upgrade(connection: Connection) -> str | None:
    from alembic import command
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    if connection.dialect.name == "postgresql":
        # Of two upgrades at the same time the second waits, and finds nothing to do.
        connection.execute(text("SELECT pg_advisory_xact_lock(7305614)"))
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
