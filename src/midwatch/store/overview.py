"""What the page shows of the whole store: counts, subjects, and figures by day."""

from __future__ import annotations

from collections import Counter
from datetime import date, timedelta
from statistics import median
from typing import Any

from sqlalchemy import func, select

from midwatch.model import INVESTIGATION, Severity, TicketStatus
from midwatch.store.engine import Transaction
from midwatch.store.overview_protocol import Day, Figures, SubjectState
from midwatch.store.schema import diagnoses, subjects, tickets
from midwatch.store.shares import watchers

_UNRESOLVED = tickets.c.status != TicketStatus.RESOLVED.value
_MOST_INVARIANTS = 12


def unresolved_counts(tx: Transaction) -> dict[Severity, int]:
    """Return how many tickets are unresolved, by severity. Severities without any are left out."""
    rows = tx.all(
        select(tickets.c.severity, func.count().label("number"))
        .where(_UNRESOLVED)
        .group_by(tickets.c.severity)
        .order_by(tickets.c.severity)
    )
    return {Severity(row.severity): row.number for row in rows}


def subject_states(tx: Transaction) -> list[SubjectState]:
    """Return every subject that was ever observed, by name."""
    counts: dict[str, dict[Severity, int]] = {}
    for row in tx.all(
        select(tickets.c.subject, tickets.c.severity, func.count().label("number"))
        .where(_UNRESOLVED, tickets.c.invariant != INVESTIGATION)
        .group_by(tickets.c.subject, tickets.c.severity)
    ):
        counts.setdefault(row.subject, {})[Severity(row.severity)] = row.number
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


def figures(tx: Transaction, days: int) -> Figures:
    """Return the figures of the last `days` days in UTC, today included."""
    today = tx.now.date()
    since = tx.now.replace(hour=0, minute=0, second=0, microsecond=0)
    since -= timedelta(days=days - 1)
    rows = tx.all(
        select(
            tickets.c.invariant,
            tickets.c.unseen_since,
            tickets.c.opened_at,
            tickets.c.resolved_at,
            diagnoses.c.finished_at,
            diagnoses.c.outcome,
        )
        .outerjoin(diagnoses, diagnoses.c.id == tickets.c.diagnosis_id)
        .where(tickets.c.opened_at >= since)
    )
    calls = tx.all(
        select(diagnoses.c.started_at, diagnoses.c.cost_usd).where(
            diagnoses.c.started_at >= since
        )
    )
    spent: Counter[date] = Counter()
    for call in calls:
        spent[call.started_at.date()] += call.cost_usd
    by_day: dict[date, list[Any]] = {}
    for row in rows:
        by_day.setdefault(row.opened_at.date(), []).append(row)
    every = [today - timedelta(days=back) for back in reversed(range(days))]
    named = Counter(row.invariant for row in rows).most_common()
    kept, rest = named[:_MOST_INVARIANTS], named[_MOST_INVARIANTS:]
    others = [("others", sum(number for _, number in rest))] if rest else []
    return Figures(
        tuple(_day(one, by_day.get(one, ()), spent[one]) for one in every),
        (*kept, *others),
    )


def _day(day: date, rows: Any, spent: float) -> Day:
    return Day(
        day,
        len(rows),
        _median(one.opened_at - one.unseen_since for one in rows if one.unseen_since),
        _median(
            one.finished_at - one.opened_at for one in rows if one.outcome == "answered"
        ),
        _median(one.resolved_at - one.opened_at for one in rows if one.resolved_at),
        spent,
    )


def _median(spans: Any) -> float | None:
    seconds = [span.total_seconds() for span in spans]
    return median(seconds) if seconds else None
