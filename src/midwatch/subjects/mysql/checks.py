"""All checks of a MariaDB or MySQL server, one function for each invariant, over one snapshot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from midwatch.model import Signal
from midwatch.subjects.mysql.context import MysqlContext
from midwatch.subjects.mysql.counters import (
    check_buffer_pool,
    check_cluster,
    check_deadlocks,
    check_history,
    check_innodb_waits,
    check_logins,
    check_slow,
)
from midwatch.subjects.mysql.replication import (
    check_lag,
    check_read_only,
    check_running,
)
from midwatch.subjects.mysql.sessions import (
    check_blocked,
    check_connections,
    check_idle,
    check_long_queries,
    check_long_transactions,
)
from midwatch.subjects.mysql.tables import check_auto_increment, check_crashed


@dataclass(frozen=True, slots=True)
class Check:
    """The check of one invariant. `run` returns signals, or raises ObservationFailed when it cannot see it."""

    invariant: str
    run: Callable[[MysqlContext], Sequence[Signal]]


CHECKS: tuple[Check, ...] = (
    Check("connections", check_connections),
    Check("refused_logins", check_logins),
    Check("blocked_sessions", check_blocked),
    Check("idle_in_transaction", check_idle),
    Check("long_queries", check_long_queries),
    Check("long_transactions", check_long_transactions),
    Check("deadlocks", check_deadlocks),
    Check("replication_running", check_running),
    Check("replication_lag", check_lag),
    Check("replica_read_only", check_read_only),
    Check("cluster", check_cluster),
    Check("history_length", check_history),
    Check("slow_queries", check_slow),
    Check("innodb_waits", check_innodb_waits),
    Check("buffer_pool_misses", check_buffer_pool),
    Check("auto_increment", check_auto_increment),
    Check("crashed_tables", check_crashed),
)
