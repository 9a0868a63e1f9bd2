"""The feed of changes: the audit rows of all tickets, in an order that no later commit changes.

Ids come from a sequence, so on PostgreSQL a row can become visible after one with a higher id. A reader that had gone
past it would never see it. So a transaction first takes a shared advisory lock whose key has the last id that was given out
before; its own ids are higher. A reader goes no further than the lowest such id of those that still hold a lock: a row up to
there is committed, or never will be. Transactions of other programs do not count, and writers do not wait for each other.
On SQLite there is one writer at a time.
"""

from __future__ import annotations

from sqlalchemy import Select, select, text

from midwatch.model import Key
from midwatch.store.engine import AUDIT_LOCK, Transaction
from midwatch.store.on_call import Change, Cursor
from midwatch.store.rows import severity_of
from midwatch.store.schema import audit, cursors, tickets

__all__ = ["Change", "Cursor", "changes", "cursor", "last_cursor", "save_cursor"]

_LAST_ON_SQLITE = text("SELECT coalesce(max(id), 0) FROM audit")
_LAST_ON_POSTGRES = text(
    "SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('audit', 'id')::regclass), 0)"
)
_BEFORE_WRITERS = text(
    "SELECT min((classid::bigint << 32 | objid::bigint) & (1::bigint << 48) - 1) FROM pg_locks"
    " WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND classid::bigint >> 16 = :lock"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


def changes(
    tx: Transaction, after: Cursor | None = None, limit: int = 500
) -> list[Change]:
    """Return up to `limit` changes that follow `after`, in their order."""
    last = _last(tx)
    start = after.audit_id if after else 0
    if start > last:  # a cursor of a database that this one was put in the place of
        start = 0
    if start == last:
        return []
    end = _end(tx, last)
    statement = _select_changes().where(audit.c.id > start, audit.c.id <= end)
    rows = tx.all(statement.order_by(audit.c.id).limit(limit))
    return [
        Change(
            Cursor(row.id),
            row.ticket_id,
            row.at,
            row.actor,
            row.action,
            row.before,
            row.after,
            row.why,
            Key(row.subject, row.invariant, row.component),
            severity_of(row.severity),
            row.batch_id,
            row.message,
        )
        for row in rows
    ]


def _select_changes() -> Select[tuple[object, ...]]:
    return select(
        audit,
        tickets.c.subject,
        tickets.c.invariant,
        tickets.c.component,
        tickets.c.severity,
        tickets.c.batch_id,
        tickets.c.message,
    ).join(tickets, tickets.c.id == audit.c.ticket_id)


def last_cursor(tx: Transaction) -> Cursor:
    """Return the cursor that every later change follows."""
    return Cursor(_end(tx, _last(tx)))


def _last(tx: Transaction) -> int:
    """Return the last id that was given to an audit row, whether or not the row is committed."""
    sqlite = tx.connection.dialect.name == "sqlite"
    found = tx.connection.scalar(_LAST_ON_SQLITE if sqlite else _LAST_ON_POSTGRES)
    return int(found or 0)


def _end(tx: Transaction, last: int) -> int:
    """Return the id up to which no row appears any more.

    `last` was read before the locks: ids of a transaction that takes its lock later are higher.
    """
    if tx.connection.dialect.name == "sqlite":
        return last
    writing = tx.connection.scalar(_BEFORE_WRITERS, {"lock": AUDIT_LOCK})
    return last if writing is None else min(last, int(writing))


def save_cursor(tx: Transaction, name: str, cursor: Cursor) -> None:
    """Store how far the reader `name` has come."""
    values = {"audit_id": cursor.audit_id, "updated_at": tx.now}
    tx.insert_or_update(cursors, {"name": name, **values}, values)


def cursor(tx: Transaction, name: str) -> Cursor | None:
    """Return how far the reader `name` has come, or None for a new one."""
    row = tx.one(select(cursors.c.audit_id).where(cursors.c.name == name))
    return None if row is None else Cursor(row.audit_id)
