"""Store operations of notifications: what is to be sent, who sends it, and how that ended.

A delivery is written in the transaction that moves the reader's cursor over the change it tells of, so neither a
crash nor a second reader loses or doubles one. It is claimed, with a lease, together with all that is due in its
thread: what happened while a target was out of reach is one message. Of one thread and target nothing is sent
while something earlier is being sent or waits for its next attempt.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    Row,
    Select,
    and_,
    delete,
    exists,
    func,
    or_,
    select,
    text,
    update,
)

from midwatch.model import Json, Ticket, TicketStatus
from midwatch.store.engine import Lock, Transaction, audit_row, chunks
from midwatch.store.on_call import (
    Cursor,
    Delivery,
    DeliveryClaim,
    DeliveryEnd,
    NewDelivery,
    Told,
)
from midwatch.store.rows import ticket_of
from midwatch.store.schema import (
    UNRESOLVED,
    cursors,
    deliveries,
    delivery_threads,
    investigations,
    is_due,
    select_tickets,
    tickets,
)

_MOST_AT_ONCE = 500
"""Deliveries of one message."""
_NEAR = timedelta(seconds=5)
"""What is due so soon goes with what is due in its thread: parts of one digest are planned at different moments."""
_MOST_TICKETS = 50
"""Tickets of a thread that a message can show."""
CALLBACK = "callback"
"""The route of what calls back the one who asked for an investigation; its target is a URL."""
TIMED = ("escalated", "held_too_long")
"""Events that are written before they come true; a thread is not notified of one until it is sent."""
STATES = ("due", "sent", "given_up", "dropped")
_MOST_PRUNED = 10_000
_later = deliveries.alias("later")


# ------------------------------------------------------------------ writing


def tickets_by_id(tx: Transaction, ids: Collection[int]) -> dict[int, Ticket]:
    """Return tickets by id; an unknown one is left out."""
    return {
        row.id: ticket_of(row)
        for some in chunks(sorted(set(ids)))
        for row in tx.all(select_tickets().where(tickets.c.id.in_(some)))
    }


def told(tx: Transaction, ids: Collection[int]) -> list[Told]:
    """Return which targets were notified of tickets, or are about to be, oldest first; once for a ticket, route and target."""
    column = deliveries.c
    found: dict[Told, None] = {}
    for some in chunks(sorted(set(ids))):
        for row in tx.all(
            select(column.ticket_id, column.route, column.target, column.thread)
            .where(
                column.ticket_id.in_(some),
                column.route != CALLBACK,
                or_(
                    column.state.in_(("sent", "given_up")),
                    and_(is_due(column), column.event.not_in(TIMED)),
                ),
            )
            .order_by(column.id)
        ):
            found[Told(row.ticket_id, row.route, row.target, row.thread)] = None
    return list(found)


def save_deliveries(
    tx: Transaction,
    name: str,
    before: Cursor | None,
    after: Cursor,
    new: Sequence[NewDelivery],
) -> bool:
    """Write deliveries and move the cursor `name`. Return false, and do nothing, if it is not at `before` any more."""
    if not _move(tx, name, before, after):
        return False
    insert_deliveries(tx, new)
    return True


def _move(tx: Transaction, name: str, before: Cursor | None, after: Cursor) -> bool:
    values: Json = {"audit_id": after.audit_id, "updated_at": tx.now}
    if before is None:
        insert = tx._insert(cursors).values({"name": name, **values})
        new = insert.on_conflict_do_nothing().returning(cursors.c.name)
        return tx.one(new) is not None
    moved = tx.execute(
        update(cursors)
        .where(cursors.c.name == name, cursors.c.audit_id == before.audit_id)
        .values(values)
    )
    return moved.rowcount == 1


def insert_deliveries(tx: Transaction, new: Sequence[NewDelivery]) -> None:
    """Write deliveries; one with a known key is the same, and is not written again."""
    rows = [
        {
            "dedup_key": one.dedup_key,
            "route": one.route,
            "target": one.target,
            "event": one.event,
            "thread": one.thread,
            "ticket_id": one.ticket_id,
            "content": dict(one.content),
            "state": "due",
            "created_at": tx.now,
            "due_at": (due_at := tx.now + timedelta(seconds=one.due_in)),
            "due_since": due_at,
            "attempts": 0,
        }
        for one in new
    ]
    if rows:
        tx.insert_new(deliveries, rows)


def call_back(tx: Transaction, ticket_ids: Collection[int]) -> None:
    """Write what is sent of those of the resolved tickets that were investigations with an address to call back."""
    found = tx.all(
        select(
            investigations.c.id,
            investigations.c.ticket_id,
            investigations.c.callback_url,
        ).where(
            investigations.c.ticket_id.in_(ticket_ids),
            investigations.c.callback_url.is_not(None),
        )
    )
    new = [
        NewDelivery(
            dedup_key=f"callback {row.id}",
            route=CALLBACK,
            target=row.callback_url,
            event="investigation",
            thread=f"investigation {row.id}",
            ticket_id=row.ticket_id,
            content={"investigation": row.id},
        )
        for row in found
    ]
    insert_deliveries(tx, new)


# ------------------------------------------------------------------ sending


def targets_due(tx: Transaction) -> list[str]:
    """Return the targets that something is due for."""
    column = deliveries.c
    due = select(column.target).where(
        is_due(column), column.due_at <= tx.now, _unclaimed(tx, column)
    )
    return sorted(row.target for row in tx.all(due.distinct()))


def _unclaimed(tx: Transaction, column: Any) -> Any:
    return or_(column.claim_token.is_(None), column.claim_until <= tx.now)


def claim_delivery(
    tx: Transaction, target: str, *, lease: float
) -> DeliveryClaim | None:
    """Claim what is due in the thread of a target that waits longest; None if nothing is due."""
    if tx.connection.dialect.name == "postgresql":
        # Two that claim at once would each get a part of one thread, and could send them in any order.
        lock = text(
            f"SELECT pg_advisory_xact_lock({Lock.DELIVERIES:d}, hashtext(:target))"
        )
        tx.execute(lock, {"target": target})
    column = deliveries.c
    first = tx.one(_claimable(tx, target).where(column.due_at <= tx.now).limit(1))
    if first is None:
        return None
    rows = tx.all(
        _claimable(tx, target)
        .where(column.thread == first.thread)
        .where(or_(column.due_at <= tx.now, column.event.not_in(TIMED)))
        .order_by(None)
        .order_by(deliveries.c.id)
        .limit(_MOST_AT_ONCE)
    )
    token = uuid.uuid4().hex
    ids = [row.id for row in rows]
    tx.execute(
        update(deliveries)
        .where(deliveries.c.id.in_(ids))
        .values(
            claim_token=token,
            claim_until=tx.now + timedelta(seconds=lease),
            attempts=deliveries.c.attempts + 1,
        )
    )
    claimed = tuple(
        replace(d, attempts=d.attempts + 1) for d in map(_delivery_of, rows)
    )
    return DeliveryClaim(
        token,
        target,
        first.thread,
        claimed,
        thread_reference(tx, target, first.thread),
        _tickets_of(tx, target, first.thread, claimed),
        tx.now,
    )


def _claimable(tx: Transaction, target: str) -> Select[Any]:
    column, other = deliveries.c, _later.c
    blocked = exists().where(
        other.target == column.target,
        other.thread == column.thread,
        is_due(other),
        or_(
            and_(other.claim_token.is_not(None), other.claim_until > tx.now),
            and_(other.attempts > 0, other.due_at > tx.now),
        ),
    )
    return (
        select(deliveries)
        .where(
            column.target == target,
            is_due(column),
            column.due_at <= tx.now + _NEAR,
            _unclaimed(tx, column),
            ~blocked,
        )
        .order_by(column.due_at, column.id)
        .with_for_update(skip_locked=True)
    )


def thread_reference(tx: Transaction, target: str, thread: str) -> Json:
    """Return how the service of a target names a thread; empty if it has not been notified of it."""
    column = delivery_threads.c
    row = tx.one(
        select(column.reference).where(column.target == target, column.thread == thread)
    )
    return {} if row is None else dict(row.reference)


def _tickets_of(
    tx: Transaction, target: str, thread: str, claimed: Sequence[Delivery]
) -> tuple[Ticket, ...]:
    """Return the tickets of what was claimed, and others of the thread, the most urgent first."""
    column = deliveries.c
    ids = select(column.ticket_id).where(
        column.target == target, column.thread == thread, column.ticket_id.is_not(None)
    )
    gone = ids.where(column.event == "joined", column.state != "due")
    rows = tx.all(
        select_tickets()
        .where(tickets.c.id.in_(ids), tickets.c.id.not_in(gone))
        .order_by(
            tickets.c.status == TicketStatus.RESOLVED.value,
            tickets.c.severity,
            tickets.c.id,
        )
        .limit(_MOST_TICKETS)
    )
    found = {row.id: ticket_of(row) for row in rows}
    mine = {one.ticket_id for one in claimed if one.ticket_id is not None}
    found |= tickets_by_id(tx, mine - found.keys())
    return tuple(sorted(found.values(), key=lambda one: (one.severity, one.id)))


def finish_delivery(tx: Transaction, claim: DeliveryClaim, end: DeliveryEnd) -> bool:
    """Store how an attempt ended. Return false, and change nothing, if the claim was lost."""
    held = and_(
        deliveries.c.id.in_([one.id for one in claim.deliveries]),
        is_due(deliveries.c),
        deliveries.c.claim_token == claim.token,
    )
    if tx.one(select(deliveries.c.id).where(held).limit(1).with_for_update()) is None:
        return False
    _settle(tx, held, end.sent, "sent", None)
    for why, ids in end.dropped.items():
        _settle(tx, held, ids, "dropped", why)
    if end.postponed:
        mine = and_(held, deliveries.c.id.in_(end.postponed))
        _postpone(tx, mine, end.postpone_for)
    if end.given_up:
        _give_up(tx, held, end.error or "", end.actor)
    elif end.error is not None:
        _wait(tx, held, end.retry_in, end.error)
    if end.reference is not None:
        row = {"target": claim.target, "thread": claim.thread}
        values: Json = {"reference": dict(end.reference), "updated_at": tx.now}
        tx.insert_or_update(delivery_threads, {**row, **values}, values)
    return True


def _settle(
    tx: Transaction, held: Any, ids: Collection[int], state: str, why: str | None
) -> None:
    if ids:
        values = {"state": state, "ended_at": tx.now, "claim_token": None}
        tx.execute(
            update(deliveries)
            .where(held, deliveries.c.id.in_(ids))
            .values(**values, last_error=why)
        )


def _wait(tx: Transaction, which: Any, seconds: float, error: str) -> None:
    values: Json = {"due_at": tx.now + timedelta(seconds=seconds), "last_error": error}
    tx.execute(update(deliveries).where(which).values(claim_token=None, **values))


def _postpone(tx: Transaction, which: Any, seconds: float) -> None:
    at = tx.now + timedelta(seconds=seconds)
    values: Json = {"due_at": at, "due_since": at, "attempts": 0, "last_error": None}
    tx.execute(update(deliveries).where(which).values(claim_token=None, **values))


def _give_up(tx: Transaction, which: Any, error: str, actor: str) -> int:
    """Give deliveries up, with an audit row on each ticket. Return how many."""
    column = deliveries.c
    rows = tx.all(
        select(column.id, column.ticket_id, column.target, column.route)
        .where(which)
        .with_for_update()
    )
    for some in chunks([row.id for row in rows]):
        tx.execute(
            update(deliveries)
            .where(column.id.in_(some))
            .values(
                state="given_up", ended_at=tx.now, claim_token=None, last_error=error
            )
        )
    by_ticket = {row.ticket_id: row for row in rows if row.ticket_id is not None}
    known = tickets_by_id(tx, by_ticket)
    tx.note(
        [
            audit_row(
                ticket_id,
                actor,
                "notify",
                known[ticket_id].status,
                known[ticket_id].status,
                f"given up: {_shown_target(row)} could not be notified: {error}",
            )
            for ticket_id, row in sorted(by_ticket.items())
        ]
    )
    return len(rows)


def _shown_target(row: Any) -> str:
    """Return what a target is called in a history; the address of a callback may have a key in it."""
    return CALLBACK if row.route == CALLBACK else str(row.target)


def give_up_deliveries(
    tx: Transaction, target: str, older: float, error: str, actor: str
) -> int:
    """Give up what has been due for a target for more than `older` seconds. Return how many."""
    column = deliveries.c
    old = and_(
        column.target == target,
        is_due(column),
        column.due_since < tx.now - timedelta(seconds=older),
        _unclaimed(tx, column),
    )
    return _give_up(tx, old, error, actor)


# ------------------------------------------------------------------ looking


def list_deliveries(
    tx: Transaction,
    ticket_id: int | None = None,
    states: Collection[str] = (),
    limit: int = 50,
) -> list[Delivery]:
    """Return deliveries, the newest first."""
    place = (deliveries.c.created_at.desc(), deliveries.c.id.desc())
    found = select(deliveries).order_by(*place).limit(limit)
    if ticket_id is not None:
        found = found.where(deliveries.c.ticket_id == ticket_id)
        if states:
            found = found.where(deliveries.c.state.in_(states))
        return [_delivery_of(row) for row in tx.all(found)]
    # An index has those of each state in this order.
    rows = [
        row
        for state in sorted(set(states or STATES))
        for row in tx.all(found.where(deliveries.c.state == state))
    ]
    rows.sort(key=lambda row: (row.created_at, row.id), reverse=True)
    return [_delivery_of(row) for row in rows[:limit]]


def _delivery_of(row: Row[Any]) -> Delivery:
    return Delivery(
        id=row.id,
        dedup_key=row.dedup_key,
        route=row.route,
        target=row.target,
        event=row.event,
        thread=row.thread,
        ticket_id=row.ticket_id,
        content=row.content,
        state=row.state,
        created_at=row.created_at,
        due_at=row.due_at,
        attempts=row.attempts,
        last_error=row.last_error,
        ended_at=row.ended_at,
    )


def delivery_counts(tx: Transaction, within: float) -> dict[str, int]:
    """Return how many deliveries there are in each state, of those of the last `within` seconds.

    What is written for a moment to come (an escalation, a digest) is "planned".
    """
    column = deliveries.c
    recent = column.created_at > tx.now - timedelta(seconds=within)
    planned = and_(column.due_at > tx.now, column.attempts == 0)
    conditions = {
        **{
            state: and_(column.state == state, recent)
            for state in STATES
            if state != "due"
        },
        "due": and_(is_due(column), recent, ~planned),
        "planned": and_(is_due(column), planned),
    }
    counts = {
        state: tx.connection.scalar(select(func.count()).where(condition)) or 0
        for state, condition in conditions.items()
    }
    return {state: number for state, number in counts.items() if number}


def prune_deliveries(tx: Transaction, older: float) -> int:
    """Remove what ended more than `older` seconds ago, of resolved tickets alone. Return how many.

    At most `_MOST_PRUNED` are removed at once.
    """
    column = deliveries.c
    unresolved = exists().where(tickets.c.id == column.ticket_id, UNRESOLVED)
    before = tx.now - timedelta(seconds=older)
    old = (
        select(column.id)
        .where(~is_due(column), column.created_at < before, ~unresolved)
        .order_by(column.created_at)
        .limit(_MOST_PRUNED)
    )
    removed = tx.execute(delete(deliveries).where(column.id.in_(old)))
    thread = delivery_threads.c
    left = exists().where(
        column.target == thread.target, column.thread == thread.thread
    )
    tx.execute(delete(delivery_threads).where(thread.updated_at < before, ~left))
    return int(removed.rowcount)
