"""Insert the tickets that open: two statements for many of them, with their audit rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from sqlalchemy import bindparam, select, text

from midwatch.model import Json, Key, Ticket, TicketStatus, keepable
from midwatch.store.engine import Transaction
from midwatch.store.protocol import Opening
from midwatch.store.rows import EPOCH, MILLISECOND
from midwatch.store.schema import Instant, as_stored, batches, dump_json


def open_tickets(
    tx: Transaction,
    openings: Sequence[Opening],
    cycle: int | None,
    batch: int,
    actor: str = "monitor",
    last: datetime | None = None,
) -> tuple[Ticket, ...]:
    """Open tickets in a batch. `last` is when the subject was observed before this observation."""
    if not openings:
        return ()
    queued = tx.one(select(*_OF_BATCH).where(batches.c.id == batch))
    assert queued is not None
    found: list[Ticket] = []
    for some in _portions(openings):
        rows = [_ticket_row(tx, opening, last) for opening in some]
        ids = _insert_rows(tx, rows, cycle, batch, actor)
        found += [
            Ticket(
                id=id_,
                key=Key(row["subject"], row["invariant"], row["component"]),
                severity=opening.violation.severity,
                status=TicketStatus.OPEN,
                held=False,
                message=keepable(row["message"]),
                facts=as_stored(row["facts"]),
                first_seen_at=row["first_seen_at"],
                opened_at=tx.now,
                last_seen_at=tx.now,
                occurrence_count=1,
                batch=batch,
                seen=cycle is not None,
                flapping=opening.flapping,
                previous_id=opening.previous_id,
                attempts=queued.attempts,
                next_attempt_at=queued.next_attempt_at,
                last_error=queued.last_error,
            )
            for id_, row, opening in zip(ids, rows, some, strict=True)
        ]
    return tuple(sorted(found, key=lambda ticket: ticket.id))


_OF_BATCH = (batches.c.attempts, batches.c.next_attempt_at, batches.c.last_error)
_PORTION = 2_000
"""Openings in one statement: a bound of its memory and, on PostgreSQL, of its time."""


def _portions(openings: Sequence[Opening]) -> Iterable[Sequence[Opening]]:
    for start in range(0, len(openings), _PORTION):
        yield openings[start : start + _PORTION]


def insert_tickets(
    tx: Transaction,
    openings: Sequence[Opening],
    cycle: int | None,
    batch: int,
    actor: str,
    last: datetime | None,
) -> list[int]:
    """Insert the rows of tickets that open. Return their ids, in the order of the openings."""
    return [
        id_
        for some in _portions(openings)
        for id_ in _insert_rows(
            tx, [_ticket_row(tx, one, last) for one in some], cycle, batch, actor
        )
    ]


_EACH = (
    "subject invariant component severity message facts unseen_since first_seen_at"
    " flapping previous_id"
).split()
_INSERTED = (
    "INSERT INTO tickets (subject, invariant, component, severity, message, facts, unseen_since, first_seen_at,"
    " flapping, previous_id, status, held, opened_at, last_seen_at, occurrence_count, seen_cycle, batch_id) SELECT "
)
_ALL = ", 'open', {no}, :now, :now, 1, CAST(:cycle AS INTEGER), :batch FROM "
_RETURNED = " RETURNING id, subject, invariant, component"
_INSERT_SQLITE = text(
    _INSERTED
    + ", ".join(f"json_extract(value, '$[{number}]')" for number in range(len(_EACH)))
    + _ALL.format(no="0")
    + "json_each(:rows) ORDER BY key"
    + _RETURNED
).bindparams(bindparam("now", type_=Instant))
_INSERT_POSTGRES = text(
    _INSERTED
    + "row->>0, row->>1, row->>2, CAST(row->>3 AS integer), row->>4, row->5, CAST(row->>6 AS timestamptz),"
    " CAST(row->>7 AS timestamptz), CAST(row->>8 AS boolean), CAST(row->>9 AS bigint)"
    + _ALL.format(no="false")
    + "jsonb_array_elements(CAST(:rows AS jsonb)) WITH ORDINALITY AS one(row, number) ORDER BY number"
    + _RETURNED
).bindparams(bindparam("now", type_=Instant))


def _insert_rows(
    tx: Transaction, rows: Sequence[Json], cycle: int | None, batch: int, actor: str
) -> list[int]:
    """Insert rows of tickets with one statement, as JSON, and their audit rows with another."""
    sqlite = not tx.postgres
    instants = ("unseen_since", "first_seen_at")
    each = [
        [
            _instant(row[name], sqlite) if name in instants else row[name]
            for name in _EACH
        ]
        for row in rows
    ]
    values: Json = {"rows": dump_json(each), "now": tx.now}
    values |= {"cycle": cycle, "batch": batch}
    of_key = {
        (row.subject, row.invariant, row.component): row.id
        for row in tx.all(_INSERT_SQLITE if sqlite else _INSERT_POSTGRES, values)
    }
    ids = [
        of_key[
            keepable(row["subject"]),
            keepable(row["invariant"]),
            keepable(row["component"]),
        ]
        for row in rows
    ]
    tx.note_opened(rows[0]["subject"], batch, min(ids), max(ids), actor)
    return ids


def _instant(value: datetime | None, sqlite: bool) -> int | str | None:
    if value is None:
        return None
    return (value - EPOCH) // MILLISECOND if sqlite else value.isoformat()


def _ticket_row(tx: Transaction, opening: Opening, last: datetime | None) -> Json:
    violation = opening.violation
    facts = dict(violation.facts)
    if violation.value is not None:
        facts["value"] = violation.value
    if violation.limit is not None:
        facts["limit"] = violation.limit
    began = tx.now
    # Polls come at equal intervals: the gap before the first sight was as long as the one before this.
    unseen = last and min(last, tx.now)
    if opening.seen_for:
        seen_for = timedelta(seconds=opening.seen_for)
        began, unseen = began - seen_for, unseen and unseen - seen_for
        if not tx.postgres:  # which has whole milliseconds
            began = EPOCH + (began - EPOCH) // MILLISECOND * MILLISECOND
    return {
        "subject": violation.key.subject,
        "invariant": violation.key.invariant,
        "component": violation.key.component,
        "severity": violation.severity,
        "message": violation.message,
        "facts": facts,
        "first_seen_at": began,
        "unseen_since": unseen,
        "flapping": opening.flapping,
        "previous_id": opening.previous_id,
    }
