"""Standbys and replication slots."""

from __future__ import annotations

from ...model import Signal
from ...units import format_duration, format_size
from . import queries
from .round import Round
from .wording import Row, number, text


async def see_lag(round_: Round) -> list[Signal]:
    standbys = await round_.connection.rows(queries.STANDBYS)
    recovery = (await round_.connection.rows(queries.RECOVERY))[0]
    most = round_.settings.replication_lag_bytes
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
    """A standby that has replayed all it received is not late, however old that is."""
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


async def see_slots(round_: Round) -> list[Signal]:
    rows = await round_.connection.rows(queries.SLOTS)
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
