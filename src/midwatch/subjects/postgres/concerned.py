"""What the tickets are about: a database, roles, statements and tables, and evidence of these.

A statement is explained without being run, and only where the planner runs no code of users for it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from zlib import crc32

from midwatch.errors import ObservationFailed
from midwatch.model import Ticket
from midwatch.subjects.postgres import evidence_sql, sql
from midwatch.subjects.postgres.connection import (
    Connection,
    Exhausted,
    QueryFailed,
    Unreachable,
    database_of,
    in_database,
)
from midwatch.subjects.postgres.log import log_around
from midwatch.subjects.postgres.observation import load_lock_waits
from midwatch.subjects.postgres.settings import PostgresSettings
from midwatch.subjects.rows import Row, bounded, facts, text
from midwatch.subjects.shared_connection import SharedConnection
from midwatch.units import format_count

# Invariants whose component is a database, or begins with its name.
_BY_DATABASE = frozenset(
    "blocked_sessions idle_in_transaction long_queries deadlocks database_growth transaction_id_age".split()
)
_STATEMENTS = ("query", "blocker_query", "statement", "line")
_ROLES = ("user", "blocker_user", "holder_user", "role")
_STATEMENT = re.compile(
    r"(?:STATEMENT|statement):  ?(.*?)(?:  \(client: |$)", re.MULTILINE
)
_DEADLOCK = re.compile(r"Process \d+: (.*)")


class Concern:
    """The tickets of one diagnosis, and connections for their evidence.

    `server` is a connection to the database of the DSN. `database_name` is that of the tickets from the first use of
    `database` on.
    """

    def __init__(self, settings: PostgresSettings, tickets: Sequence[Ticket]) -> None:
        self.settings = settings
        self.tickets = tickets
        self.at = datetime.now(UTC)
        self.onset: datetime | None = min(
            (ticket.first_seen_at for ticket in tickets), default=None
        )
        self.server = SharedConnection(partial(Connection, settings))
        self.database_name = database_of(settings)
        self._database: SharedConnection[Connection] | None = None
        self._finding = asyncio.Lock()
        self._log = asyncio.Lock()
        self._log_text: str | None = None

    def facts(self, *names: str) -> list[str]:
        """Return the values of these facts of the tickets, without repetition."""
        found = [ticket.facts.get(name) for ticket in self.tickets for name in names]
        return list(dict.fromkeys(one for one in found if isinstance(one, str) and one))

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Connection]:
        """Yield a connection to the database of the tickets, else to that of the DSN. Raises ObservationFailed."""
        async with self._finding:
            if self._database is None:
                self._database = await self._find_database()
        async with self._database.use() as connection:
            yield connection

    async def _find_database(self) -> SharedConnection[Connection]:
        names = [name for name in map(_database, self.tickets) if name]
        async with self.server.use() as connection:
            rows = await connection.rows(evidence_sql.CONNECTABLE)
        open_to_us = {str(row["datname"]) for row in rows}
        name = next((one for one in names if one in open_to_us), self.database_name)
        if name == self.database_name:
            return self.server
        self.database_name = name
        return SharedConnection(partial(Connection, in_database(self.settings, name)))

    async def log(self) -> str:
        """Return the log around the onset and its end. Raises ObservationFailed."""
        async with self._log:
            if self._log_text is None:
                self._log_text = await self._read_log()
            return self._log_text

    async def _read_log(self) -> str:
        """Where the log is on this machine, it needs no server that answers."""
        try:
            async with self.server.use() as connection:
                return await log_around(self.settings, connection, self.onset)
        except (Unreachable, Exhausted):
            if self.settings.log_file is None:
                raise
            return await log_around(self.settings, None, self.onset)

    async def statements(self) -> list[str]:
        """Return the statements of the tickets, of the lock queue and of deadlocks in the log."""
        found = self.facts(*_STATEMENTS)
        invariants = {ticket.key.invariant for ticket in self.tickets}
        if invariants & {"blocked_sessions", "idle_in_transaction"}:
            async with self.database() as connection:
                waits = await load_lock_waits(connection)
            found += [
                str(row["query"])
                for row in waits.sessions.values()
                if row["datname"] == self.database_name
            ]
        if "deadlocks" in invariants:
            with suppress(ObservationFailed):  # the piece of the log says so
                found += _DEADLOCK.findall(await self.log())[-20:]
        if "log_error_storm" in invariants:
            with suppress(ObservationFailed):
                log = await self.log()
                for message in self.facts("message"):
                    found += _failing(log, message.rstrip("…")[:60])
        return list(dict.fromkeys(found))

    async def words(self) -> list[str]:
        """Return the words of the statements and of the tickets' tables: some name a table."""
        names = [
            ticket.key.component.rpartition(".")[2]
            for ticket in self.tickets
            if ticket.key.invariant == "dead_tuples"
        ]
        for statement in await self.statements():
            names += words_of(statement)
        return list(dict.fromkeys(names))[:400]


