"""What people do to tickets, each step with its audit row."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select, update

from midwatch.errors import Conflict
from midwatch.model import Json, Severity, Ticket, TicketStatus
from midwatch.store.cycles import new_batch, resolve_rows, settle
from midwatch.store.reading import ticket
from midwatch.store.rows import UNDIAGNOSED
from midwatch.store.schema import batches, subjects, tickets
from midwatch.store.work import CLOCK_SLACK, Work, audit_row


def acknowledge(work: Work, ticket_id: int, actor: str, why: str) -> Ticket:
    row = _unresolved(work, ticket_id)
    status = (
        TicketStatus.ACKNOWLEDGED
        if row.status == TicketStatus.OPEN
        else TicketStatus(row.status)
    )
    changes = {"status": status, "acknowledged_at": work.now, "acknowledged_by": actor}
    return _change(work, row, changes, actor, "acknowledge", why)


def hold(work: Work, ticket_id: int, held: bool, actor: str, why: str) -> Ticket:
    row = _unresolved(work, ticket_id)
    return _change(work, row, {"held": held}, actor, "hold" if held else "unhold", why)


def resolve(work: Work, ticket_id: int, actor: str, why: str) -> Ticket:
    row = _unresolved(work, ticket_id)
    looks = work.one(select(subjects).where(subjects.c.name == row.subject))
    settle(work, [ticket_id], looks)
    resolve_rows(work, [row], actor, why)
    _bump(work, row.subject)
    return ticket(work, ticket_id)


def retry(work: Work, ticket_id: int, actor: str, why: str) -> Ticket:
    row = _unresolved(work, ticket_id)
    old = work.one(
        select(batches).where(batches.c.id == row.batch_id).with_for_update()
    )
    if old is not None and _being_diagnosed(work, old):
        raise Conflict(
            f"ticket {ticket_id} is being diagnosed by {old.claim_holder}",
            hint="wait for it to end",
        )
    status = TicketStatus.ACKNOWLEDGED if row.acknowledged_at else TicketStatus.OPEN
    changes = {
        "status": status,
        "diagnosis_id": None,
        "batch_id": new_batch(work, row.subject, Severity(row.severity)),
    }
    changed = _change(work, row, changes, actor, "retry", why)
    _unqueue_if_empty(work, row.batch_id)
    return changed


def _being_diagnosed(work: Work, batch: Row[Any]) -> bool:
    return (
        batch.claim_token is not None
        and batch.claim_until > work.now
        and batch.set_at <= work.now + CLOCK_SLACK
    )


def _unresolved(work: Work, ticket_id: int) -> Row[Any]:
    ticket(work, ticket_id)
    row = work.one(select(tickets).where(tickets.c.id == ticket_id).with_for_update())
    assert row is not None  # tickets are never deleted
    if row.status == TicketStatus.RESOLVED:
        raise Conflict(f"ticket {ticket_id} is resolved already")
    return row


def _change(
    work: Work, row: Row[Any], changes: Json, actor: str, action: str, why: str
) -> Ticket:
    work.execute(update(tickets).where(tickets.c.id == row.id).values(changes))
    after = changes.get("status", row.status)
    work.note([audit_row(row.id, actor, action, row.status, after, why)])
    _bump(work, row.subject)
    return ticket(work, row.id)


def _bump(work: Work, subject: str) -> None:
    """Tell the monitor that the subject's tickets are not what it remembers."""
    work.execute(
        update(subjects)
        .where(subjects.c.name == subject)
        .values(revision=subjects.c.revision + 1)
    )


def _unqueue_if_empty(work: Work, batch: int) -> None:
    left = select(tickets.c.id).where(
        tickets.c.batch_id == batch, tickets.c.status.in_(UNDIAGNOSED)
    )
    if work.one(left.limit(1)) is None:
        work.execute(update(batches).where(batches.c.id == batch).values(queued=False))
