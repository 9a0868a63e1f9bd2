"""The checks of the server's counters: deadlocks, purge, slow statements, InnoDB's memory, logins, the cluster. Pure."""

from __future__ import annotations

from midwatch.model import Signal
from midwatch.subjects.findings import NotObservable
from midwatch.subjects.mysql.connection import NotPermitted
from midwatch.subjects.mysql.context import SERVER, MysqlContext
from midwatch.subjects.rows import text
from midwatch.units import format_count

_FEW_SLOW = 20
_FEW_READS = 10_000


def check_deadlocks(context: MysqlContext) -> list[Signal]:
    total = _innodb(context, "Innodb_deadlocks", "lock_deadlocks")
    count = int(context.growth_or_wait(deadlocks=total)["deadlocks"])
    return [
        Signal(
            "deadlocks",
            SERVER,
            f"{format_count(count, 'deadlock')} {context.within}",
            count,
            facts={"count": count, "total": int(total)},
        )
    ]


def check_history(context: MysqlContext) -> list[Signal]:
    length = _innodb(context, "Innodb_history_list_length", "trx_rseg_history_len")
    oldest = next(iter(context.seen.known("transactions")), None)
    message = f"the history list has {int(length):,} old versions"
    if oldest is not None and oldest["age"] is not None:
        message += f"; the oldest transaction is of connection {oldest['id']}, open for {int(oldest['age'])}s"
    facts = {
        "length": int(length),
        "oldest_id": int(oldest["id"]) if oldest else None,
        "oldest_seconds": int(oldest["age"] or 0) if oldest else None,
    }
    return [Signal("history_length", SERVER, message, length, facts=facts)]


def _innodb(context: MysqlContext, counter: str, metric: str) -> float:
    """Return a number that MariaDB has as a status variable and MySQL in INNODB_METRICS. Raises QueryFailed."""
    found = context.seen.number(counter)
    if found is None:
        found = context.seen.metric(metric)
    if found is None:
        raise NotPermitted(
            f"the server does not count it: {metric} of INNODB_METRICS is off",
            hint=f"SET GLOBAL innodb_monitor_enable = '{metric}'",
        )
    return found


def check_logins(context: MysqlContext) -> list[Signal]:
    failed = context.seen.number("Aborted_connects") or 0.0
    # One that was refused because all connections are taken is counted there too.
    refused = context.seen.number("Connection_errors_max_connections") or 0.0
    grown = context.growth_or_wait(failed=failed, full=refused)
    count = max(0, int(grown["failed"] - grown["full"]))
    return [
        Signal(
            "refused_logins",
            SERVER,
            f"{format_count(count, 'connection attempt')} failed {context.within}",
            count,
            facts={"count": count},
        )
    ]


def check_slow(context: MysqlContext) -> list[Signal]:
    grown = context.growth_or_wait(
        slow=context.seen.number("Slow_queries") or 0.0,
        questions=context.seen.number("Questions") or 0.0,
    )
    slow, all_ = int(grown["slow"]), int(grown["questions"])
    limit = context.seen.variable("long_query_time")
    share = slow / max(all_, slow, 1)
    return [
        Signal(
            "slow_queries",
            SERVER,
            f"{slow} of {all_} statements took longer than long_query_time ({float(limit or 0):g}s) {context.within}",
            share if slow >= _FEW_SLOW else 0.0,
            facts={"slow": slow, "questions": all_, "long_query_time": text(limit, 20)},
        )
    ]


def check_innodb_waits(context: MysqlContext) -> list[Signal]:
    grown = context.growth_or_wait(
        wait_free=context.seen.number("Innodb_buffer_pool_wait_free") or 0.0,
        log_waits=context.seen.number("Innodb_log_waits") or 0.0,
    )
    names = {
        "buffer pool": ("wait_free", "for a free page of the buffer pool"),
        "log buffer": ("log_waits", "for space in the log buffer"),
    }
    return [
        Signal(
            "innodb_waits",
            component,
            f"{format_count(int(grown[name]), 'wait')} {what} {context.within}",
            grown[name],
            facts={"count": int(grown[name])},
        )
        for component, (name, what) in names.items()
    ]


def check_buffer_pool(context: MysqlContext) -> list[Signal]:
    grown = context.growth_or_wait(
        disk_reads=context.seen.number("Innodb_buffer_pool_reads") or 0.0,
        all_reads=context.seen.number("Innodb_buffer_pool_read_requests") or 0.0,
    )
    disk, all_ = int(grown["disk_reads"]), int(grown["all_reads"])
    share = disk / max(all_, disk, 1)
    return [
        Signal(
            "buffer_pool_misses",
            "buffer pool",
            f"{disk:,} of {all_:,} reads went to the disk {context.within}",
            share if disk >= _FEW_READS else 0.0,
            facts={"disk_reads": disk, "reads": all_},
        )
    ]


def check_cluster(context: MysqlContext) -> list[Signal]:
    if context.seen.variable("wsrep_on").upper() not in ("ON", "1"):
        return []
    status = {
        str(row["Variable_name"]).lower(): str(row["Value"])
        for row in context.seen.rows("status")
    }
    component, ready, state = (
        status.get(name, "")
        for name in ("wsrep_cluster_status", "wsrep_ready", "wsrep_local_state_comment")
    )
    if not component:
        raise NotObservable("the server does not show the state of its cluster")
    # A donor gives its data to another node for a while, and a desynced one was taken out on purpose.
    holds = (
        component == "Primary"
        and ready == "ON"
        and state in ("Synced", "Donor/Desynced")
    )
    return [
        Signal(
            "cluster",
            "node",
            f"the node is {text(state, 40)}, its component {text(component, 40)}, ready {text(ready, 10)}, "
            f"with {text(status.get('wsrep_cluster_size'), 10)} nodes",
            holds=holds,
            facts={
                "state": text(state, 40),
                "component": text(component, 40),
                "ready": text(ready, 10),
            },
        )
    ]
