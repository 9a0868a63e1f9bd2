"""What people and daemons read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from statistics import median
from typing import Any

from sqlalchemy import Row, and_, func, or_, select, tuple_, update

from midwatch.errors import Conflict, NotFound
from midwatch.model import (
    AuditRow,
    Diagnosis,
    Json,
    Severity,
    Ticket,
    TicketStatus,
    Usage,
)
from midwatch.store.cycles import new_batch, resolve_rows, settle
from midwatch.store.engine import CLOCK_SLACK, Transaction, audit_row
from midwatch.store.protocol import Brief, Past, Stats, TicketFilter, TicketSession
from midwatch.store.schema import (
    LARGEST_ID,
    RESOLVED_BY_OBSERVATION,
    UNDIAGNOSED,
    audit,
    batches,
    diagnoses,
    diagnosis_of,
    diagnosis_tickets,
    select_diagnoses,
    select_tickets,
    sessions,
    subjects,
    ticket_of,
    tickets,
    usage_of,
)

_AT_ONCE = 500  # ids in one statement


def ticket(work: Transaction, ticket_id: int) -> Ticket:
    known = 0 < ticket_id <= LARGEST_ID
    row = work.one(select_tickets().where(tickets.c.id == ticket_id)) if known else None
    if row is None:
        raise NotFound(
            f"there is no ticket {ticket_id}", hint="see `midwatch tickets list --all`"
        )
    return ticket_of(row)


def list_tickets(work: Transaction, query: TicketFilter) -> list[Ticket]:
    statement = select_tickets().order_by(
        tickets.c.severity, tickets.c.opened_at, tickets.c.id
    )
    if not query.statuses:
        # The newest history matters most; the open ones are worked through oldest first.
        statement = select_tickets().order_by(
            tickets.c.opened_at.desc(), tickets.c.id.desc()
        )
    elif TicketStatus.RESOLVED not in query.statuses:
        statement = statement.where(tickets.c.status != TicketStatus.RESOLVED.value)
    if query.statuses:
        statement = statement.where(tickets.c.status.in_(list(query.statuses)))
    if query.subject is not None:
        statement = statement.where(tickets.c.subject == query.subject)
    if query.severity is not None:
        statement = statement.where(tickets.c.severity == query.severity)
    if query.batch is not None:
        statement = statement.where(tickets.c.batch_id == query.batch)
    return list(map(ticket_of, work.all(statement.limit(max(query.limit, 0)))))


def history(work: Transaction, ticket_id: int) -> list[AuditRow]:
    ticket(work, ticket_id)
    rows = work.all(
        select(audit).where(audit.c.ticket_id == ticket_id).order_by(audit.c.id)
    )
    return [
        AuditRow(
            row.ticket_id, row.at, row.actor, row.action, row.before, row.after, row.why
        )
        for row in rows
    ]


def diagnosis(work: Transaction, diagnosis_id: int) -> Diagnosis:
    known = 0 < diagnosis_id <= LARGEST_ID
    statement = select_diagnoses().where(diagnoses.c.id == diagnosis_id)
    row = work.one(statement) if known else None
    if row is None:
        raise NotFound(f"there is no diagnosis {diagnosis_id}")
    return diagnosis_of(row)


def briefs(work: Transaction, diagnosis_ids: Sequence[int]) -> dict[int, Brief]:
    found: dict[int, Brief] = {}
    for start in range(0, len(diagnosis_ids), _AT_ONCE):
        some = diagnosis_ids[start : start + _AT_ONCE]
        for row in work.all(
            select(
                diagnoses.c.id,
                diagnoses.c.outcome,
                diagnoses.c.confidence,
                diagnoses.c.answer["verdict"].as_string().label("verdict"),
            ).where(diagnoses.c.id.in_(some))
        ):
            found[row.id] = Brief(row.outcome, row.verdict, row.confidence)
    return found


def list_diagnoses(work: Transaction, ticket_id: int) -> list[Diagnosis]:
    link = diagnosis_tickets.c
    rows = work.all(
        select_diagnoses()
        .join(diagnosis_tickets, link.diagnosis_id == diagnoses.c.id)
        .where(link.ticket_id == ticket_id)
        .order_by(diagnoses.c.id)
    )
    return list(map(diagnosis_of, rows))


def sessions_of(work: Transaction, ticket_id: int) -> list[TicketSession]:
    rows = work.all(
        select(sessions.c.id, sessions.c.phase, sessions.c.created_at)
        .where(sessions.c.ticket_id == ticket_id)
        .order_by(sessions.c.created_at, sessions.c.id)
    )
    return [TicketSession(row.id, row.phase, row.created_at) for row in rows]


def past(work: Transaction, about: Sequence[Ticket], limit: int) -> list[Past]:
    """Resolved tickets that somebody learnt from: diagnosed with an answer, or resolved by hand."""
    if not about:
        return []
    subject = about[0].key.subject
    same_subject = tickets.c.subject == subject
    keys = {(ticket.key.invariant, ticket.key.component) for ticket in about}
    invariants = {ticket.key.invariant for ticket in about}
    rows = work.all(
        select_tickets()
        .add_columns(diagnoses.c.answer)
        .outerjoin(
            diagnoses,
            and_(
                diagnoses.c.id == tickets.c.diagnosis_id,
                diagnoses.c.outcome == "answered",
            ),
        )
        .where(
            tickets.c.status == TicketStatus.RESOLVED.value,
            tickets.c.invariant.in_(invariants),
            or_(
                diagnoses.c.id.is_not(None),
                tickets.c.resolution != RESOLVED_BY_OBSERVATION,
            ),
        )
        .order_by(
            and_(
                same_subject, tuple_(tickets.c.invariant, tickets.c.component).in_(keys)
            ).desc(),
            same_subject.desc(),
            tickets.c.opened_at.desc(),
            tickets.c.id.desc(),
        )
        .limit(limit)
    )
    return [_past_of(row, subject, keys) for row in rows]


def _past_of(row: Any, subject: str, keys: set[tuple[str, str]]) -> Past:
    answer = row.answer or {}
    same = row.subject == subject and (row.invariant, row.component) in keys
    return Past(ticket_of(row), answer.get("summary"), answer.get("root_cause"), same)


def stats(work: Transaction, within: float) -> Stats:
    since = work.now - timedelta(seconds=within)
    rows = work.all(
        select(
            tickets.c.first_seen_at,
            tickets.c.opened_at,
            tickets.c.resolved_at,
            tickets.c.status,
            diagnoses.c.finished_at,
            diagnoses.c.outcome,
        )
        .outerjoin(diagnoses, diagnoses.c.id == tickets.c.diagnosis_id)
        .where(tickets.c.opened_at > since)
    )
    calls = work.all(
        select(
            diagnoses.c.outcome,
            func.count().label("calls"),
            *(func.sum(diagnoses.c[name]).label(name) for name in _SUMS),
        )
        .where(diagnoses.c.started_at > since)
        .group_by(diagnoses.c.outcome)
    )
    resolved = [row for row in rows if row.status == TicketStatus.RESOLVED]
    return Stats(
        since=since,
        opened=len(rows),
        unresolved=len(rows) - len(resolved),
        resolved=len(resolved),
        outcomes=Counter({row.outcome: row.calls for row in calls}),
        to_detect=_median(row.opened_at - row.first_seen_at for row in rows),
        to_diagnose=_median(
            row.finished_at - row.opened_at for row in rows if row.outcome == "answered"
        ),
        to_resolve=_median(row.resolved_at - row.opened_at for row in resolved),
        usage=sum((usage_of(row) for row in calls), Usage()),
        cost_usd=sum(row.cost_usd for row in calls),
    )


_SUMS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cost_usd",
)


def _median(spans: Any) -> float | None:
    seconds = [span.total_seconds() for span in spans]
    return median(seconds) if seconds else None


# ------------------------------------------------------------ people
# What people do to tickets, each step with its audit row.


def acknowledge(work: Transaction, ticket_id: int, actor: str, why: str) -> Ticket:
    row = _unresolved(work, ticket_id)
    status = (
        TicketStatus.ACKNOWLEDGED
        if row.status == TicketStatus.OPEN
        else TicketStatus(row.status)
    )
    changes = {"status": status, "acknowledged_at": work.now, "acknowledged_by": actor}
    return _change(work, row, changes, actor, "acknowledge", why)


def hold(work: Transaction, ticket_id: int, held: bool, actor: str, why: str) -> Ticket:
    row = _unresolved(work, ticket_id)
    return _change(work, row, {"held": held}, actor, "hold" if held else "unhold", why)


def resolve(work: Transaction, ticket_id: int, actor: str, why: str) -> Ticket:
    row = _unresolved(work, ticket_id)
    looks = work.one(select(subjects).where(subjects.c.name == row.subject))
    settle(work, [ticket_id], looks)
    resolve_rows(work, [row], actor, why)
    _bump(work, row.subject)
    return ticket(work, ticket_id)


def retry(work: Transaction, ticket_id: int, actor: str, why: str) -> Ticket:
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


def _being_diagnosed(work: Transaction, batch: Row[Any]) -> bool:
    return (
        batch.claim_token is not None
        and batch.claim_until > work.now
        and batch.set_at <= work.now + CLOCK_SLACK
    )


def _unresolved(work: Transaction, ticket_id: int) -> Row[Any]:
    ticket(work, ticket_id)
    row = work.one(select(tickets).where(tickets.c.id == ticket_id).with_for_update())
    assert row is not None  # tickets are never deleted
    if row.status == TicketStatus.RESOLVED:
        raise Conflict(f"ticket {ticket_id} is resolved already")
    return row


def _change(
    work: Transaction, row: Row[Any], changes: Json, actor: str, action: str, why: str
) -> Ticket:
    work.execute(update(tickets).where(tickets.c.id == row.id).values(changes))
    after = changes.get("status", row.status)
    work.note([audit_row(row.id, actor, action, row.status, after, why)])
    _bump(work, row.subject)
    return ticket(work, row.id)


def _bump(work: Transaction, subject: str) -> None:
    """Tell the monitor that the subject's tickets are not what it remembers."""
    work.execute(
        update(subjects)
        .where(subjects.c.name == subject)
        .values(revision=subjects.c.revision + 1)
    )


def _unqueue_if_empty(work: Transaction, batch: int) -> None:
    left = select(tickets.c.id).where(
        tickets.c.batch_id == batch, tickets.c.status.in_(UNDIAGNOSED)
    )
    if work.one(left.limit(1)) is None:
        work.execute(update(batches).where(batches.c.id == batch).values(queued=False))
