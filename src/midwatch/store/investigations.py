"""Investigations that somebody asked for, and the stored answers to requests with an idempotency key."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, delete, literal, select, tuple_, update

from midwatch.errors import Conflict, NotFound
from midwatch.model import (
    INVESTIGATION,
    Facts,
    Json,
    Key,
    Severity,
    TicketStatus,
    Violation,
)
from midwatch.store.cycles import increase_revision, open_ticket, resolve_rows
from midwatch.store.engine import Transaction
from midwatch.store.on_call import Answered, Investigation
from midwatch.store.protocol import Opening
from midwatch.store.schema import (
    UNRESOLVED,
    diagnoses,
    idempotency_keys,
    investigations,
    tickets,
)

_KEEP_ANSWERS = timedelta(days=1)
_ABANDONED = timedelta(minutes=2)
"""An answer that was not stored for so long will not be: the process that worked on it has died."""


def investigate(
    tx: Transaction,
    id_: str,
    subject: str,
    question: str,
    *,
    by: str,
    severity: Severity = Severity.WARNING,
    facts: Facts | None = None,
    callback_url: str | None = None,
) -> Investigation:
    """Open an investigation; one with this id is returned as it is."""
    if _row(tx, id_) is None:
        violation = Violation(
            Key(subject, INVESTIGATION, id_), severity, question, facts=facts or {}
        )
        ticket = open_ticket(tx, Opening(violation), by)
        row = {
            "id": id_,
            "ticket_id": ticket.id,
            "question": question,
            "requested_by": by,
            "callback_url": callback_url,
            "created_at": tx.now,
        }
        tx.execute(investigations.insert(), row)
    return investigation(tx, id_)


def investigation(tx: Transaction, id_: str) -> Investigation:
    """Return an investigation. Raises NotFound."""
    row = _row(tx, id_)
    if row is None:
        raise NotFound(f"there is no investigation {id_[:80]!r}")
    return _investigation_of(row)


_COLUMNS = (
    investigations,
    tickets.c.subject,
    tickets.c.status,
    tickets.c.resolved_at,
    tickets.c.diagnosis_id,
)


def _select() -> Any:
    return select(*_COLUMNS).join(tickets, tickets.c.id == investigations.c.ticket_id)


def _row(tx: Transaction, id_: str) -> Row[Any] | None:
    return tx.one(_select().where(investigations.c.id == id_))


def _investigation_of(row: Row[Any]) -> Investigation:
    return Investigation(
        id=row.id,
        ticket_id=row.ticket_id,
        subject=row.subject,
        question=row.question,
        requested_by=row.requested_by,
        callback_url=row.callback_url,
        created_at=row.created_at,
        cancelled_at=row.cancelled_at,
        ended_at=row.resolved_at,
        diagnosis_id=row.diagnosis_id,
    )


def list_investigations(
    tx: Transaction, limit: int = 50, after: tuple[datetime, str] | None = None
) -> list[Investigation]:
    """Return investigations, the newest first."""
    place = (investigations.c.created_at, investigations.c.id)
    statement = _select().order_by(*(one.desc() for one in place))
    if after is not None:
        pairs = zip(place, after, strict=True)
        behind = tuple_(*(literal(value, one.type) for one, value in pairs))
        statement = statement.where(tuple_(*place) < behind)
    return list(map(_investigation_of, tx.all(statement.limit(max(limit, 0)))))


def cancel_investigation(tx: Transaction, id_: str, actor: str) -> Investigation:
    """Cancel an investigation; one that was cancelled stays as it is. Raises NotFound, and Conflict if it has ended."""
    present = investigation(tx, id_)
    row = tx.one(
        select(tickets).where(tickets.c.id == present.ticket_id).with_for_update()
    )
    assert row is not None  # tickets are never deleted
    if investigation(tx, id_).cancelled_at is not None:
        return investigation(tx, id_)
    if row.status == TicketStatus.RESOLVED:
        raise Conflict(f"investigation {id_} has ended")
    tx.execute(
        update(investigations)
        .where(investigations.c.id == id_)
        .values(cancelled_at=tx.now)
    )
    resolve_rows(tx, [row], actor, "the investigation was cancelled")
    increase_revision(tx, row.subject)
    return investigation(tx, id_)


def end_investigations(
    tx: Transaction, ticket_ids: Iterable[int], actor: str, diagnosis_id: int
) -> None:
    """Resolve those of the tickets that were investigations, now that they are diagnosed."""
    rows = tx.all(
        select(tickets.c.id, tickets.c.status, tickets.c.batch_id, tickets.c.subject)
        .join(investigations, investigations.c.ticket_id == tickets.c.id)
        .where(
            tickets.c.id.in_(list(ticket_ids)),
            UNRESOLVED,
        )
    )
    if not rows:
        return
    outcome = tx.connection.scalar(
        select(diagnoses.c.outcome).where(diagnoses.c.id == diagnosis_id)
    )
    resolve_rows(tx, rows, actor, f"diagnosis {diagnosis_id}: {outcome}")
    for subject in sorted({row.subject for row in rows}):
        increase_revision(tx, subject)


# ------------------------------------------------------------------ idempotent requests


def begin_request(
    tx: Transaction, principal: str, key: str, digest: str
) -> Answered | None:
    """Return the stored answer to a request, or None if this one has to be carried out. Raises Conflict."""
    row = _request(tx, principal, key)
    old = idempotency_keys.c.created_at < tx.now - _KEEP_ANSWERS
    tx.execute(delete(idempotency_keys).where(old))
    if row is not None and _gone(tx, row):
        tx.execute(_of(delete(idempotency_keys), principal, key))
        row = None
    if row is None:
        values = {
            "principal": principal,
            "key": key,
            "request_digest": digest,
            "status": 0,
            "answer": {},
            "created_at": tx.now,
        }
        if tx.insert_or_update(idempotency_keys, values):
            return None
        row = _request(tx, principal, key)  # of another process, at the same time
    if row is None or (row.request_digest == digest and row.status == 0):
        raise Conflict(
            "a request with this idempotency key is being carried out",
            hint="try again in a moment",
        )
    return Answered(row.request_digest, row.status, row.answer)


def _gone(tx: Transaction, row: Row[Any]) -> bool:
    age: timedelta = tx.now - row.created_at
    return age > (_KEEP_ANSWERS if row.status else _ABANDONED)


def end_request(
    tx: Transaction, principal: str, key: str, status: int, answer: Json | None
) -> None:
    """Store the answer to a request; without one it may be carried out again."""
    if answer is None:
        tx.execute(_of(delete(idempotency_keys), principal, key))
    else:
        values = {"status": status, "answer": answer}
        tx.execute(_of(update(idempotency_keys), principal, key).values(values))


def _request(tx: Transaction, principal: str, key: str) -> Row[Any] | None:
    return tx.one(_of(select(idempotency_keys), principal, key).with_for_update())


def _of(statement: Any, principal: str, key: str) -> Any:
    return statement.where(
        idempotency_keys.c.principal == principal, idempotency_keys.c.key == key
    )
