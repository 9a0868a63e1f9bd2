"""Store operations of the monitor: each transaction saves one observation of a subject."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, exists, select, text, update
from sqlalchemy.exc import IntegrityError

from midwatch.errors import StaleWatch, SubjectTaken
from midwatch.model import (
    Json,
    Key,
    OpenTicket,
    Severity,
    Ticket,
    TicketStatus,
    keepable,
)
from midwatch.store.deliveries import call_back
from midwatch.store.engine import Lock, Transaction, audit_row, chunks
from midwatch.store.many import one_of
from midwatch.store.memory import remember
from midwatch.store.opened_tickets import insert_tickets
from midwatch.store.protocol import (
    Changes,
    Earlier,
    Opening,
    SavedCycle,
    Watch,
)
from midwatch.store.rows import ticket_of
from midwatch.store.schema import (
    RESOLVED_BY_OBSERVATION,
    UNRESOLVED,
    WAITING,
    Instant,
    batches,
    dump_json,
    select_tickets,
    subjects,
    tickets,
)
from midwatch.store.silences import (
    LAST_CHANGE_OF_SILENCES,
    end_silenced_of,
    list_silenced,
    list_silences,
    save_audible,
    save_silenced,
    share_silences,
    silences_revision,
)


def watch(tx: Transaction, subject: str, kind: str | None = None) -> Watch:
    """Return a subject's unresolved tickets and state; a new subject is created."""
    # Read before the silences: a change in between makes the watch stale.
    known = silences_revision(tx)
    silences = tuple(list_silences(tx)) if known else ()
    row = tx.one(select(subjects).where(subjects.c.name == subject))
    if row is None:
        new = {"name": subject, "revision": 0, "cycle": 0, "failures": 0, "state": {}}
        tx.insert_or_update(subjects, {**new, "kind": kind})
        return Watch(0, silences=silences, silences_revision=known, now=tx.now)
    if kind is not None and kind != row.kind:
        tx.execute(update(subjects).where(subjects.c.name == subject).values(kind=kind))
    silenced = tuple(list_silenced(tx, subject))
    return Watch(
        row.revision,
        _unresolved(tx, subject, texts=bool(silences or silenced)),
        row.state,
        row.failures,
        silences,
        known,
        silenced,
        tx.now,
        row.last_good_at,
    )


_BRIEF = (
    tickets.c.id,
    tickets.c.invariant,
    tickets.c.component,
    tickets.c.severity,
    tickets.c.held,
    tickets.c.seen_cycle.is_not(None).label("seen"),
    (WAITING & tickets.c.first_aid.is_(None)).label("new"),
)


def _unresolved(tx: Transaction, subject: str, texts: bool) -> tuple[OpenTicket, ...]:
    """Return the unresolved tickets of a subject, read some at a time; with message and facts if `texts`."""
    columns = (*_BRIEF, tickets.c.message, tickets.c.facts) if texts else _BRIEF
    statement = (
        select(*columns)
        .where(tickets.c.subject == subject, UNRESOLVED)
        .order_by(tickets.c.id)
    )
    rows: Any = tx.execute(statement)
    severities = tuple(Severity)
    names: dict[str, str] = {}
    return tuple(
        OpenTicket(
            row[0],
            Key(subject, names.setdefault(row[1], row[1]), row[2]),
            severities[row[3]],
            *row[4:],
        )
        for some in rows.partitions(1000)
        for row in some
    )


def revision(tx: Transaction, subject: str) -> int:
    """Return the present revision of a subject, 0 for an unknown one."""
    found = tx.connection.scalar(
        select(subjects.c.revision).where(subjects.c.name == subject)
    )
    return int(found or 0)


