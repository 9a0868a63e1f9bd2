"""What the monitor writes: one look at a subject, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import and_, case, exists, func, select, update
from sqlalchemy.exc import IntegrityError

from midwatch.errors import StaleWatch
from midwatch.model import Json, Key, Severity, Ticket, TicketStatus
from midwatch.store.engine import Transaction, audit_row
from midwatch.store.protocol import Changes, Earlier, Opening, Saved, Watch
from midwatch.store.schema import (
    RESOLVED_BY_OBSERVATION,
    UNDIAGNOSED,
    batches,
    select_tickets,
    subjects,
    ticket_of,
    tickets,
)

_UNRESOLVED = tickets.c.status != TicketStatus.RESOLVED.value
_CHUNK = 500
T = TypeVar("T")


def watch(work: Transaction, subject: str) -> Watch:
    row = work.one(select(subjects).where(subjects.c.name == subject))
    if row is None:
        work.insert_or_update(
            subjects,
            {"name": subject, "revision": 0, "cycle": 0, "failures": 0, "state": {}},
        )
        return Watch(0)
    found = work.all(
        select_tickets()
        .where(tickets.c.subject == subject, _UNRESOLVED)
        .order_by(tickets.c.id)
    )
    return Watch(row.revision, tuple(map(ticket_of, found)), row.state, row.failures)


def revision(work: Transaction, subject: str) -> int:
    found = work.connection.scalar(
        select(subjects.c.revision).where(subjects.c.name == subject)
    )
    return int(found or 0)


def save_cycle(
    work: Transaction,
    subject: str,
    expected: int,
    changes: Changes,
    state: Json | None,
    error: str | None,
    group_wait: float,
) -> Saved:
    before = work.one(
        select(subjects.c.cycle, subjects.c.last_good_at)
        .where(subjects.c.name == subject, subjects.c.revision == expected)
        .with_for_update()
    )
    if before is None:
        raise StaleWatch()
    after = expected + bool(changes)
    cycle = before.cycle + (error is None)
    look = _good_look(work, cycle) if error is None else _failed_look(work, error)
    if state is not None:
        look["state"] = state
    work.execute(
        update(subjects)
        .where(subjects.c.name == subject)
        .values(revision=after, **look)
    )
    if not changes:
        return Saved(after)
    settle(work, (*changes.again, *changes.missing, *changes.resolved), before)
    _return(work, changes.again, None)
    _return(work, changes.returned, cycle)
    _resolve(work, changes.resolved)
    try:
        seen_cycle = cycle if error is None else None
        opened = _open(work, subject, changes.openings, seen_cycle, group_wait)
    except IntegrityError as conflict:
        raise StaleWatch() from conflict
    return Saved(after, opened)


def _good_look(work: Transaction, cycle: int) -> Json:
    return {
        "cycle": cycle,
        "failures": 0,
        "last_error": None,
        "last_good_at": work.now,
        "last_look_at": work.now,
    }


def _failed_look(work: Transaction, error: str) -> Json:
    return {
        "failures": subjects.c.failures + 1,
        "last_error": error,
        "last_look_at": work.now,
    }


def _chunks(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]


def settle(work: Transaction, ids: Sequence[int], before: Any) -> None:
    """Write down the count and the time that were derived while the ticket was seen."""
    for chunk in _chunks(ids):
        work.execute(
            update(tickets)
            .where(tickets.c.id.in_(chunk), tickets.c.seen_cycle.is_not(None))
            .values(
                occurrence_count=tickets.c.occurrence_count
                + before.cycle
                - tickets.c.seen_cycle,
                last_seen_at=before.last_good_at or work.now,
                seen_cycle=None,
            )
        )


def _return(work: Transaction, ids: Sequence[int], cycle: int | None) -> None:
    for chunk in _chunks(ids):
        work.execute(
            update(tickets)
            .where(tickets.c.id.in_(chunk), tickets.c.seen_cycle.is_(None), _UNRESOLVED)
            .values(
                occurrence_count=tickets.c.occurrence_count + 1,
                last_seen_at=work.now,
                seen_cycle=cycle,
            )
        )


def _resolve(work: Transaction, ids: Sequence[int]) -> None:
    for chunk in _chunks(ids):
        open_rows = work.all(
            select(tickets.c.id, tickets.c.status, tickets.c.batch_id)
            .where(tickets.c.id.in_(chunk), _UNRESOLVED, tickets.c.held.is_(False))
            .with_for_update()
        )
        resolve_rows(work, open_rows, "monitor", RESOLVED_BY_OBSERVATION)


def resolve_rows(work: Transaction, rows: Sequence[Any], actor: str, why: str) -> None:
    """Mark tickets (rows of id, status, batch_id) resolved, and take batches with nothing left to
    diagnose off the queue."""
    if not rows:
        return
    ids = [row.id for row in rows]
    resolved = TicketStatus.RESOLVED.value
    work.execute(
        update(tickets)
        .where(tickets.c.id.in_(ids))
        .values(status=resolved, resolved_at=work.now, resolution=why)
    )
    work.note(
        [audit_row(row.id, actor, "resolve", row.status, resolved, why) for row in rows]
    )
    left = exists().where(
        and_(tickets.c.batch_id == batches.c.id, tickets.c.status.in_(UNDIAGNOSED))
    )
    work.execute(
        update(batches)
        .where(batches.c.id.in_({row.batch_id for row in rows}), ~left)
        .values(queued=False)
    )


def _open(
    work: Transaction,
    subject: str,
    openings: Sequence[Opening],
    cycle: int | None,
    group_wait: float,
) -> tuple[Ticket, ...]:
    if not openings:
        return ()
    batch = _batch_for(work, subject, openings, group_wait)
    rows = [_ticket_row(work, opening, cycle, batch) for opening in openings]
    ids = [
        row.id
        for row in work.execute(
            tickets.insert().returning(tickets.c.id, sort_by_parameter_order=True), rows
        )
    ]
    work.note(
        [
            audit_row(
                ticket_id, "monitor", "open", None, TicketStatus.OPEN, row["message"]
            )
            for ticket_id, row in zip(ids, rows, strict=True)
        ]
    )
    found = [
        row
        for chunk in _chunks(ids)
        for row in work.all(select_tickets().where(tickets.c.id.in_(chunk)))
    ]
    return tuple(sorted(map(ticket_of, found), key=lambda ticket: ticket.id))


def _batch_for(
    work: Transaction, subject: str, openings: Sequence[Opening], group_wait: float
) -> int:
    """The subject's young, unclaimed batch, or a new one that can be claimed after the group wait."""
    severity = min(opening.violation.severity for opening in openings)
    young = work.one(
        select(batches.c.id, batches.c.severity)
        .where(
            batches.c.subject == subject,
            batches.c.queued,
            batches.c.claim_token.is_(None),
            batches.c.attempts == 0,
            batches.c.opened_at > work.now - timedelta(seconds=group_wait),
            batches.c.opened_at <= work.now,
        )
        .order_by(batches.c.id.desc())
        .limit(1)
        .with_for_update()
    )
    if young is not None:
        work.execute(
            update(batches)
            .where(batches.c.id == young.id)
            .values(severity=min(young.severity, severity))
        )
        return int(young.id)
    return new_batch(work, subject, severity, group_wait)


