"""Migrations: alembic applies them; it is only imported when there is something to apply."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from midwatch.errors import SchemaMismatch
from midwatch.store.engine import Transactions
from midwatch.store.schema import REVISION

if TYPE_CHECKING:
    from alembic.config import Config


async def require_schema(transactions: Transactions) -> None:
    """Check the schema; bring a SQLite file up to date. Raises SchemaMismatch."""
    present = await transactions.run(present_revision)
    if present == REVISION:
        return
    if transactions.dialect == "sqlite":
        await upgrade(transactions)
        return
    found = f"is at {present}" if present else "has no tables of ours"
    raise SchemaMismatch(f"the database {found}, this version needs {REVISION}")


async def upgrade(transactions: Transactions) -> str | None:
    """Apply what is missing, in one transaction; returns the revision before.

    Raises SchemaMismatch for a database that a later version made.
    """
    return await transactions.run(_upgrade)


def present_revision(connection: Connection) -> str | None:
    """The migration the database is at; None for an empty one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return None if found is None else str(found)


def _upgrade(connection: Connection) -> str | None:
    from alembic import command
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    if connection.dialect.name == "postgresql":
        # Two upgrades at once: the second waits and finds nothing to do.
        connection.execute(text("SELECT pg_advisory_xact_lock(7305614)"))
    before = present_revision(connection)
    config = _config(connection)
    try:
        if before is not None:
            ScriptDirectory.from_config(config).get_revision(before)
        command.upgrade(config, "head")
    except CommandError as error:
        raise SchemaMismatch(
            f"the database is at {before}, which this version does not know",
            hint="it was made by a later version of Midwatch; upgrade Midwatch",
        ) from error
    return before


def _config(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "midwatch:store/migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
