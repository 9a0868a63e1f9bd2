"""What the page shows of the whole store: counts and subjects."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import func, select

from midwatch.model import INVESTIGATION, Severity, Ticket
from midwatch.store.engine import Transaction
from midwatch.store.overview_protocol import SubjectState
from midwatch.store.rows import severity_of, ticket_of
from midwatch.store.schema import (
    UNRESOLVED,
    select_tickets,
    subjects,
    tickets,
)
from midwatch.store.shares import watchers


def unresolved_counts(tx: Transaction) -> dict[Severity, int]:
    """Return how many tickets are unresolved, by severity. Severities without any are left out."""
    rows = tx.all(
        select(tickets.c.severity, func.count().label("number"))
        .where(UNRESOLVED)
        .group_by(tickets.c.severity)
        .order_by(tickets.c.severity)
    )
    found: Counter[Severity] = Counter()
    for row in rows:
        found[severity_of(row.severity)] += row.number
    return dict(found)


def subject_states(tx: Transaction) -> list[SubjectState]:
    """Return every subject that was ever observed, by name."""
    counts: dict[str, Counter[Severity]] = {}
    for row in tx.all(
        select(tickets.c.subject, tickets.c.severity, func.count().label("number"))
        .where(UNRESOLVED, tickets.c.invariant != INVESTIGATION)
        .group_by(tickets.c.subject, tickets.c.severity)
    ):
        of_subject = counts.setdefault(row.subject, Counter())
        of_subject[severity_of(row.severity)] += row.number
    watched_by = watchers(tx)
    columns = (
        subjects.c.name,
        subjects.c.last_good_at,
        subjects.c.last_look_at,
        subjects.c.failures,
        subjects.c.last_error,
    )
    return [
        SubjectState(
            row.name,
            row.last_good_at,
            row.last_look_at,
            row.failures,
            row.last_error,
            counts.get(row.name, {}),
            watched_by.get(row.name),
        )
        for row in tx.all(select(*columns).order_by(subjects.c.name))
    ]


def most_urgent(tx: Transaction, each: int) -> list[Ticket]:
    """Return the `each` most urgent unresolved tickets of every subject, the most urgent first."""
    order = (tickets.c.severity, tickets.c.opened_at, tickets.c.id)
    rank = func.row_number().over(partition_by=tickets.c.subject, order_by=order)
    ranked = (
        select(tickets.c.id, rank.label("rank"))
        .where(UNRESOLVED, tickets.c.invariant != INVESTIGATION)
        .subquery()
    )
    wanted = select(ranked.c.id).where(ranked.c.rank <= each)
    rows = tx.all(select_tickets().where(tickets.c.id.in_(wanted)).order_by(*order))
    return list(map(ticket_of, rows))
