"""What the page shows of the whole store: counts and subjects."""

from __future__ import annotations

from sqlalchemy import func, select

from midwatch.model import INVESTIGATION, Severity
from midwatch.store.engine import Transaction
from midwatch.store.overview_protocol import SubjectState
from midwatch.store.schema import UNRESOLVED, subjects, tickets


def unresolved_counts(tx: Transaction) -> dict[Severity, int]:
    """Return how many tickets are unresolved, by severity. Severities without any are left out."""
    rows = tx.all(
        select(tickets.c.severity, func.count().label("number"))
        .where(UNRESOLVED)
        .group_by(tickets.c.severity)
        .order_by(tickets.c.severity)
    )
    return {Severity(row.severity): row.number for row in rows}


def subject_states(tx: Transaction) -> list[SubjectState]:
    """Return every subject that was ever observed, by name."""
    counts: dict[str, dict[Severity, int]] = {}
    for row in tx.all(
        select(tickets.c.subject, tickets.c.severity, func.count().label("number"))
        .where(UNRESOLVED, tickets.c.invariant != INVESTIGATION)
        .group_by(tickets.c.subject, tickets.c.severity)
    ):
        counts.setdefault(row.subject, {})[Severity(row.severity)] = row.number
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
        )
        for row in tx.all(select(*columns).order_by(subjects.c.name))
    ]
