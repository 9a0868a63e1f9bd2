"""Sums by hour of tickets and calls, which are kept when the hour has ended.

Figures of a month then read a few hundred rows for each invariant and outcome, whatever their number of tickets. The sums have
what never changes: which tickets opened, and the calls that have ended. Daemons add them with their heartbeats. What is not summed
yet is read from the rows, so figures are the same with and without.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Float,
    Integer,
    Table,
    bindparam,
    func,
    literal_column,
    select,
)

from midwatch.store.engine import Lock, Transaction
from midwatch.store.schema import (
    Instant,
    SanitizedText,
    diagnoses,
    metadata,
    tickets,
)

hourly_tickets = Table(
    "hourly_tickets",
    metadata,
    Column("hour", Instant, primary_key=True),
    Column("invariant", SanitizedText, primary_key=True),
    Column("opened", Integer, nullable=False),
)

hourly_calls = Table(
    "hourly_calls",
    metadata,
    Column("hour", Instant, primary_key=True),
    Column("outcome", SanitizedText, primary_key=True),
    Column("calls", Integer, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cache_read_tokens", BigInteger, nullable=False),
    Column("cache_write_tokens", BigInteger, nullable=False),
    Column("cost_usd", Float, nullable=False),
)

# Up to when the hours of a table are summed.
summed = Table(
    "summed",
    metadata,
    Column("name", SanitizedText, primary_key=True),  # tickets, calls
    Column("until", Instant, nullable=False),
)

UNSETTLED: ColumnElement[bool] = diagnoses.c.outcome.in_(
    [literal_column(f"'{one}'") for one in ("running", "lost", "late")]
)
"""Calls whose outcome or cost can still change."""
_HOUR = timedelta(hours=1)
_TICKETS_AFTER = timedelta(hours=1)
"""How long after its end an hour has all of its tickets: no transaction takes so long."""
_CALLS_AFTER = timedelta(hours=6)
_LONGEST_CALL = timedelta(days=1)
"""A call that runs for longer has died with its daemon."""
_MOST_HOURS = 4
"""Hours that one heartbeat adds, for each of the two."""
CALL_SUMS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cost_usd",
)
_HOUR_OF = bindparam("p_hour", type_=Instant)
_NEXT = bindparam("p_next", type_=Instant)


def _sums_of(
    table: Table, at: Any, by: Any, values: Sequence[Any], *where: ColumnElement[bool]
) -> Any:
    """Return the statement that adds the sums of an hour."""
    rows = select(_HOUR_OF, by, *values).where(at >= _HOUR_OF, at < _NEXT)
    names = [column.name for column in table.columns]
    return table.insert().from_select(names, rows.where(*where).group_by(by))


_ADD_TICKETS = _sums_of(
    hourly_tickets,
    tickets.c.opened_at,
    tickets.c.invariant,
    [func.count()],
)
_ADD_CALLS = _sums_of(
    hourly_calls,
    diagnoses.c.started_at,
    diagnoses.c.outcome,
    [func.count(), *(func.sum(diagnoses.c[name]) for name in CALL_SUMS)],
    ~UNSETTLED,
)
_ADD = {
    "tickets": (tickets.c.opened_at, _ADD_TICKETS),
    "calls": (diagnoses.c.started_at, _ADD_CALLS),
}


def summed_until(tx: Transaction) -> dict[str, datetime]:
    """Return up to when tickets and calls are summed; nothing for what is not."""
    return {row.name: row.until for row in tx.all(select(summed))}


def sum_hours(tx: Transaction) -> None:
    """Sum hours that have ended, a few at a time."""
    ended = {"tickets": _hour(tx.now - _TICKETS_AFTER)}
    ended["calls"] = _hour(tx.now - _CALLS_AFTER)
    if not _due(summed_until(tx), ended) or not _alone(tx):
        return
    known = summed_until(tx)  # again: another daemon may have been at it
    ended["calls"] = min(ended["calls"], _oldest_running(tx) or ended["calls"])
    for name, (at, add) in _ADD.items():
        until = _sum(tx, known.get(name), at, add, ended[name])
        if until is not None and until != known.get(name):
            row = {"name": name, "until": until}
            tx.insert_or_update(summed, row, {"until": until})


def _due(known: dict[str, datetime], ended: dict[str, datetime]) -> bool:
    return any(name not in known or known[name] < ended[name] for name in ended)


def _sum(
    tx: Transaction, until: datetime | None, at: Any, add: Any, before: datetime
) -> datetime | None:
    """Sum up to `_MOST_HOURS` hours that have rows, from `until` to `before`. Return up to when there are sums now."""
    for _ in range(_MOST_HOURS):
        if until is not None and until >= before:
            break
        later = select(at).order_by(at).limit(1)
        if until is not None:
            later = later.where(at >= until)
        first = tx.connection.scalar(later)
        hour = before if first is None else min(_hour(first), before)
        if hour < before:
            tx.execute(add, {"p_hour": hour, "p_next": hour + _HOUR})
            hour += _HOUR
        until = hour
    return until


def _oldest_running(tx: Transaction) -> datetime | None:
    running = select(diagnoses.c.started_at).where(
        diagnoses.c.outcome == "running",
        diagnoses.c.started_at > tx.now - _LONGEST_CALL,
    )
    first = tx.connection.scalar(running.order_by(diagnoses.c.started_at).limit(1))
    return None if first is None else _hour(first)


def _alone(tx: Transaction) -> bool:
    """Return whether no other transaction adds sums; on PostgreSQL it is not waited for."""
    if tx.connection.dialect.name != "postgresql":
        return True
    return bool(
        tx.connection.scalar(select(func.pg_try_advisory_xact_lock(int(Lock.SUMS))))
    )


def next_hour(moment: datetime) -> datetime:
    """Return the first full hour that is not before a moment."""
    hour = _hour(moment)
    return hour if hour == moment else hour + _HOUR


def _hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)
