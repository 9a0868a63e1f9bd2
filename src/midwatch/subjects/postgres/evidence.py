"""Evidence from a PostgreSQL server: which pieces there are, and which of them concern a broken invariant."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

from midwatch.errors import ObservationFailed
from midwatch.model import Invariant, Signal, Ticket
from midwatch.subjects.base import EvidenceSource, configure
from midwatch.subjects.postgres import concerned, evidence_sql, sql
from midwatch.subjects.postgres.checks import CHECKS
from midwatch.subjects.postgres.concerned import Concern
from midwatch.subjects.postgres.connection import (
    Connection,
    Exhausted,
    QueryFailed,
    Unreachable,
    in_database,
    is_local,
)
from midwatch.subjects.postgres.evidence_text import (
    CLIENT_TEXT,
    activity,
    blocking,
    server,
)
from midwatch.subjects.postgres.observation import ObservationContext, load_lock_waits
from midwatch.subjects.postgres.settings import INVARIANTS, PostgresSettings
from midwatch.subjects.rows import Row, facts, text
from midwatch.subjects.server_evidence import Piece, piece_sources, state_now
from midwatch.units import format_count, format_size

Fetch = Callable[[Concern], Awaitable[str]]


def _rows(statement: str, none: str, *, concerned: bool = False) -> Fetch:
    async def fetch(concern: Concern) -> str:
        used = concern.database() if concerned else concern.server.use()
        async with used as one:
            return facts(await one.rows(statement)) or none

    return fetch


# ------------------------------------------------------------------ now


async def _now(concern: Concern) -> str:
    """Return the state of the tickets' invariants at this moment."""

    async def again(
        invariant: Invariant, components: Collection[str]
    ) -> Sequence[Signal] | str:
        check = next((one for one in CHECKS if one.invariant == invariant.id), None)
        if check is None and invariant.id != "reachable":
            return f"{invariant.id}: see the log, which tells whether it goes on"
        async with concern.server.use() as connection:
            if check is None:
                return "reachable: the server answers now"
            if invariant.id in _COMPARED:
                rows = await connection.rows(_COMPARED[invariant.id])
                own = [row for row in rows if row["datname"] in components]
                return "\n".join(map(_counted, own))
            at, state = concern.at.timestamp(), dict[str, Any]()
            context = ObservationContext(
                connection, concern.settings, at, {}, state, {invariant.id: invariant}
            )
            return await check.run(context)

    invariants = configure(INVARIANTS, concern.settings.invariants, "subject")
    return await state_now(invariants, concern.tickets, again)


# What breaks these is the difference of two observations: here is the second one.
_COMPARED = {"deadlocks": sql.DEADLOCKS, "database_growth": sql.DATABASE_SIZES}


def _counted(row: Row) -> str:
    if "size" in row:
        return f"size of {text(row['datname'], 64)} now: {format_size(float(row['size'] or 0))}"
    return f"deadlocks of {text(row['datname'], 64)} counted until now: {row['deadlocks']:.0f}"


# ------------------------------------------------------------------ the server


async def _server(concern: Concern) -> str:
    """Return facts about the server, or why it refuses a connection: that is evidence too."""
    try:
        async with concern.server.use() as connection:
            return server(await connection.rows(evidence_sql.SERVER))
    except (Unreachable, Exhausted) as error:
        return f"a connection attempt failed: {error.message}"


async def _activity(concern: Concern) -> str:
    queue = any(one.key.invariant == "blocked_sessions" for one in concern.tickets)
    async with concern.server.use() as connection:
        return activity(await connection.rows(sql.ACTIVITY), waiting=not queue)


async def _blocking(concern: Concern) -> str:
    async with concern.server.use() as connection:
        seen = await load_lock_waits(connection)
        return blocking(seen.blocking, seen.sessions)


async def _settings(concern: Concern) -> str:
    about = {_ABOUT.get(one.key.invariant, "sessions") for one in concern.tickets}
    names = {
        name
        for group in about
        for kind in group.split()
        for name in evidence_sql.SETTING_NAMES[kind].split()
    }
    async with concern.server.use() as connection:
        rows = await connection.rows(evidence_sql.SETTINGS, {"names": sorted(names)})
    return facts(rows) or "no settings visible"


