"""The tools of a MariaDB or MySQL server: what Claude may ask it in an investigation.

Each call has a connection of its own that only reads, with a limit of time for each statement and for each lock.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from pydantic import Field

from midwatch.model import Origin
from midwatch.subjects.mysql import sql, tool_sql
from midwatch.subjects.mysql.connection import Connection
from midwatch.subjects.mysql.error_log import log_around, log_place
from midwatch.subjects.mysql.evidence_text import (
    CLIENT_TEXT,
    activity,
    innodb_sections,
    lock_tree,
)
from midwatch.subjects.mysql.locks import lock_waits, sessions_of
from midwatch.subjects.mysql.settings import MysqlSettings
from midwatch.subjects.mysql.snapshot import take, value_of
from midwatch.subjects.rows import Row, facts, text
from midwatch.subjects.select_guard import Admitted
from midwatch.subjects.tools import Answer, Arguments, Refused, Tool
from midwatch.text import one_line, reported

_ROWS = 100  # of a result
_CELL = 400  # characters of a value
# Types of values that no client can have written a sentence into: numbers, times, bits.
_MEASURED = frozenset((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 246))
# Tables of the server with text of clients: statements, and what they call themselves.
_WRITTEN = re.compile(
    r"processlist|innodb_trx|threads|events_statements|events$|triggers|routines|views|error_log|host_cache"
)
# What a client cannot have written in them.
_STATES = re.compile(
    r"[A-Za-z][A-Za-z ]{0,40} (?:lock|table|event|data|index|thread|list)s?"
)


_SECRET = frozenset(("report_password", "wsrep_sst_auth", "init_connect"))


class Select(Arguments):
    query: str = Field(description="One SELECT. Tables have a database: shop.orders.")


class Table(Arguments):
    table: str = Field(description="database.table", max_length=130)


class Variables(Arguments):
    names: list[str] = Field(
        description="Names of variables or status counters; * stands for any characters.",
        min_length=1,
        max_length=20,
    )


class Section(Arguments):
    section: str = Field(
        "TRANSACTIONS",
        description="TRANSACTIONS, LATEST DETECTED DEADLOCK, LATEST FOREIGN KEY ERROR, SEMAPHORES, LOG, FILE I/O, "
        "BUFFER POOL AND MEMORY, ROW OPERATIONS.",
        max_length=60,
    )


class Nothing(Arguments):
    pass


class LogWindow(Arguments):
    contains: str | None = Field(
        None, description="Only lines with this text.", max_length=200
    )


class MysqlTools:
    """The tools of one server."""

    def __init__(self, settings: MysqlSettings) -> None:
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
                Select,
                self._explain,
            ),
            tool("processlist", _PROCESSLIST, Nothing, self._processlist),
            tool(
                "innodb_status",
                "A section of SHOW ENGINE INNODB STATUS.",
                Section,
                self._innodb_status,
            ),
            tool(
                "table",
                "A table: engine, estimated rows, columns, indexes.",
                Table,
                self._table,
            ),
            tool(
                "variables",
                "Global variables and status counters.",
                Variables,
                self._variables,
            ),
            tool(
                "log_window",
                "Lines at the end of the server's error log.",
                LogWindow,
                self._log_window,
            ),
        )

    # ------------------------------------------------------------------ the statements of others

    async def _select(self, asked: Select) -> Answer:
        from midwatch.subjects.mysql.select_guard import admit, is_of_server

        admitted = admit(asked.query)
        async with self._connection() as connection:
            await self._check_tables(connection, admitted)
            columns = await connection.columns(
                f"SELECT * FROM ({admitted.text}) AS q LIMIT 0"
            )
            names = [name for name, _ in columns]
            rows = await connection.rows(_bounded(admitted.text, names))
        own = any(not is_of_server(schema) for schema, _ in admitted.tables)
        written = own and any(type_ not in _MEASURED for _, type_ in columns)
        marked = any(_WRITTEN.search(name) for _, name in admitted.tables)
        return Answer(
            admitted.text,
            _table_text(names, rows, marked=marked),
            Origin.REPORTED if written else Origin.SYSTEM,
        )

    async def _explain(self, asked: Select) -> Answer:
        from midwatch.subjects.mysql.select_guard import admit

        admitted = admit(asked.query)
        command = f"EXPLAIN {admitted.text}"
        async with self._connection() as connection:
            await self._check_tables(connection, admitted)
            rows = await connection.rows(command)
        return Answer(command, facts(rows))

    async def _check_tables(self, connection: Connection, admitted: Admitted) -> None:
        """Raise Refused for what is not a table of this server: a view runs functions of users, a federated table leads elsewhere."""
        from midwatch.subjects.mysql.select_guard import is_of_server

        own = sorted(one for one in admitted.tables if not is_of_server(one[0]))
        if not own:
            return
        found = await connection.rows(
            tool_sql.RELATIONS,
            [[schema for schema, _ in own], [name for _, name in own]],
        )
        known = {(row["db"], row["name"]): row for row in found}
        for one in own:
            name = one_line(".".join(one), 130)
            if one not in known:
                raise Refused(f"there is no table {name} that the account sees")
            if not known[one]["admitted"]:
                raise Refused(
                    f"{name} is not a table of this server: select from those that it reads"
                )

    # ------------------------------------------------------------------ our own statements

    async def _processlist(self, asked: Nothing) -> Answer:
        async with self._connection() as connection:
            seen = await take(connection)
        shown = f"{lock_tree(lock_waits(seen))}\n{activity(sessions_of(seen))}"
        return Answer(
            "processlist with InnoDB's transactions and lock waits",
            shown,
            reported=CLIENT_TEXT,
        )

    async def _innodb_status(self, asked: Section) -> Answer:
        async with self._connection() as connection:
            [row] = await connection.rows("SHOW ENGINE INNODB STATUS")
        sections = innodb_sections(str(row["Status"]))
        if asked.section.upper() not in sections:
            raise Refused(
                f"there is no such section now; there are {', '.join(sections)}"
            )
        command = f"SHOW ENGINE INNODB STATUS, section {asked.section.upper()}"
        return Answer(command, sections[asked.section.upper()], Origin.REPORTED)

    async def _table(self, asked: Table) -> Answer:
        schema, _, name = asked.table.rpartition(".")
        parts = []
        async with self._connection() as connection:
            for title, statement in tool_sql.TABLE_PARTS.items():
                if rows := await connection.rows(statement, [schema, name]):
                    parts.append(f"{title}:\n{facts(rows)}")
                elif not parts:
                    raise Refused(
                        f"there is no table {one_line(asked.table, 130)} that the account sees"
                    )
        return Answer(f"table {asked.table}", "\n".join(parts))

    async def _variables(self, asked: Variables) -> Answer:
        patterns = [
            re.sub(r"([%_|])", r"|\1", one).replace("*", "%") for one in asked.names
        ]
        condition = " OR ".join(["Variable_name LIKE %s ESCAPE '|'"] * len(patterns))
        lines = []
        async with self._connection() as connection:
            for kind in ("VARIABLES", "STATUS"):
                rows = await connection.rows(
                    f"SHOW GLOBAL {kind} WHERE {condition}", patterns
                )
                lines += [
                    f"{text(row['Variable_name'], 80)}: {text(row['Value'], 200)}"
                    for row in rows[:100]
                    if str(row["Variable_name"]).lower() not in _SECRET
                ]
        return Answer(
            f"SHOW GLOBAL VARIABLES and STATUS LIKE {asked.names}", "\n".join(lines)
        )

    async def _log_window(self, asked: LogWindow) -> Answer:
        """Read the end of the log, which needs no server where log_file is set."""
        place = str(self._settings.log_file or "")
        if not place:
            async with self._connection() as connection:
                rows = await connection.rows(sql.SHOW_VARIABLES)
            place = log_place(
                self._settings, value_of(rows, "log_error"), value_of(rows, "datadir")
            )
        lines = (await log_around(place, None)).splitlines()
        wanted = [one for one in lines if not asked.contains or asked.contains in one]
        command = f"the end of {place}" + (
            f", lines with {asked.contains!r}" if asked.contains else ""
        )
        return Answer(command, "\n".join(wanted[-_ROWS:]), Origin.REPORTED)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        async with Connection(self._settings) as connection:
            yield connection


_SELECT = (
    "Rows of one SELECT: information_schema, performance_schema, and tables of users that the account may read (no views). "
    "Few functions; each column has a name of its own."
)
_PROCESSLIST = "Sessions with their transactions, and who waits for whom."


def _bounded(statement: str, names: Sequence[str]) -> str:
    """Return the statement with few rows and short values, whatever it selects. Raises Refused for two columns of one name."""
    folded = [name.lower() for name in names]
    if len(set(folded)) < len(folded):
        raise Refused("give each column a name of its own with AS")
    quoted = ["`" + name.replace("`", "``") + "`" for name in names]
    short = ", ".join(f"LEFT(q.{name}, {_CELL}) AS {name}" for name in quoted)
    return f"SELECT {short} FROM ({statement}) AS q LIMIT {_ROWS + 1}"


def _table_text(names: Sequence[str], rows: Sequence[Row], *, marked: bool) -> str:
    """Return a row a line, each value with its name.

    With `marked`, values of several words are marked as what a client wrote, but for states of the server.
    """

    def shown(value: object) -> str:
        cell = _cell(value)
        written = marked and isinstance(value, str) and " " in value
        return reported(cell) if written and not _STATES.fullmatch(str(value)) else cell

    lines = [
        " ".join(f"{_cell(name)}={shown(row[name])}" for name in names)
        for row in rows[:_ROWS]
    ]
    if len(rows) > _ROWS:
        lines.append(f"… and more rows: only {_ROWS} are shown")
    return "\n".join(lines)


def _cell(value: object) -> str:
    """Return a value that cannot be taken for more than one."""
    if value is None:
        return "NULL"
    said = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    plain = re.fullmatch(r"[\w.:+/@,{}()*%-]+", said)
    return said if plain and said != "NULL" else json.dumps(said, ensure_ascii=False)