def _failing(log: str, message: str) -> list[str]:
    """Return the statements that the log has right after a message."""
    found = []
    for part in log.split(message)[1:4]:
        statement = _STATEMENT.search(part, 0, 3000)
        if statement:
            found.append(statement[1])
    return found


def _database(ticket: Ticket) -> str | None:
    if ticket.key.invariant in _BY_DATABASE:
        name = ticket.key.component.removesuffix(" advisory locks")
        return None if "…" in name else name
    found = ticket.facts.get("database")
    return found if isinstance(found, str) and found else None


# ------------------------------------------------------------------ text of statements

_LITERAL = re.compile(
    r"""--[^\n]*|/\*.*?\*/|(?<![\w$])[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|\$(\w*)\$.*?\$\1\$""",
    re.DOTALL,
)
_WORD = re.compile(r'"((?:[^"]|"")+)"|([^\W\d]\w*)')
_CONDITIONS = re.compile(
    r"\b(?:where|on|using|and|or|having|by)\b(.{0,300})", re.IGNORECASE | re.DOTALL
)
_EXPLAINED = re.compile(r"(?:select|with|insert|update|delete|merge)\b", re.IGNORECASE)


def words_of(statement: str) -> list[str]:
    """Return the identifiers and key words of a statement, as the server folds them."""
    bare = _LITERAL.sub(" ", statement)
    return [
        quoted.replace('""', '"') if quoted else plain.lower()
        for quoted, plain in _WORD.findall(bare)
    ]


def single_statement(statement: str) -> str | None:
    """Return a SELECT, INSERT, UPDATE, DELETE or MERGE without a semicolon at its end; None for any other text."""
    bare = _LITERAL.sub(" ", statement).strip()
    ended = bare.rstrip("; \n\t\r")
    if ";" in ended or not _EXPLAINED.match(ended):
        return None
    if ended == bare:
        return statement
    # Nothing but blanks and comments is behind the last semicolon.
    return statement[: statement.rindex(";")]


# ------------------------------------------------------------------ tables


async def tables(concern: Concern) -> str:
    """Return the tables concerned: size, storage parameters, scans, indexes, and columns without one."""
    statements = await concern.statements()
    words = await concern.words()
    async with concern.database() as connection:
        found = await connection.rows(evidence_sql.TABLES, {"words": words})
        ids = [row["id"] for row in found]
        indexes = await connection.rows(evidence_sql.INDEXES, {"tables": ids})
        invalid = await connection.rows(evidence_sql.INVALID_INDEXES)
    lines = [
        line
        for row in found
        for line in _table(
            row, [one for one in indexes if one["id"] == row["id"]], statements
        )
    ]
    lines += [f"INVALID index {_named(row)}" for row in invalid]
    if not found:
        lines.append(
            f"no table of database {text(concern.database_name, 64)} is named in the statements concerned"
        )
    return "\n".join(lines)


