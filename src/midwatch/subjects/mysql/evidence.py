"""Evidence from a MariaDB or MySQL server: which pieces there are, and which of them concern a broken invariant."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from midwatch.model import Invariant, Signal, Ticket
from midwatch.subjects.base import EvidenceSource, configure
from midwatch.subjects.findings import NotObservable
from midwatch.subjects.mysql import concerned, evidence_sql, sql
from midwatch.subjects.mysql.checks import CHECKS
from midwatch.subjects.mysql.concerned import Concern
from midwatch.subjects.mysql.connection import (
    Exhausted,
    QueryFailed,
    Unreachable,
)
from midwatch.subjects.mysql.context import MysqlContext
from midwatch.subjects.mysql.error_log import log_around, log_place
from midwatch.subjects.mysql.evidence_text import (
    CLIENT_TEXT,
    activity,
    counts,
    deadlock,
    innodb_summary,
    lock_tree,
)
from midwatch.subjects.mysql.locks import lock_waits, sessions_of
from midwatch.subjects.mysql.settings import INVARIANTS, MysqlSettings
from midwatch.subjects.mysql.snapshot import value_of
from midwatch.subjects.rows import Row, bounded, text
from midwatch.subjects.server_evidence import Piece, piece_sources, state_now
from midwatch.units import format_duration, format_size

# ------------------------------------------------------------------ now


async def _now(concern: Concern) -> str:
    """Return the state of the tickets' invariants at this moment."""

    async def again(
        invariant: Invariant, components: Collection[str]
    ) -> Sequence[Signal] | str:
        seen = await concern.seen()
        check = next((one for one in CHECKS if one.invariant == invariant.id), None)
        if check is None:
            return f"{invariant.id}: the server answers now"
        at, by_id = concern.at.timestamp(), {invariant.id: invariant}
        context = MysqlContext(seen, concern.settings, at, {}, {}, by_id)
        try:
            return check.run(context)
        except NotObservable:
            return f"{invariant.id}: what counts is the growth of a counter; see the counters"

    invariants = configure(INVARIANTS, concern.settings.invariants, "subject")
    return await state_now(invariants, concern.tickets, again)


# ------------------------------------------------------------------ the server


async def _server(concern: Concern) -> str:
    """Return facts about the server, or why it refuses a connection: that is evidence too."""
    try:
        seen = await concern.seen()
    except (Unreachable, Exhausted) as error:
        return f"a connection attempt failed: {error.message}"
    up = seen.number("Uptime") or 0.0
    number = ".".join(map(str, seen.version.number))
    lines = [
        f"{seen.version.product} {number}",
        f"up for {format_duration(up)}",
        f"read_only: {seen.variable('read_only')}",
        f"performance_schema: {seen.variable('performance_schema')}",
        f"replicates from others: {'yes' if seen.known('replicas') else 'no'}",
    ]
    return "\n".join(lines)


async def _activity(concern: Concern) -> str:
    seen = await concern.seen()
    waits = lock_waits(seen)
    tree = any(one.key.invariant == "blocked_sessions" for one in concern.tickets)
    waiting = frozenset(int(row["pid"]) for row in waits.blocking.waits)
    return activity(sessions_of(seen), waiting if tree else frozenset())


async def _tree(concern: Concern) -> str:
    return lock_tree(await concern.waits())


async def _connections(concern: Concern) -> str:
    seen = await concern.seen()
    lines = [
        f"{name}: {value_of(seen.known('status'), name)}"
        for name in (
            "Threads_connected",
            "Threads_running",
            "Max_used_connections",
            "Connection_errors_max_connections",
            "Aborted_connects",
            "Aborted_clients",
        )
    ]
    lines.insert(0, f"max_connections: {seen.variable('max_connections')}")
    return "\n".join([*lines, counts(seen.rows("counts")) or "no connections"])


async def _variables(concern: Concern) -> str:
    """Return the relevant variables, and those that were set by a file, at the start or by a client."""
    async with concern.server.use() as connection:
        relevant, changed = await connection.batch(
            [evidence_sql.RELEVANT, sql.changed_variables(connection.version)]
        )
    lines = []
    for found in (relevant, changed):
        if isinstance(found, list):
            lines += [_variable(row) for row in found]
    return bounded(list(dict.fromkeys(lines))) or "no variable is visible"


def _variable(row: Row) -> str:
    name = str(row.get("Variable_name", row.get("name")))
    return f"{text(name, 64)}: {text(row.get('Value', row.get('value')), 120)}"


_REPLICA_FACTS = (
    "channel_name source_host source_port source_user replica_io_state replica_io_running replica_sql_running "
    "replica_sql_running_state last_io_errno last_io_error last_sql_errno last_sql_error seconds_behind_source sql_delay "
    "sql_remaining_delay source_log_file read_source_log_pos relay_source_log_file exec_source_log_pos "
    "relay_log_space using_gtid auto_position retrieved_gtid_set executed_gtid_set replicate_do_db replicate_ignore_db"
).split()


