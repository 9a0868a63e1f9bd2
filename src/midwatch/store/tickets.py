"""Tickets and diagnoses: what people and daemons read, and the commands of people.

Each command appends an audit row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import (
    Row,
    Select,
    func,
    literal,
    or_,
    select,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.sql import ColumnElement, FromClause

from midwatch.errors import Conflict, NotFound, Outdated
from midwatch.model import (
    AuditRow,
    Diagnosis,
    Json,
    Severity,
    Ticket,
    TicketStatus,
    keepable,
)
from midwatch.store.cycles import (
    increase_revision,
    new_batch,
    resolve_rows,
    store_derived,
)
from midwatch.store.engine import CLOCK_SLACK, Transaction, audit_row, chunks
from midwatch.store.figures import Place
from midwatch.store.many import one_of
from midwatch.store.memory import remember
from midwatch.store.protocol import (
    Brief,
    Finish,
    TicketFilter,
    TicketSession,
)
from midwatch.store.queue import insert_diagnosis
from midwatch.store.rows import severity_of, status_of, ticket_of
from midwatch.store.schema import (
    LARGEST_ID,
    UNDIAGNOSED,
    UNRESOLVED,
    WAITING,
    audit,
    batches,
    diagnoses,
    diagnosis_of,
    diagnosis_tickets,
    select_tickets,
    sessions,
    subjects,
    tickets,
)
from midwatch.store.silences import share_silences
from midwatch.store.ticket_search import resolved_with


def ticket(tx: Transaction, ticket_id: int) -> Ticket:
    """Return a ticket. Raises NotFound."""
    known = 0 < ticket_id <= LARGEST_ID
    row = tx.one(select_tickets().where(tickets.c.id == ticket_id)) if known else None
    if row is None:
        raise NotFound(
            f"there is no ticket {ticket_id}", hint="see `midwatch tickets list --all`"
        )
    return ticket_of(row)


_PLACE = (tickets.c.opened_at, tickets.c.id)
_EVERY_SEVERITY = tuple(sorted(Severity))
_NEAR = 1_000
"""Tickets of each severity that are read for words before an index of them is asked."""


def list_tickets(tx: Transaction, query: TicketFilter) -> list[Ticket]:
    """Return the tickets that match."""
    limit = max(query.limit, 0)
    # In a history the newest matters most; open tickets are worked on oldest first.
    newest_first = query.newest_first or not query.statuses
    conditions, having = list(_conditions(query)), list(_having_words(query, tickets.c))
    if not _reads_history(query):
        matching = select_tickets().where(*conditions, *having)
        return _in_order(tx, matching, query, newest_first)
    parts = _parts(query, conditions, newest_first)
    if having and tx.postgres:
        if (near := _near(tx, query, parts, newest_first)) is not None:
            return near
    if (indexed := resolved_with(tx, _words(query))) is not None:
        few = union_all(select(tickets.c.id).where(UNRESOLVED), indexed)
        matching = select_tickets().where(tickets.c.id.in_(few), *conditions, *having)
        return _in_order(tx, matching, query, newest_first)
    if not parts:
        return []
    firsts = (select(part.where(*having).limit(limit).subquery()) for part in parts)
    found = union_all(*firsts).subquery()
    first = select(found.c.id).order_by(*_order(found.c, newest_first)).limit(limit)
    return _ordered(tx, select_tickets().where(tickets.c.id.in_(first)), newest_first)


def _parts(
    query: TicketFilter, conditions: Sequence[ColumnElement[bool]], newest_first: bool
) -> list[Select[Any]]:
    """Return queries of a list in parts that an index has in its order.

    Resolved tickets are many. Of each severity, and of each subject and invariant with it, an index has them in
    either order, so the first of the list are among the first of each severity.
    """
    parts = [
        _of_severity(severity, conditions, query.after, newest_first)
        for severity in _EVERY_SEVERITY
        if query.severity in (None, severity)
        and (newest_first or query.after is None or severity >= query.after.severity)
    ]
    if query.severity is None and query.after is None:
        damaged = [tickets.c.severity > max(_EVERY_SEVERITY), *conditions]
        # By severity first, as the index has them.
        parts.append(_first(damaged, newest_first, tickets.c.severity))
    return parts


def _near(
    tx: Transaction,
    query: TicketFilter,
    parts: Sequence[Select[Any]],
    newest_first: bool,
) -> list[Ticket] | None:
    """Return a list of tickets that have some words; None unless few have to be read for it.

    A word that many tickets have is found so, as an index of words is slow for it on PostgreSQL.
    """
    limit = max(query.limit, 0)
    rows: list[Any] = []
    for part in parts:
        first = part.add_columns(*_SEARCHED).limit(_NEAR).subquery()
        having = _having_words(query, first.c)
        found = select(first.c.id, first.c.severity, first.c.opened_at).where(*having)
        some = tx.all(found.order_by(*_order(first.c, newest_first)).limit(limit))
        if len(some) < limit and _count(tx, first) == _NEAR:
            return None
        rows += some
    rows.sort(key=lambda row: (row.opened_at, row.id), reverse=newest_first)
    if not newest_first:
        rows.sort(key=lambda row: row.severity)
    ids = [row.id for row in rows[:limit]]
    wanted = select_tickets().where(one_of(tx, tickets.c.id, ids))
    return _ordered(tx, wanted, newest_first)


def _count(tx: Transaction, rows: FromClause) -> int:
    return int(tx.connection.scalar(select(func.count()).select_from(rows)) or 0)


def _reads_history(query: TicketFilter) -> bool:
    """Return whether resolved tickets are asked for, and not only those of a batch."""
    resolved = not query.statuses or TicketStatus.RESOLVED in query.statuses
    return resolved and query.batch is None


def _of_severity(
    severity: Severity,
    conditions: Sequence[ColumnElement[bool]],
    after: Place | None,
    newest_first: bool,
) -> Select[Any]:
    found = _first([tickets.c.severity == severity, *conditions], newest_first)
    if after is not None and (newest_first or severity == after.severity):
        found = found.where(_behind(_PLACE, after, newest_first))
    return found


def _first(
    conditions: Sequence[ColumnElement[bool]],
    newest_first: bool,
    *before: ColumnElement[Any],
) -> Select[Any]:
    found = select(tickets.c.id, tickets.c.severity, tickets.c.opened_at)
    order = (*before, *_PLACE)
    found = found.where(*conditions)
    return found.order_by(*(one.desc() if newest_first else one for one in order))


def _in_order(
    tx: Transaction, statement: Select[Any], query: TicketFilter, newest_first: bool
) -> list[Ticket]:
    place = _PLACE if newest_first else (tickets.c.severity, *_PLACE)
    if query.after is not None:
        statement = statement.where(_behind(place, query.after, newest_first))
    if query.severity is not None:
        statement = statement.where(tickets.c.severity == query.severity)
    return _ordered(tx, statement.limit(max(query.limit, 0)), newest_first)


def _ordered(
    tx: Transaction, statement: Select[Any], newest_first: bool
) -> list[Ticket]:
    found = tx.all(statement.order_by(*_order(tickets.c, newest_first)))
    return list(map(ticket_of, found))


def _order(column: Any, newest_first: bool) -> list[Any]:
    if newest_first:
        return [column.opened_at.desc(), column.id.desc()]
    return [column.severity, column.opened_at, column.id]


def _behind(
    place: Sequence[ColumnElement[Any]], after: Place, newest_first: bool
) -> ColumnElement[bool]:
    """Return the condition of tickets behind a place of the order by these columns."""
    values = asdict(after)
    last = tuple_(*(literal(values[str(one.key)], one.type) for one in place))
    return tuple_(*place) < last if newest_first else tuple_(*place) > last


_SEARCHED = (
    tickets.c.message,
    tickets.c.subject,
    tickets.c.invariant,
    tickets.c.component,
    tickets.c.resolution,
)
_MOST_WORDS = 20


def _words(query: TicketFilter) -> list[str]:
    return keepable(query.text).split()[:_MOST_WORDS]


def _conditions(query: TicketFilter) -> Iterator[ColumnElement[bool]]:
    if query.statuses:
        if TicketStatus.RESOLVED not in query.statuses:
            yield UNRESOLVED  # has an index
        yield tickets.c.status.in_(list(query.statuses))
    for column, value in (
        (tickets.c.subject, query.subject),
        (tickets.c.invariant, query.invariant),
        (tickets.c.batch_id, query.batch),
    ):
        if value is not None:
            yield column == value


def _having_words(query: TicketFilter, columns: Any) -> Iterator[ColumnElement[bool]]:
    searched = [func.coalesce(columns[one.key], "") for one in _SEARCHED]
    for word in _words(query):
        yield or_(*(one.icontains(word, autoescape=True) for one in searched))


def history(tx: Transaction, ticket_id: int) -> list[AuditRow]:
    """Return the audit rows of a ticket, oldest first. Raises NotFound."""
    ticket(tx, ticket_id)
    rows = tx.all(
        select(audit).where(audit.c.ticket_id == ticket_id).order_by(audit.c.id)
    )
    return [
        AuditRow(
            row.ticket_id, row.at, row.actor, row.action, row.before, row.after, row.why
        )
        for row in rows
    ]


def diagnosis(tx: Transaction, diagnosis_id: int) -> Diagnosis:
    """Return a diagnosis. Raises NotFound."""
    known = 0 < diagnosis_id <= LARGEST_ID
    statement = select(diagnoses).where(diagnoses.c.id == diagnosis_id)
    row = tx.one(statement) if known else None
    if row is None:
        raise NotFound(f"there is no diagnosis {diagnosis_id}")
    return diagnosis_of(row)


def briefs(tx: Transaction, diagnosis_ids: Sequence[int]) -> dict[int, Brief]:
    """Return summaries of diagnoses by id."""
    found: dict[int, Brief] = {}
    for some in chunks(diagnosis_ids):
        for row in tx.all(
            select(
                diagnoses.c.id,
                diagnoses.c.outcome,
                diagnoses.c.confidence,
                diagnoses.c.answer["verdict"].as_string().label("verdict"),
            ).where(diagnoses.c.id.in_(some))
        ):
            found[row.id] = Brief(row.outcome, row.verdict, row.confidence)
    return found


def list_diagnoses(tx: Transaction, ticket_id: int) -> list[Diagnosis]:
    """Return every attempt at a ticket, oldest first."""
    link = diagnosis_tickets.c
    rows = tx.all(
        select(diagnoses)
        .join(diagnosis_tickets, link.diagnosis_id == diagnoses.c.id)
        .where(link.ticket_id == ticket_id)
        .order_by(diagnoses.c.id)
    )
    return list(map(diagnosis_of, rows))


def sessions_of(tx: Transaction, ticket_id: int) -> list[TicketSession]:
    """Return the sessions of a ticket, oldest first."""
    rows = tx.all(
        select(
            sessions.c.id,
            sessions.c.phase,
            sessions.c.created_at,
            sessions.c.cost_usd,
        )
        .where(sessions.c.ticket_id == ticket_id)
        .order_by(sessions.c.created_at, sessions.c.id)
    )
    return [
        TicketSession(row.id, row.phase, row.created_at, row.cost_usd) for row in rows
    ]


def version(tx: Transaction, ticket_id: int) -> int:
    """Return the version of a ticket, which each change increases. Raises NotFound."""
    ticket(tx, ticket_id)
    return _version(tx, ticket_id)


def _version(tx: Transaction, ticket_id: int) -> int:
    newest = select(func.max(audit.c.id)).where(audit.c.ticket_id == ticket_id)
    return int(tx.connection.scalar(newest) or 0)


def acknowledge(
    tx: Transaction,
    ticket_id: int,
    actor: str,
    why: str = "",
    *,
    version: int | None = None,
) -> Ticket:
    """Record that `actor` works on a ticket. Raises NotFound, Conflict, Outdated."""
    row = _unresolved(tx, ticket_id, version)
    status = (
        TicketStatus.ACKNOWLEDGED
        if row.status == TicketStatus.OPEN
        else status_of(row.status)
    )
    changes = {"status": status, "acknowledged_at": tx.now, "acknowledged_by": actor}
    return _change(tx, row, changes, actor, "acknowledge", why)


def hold(
    tx: Transaction,
    ticket_id: int,
    held: bool,
    actor: str,
    why: str = "",
    *,
    version: int | None = None,
) -> Ticket:
    """Set whether the monitor must not resolve a ticket. Raises NotFound, Conflict, Outdated."""
    row = _unresolved(tx, ticket_id, version)
    return _change(tx, row, {"held": held}, actor, "hold" if held else "unhold", why)


def resolve(
    tx: Transaction,
    ticket_id: int,
    actor: str,
    why: str,
    *,
    version: int | None = None,
) -> Ticket:
    """Resolve a ticket by hand. Raises NotFound, Conflict, Outdated."""
    share_silences(tx)
    row = _unresolved(tx, ticket_id, version)
    subject = tx.one(select(subjects).where(subjects.c.name == row.subject))
    store_derived(tx, [ticket_id], subject)
    resolve_rows(tx, [row], actor, why)
    increase_revision(tx, row.subject)
    return ticket(tx, ticket_id)


def retry(
    tx: Transaction,
    ticket_id: int,
    actor: str,
    why: str = "",
    *,
    version: int | None = None,
) -> Ticket:
    """Put a ticket back into the queue, as a batch of one. Raises NotFound, Conflict, Outdated."""
    row = _unresolved(tx, ticket_id, version)
    _refuse_while_diagnosed(tx, row)
    status = TicketStatus.ACKNOWLEDGED if row.acknowledged_at else TicketStatus.OPEN
    changes = {
        "status": status,
        "diagnosis_id": None,
        "batch_id": new_batch(tx, row.subject, severity_of(row.severity)),
    }
    changed = _change(tx, row, changes, actor, "retry", why)
    _unqueue_if_empty(tx, row.batch_id)
    return changed


def update_diagnosis(
    tx: Transaction,
    ticket_id: int,
    finish: Finish,
    *,
    actor: str,
    model: str,
    prompt_version: str,
) -> Ticket:
    """Store a diagnosis that was made elsewhere as that of a ticket. Raises NotFound, Conflict."""
    ticket(tx, ticket_id)
    row = tx.one(select(tickets).where(tickets.c.id == ticket_id).with_for_update())
    assert row is not None  # tickets are never deleted
    waiting = row.status in UNDIAGNOSED
    if waiting:
        _refuse_while_diagnosed(tx, row)
    diagnosis_id = insert_diagnosis(
        tx, row.batch_id, [ticket_id], finish, model, prompt_version
    )
    given_up = row.status == TicketStatus.GIVEN_UP
    status = status_of(row.status)
    after = TicketStatus.DIAGNOSED if waiting or given_up else status
    changes = {"diagnosis_id": diagnosis_id, "status": after}
    why = f"diagnosis {diagnosis_id}: {finish.outcome}"
    changed = _change(tx, row, changes, actor, "diagnose", why)
    remember(tx, [ticket_id])
    if waiting:
        _unqueue_if_empty(tx, row.batch_id)
    return changed


def _refuse_while_diagnosed(tx: Transaction, row: Row[Any]) -> None:
    """Raise Conflict if an agent is diagnosing the ticket's batch."""
    batch = tx.one(
        select(batches).where(batches.c.id == row.batch_id).with_for_update()
    )
    if batch is not None and _being_diagnosed(tx, batch):
        raise Conflict(
            f"ticket {row.id} is being diagnosed by {batch.claim_holder}",
            hint="wait until the diagnosis ends, then try again",
        )