# The groups of settings that concern an invariant.
_ABOUT = {
    "connections": "sessions",
    "blocked_sessions": "locks",
    "idle_in_transaction": "locks",
    "long_queries": "locks statements",
    "deadlocks": "locks",
    "transaction_id_age": "vacuum",
    "dead_tuples": "vacuum",
    "replication_lag": "wal",
    "inactive_slots": "wal",
    "database_growth": "wal vacuum",
    "log_errors": "crash",
    "log_error_storm": "statements sessions",
    "checksum_failures": "crash",
}


async def _slots(concern: Concern) -> str:
    async with concern.server.use() as connection:
        return facts(await connection.rows(sql.slots(connection.version))) or "no slots"


async def _log(concern: Concern) -> str:
    return await concern.log() or "the log is empty"


async def _conflicts(concern: Concern) -> str:
    async with concern.server.use() as connection:
        delays = await connection.rows(evidence_sql.DELAYS)
        if not delays:
            return "this server is a primary: conflicts and delays are those of its standbys"
        conflicts = await connection.rows(evidence_sql.CONFLICTS)
    none = "no statement was cancelled by a conflict with replay"
    return f"{facts(delays)}\n{facts(conflicts) or none}"


async def _changes(concern: Concern) -> str:
    """Return what was written last to the catalog. Its times are known with track_commit_timestamp only."""
    async with concern.database() as connection:
        [kept] = await connection.rows(
            "SELECT current_setting('track_commit_timestamp') = 'on' AS at"
        )
        at = "max(date_trunc('second', pg_xact_commit_timestamp(xmin)))::text"
        rows = await connection.rows(
            evidence_sql.DDL.replace("%s", at if kept["at"] else "NULL::text")
        )
    unknown = (
        ""
        if kept["at"]
        else "times are not kept (track_commit_timestamp is off), only the order in transactions\n"
    )
    return unknown + (facts(rows) or "nothing within the last million transactions")


# ------------------------------------------------------------------ disks


async def _tablespaces(concern: Concern) -> str:
    """Return size, free space and temporary files of each tablespace, and the size of the write-ahead log."""
    local = is_local(concern.settings)
    async with concern.server.use() as connection:
        [places] = await connection.rows(evidence_sql.PLACES)
        data = text(places["data"], 300)
        lines = []
        for row in await connection.rows(evidence_sql.TABLESPACES):
            path = text(row["location"], 300) or data
            lines.append(
                f"tablespace oid {row['id']} {text(row['tablespace'], 64)}: at {path or 'a hidden place'}, {text(row['size'])}, "
                f"{await _used(connection, evidence_sql.TEMPORARY, 'temporary', row['id'])}, "
                f"{await asyncio.to_thread(_free, path, local)}"
            )
        lines.append(await _used(connection, evidence_sql.WAL, "write-ahead log"))
        temporary = await connection.rows(evidence_sql.TEMPORARY_USE)
    lines += [
        f"{name}: {text(places[name], 200)}"
        for name in ("temp_tablespaces", "temp_file_limit")
        if places[name] not in (None, "", "-1")
    ]
    lines += [f"temporary files since the reset: {facts([row])}" for row in temporary]
    return "\n".join(lines)


async def _used(
    connection: Connection, statement: str, what: str, id_: int | None = None
) -> str:
    try:
        [row] = await connection.rows(statement, {"id": id_} if id_ else None)
    except QueryFailed as error:
        return f"{what} files not visible: {error.message}"
    return f"{what}: {format_count(int(row['files']), 'file')}, {format_size(float(row['bytes']))}"


def _free(path: str, local: bool) -> str:
    """Return the free space of a file system, which only a process on the server's machine can see."""
    if not path or not local:
        return "free space not visible: the server does not tell it, and is on another machine"
    try:
        found = os.statvfs(path)
    except OSError as error:
        return f"free space not visible from here: {path}: {error.strerror}"
    free = format_size(float(found.f_bavail * found.f_frsize))
    return f"{free} free of {format_size(float(found.f_blocks * found.f_frsize))} at {path}"


# ------------------------------------------------------------------ sequences of all databases

