"""How rows of the database become values, without SQLAlchemy: a row has an attribute for each column.

A damaged value hides no row, and no other row. What stands in its place errs on the side of urgency, and the message of the ticket says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from midwatch.model import Key, Severity, Ticket, TicketStatus

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)


_DAMAGED_INSTANT = datetime(1970, 1, 1, tzinfo=UTC)


class DamagedDocument(dict[str, Any]):
    """What stands for a document of the database that is not JSON: an empty one."""


def instant_of(value: int) -> datetime:
    """Return the instant that SQLite has as whole milliseconds since 1970; 1970 for anything else."""
    try:
        return EPOCH + int(value) * MILLISECOND
    except (TypeError, ValueError, OverflowError):
        return _DAMAGED_INSTANT


def document_of(text: str) -> Any:
    """Return a document that SQLite has as text; a `DamagedDocument` for anything but JSON."""
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return DamagedDocument()


def severity_of(value: int) -> Severity:
    """Return a stored severity; critical for one that is not known."""
    try:
        return Severity(value)
    except ValueError:
        return Severity.CRITICAL


def status_of(value: str) -> TicketStatus:
    """Return a stored status; open for one that is not known."""
    try:
        return TicketStatus(value)
    except ValueError:
        return TicketStatus.OPEN


def _damage(row: Any) -> Iterator[str]:
    """Yield what is damaged of a ticket."""
    if severity_of(row.severity) != row.severity:
        yield f"severity {row.severity!r:.20}"
    if status_of(row.status) != row.status:
        yield f"status {row.status!r:.20}"
    for name in ("facts", "first_aid"):
        value = getattr(row, name)
        if isinstance(value, DamagedDocument) or not isinstance(value, dict | None):
            yield name
    for name in ("first_seen_at", "opened_at", "last_seen_now", "resolved_at"):
        if getattr(row, name) is _DAMAGED_INSTANT:
            yield name.replace("_now", "_at")


def _document(value: Any) -> Any:
    usable = isinstance(value, dict) and not isinstance(value, DamagedDocument)
    return value if usable else None


def ticket_of(row: Any) -> Ticket:
    """Return the ticket of a row of `midwatch.store.schema.select_tickets`."""
    damage = ", ".join(_damage(row))
    told = f"[damaged in the database: {damage}] " if damage else ""
    return Ticket(
        id=row.id,
        key=Key(row.subject, row.invariant, row.component),
        severity=severity_of(row.severity),
        status=status_of(row.status),
        held=row.held,
        message=f"{told}{row.message}",
        facts=row.facts if isinstance(row.facts, dict) else {},
        first_seen_at=row.first_seen_at,
        opened_at=row.opened_at,
        last_seen_at=row.last_seen_now,
        occurrence_count=row.count_now,
        batch=row.batch_id,
        seen=row.seen_cycle is not None,
        flapping=row.flapping,
        previous_id=row.previous_id,
        acknowledged_at=row.acknowledged_at,
        acknowledged_by=row.acknowledged_by,
        resolved_at=row.resolved_at,
        resolution=row.resolution,
        first_aid=_document(row.first_aid),
        diagnosis_id=row.diagnosis_id,
        left_out_by=row.left_out_by,
        attempts=row.attempts,
        next_attempt_at=row.next_attempt_at,
        last_error=row.last_error,
        silenced_by=row.silenced_by,
        silenced_until=row.silenced_until,
    )
