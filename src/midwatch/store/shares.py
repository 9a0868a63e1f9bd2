"""Store operations by which monitors share the subjects: leases, and who watches what.

A monitor has one row with its lease; a subject's row names who watches it. So a lease costs one write, however many
subjects there are, and it is the write of the heartbeat.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import delete, select, text, update

from midwatch.fair_shares import Member, Share, fair_shares, version_of
from midwatch.model import Json
from midwatch.store.engine import CLOCK_SLACK, Transaction, chunks
from midwatch.store.queue import beat
from midwatch.store.schema import monitors, subjects


@dataclass(frozen=True, slots=True)
class _Known:
    """A monitor as its row says. `left` are the seconds of its lease; 0 if that is over."""

    id: str
    digest: str
    left: float


def share(
    tx: Transaction,
    member: Member,
    last: Share | None,
    info: Json,
    *,
    busy: Collection[str] = (),
    ended: Callable[[str], bool] = lambda process: False,
) -> Share:
    """Renew the lease of a monitor, save its heartbeat, and return what it watches."""
    present = _present(tx, ended)
    same = last is not None and _version(present) == last.version
    if not same:
        _one_at_a_time(tx)
    given = _renew(tx, member)
    beat(tx, member.name, "monitor", info)
    if not same:
        present = _present(tx, ended)
        same = _give(tx, member, present, frozenset(busy))
        last = None
    others = [one.left for one in present if one.id != member.id]
    next_end = min(others, default=None)
    if last is not None and given == last.given:
        return replace(last, next_end=next_end)
    own = tx.all(select(subjects.c.name).where(subjects.c.watcher == member.id))
    names = frozenset(row.name for row in own)
    version = _version(present) if same else ""
    return Share(names, len(present), next_end, version, given)


def leave(tx: Transaction, member_id: str) -> None:
    """End the lease of a monitor."""
    tx.execute(delete(monitors).where(monitors.c.id == member_id))


def lease_left(now: datetime, renewed_at: datetime, lease: float) -> float:
    """Return the seconds left of a lease, 0 if it is over. One from before the clock was set back is void."""
    if renewed_at > now + CLOCK_SLACK:
        return 0.0
    return max(0.0, (renewed_at - now).total_seconds() + lease)


def _version(present: Sequence[_Known]) -> str:
    return version_of([(one.id, one.digest) for one in present])


def _present(tx: Transaction, ended: Callable[[str], bool]) -> list[_Known]:
    """Return the monitors whose lease is not over."""
    columns = monitors.c
    rows = tx.all(
        select(
            columns.id,
            columns.process,
            columns.digest,
            columns.renewed_at,
            columns.lease,
        )
    )
    known = [
        _Known(row.id, row.digest, lease_left(tx.now, row.renewed_at, row.lease))
        for row in rows
        if not ended(row.process)
    ]
    return [one for one in known if one.left]


def _renew(tx: Transaction, member: Member) -> int:
    """Renew the lease of a monitor, which is a new one if it has no row. Return how often it was given subjects."""
    renewed = tx.one(
        update(monitors)
        .where(monitors.c.id == member.id)
        .values(renewed_at=tx.now, lease=member.lease)
        .returning(monitors.c.given)
    )
    if renewed is not None:
        return int(renewed.given)
    knows = sorted(member.knows)
    tx.execute(
        monitors.insert().values(
            id=member.id,
            name=member.name,
            process=member.process,
            digest=member.digest,
            knows=knows,
            renewed_at=tx.now,
            lease=member.lease,
            given=0,
        )
    )
    new = {"revision": 0, "cycle": 0, "failures": 0, "state": {}}
    if knows:
        tx.insert_new(subjects, [{"name": name, **new} for name in knows])
    return 0


def _give(
    tx: Transaction, member: Member, present: Sequence[_Known], busy: frozenset[str]
) -> bool:
    """Give what no one watches to all, and what this monitor has too much to the others. Return whether that is all.

    What another one has too much it gives away itself.
    """
    ids = [one.id for one in present]
    tx.execute(delete(monitors).where(monitors.c.id.not_in(ids)))
    rows = tx.all(select(subjects.c.name, subjects.c.watcher))
    held = {row.name: row.watcher for row in rows}
    wanted = fair_shares(_knows(tx, present), held)
    moves: dict[str, list[str]] = {}
    kept = False
    for name in sorted(wanted):
        holder, taker = held.get(name), wanted[name]
        if taker == holder or (holder in ids and holder != member.id):
            continue
        if holder == member.id and name in busy:
            kept = True
        else:
            moves.setdefault(taker, []).append(name)
    _lock(tx, sorted(name for names in moves.values() for name in names))
    for taker, names in moves.items():
        for chunk in chunks(names):
            tx.execute(
                update(subjects).where(subjects.c.name.in_(chunk)).values(watcher=taker)
            )
    takers = moves.keys() - {member.id}
    if takers:
        tx.execute(
            update(monitors)
            .where(monitors.c.id.in_(takers))
            .values(given=monitors.c.given + 1)
        )
    return not kept


def _knows(tx: Transaction, present: Sequence[_Known]) -> dict[str, frozenset[str]]:
    """Return the subjects that each monitor knows; those of equal settings are read once."""
    one_of = {one.digest: one.id for one in present}
    rows = tx.all(
        select(monitors.c.digest, monitors.c.knows).where(
            monitors.c.id.in_(one_of.values())
        )
    )
    by_digest = {row.digest: frozenset(row.knows) for row in rows}
    return {one.id: by_digest[one.digest] for one in present}


def _lock(tx: Transaction, names: Sequence[str]) -> None:
    """Lock subjects in the order of their names, as `save_unchanged` does."""
    for chunk in chunks(names):
        tx.all(
            select(subjects.c.name)
            .where(subjects.c.name.in_(chunk))
            .order_by(subjects.c.name)
            .with_for_update()
        )


def _one_at_a_time(tx: Transaction) -> None:
    """Let monitors that join, or find that one is gone, follow one another until the end of the transaction.

    It is taken before any row is locked. A transaction on SQLite holds the write lock anyway.
    """
    if tx.connection.dialect.name == "postgresql":
        tx.execute(text("SELECT pg_advisory_xact_lock(7305616)"))


def watchers(tx: Transaction) -> dict[str, str]:
    """Return the name of the monitor that watches each subject; those that no one watches are left out."""
    rows = tx.all(
        select(
            subjects.c.name,
            monitors.c.name.label("watcher"),
            monitors.c.renewed_at,
            monitors.c.lease,
        ).join(monitors, monitors.c.id == subjects.c.watcher)
    )
    return {
        row.name: row.watcher
        for row in rows
        if lease_left(tx.now, row.renewed_at, row.lease)
    }
