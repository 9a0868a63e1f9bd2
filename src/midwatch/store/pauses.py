"""What daemons tell each other: shared pauses and heartbeats."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import delete, select

from midwatch.model import Json
from midwatch.store.protocol import Daemon, Pause, PauseKind
from midwatch.store.schema import daemons, pauses
from midwatch.store.work import CLOCK_SLACK, Work


def pause(work: Work, kind: PauseKind, seconds: float, reason: str, actor: str) -> None:
    until = work.now + timedelta(seconds=seconds)
    for present in in_force(work):
        if present.kind == kind and present.until >= until:
            return
    told = {"until": until, "set_at": work.now, "reason": reason, "actor": actor}
    work.insert_or_update(pauses, {"kind": kind, **told}, told)


def unpause(work: Work, kind: PauseKind) -> None:
    work.execute(delete(pauses).where(pauses.c.kind == kind))


def in_force(work: Work) -> list[Pause]:
    """The pauses that last, longest first. One set in the future is from before a clock
    went back, and void."""
    rows = work.all(
        select(pauses)
        .where(pauses.c.until > work.now, pauses.c.set_at <= work.now + CLOCK_SLACK)
        .order_by(pauses.c.until.desc())
    )
    return [
        Pause(
            row.kind,
            row.until,
            (row.until - work.now).total_seconds(),
            row.reason,
            row.actor,
        )
        for row in rows
    ]


def beat(work: Work, name: str, kind: str, info: Json) -> None:
    told = {"kind": kind, "beat_at": work.now, "info": info}
    work.insert_or_update(daemons, {"name": name, **told}, told)


def alive(work: Work, within: float) -> list[Daemon]:
    rows = work.all(
        select(daemons)
        .where(daemons.c.beat_at > work.now - timedelta(seconds=within))
        .order_by(daemons.c.name)
    )
    return [Daemon(row.name, row.kind, row.beat_at, row.info) for row in rows]