async def _replication(concern: Concern) -> str:
    seen = await concern.seen()
    parts = []
    for row in seen.rows("replicas"):
        lines = [
            f"{name}: {text(row[name], 600)}"
            for name in _REPLICA_FACTS
            if row.get(name) not in (None, "")
        ]
        if row.get("seconds_behind_source") is None:
            lines.append(
                "seconds_behind_source: NULL (not known: a thread does not run)"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or "this server replicates from no other one"


async def _innodb(concern: Concern) -> str:
    return innodb_summary(await _report(concern)) or "InnoDB reports nothing"


async def _deadlock(concern: Concern) -> str:
    return (
        deadlock(await _report(concern))
        or "InnoDB has detected no deadlock since the start"
    )


async def _report(concern: Concern) -> str:
    async with concern.server.use() as connection:
        [row] = await connection.rows("SHOW ENGINE INNODB STATUS")
    return str(row["Status"])


async def _rates(concern: Concern) -> str:
    """Return counters with their rate over a second."""
    async with concern.server.use() as connection:
        first = await connection.rows(evidence_sql.RATES)
        await asyncio.sleep(1.0)
        second = await connection.rows(evidence_sql.RATES)
    before = {str(row["Variable_name"]): float(row["Value"]) for row in first}
    return "\n".join(
        f"{row['Variable_name']}: {float(row['Value']):.0f}, "
        f"{max(0.0, float(row['Value']) - before.get(str(row['Variable_name']), 0.0)):.0f} per second now"
        for row in second
    )


async def _sizes(concern: Concern) -> str:
    async with concern.server.use() as connection:
        tables, logs = await connection.batch(
            [evidence_sql.sizes(connection.version), "SHOW BINARY LOGS"]
        )
    lines = []
    if isinstance(tables, QueryFailed):
        lines.append(f"tables: not visible: {tables.message}")
    else:
        lines += [
            f"{text(row['name'], 130)}: {format_size(float(row['bytes']))}"
            for row in tables
        ]
    if isinstance(logs, list):
        total = sum(float(row["File_size"]) for row in logs)
        lines.append(f"binary logs: {len(logs)} files, {format_size(total)}")
    else:
        lines.append(f"binary logs: {logs.message}")
    return bounded(lines)


async def _log(concern: Concern) -> str:
    """Return the log; on this machine it needs no server that answers."""
    place = str(concern.settings.log_file or "")
    if not place:
        variables = (await concern.seen()).known("variables")
        place = log_place(
            concern.settings,
            value_of(variables, "log_error"),
            value_of(variables, "datadir"),
        )
    return await log_around(place, concern.onset)


# ------------------------------------------------------------------ which evidence for what

PIECES: dict[str, Piece[Concern]] = {
    "now": Piece("The broken invariant now", "the same check again", _now),
    "server": Piece("Server: version, uptime, role", "SHOW GLOBAL STATUS", _server),
    "tree": Piece("Lock tree: who waits for whom", "INNODB_TRX, processlist", _tree),
    "activity": Piece(
        "Sessions that are active or in a transaction", "processlist", _activity
    ),
    "connections": Piece(
        "Connections by user, client and command", "processlist", _connections
    ),
    "variables": Piece(
        "Variables that matter or were set", "SHOW VARIABLES", _variables
    ),
    "replication": Piece(
        "Replication channels of this server", "SHOW REPLICA STATUS", _replication
    ),
    "deadlock": Piece(
        "The latest deadlock: both sides",
        "SHOW ENGINE INNODB STATUS",
        _deadlock,
        reported=True,
    ),
    "innodb": Piece(
        "InnoDB: waits and transactions",
        "SHOW ENGINE INNODB STATUS",
        _innodb,
        reported=True,
    ),
    "rates": Piece("Counters and their rates", "SHOW GLOBAL STATUS", _rates),
    "tables": Piece(
        "Tables concerned: columns and indexes",
        "information_schema",
        concerned.tables,
    ),
    "explain": Piece(
        "Plans of running statements, not run again",
        "SHOW EXPLAIN, EXPLAIN FOR CONNECTION",
        concerned.explain,
    ),
    "sizes": Piece(
        "Sizes of tablespaces and binary logs", "INNODB_TABLESPACES", _sizes
    ),
    "log": Piece(
        "The server's error log around the onset", "error log", _log, log=True
    ),
}

# The most relevant first.
WANTED: dict[str, str] = {
    "reachable": "server log",
    "connections": "now connections activity server tree variables log",
    "refused_logins": "now connections server variables log",
    "blocked_sessions": "now tree activity tables innodb variables server log",
    "idle_in_transaction": "now activity tree innodb variables server",
    "long_queries": "now activity explain tables tree rates variables server",
    "long_transactions": "now activity tree innodb variables server",
    "deadlocks": "now deadlock tables activity rates variables server",
    "replication_running": "now replication log tables variables server",
    "replication_lag": "now replication activity tree rates variables server log",
    "replica_read_only": "now replication variables activity server",
    "cluster": "now rates log variables server",
    "history_length": "now activity tree innodb rates variables server",
    "slow_queries": "now activity explain rates tables variables server",
    "innodb_waits": "now rates innodb activity variables sizes server log",
    "buffer_pool_misses": "now rates activity sizes variables server",
    "auto_increment": "now tables activity server",
    "crashed_tables": "now log sizes server",
    "log_errors": "log server sizes activity variables",
}
OTHERWISE = "server activity log"
STATE = "server log tree activity replication"
"""What is shown of a server without a ticket, on which a broken system depends."""


def sources(settings: MysqlSettings, tickets: Sequence[Ticket]) -> list[EvidenceSource]:
    """Return the evidence for these tickets, over one shared connection."""
    wanted = [WANTED.get(one.key.invariant, OTHERWISE) for one in tickets]
    limit = settings.connect_timeout + settings.statement_timeout * 4 + 2
    name, concern = settings.name, Concern(settings, tickets)
    return piece_sources(name, PIECES, wanted or [STATE], concern, limit, CLIENT_TEXT)
