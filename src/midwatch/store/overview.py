"""What the page shows of the whole store: counts, subjects, and figures by day."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Executable,
    Subquery,
    and_,
    cast,
    func,
    or_,
    select,
    type_coerce,
)

from midwatch.model import INVESTIGATION, Severity, Ticket, TicketStatus
from midwatch.store.engine import Transaction
from midwatch.store.overview_protocol import Day, Figures, SubjectState
from midwatch.store.schema import (
    diagnoses,
    select_tickets,
    subjects,
    ticket_of,
    tickets,
)

_UNRESOLVED = tickets.c.status != TicketStatus.RESOLVED.value
_MOST_INVARIANTS = 12
_EPOCH_DAY = date(1970, 1, 1)


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


def most_urgent(tx: Transaction, each: int) -> list[Ticket]:
    """Return the `each` most urgent unresolved tickets of every subject, the most urgent first."""
    order = (tickets.c.severity, tickets.c.opened_at, tickets.c.id)
    rank = func.row_number().over(partition_by=tickets.c.subject, order_by=order)
    ranked = (
        select(tickets.c.id, rank.label("rank"))
        .where(_UNRESOLVED, tickets.c.invariant != INVESTIGATION)
        .subquery()
    )
    wanted = select(ranked.c.id).where(ranked.c.rank <= each)
    rows = tx.all(select_tickets().where(tickets.c.id.in_(wanted)).order_by(*order))
    return list(map(ticket_of, rows))


def figures(tx: Transaction, days: int) -> Figures:
    """Return the figures of the last `days` days in UTC, today included."""
    today = tx.now.date()
    since = tx.now.replace(hour=0, minute=0, second=0, microsecond=0)
    since -= timedelta(days=days - 1)
    opened = _opened(since)
    detected = _medians(tx, opened, opened.c.unseen_since, opened.c.opened_at)
    diagnosed = _medians(tx, opened, opened.c.opened_at, opened.c.diagnosed_at)
    resolved = _medians(tx, opened, opened.c.opened_at, opened.c.resolved_at)
    day = _day_of(tx, tickets.c.opened_at).label("day")
    numbers = _by_day(
        tx,
        select(day, func.count().label("value"))
        .where(tickets.c.opened_at >= since)
        .group_by(day),
    )
    day = _day_of(tx, diagnoses.c.started_at).label("day")
    spent = _by_day(
        tx,
        select(day, func.sum(diagnoses.c.cost_usd).label("value"))
        .where(diagnoses.c.started_at >= since)
        .group_by(day),
    )
    every = [today - timedelta(days=back) for back in reversed(range(days))]
    return Figures(
        tuple(
            Day(
                one,
                int(numbers.get(one, 0)),
                detected.get(one),
                diagnosed.get(one),
                resolved.get(one),
                spent.get(one, 0.0),
            )
            for one in every
        ),
        tuple(_by_invariant(tx, since)),
    )


def _opened(since: datetime) -> Subquery:
    """Return the tickets that opened since a time, each with when it was diagnosed with an answer."""
    answered = and_(
        diagnoses.c.id == tickets.c.diagnosis_id, diagnoses.c.outcome == "answered"
    )
    return (
        select(
            tickets.c.unseen_since,
            tickets.c.opened_at,
            tickets.c.resolved_at,
            diagnoses.c.finished_at.label("diagnosed_at"),
        )
        .outerjoin(diagnoses, answered)
        .where(tickets.c.opened_at >= since)
        .subquery()
    )


def _medians(
    tx: Transaction,
    opened: Subquery,
    start: ColumnElement[datetime],
    end: ColumnElement[datetime],
) -> dict[date, float]:
    """Return the median time from `start` to `end` in seconds of the tickets that opened on a day, by day."""
    spans = (
        select(
            _day_of(tx, opened.c.opened_at).label("day"),
            (_milliseconds(tx, end) - _milliseconds(tx, start)).label("span"),
        )
        .where(start.is_not(None), end.is_not(None))
        .subquery()
    )
    ranked = select(
        spans.c.day,
        spans.c.span,
        func.row_number().over(partition_by=spans.c.day, order_by=spans.c.span),
        func.count().over(partition_by=spans.c.day),
    ).subquery()
    day, span, rank, number = ranked.c
    middle = or_(rank == (number + 1) // 2, rank == (number + 2) // 2)
    value = (func.avg(span) / 1000.0).label("value")
    found = select(day, value).where(middle).group_by(day)
    return _by_day(tx, found)


def _by_day(tx: Transaction, statement: Executable) -> dict[date, float]:
    return {
        _EPOCH_DAY + timedelta(days=int(row.day)): float(row.value)
        for row in tx.all(statement)
    }


def _by_invariant(tx: Transaction, since: datetime) -> Iterator[tuple[str, int]]:
    """Yield the numbers of tickets that opened since a time, by invariant, the most first; the last ones as one."""
    number = func.count().label("number")
    rows = tx.all(
        select(tickets.c.invariant, number)
        .where(tickets.c.opened_at >= since)
        .group_by(tickets.c.invariant)
        .order_by(number.desc(), tickets.c.invariant)
    )
    yield from ((row.invariant, row.number) for row in rows[:_MOST_INVARIANTS])
    if rest := rows[_MOST_INVARIANTS:]:
        yield "others", sum(row.number for row in rest)


def _milliseconds(tx: Transaction, at: ColumnElement[Any]) -> ColumnElement[int]:
    """Return an instant as milliseconds since 1970."""
    if tx.connection.dialect.name == "sqlite":
        return type_coerce(at, BigInteger)  # as it is stored
    return cast(func.extract("epoch", at) * 1000, BigInteger)


def _day_of(tx: Transaction, at: ColumnElement[Any]) -> ColumnElement[int]:
    """Return the day of an instant in UTC, as days since 1970."""
    return _milliseconds(tx, at) // 86_400_000