def save_cycle(
    tx: Transaction,
    subject: str,
    revision: int,
    changes: Changes,
    *,
    state: Json | None = None,
    error: str | None = None,
    group_wait: float = 0.0,
    linked: Collection[str] = (),
    silences: int | None = None,
    watcher: str | None = None,
) -> SavedCycle:
    """Save an observation. Raises StaleWatch if `revision` or `silences` is not the present one, and SubjectTaken."""
    if changes:
        share_silences(tx)
    before = tx.one(
        select(
            subjects.c.cycle,
            subjects.c.last_good_at,
            subjects.c.revision,
            subjects.c.watcher,
            LAST_CHANGE_OF_SILENCES.label("silences"),
        )
        .where(subjects.c.name == subject)
        .with_for_update()
    )
    if before is None or is_taken(before, watcher):
        raise StaleWatch() if before is None else SubjectTaken()
    if before.revision != revision or silences not in (None, before.silences or 0):
        raise StaleWatch()
    after = revision + bool(changes)
    cycle = before.cycle + (error is None)
    observed = succeeded(tx, cycle) if error is None else failed(tx, error)
    if state is not None:
        observed["state"] = state
    tx.execute(
        update(subjects)
        .where(subjects.c.name == subject)
        .values(revision=after, **observed)
    )
    if not changes:
        return SavedCycle(after, now=tx.now)
    store_derived(tx, (*changes.again, *changes.missing, *changes.resolved), before)
    _seen_again(tx, changes.again, None)
    _seen_again(tx, changes.returned, cycle)
    _resolve(tx, changes.resolved)
    try:
        save_silenced(tx, changes.silenced)
        seen_cycle = cycle if error is None else None
        batch = _batch_for(tx, subject, changes.openings, group_wait, linked)
        opened = insert_tickets(
            tx, changes.openings, seen_cycle, batch, last=before.last_good_at
        )
    except IntegrityError as conflict:
        raise StaleWatch() from conflict
    if changes.audible:
        keys = (one.violation.key for one in changes.openings)
        save_audible(tx, changes.audible, dict(zip(keys, opened, strict=True)))
    return SavedCycle(after, opened, tx.now)


def is_taken(row: Any, watcher: str | None) -> bool:
    """Return whether another monitor watches a subject than the one that saves; None saves in any case."""
    return watcher is not None and row.watcher != watcher


def save_look(
    tx: Transaction,
    subject: str,
    error: str | None = None,
    watcher: str | None = None,
) -> None:
    """Save that a subject was observed, or that this failed with `error`, and nothing that follows from it.

    Raises SubjectTaken.
    """
    before = tx.one(
        select(subjects.c.cycle, subjects.c.watcher)
        .where(subjects.c.name == subject)
        .with_for_update()
    )
    if before is None:
        return
    if is_taken(before, watcher):
        raise SubjectTaken()
    observed = succeeded(tx, before.cycle + 1) if error is None else failed(tx, error)
    tx.execute(update(subjects).where(subjects.c.name == subject).values(observed))


def succeeded(tx: Transaction, cycle: int) -> Json:
    """Return the values of a subject's row after its observation number `cycle`."""
    return {
        "cycle": cycle,
        "failures": 0,
        "last_error": None,
        "last_good_at": tx.now,
        "last_look_at": tx.now,
    }


def failed(tx: Transaction, error: str) -> Json:
    """Return the values of a subject's row after an observation that failed."""
    return {
        "failures": subjects.c.failures + 1,
        "last_error": error,
        "last_look_at": tx.now,
    }


def store_derived(tx: Transaction, ids: Sequence[int], before: Any) -> None:
    """Store the count and the time that tickets derive from their subject while they are observed.

    `before` is the row of the subject: its `cycle` and `last_good_at`.
    """
    for chunk in chunks(ids):
        tx.execute(
            update(tickets)
            .where(tickets.c.id.in_(chunk), tickets.c.seen_cycle.is_not(None))
            .values(
                occurrence_count=tickets.c.occurrence_count
                + before.cycle
                - tickets.c.seen_cycle,
                last_seen_at=before.last_good_at or tx.now,
                seen_cycle=None,
            )
        )


