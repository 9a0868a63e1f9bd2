"""Migrations and the indexes of the tables.

Alembic applies migrations; it is imported only if there is one to apply. The indexes belong to the
tables' metadata once this module is imported. They are not in `schema` because an option of PostgreSQL
loads its dialect, which commands that list tickets do not need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection, Index, inspect, text

from midwatch.errors import SchemaMismatch
from midwatch.store.engine import Transactions
from midwatch.store.schema import (
    REVISION,
    audit,
    batches,
    diagnoses,
    diagnosis_tickets,
    sessions,
    tickets,
    transcript_entries,
)

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


_UNRESOLVED = text("status <> 'resolved'")

Index(
    "batches_queue",
    batches.c.severity,
    batches.c.opened_at,
    batches.c.id,
    sqlite_where=text("queued"),
    postgresql_where=text("queued"),
)
Index("batches_subject", batches.c.subject, batches.c.id)
Index(
    "tickets_one_unresolved_per_key",
    tickets.c.subject,
    tickets.c.invariant,
    tickets.c.component,
    unique=True,
    sqlite_where=_UNRESOLVED,
    postgresql_where=_UNRESOLVED,
)
Index(
    "tickets_unresolved",
    tickets.c.severity,
    tickets.c.opened_at,
    tickets.c.id,
    sqlite_where=_UNRESOLVED,
    postgresql_where=_UNRESOLVED,
)
Index("tickets_batch", tickets.c.batch_id)
Index("tickets_past", tickets.c.invariant, tickets.c.subject, tickets.c.opened_at)
Index("tickets_opened", tickets.c.opened_at)
Index("diagnoses_batch", diagnoses.c.batch_id)
Index("diagnoses_started", diagnoses.c.started_at)
Index("diagnosis_tickets_ticket", diagnosis_tickets.c.ticket_id)
Index("audit_ticket", audit.c.ticket_id, audit.c.id)
Index("sessions_created", sessions.c.created_at, sessions.c.id)
Index("sessions_ticket", sessions.c.ticket_id)
_TRANSCRIPT = (
    transcript_entries.c.project_key,
    transcript_entries.c.session_id,
    transcript_entries.c.subpath,
)
Index("transcript_entries_order", *_TRANSCRIPT, transcript_entries.c.id)
# Entries without a uuid never conflict: null equals nothing, not even null.
Index("transcript_entries_once", *_TRANSCRIPT, transcript_entries.c.uuid, unique=True)
