"""Store operations by which monitors share the subjects: leases, and who watches what.

A monitor has one row with its lease; a subject's row names who watches it. So a lease costs one write, however many
subjects there are, and it is the write of the heartbeat. To renew it waits for no one who shares the subjects.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, func, select, text, update

from midwatch.fair_shares import Member, Share, fair_shares, version_of
from midwatch.model import Json
from midwatch.store.engine import CLOCK_SLACK, Lock, Transaction, chunks
from midwatch.store.queue import beat
from midwatch.store.schema import monitors, subjects

_STILL_SECONDS = 3
"""Seconds for which who shares the subjects may stand still: less than the others wait for a lock."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A monitor as its row says. `left` are the seconds of its lease; 0 if that is over."""

    id: str
    digest: str
    left: float


def stay(
    tx: Transaction,
    member: Member,
    last: Share,
    info: Json,
    *,
    ended: Callable[[str], bool] = lambda process: False,
) -> Share | None:
    """Renew the lease of a monitor, save its heartbeat, and return what it watches; None if its lease was over."""
    present = _present(tx, ended)
    given = _renewed(tx, member)
    beat(tx, member.name, "monitor", info)
    if given is None or all(one.id != member.id for one in present):
        return None
    version, as_before = _version(present), given == last.given
    names = last.subjects if as_before else _own(tx, member)
    if (version != last.version or not as_before) and _is_unfair(tx, member, present):
        version = ""
    return Share(names, len(present), _next_end(present, member), version, given)


def share(
    tx: Transaction,
    member: Member,
    info: Json,
    *,
    busy: Collection[str] = (),
    ended: Callable[[str], bool] = lambda process: False,
) -> Share:
    """Renew the lease of a monitor or begin one, save its heartbeat, share the subjects, and return what it watches."""
    _one_at_a_time(tx)
    given = _renewed(tx, member)
    if given is None:
        given = _join(tx, member)
    beat(tx, member.name, "monitor", info)
    present = _present(tx, ended)
    ids = [one.id for one in present]
    tx.execute(delete(monitors).where(monitors.c.id.not_in(ids)))
    whole = not _is_unfair(tx, member, present) or _give(
        tx, member, present, frozenset(busy)
    )
    version = _version(present) if whole else ""
    end = _next_end(present, member)
    return Share(_own(tx, member), len(present), end, version, given)


def _next_end(present: Sequence[_Known], member: Member) -> float | None:
    others = [one.left for one in present if one.id != member.id]
    return min(others, default=None)


def _own(tx: Transaction, member: Member) -> frozenset[str]:
    own = tx.all(select(subjects.c.name).where(subjects.c.watcher == member.id))
    return frozenset(row.name for row in own)


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


def _renewed(tx: Transaction, member: Member) -> int | None:
    """Renew the lease of a monitor. Return how often it was given subjects, None if it has no row."""
    renewed = tx.one(
        update(monitors)
        .where(monitors.c.id == member.id)
        .values(renewed_at=tx.now, lease=member.lease)
        .returning(monitors.c.given)
    )
    return None if renewed is None else int(renewed.given)


def _join(tx: Transaction, member: Member) -> int:
    """Add a monitor. Return how often it was given subjects."""
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


def _is_unfair(tx: Transaction, member: Member, present: Sequence[_Known]) -> bool:
    """Return whether there may be something to give: what no member watches, or what this one has too much.

    Of many members that find another one gone, the first gives what that had, and the others have only this to do.
    """
    count = func.count().label("subjects")
    rows = tx.all(select(subjects.c.watcher, count).group_by(subjects.c.watcher))
    load = {row.watcher: row.subjects for row in rows}
    ids = {one.id for one in present}
    least = min(load.get(one, 0) for one in ids)
    return not load.keys() <= ids or load.get(member.id, 0) - least > 1


def _give(
    tx: Transaction, member: Member, present: Sequence[_Known], busy: frozenset[str]
) -> bool:
    """Give what no one watches to all, and what this monitor has too much to the others. Return whether that is all.

    What another one has too much it gives away itself.
    """
    ids = [one.id for one in present]
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

    It is taken before any row is locked. A transaction on SQLite holds the write lock anyway. The server ends that of a
    process which stands still, so that the others do not wait for it.
    """
    if tx.connection.dialect.name == "postgresql":
        limit = f"SET LOCAL idle_in_transaction_session_timeout = '{_STILL_SECONDS}s'"
        tx.execute(text(limit))
        tx.execute(text(f"SELECT pg_advisory_xact_lock({Lock.SHARES:d})"))


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
