"""How rows of the database become values, without SQLAlchemy: a row has an attribute for each column."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from midwatch.model import Key, Severity, Ticket, TicketStatus

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)


def instant_of(value: int) -> datetime:
    """Return the instant that SQLite has as whole milliseconds since 1970."""
    return EPOCH + int(value) * MILLISECOND


def ticket_of(row: Any) -> Ticket:
    """Return the ticket of a row of `midwatch.store.schema.select_tickets`."""
    return Ticket(
        id=row.id,
        key=Key(row.subject, row.invariant, row.component),
        severity=Severity(row.severity),
        status=TicketStatus(row.status),
        held=row.held,
        message=row.message,
        facts=row.facts,
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
        first_aid=row.first_aid,
        diagnosis_id=row.diagnosis_id,
        left_out_by=row.left_out_by,
        attempts=row.attempts,
        next_attempt_at=row.next_attempt_at,
        last_error=row.last_error,
        silenced_by=row.silenced_by,
        silenced_until=row.silenced_until,
    )
