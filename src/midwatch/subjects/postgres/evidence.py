"""Evidence from a PostgreSQL server: plain text, one fact a line."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from midwatch.model import Origin, Ticket
from midwatch.subjects.base import EvidenceSource
from midwatch.subjects.postgres import sql
from midwatch.subjects.postgres.connection import (
    Exhausted,
    Row,
    SharedConnection,
    Unreachable,
    number,
    state,
    text,
    who,
)
from midwatch.subjects.postgres.log import tail
from midwatch.subjects.postgres.observation import PREPARED, Blocking, load_lock_waits
from midwatch.subjects.postgres.settings import PostgresSettings
from midwatch.units import format_count, format_duration

# ------------------------------------------------------------------ rows as text

MOST = 60  # lines of a list
QUERY = 300


def facts(rows: Sequence[Row]) -> str:
    """Return `name: value` for a row with just these two, else `a=1 b=2` without empty values."""
    return _bounded([_fact(row) for row in rows])


def _fact(row: Row) -> str:
    if set(row) == {"name", "value"}:
        return f"{text(row['name'], 80)}: {text(row['value'], QUERY)}"
    known = {key: value for key, value in row.items() if value not in (None, "")}
    return " ".join(f"{key}={text(value, QUERY)}" for key, value in known.items())


def server(rows: Sequence[Row]) -> str:
    row = rows[0]
    return "\n".join(
        [
            text(row["version"], 200),
            f"up for {format_duration(number(row['uptime']))} (since {text(row['started'])})",
            f"role: {'standby' if row['standby'] else 'primary'}",
            f"now: {text(row['now'])}",
        ]
    )


def activity(rows: Sequence[Row]) -> str:
    if not rows:
        return "no session is active or in a transaction"
    return _bounded([session(row) for row in rows])


def session(row: Row) -> str:
    """Return one session on one line."""
    parts = [f"pid {row['pid']}: {state(row)}", who(row)]
    parts.append(
        f"database {text(row['datname'], 64)}, client {text(row['client'], 64)}"
    )
    if row["xact_age"] is not None:
        parts.append(f"transaction open for {format_duration(number(row['xact_age']))}")
    if row["wait_event_type"] not in (None, "Client"):
        parts.append(
            f"waits on {text(row['wait_event_type'])}/{text(row['wait_event'])}"
        )
    did = "runs" if row["state"] == "active" else "last ran"
    return ", ".join(parts) + f", {did}: {text(row['query'], QUERY)}"


def blocking(tree: Blocking, sessions: Mapping[int, Row]) -> str:
    """Return each root blocker, and indented under it the sessions that wait for it."""
    if not tree.waits:
        return "no session waits for a lock"
    lines = []
    for root in tree.roots():
        waiting = list(tree.walk(root))
        count = f"blocks {format_count(len(waiting), 'session')}"
        if root == PREPARED:
            lines.append(f"root: a prepared transaction {count}")
        else:
            row = sessions.get(root)
            line = session(row) if row else f"pid {root}: gone meanwhile"
            lines.append(f"root: {count}; {line}")
        lines += [_waiter(depth, row, sessions) for depth, row in waiting]
    return _bounded(lines)


def _waiter(depth: int, wait: Row, sessions: Mapping[int, Row]) -> str:
    pid = int(wait["pid"])
    waited = f"has waited {format_duration(number(wait['waited']))}"
    behind = ", ".join(str(one) for one in sorted(set(wait["blockers"])))
    row = sessions.get(pid)
    line = f"{who(row)}, runs: {text(row['query'], QUERY)}" if row else "gone meanwhile"
    return f"{'  ' * min(depth, 20)}pid {pid} {waited} for pid {behind}: {line}"


def _bounded(lines: Sequence[str]) -> str:
    more = len(lines) - MOST
    return "\n".join([*lines[:MOST], *([f"… and {more} more"] if more > 0 else [])])


# Each goes on to the last place where what a client wrote can end, or to the end of the line.
CLIENT_TEXT = (
    re.compile(r"(?m)(?:, |: )(?:runs|last ran): (.*)$"),
    re.compile(
        r"(?m)\bapplication (.*(?=, database )|.*(?=, (?:runs|last ran): )|.*(?=\) )|.*$)"
    ),
    re.compile(
        r"(?m)\b(?:application(?:_name)?|query|gid|detail)=(.*(?= \w+=\S*$)|.*$)"
    ),
)
"""What clients wrote in evidence: statements, and the names that they give themselves."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One kind of evidence. `fetch` raises MidwatchError."""

    title: str
    source: str
    fetch: Callable[[SharedConnection], Awaitable[str]]


def _table(statement: str, none: str) -> Callable[[SharedConnection], Awaitable[str]]:
    async def fetch(shared: SharedConnection) -> str:
        async with shared.use() as connection:
            return facts(await connection.rows(statement)) or none

    return fetch


async def _server(shared: SharedConnection) -> str:
    """Return facts about the server, or why it refuses a connection: that is evidence too."""
    try:
        async with shared.use() as connection:
            return server(await connection.rows(sql.SERVER))
    except (Unreachable, Exhausted) as error:
        return f"a connection attempt failed: {error.message}"


