"""Store operations of silences, and the record of what they keep silent.

The monitor decides what is silent, in each cycle, as it knows what is broken. A change of a silence applies to open tickets
in its own transaction, so that no agent claims one in between. Each change of a silence takes the next revision: a cycle
that was computed without it is refused, as with the revision of a subject.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, func, or_, select, text, update

from midwatch.errors import Conflict, NotFound
from midwatch.model import Json, Key, Severity, TicketStatus
from midwatch.silences import (
    Hold,
    InvalidSilence,
    Matcher,
    Recurrence,
    Silence,
    describe,
    hold,
    labels_of_ticket,
)
from midwatch.store.engine import Transaction, audit_row
from midwatch.store.on_call import SilencedViolation
from midwatch.store.schema import (
    LARGEST_ID,
    select_tickets,
    silenced,
    silences,
    subjects,
    ticket_of,
    tickets,
)
from midwatch.units import LONGEST_DURATION

_PRESENT = silenced.c.ended_at.is_(None)
MOST_LISTED = 10_000
"""Ended silences and silenced violations that a list has."""


def add_silence(
    tx: Transaction,
    matchers: Sequence[Matcher],
    *,
    author: str,
    reason: str,
    starts_at: datetime | None = None,
    ends_at: datetime | None = None,
    seconds: float | None = None,
    recurrence: Recurrence | None = None,
) -> Silence:
    """Add a silence and apply it to open tickets. Raises InvalidSilence, InvalidMatcher."""
    revision = _next_revision(tx)
    start = starts_at or tx.now
    new = Silence(
        id=0,
        matchers=tuple(matchers),
        starts_at=start,
        ends_at=_end(start, ends_at, seconds),
        author=author,
        reason=reason,
        created_at=tx.now,
        rrule=recurrence and recurrence.rrule,
        window_seconds=recurrence and recurrence.window_seconds,
        timezone=recurrence and recurrence.timezone,
    )
    new.check()
    inserted = tx.execute(
        silences.insert().values(
            revision=revision,
            matchers=[[one.name, one.op, one.value] for one in new.matchers],
            starts_at=new.starts_at,
            ends_at=new.ends_at,
            rrule=new.rrule,
            window_seconds=new.window_seconds,
            timezone=new.timezone,
            author=author,
            reason=reason,
            created_at=tx.now,
        )
    )
    key = inserted.inserted_primary_key
    assert key is not None
    _apply(tx, author)
    return silence(tx, int(key[0]))


def _end(start: datetime, ends_at: datetime | None, seconds: float | None) -> datetime:
    if (ends_at is None) is (seconds is None):
        raise InvalidSilence("a silence has an end or a duration, and not both")
    if ends_at is not None:
        return ends_at
    if seconds is None or not 0 < seconds <= LONGEST_DURATION:
        raise InvalidSilence(
            "a silence lasts more than nothing and at most a hundred years"
        )
    return start + timedelta(seconds=seconds)


def list_silences(tx: Transaction, include_ended: bool = False) -> list[Silence]:
    """Return silences."""
    if include_ended:
        statement = select(silences).order_by(silences.c.id.desc()).limit(MOST_LISTED)
    else:
        statement = (
            select(silences)
            .where(silences.c.ends_at > tx.now, silences.c.expired_at.is_(None))
            .order_by(silences.c.ends_at, silences.c.id)
        )
    return list(map(_silence_of, tx.all(statement)))


def silence(tx: Transaction, silence_id: int) -> Silence:
    """Return a silence. Raises NotFound."""
    known = 0 < silence_id <= LARGEST_ID
    statement = select(silences).where(silences.c.id == silence_id)
    row = tx.one(statement) if known else None
    if row is None:
        raise NotFound(
            f"there is no silence {silence_id}",
            hint="see `midwatch silences list --all`",
        )
    return _silence_of(row)


def expire_silence(tx: Transaction, silence_id: int, actor: str) -> Silence:
    """End a silence now and apply that to open tickets. Raises NotFound, Conflict."""
    revision = _next_revision(tx)
    if silence(tx, silence_id).ended(tx.now):
        raise Conflict(f"silence {silence_id} has ended already")
    tx.execute(
        update(silences)
        .where(silences.c.id == silence_id)
        .values(expired_at=tx.now, expired_by=actor, revision=revision)
    )
    _apply(tx, actor)
    return silence(tx, silence_id)


def silences_revision(tx: Transaction) -> int:
    """Return the number of the last change of a silence."""
    return int(tx.connection.scalar(select(func.max(silences.c.revision))) or 0)


def _next_revision(tx: Transaction) -> int:
    """Return the number of a change of silences; such changes follow one another."""
    if tx.connection.dialect.name == "postgresql":
        tx.execute(text("SELECT pg_advisory_xact_lock(7305616)"))
    return silences_revision(tx) + 1


def _silence_of(row: Any) -> Silence:
    return Silence(
        id=row.id,
        matchers=tuple(Matcher(*one) for one in row.matchers),
        starts_at=row.starts_at,
        ends_at=row.ends_at,
        author=row.author,
        reason=row.reason,
        created_at=row.created_at,
        rrule=row.rrule,
        window_seconds=row.window_seconds,
        timezone=row.timezone,
        expired_at=row.expired_at,
        expired_by=row.expired_by,
    )


# ------------------------------------------------------------------ what is silent


def list_silenced(
    tx: Transaction, subject: str | None = None, within: float | None = None
) -> list[SilencedViolation]:
    """Return the violations that are silent now, or were first seen in the last `within` seconds."""
    if within is None:
        statement = (
            select(silenced)
            .where(_PRESENT)
            .order_by(silenced.c.severity, silenced.c.first_seen_at, silenced.c.id)
        )
    else:
        since = tx.now - timedelta(seconds=within)
        statement = (
            select(silenced)
            .where(silenced.c.first_seen_at > since)
            .order_by(silenced.c.first_seen_at.desc(), silenced.c.id.desc())
        )
    if subject is not None:
        statement = statement.where(silenced.c.subject == subject)
    return list(map(_silenced_of, tx.all(statement.limit(MOST_LISTED))))


def _silenced_of(row: Any) -> SilencedViolation:
    return SilencedViolation(
        id=row.id,
        key=Key(row.subject, row.invariant, row.component),
        severity=Severity(row.severity),
        message=row.message,
        by=row.by,
        silence_id=row.silence_id,
        until=row.until,
        first_seen_at=row.first_seen_at,
        ended_at=row.ended_at,
        ticket_id=row.ticket_id,
    )


def _of_key(key: Key) -> Any:
    return and_(
        silenced.c.subject == key.subject,
        silenced.c.invariant == key.invariant,
        silenced.c.component == key.component,
        _PRESENT,
    )


def begin_silenced(
    tx: Transaction,
    key: Key,
    severity: Severity,
    message: str,
    held: Hold,
    *,
    first_seen_at: datetime,
    ticket_id: int | None = None,
) -> None:
    """Record that a violation is silent, or what keeps it so from now on. Raises IntegrityError for a second one."""
    values: Json = {"by": held.by, "until": held.until, "silence_id": held.silence_id}
    changed = tx.execute(update(silenced).where(_of_key(key)).values(values))
    if changed.rowcount:
        return
    tx.execute(
        silenced.insert().values(
            subject=key.subject,
            invariant=key.invariant,
            component=key.component,
            severity=severity,
            message=message,
            first_seen_at=first_seen_at,
            ticket_id=ticket_id,
            **values,
        )
    )


def end_silenced(tx: Transaction, key: Key, ticket_id: int | None = None) -> None:
    """Record that a violation is silent no more. `ticket_id` is the ticket that opens for it now."""
    values: Json = {"ended_at": tx.now}
    if ticket_id is not None:
        values["ticket_id"] = ticket_id
    tx.execute(update(silenced).where(_of_key(key)).values(values))


def _apply(tx: Transaction, actor: str) -> None:
    """Decide again which open tickets are silent. What the sender of an alert keeps silent stays so."""
    current = list_silences(tx)
    rows = tx.all(
        select_tickets()
        .add_columns(subjects.c.kind, silenced.c.silence_id)
        .where(tickets.c.status != TicketStatus.RESOLVED.value)
    )
    notes: list[Json] = []
    for row in rows:
        one = ticket_of(row)
        of_sender = one.silenced_by is not None and row.silence_id is None
        labels = labels_of_ticket(one, row.kind or "")
        held = hold(current, labels, tx.now)
        if held is None:
            if one.silenced_by is not None and not of_sender:
                end_silenced(tx, one.key)
                notes.append(unsilence_note(one.id, one.status, actor, one.silenced_by))
        elif (held.by, held.until) != (one.silenced_by, one.silenced_until):
            begin_silenced(
                tx,
                one.key,
                one.severity,
                one.message,
                held,
                first_seen_at=tx.now,
                ticket_id=one.id,
            )
            if one.silenced_by is None:
                notes.append(silence_note(one.id, one.status, actor, held, current))
    tx.note(notes)


def silence_note(
    ticket_id: int,
    status: TicketStatus,
    actor: str,
    held: Hold,
    known: Iterable[Silence] = (),
) -> Json:
    """Return the audit row of an open ticket that becomes silent."""
    why = next(
        (describe(one) for one in known if one.id == held.silence_id),
        held.by,
    )
    return audit_row(ticket_id, actor, "silence", status, status, why)


def unsilence_note(
    ticket_id: int, status: TicketStatus, actor: str, by: str | None
) -> Json:
    """Return the audit row of an open ticket whose silence ended."""
    why = f"{by or 'the silence'} has ended"
    return audit_row(ticket_id, actor, "unsilence", status, status, why)


def silent_now(now: Any) -> Any:
    """Return the condition of rows of `silenced` that hold at a time, a value or a parameter."""
    return and_(_PRESENT, or_(silenced.c.until.is_(None), silenced.c.until > now))