_NEAR = 0.8  # share of a sequence's numbers from which on it is shown
_DATABASES = 30


async def _sequences(concern: Concern) -> str:
    """Return the sequences near their end in every database that the role may enter."""
    async with concern.server.use() as connection:
        names = [
            str(row["datname"])
            for row in await connection.rows(evidence_sql.CONNECTABLE)
        ]
    until = asyncio.get_running_loop().time() + concern.settings.statement_timeout
    lines: list[str] = []
    looked, hidden = 0, 0
    failed: list[str] = (
        [f"{len(names) - _DATABASES} more"] if len(names) > _DATABASES else []
    )
    for name in names[:_DATABASES]:
        if asyncio.get_running_loop().time() > until:
            failed.append(f"{name} (no time left)")
            continue
        try:
            async with Connection(in_database(concern.settings, name)) as connection:
                rows = await connection.rows(evidence_sql.SEQUENCES)
        except ObservationFailed as error:
            failed.append(f"{name} ({error.message})")
            continue
        looked += len(rows)
        hidden += sum(1 for row in rows if not row["may"])
        lines += [_sequence(name, row) for row in rows if float(row["used"]) >= _NEAR]
    lines = lines[:20] or ["no sequence is near its end, as far as is visible"]
    lines.append(
        f"{format_count(looked, 'sequence')} that can end, in {format_count(min(len(names), _DATABASES) - len(failed), 'database')}"
    )
    if hidden:
        lines.append(
            f"of {hidden} of them the last number is not visible to this role (it needs USAGE or SELECT): judged by the rows of their tables"
        )
    if failed:
        lines.append(f"not read: {text(', '.join(failed), 300)}")
    return "\n".join(lines)


def _sequence(database: str, row: Row) -> str:
    used = float(row["used"])
    state = "EXHAUSTED" if used >= 1 and not row["cycles"] else f"{used:.1%} used"
    column = f" of column {text(row['column'], 130)}" if row["column"] else ""
    last = (
        f"last number {row['last']}"
        if row["last"] is not None
        else "last number not read, judged by the rows of its table"
    )
    return f"database {text(database, 64)}: sequence {text(row['name'], 130)}{column} is {state}: " f"{last}, the highest allowed is {row['last_allowed']}" + (
        ", it cycles" if row["cycles"] else ""
    ) + (
        ", it is locked now" if row["locked"] else ""
    )


# ------------------------------------------------------------------ which evidence for what

