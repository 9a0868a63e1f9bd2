"""Deadlocks, transaction ids, dead rows and growth: what the server counts and stores."""

from __future__ import annotations

from ...model import Fact, Signal
from ...units import format_duration, format_size
from . import queries, series
from .connection import QueryFailed
from .round import NothingToSee, Round
from .wording import Row, text

WRAPAROUND = 2.0**31


# -------------------------------------------------- deadlocks


async def see_deadlocks(round_: Round) -> list[Signal]:
    rows = await round_.connection.rows(queries.DEADLOCKS)
    known = round_.previous.get("deadlocks")
    before = known if isinstance(known, dict) else None
    window = round_.settings.event_window
    kept: dict[str, list[list[float]]] = {}
    signals = []
    for row in rows:
        name, count = text(row["datname"], 64), float(row["deadlocks"])
        old = series.since(series.read((before or {}).get(name)), round_.at)
        if old and count < old[-1][1]:
            # The counter was reset (by hand or by a crash): what it shows came after that.
            old = [[old[-1][0], 0.0]]
        if not old and before is not None:
            old = [[round_.at, 0.0]]  # a database that is new since the last look
        kept[name] = series.stepped(old, round_.at, count, window)
        if old:
            signals.append(_deadlock_signal(name, count - kept[name][0][1], window))
    round_.state["deadlocks"] = kept
    if before is None:
        raise NothingToSee("the first look: the counters are compared from the next on")
    return signals


def _deadlock_signal(name: str, count: float, window: float) -> Signal:
    within = f"within {format_duration(window)}" if window else "since the last look"
    plural = "" if count == 1 else "s"
    return Signal(
        "deadlocks",
        name,
        f"{count:.0f} deadlock{plural} {within}",
        count,
        facts={"count": int(count)},
    )


# -------------------------------------------------- transaction ids


async def see_id_age(round_: Round) -> list[Signal]:
    rows = await round_.connection.rows(queries.ID_AGES)
    holders: list[Row] = []
    if round_.connection.all_stats:
        holders = await round_.connection.rows(queries.HORIZON)
    facts: dict[str, Fact] = {}
    if holders:
        facts = {
            "holder_kind": text(holders[0]["kind"], 40),
            "holder": text(holders[0]["name"], 64),
            "holder_detail": text(holders[0]["detail"], 300),
            "holder_age": int(holders[0]["held"]),
        }
    return [_id_signal(row, facts) for row in rows]


def _id_signal(row: Row, holder: dict[str, Fact]) -> Signal:
    xids, multixacts = float(row["xid_age"]), float(row["mxid_age"])
    worst = max(xids, multixacts)
    kind = "transaction id" if xids >= multixacts else "multixact"
    message = (
        f"the oldest {kind} is {worst:,.0f} old, {worst / WRAPAROUND:.2%} of the way "
        "to the end"
    )
    if holder:
        message += (
            f"; vacuum is held back most by {holder['holder_kind']} {holder['holder']}"
        )
    facts: dict[str, Fact] = {"xid_age": int(xids), "mxid_age": int(multixacts)}
    return Signal(
        "transaction_id_age",
        text(row["datname"], 64),
        message,
        worst / WRAPAROUND,
        facts=facts | holder,
    )


# -------------------------------------------------- dead rows


async def see_dead_tuples(round_: Round) -> list[Signal]:
    rows = await round_.connection.rows(
        queries.DEAD_TUPLES, {"floor": round_.settings.dead_tuples_floor}
    )
    if len(rows) > queries.DEAD_TUPLES_LIMIT:
        raise QueryFailed(
            f"more than {queries.DEAD_TUPLES_LIMIT} tables have that many dead rows",
            hint="raise dead_tuples_floor",
        )
    return [_dead_signal(row) for row in rows]


def _dead_signal(row: Row) -> Signal:
    dead, live = float(row["dead"]), float(row["live"])
    share = dead / max(1.0, dead + live)
    name = ".".join(text(row[k], 64) for k in ("datname", "schemaname", "relname"))
    last = text(row["last_autovacuum"], 19)
    return Signal(
        "dead_tuples",
        name,
        f"{share:.0%} of the rows of {name} are dead ({dead:,.0f}); "
        + (f"autovacuum last ran {last}" if last else "autovacuum never ran"),
        share,
        facts={"dead": int(dead), "live": int(live), "last_autovacuum": last or None},
    )


# -------------------------------------------------- growth


async def see_growth(round_: Round) -> list[Signal]:
    """Walking the files of every database costs the server something, so it is done only a
    few times in each window; in between the last sizes speak."""
    window = round_.settings.growth_window
    kept = _known_sizes(round_)
    if _due(kept, round_.at, window):
        rows = await round_.connection.rows(queries.SIZES)
        kept = {
            text(row["datname"], 64): series.extended(
                kept.get(text(row["datname"], 64), []),
                round_.at,
                float(row["size"] or 0),
                window,
            )
            for row in rows
        }
    round_.state["sizes"] = dict(kept)
    signals = [
        _growth_signal(name, points, grown, window)
        for name, points in kept.items()
        if (grown := series.growth(points, window)) is not None
    ]
    if not signals:
        raise NothingToSee("the first look: sizes are compared from the next on")
    return signals


def _known_sizes(round_: Round) -> dict[str, series.Series]:
    raw = round_.previous.get("sizes")
    known = raw if isinstance(raw, dict) else {}
    return {
        str(name): series.since(series.read(points), round_.at)
        for name, points in known.items()
    }


def _due(kept: dict[str, series.Series], at: float, window: float) -> bool:
    latest = max((points[-1][0] for points in kept.values() if points), default=None)
    return latest is None or at - latest >= series.spacing(window)


def _growth_signal(
    name: str, points: series.Series, grown: float, window: float
) -> Signal:
    size = points[-1][1]
    return Signal(
        "database_growth",
        name,
        f"grew by {format_size(grown)} within {format_duration(window)}, "
        f"to {format_size(size)}",
        grown,
        facts={"size": int(size), "grown": int(grown)},
    )