def _being_diagnosed(tx: Transaction, batch: Row[Any]) -> bool:
    return (
        batch.claim_token is not None
        and batch.claim_until > tx.now
        and batch.set_at <= tx.now + CLOCK_SLACK
    )


def _unresolved(tx: Transaction, ticket_id: int, version: int | None) -> Row[Any]:
    ticket(tx, ticket_id)
    row = tx.one(select(tickets).where(tickets.c.id == ticket_id).with_for_update())
    assert row is not None  # tickets are never deleted
    if version is not None and _version(tx, ticket_id) != version:
        raise Outdated(f"ticket {ticket_id} was changed since it was read")
    if row.status == TicketStatus.RESOLVED:
        raise Conflict(f"ticket {ticket_id} is resolved already")
    return row


def _change(
    tx: Transaction, row: Row[Any], changes: Json, actor: str, action: str, why: str
) -> Ticket:
    tx.execute(update(tickets).where(tickets.c.id == row.id).values(changes))
    after = changes.get("status", row.status)
    tx.note([audit_row(row.id, actor, action, row.status, after, why)])
    increase_revision(tx, row.subject)
    return ticket(tx, row.id)


def _unqueue_if_empty(tx: Transaction, batch: int) -> None:
    left = select(tickets.c.id).where(tickets.c.batch_id == batch, WAITING)
    if tx.one(left.limit(1)) is None:
        tx.execute(update(batches).where(batches.c.id == batch).values(queued=False))