PIECES: dict[str, Piece[Concern]] = {
    "now": Piece("The broken invariant now", "the same check again", _now),
    "server": Piece("Server: version, uptime, role", "pg_settings", _server),
    "blocking": Piece(
        "Blocking tree: who waits for whom", "pg_blocking_pids", _blocking
    ),
    "activity": Piece(
        "Sessions that are active or in a transaction", "pg_stat_activity", _activity
    ),
    "connections": Piece(
        "Connections by application, user and state",
        "pg_stat_activity",
        _rows(evidence_sql.CONNECTIONS, "no connections"),
    ),
    "waits": Piece(
        "What the clients wait for",
        "pg_stat_activity",
        _rows(evidence_sql.WAIT_EVENTS, "no client runs a statement"),
    ),
    "locks": Piece(
        "Locks of sessions that wait or are waited for",
        "pg_locks",
        _rows(evidence_sql.LOCKS, "no session waits for a lock", concerned=True),
    ),
    "prepared": Piece(
        "Prepared transactions",
        "pg_prepared_xacts, pg_locks",
        _rows(evidence_sql.PREPARED, "no prepared transaction", concerned=True),
    ),
    "settings": Piece("Relevant settings", "pg_settings", _settings),
    "roles": Piece(
        "Settings and limits of the roles and databases concerned",
        "pg_db_role_setting, pg_roles",
        concerned.role_settings,
    ),
    "horizon": Piece(
        "Who holds back vacuum",
        "pg_stat_activity, pg_prepared_xacts, pg_replication_slots",
        _rows(sql.HORIZON, "nothing holds back vacuum"),
    ),
    "ids": Piece(
        "Age of transaction ids",
        "pg_database, pg_class",
        _rows(evidence_sql.IDS, "none", concerned=True),
    ),
    "vacuum": Piece(
        "State of vacuum",
        "pg_stat_user_tables",
        _rows(evidence_sql.VACUUM, "no table has dead rows", concerned=True),
    ),
    "tables": Piece(
        "Tables concerned: storage parameters, scans, indexes",
        "pg_class, pg_index, pg_stat_all_tables",
        concerned.tables,
    ),
    "explain": Piece(
        "Plans of the statements concerned, not run", "EXPLAIN", concerned.explain
    ),
    "statements": Piece(
        "Most expensive statements", "pg_stat_statements", concerned.top_statements
    ),
    "changes": Piece(
        "Recent changes of tables, indexes, functions and settings", "catalog", _changes
    ),
    "sizes": Piece(
        "Sizes of databases and tables",
        "pg_database, pg_class",
        _rows(evidence_sql.SIZES, "none", concerned=True),
    ),
    "disks": Piece(
        "Tablespaces: size, free space, temporary files",
        "pg_tablespace, pg_ls_tmpdir, pg_ls_waldir, statvfs",
        _tablespaces,
    ),
    "sequences": Piece(
        "Sequences near their end, in every database", "pg_sequence", _sequences
    ),
    "replication": Piece(
        "Standbys",
        "pg_stat_replication",
        _rows(sql.STANDBYS, "no standby is connected"),
    ),
    "recovery": Piece(
        "Recovery: the standby's receiver and replay",
        "pg_stat_wal_receiver",
        _rows(sql.RECOVERY, "nothing visible"),
    ),
    "conflicts": Piece(
        "Delays and conflicts of this standby",
        "pg_last_xact_replay_timestamp, pg_stat_database_conflicts",
        _conflicts,
    ),
    "replay": Piece(
        "Replay: what it waits for",
        "pg_stat_activity",
        _rows(evidence_sql.REPLAY, "this server does not replay"),
    ),
    "replicators": Piece(
        "Roles that may replicate",
        "pg_roles",
        _rows(evidence_sql.REPLICATORS, "none"),
    ),
    "slots": Piece("Replication slots", "pg_replication_slots", _slots),
    "counters": Piece(
        "Counters of the databases",
        "pg_stat_database",
        _rows(evidence_sql.COUNTERS, "none"),
    ),
    "checksums": Piece(
        "Checksum failures of the databases",
        "pg_stat_database",
        _rows(sql.CHECKSUM_FAILURES, "no checksum failure is counted"),
    ),
    "log": Piece("The server's log around the onset", "log", _log, log=True),
}

# The most relevant first.
WANTED: dict[str, str] = {
    "reachable": "server log",
    "connections": "now connections waits activity server blocking roles settings log",
    "blocked_sessions": "now blocking prepared activity locks tables roles settings changes log server",
    "idle_in_transaction": "now activity blocking roles horizon settings log server",
    "long_queries": "now activity explain tables statements waits blocking roles settings changes log server",
    "deadlocks": "log now tables counters activity blocking settings server",
    "transaction_id_age": "now ids horizon prepared vacuum activity roles settings server",
    "dead_tuples": "now vacuum horizon tables prepared activity settings changes server",
    "replication_lag": "now replication recovery replay conflicts slots activity horizon blocking log replicators settings server",
    "inactive_slots": "now slots replicators replication disks settings log server",
    "database_growth": "now sizes disks statements counters slots activity vacuum server",
    "log_errors": "log server disks activity settings slots sizes",
    "log_error_storm": "log sequences tables roles changes disks activity settings server",
    "checksum_failures": "now checksums log disks server settings",
}
OTHERWISE = "server activity log sequences"
STATE = "server log blocking activity"
"""What is shown of a server without a ticket, on which a broken system depends."""


def sources(
    settings: PostgresSettings, tickets: Sequence[Ticket]
) -> list[EvidenceSource]:
    """Return the evidence for these tickets, over one shared connection to each database."""
    wanted = [WANTED.get(one.key.invariant, OTHERWISE) for one in tickets]
    limit = settings.connect_timeout + settings.statement_timeout * 2 + 1
    name, concern = settings.name, Concern(settings, tickets)
    return piece_sources(name, PIECES, wanted or [STATE], concern, limit, CLIENT_TEXT)