async def _activity(shared: SharedConnection) -> str:
    async with shared.use() as connection:
        return activity(await connection.rows(sql.ACTIVITY))


async def _blocking(shared: SharedConnection) -> str:
    async with shared.use() as connection:
        seen = await load_lock_waits(connection)
        return blocking(seen.blocking, seen.sessions)


async def _slots(shared: SharedConnection) -> str:
    async with shared.use() as connection:
        return facts(await connection.rows(sql.slots(connection.version))) or "no slots"


async def _log(shared: SharedConnection) -> str:
    """Return the end of the log. Where it is on this machine, that needs no server that answers."""
    try:
        async with shared.use() as connection:
            return await tail(shared.settings, connection) or "the log is empty"
    except (Unreachable, Exhausted):
        if shared.settings.log_file is None:
            raise
        return await tail(shared.settings, None) or "the log is empty"


PIECES: dict[str, Piece] = {
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
        _table(sql.CONNECTIONS, "no connections"),
    ),
    "locks": Piece(
        "Locks of sessions that wait or are waited for",
        "pg_locks",
        _table(sql.LOCKS, "no session waits for a lock"),
    ),
    "settings": Piece(
        "Relevant settings", "pg_settings", _table(sql.SETTINGS, "no settings visible")
    ),
    "horizon": Piece(
        "Who holds back vacuum",
        "pg_stat_activity, pg_prepared_xacts, pg_replication_slots",
        _table(sql.HORIZON, "nothing holds back vacuum"),
    ),
    "ids": Piece(
        "Age of transaction ids", "pg_database, pg_class", _table(sql.IDS, "none")
    ),
    "vacuum": Piece(
        "State of vacuum", "pg_stat_user_tables", _table(sql.VACUUM, "no tables")
    ),
    "sizes": Piece(
        "Sizes of databases and tables",
        "pg_database, pg_class",
        _table(sql.SIZES, "none"),
    ),
    "replication": Piece(
        "Standbys",
        "pg_stat_replication",
        _table(sql.STANDBYS, "no standby is connected"),
    ),
    "recovery": Piece(
        "Recovery: the standby's receiver and replay",
        "pg_stat_wal_receiver",
        _table(sql.RECOVERY, "nothing visible"),
    ),
    "slots": Piece("Replication slots", "pg_replication_slots", _slots),
    "counters": Piece(
        "Counters of the databases", "pg_stat_database", _table(sql.COUNTERS, "none")
    ),
    "checksums": Piece(
        "Checksum failures of the databases",
        "pg_stat_database",
        _table(sql.CHECKSUM_FAILURES, "no checksum failure is counted"),
    ),
    "log": Piece("The end of the server's log", "log", _log),
}

# The most relevant first.
WANTED: dict[str, tuple[str, ...]] = {
    "reachable": ("server", "log"),
    "connections": ("connections", "activity", "server", "blocking", "settings", "log"),
    "blocked_sessions": ("blocking", "activity", "locks", "settings", "log", "server"),
    "idle_in_transaction": ("activity", "blocking", "settings", "horizon", "server"),
    "long_queries": ("activity", "blocking", "settings", "vacuum", "log", "server"),
    "deadlocks": ("log", "counters", "activity", "blocking", "settings", "server"),
    "transaction_id_age": (
        "ids",
        "horizon",
        "vacuum",
        "activity",
        "settings",
        "server",
    ),
    "dead_tuples": ("vacuum", "horizon", "activity", "settings", "server"),
    "replication_lag": (
        "replication",
        "recovery",
        "slots",
        "activity",
        "settings",
        "log",
        "server",
    ),
    "inactive_slots": ("slots", "replication", "sizes", "settings", "log", "server"),
    "database_growth": ("sizes", "counters", "slots", "activity", "vacuum", "server"),
    "log_errors": ("log", "server", "activity", "sizes", "settings"),
    "checksum_failures": ("checksums", "log", "server", "settings"),
}
OTHERWISE = ("server", "activity", "log")
STATE = ("server", "log", "blocking", "activity")
"""What is shown of a server without a ticket, on which a broken system depends."""


def sources(
    settings: PostgresSettings, tickets: Sequence[Ticket]
) -> list[EvidenceSource]:
    """Return the evidence for these tickets, over one shared connection."""
    wanted = [WANTED.get(ticket.key.invariant, OTHERWISE) for ticket in tickets]
    ranks: dict[str, int] = {}
    for names in wanted or [STATE]:
        for position, name in enumerate(names):
            ranks[name] = min(ranks.get(name, 99), 10 * (position + 1))
    shared = SharedConnection(settings)
    limit = settings.connect_timeout + settings.statement_timeout * 2 + 1

    def source(name: str) -> EvidenceSource:
        piece = PIECES[name]
        return EvidenceSource(
            piece.title,
            f"{settings.name}: {piece.source}",
            lambda: piece.fetch(shared),
            rank=ranks[name],
            timeout=limit,
            origin=Origin.REPORTED if name == "log" else Origin.SYSTEM,
            reported=CLIENT_TEXT,
        )

    return [source(name) for name in sorted(ranks, key=lambda name: ranks[name])]
