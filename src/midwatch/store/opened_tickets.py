"""Insert the tickets that open: two statements for many of them, with their audit rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import TextClause, bindparam, text

from midwatch.model import Facts, Json, keepable
from midwatch.store.engine import Transaction
from midwatch.store.protocol import Opening
from midwatch.store.rows import EPOCH, MILLISECOND
from midwatch.store.schema import Instant, as_stored, dump_json


class _Row(NamedTuple):
    """The columns in which tickets that open together can differ, as they are stored."""

    subject: str
    invariant: str
    component: str
    severity: int
    message: str
    facts: Facts
    unseen_since: datetime | None
    first_seen_at: datetime
    flapping: bool
    previous_id: int | None


_NO_FACTS: Json = {}
_PORTION = 2_000
"""Openings in one statement: a bound of its memory and, on PostgreSQL, of its time."""


def insert_tickets(
    tx: Transaction,
    openings: Sequence[Opening],
    cycle: int | None,
    batch: int,
    actor: str = "monitor",
    last: datetime | None = None,
) -> list[int]:
    """Insert the rows of tickets that open in a batch. Return their ids, in the order of the openings.

    `last` is when the subject was observed before this observation.
    """
    ids: list[int] = []
    for start in range(0, len(openings), _PORTION):
        rows = [_row(tx, one, last) for one in openings[start : start + _PORTION]]
        ids += _insert_rows(tx, rows, cycle, batch, actor)
    return ids


_TYPES = (
    "text text text integer text jsonb timestamptz timestamptz boolean bigint".split()
)
"""Of the columns of `_Row` on PostgreSQL."""


@cache
def _insert(differing: tuple[int, ...], postgres: bool) -> TextClause:
    """Return the insert of tickets that differ in some columns of `_Row`: these are in arrays of JSON, the others parameters.

    The ids are given in the order of the arrays, but may be returned in another.
    """
    values = [f":c{number}" for number in range(len(_Row._fields))]
    if postgres:
        values = [
            f"CAST({one} AS {of})" for one, of in zip(values, _TYPES, strict=True)
        ]
    for at, number in enumerate(differing):
        value = f"json_extract(value, '$[{at}]')"
        if postgres:
            value = f"CAST(one->>{at} AS {_TYPES[number]})"
        values[number] = value
    rows = (
        "jsonb_array_elements(CAST(:rows AS jsonb)) WITH ORDINALITY AS each(one, key)"
        if postgres
        else "json_each(:rows)"
    )
    return text(
        f"INSERT INTO tickets ({', '.join(_Row._fields)}, status, held, opened_at, last_seen_at, occurrence_count,"
        f" seen_cycle, batch_id) SELECT {', '.join(values)}, 'open', :held, :now, :now, 1, CAST(:cycle AS INTEGER),"
        f" :batch FROM {rows} ORDER BY key RETURNING id"
    ).bindparams(bindparam("now", type_=Instant))


def _insert_rows(
    tx: Transaction, rows: Sequence[_Row], cycle: int | None, batch: int, actor: str
) -> list[int]:
    """Insert rows of tickets with one statement, and their audit rows with another. Return the ids."""
    values: Json = {"now": tx.now, "held": False, "cycle": cycle, "batch": batch}
    differing: dict[int, Sequence[Any]] = {}
    for number, column in enumerate(zip(*rows, strict=True)):
        first = column[0]
        if column.count(first) < len(column) or _differ_as_json(column):
            instants = any(isinstance(one, datetime) for one in column)
            encoded = (_instant(one, tx.postgres) for one in column)
            differing[number] = list(encoded) if instants else column
        elif isinstance(first, dict):
            values[f"c{number}"] = dump_json(first)
        else:
            values[f"c{number}"] = _instant(first, tx.postgres)
    each = list(zip(*differing.values(), strict=True)) or [()] * len(rows)
    values["rows"] = dump_json(each)
    found = tx.all(_insert(tuple(differing), tx.postgres), values)
    ids = sorted(row[0] for row in found)
    tx.note_opened(rows[0].subject, batch, ids[0], ids[-1], actor)
    return ids


def _differ_as_json(facts: Sequence[Any]) -> bool:
    """Return whether equal facts are stored differently: 1 is true for Python."""
    first = facts[0]
    return (
        bool(first) and isinstance(first, dict) and len(set(map(dump_json, facts))) > 1
    )


def _instant(value: Any, postgres: bool) -> Any:
    """Return a datetime as it is stored, and any other value as it is."""
    if not isinstance(value, datetime):
        return value
    return value.isoformat() if postgres else (value - EPOCH) // MILLISECOND


def _row(tx: Transaction, opening: Opening, last: datetime | None) -> _Row:
    violation = opening.violation
    facts = violation.facts
    if violation.value is not None:
        facts = {**facts, "value": violation.value}
    if violation.limit is not None:
        facts = {**facts, "limit": violation.limit}
    began = tx.now
    # Polls come at equal intervals: the gap before the first sight was as long as the one before this.
    unseen = last and min(last, tx.now)
    if opening.seen_for:
        seen_for = timedelta(seconds=opening.seen_for)
        began, unseen = began - seen_for, unseen and unseen - seen_for
        if not tx.postgres:  # which has whole milliseconds
            began = EPOCH + (began - EPOCH) // MILLISECOND * MILLISECOND
    return _Row(
        *violation.key,
        int(violation.severity),
        keepable(violation.message),
        as_stored({**facts}) if facts else _NO_FACTS,
        unseen,
        began,
        opening.flapping,
        opening.previous_id,
    )
