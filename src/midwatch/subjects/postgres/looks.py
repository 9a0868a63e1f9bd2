"""Which function sees which invariant, in the order in which they are looked at."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from ...model import Signal
from . import logs, replication, sessions, storage
from .round import Round


@dataclass(frozen=True, slots=True)
class Look:
    """`see` raises ObservationFailed when it cannot. `all_stats`: it would see less, and take that for health, without pg_monitor."""

    invariant: str
    see: Callable[[Round], Awaitable[Sequence[Signal]]]
    all_stats: bool = False


async def _see_log(round_: Round) -> list[Signal]:
    return await logs.see_log(
        round_.settings, round_.connection, round_.previous, round_.state, round_.at
    )


LOOKS: tuple[Look, ...] = (
    Look("connections", sessions.see_connections, all_stats=True),
    Look("blocked_sessions", sessions.see_blocked, all_stats=True),
    Look("idle_in_transaction", sessions.see_idle, all_stats=True),
    Look("long_queries", sessions.see_long, all_stats=True),
    Look("deadlocks", storage.see_deadlocks),
    Look("transaction_id_age", storage.see_id_age),
    Look("replication_lag", replication.see_lag, all_stats=True),
    Look("inactive_slots", replication.see_slots),
    Look("log_errors", _see_log),
    Look("dead_tuples", storage.see_dead_tuples),
    Look("database_growth", storage.see_growth, all_stats=True),
)
