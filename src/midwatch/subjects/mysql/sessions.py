"""The checks of sessions: connections, lock waits, open transactions, long statements. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from midwatch.model import Fact, Severity, Signal
from midwatch.subjects.findings import PartlyUnsupported
from midwatch.subjects.lock_queues import PREPARED, LockQueue
from midwatch.subjects.mysql.connection import NotPermitted, QueryFailed
from midwatch.subjects.mysql.context import SERVER, MysqlContext
from midwatch.subjects.mysql.locks import (
    ROW_LOCK,
    UNKNOWN,
    USER_LOCK,
    LockWaits,
    lock_waits,
    sessions_of,
)
from midwatch.subjects.mysql.snapshot import waits_for_metadata
from midwatch.subjects.rows import Row, number, text
from midwatch.units import format_count, format_duration

SYSTEM_USERS = frozenset(("system user", "event_scheduler"))


def who(row: Row) -> str:
    """Return `user shop at 10.0.0.7`."""
    client = text(row.get("client"), 64)
    user = f"user {text(row.get('user'), 64) or 'unknown'}"
    return f"{user} at {client}" if client else user


def does(row: Row) -> str:
    """Return `idle in transaction for 3m 20s`, `waits for a row lock`, or what the server calls its state."""
    for_ = format_duration(number(row["seconds"]))
    if row["command"] == "Sleep":
        kind = "idle in transaction" if row["age"] is not None else "idle"
        return f"{kind} for {for_}"
    state = text(row["state"], 60)
    return f"{text(row['command'], 20)}{f' ({state})' if state else ''} for {for_}"


def about(row: Row) -> dict[str, object]:
    """Return the attributes of a session that `ignore` can match."""
    return {
        "user": row["user"],
        "client": row["client"],
        "database": row["db"],
        "statement": row["query"],
    }


# ------------------------------------------------------------------ connections


def check_connections(context: MysqlContext) -> list[Signal]:
    seen = context.seen
    used = max(0, int(seen.number("Threads_connected") or 0) - 1)  # without our own
    most = int(float(seen.variable("max_connections") or 0))
    if not most:
        raise QueryFailed("the server does not show max_connections")
    refused = seen.number("Connection_errors_max_connections")
    grown = context.growth(refused=refused) if refused is not None else None
    signal = _server_connections(
        context, used, most, int(grown["refused"]) if grown else 0
    )
    counts = seen.rows("counts") if not _hidden(context) else []
    try:
        capped = _capped(context, counts)
    except NotPermitted as error:
        raise PartlyUnsupported(
            f"the limits of single accounts are not visible: {error.message}",
            hint=error.hint,
            signals=[signal],
        ) from None
    return [signal, *capped]


def _hidden(context: MysqlContext) -> bool:
    return isinstance(context.seen.read.get("transactions"), NotPermitted)


def _server_connections(
    context: MysqlContext, used: int, most: int, refused: int
) -> Signal:
    facts: dict[str, Fact] = {"used": used, "max_connections": most, "refused": refused}
    message = f"{used} of {most} connections are taken"
    counts = [] if _hidden(context) else context.seen.known("counts")
    if holder := _holder(counts):
        facts |= holder
        message += (
            f"; {holder['holder_count']} of them by user {holder['holder_user']}, "
            f"{holder['holder_idle']} of these idle"
        )
    if refused:
        message += f"; {format_count(refused, 'connection')} refused {context.within}"
    return Signal(
        "connections",
        SERVER,
        message,
        1.0 if refused else used / most,
        facts=facts,
    )


def _holder(counts: Sequence[Row]) -> dict[str, Fact]:
    """Return who has the most connections, and from where."""
    users: Counter[str] = Counter()
    for row in counts:
        users[str(row["user"])] += int(row["sessions"])
    if not users:
        return {}
    [(name, count)] = users.most_common(1)
    own = [row for row in counts if str(row["user"]) == name]
    clients: Counter[str] = Counter()
    for row in own:
        clients[str(row["client"])] += int(row["sessions"])
    [(client, from_client)] = clients.most_common(1)
    idle = sum(int(row["sessions"]) for row in own if row["command"] == "Sleep")
    return {
        "holder_user": text(name, 64),
        "holder_client": text(client, 64),
        "holder_from_client": from_client,
        "holder_count": count,
        "holder_idle": idle,
    }


def _capped(context: MysqlContext, counts: Sequence[Row]) -> list[Signal]:
    """Return a signal for each user with a limit of its own. A warning at most: a pool fills its limit on purpose."""
    overall = int(float(context.seen.variable("max_user_connections") or 0))
    caps: dict[str, list[int]] = defaultdict(list)
    for row in context.seen.rows("accounts"):
        caps[str(row["user"])].append(int(row["cap"] or 0) or overall)
    used: Counter[str] = Counter()
    for row in counts:
        used[str(row["user"])] += int(row["sessions"])
    return [
        context.softened(_capped_user(name, used[name], sum(found)))
        for name, found in sorted(caps.items())
        if all(one > 0 for one in found)
        and not context.ignores("connections", {"user": name})
    ][:200]


def _capped_user(name: str, used: int, cap: int) -> Signal:
    return Signal(
        "connections",
        f"user {text(name, 80)}",
        f"{used} of the {cap} connections of user {text(name, 80)} are taken",
        used / cap,
        facts={"used": used, "user_limit": cap, "holder_user": text(name, 64)},
        severity=Severity.WARNING,
    )


# ------------------------------------------------------------------ lock waits


def check_blocked(context: MysqlContext) -> list[Signal]:
    waits = lock_waits(context.seen)

    def counts(row: Row, root: Row) -> bool:
        session = waits.sessions.get(int(row["pid"]), {})
        attributes = {
            "user": session.get("user"),
            "client": session.get("client"),
            "database": row["datname"],
            "lock_type": row["lock_type"],
            "table": row["table"],
            "blocker_user": root.get("user"),
        }
        return not context.ignores("blocked_sessions", attributes)

    queues: dict[tuple[str, bool], list[LockQueue]] = defaultdict(list)
    for queue in waits.blocking.queues():
        root = waits.sessions.get(queue.root, {})
        parts: dict[tuple[str, bool], list[Row]] = defaultdict(list)
        for row in queue.waiting:
            if counts(row, root):
                parts[str(row["datname"]), row["lock_type"] == USER_LOCK].append(row)
        for key, rows in parts.items():
            queues[key].append(LockQueue(queue.root, tuple(rows)))
    return [
        context.softened(
            _queue_signal(*key, sorted(queues[key], key=LockQueue.rank), waits)
        )
        for key in sorted(queues)
    ]


def blocker_name(root: int, row: Row) -> str:
    if root == PREPARED:
        return "a prepared XA transaction"
    if root == UNKNOWN:
        return "a session that the server does not show as holder"
    return (
        f"connection {root} ({does(row)}, {who(row)})" if row else f"connection {root}"
    )


def _queue_signal(
    database: str, user_lock: bool, queues: Sequence[LockQueue], waits: LockWaits
) -> Signal:
    """Return the signal of the worst queue. An application may wait for a user lock on purpose: never critical."""
    worst = queues[0]
    root = waits.sessions.get(worst.root, {})
    longest = max(worst.waiting, key=lambda row: number(row["waited"]))
    tied = [queue for queue in queues if queue.waiting == worst.waiting]
    certain = longest["lock_type"] == ROW_LOCK or waits.certain or len(tied) == 1
    count = len(worst.waiting)
    name = blocker_name(worst.root, root)
    return Signal(
        "blocked_sessions",
        f"{database} user locks" if user_lock else database,
        (
            name
            if certain
            else f"{name} or {len(tied) - 1} more with an open transaction"
        )
        + f" blocks {format_count(count, 'session')}; the longest has waited "
        f"{format_duration(worst.longest)} for a {text(longest['lock_type'], 40)}",
        worst.longest,
        facts={
            "blocker_id": worst.root if worst.root > 0 else None,
            "blocker_certain": waits.certain or longest["lock_type"] == ROW_LOCK,
            "blocker_user": text(root.get("user"), 64),
            "blocker_client": text(root.get("client"), 64),
            "blocker_state": (
                "prepared transaction" if worst.root == PREPARED else _state(root)
            ),
            "blocker_query": text(root.get("query"), 500),
            "blocker_transaction_seconds": round(number(root.get("age")), 1),
            "blocked_count": count,
            "blocked_ids": ", ".join(str(row["pid"]) for row in worst.waiting[:20]),
            "longest_wait": round(worst.longest, 1),
            "lock_type": text(longest["lock_type"], 40),
            "table": text(longest["table"], 130),
            "queues": len(queues),
        },
        severity=Severity.WARNING if user_lock else None,
    )


def _state(row: Row) -> str:
    if not row:
        return ""
    idle = row["command"] == "Sleep"
    return "idle in transaction" if idle else text(row["state"] or row["command"], 60)


# ------------------------------------------------------------------ open transactions, long statements


def check_idle(context: MysqlContext) -> list[Signal]:
    return _worst_sessions(
        context,
        "idle_in_transaction",
        lambda row: row["command"] == "Sleep" and row["age"] is not None,
        lambda row: min(number(row["seconds"]), number(row["age"]) + 1),
        "has been idle in an open transaction for",
    )


def check_long_queries(context: MysqlContext) -> list[Signal]:
    waiting = {
        int(row["id"])
        for row in context.seen.known("transactions")
        if row["trx_state"] == "LOCK WAIT"
    }
    return _worst_sessions(
        context,
        "long_queries",
        lambda row: row["command"] in ("Query", "Execute")
        and row["pid"] not in waiting
        and row["state"] != "User lock"
        and not waits_for_metadata(row),
        lambda row: number(row["seconds"]),
        "has been running a statement for",
    )


def check_long_transactions(context: MysqlContext) -> list[Signal]:
    return _worst_sessions(
        context,
        "long_transactions",
        lambda row: row["age"] is not None,
        lambda row: number(row["age"]),
        "has had a transaction open for",
    )


def _worst_sessions(
    context: MysqlContext,
    invariant: str,
    concerns: Callable[[Row], bool],
    seconds: Callable[[Row], float],
    has: str,
) -> list[Signal]:
    """Return the worst session of each database. Raises NotPermitted without PROCESS."""
    rows = [row for row in sessions_of(context.seen) if row["user"] not in SYSTEM_USERS]
    counted = context.counted(invariant, filter(concerns, rows), about)
    return [_worst(invariant, group, seconds, has) for group in _by_base(counted)]


def _by_base(rows: Iterable[Row]) -> list[list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[str(row["datname"])].append(row)
    return [groups[name] for name in sorted(groups)]


def _worst(
    invariant: str, rows: Sequence[Row], seconds: Callable[[Row], float], has: str
) -> Signal:
    row = max(rows, key=seconds)
    value = seconds(row)
    message = f"connection {row['pid']} ({who(row)}) {has} {format_duration(value)}"
    if len(rows) > 1:
        message += f"; {len(rows) - 1} more like it for a shorter time"
    facts: dict[str, Fact] = {
        "id": int(row["pid"]),
        "user": text(row["user"], 64),
        "client": text(row["client"], 64),
        "state": _state(row),
        "seconds": round(value, 1),
        "transaction_seconds": round(number(row["age"]), 1),
        "query": text(row["query"], 500),
        "count": len(rows),
    }
    return Signal(invariant, text(row["datname"], 64), message, value, facts=facts)
