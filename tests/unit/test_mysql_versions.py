"""What MySQL 5.7, 8.0 and 8.4 show, in the columns of their manuals: the checks are pure over such rows."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from midwatch.errors import Unsupported
from midwatch.model import Context, Evidence, Observation, Signal
from midwatch.monitor.rules import check
from midwatch.playbooks.mysql.server import numbers_run_out
from midwatch.subjects.mysql import INVARIANTS, MysqlSettings, MysqlSubject
from midwatch.subjects.mysql.checks import CHECKS
from midwatch.subjects.mysql.connection import NotPermitted, QueryFailed, remedy
from midwatch.subjects.mysql.context import MysqlContext
from midwatch.subjects.mysql.error_log import recent_lines
from midwatch.subjects.mysql.server_version import ServerVersion, replica_row
from midwatch.subjects.mysql.snapshot import Snapshot
from midwatch.subjects.mysql.sql import lock_waits, setting_up
from midwatch.testing.subject_conformance import tickets_for

SETTINGS = MysqlSettings.model_validate({"name": "db", "host": "db", "user": "m"})

# SHOW REPLICA STATUS of 8.4 and SHOW SLAVE STATUS of 5.7, the columns that count.
REPLICA_84 = {
    "Replica_IO_State": "Waiting for source to send event",
    "Source_Host": "10.0.0.1",
    "Source_Port": 3306,
    "Replica_IO_Running": "Yes",
    "Replica_SQL_Running": "Yes",
    "Last_IO_Errno": 0,
    "Last_IO_Error": "",
    "Last_SQL_Errno": 0,
    "Last_SQL_Error": "",
    "Seconds_Behind_Source": 90,
    "SQL_Delay": 0,
    "Channel_Name": "",
}
SLAVE_57 = {
    key.replace("Replica", "Slave").replace("Source", "Master"): value
    for key, value in REPLICA_84.items()
}


@pytest.mark.parametrize(
    ("announced", "mariadb", "number"),
    [
        ("5.5.5-10.11.6-MariaDB-0+deb12u1-log", True, (10, 11, 6)),
        ("11.4.2-MariaDB", True, (11, 4, 2)),
        ("5.7.44-log", False, (5, 7, 44)),
        ("8.0.35-27.1", False, (8, 0, 35)),
        ("8.0.mysql_aurora.3.04.0", False, (8, 0, 0)),
        ("8.4.0", False, (8, 4, 0)),
    ],
)
def test_versions_are_read(
    announced: str, mariadb: bool, number: tuple[int, ...]
) -> None:
    found = ServerVersion.parse(announced)
    assert (found.mariadb, found.number) == (mariadb, number)


@pytest.mark.parametrize("announced", ["5.6.51", "5.5.5-10.4.1-MariaDB", "ProxySQL"])
def test_others_are_refused_with_a_reason(announced: str) -> None:
    with pytest.raises(Unsupported):
        ServerVersion.parse(announced)


def test_names_follow_the_version() -> None:
    old, new = ServerVersion.parse("5.7.44"), ServerVersion.parse("8.4.0", True)
    maria = ServerVersion.parse("10.11.6-MariaDB")
    assert old.replicas == "SHOW SLAVE STATUS"
    assert new.replicas == "SHOW REPLICA STATUS"
    assert maria.replicas == "SHOW ALL SLAVES STATUS"
    assert "performance_schema.data_lock_waits" in lock_waits(new)
    assert "INNODB_LOCK_WAITS" in lock_waits(old)
    assert new.processlist == "performance_schema.processlist"
    assert "max_execution_time = 2000" in setting_up(new, 2.0)[1]
    assert "max_statement_time = 2.000" in setting_up(maria, 2.0)[1]
    assert new.table_statistics == "information_schema.INNODB_TABLESTATS"
    assert old.table_statistics == "information_schema.INNODB_SYS_TABLESTATS"


def status(**values: object) -> list[dict[str, object]]:
    return [
        {"Variable_name": key, "Value": str(value)} for key, value in values.items()
    ]


def judged(invariant: str, version: str = "8.4.0", **read: Any) -> list[Signal]:
    seen = Snapshot(ServerVersion.parse(version, True), read)
    [found] = [one for one in CHECKS if one.invariant == invariant]
    enabled = {one.id: one for one in INVARIANTS}
    context = MysqlContext(seen, SETTINGS, 1000.0, {}, {}, enabled)
    return list(found.run(context))


def is_broken(signal: Signal, after: float = 0.0) -> bool | None:
    """Return whether a ticket would open; None where its state is unknown."""
    seen = Observation((signal,), frozenset())
    rules = {one.id: one for one in INVARIANTS}
    checked = check("db", rules, seen, {}, after)
    [key] = checked.broken or [None]
    if key is not None:
        return True
    known = signal.holds is not None or signal.value is not None
    limit = rules[signal.invariant].limit
    above = signal.holds is False or (
        signal.value is not None and limit is not None and signal.value > limit
    )
    return above if known else None


@pytest.mark.parametrize("row", [REPLICA_84, SLAVE_57])
def test_replication_is_judged_by_the_names_of_both(row: dict[str, Any]) -> None:
    def lag(**changed: Any) -> Signal:
        [found] = judged("replication_lag", replicas=[replica_row({**row, **changed})])
        return found

    behind = next(key for key in row if key.startswith("Seconds_Behind"))
    assert lag().value == 90 and is_broken(lag())
    assert lag(SQL_Delay=3600, **{behind: 3605}).value == 5  # late on purpose
    assert lag(**{behind: None}).value is None
    assert is_broken(lag(**{behind: None})) is None  # unknown, never 0


@pytest.mark.parametrize(
    ("changed", "severity", "words"),
    [
        (
            {
                "Replica_SQL_Running": "No",
                "Last_SQL_Errno": 1062,
                "Last_SQL_Error": "Duplicate entry",
            },
            None,
            "error 1062",
        ),
        ({"Replica_SQL_Running": "No"}, 1, "the SQL thread is stopped"),
        (
            {
                "Replica_IO_Running": "No",
                "Last_IO_Errno": 1236,
                "Last_IO_Error": "purged",
            },
            None,
            "error 1236",
        ),
        (
            {
                "Replica_IO_Running": "Connecting",
                "Last_IO_Errno": 2003,
                "Last_IO_Error": "refused",
            },
            1,
            "tries to connect",
        ),
    ],
)
def test_a_thread_that_stopped(
    changed: dict[str, Any], severity: int | None, words: str
) -> None:
    [found] = judged(
        "replication_running", replicas=[replica_row({**REPLICA_84, **changed})]
    )
    assert found.holds is False and words in found.message
    assert found.severity == severity
    [whole] = judged("replication_running", replicas=[replica_row(REPLICA_84)])
    assert whole.holds is True


def test_a_replica_that_takes_writes() -> None:
    for value, holds in (("OFF", False), ("ON", True)):
        [found] = judged(
            "replica_read_only",
            replicas=[replica_row(REPLICA_84)],
            variables=status(read_only=value),
        )
        assert found.holds is holds
    assert judged("replica_read_only", replicas=[]) == []


def test_mysql_counts_purge_in_a_table_of_its_own() -> None:
    metrics = [
        {"name": "trx_rseg_history_len", "value": 3_000_000, "status": "enabled"}
    ]
    [found] = judged("history_length", status=status(Uptime=5), metrics=metrics)
    assert found.value == 3_000_000 and is_broken(found)
    off = [{"name": "lock_deadlocks", "value": 0, "status": "disabled"}]
    with pytest.raises(NotPermitted, match="lock_deadlocks") as raised:
        judged("deadlocks", status=status(Uptime=5), metrics=off)
    assert "innodb_monitor_enable" in raised.value.hint


@pytest.mark.parametrize(
    "invariant",
    ["blocked_sessions", "idle_in_transaction", "long_queries", "long_transactions"],
)
def test_without_process_or_after_a_failure_sessions_are_unknown(
    invariant: str,
) -> None:
    hidden = NotPermitted("denied", hint="GRANT PROCESS ON *.*")
    with pytest.raises(NotPermitted):
        judged(invariant, transactions=hidden, sessions=[], waits=[])
    lost = QueryFailed("the connection was lost")
    with pytest.raises(QueryFailed):
        judged(invariant, transactions=[], sessions=lost, waits=lost)


def test_lock_waits_of_performance_schema_name_the_root() -> None:
    session = {
        "user": "web",
        "client": "10.0.0.7",
        "db": "shop",
        "state": "",
        "query": "UPDATE orders",
        "seconds": 30,
    }
    transaction = {
        "trx_state": "RUNNING",
        "age": 60,
        "started": "2026-01-01T00:00:00",
        "rows_locked": 1,
        "rows_modified": 1,
    }
    [found] = judged(
        "blocked_sessions",
        transactions=[
            {**transaction, "id": 7},
            {**transaction, "id": 8, "trx_state": "LOCK WAIT"},
        ],
        sessions=[
            {**session, "id": 7, "command": "Sleep", "user": "checkout", "query": None},
            {**session, "id": 8, "command": "Query"},
        ],
        waits=[
            {
                "id": 8,
                "blocker": 7,
                "waited": 30,
                "table": "shop.orders",
                "index": "PRIMARY",
                "mode": "X",
            }
        ],
        last=[{"id": 7, "query": "UPDATE orders SET state = 'paying'"}],
    )
    assert found.facts["blocker_id"] == 7 and found.facts["blocker_user"] == "checkout"
    assert found.facts["blocker_query"] == "UPDATE orders SET state = 'paying'"
    assert is_broken(found)


def test_metadata_locks_of_performance_schema_are_exact() -> None:
    waiting = "Waiting for table metadata lock"
    base = {"user": "u", "client": "c", "db": "shop", "seconds": 20}
    lock = {"kind": "TABLE", "db": "shop", "name": "orders"}
    idle = {
        "trx_state": "RUNNING",
        "age": 60,
        "started": "2026-01-01T00:00:00",
        "rows_locked": 0,
        "rows_modified": 0,
    }
    [found] = judged(
        "blocked_sessions",
        transactions=[{**idle, "id": 5}, {**idle, "id": 6}],
        sessions=[
            {**base, "id": 5, "command": "Sleep", "state": "", "query": None},
            {**base, "id": 6, "command": "Sleep", "state": "", "query": None},
            {
                **base,
                "id": 9,
                "command": "Query",
                "state": waiting,
                "query": "ALTER TABLE orders ADD note text",
            },
        ],
        metadata=[
            {**lock, "id": 6, "mode": "SHARED_READ", "granted": 1},
            {**lock, "id": 9, "mode": "SHARED_UPGRADABLE", "granted": 1},
            {**lock, "id": 9, "mode": "EXCLUSIVE", "granted": 0},
        ],
    )
    assert found.facts["blocker_id"] == 6 and found.facts["blocker_certain"] is True


def test_a_node_outside_of_its_cluster() -> None:
    def node(component: str) -> list[Signal]:
        return judged(
            "cluster",
            variables=status(wsrep_on="ON"),
            status=status(
                wsrep_cluster_status=component,
                wsrep_ready="ON",
                wsrep_local_state_comment="Synced",
            ),
        )

    assert node("Primary")[0].holds is True and node("non-Primary")[0].holds is False
    assert judged("cluster", variables=status(wsrep_on="OFF")) == []


def test_the_grant_that_is_missing_names_the_account() -> None:
    said = "Access denied; you need (at least one of) the PROCESS privilege(s) for this operation"
    assert remedy(said, "m@%") == "GRANT PROCESS ON *.* TO 'm'@'%'"


@pytest.mark.parametrize(
    ("type_", "following", "says", "command"),
    [
        ("int(11)", "2147483640", "nearly used up", "MODIFY id BIGINT NOT NULL"),
        ("int unsigned", "4294967296", "no row can be added", "BIGINT UNSIGNED NOT"),
        ("bigint(20)", "9223372036854775000", "nearly", "BIGINT UNSIGNED NOT NULL"),
        ("bigint unsigned", "18446744073709551000", "nearly", "SELECT id FROM"),
    ],
)
def test_first_aid_for_numbers_widens_to_a_type_that_holds_them(
    type_: str, following: str, says: str, command: str
) -> None:
    ends = {"int(11)": 2**31, "int unsigned": 2**32, "bigint(20)": 2**63}
    highest = str(ends.get(type_, 2**64) - 1)
    facts = {"database": "shop", "table": "t", "column": "id", "type": type_}
    facts |= {"next": following, "highest": highest}
    signal = Signal("auto_increment", "shop.t", "y", holds=False, facts=facts)
    [ticket] = tickets_for(MysqlSubject(SETTINGS), Observation((signal,), frozenset()))
    text, at = "Ticket 1: auto_increment\nmessage: y", ticket.opened_at
    violations = Evidence("E1", "The violations", "db", at, text)
    context = Context((ticket,), (violations,), at)
    note = numbers_run_out.first_aid([ticket], context)
    assert note is not None and says in note.summary
    assert command in note.recommended_actions[0].commands[0]


@pytest.mark.parametrize("count", [0, 1, 2000])
def test_lines_of_late_are_found_however_many_old_ones_are_before_them(
    tmp_path: Path, count: int
) -> None:
    log, now = tmp_path / "error.log", 1_780_000_000
    written = [*(now - 90_000 + n for n in range(9000)), *[now] * count]
    with log.open("w") as file:
        for at in written:
            stamp = f"{datetime.fromtimestamp(at):%Y-%m-%d %H:%M:%S}"
            file.write(
                f"{stamp} 0 [ERROR] mariadbd got signal 11 ;\nno line of its own\n"
            )
    found = recent_lines(log, now - 300)
    assert [one.at for one in found] == [now] * count
    assert all(one.kind == "crash" for one in found)
    assert len(recent_lines(log, 0)) > 5000  # within the last megabyte