def _seen_again(tx: Transaction, ids: Sequence[int], cycle: int | None) -> None:
    for chunk in chunks(ids):
        tx.execute(
            update(tickets)
            .where(tickets.c.id.in_(chunk), tickets.c.seen_cycle.is_(None), UNRESOLVED)
            .values(
                occurrence_count=tickets.c.occurrence_count + 1,
                last_seen_at=tx.now,
                seen_cycle=cycle,
            )
        )


def _resolve(tx: Transaction, ids: Sequence[int]) -> None:
    for chunk in chunks(ids):
        open_rows = tx.all(
            select(tickets.c.id, tickets.c.status, tickets.c.batch_id)
            .where(tickets.c.id.in_(chunk), UNRESOLVED, tickets.c.held.is_(False))
            .order_by(tickets.c.id)
            .with_for_update()
        )
        resolve_rows(tx, open_rows, "monitor", RESOLVED_BY_OBSERVATION)


def resolve_rows(tx: Transaction, rows: Sequence[Any], actor: str, why: str) -> None:
    """Resolve tickets, take batches with nothing left to diagnose off the queue, and call back who asked for an investigation.

    `rows` have the columns id, status and batch_id.
    """
    if not rows:
        return
    ids = [row.id for row in rows]
    resolved = TicketStatus.RESOLVED.value
    tx.execute(
        update(tickets)
        .where(tickets.c.id.in_(ids))
        .values(status=resolved, resolved_at=tx.now, resolution=why)
    )
    tx.note(
        [audit_row(row.id, actor, "resolve", row.status, resolved, why) for row in rows]
    )
    end_silenced_of(tx, ids)
    call_back(tx, ids)
    _leave_queue(tx, {row.batch_id for row in rows})
    remember(tx, ids)


def open_in_batch(
    tx: Transaction,
    subject: Any,
    openings: Sequence[Opening],
    group_wait: float,
    linked: Collection[str],
    actor: str,
) -> list[int]:
    """Open tickets between two cycles, in the batch that they would go to in one. Return their ids.

    `subject` is the row of the subject, which is locked. The caller increases its revision. Count and last sight of the
    tickets derive from the subject's cycles from the next one on.
    """
    batch = _batch_for(tx, subject.name, openings, group_wait, linked)
    return insert_tickets(tx, openings, None, batch, actor, subject.last_good_at)


def _batch_for(
    tx: Transaction,
    subject: str,
    openings: Sequence[Opening],
    group_wait: float,
    linked: Collection[str],
) -> int:
    """Return the batch that openings of a subject go to; 0 without openings.

    It is the oldest that still waits for its group and has a ticket of the subject or of a linked one, or a new
    one. Tickets of other such batches move into it. A batch that an agent has claimed is not among them.
    """
    if not openings:
        return 0
    severity = min(opening.violation.severity for opening in openings)
    waiting = _waiting(tx, subject, group_wait, linked)
    if not waiting:
        return new_batch(tx, subject, severity, group_wait)
    return _merge(tx, waiting, severity)


def join(
    tx: Transaction, subject: str, linked: Collection[str], group_wait: float
) -> None:
    """Make one incident of those that wait for their group on a subject and on linked ones."""
    waiting = _waiting(tx, subject, group_wait, linked)
    own = select(tickets.c.id).where(
        tickets.c.subject == subject,
        one_of(tx, tickets.c.batch_id, [row.id for row in waiting]),
        WAITING,
    )
    if len(waiting) > 1 and tx.one(own.limit(1)) is not None:
        _merge(tx, waiting, Severity.INFO)


