"""Figures of a period: what opened, how fast it was seen, diagnosed and resolved, and what that cost.

Counts and costs are exact: they are read from the sums of hours, and from the rows of what is not summed yet. Medians are of all
tickets of the period, or of a sample where they are many: that of `_SAMPLE` tickets ranks within two percent of the true one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from itertools import pairwise
from random import Random
from statistics import median
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    Row,
    Select,
    and_,
    bindparam,
    cast,
    func,
    select,
    text,
    type_coerce,
)

from midwatch.model import TicketStatus, Usage
from midwatch.store.engine import Transaction
from midwatch.store.many import one_of
from midwatch.store.overview_protocol import Day, Figures
from midwatch.store.protocol import Stats
from midwatch.store.schema import (
    UNRESOLVED,
    Instant,
    diagnoses,
    tickets,
)
from midwatch.store.silences import count_silenced, was_silent_before
from midwatch.store.sums import (
    CALL_SUMS,
    UNSETTLED,
    hourly_calls,
    hourly_tickets,
    next_hour,
    summed_until,
)

_SAMPLE = 3000
"""Tickets of which the medians of a period are, if it has more."""
_MOST_INVARIANTS = 12
_HOUR = 3_600_000  # ms, as SQLite has instants
_INSTANT = timedelta(milliseconds=1)
_TOKENS = tuple(name for name in CALL_SUMS if name != "cost_usd")


def stats(tx: Transaction, within: float) -> Stats:
    """Return the figures of the last `within` seconds."""
    since = tx.now - timedelta(seconds=within)
    until = summed_until(tx)
    opened = sum(_opened(tx, since, until.get("tickets"), "invariant").values())
    left = _unresolved(tx, since)
    calls = _calls(tx, since, until.get("calls"), "outcome")
    silent, silent_now = count_silenced(tx, since)
    rows = _measured(tx, [since], opened)
    prompt = [row for row in rows if not row.kept_back]
    return Stats(
        since=since,
        opened=opened,
        unresolved=left.total(),
        resolved=opened - left.total(),
        given_up=left[TicketStatus.GIVEN_UP.value],
        outcomes=Counter({outcome: one["calls"] for outcome, one in calls.items()}),
        to_detect=_median(row.detected for row in prompt),
        to_see=_median(row.seen for row in prompt),
        to_confirm=_median(row.confirmed for row in prompt),
        to_diagnose=_median(row.diagnosed for row in rows),
        to_resolve=_median(row.resolved for row in rows),
        usage=Usage(*(sum(one[name] for one in calls.values()) for name in _TOKENS)),
        cost_usd=sum(one["cost_usd"] for one in calls.values()),
        silenced=silent,
        silent_now=silent_now,
    )


def _unresolved(tx: Transaction, since: datetime) -> Counter[str]:
    """Return how many tickets of a period are in each status but resolved."""
    rows = tx.all(
        select(tickets.c.status, func.count().label("number"))
        .where(UNRESOLVED, tickets.c.opened_at > since)
        .group_by(tickets.c.status)
    )
    return Counter({row.status: row.number for row in rows})


def figures(tx: Transaction, days: int) -> Figures:
    """Return the figures of the last `days` days in UTC, today included."""
    today = tx.now.replace(hour=0, minute=0, second=0, microsecond=0)
    begins = [today - timedelta(days=back) for back in reversed(range(days))]
    since = begins[0] - _INSTANT
    until = summed_until(tx)
    opened = _by_day(_opened(tx, since, until.get("tickets"), "hour"))
    calls = _calls(tx, since, until.get("calls"), "hour")
    spent = _by_day({hour: one["cost_usd"] for hour, one in calls.items()})
    named = Counter(_opened(tx, since, until.get("tickets"), "invariant")).most_common()
    kept, rest = named[:_MOST_INVARIANTS], named[_MOST_INVARIANTS:]
    others = [("others", sum(number for _, number in rest))] if rest else []
    rows: dict[date, list[Row[Any]]] = {}
    befores = [begin - _INSTANT for begin in begins]
    for row in _measured(tx, befores, opened.total()):
        rows.setdefault(row.opened_at.date(), []).append(row)
    return Figures(
        tuple(
            _day(day, opened[day], rows.get(day, ()), spent[day])
            for day in (begin.date() for begin in begins)
        ),
        (*kept, *others),
    )


def _by_day(by_hour: Mapping[datetime, float]) -> Counter[date]:
    found: Counter[date] = Counter()
    for hour, number in by_hour.items():
        found[hour.date()] += number  # type: ignore[assignment]
    return found


def _day(day: date, opened: int, rows: Sequence[Row[Any]], spent: float) -> Day:
    return Day(
        day,
        opened,
        _median(row.detected for row in rows),
        _median(row.diagnosed for row in rows),
        _median(row.resolved for row in rows),
        spent,
    )


# ------------------------------------------------------------------ sums


def _parts(
    at: Any, since: datetime, until: datetime | None
) -> tuple[list[ColumnElement[bool]], tuple[datetime, datetime] | None]:
    """Return the conditions of rows later than `since` that are not summed, and from when to when the summed hours are."""
    first = next_hour(since)
    if until is None or until <= first:
        return [at > since], None
    return [and_(at > since, at < first), at >= until], (first, until)


def _opened(
    tx: Transaction, since: datetime, until: datetime | None, by: str
) -> dict[Any, int]:
    """Return how many tickets opened after a time, by "hour" or by "invariant"."""
    rows, hours = _parts(tickets.c.opened_at, since, until)
    key = _hour_of(tx, tickets.c.opened_at) if by == "hour" else tickets.c[by]
    number = func.count().label("number")
    statements = [_grouped(key, [number]).where(one) for one in rows]
    if hours is not None:
        summed = func.sum(hourly_tickets.c.opened).label("number")
        sums = _grouped(hourly_tickets.c[by], [summed])
        statements.append(sums.where(_within(hourly_tickets.c.hour, *hours)))
    found: Counter[Any] = Counter()
    for statement in statements:
        for row in tx.all(statement):
            found[row.key] += int(row.number)
    return found


def _calls(
    tx: Transaction, since: datetime, until: datetime | None, by: str
) -> dict[Any, Counter[str]]:
    """Return the sums of the calls that began after a time, by "hour" or by "outcome"."""
    rows, hours = _parts(diagnoses.c.started_at, since, until)
    key = _hour_of(tx, diagnoses.c.started_at) if by == "hour" else diagnoses.c[by]
    sums = [func.sum(diagnoses.c[name]).label(name) for name in CALL_SUMS]
    grouped = _grouped(key, [func.count().label("calls"), *sums])
    statements = [grouped.where(one, ~UNSETTLED) for one in rows]
    statements.append(grouped.where(diagnoses.c.started_at > since, UNSETTLED))
    if hours is not None:
        names = ("calls", *CALL_SUMS)
        sums = [func.sum(hourly_calls.c[name]).label(name) for name in names]
        statements.append(
            _grouped(hourly_calls.c[by], sums).where(
                _within(hourly_calls.c.hour, *hours)
            )
        )
    found: dict[Any, Counter[str]] = {}
    for statement in statements:
        for row in tx.all(statement):
            total = found.setdefault(row.key, Counter())
            total["calls"] += int(row.calls)
            total["cost_usd"] += row.cost_usd
            for name in _TOKENS:
                total[name] += int(getattr(row, name))
    return found


def _grouped(key: Any, values: Sequence[Any]) -> Select[Any]:
    return select(key.label("key"), *values).group_by(text("key"))


def _within(hour: Any, first: datetime, before: datetime) -> ColumnElement[bool]:
    return and_(hour >= first, hour < before)


def _hour_of(tx: Transaction, at: Any) -> Any:
    """Return the hour of an instant, as SQL."""
    if tx.connection.dialect.name == "sqlite":
        return type_coerce(type_coerce(at, BigInteger) // _HOUR * _HOUR, Instant)
    hour = func.date_trunc("hour", func.timezone("UTC", at))
    return type_coerce(func.timezone("UTC", hour), Instant)


# ------------------------------------------------------------------ medians


def _measured(
    tx: Transaction, begins: Sequence[datetime], opened: int
) -> list[Row[Any]]:
    """Return how fast tickets were seen, diagnosed and resolved that opened after the first of some times.

    They are all of them, or a sample at random of at most `_SAMPLE`, equal parts of which are of the time from each to
    the next. The same period has the same sample.
    """
    later = tickets.c.opened_at > begins[0]
    if opened <= _SAMPLE:
        return list(tx.all(_select_measured(tx).where(later)))
    first = [tx.connection.scalar(_FIRST_AFTER, {"p_begin": begin}) for begin in begins]
    last = tx.connection.scalar(select(func.max(tickets.c.id))) or 0
    ids = _sample([one or last + 1 for one in first] + [last + 1])
    rows = tx.all(_select_measured(tx).where(one_of(tx, tickets.c.id, ids)))
    return [row for row in rows if row.opened_at > begins[0]]


_FIRST_AFTER = (
    select(tickets.c.id)
    .where(tickets.c.opened_at > bindparam("p_begin", type_=Instant))
    .order_by(tickets.c.opened_at, tickets.c.id)
    .limit(1)
)


def _sample(bounds: Sequence[int]) -> list[int]:
    """Return ids of which about as many are between each bound and the next, as far as there are so many."""
    random = Random(0)
    share = max(_SAMPLE // (len(bounds) - 1), 1)
    ids: list[int] = []
    for low, high in pairwise(bounds):
        every = range(low, high)
        ids += every if len(every) <= share else random.sample(every, share)
    return ids


def _select_measured(tx: Transaction) -> Select[Any]:
    opened_at = tickets.c.opened_at
    answered = and_(
        diagnoses.c.id == tickets.c.diagnosis_id, diagnoses.c.outcome == "answered"
    )
    return select(
        opened_at,
        _seconds(tx, opened_at, tickets.c.unseen_since).label("detected"),
        _seconds(tx, tickets.c.first_seen_at, tickets.c.unseen_since).label("seen"),
        _seconds(tx, opened_at, tickets.c.first_seen_at).label("confirmed"),
        _seconds(tx, diagnoses.c.finished_at, opened_at).label("diagnosed"),
        _seconds(tx, tickets.c.resolved_at, opened_at).label("resolved"),
        was_silent_before().label("kept_back"),
    ).outerjoin(diagnoses, answered)


def _seconds(tx: Transaction, later: Any, earlier: Any) -> ColumnElement[float]:
    if tx.connection.dialect.name == "sqlite":
        ms = type_coerce(later, BigInteger) - type_coerce(earlier, BigInteger)
        return type_coerce(ms / 1000.0, Float)
    return cast(func.extract("epoch", later - earlier), Float)


def _median(seconds: Iterable[float | None]) -> float | None:
    known = [float(one) for one in seconds if one is not None]
    return median(known) if known else None
