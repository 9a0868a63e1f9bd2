"""Store operations of silences, and the record of what they keep silent.

The monitor decides what is silent, in each cycle, as it knows what is broken. A change of a silence applies to open tickets
in its own transaction, so that no agent claims one in between. Each change of a silence takes the next revision: a cycle
that was computed without it is refused, as with the revision of a subject.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    Row,
    and_,
    exists,
    func,
    or_,
    select,
    text,
    update,
)

from midwatch.errors import Conflict, NotFound
from midwatch.model import Json, Key, Ticket, Violation
from midwatch.silences import (
    Hold,
    InvalidSilence,
    Matcher,
    Recurrence,
    Silence,
    SilencedViolation,
    Silencing,
    hold,
    in_force,
    labels_of_ticket,
    labels_of_violation,
    why_silent,
)
from midwatch.store.engine import Lock, Transaction, audit_row
from midwatch.store.rows import DamagedDocument, severity_of, ticket_of
from midwatch.store.schema import (
    LARGEST_ID,
    UNRESOLVED,
    WAITING,
    batches,
    diagnoses,
    select_tickets,
    silenced,
    silences,
    subjects,
    tickets,
)
from midwatch.units import LONGEST_DURATION

_PRESENT = silenced.c.ended_at.is_(None)
_CHUNK = 500  # ids in one statement
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
    if recurrence is not None and starts_at is None:
        recurrence = recurrence.from_now_on()
    new = Silence(
        id=0,
        matchers=tuple(matchers),
        starts_at=start,
        ends_at=_end(start, ends_at, seconds),
        author=author,
        reason=reason,
        created_at=tx.now,
        rrule=recurrence.rrule if recurrence else None,
        window_seconds=recurrence.window_seconds if recurrence else None,
        timezone=recurrence.timezone if recurrence else None,
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


LAST_CHANGE_OF_SILENCES = select(func.max(silences.c.revision)).scalar_subquery()


def silences_revision(tx: Transaction) -> int:
    """Return the number of the last change of a silence, 0 if there was none."""
    return int(tx.connection.scalar(select(LAST_CHANGE_OF_SILENCES)) or 0)


def _next_revision(tx: Transaction) -> int:
    """Return the number of a change of silences; such changes follow one another."""
    if tx.connection.dialect.name == "postgresql":
        tx.execute(text(f"SELECT pg_advisory_xact_lock({Lock.SILENCES:d})"))
    return silences_revision(tx) + 1


def share_silences(tx: Transaction) -> None:
    """Let no silence change until the end of the transaction: it would not see what is opened or resolved here.

    Take it before rows of subjects, tickets and batches are locked: a change of a silence that waits for such a row
    holds up who asks for this.
    """
    if tx.connection.dialect.name == "postgresql":
        lock = text(f"SELECT pg_advisory_xact_lock_shared({Lock.SILENCES:d})")
        tx.execute(lock)


def _matchers(document: Any) -> tuple[Matcher, ...]:
    """Return stored matchers. Damaged ones, without which a silence would match everything, cannot be evaluated."""
    if isinstance(document, DamagedDocument):
        return (Matcher("", "=", "damaged in the database"),)
    return tuple(Matcher(*one) for one in document)


def _silence_of(row: Any) -> Silence:
    return Silence(
        id=row.id,
        matchers=_matchers(row.matchers),
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


def count_silenced(tx: Transaction, since: datetime) -> tuple[int, int]:
    """Return how many violations became silent since a time, and how many are silent now."""
    began, now = (
        tx.connection.scalar(select(func.count()).where(condition))
        for condition in (silenced.c.first_seen_at > since, _PRESENT)
    )
    return int(began or 0), int(now or 0)


def was_silent_before() -> Any:
    """Return the condition of tickets that a silence kept from opening."""
    kept = (
        select(silenced.c.id)
        .where(
            silenced.c.ticket_id == tickets.c.id,
            silenced.c.ended_at == tickets.c.opened_at,
        )
        .limit(1)  # PostgreSQL would read all of an EXISTS once, into a hash table
    )
    return kept.scalar_subquery().is_not(None)


def _silenced_of(row: Any) -> SilencedViolation:
    return SilencedViolation(
        id=row.id,
        key=Key(row.subject, row.invariant, row.component),
        severity=severity_of(row.severity),
        message=row.message,
        by=row.by,
        silence_id=row.silence_id,
        until=row.until,
        first_seen_at=row.first_seen_at,
        ended_at=row.ended_at,
        ticket_id=row.ticket_id,
    )


def save_silenced(
    tx: Transaction, changes: Sequence[Silencing], actor: str = "monitor"
) -> bool:
    """Record that violations are silent, or what keeps them so from now on. Return whether one was not so before.

    Raises IntegrityError where another transaction does the same at the same time.
    """
    present = _present(tx, [one.key for one in changes])
    new = [one for one in changes if one.key not in present]
    by_hold: dict[Hold, list[int]] = {}
    for one in changes:
        if one.key in present:
            by_hold.setdefault(one.held, []).append(present[one.key].id)
    for held, ids in by_hold.items():
        _update_silenced(tx, ids, _hold_values(held))
    if new:
        tx.execute(silenced.insert(), [_silenced_row(tx, one) for one in new])
    why = {one.ticket_id: one.why for one in new if one.ticket_id is not None}
    _note(tx, "silence", actor, why)
    _free_claims(tx, sorted(why))
    return bool(new)


def _update_silenced(tx: Transaction, ids: Sequence[int], values: Json) -> None:
    for chunk in _chunks(ids):
        tx.execute(update(silenced).where(silenced.c.id.in_(chunk)).values(values))


def _chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK))


def _hold_values(held: Hold) -> Json:
    return {"by": held.by, "until": held.until, "silence_id": held.silence_id}


def _silenced_row(tx: Transaction, one: Silencing) -> Json:
    return {
        "subject": one.key.subject,
        "invariant": one.key.invariant,
        "component": one.key.component,
        "severity": one.severity,
        "message": one.message,
        "first_seen_at": tx.now - timedelta(seconds=one.seen_for),
        "ticket_id": one.ticket_id,
        **_hold_values(one.held),
    }


def keep_silent(
    tx: Transaction, violations: Sequence[Violation], kind: str
) -> tuple[frozenset[Key], bool]:
    """Record those of new violations that a silence keeps silent now.

    It is for what opens tickets outside of the monitor, which looks at silences itself. `share_silences` comes first.

    Returns:
        Their keys, and whether one of them was not silent before.
    """
    known = list_silences(tx) if silences_revision(tx) else []
    current = in_force(known, tx.now)
    silent = []
    for one in violations:
        held = hold(current, labels_of_violation(one, kind), one.silenced_by)
        if held is not None:
            why = why_silent(held, current)
            silent.append(Silencing(one.key, one.severity, one.message, held, why))
    if not silent:
        return frozenset(), False
    recorded = save_silenced(tx, silent)
    return frozenset(one.key for one in silent), recorded


def save_audible(
    tx: Transaction,
    keys: Collection[Key],
    opened: Mapping[Key, int] | None = None,
    actor: str = "monitor",
) -> None:
    """Record that violations are silent no more. `opened` are the ids of tickets, some of which open for them now."""
    present = _present(tx, keys)
    _update_silenced(tx, [row.id for row in present.values()], {"ended_at": tx.now})
    why = {
        row.ticket_id: f"{row.by} has ended"
        for row in present.values()
        if row.ticket_id is not None
    }
    for key, ticket_id in (opened or {}).items():
        if (row := present.get(key)) is not None:
            _update_silenced(tx, [row.id], {"ticket_id": ticket_id})
            why[ticket_id] = f"{row.by} has ended"
    _note(tx, "unsilence", actor, why)


def _present(tx: Transaction, keys: Collection[Key]) -> dict[Key, Row[Any]]:
    """Return the rows of those of the violations that are silent, by key."""
    wanted = set(keys)
    found: dict[Key, Row[Any]] = {}
    for subject in {key.subject for key in wanted}:
        rows = tx.all(select(silenced).where(_PRESENT, silenced.c.subject == subject))
        found |= {Key(row.subject, row.invariant, row.component): row for row in rows}
    return {key: row for key, row in found.items() if key in wanted}


def end_silenced_of(tx: Transaction, ticket_ids: Sequence[int]) -> None:
    """Record that the violations of tickets that are resolved now are silent no more."""
    of_ticket = exists().where(
        tickets.c.id.in_(ticket_ids),
        tickets.c.subject == silenced.c.subject,
        tickets.c.invariant == silenced.c.invariant,
        tickets.c.component == silenced.c.component,
    )
    tx.execute(update(silenced).where(_PRESENT, of_ticket).values(ended_at=tx.now))


def _note(tx: Transaction, action: str, actor: str, why: Mapping[int, str]) -> None:
    """Write an audit row for each of these tickets, which gives its reason."""
    ids = sorted(why)
    for chunk in _chunks(ids):
        rows = tx.all(
            select(tickets.c.id, tickets.c.status).where(tickets.c.id.in_(chunk))
        )
        tx.note(
            [
                audit_row(row.id, actor, action, row.status, row.status, why[row.id])
                for row in rows
            ]
        )


def silencing_of(ticket: Ticket, held: Hold, why: str) -> Silencing:
    """Return the change that makes an open ticket silent."""
    return Silencing(
        ticket.key, ticket.severity, ticket.message, held, why, ticket_id=ticket.id
    )


def _apply(tx: Transaction, actor: str) -> None:
    """Decide again which open tickets are silent. What the sender of an alert keeps silent stays so."""
    current = in_force(list_silences(tx), tx.now)
    rows = tx.all(
        select_tickets()
        .add_columns(subjects.c.kind, silenced.c.silence_id)
        .where(UNRESOLVED)
    )
    silent: list[Silencing] = []
    audible: list[Key] = []
    for row in rows:
        one = ticket_of(row)
        held = hold(current, labels_of_ticket(one, row.kind or ""))
        if held is not None and (held.by, held.until) != (
            one.silenced_by,
            one.silenced_until,
        ):
            silent.append(silencing_of(one, held, why_silent(held, current)))
        elif held is None and row.silence_id is not None:
            audible.append(one.key)
    save_silenced(tx, silent, actor)
    save_audible(tx, audible, actor=actor)


# ------------------------------------------------------------------ the queue


def not_silent(now: Any) -> Any:
    """Return the condition of batches that are not silent as a whole at a time, a value or a parameter."""
    lasts = and_(_PRESENT, or_(silenced.c.until.is_(None), silenced.c.until > now))
    is_silent = exists().where(
        lasts,
        silenced.c.subject == tickets.c.subject,
        silenced.c.invariant == tickets.c.invariant,
        silenced.c.component == tickets.c.component,
    )
    undiagnosed = and_(tickets.c.batch_id == batches.c.id, WAITING)
    return or_(
        ~exists().where(lasts),  # mostly nothing is silent, and this is asked once
        ~exists().where(undiagnosed, is_silent),
        exists().where(undiagnosed, ~is_silent),
    )


def _free_claims(tx: Transaction, ticket_ids: Sequence[int]) -> None:
    """Take batches that are silent as a whole from agents that have not called Claude for them yet.

    What is locked is being ended by its agent: it is not waited for.
    """
    called = exists().where(
        diagnoses.c.batch_id == batches.c.id,
        diagnoses.c.token == batches.c.claim_token,
    )
    for chunk in _chunks(ticket_ids):
        of_tickets = select(tickets.c.batch_id).where(tickets.c.id.in_(chunk))
        rows = tx.all(
            select(batches.c.id)
            .where(
                batches.c.id.in_(of_tickets),
                batches.c.claim_token.is_not(None),
                ~called,
                ~not_silent(tx.now),
            )
            .with_for_update(skip_locked=True)
        )
        tx.execute(
            update(batches)
            .where(batches.c.id.in_([row.id for row in rows]))
            .values(
                claim_holder=None,
                claim_token=None,
                claim_until=None,
                claim_process=None,
                attempts=batches.c.attempts - 1,
            )
        )