def _waiting(
    tx: Transaction, subject: str, group_wait: float, linked: Collection[str]
) -> Sequence[Any]:
    """Return the batches that wait for their group and have a ticket of these subjects, locked, the oldest first."""
    now = tx.now
    if linked:
        _one_at_a_time(tx)
        now = tx.clock(tx.connection)  # others may have opened what is after `tx.now`
    of_incident = exists().where(
        tickets.c.batch_id == batches.c.id,
        one_of(tx, tickets.c.subject, {subject, *linked}),
        WAITING,
    )
    return tx.all(
        select(batches.c.id, batches.c.severity)
        .where(
            batches.c.queued,
            batches.c.claim_token.is_(None),
            batches.c.attempts == 0,
            batches.c.next_attempt_at.is_not(None),
            batches.c.opened_at > now - timedelta(seconds=group_wait),
            batches.c.opened_at <= now,
            of_incident,
        )
        .order_by(batches.c.id)
        # What is locked is being claimed, or changed by a person: it is not waited for.
        .with_for_update(skip_locked=True)
    )


def _merge(tx: Transaction, waiting: Sequence[Any], severity: Severity) -> int:
    """Move the tickets of batches into the first, at least as urgent as `severity`. Return its id."""
    batch = int(waiting[0].id)
    tx.execute(
        update(batches)
        .where(batches.c.id == batch)
        .values(severity=min(severity, *(row.severity for row in waiting)))
    )
    _move(tx, [row.id for row in waiting[1:]], batch)
    return batch


def _one_at_a_time(tx: Transaction) -> None:
    """Let openings that may join each other follow one another until the end of the transaction.

    Two monitors that save linked subjects at once would each see no batch of the other. A transaction on SQLite
    holds the write lock anyway. Who holds this lock waits for no other, so it cannot be part of a deadlock.
    """
    if tx.connection.dialect.name == "postgresql":
        tx.execute(text(f"SELECT pg_advisory_xact_lock({Lock.INCIDENTS:d})"))


def _move(tx: Transaction, sources: Sequence[int], batch: int) -> None:
    """Move the undiagnosed tickets of batches to another batch; a batch without any leaves the queue."""
    if not sources:
        return
    rows = tx.all(
        select(tickets.c.id, tickets.c.status)
        .where(one_of(tx, tickets.c.batch_id, sources), WAITING)
        .order_by(tickets.c.id)
        .with_for_update(skip_locked=True)
    )
    for chunk in chunks([row.id for row in rows]):
        tx.execute(
            update(tickets).where(tickets.c.id.in_(chunk)).values(batch_id=batch)
        )
    why = f"one incident with a linked subject; now in batch {batch}"
    tx.note(
        [
            audit_row(row.id, "monitor", "join", row.status, row.status, why)
            for row in rows
        ]
    )
    _leave_queue(tx, sources)


def _leave_queue(tx: Transaction, ids: Collection[int]) -> None:
    """Take batches with nothing left to diagnose off the queue."""
    left = exists().where(tickets.c.batch_id == batches.c.id, WAITING)
    some = one_of(tx, batches.c.id, ids)
    tx.execute(update(batches).where(some, ~left).values(queued=False))


def new_batch(
    tx: Transaction,
    subject: str,
    severity: Severity,
    wait: float = 0.0,
    opened_at: datetime | None = None,
) -> int:
    """Create a batch that can be claimed `wait` seconds from now. Return its id.

    `opened_at` is when its incident began; by default that is now.
    """
    inserted = tx.execute(
        batches.insert().values(
            subject=subject,
            severity=severity,
            opened_at=opened_at or tx.now,
            queued=True,
            attempts=0,
            next_attempt_at=tx.now + timedelta(seconds=wait) if wait else None,
            set_at=tx.now,
        )
    )
    key = inserted.inserted_primary_key
    assert key is not None
    return int(key[0])


