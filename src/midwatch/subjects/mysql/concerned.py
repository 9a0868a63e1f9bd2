"""The tables and statements that the tickets are about, and evidence of these. Nothing is run again."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

from midwatch.errors import ObservationFailed
from midwatch.model import Ticket
from midwatch.subjects.mysql import evidence_sql
from midwatch.subjects.mysql.connection import Connection, QueryFailed
from midwatch.subjects.mysql.locks import (
    LockWaits,
    is_holder_hidden,
    lock_waits,
    sessions_of,
    words_of,
)
from midwatch.subjects.mysql.settings import MysqlSettings
from midwatch.subjects.mysql.snapshot import Snapshot, take
from midwatch.subjects.rows import Row, bounded, text
from midwatch.subjects.shared_connection import SharedConnection
from midwatch.units import format_count

_STATEMENTS = ("query", "blocker_query", "applier_error", "receiver_error")
_LITERAL = re.compile(
    r"""--[^\n]*|#[^\n]*|/\*.*?\*/|'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*\"""",
    re.DOTALL,
)
_CONDITIONS = re.compile(
    r"\b(?:where|on|using|and|or|having|by)\b(.{0,300})", re.IGNORECASE | re.DOTALL
)
_CACHED = 0.15
"""Seconds after which InnoDB surely looks at its transactions again: INNODB_TRX shows those of the reading before if that was
less than 0.1 s ago."""
_MOST_WORDS = 200
_EXPLAINED = 3


class Concern:
    """The tickets of one diagnosis, a connection for their evidence, and one moment of the server that pieces share."""

    def __init__(self, settings: MysqlSettings, tickets: Sequence[Ticket]) -> None:
        self.settings = settings
        self.tickets = tickets
        self.at = datetime.now(UTC)
        self.onset: datetime | None = min(
            (ticket.first_seen_at for ticket in tickets), default=None
        )
        self.server = SharedConnection(partial(Connection, settings))
        self._taking = asyncio.Lock()
        self._seen: Snapshot | None = None

    async def seen(self) -> Snapshot:
        """Return the moment. Raises Unreachable, Exhausted or ObservationFailed."""
        async with self._taking:
            if self._seen is None:
                async with self.server.use() as connection:
                    seen = await take(connection, tables=True)
                    if is_holder_hidden(seen):
                        await asyncio.sleep(_CACHED)
                        seen = await take(connection, tables=True)
                    self._seen = seen
            return self._seen

    async def waits(self) -> LockWaits:
        """Return who waits for whom in that moment. Raises ObservationFailed."""
        return lock_waits(await self.seen())


def bare(statement: str) -> str:
    """Return a statement without its texts and comments."""
    return _LITERAL.sub(" ", statement)


async def statements_of(concern: Concern) -> list[str]:
    """Return the statements of the tickets, and of the sessions that take part in a lock wait now."""
    found = [
        str(value)
        for ticket in concern.tickets
        for name in _STATEMENTS
        if (value := ticket.facts.get(name))
    ]
    try:
        waits = await concern.waits()
        ids = {int(row["pid"]) for row in waits.blocking.waits} | {
            int(pid) for pid in waits.blocking.behind
        }
        found += [
            str(row["query"])
            for pid, row in waits.sessions.items()
            if pid in ids and row["query"]
        ]
    except ObservationFailed:
        pass  # the piece of the lock tree says so
    return list(dict.fromkeys(found))


# ------------------------------------------------------------------ tables


async def tables(concern: Concern) -> str:
    """Return the tables that the statements name: columns, indexes, and columns in conditions without one."""
    statements = await statements_of(concern)
    words = [
        str(ticket.facts["table"]).rpartition(".")[2]
        for ticket in concern.tickets
        if ticket.facts.get("table")
    ]
    for statement in statements:
        words += sorted(words_of(bare(statement)))
    names = list(dict.fromkeys(words))[:_MOST_WORDS]
    if not names:
        return "no statement of these tickets is known"
    async with concern.server.use() as connection:
        found = await connection.rows(evidence_sql.TABLES, [names])
        indexes = await connection.rows(evidence_sql.INDEXES, [names]) if found else []
        estimates = await _estimates(connection, found)
    lines = [
        line for row in found for line in _table(row, indexes, statements, estimates)
    ]
    return (
        bounded(lines)
        or "no table that the account sees is named in the statements concerned"
    )


async def _estimates(connection: Connection, found: Sequence[Row]) -> dict[str, int]:
    if not found:
        return {}
    names = [f"{row['db']}/{row['name']}" for row in found]
    try:
        rows = await connection.rows(
            evidence_sql.table_rows(connection.version), [names]
        )
    except QueryFailed:
        return {}
    return {str(row["name"]): int(row["estimate"]) for row in rows}


def _table(
    row: Row,
    indexes: Sequence[Row],
    statements: Sequence[str],
    estimates: Mapping[str, int],
) -> list[str]:
    own = [
        one for one in indexes if (one["db"], one["name"]) == (row["db"], row["name"])
    ]
    rows = estimates.get(f"{row['db']}/{row['name']}")
    about = f", about {rows:,} rows" if rows is not None else ""
    lines = [
        f"table {text(row['db'], 64)}.{text(row['name'], 64)}: {format_count(int(row['columns']), 'column')}{about}"
    ]
    lines += [
        f"  {'index' if int(one['repeats']) else 'unique index'} {text(one['index'], 64)} ({text(one['columns'], 200)})"
        for one in own
    ] or ["  it has no index"]
    first = {str(one["columns"]).split(" ")[0].lower() for one in own}
    missing = [
        name
        for name in str(row["names"]).split(" ")
        if name.lower() not in first and _in_condition(name, statements)
    ]
    if missing:
        lines.append(
            f"  in conditions of the statements concerned, and no index begins with it: {text(', '.join(missing[:8]), 300)}"
        )
    return lines


def _in_condition(column: str, statements: Sequence[str]) -> bool:
    return any(
        column.lower() in words_of(part)
        for statement in statements
        for part in _CONDITIONS.findall(bare(statement))
    )


# ------------------------------------------------------------------ plans


async def explain(concern: Concern) -> str:
    """Return the plans that running statements have: the server shows them of the session itself."""
    seen = await concern.seen()
    wanted = {ticket.facts.get("id") for ticket in concern.tickets}
    running = [
        row
        for row in sessions_of(seen)
        if row["command"] in ("Query", "Execute") and row["query"]
    ]
    chosen = [row for row in running if row["pid"] in wanted] or running
    parts = []
    async with concern.server.use() as connection:
        for row in chosen[:_EXPLAINED]:
            parts.append(
                f"statement: {text(row['query'], 300)}\n{await _plan(connection, int(row['pid']))}"
            )
    return "\n\n".join(parts) or "no statement of these tickets runs any more"


async def _plan(connection: Connection, pid: int) -> str:
    show = (
        "SHOW EXPLAIN FOR" if connection.version.mariadb else "EXPLAIN FOR CONNECTION"
    )
    try:
        rows = await connection.rows(f"{show} {pid}")
    except QueryFailed as error:
        return f"connection {pid}: not explained: {error.message}"
    lines = [
        ", ".join(
            f"{name} {text(value, 120)}"
            for name, value in row.items()
            if value is not None
        )
        for row in rows
    ]
    return bounded([f"the plan of connection {pid}, estimated:", *lines])