def _named(row: Row) -> str:
    return f"{text(row['index'], 120)} of table {text(row['table'], 64)}"


def _table(row: Row, indexes: Sequence[Row], statements: Sequence[str]) -> list[str]:
    options = text(row["options"], 200)
    toast = text(row["toast_options"], 200)
    parts = [
        f"about {text(row['rows'])} rows, {text(row['size'])} with indexes by the catalog",
        f"storage parameters: {options or 'none'}{f', toast: {toast}' if toast else ''}",
        f"dead rows: {text(row['dead'])}",
        f"sequential scans: {text(row['seq_scan'])} (they read {text(row['seq_tup_read'])} rows)",
        f"index scans: {text(row['idx_scan'])}",
        f"last vacuum: {text(row['vacuumed']) or 'never'}",
        f"last analyze: {text(row['analyzed']) or 'never'}, rows changed since: {text(row['changed'])}",
    ]
    lines = [f"table {text(row['name'], 130)}: {'; '.join(parts)}"]
    lines += ["  " + _index(one) for one in indexes] or ["  it has no index"]
    first = {(one["columns"] or [""])[0] for one in indexes if one["valid"]}
    filtered = [
        column
        for column in conditions(row["columns"] or (), statements)
        if column not in first
    ]
    if filtered:
        names = ", ".join(text(one, 64) for one in filtered[:8])
        lines.append(
            f"  in conditions of the statements concerned, and no valid index begins with it: {names}"
        )
    return lines


def _index(row: Row) -> str:
    columns = ", ".join(text(one, 64) for one in row["columns"] or ())
    kind = "primary key" if row["primary"] else "unique" if row["unique"] else "index"
    scans = int(row["scans"] or 0)
    return (
        f"{kind} {text(row['name'], 64)} ({columns})"
        + (", partial" if row["partial"] else "")
        + ("" if row["valid"] else ", INVALID")
        + (f", {format_count(scans, 'scan')}" if scans else ", never used")
        + f", {text(row['size'])}"
    )


def conditions(columns: Sequence[str], statements: Sequence[str]) -> list[str]:
    """Return those of the columns that stand in a condition of the statements."""
    found: set[str] = set()
    for statement in statements:
        bare = _LITERAL.sub(" ", statement)
        for part in _CONDITIONS.findall(bare):
            found.update(words_of(part))
    return [column for column in columns if column in found]


# ------------------------------------------------------------------ statements


async def explain(concern: Concern) -> str:
    """Return the plans of the statements concerned, which are not run, or why there is none."""
    async with concern.database() as connection:
        parts = [
            f"statement: {text(one, 300)}\n{await _plan(connection, one, cut)}"
            for one, cut in (await _explained(concern, connection))[:2]
        ]
    return "\n\n".join(parts) or "no statement of these tickets can be explained"


async def _explained(
    concern: Concern, connection: Connection
) -> list[tuple[str, bool]]:
    """Return the statements to explain, each with whether its text is cut: that of the session where it still runs it."""
    found: dict[str, bool] = {}
    for ticket in concern.tickets:
        if ticket.key.invariant != "long_queries":
            continue
        rows = await connection.rows(
            evidence_sql.STATEMENT_OF, {"pid": ticket.facts.get("pid")}
        )
        shown = str(ticket.facts.get("query") or "")
        start = " ".join(shown.rstrip("…").split())[:200]
        if rows and " ".join(str(rows[0]["query"]).split()).startswith(start):
            found[str(rows[0]["query"])] = bool(rows[0]["cut"])
        elif shown:
            found[shown] = shown.endswith("…")
    return list(found.items())


