"""The checks of a PostgreSQL server, one function for each invariant: those of its sessions, and the list of all.

Each returns signals, or raises ObservationFailed when it cannot observe its invariant.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from midwatch.model import Fact, Severity, Signal
from midwatch.subjects.findings import NotObservable, PartlyUnsupported, at_least
from midwatch.subjects.lock_queues import PREPARED, LockQueue
from midwatch.subjects.postgres import sql
from midwatch.subjects.postgres.connection import state, who
from midwatch.subjects.postgres.observation import (
    LockWaits,
    ObservationContext,
    load_lock_waits,
    tracking_off,
    untracked,
)
from midwatch.subjects.postgres.replication import check_lag
from midwatch.subjects.postgres.storage import (
    check_checksums,
    check_dead_tuples,
    check_growth,
    check_id_age,
    check_slots,
)
from midwatch.subjects.rows import Row, number, text
from midwatch.subjects.series import Series, add_step, read_series, series_until
from midwatch.units import format_count, format_duration

SERVER = "server"


# -------------------------------------------------- connections


async def check_connections(context: ObservationContext) -> list[Signal]:
    limits = (await context.connection.rows(sql.SLOTS_LIMIT))[0]
    used = await context.connection.rows(sql.SLOTS_USED)
    capped = context.counted(
        "connections",
        await context.connection.rows(sql.SLOTS_CAPPED),
        lambda row: {row["kind"]: row["name"]},
    )
    return [
        server_connections(limits, used),
        *map(context.softened, map(capped_connections, capped)),
    ]


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
    """Return the signal of one database's or role's own limit.

    Never critical: a pool that is as large as its limit fills it on purpose.
    """
    name = f"{row['kind']} {text(row['name'], 80)}"
    used, cap = int(row["used"]), int(row["cap"])
    return Signal(
        "connections",
        name,
        f"{used} of the {cap} connections of {name} are taken",
        used / cap,
        facts={"used": used, "connection_limit": cap},
        severity=Severity.WARNING,
    )


# -------------------------------------------------- lock waits


async def check_blocked(context: ObservationContext) -> list[Signal]:
    waits = await load_lock_waits(context.connection)

    def counts(row: Row, root: Row) -> bool:
        if row["own"]:
            return False
        attributes = {
            **_session_attributes(row),
            "lock_type": row["lock_type"],
            "table": row["table"],
            "blocker_application": root.get("application_name"),
            "blocker_role": root.get("usename"),
        }
        return not context.ignores("blocked_sessions", attributes)

    return [*map(context.softened, blocked(waits, counts))]


def _session_attributes(row: Row) -> dict[str, object]:
    return {
        "application": row["application_name"],
        "role": row["usename"],
        "database": row["datname"],
    }


def blocked(
    waits: LockWaits, counts: Callable[[Row, Row], bool] = lambda row, root: True
) -> list[Signal]:
    """Return the worst queue of each database as a signal, that of advisory locks as another one.

    `counts` tells of a waiting session and the root of its queue whether the wait counts.
    """
    queues: dict[tuple[str, bool], list[LockQueue]] = defaultdict(list)
    for queue in waits.blocking.queues():
        root = waits.sessions.get(queue.root, {})
        parts: dict[tuple[str, bool], list[Row]] = defaultdict(list)
        for row in queue.waiting:
            if counts(row, root):
                advisory = row.get("lock_type") == "advisory"
                parts[str(row["datname"]), advisory].append(row)
        for key, rows in parts.items():
            queues[key].append(LockQueue(queue.root, tuple(rows)))
    return [
        _queue_signal(*key, sorted(queues[key], key=LockQueue.rank), waits)
        for key in sorted(queues)
    ]


def _queue_signal(
    database: str, advisory: bool, queues: Sequence[LockQueue], waits: LockWaits
) -> Signal:
    """Return the signal of the worst queue.

    An application may wait for an advisory lock on purpose, such as the stand-in of a leader: that is
    never critical.
    """
    worst = queues[0]
    root = waits.sessions.get(worst.root, {})
    prepared = worst.root == PREPARED
    name = "a prepared transaction" if prepared else f"pid {worst.root}"
    details = f" ({state(root)}, {who(root)})" if root else ""
    count = len(worst.waiting)
    return Signal(
        "blocked_sessions",
        f"{database} advisory locks" if advisory else database,
        f"{name}{details} blocks {format_count(count, 'session')}; "
        f"the longest has waited {format_duration(worst.longest)}"
        + (
            " for an advisory lock (where that is on purpose, ignore lock_type advisory)"
            if advisory
            else ""
        ),
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
        severity=Severity.WARNING if advisory else None,
    )


# -------------------------------------------------- open transactions, long statements


async def check_idle(context: ObservationContext) -> list[Signal]:
    return await _check_activity(
        context,
        "idle_in_transaction",
        "state_age",
        lambda row: str(row["state"]).startswith("idle in transaction"),
    )


async def check_long(context: ObservationContext) -> list[Signal]:
    return await _check_activity(
        context,
        "long_queries",
        "query_age",
        lambda row: row["state"] == "active" and row["wait_event_type"] != "Lock",
    )


async def _check_activity(
    context: ObservationContext,
    invariant: str,
    age: str,
    concerns: Callable[[Row], bool],
) -> list[Signal]:
    """Return the worst session of each database. Raises PartlyUnsupported where sessions are hidden."""
    off = await untracked(context.connection, "track_activities")
    rows = await context.activity()
    counted = context.counted(invariant, filter(concerns, rows), _session_attributes)
    signals = [_worst(invariant, age, group) for group in _by_base(counted)]
    hidden = [row for row in rows if row["state"] == "disabled"]
    if not off and not hidden:
        return signals
    message, hint = (
        tracking_off("track_activities", off)
        if off
        else (
            f"{who(hidden[0])} does not show what it does: track_activities was off",
            "end its session, or let it run a statement",
        )
    )
    blind = {str(row["datname"]) for row in hidden}
    databases = [row["datname"] for row in await context.connection.rows(sql.DATABASES)]
    if any(row["role"] is None for row in off):
        blind |= {*databases}
    seen = {signal.component for signal in signals}
    limit = context.limit(invariant)
    raise PartlyUnsupported(
        message,
        hint=hint,
        signals=[
            *(
                at_least(one, limit) if one.component in blind else one
                for one in signals
            ),
            *(
                Signal(invariant, text(name, 64), "no such session", 0.0)
                for name in databases
                if name not in seen | blind
            ),
        ],
    )


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


# -------------------------------------------------- deadlocks


async def check_deadlocks(context: ObservationContext) -> list[Signal]:
    off = await untracked(context.connection, "track_counts")
    rows = context.counted(
        "deadlocks",
        await context.connection.rows(sql.DEADLOCKS),
        lambda row: {"database": row["datname"]},
    )
    before = _dictionary(context.previous.get("deadlocks"))
    resets = _dictionary(context.previous.get("deadlock_resets")) or {}
    window = context.settings.event_window
    kept: dict[str, Series] = {}
    signals = []
    for row in rows:
        name, count = text(row["datname"], 64), float(row["deadlocks"])
        old = series_until(read_series((before or {}).get(name)), context.at)
        if old and (
            count < old[-1][1] or resets.get(name, row["reset"]) != row["reset"]
        ):
            # The counter was reset (by hand or by a crash) and counts from 0 on; what it counted within
            # the window stays.
            old = [[at, value - old[-1][1]] for at, value in old]
        if not old and before is not None:
            old = [[context.at, 0.0]]  # a database that is new
        kept[name] = add_step(old, context.at, count, window)
        if old:
            signals.append(_deadlock_signal(name, count - kept[name][0][1], window))
    context.state["deadlocks"] = kept
    context.state["deadlock_resets"] = {
        text(row["datname"], 64): row["reset"] for row in rows
    }
    if before is None:
        raise NotObservable(
            "the first observation: counters are compared from the next on"
        )
    if off:
        message, hint = tracking_off("track_counts", off)
        limit = context.limit("deadlocks")
        blind = {text(row["database"], 64) for row in off}
        everywhere = any(not row["database"] for row in off)
        raise PartlyUnsupported(
            message,
            hint=hint,
            signals=[
                at_least(one, limit) if everywhere or one.component in blind else one
                for one in signals
            ],
        )
    return signals


def _dictionary(raw: object) -> dict[str, Any] | None:
    return raw if isinstance(raw, dict) else None


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
