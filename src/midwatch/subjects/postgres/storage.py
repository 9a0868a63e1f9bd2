"""The checks of what a PostgreSQL server stores: transaction ids, pages, dead rows, sizes, and the log kept for slots."""

from __future__ import annotations

import contextlib

from midwatch.errors import Unsupported
from midwatch.model import Fact, Signal
from midwatch.subjects.findings import NotObservable, PartlyUnsupported, at_least
from midwatch.subjects.postgres import sql
from midwatch.subjects.postgres.connection import QueryFailed
from midwatch.subjects.postgres.observation import (
    ObservationContext,
    tracking_off,
    untracked,
)
from midwatch.subjects.rows import Row, number, text
from midwatch.subjects.series import (
    Series,
    add_point,
    point_spacing,
    read_series,
    series_growth,
    series_until,
)
from midwatch.units import format_count, format_duration, format_size

WRAPAROUND = 2.0**31


# -------------------------------------------------- transaction ids


async def check_id_age(context: ObservationContext) -> list[Signal]:
    rows = context.counted(
        "transaction_id_age",
        await context.connection.rows(sql.ID_AGES),
        lambda row: {"database": row["datname"]},
    )
    holders: list[Row] = []
    if context.connection.all_stats:
        with contextlib.suppress(QueryFailed):  # the ages are known without them
            holders = await context.connection.rows(sql.HORIZON)
    facts: dict[str, Fact] = {}
    if holders:
        facts = {
            "holder_kind": text(holders[0]["kind"], 40),
            "holder": text(holders[0]["name"], 64),
            "holder_detail": _with_query(holders[0]),
            "holder_age": int(holders[0]["held"]),
        }
    return [_id_signal(row, facts) for row in rows]


def _with_query(holder: Row) -> str:
    parts = [text(holder[key], 300) for key in ("detail", "database", "state", "query")]
    return ", ".join(filter(None, parts))


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


# -------------------------------------------------- damaged pages


async def check_checksums(context: ObservationContext) -> list[Signal]:
    rows = await context.connection.rows(sql.DATA_CHECKSUMS)
    if not rows[0]["enabled"]:
        raise Unsupported(
            "the server has no data checksums, so damaged pages are not recognised",
            hint="stop it and run pg_checksums --enable",
        )
    off = await untracked(context.connection, "track_counts")
    rows = context.counted(
        "checksum_failures",
        await context.connection.rows(sql.CHECKSUM_FAILURES),
        lambda row: {"database": row["datname"]},
    )
    signals = [_checksum_signal(row) for row in rows]
    if off:
        message, hint = tracking_off("track_counts", off)
        raise PartlyUnsupported(message, hint=hint, signals=signals)
    return signals


def _checksum_signal(row: Row) -> Signal:
    name, count = text(row["datname"], 64), number(row["failures"])
    last = text(row["last_failure"], 40)
    return Signal(
        "checksum_failures",
        name,
        f"{format_count(int(count), 'page')} of {name} failed the checksum, the last at {last}",
        count,
        facts={"count": int(count), "last_failure": last},
    )


# -------------------------------------------------- dead rows


async def check_dead_tuples(context: ObservationContext) -> list[Signal]:
    where = (await context.connection.rows(sql.DATABASE))[0]
    if where["standby"]:
        raise NotObservable("a standby has no statistics of dead rows: see its primary")
    off = [
        row
        for row in await untracked(context.connection, "track_counts")
        if row["database"] in (None, "", where["name"])
    ]
    before = context.previous.get("dead_tuples")
    found = await context.connection.rows(
        sql.DEAD_TUPLES,
        {
            "floor": context.settings.dead_tuples_floor,
            "before": [
                one
                for one in (before if isinstance(before, list) else [])
                if isinstance(one, int)
            ],
        },
    )
    rows = context.counted("dead_tuples", found, _table_attributes)
    limit = context.limit("dead_tuples")
    signals = [
        _dead_signal(row) if row["known"] else at_least(_dead_signal(row), limit)
        for row in rows
    ]
    over = [one for one in signals if one.value is not None and one.value > limit]
    if len(over) > sql.DEAD_TUPLES_LIMIT:
        raise QueryFailed(
            f"more than {sql.DEAD_TUPLES_LIMIT} tables have too many dead rows",
            hint="raise dead_tuples_floor or the limit",
        )
    kept = [row["id"] for row in rows if row["known"] or row["before"]]
    context.state["dead_tuples"] = kept[: sql.DEAD_TUPLES_LIMIT]
    if off:
        message, hint = tracking_off("track_counts", off)
        raise PartlyUnsupported(
            message, hint=hint, signals=[at_least(one, limit) for one in signals]
        )
    return signals