async def _plan(connection: Connection, statement: str, cut: bool) -> str:
    single = single_statement(statement)
    if cut or single is None:
        why = (
            "its text is cut"
            if cut
            else "it is not a single SELECT, INSERT, UPDATE, DELETE or MERGE"
        )
        return f"not explained: {why}"
    try:
        reasons = await connection.rows(
            evidence_sql.PLANNED_CODE,
            {"words": words_of(single), "verb": _verb(single)},
        )
        if reasons:
            return (
                f"not explained: {', '.join(text(row['what'], 120) for row in reasons)}"
            )
        rows = await connection.plan(_explaining(single), evidence_sql.PLAN_LIMITS)
    except QueryFailed as error:
        return f"not explained: {error.message}"
    lines = [str(value).rstrip() for row in rows for value in row.values()]
    return bounded(["plan, estimated and not run:", *(line[:200] for line in lines)])


def _verb(statement: str) -> str:
    """Return the privilege that a statement needs, also for what it writes in a WITH."""
    words = words_of(statement)
    writes = (one for one in words if one in ("insert", "update", "delete", "merge"))
    verb = next(writes, "select") if words[0] != "select" else "select"
    return "UPDATE" if verb == "merge" else verb.upper()


def _explaining(statement: str) -> list[str]:
    """Return what explains a statement; with parameters, it is its generic plan."""
    bare = _LITERAL.sub(" ", statement)
    parameters = [int(one) for one in re.findall(r"\$(\d{1,5})", bare)]
    if not parameters:
        return [f"EXPLAIN {statement}"]
    # A prepared statement outlives the transaction; the connection ends soon.
    name = f"midwatch_{crc32(statement.encode(errors='replace'))}"
    values = ", ".join(["NULL"] * max(parameters))
    return [f"PREPARE {name} AS {statement}", f"EXPLAIN EXECUTE {name}({values})"]


async def top_statements(concern: Concern) -> str:
    """Return what pg_stat_statements counts, that of the tickets' statement first, or why it cannot be read."""
    async with concern.database() as connection:
        schema = await connection.rows(evidence_sql.STATEMENTS_SCHEMA)
        if not schema:
            return f"database {text(concern.database_name, 64)} has no extension pg_stat_statements"
        ids = await _query_ids(concern, connection)
        rows = await connection.rows(
            evidence_sql.statements(str(schema[0]["schema"])),
            {"id": ids[0] if ids else None},
        )
    return facts(rows) or "pg_stat_statements has counted nothing in this database"


async def _query_ids(concern: Concern, connection: Connection) -> list[int]:
    pids = [ticket.facts.get("pid") for ticket in concern.tickets]
    found = []
    for pid in filter(None, pids):
        for row in await connection.rows(evidence_sql.STATEMENT_OF, {"pid": pid}):
            if row["query_id"]:
                found.append(int(row["query_id"]))
    return found


# ------------------------------------------------------------------ roles


async def role_settings(concern: Concern) -> str:
    """Return what is set for the roles and databases concerned, and limits of the roles. Values that may be secret are withheld."""
    async with concern.database() as connection:
        roles = concern.facts(*_ROLES)
        rows = await connection.rows(sql.ACTIVITY)
        roles += [str(row["usename"]) for row in rows if row["usename"]]
        names = {
            "roles": list(dict.fromkeys(roles)),
            "databases": [concern.database_name],
        }
        found = await connection.rows(evidence_sql.ROLE_SETTINGS, names)
        limits = await connection.rows(evidence_sql.ROLE_LIMITS, names)
    lines = [_role_setting(row) for row in found]
    if limits:
        lines.append(facts(limits))
    return "\n".join(lines) or "nothing is set for single roles and databases"


# Applications keep secrets in settings of their own, whose names have a dot: these are not known.
_SECRET = re.compile(r"pass|secret|key|token|pepper|salt|credential", re.IGNORECASE)


def _role_setting(row: Mapping[str, object]) -> str:
    whom = " ".join(
        f"{kind} {text(row[kind], 64)}" for kind in ("role", "database") if row[kind]
    )
    name = text(row["setting"], 80)
    shown = row["known"] and not _SECRET.search(name)
    value = text(row["value"], 120) if shown else "(a value, withheld)"
    return f"{whom or 'all roles'}: {name} = {value}"
