"""Store operations of pushed alerts: what senders report is kept, and opens and resolves tickets at once.

A push is one transaction: rows of alerts, tickets, audit rows and the subject's revision are all written, or nothing is.
An alert is one row for each fingerprint and start, so a push that is sent again changes nothing. `docs/alerts.md` has
what becomes of reports that come late or twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, or_, select

from midwatch.model import Json, Key, Violation
from midwatch.received import Accepted, KeptAlert, Push, PushedAlerts, PushRules
from midwatch.store.alert_episodes import UNKNOWN_START, Episode, Episodes
from midwatch.store.cycles import (
    earlier,
    increase_revision,
    open_in_batch,
    resolve_rows,
    store_derived,
    watch,
)
from midwatch.store.engine import Transaction, chunks
from midwatch.store.protocol import Opening
from midwatch.store.rows import severity_of
from midwatch.store.schema import (
    IN_QUESTION,
    RESOLVED_BY_OBSERVATION,
    UNRESOLVED,
    alerts,
    senders,
    subjects,
    tickets,
)
from midwatch.store.silences import (
    keep_silent,
    save_audible,
    share_silences,
)

_FIRING, _RESOLVED = "firing", "resolved"
_DOUBTED = "doubted"
"""Reported as resolved while the heartbeat of the sender was overdue."""
_MOST_GROUPS = 200  # with alerts that were left out
_GROUP_SECONDS = 24 * 3600.0
"""A group that was not pushed again for this long is gone: senders repeat what fires every few hours."""


def receive(tx: Transaction, pushes: Sequence[Push], rules: PushRules) -> Accepted:
    """Save pushes in the order in which they came, and open and resolve the tickets that follow from them."""
    share_silences(tx)
    # All rows are locked before anything else is written: see `cycles._one_at_a_time`.
    names = sorted({push.subject for push in pushes})
    kinds = {push.subject: push.kind for push in pushes}
    locked = {name: _lock(tx, name, kinds[name]) for name in names}
    opened: dict[int, Violation] = {}
    resolved: list[int] = []
    for name in names:
        own = [push for push in pushes if push.subject == name]
        part = _receive_of(tx, locked[name], own, rules)
        opened |= part.opened
        resolved += part.resolved
    return Accepted(opened, tuple(resolved))


def _lock(tx: Transaction, name: str, kind: str) -> Any:
    """Return the row of a subject, locked; a new subject is created."""
    statement = select(subjects).where(subjects.c.name == name).with_for_update()
    row = tx.one(statement)
    if row is None:
        watch(tx, name, kind)
        row = tx.one(statement)
    return row


def _receive_of(
    tx: Transaction, subject: Any, pushes: Sequence[Push], rules: PushRules
) -> Accepted:
    alive = _hear(tx, subject.name, pushes)
    received = [alert for push in pushes for alert in push.alerts]
    if not received:
        return Accepted()
    known = _rows_of(tx, subject.name, received)
    episodes = Episodes(tx.now, known, alive=alive)
    for alert in received:
        episodes.apply(alert)
    _save(tx, subject.name, episodes.changed)
    ended = _not_firing(tx, subject.name, episodes.ended_keys(subject.name))
    resolved: list[int] = []
    if alive and pushes[-1].resolves:
        resolved = _resolve_tickets(tx, subject, ended, pushes[-1].sender)
    loud, changed = _by_silence(tx, subject, episodes, pushes[-1].kind)
    opened = _open_tickets(tx, subject, loud, pushes, rules)
    if opened or resolved or changed:
        increase_revision(tx, subject.name)
    return Accepted(opened, tuple(resolved))


# ------------------------------------------------------------------ the sender


def _hear(tx: Transaction, name: str, pushes: Sequence[Push]) -> bool:
    """Note that a sender was heard of. Return whether what it reports as resolved is resolved.

    It is not while its heartbeat is overdue: such a sender resolves alerts of which it does not hear any more.
    """
    row = tx.one(select(senders).where(senders.c.subject == name))
    beat_at = tx.now if any(push.heartbeat for push in pushes) else None
    if beat_at is None and row is not None:
        beat_at = row.heartbeat_at
    truncated = dict(row.truncated) if row is not None else {}
    for push in pushes:
        truncated.pop(push.group, None)
        if push.truncated:
            truncated[push.group] = [push.truncated, tx.now.timestamp()]
    oldest = tx.now.timestamp() - _GROUP_SECONDS
    kept = {group: one for group, one in truncated.items() if one[1] > oldest}
    values = {
        "received_at": tx.now,
        "heartbeat_at": beat_at,
        "truncated": dict(list(kept.items())[-_MOST_GROUPS:]),
    }
    tx.insert_or_update(senders, {"subject": name, **values}, values)
    within = pushes[-1].heartbeat_within
    if within is None:
        return True
    return beat_at is not None and tx.now - beat_at <= timedelta(seconds=within)


# ------------------------------------------------------------------ rows


def _rows_of(
    tx: Transaction, name: str, received: Sequence[KeptAlert]
) -> Iterator[Episode]:
    """Yield the episodes of these alerts that matter: those that fire, ended just now, or began as they did."""
    found = sorted({alert.fingerprint for alert in received})
    starts = {
        alert.starts_at or alert.changed_at or UNKNOWN_START for alert in received
    }
    unknown = alerts.c.starts_at == UNKNOWN_START
    recent = alerts.c.received_at > tx.now - Episodes.LATE
    for chunk in chunks(found):
        matters = or_(IN_QUESTION, recent, unknown)
        if len(starts) <= 500:
            matters = or_(matters, alerts.c.starts_at.in_(starts))
        else:
            matters = or_(matters, alerts.c.starts_at >= min(starts))
        for row in tx.all(
            select(alerts).where(
                alerts.c.subject == name, alerts.c.fingerprint.in_(chunk), matters
            )
        ):
            yield Episode(
                alert=_alert_of(row),
                starts_at=row.starts_at,
                received_at=row.received_at,
                doubted=row.status == _DOUBTED,
            )


def _alert_of(row: Any) -> KeptAlert:
    return KeptAlert(
        fingerprint=row.fingerprint,
        firing=row.status == _FIRING,
        invariant=row.invariant,
        component=row.component,
        severity=severity_of(row.severity),
        message=row.message,
        facts=row.facts,
        starts_at=row.starts_at,
        ends_at=row.ends_at,
        changed_at=row.changed_at,
        silenced_by=row.silenced_by or "",
    )


def _save(tx: Transaction, name: str, changed: Iterable[Episode]) -> None:
    rows = [_row(name, episode) for episode in changed]
    if rows:
        tx.insert_or_replace(alerts, rows)


def _row(name: str, episode: Episode) -> Json:
    alert = episode.alert
    return {
        "subject": name,
        "fingerprint": alert.fingerprint,
        "starts_at": episode.starts_at,
        "status": _status(episode),
        "ends_at": alert.ends_at,
        "changed_at": alert.changed_at,
        "received_at": episode.received_at,
        "invariant": alert.invariant,
        "component": alert.component,
        "severity": alert.severity,
        "message": alert.message,
        "facts": dict(alert.facts),
        "silenced_by": alert.silenced_by or None,
    }


def _status(episode: Episode) -> str:
    if episode.alert.firing:
        return _FIRING
    return _DOUBTED if episode.doubted else _RESOLVED


def _not_firing(tx: Transaction, name: str, ended: Collection[Key]) -> list[Key]:
    """Return those of the keys for which no alert fires any more: several may have one component."""
    firing: set[Key] = set()
    for chunk in chunks(sorted(ended, key=_order)):
        firing |= {
            Key(name, row.invariant, row.component)
            for row in tx.all(
                select(alerts.c.invariant, alerts.c.component).where(
                    alerts.c.subject == name,
                    alerts.c.status == _FIRING,
                    IN_QUESTION,
                    alerts.c.invariant.in_({key.invariant for key in chunk}),
                    alerts.c.component.in_({key.component for key in chunk}),
                )
            )
        }
    return [key for key in ended if key not in firing]


def _order(key: Key) -> tuple[str, str]:
    return key.invariant, key.component


# ------------------------------------------------------------------ tickets


def _unresolved(tx: Transaction, name: str, keys: Iterable[Key]) -> dict[Key, Any]:
    """Return the rows of the unresolved tickets of these keys."""
    found: dict[Key, Any] = {}
    ordered = sorted(set(keys), key=_order)
    for chunk in chunks(ordered):
        rows = tx.all(
            select(
                tickets.c.id,
                tickets.c.invariant,
                tickets.c.component,
                tickets.c.status,
                tickets.c.held,
                tickets.c.batch_id,
            )
            .where(
                tickets.c.subject == name,
                UNRESOLVED,
                tickets.c.invariant.in_({key.invariant for key in chunk}),
                tickets.c.component.in_({key.component for key in chunk}),
            )
            .order_by(tickets.c.id)
            .with_for_update()
        )
        found |= {Key(name, row.invariant, row.component): row for row in rows}
    return {key: found[key] for key in ordered if key in found}


def _resolve_tickets(
    tx: Transaction, subject: Any, ended: Sequence[Key], actor: str
) -> list[int]:
    """Resolve the tickets of keys that hold again, without those that a person holds."""
    found = _unresolved(tx, subject.name, ended).values()
    rows = [row for row in found if not row.held]
    ids = [row.id for row in rows]
    store_derived(tx, ids, subject)
    for chunk in chunks(rows):
        resolve_rows(tx, chunk, actor, RESOLVED_BY_OBSERVATION)
    return ids


def _open_tickets(
    tx: Transaction,
    subject: Any,
    loud: Sequence[Violation],
    pushes: Sequence[Push],
    rules: PushRules,
) -> dict[int, Violation]:
    """Open tickets of violations that have none: the most urgent first, while there is room for them."""
    if not loud:
        return {}
    room = _room(tx, subject.name, pushes[-1].most_tickets)
    chosen = sorted(loud, key=lambda one: one.severity)[:room]
    past = earlier(tx, subject.name, [one.key for one in chosen], rules.flapping_window)
    openings = [
        Opening(one).after(past.get(one.key), rules.flapping_openings) for one in chosen
    ]
    linked = frozenset[str]().union(*(push.linked for push in pushes))
    actor = pushes[-1].sender
    ids = open_in_batch(tx, subject, openings, rules.group_wait, linked, actor)
    opened = {one.key: id_ for one, id_ in zip(chosen, ids, strict=True)}
    save_audible(tx, opened, opened, actor)  # those that a silence kept silent so far
    return dict(zip(ids, chosen, strict=True))


def _violation(subject: str, alert: KeptAlert) -> Violation:
    return Violation(
        Key(subject, alert.invariant, alert.component),
        alert.severity,
        alert.message,
        facts=alert.facts,
        silenced_by=alert.silenced_by,
    )


def _by_silence(
    tx: Transaction, subject: Any, episodes: Episodes, kind: str
) -> tuple[list[Violation], bool]:
    """Return the violations without a ticket that no silence holds, and whether the monitor has to look again.

    It has to where others are silent from now on, which is recorded, and where an alert with a ticket fires again: it may
    be about to resolve that. Of several alerts with one key the most urgent counts.
    """
    new: dict[Key, Violation] = {}
    for alert in episodes.began:
        if alert.opens:
            one = _violation(subject.name, alert)
            if one.key not in new or one.severity < new[one.key].severity:
                new[one.key] = one
    ticketed = _unresolved(tx, subject.name, new)
    again = any(_order(key) in episodes.begun_keys for key in ticketed)
    new = {key: one for key, one in new.items() if key not in ticketed}
    if not new:
        return [], again
    silent, recorded = keep_silent(tx, list(new.values()), kind)
    loud = [one for key, one in new.items() if key not in silent]
    return loud, again or recorded


def _room(tx: Transaction, name: str, most: int) -> int:
    """Return how many more tickets a subject may have. Of a storm no more than `most` are counted."""
    unresolved = (
        select(tickets.c.id)
        .where(
            tickets.c.subject == name,
            UNRESOLVED,
        )
        .limit(most)
        .subquery()
    )
    counted = tx.connection.scalar(select(func.count()).select_from(unresolved))
    return most - int(counted or 0)


# ------------------------------------------------------------------ the monitor


def pushed_alerts(tx: Transaction, subject: str) -> PushedAlerts:
    """Return what was pushed to a subject and fires, the most urgent first."""
    ticketed = frozenset(
        (row.invariant, row.component)
        for row in tx.all(
            select(tickets.c.invariant, tickets.c.component).where(
                tickets.c.subject == subject,
                UNRESOLVED,
            )
        )
    )
    sender = tx.one(select(senders).where(senders.c.subject == subject))
    if sender is None:
        return PushedAlerts((), tx.now, ticketed)
    kept = tx.all(
        select(alerts)
        .where(alerts.c.subject == subject, IN_QUESTION)
        .order_by(alerts.c.severity, alerts.c.starts_at, alerts.c.fingerprint)
    )
    rows = [row for row in kept if row.status == _FIRING]
    firing = {(row.invariant, row.component) for row in rows}
    doubted = [
        row
        for row in kept
        if (key := (row.invariant, row.component)) in ticketed and key not in firing
    ]
    now = tx.now.timestamp()
    return PushedAlerts(
        alerts=tuple(map(_alert_of, rows)),
        now=tx.now,
        ticketed=ticketed,
        recent=frozenset(
            row.fingerprint for row in rows if row.received_at > tx.now - Episodes.LATE
        ),
        doubted=tuple(map(_alert_of, doubted)),
        doubted_for=min(
            (now - row.received_at.timestamp() for row in doubted), default=0.0
        ),
        silent_for=_age(tx.now, sender.received_at),
        heartbeat_age=_age(tx.now, sender.heartbeat_at),
        truncated={
            group: (int(count), max(now - at, 0.0))
            for group, (count, at) in sender.truncated.items()
            if now - at < _GROUP_SECONDS
        },
    )


def _age(now: datetime, then: datetime | None) -> float | None:
    return None if then is None else max((now - then).total_seconds(), 0.0)


def forget_alerts(tx: Transaction, older_than: float) -> int:
    """Remove alerts that were resolved more than `older_than` seconds ago. Return how many."""
    before = tx.now - timedelta(seconds=older_than)
    done = tx.execute(
        delete(alerts).where(alerts.c.received_at < before, alerts.c.status != _FIRING)
    )
    return int(done.rowcount)