def new_batch(
    work: Transaction, subject: str, severity: Severity, wait: float = 0.0
) -> int:
    inserted = work.execute(
        batches.insert().values(
            subject=subject,
            severity=severity,
            opened_at=work.now,
            queued=True,
            attempts=0,
            next_attempt_at=work.now + timedelta(seconds=wait) if wait else None,
            set_at=work.now,
        )
    )
    key = inserted.inserted_primary_key
    assert key is not None
    return int(key[0])


def _ticket_row(
    work: Transaction, opening: Opening, cycle: int | None, batch: int
) -> Json:
    violation = opening.violation
    facts = dict(violation.facts)
    if violation.value is not None:
        facts["value"] = violation.value
    if violation.limit is not None:
        facts["limit"] = violation.limit
    return {
        "subject": violation.key.subject,
        "invariant": violation.key.invariant,
        "component": violation.key.component,
        "severity": violation.severity,
        "status": TicketStatus.OPEN.value,
        "held": False,
        "message": violation.message,
        "facts": facts,
        "first_seen_at": work.now - timedelta(seconds=opening.seen_for),
        "opened_at": work.now,
        "last_seen_at": work.now,
        "occurrence_count": 1,
        "seen_cycle": cycle,
        "flapping": opening.flapping,
        "previous_id": opening.previous_id,
        "batch_id": batch,
    }


def earlier(
    work: Transaction, subject: str, keys: Sequence[Key], within: float
) -> dict[Key, Earlier]:
    recent = tickets.c.opened_at > work.now - timedelta(seconds=within)
    found: dict[Key, Earlier] = {}
    for chunk in _chunks(sorted({key.component for key in keys})):
        for row in work.all(
            select(
                tickets.c.invariant,
                tickets.c.component,
                func.max(tickets.c.id).label("last"),
                func.sum(case((recent, 1), else_=0)).label("recent"),
            )
            .where(
                tickets.c.subject == subject,
                tickets.c.invariant.in_({key.invariant for key in keys}),
                tickets.c.component.in_(chunk),
            )
            .group_by(tickets.c.invariant, tickets.c.component)
        ):
            key = Key(subject, row.invariant, row.component)
            found[key] = Earlier(row.last, int(row.recent))
    return {key: found[key] for key in keys if key in found}


def openings(work: Transaction, key: Key, within: float) -> list[Ticket]:
    found = work.all(
        select_tickets()
        .where(
            tickets.c.subject == key.subject,
            tickets.c.invariant == key.invariant,
            tickets.c.component == key.component,
            tickets.c.opened_at > work.now - timedelta(seconds=within),
        )
        .order_by(tickets.c.opened_at, tickets.c.id)
    )
    return list(map(ticket_of, found))


def save_first_aid(work: Transaction, ids: Sequence[int], first_aid: Json) -> None:
    for chunk in _chunks(ids):
        work.execute(
            update(tickets).where(tickets.c.id.in_(chunk)).values(first_aid=first_aid)
        )
