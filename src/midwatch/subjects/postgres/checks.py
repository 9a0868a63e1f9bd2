"""The checks of a PostgreSQL server, one function for each invariant.

Each returns signals, or raises ObservationFailed when it cannot observe its invariant.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from midwatch.errors import Unsupported
from midwatch.model import Fact, Signal
from midwatch.subjects.postgres import sql
from midwatch.subjects.postgres.connection import (
    QueryFailed,
    Row,
    number,
    state,
    text,
    who,
)
from midwatch.subjects.postgres.observation import (
    PREPARED,
    LockQueue,
    LockWaits,
    NotObservable,
    ObservationContext,
    Series,
    add_point,
    add_step,
    load_lock_waits,
    point_spacing,
    read_series,
    series_growth,
    series_until,
)
from midwatch.units import format_count, format_duration, format_size

SERVER = "server"


# -------------------------------------------------- connections


async def check_connections(context: ObservationContext) -> list[Signal]:
    limits = (await context.connection.rows(sql.SLOTS_LIMIT))[0]
    used = await context.connection.rows(sql.SLOTS_USED)
    capped = await context.connection.rows(sql.SLOTS_CAPPED)
    return [server_connections(limits, used), *map(capped_connections, capped)]


def server_connections(limits: Row, used: Sequence[Row]) -> Signal:
    sessions = sum(int(row["sessions"]) for row in used)
    free_for_all = max(1, int(limits["max_connections"]) - int(limits["reserved"]))
    facts: dict[str, Fact] = {
        "used": sessions,
        "max_connections": int(limits["max_connections"]),
        "reserved": int(limits["reserved"]),
    }
    message = f"{sessions} of {free_for_all} connections are taken"
    if used:
        top = max(used, key=lambda row: int(row["sessions"]))
        facts |= _holder(top)
        message += (
            f"; {top['sessions']} of them by {who(top)}, {text(top['state'], 40)}"
        )
    return Signal("connections", SERVER, message, sessions / free_for_all, facts=facts)


def _holder(row: Row) -> dict[str, Fact]:
    return {
        "holder_application": text(row["application_name"], 64),
        "holder_user": text(row["usename"], 64),
        "holder_state": text(row["state"], 40),
        "holder_count": int(row["sessions"]),
    }


def capped_connections(row: Row) -> Signal:
    name, used, cap = text(row["name"], 80), int(row["used"]), int(row["cap"])
    return Signal(
        "connections",
        name,
        f"{used} of the {cap} connections of {name} are taken",
        used / cap,
        facts={"used": used, "connection_limit": cap},
    )


# -------------------------------------------------- lock waits


async def check_blocked(context: ObservationContext) -> list[Signal]:
    return blocked(await load_lock_waits(context.connection))


def blocked(waits: LockWaits) -> list[Signal]:
    """Return one signal for each database with waiting sessions: its worst queue."""
    signals = []
    for database in sorted({str(row["datname"]) for row in waits.blocking.waits}):
        queues = waits.blocking.queues(database)
        if queues:
            signals.append(_queue_signal(database, queues, waits))
    return signals


def _queue_signal(
    database: str, queues: Sequence[LockQueue], waits: LockWaits
) -> Signal:
    worst = queues[0]
    root = waits.sessions.get(worst.root, {})
    prepared = worst.root == PREPARED
    name = "a prepared transaction" if prepared else f"pid {worst.root}"
    details = f" ({state(root)}, {who(root)})" if root else ""
    count = len(worst.waiting)
    return Signal(
        "blocked_sessions",
        database,
        f"{name}{details} blocks {format_count(count, 'session')}; "
        f"the longest has waited {format_duration(worst.longest)}",
        worst.longest,
        facts={
            "blocker_pid": None if prepared else worst.root,
            "blocker_user": text(root.get("usename"), 64),
            "blocker_application": text(root.get("application_name"), 64),
            "blocker_client": text(root.get("client"), 64),
            "blocker_state": (
                "prepared transaction" if prepared else text(root.get("state"), 40)
            ),
            "blocker_query": text(root.get("query"), 500),
            "blocker_transaction_seconds": round(number(root.get("xact_age")), 1),
            "blocked_count": count,
            "blocked_pids": ", ".join(str(row["pid"]) for row in worst.waiting[:20]),
            "longest_wait": round(worst.longest, 1),
            "queues": len(queues),
        },
    )


# -------------------------------------------------- open transactions, long statements


async def check_idle(context: ObservationContext) -> list[Signal]:
    rows = [
        row
        for row in await context.activity()
        if str(row["state"]).startswith("idle in transaction")
    ]
    return [_worst("idle_in_transaction", "state_age", rows) for rows in _by_base(rows)]


async def check_long(context: ObservationContext) -> list[Signal]:
    rows = [
        row
        for row in await context.activity()
        if row["state"] == "active" and row["wait_event_type"] != "Lock"
    ]
    return [_worst("long_queries", "query_age", rows) for rows in _by_base(rows)]


def _by_base(rows: Iterable[Row]) -> list[list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[str(row["datname"])].append(row)
    return [groups[name] for name in sorted(groups)]


def _worst(invariant: str, age: str, rows: Sequence[Row]) -> Signal:
    row = max(rows, key=lambda one: number(one[age]))
    seconds = number(row[age])
    does = (
        "has been idle in an open transaction for"
        if invariant == "idle_in_transaction"
        else "has been running a statement for"
    )
    message = f"pid {row['pid']} ({who(row)}) {does} {format_duration(seconds)}"
    if len(rows) > 1:
        message += f"; {len(rows) - 1} more like it for a shorter time"
    facts: dict[str, Fact] = {
        "pid": int(row["pid"]),
        "user": text(row["usename"], 64),
        "application": text(row["application_name"], 64),
        "client": text(row["client"], 64),
        "state": text(row["state"], 40),
        "seconds": round(seconds, 1),
        "transaction_seconds": round(number(row["xact_age"]), 1),
        "query": text(row["query"], 500),
        "count": len(rows),
    }
    return Signal(invariant, text(row["datname"], 64), message, seconds, facts=facts)


WRAPAROUND = 2.0**31


# -------------------------------------------------- deadlocks


async def check_deadlocks(context: ObservationContext) -> list[Signal]:
    rows = await context.connection.rows(sql.DEADLOCKS)
    known = context.previous.get("deadlocks")
    before = known if isinstance(known, dict) else None
    window = context.settings.event_window
    kept: dict[str, list[list[float]]] = {}
    signals = []
    for row in rows:
        name, count = text(row["datname"], 64), float(row["deadlocks"])
        old = series_until(read_series((before or {}).get(name)), context.at)
        if old and count < old[-1][1]:
            # The counter was reset (by hand or by a crash): its value counts from then on.
            old = [[old[-1][0], 0.0]]
        if not old and before is not None:
            old = [
                [context.at, 0.0]
            ]  # a database that is new since the last observation
        kept[name] = add_step(old, context.at, count, window)
        if old:
            signals.append(_deadlock_signal(name, count - kept[name][0][1], window))
    context.state["deadlocks"] = kept
    if before is None:
        raise NotObservable(
            "the first observation: counters are compared from the next on"
        )
    return signals


def _deadlock_signal(name: str, count: float, window: float) -> Signal:
    within = (
        f"within {format_duration(window)}" if window else "since the last observation"
    )
    return Signal(
        "deadlocks",
        name,
        f"{format_count(int(count), 'deadlock')} {within}",
        count,
        facts={"count": int(count)},
    )


# -------------------------------------------------- damaged pages


async def check_checksums(context: ObservationContext) -> list[Signal]:
    rows = await context.connection.rows(sql.DATA_CHECKSUMS)
    if not rows[0]["enabled"]:
        raise Unsupported(
            "the server has no data checksums, so damaged pages are not recognised",
            hint="stop it and run pg_checksums --enable",
        )
    rows = await context.connection.rows(sql.CHECKSUM_FAILURES)
    return [_checksum_signal(row) for row in rows]


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


# -------------------------------------------------- transaction ids


async def check_id_age(context: ObservationContext) -> list[Signal]:
    rows = await context.connection.rows(sql.ID_AGES)
    holders: list[Row] = []
    if context.connection.all_stats:
        holders = await context.connection.rows(sql.HORIZON)
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


async def check_dead_tuples(context: ObservationContext) -> list[Signal]:
    rows = await context.connection.rows(
        sql.DEAD_TUPLES, {"floor": context.settings.dead_tuples_floor}
    )
    if len(rows) > sql.DEAD_TUPLES_LIMIT:
        raise QueryFailed(
            f"more than {sql.DEAD_TUPLES_LIMIT} tables have that many dead rows",
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


async def check_growth(context: ObservationContext) -> list[Signal]:
    """Compare the sizes of databases within `growth_window`.

    Sizes are queried only a few times in each window, as the server reads all files of a database for
    one; in between the last sizes count.
    """
    window = context.settings.growth_window
    kept = _known_sizes(context)
    if _due(kept, context.at, window):
        rows = await context.connection.rows(sql.DATABASE_SIZES)
        kept = {
            text(row["datname"], 64): add_point(
                kept.get(text(row["datname"], 64), []),
                context.at,
                float(row["size"] or 0),
                window,
            )
            for row in rows
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


# -------------------------------------------------- replication


async def check_lag(context: ObservationContext) -> list[Signal]:
    standbys = await context.connection.rows(sql.STANDBYS)
    recovery = (await context.connection.rows(sql.RECOVERY))[0]
    most = context.settings.replication_lag_bytes
    signals = [_standby_signal(row, most) for row in standbys]
    if recovery["standby"]:
        signals.append(_own_signal(recovery, most))
    return signals


def _standby_signal(row: Row, most: float) -> Signal:
    name = text(row["application_name"], 64) or "unnamed"
    client = text(row["client"], 64)
    seconds, behind = number(row["replay_lag"]), number(row["behind"])
    return Signal(
        "replication_lag",
        f"{name} {client}",
        f"standby {name} at {client} ({text(row['state'], 40)}) is "
        f"{format_duration(seconds)} and {format_size(behind)} behind",
        seconds,
        holds=False if behind > most else None,
        facts={
            "standby": name,
            "client": client,
            "state": text(row["state"], 40),
            "lag_seconds": round(seconds, 1),
            "lag_bytes": int(behind),
        },
    )


def _own_signal(row: Row, most: float) -> Signal:
    """Return the lag of this standby. One that has replayed all it received has no lag, however old that is."""
    behind = number(row["behind"])
    seconds = number(row["replayed"]) if behind else 0.0
    return Signal(
        "replication_lag",
        "this server",
        f"this standby is {format_duration(seconds)} and {format_size(behind)} behind "
        "what it has received",
        seconds,
        holds=False if behind > most else None,
        facts={
            "standby": "this server",
            "lag_seconds": round(seconds, 1),
            "lag_bytes": int(behind),
        },
    )


async def check_slots(context: ObservationContext) -> list[Signal]:
    rows = await context.connection.rows(sql.SLOTS)
    return [_slot_signal(row) for row in rows if not row["active"]]


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


# -------------------------------------------------- all checks


@dataclass(frozen=True, slots=True)
class Check:
    """The check of one invariant.

    With `all_stats` it needs pg_monitor: without it, it would see fewer sessions and take that for health.
    """

    invariant: str
    run: Callable[[ObservationContext], Awaitable[Sequence[Signal]]]
    all_stats: bool = False


# In the order in which they run.
CHECKS: tuple[Check, ...] = (
    Check("connections", check_connections, all_stats=True),
    Check("blocked_sessions", check_blocked, all_stats=True),
    Check("idle_in_transaction", check_idle, all_stats=True),
    Check("long_queries", check_long, all_stats=True),
    Check("deadlocks", check_deadlocks),
    Check("transaction_id_age", check_id_age),
    Check("replication_lag", check_lag, all_stats=True),
    Check("inactive_slots", check_slots),
    Check("checksum_failures", check_checksums),
    Check("dead_tuples", check_dead_tuples),
    Check("database_growth", check_growth, all_stats=True),
)
