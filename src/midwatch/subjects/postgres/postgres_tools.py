"""The tools of a PostgreSQL server: what Claude may ask it in an investigation.

Each call has a connection of its own, that only reads, with a limit of time for every statement and for every
lock that a statement waits for. The names of functions and operators are those of pg_catalog alone.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from pydantic import Field

from midwatch.errors import MidwatchError, ObservationFailed
from midwatch.model import Origin
from midwatch.subjects.postgres import tool_sql as sql
from midwatch.subjects.postgres.connection import Connection, in_database
from midwatch.subjects.postgres.log import window
from midwatch.subjects.postgres.settings import PostgresSettings
from midwatch.subjects.rows import Row, facts
from midwatch.subjects.tools import Answer, Arguments, Refused, Tool
from midwatch.text import one_line, reported

_ROWS = 100  # of a result
_CELL = 400  # characters of a value
_LOCK_WAIT = 0.5  # seconds
_MOST_KEPT = 100_000_000  # bytes that a step of a plan may keep, such as a sort
# Types of values that no client can have written a sentence into: numbers, times, truth values, ids.
_MEASURED = frozenset(
    (16, 18, 20, 21, 23, 26, 28, 700, 701, 1082, 1083, 1114, 1184, 1186, 1700)
    + (2206, 3220, 5069)
)
# Catalogs with text of clients: statements, names of applications, comments, values of rows.
_WRITTEN = frozenset(
    ("pg_stat_activity", "pg_stat_replication", "pg_stat_statements", "pg_stats")
    + ("pg_prepared_xacts", "pg_description", "pg_proc", "pg_replication_slots")
)
_STATES = frozenset(
    ("idle in transaction", "idle in transaction (aborted)", "fastpath function call")
    + ("client backend", "autovacuum worker", "autovacuum launcher", "parallel worker")
    + (
        "background writer",
        "logical replication launcher",
        "logical replication worker",
    )
)
_KEEPING = frozenset(("Sort", "Hash", "Materialize", "Aggregate", "WindowAgg", "SetOp"))


class _InDatabase(Arguments):
    database: str | None = Field(
        None, description="Another database of the server.", max_length=63
    )


class Select(_InDatabase):
    query: str = Field(description="One SELECT. Tables have a schema: public.orders.")


class Explain(_InDatabase):
    query: str = Field(description="One SELECT; $1 may stand for values.")


class Table(_InDatabase):
    table: str = Field(description="schema.table", max_length=130)


class Settings(Arguments):
    names: list[str] = Field(
        description="Names; * stands for any characters.", min_length=1, max_length=20
    )


class LogWindow(Arguments):
    since: str | None = Field(None, description="As the log writes times.")
    until: str | None = Field(None, description="The same.")
    contains: str | None = Field(None, description="Only lines with this text.")


class PostgresTools:
    """The tools of one server."""

    def __init__(self, settings: PostgresSettings) -> None:
        self._settings = settings

    def tools(self) -> Sequence[Tool]:
        """Return the tools."""
        limit = (
            self._settings.connect_timeout + self._settings.statement_timeout * 4 + 2
        )

        def tool(name: str, about: str, arguments: Any, run: Any) -> Tool:
            return Tool(name, about, arguments, run, limit)

        return (
            tool("select", _SELECT, Select, self._select),
            tool(
                "explain",
                "The plan of a SELECT, without running it.",
                Explain,
                self._explain,
            ),
            tool("table", _TABLE, Table, self._table),
            tool(
                "settings",
                "Settings of the server, with unit and source.",
                Settings,
                self._read_settings,
            ),
            tool(
                "log_window", "Lines of the server's log.", LogWindow, self._log_window
            ),
        )

    # ------------------------------------------------------------------ the statements of others

    async def _select(self, asked: Select) -> Answer:
        from midwatch.subjects.postgres.select_guard import admit

        admitted = admit(asked.query)
        async with self._connection(asked.database) as connection:
            await self._check_tables(connection, admitted.tables)
            async with connection.reading():
                plan = await connection.rows(f"EXPLAIN (FORMAT JSON) {admitted.text}")
                _check_plan(plan[0]["QUERY PLAN"])
                await self._check_tables(connection, admitted.tables)
                shape = await connection.execute(
                    f"SELECT * FROM ({admitted.text}) AS q LIMIT 0"
                )
                columns = shape.description or []
                rows = await connection.rows(_bounded(admitted.text, len(columns)))
        own = not all(_is_catalog(*table) for table in admitted.tables)
        written = own and any(column.type_code not in _MEASURED for column in columns)
        return Answer(
            _in(asked.database, admitted.text),
            _table_text(
                [column.name for column in columns],
                rows,
                marked=any(name in _WRITTEN for _, name in admitted.tables),
            ),
            Origin.REPORTED if written else Origin.SYSTEM,
        )

    async def _explain(self, asked: Explain) -> Answer:
        from midwatch.subjects.postgres.select_guard import admit

        admitted = admit(asked.query, parameters=True)
        async with self._connection(asked.database, narrow=False) as connection:
            generic = ""
            if "$" in admitted.text:
                if connection.version < 160000:
                    raise Refused("a plan with parameters needs PostgreSQL 16 or later")
                generic = " (GENERIC_PLAN)"
            command = f"EXPLAIN{generic} {admitted.text}"
            await self._check_tables(connection, admitted.tables)
            async with connection.reading():
                rows = await connection.rows(command)
        lines = [str(row["QUERY PLAN"])[:500] for row in rows[:200]]
        return Answer(_in(asked.database, command), "\n".join(lines))

    async def _check_tables(
        self, connection: Connection, tables: frozenset[tuple[str, str]]
    ) -> None:
        """Raise Refused for what is not a table of the database or an admitted one of the server.

        A view or a policy of a user runs functions of the user, and a foreign table leads elsewhere.
        """
        from midwatch.subjects.postgres.select_guard import CATALOGS

        own = sorted(one for one in tables if not _is_catalog(*one))
        for schema, name in tables:
            if _is_catalog(schema, name) and name not in CATALOGS:
                raise Refused(
                    f"{one_line(name, 80)} is not a table that is admitted; those of users have a schema: public.orders"
                )
        if not own:
            return
        if await connection.rows(sql.USER_CASTS):
            raise Refused("this database has casts that run functions of users")
        names = {"schemas": [s for s, _ in own], "names": [n for _, n in own]}
        known = {
            (row["schema"], row["name"]): row
            for row in await connection.rows(sql.RELATIONS, names)
        }
        for one in own:
            if one not in known:
                raise Refused(f"there is no table {one_line('.'.join(one), 130)}")
            if not known[one]["admitted"]:
                raise Refused(
                    f"{one_line('.'.join(one), 130)} is not a table: select from those that it reads"
                )
            if known[one]["runs_user_code"]:
                raise Refused(
                    f"an index or constraint of {one_line('.'.join(one), 130)} runs functions of users"
                )

    # ------------------------------------------------------------------ our own statements

    async def _table(self, asked: Table) -> Answer:
        schema, _, name = asked.table.rpartition(".")
        parameters = {"schema": schema or "public", "name": name}
        parts = []
        async with self._connection(asked.database) as connection:
            for title, statement in sql.TABLE_PARTS.items():
                if rows := await connection.rows(statement, parameters):
                    parts.append(f"{title}:\n{facts(rows)}")
                elif not parts:
                    raise Refused(f"there is no table {one_line(asked.table, 130)}")
        return Answer(_in(asked.database, f"table {asked.table}"), "\n".join(parts))

    async def _read_settings(self, asked: Settings) -> Answer:
        patterns = [
            re.sub(r"([%_\\])", r"\\\1", one).replace("*", "%") for one in asked.names
        ]
        async with self._connection(None) as connection:
            rows = await connection.rows(sql.SETTINGS, {"patterns": patterns})
        command = (
            f"SELECT name, setting, … FROM pg_settings WHERE name LIKE ANY ({patterns})"
        )
        return Answer(command, facts(rows))

    async def _log_window(self, asked: LogWindow) -> Answer:
        """Read the log, which on this machine needs no server that answers."""
        wanted = asked.model_dump(exclude_none=True)
        command = f"log_window {json.dumps(wanted, ensure_ascii=False)}"
        async with contextlib.AsyncExitStack() as stack:
            connection: Connection | None = None
            try:
                opened = Connection(self._settings)
                connection = await stack.enter_async_context(opened)
            except ObservationFailed:
                if self._settings.log_file is None:
                    raise
            lines = await window(self._settings, connection, **wanted)
        return Answer(command, lines, Origin.REPORTED)

    @contextlib.asynccontextmanager
    async def _connection(
        self, database: str | None, *, narrow: bool = True
    ) -> AsyncIterator[Connection]:
        """Yield a connection to the database, or to another one of this server.

        With `narrow` its statements get little memory and no parallel workers, which also changes their plans.
        """
        settings = self._settings
        if database is not None:
            async with Connection(settings) as connection:
                if not await connection.rows(sql.IS_DATABASE, {"name": database}):
                    raise Refused(f"there is no database {one_line(database, 63)}")
            settings = in_database(settings, database)
        async with Connection(settings) as connection:
            wait = min(_LOCK_WAIT, self._settings.statement_timeout)
            await connection.rows(sql.SETUP, {"lock": str(round(wait * 1000))})
            if narrow:
                await connection.rows(sql.NARROW)
                with contextlib.suppress(MidwatchError):  # a superuser may
                    await connection.rows(sql.TEMPORARY)
            yield connection


_SELECT = (
    "Rows of one SELECT: catalogs, statistics views, and tables of users (no views of users). Few functions; "
    "none for sizes: relpages * 8192 in pg_class."
)
_TABLE = "A table: storage parameters, statistics, columns, indexes with their use, triggers, constraints."


def _in(database: str | None, command: str) -> str:
    return f"{command} -- in database {database}" if database else command


def _is_catalog(schema: str, name: str) -> bool:
    return schema in ("", "pg_catalog")


def _bounded(statement: str, columns: int) -> str:
    """Return the statement with few rows and short values, whatever it selects."""
    names = [f"c{number}" for number in range(columns)]
    short = ", ".join(f"left(q.{name}::text, {_CELL}) AS {name}" for name in names)
    return (
        f"SELECT {short} FROM ({statement}) AS q({', '.join(names)}) LIMIT {_ROWS + 1}"
    )


def _table_text(names: Sequence[str], rows: Sequence[Row], *, marked: bool) -> str:
    """Return a row a line, each value with its name.

    With `marked`, values of several words are marked as what a client wrote, but for states of the server.
    """

    def shown(value: str | None) -> str:
        written = marked and value and " " in value and value not in _STATES
        return reported(_cell(value)) if written else _cell(value)

    lines = [
        " ".join(f"{_cell(name)}={shown(row[f'c{n}'])}" for n, name in enumerate(names))
        for row in rows[:_ROWS]
    ]
    if len(rows) > _ROWS:
        lines.append(f"… and more rows: only {_ROWS} are shown")
    return "\n".join(lines)


def _cell(value: str | None) -> str:
    """Return a value that cannot be taken for more than one."""
    if value is None:
        return "NULL"
    plain = re.fullmatch(r"[\w.:+/@,{}()*%-]+", value)
    return value if plain and value != "NULL" else json.dumps(value, ensure_ascii=False)


def _check_plan(plan: Any) -> None:
    """Raise Refused for a plan that leaves the server, or keeps much in memory or on disk."""
    steps = [
        step["Plan"] for step in (json.loads(plan) if isinstance(plan, str) else plan)
    ]
    while steps:
        step: Mapping[str, Any] = steps.pop()
        steps += step.get("Plans", ())
        kind = step["Node Type"]
        kept = step["Plan Rows"] * step["Plan Width"]
        if kind == "Foreign Scan":
            raise Refused("it reads a foreign table, which is on another server")
        if kind in _KEEPING and kept > _MOST_KEPT:
            raise Refused(f"its {kind} would keep {kept:,} bytes: narrow it down")
