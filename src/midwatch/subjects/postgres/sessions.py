"""Connections, lock waits, idle transactions and long statements."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from ...model import Fact, Signal
from ...units import format_duration
from . import queries
from .round import Round, Scene, scene
from .tree import PREPARED, Queue
from .wording import Row, number, state, text, who

SERVER = "server"


# -------------------------------------------------- connections


async def see_connections(round_: Round) -> list[Signal]:
    limits = (await round_.connection.rows(queries.SLOTS_LIMIT))[0]
    used = await round_.connection.rows(queries.SLOTS_USED)
    capped = await round_.connection.rows(queries.SLOTS_CAPPED)
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


async def see_blocked(round_: Round) -> list[Signal]:
    return blocked(await scene(round_.connection))


def blocked(scene_: Scene) -> list[Signal]:
    """One signal for each database with waiting sessions: its worst queue."""
    signals = []
    for database in sorted({str(row["datname"]) for row in scene_.blocking.waits}):
        queues = scene_.blocking.queues(database)
        if queues:
            signals.append(_queue_signal(database, queues, scene_))
    return signals


def _queue_signal(database: str, queues: Sequence[Queue], scene_: Scene) -> Signal:
    worst = queues[0]
    root = scene_.sessions.get(worst.root, {})
    prepared = worst.root == PREPARED
    name = "a prepared transaction" if prepared else f"pid {worst.root}"
    told = f" ({state(root)}, {who(root)})" if root else ""
    count = len(worst.waiting)
    return Signal(
        "blocked_sessions",
        database,
        f"{name}{told} blocks {count} session{'s' if count > 1 else ''}; "
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


async def see_idle(round_: Round) -> list[Signal]:
    rows = [
        row
        for row in await round_.activity()
        if str(row["state"]).startswith("idle in transaction")
    ]
    return [_worst("idle_in_transaction", "state_age", rows) for rows in _by_base(rows)]


async def see_long(round_: Round) -> list[Signal]:
    rows = [
        row
        for row in await round_.activity()
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