def open_ticket(tx: Transaction, opening: Opening, actor: str) -> Ticket:
    """Open a ticket outside of an observation; count an unresolved one of the same key as seen again."""
    key = opening.violation.key
    watch(tx, key.subject)  # a new subject is created
    tx.one(
        select(subjects.c.name).where(subjects.c.name == key.subject).with_for_update()
    )
    present = tx.one(
        select(tickets.c.id).where(
            tickets.c.subject == key.subject,
            tickets.c.invariant == key.invariant,
            tickets.c.component == key.component,
            UNRESOLVED,
        )
    )
    if present is None:
        batch = new_batch(tx, key.subject, opening.violation.severity)
        [id_] = insert_tickets(tx, [opening], None, batch, actor)
    else:
        id_ = present.id
        _seen_again(tx, [id_], None)
    increase_revision(tx, key.subject)
    row = tx.one(select_tickets().where(tickets.c.id == id_))
    assert row is not None
    return ticket_of(row)


def increase_revision(tx: Transaction, subject: str) -> None:
    """Increase the subject's revision: what the monitor computed before is stale."""
    tx.execute(
        update(subjects)
        .where(subjects.c.name == subject)
        .values(revision=subjects.c.revision + 1)
    )


_OF_KEY = (
    "tickets WHERE tickets.subject = :subject AND tickets.invariant = wanted.invariant"
    " AND tickets.component = wanted.component"
)
_EARLIER = (
    "SELECT wanted.number,"
    f" (SELECT id FROM {_OF_KEY} ORDER BY opened_at DESC, id DESC LIMIT 1) AS last,"
    f" (SELECT count(*) FROM {_OF_KEY} AND opened_at > :since) AS recent FROM "
)
_WITH_ONE = f" WHERE EXISTS (SELECT 1 FROM {_OF_KEY})"
_EARLIER_SQLITE = text(
    _EARLIER
    + "(SELECT key AS number, json_extract(value, '$[0]') AS invariant, json_extract(value, '$[1]') AS component"
    " FROM json_each(:keys)) AS wanted" + _WITH_ONE
).bindparams(bindparam("since", type_=Instant))
_EARLIER_POSTGRES = text(
    _EARLIER
    + "(SELECT number - 1 AS number, key->>0 AS invariant, key->>1 AS component"
    " FROM jsonb_array_elements(CAST(:keys AS jsonb)) WITH ORDINALITY AS one(key, number)) AS wanted"
    + _WITH_ONE
).bindparams(bindparam("since", type_=Instant))


def earlier(
    tx: Transaction, subject: str, keys: Sequence[Key], within: float
) -> dict[Key, Earlier]:
    """Return the history of keys; a key without one is left out."""
    statement = _EARLIER_POSTGRES if tx.postgres else _EARLIER_SQLITE
    since = tx.now - timedelta(seconds=within)
    values: Json = {"subject": keepable(subject), "since": since}
    return {
        some[row.number]: Earlier(row.last, row.recent)
        for some in chunks(keys)
        for row in tx.all(
            statement,
            {**values, "keys": dump_json([key[1:] for key in some])},
        )
    }


def openings(tx: Transaction, key: Key, within: float) -> list[Ticket]:
    """Return the tickets of a key that opened in the last `within` seconds, oldest first."""
    found = tx.all(
        select_tickets()
        .where(
            tickets.c.subject == key.subject,
            tickets.c.invariant == key.invariant,
            tickets.c.component == key.component,
            tickets.c.opened_at > tx.now - timedelta(seconds=within),
        )
        .order_by(tickets.c.opened_at, tickets.c.id)
    )
    return list(map(ticket_of, found))


def save_first_aid(tx: Transaction, ticket_ids: Sequence[int], first_aid: Json) -> None:
    """Store the first aid of tickets, with an audit row each."""
    why = str(first_aid.get("summary", ""))
    for chunk in chunks(ticket_ids):
        changed = tx.all(
            update(tickets)
            .where(tickets.c.id.in_(chunk))
            .values(first_aid=first_aid)
            .returning(tickets.c.id, tickets.c.status)
        )
        tx.note(
            [
                audit_row(row.id, "monitor", "first_aid", row.status, row.status, why)
                for row in sorted(changed)
            ]
        )
