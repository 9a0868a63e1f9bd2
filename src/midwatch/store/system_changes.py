"""Store operations of the changes of watched systems."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, literal, or_, select, true, tuple_

from midwatch.errors import NotFound
from midwatch.model import ChangeKind, Json
from midwatch.store.change_tables import change_readings, changes
from midwatch.store.engine import Transaction, chunks
from midwatch.store.many import each_of
from midwatch.store.schema import LARGEST_ID
from midwatch.system_changes import (
    ChangeFilter,
    NewChange,
    Reading,
    SystemChange,
)

_LATE = timedelta(days=1)
"""How long after an onset a change may have been seen of which only a period is known."""
_AT_ONCE = 1000
"""Rows that are removed in one transaction."""


def record_changes(
    tx: Transaction, new: Sequence[NewChange], reading: Reading | None = None
) -> list[SystemChange]:
    """Store changes, without those that are there, and how far a repository was read. Return them as they are stored."""
    rows = [_row(tx, one) for one in new]
    for chunk in chunks(rows):
        tx.insert_new(changes, chunk)
    if reading is not None:
        _save_reading(tx, replace(reading, read_at=tx.now, failed_at=None, error=""))
    keys = [one.dedup_key for one in new]
    found: dict[str, SystemChange] = {}
    for part in chunks(keys):
        statement = select(changes).where(changes.c.dedup_key.in_(part))
        found |= {row.dedup_key: _change_of(row) for row in tx.all(statement)}
    return [found[key] for key in dict.fromkeys(keys) if key in found]


def _row(tx: Transaction, new: NewChange) -> Json:
    at = min(new.at, tx.now)
    since = None if new.since is None else min(new.since, at)
    return {
        "dedup_key": new.dedup_key,
        "subject": new.subject,
        "at": at,
        "since": since,
        "kind": new.kind.value,
        "title": new.title,
        "source": new.source,
        "labels": dict(new.labels),
        "version_from": new.version_from,
        "version_to": new.version_to,
        "link": new.link,
        "author": new.author,
        "details": dict(new.details),
        "recorded_at": tx.now,
    }


def _change_of(row: Any) -> SystemChange:
    return SystemChange(
        id=row.id,
        at=row.at,
        kind=ChangeKind(row.kind),
        title=row.title,
        source=row.source,
        subject=row.subject,
        since=row.since,
        labels=row.labels,
        version_from=row.version_from,
        version_to=row.version_to,
        link=row.link,
        author=row.author,
        details=row.details,
        recorded_at=row.recorded_at,
    )


def system_change(tx: Transaction, change_id: int) -> SystemChange:
    """Return a change. Raises NotFound."""
    known = 0 < change_id <= LARGEST_ID
    row = tx.one(select(changes).where(changes.c.id == change_id)) if known else None
    if row is None:
        raise NotFound(
            f"there is no change {change_id}",
            hint="see `midwatch changes list`; old ones are removed (changes.keep_for)",
        )
    return _change_of(row)


def list_system_changes(tx: Transaction, query: ChangeFilter) -> list[SystemChange]:
    """Return changes, the newest first."""
    place = (changes.c.at, changes.c.id)
    statement = select(changes).order_by(*(one.desc() for one in place))
    if query.subject is not None:
        statement = statement.where(changes.c.subject == query.subject)
    if query.kind is not None:
        statement = statement.where(changes.c.kind == query.kind.value)
    if query.since is not None:
        statement = statement.where(changes.c.at >= query.since)
    if query.until is not None:
        statement = statement.where(changes.c.at < query.until)
    if query.after is not None:
        pairs = zip(place, query.after, strict=True)
        behind = tuple_(*(literal(value, one.type) for one, value in pairs))
        statement = statement.where(tuple_(*place) < behind)
    return list(map(_change_of, tx.all(statement.limit(max(query.limit, 0)))))


def changes_before(
    tx: Transaction,
    subjects: Collection[str],
    since: datetime,
    until: datetime,
    limit: int,
) -> list[SystemChange]:
    """Return the changes of some subjects that can have happened in a period, the latest first.

    Args:
        subjects: The subjects; "" stands for what is known by labels alone.
        since: The start of the period.
        until: Its end.
        limit: The most changes of each subject.
    """
    subject = each_of(tx, set(subjects))
    one = changes.alias()
    latest = (
        select(one.c.id)
        .where(
            one.c.subject == subject,
            one.c.at >= since,
            one.c.at <= until + _LATE,
            or_(one.c.at <= until, one.c.since <= until),
        )
        .order_by(one.c.at.desc(), one.c.id.desc())
        .limit(max(limit, 0))
        .correlate(subject.table)
    )
    if tx.connection.dialect.name == "sqlite":
        found = subject.table.join(changes, changes.c.id.in_(latest))
    else:
        ids = latest.lateral()
        found = subject.table.join(ids, true()).join(changes, changes.c.id == ids.c.id)
    order = changes.c.at.desc(), changes.c.id.desc()
    rows = tx.all(select(changes).select_from(found).order_by(*order))
    return list(map(_change_of, rows))


def forget_changes(tx: Transaction, older_than: float) -> int:
    """Remove changes that happened more than `older_than` seconds ago, some at a time. Return how many."""
    before = tx.now - timedelta(seconds=older_than)
    old = (
        select(changes.c.id)
        .where(changes.c.at < before)
        .order_by(changes.c.at, changes.c.id)
        .limit(_AT_ONCE)
    )
    ids = [row.id for row in tx.all(old)]
    for chunk in chunks(ids):
        tx.execute(delete(changes).where(changes.c.id.in_(chunk)))
    return len(ids)


# ------------------------------------------------------------------ repositories


def change_reading(tx: Transaction, name: str) -> Reading:
    """Return how far a repository has been read; an empty reading for a new one."""
    row = tx.one(select(change_readings).where(change_readings.c.name == name))
    if row is None:
        return Reading(name)
    return Reading(row.name, row.state, row.read_at, row.failed_at, row.error)


def fail_reading(tx: Transaction, name: str, error: str) -> None:
    """Record that a repository could not be read. What was read of it before stays."""
    known = change_reading(tx, name)
    _save_reading(tx, replace(known, failed_at=known.failed_at or tx.now, error=error))


def _save_reading(tx: Transaction, reading: Reading) -> None:
    row = {
        "name": reading.name,
        "state": reading.state,
        "read_at": reading.read_at,
        "failed_at": reading.failed_at,
        "error": reading.error,
    }
    tx.insert_or_replace(change_readings, [row])
