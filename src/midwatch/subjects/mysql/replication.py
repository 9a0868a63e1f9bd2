"""The checks of replication, on a server that replicates from others. Pure.

Sources of the columns: SHOW REPLICA STATUS of MySQL 8.4, SHOW ALL SLAVES STATUS of MariaDB.
"""

from __future__ import annotations

from dataclasses import replace

from midwatch.model import Fact, Severity, Signal
from midwatch.subjects.mysql.context import MysqlContext
from midwatch.subjects.rows import Row, number, text
from midwatch.units import format_duration

_CONNECTING_FOR = 60.0  # seconds in which a source that restarts comes back


def check_running(context: MysqlContext) -> list[Signal]:
    return [_running(context, row) for row in _channels(context, "replication_running")]


def check_lag(context: MysqlContext) -> list[Signal]:
    return [_lag(context, row) for row in _channels(context, "replication_lag")]


def check_read_only(context: MysqlContext) -> list[Signal]:
    channels = context.seen.rows("replicas")
    if not channels:
        return []
    on = context.seen.variable("read_only").upper() in ("ON", "1")
    sources = ", ".join(source_of(row) for row in channels[:5])
    return [
        Signal(
            "replica_read_only",
            "server",
            f"read_only is {'on' if on else 'off'} on this server, which replicates from {sources}",
            holds=on,
            facts={"read_only": on},
        )
    ]


def _channels(context: MysqlContext, invariant: str) -> list[Row]:
    return context.counted(
        invariant,
        context.seen.rows("replicas"),
        lambda row: {"channel": row.get("channel_name"), "source": source_of(row)},
    )


def channel_of(row: Row) -> str:
    """Return the component of a channel: its name, which is empty for the only one of most servers."""
    name = text(row.get("channel_name"), 64)
    return f"channel {name}" if name else "replica"


def source_of(row: Row) -> str:
    return f"{text(row.get('source_host'), 64) or 'no source'}:{row.get('source_port') or ''}"


def facts_of(row: Row) -> dict[str, Fact]:
    """Return the facts of a channel."""
    return {
        "source": source_of(row),
        "receiver": text(row.get("replica_io_running"), 20),
        "applier": text(row.get("replica_sql_running"), 20),
        "receiver_errno": int(row.get("last_io_errno") or 0),
        "receiver_error": text(row.get("last_io_error"), 500),
        "applier_errno": int(row.get("last_sql_errno") or 0),
        "applier_error": text(row.get("last_sql_error"), 500),
        "channel": text(row.get("channel_name"), 64),
    }


def _running(context: MysqlContext, row: Row) -> Signal:
    facts = facts_of(row)
    receives, applies = facts["receiver"] == "Yes", facts["applier"] == "Yes"
    error = facts["applier_error"] or facts["receiver_error"]
    failed = bool(
        (not applies and facts["applier_errno"])
        or (facts["receiver"] == "No" and facts["receiver_errno"])
    )
    parts = []
    if not applies:
        parts.append(f"the SQL thread is stopped{_why(facts, 'applier')}")
    if not receives:
        connecting = facts["receiver"] == "Connecting"
        does = "tries to connect" if connecting else "is stopped"
        parts.append(f"the IO thread {does}{_why(facts, 'receiver')}")
    said = "; ".join(parts) or "both threads run"
    signal = Signal(
        "replication_running",
        channel_of(row),
        f"replication from {facts['source']}: {said}",
        holds=receives and applies,
        facts={**facts, "error": error},
    )
    if receives and applies:
        return signal
    if not failed:
        signal = context.softened(replace(signal, severity=Severity.WARNING))
    if applies and facts["receiver"] == "Connecting":
        signal = replace(signal, hold_for=_CONNECTING_FOR)
    return signal


def _why(facts: dict[str, Fact], thread: str) -> str:
    number_ = facts[f"{thread}_errno"]
    return f": error {number_}: {facts[f'{thread}_error']}" if number_ else ""


def _lag(context: MysqlContext, row: Row) -> Signal:
    """Return the lag; NULL is unknown: a thread does not run."""
    facts = facts_of(row)
    behind, delay = row.get("seconds_behind_source"), number(row.get("sql_delay"))
    seconds = None if behind is None else max(0.0, number(behind) - delay)
    shown = "an unknown time" if seconds is None else format_duration(seconds)
    late = f" besides its delay of {format_duration(delay)}" if delay else ""
    return Signal(
        "replication_lag",
        channel_of(row),
        f"this replica is {shown} behind {facts['source']}{late}",
        seconds,
        facts={
            **facts,
            "lag_seconds": None if seconds is None else round(seconds, 1),
            "delay_seconds": round(delay, 1),
            "applier_state": text(row.get("replica_sql_running_state"), 120),
        },
    )