def _table_attributes(row: Row) -> dict[str, object]:
    return {
        "table": f"{row['schemaname']}.{row['relname']}",
        "schema": row["schemaname"],
        "database": row["datname"],
    }


def _dead_signal(row: Row) -> Signal:
    dead, total = float(row["dead"]), float(row["total"])
    share = dead / total
    name = ".".join(text(row[k], 64) for k in ("datname", "schemaname", "relname"))
    last = text(row["last_autovacuum"], 19)
    return Signal(
        "dead_tuples",
        name,
        f"{share:.0%} of the rows of {name} are dead ({dead:,.0f}); "
        + (f"autovacuum last ran {last}" if last else "autovacuum never ran"),
        share,
        facts={
            "dead": int(dead),
            "live": int(total - dead),
            "last_autovacuum": last or None,
            "database": text(row["datname"], 64),
            "schema": text(row["schemaname"], 64),
            "table": text(row["relname"], 64),
        },
    )


# -------------------------------------------------- growth


async def check_growth(context: ObservationContext) -> list[Signal]:
    """Compare the sizes of databases within `growth_window`.

    Sizes are queried only a few times in each window, as the server reads all files of a database for
    one; in between the last sizes count.
    """
    window = context.settings.growth_window
    kept = _known_sizes(context)
    if _due(kept, context.at, window):
        rows = context.counted(
            "database_growth",
            await context.connection.rows(sql.DATABASE_SIZES),
            lambda row: {"database": row["datname"]},
        )
        kept = {
            text(row["datname"], 64): add_point(
                kept.get(text(row["datname"], 64), []),
                context.at,
                float(row["size"]),
                window,
            )
            for row in rows
            if row["size"] is not None  # dropped meanwhile
        }
    context.state["sizes"] = dict(kept)
    signals = [
        _growth_signal(name, points, grown, window)
        for name, points in kept.items()
        if (grown := series_growth(points, window)) is not None
    ]
    if not signals:
        raise NotObservable(
            "the first observation: sizes are compared from the next on"
        )
    return signals


def _known_sizes(context: ObservationContext) -> dict[str, Series]:
    raw = context.previous.get("sizes")
    known = raw if isinstance(raw, dict) else {}
    return {
        str(name): series_until(read_series(points), context.at)
        for name, points in known.items()
    }


def _due(kept: dict[str, Series], at: float, window: float) -> bool:
    latest = max((points[-1][0] for points in kept.values() if points), default=None)
    return latest is None or at - latest >= point_spacing(window)


def _growth_signal(name: str, points: Series, grown: float, window: float) -> Signal:
    size = points[-1][1]
    return Signal(
        "database_growth",
        name,
        f"grew by {format_size(grown)} within {format_duration(window)}, "
        f"to {format_size(size)}",
        grown,
        facts={"size": int(size), "grown": int(grown)},
    )


# -------------------------------------------------- slots


async def check_slots(context: ObservationContext) -> list[Signal]:
    rows = await context.connection.rows(sql.slots(context.connection.version))
    unused = [row for row in rows if not row["active"] or row["wal_status"] == "lost"]
    return [
        _slot_signal(row)
        for row in context.counted(
            "inactive_slots",
            unused,
            lambda row: {
                "slot": row["slot_name"],
                "slot_type": row["slot_type"],
                "database": row["database"],
            },
        )
    ]


def _slot_signal(row: Row) -> Signal:
    name, kept = text(row["slot_name"], 64), number(row["retained"])
    lost = row["wal_status"] == "lost"
    return Signal(
        "inactive_slots",
        name,
        (
            f"slot {name} was invalidated: what its reader needs is gone"
            if lost
            else f"slot {name} has no reader and keeps {format_size(kept)} of write-ahead log"
        ),
        kept,
        holds=False if lost else None,
        facts={
            "slot": name,
            "slot_type": text(row["slot_type"], 40),
            "database": text(row["database"], 64),
            "wal_status": text(row["wal_status"], 40),
            "retained_bytes": int(kept),
        },
    )
