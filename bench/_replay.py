"""The floor: exactly the statements that our store ran, replayed on the bare driver.

Both start from copies of one database, so ids, plans and amounts of data are the same.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Any

import psycopg
from sqlalchemy import Engine, event

COMMIT = "COMMIT"
Trace = list[tuple[str, Any, bool]]
"""Statements with their parameters, and whether these are many rows of them."""


def record(engine: Engine) -> tuple[Trace, Callable[[], None]]:
    """Record the statements of this engine from now on; return the trace and the function that ends it."""
    trace: Trace = []

    def statement(
        connection: Any, cursor: Any, sql: str, values: Any, context: Any, many: bool
    ) -> None:
        trace.append((sql, values, many))

    def commit(connection: Any) -> None:
        trace.append((COMMIT, None, False))

    listeners = (("before_cursor_execute", statement), ("commit", commit))
    for name, listener in listeners:
        event.listen(engine, name, listener)

    def end() -> None:
        for name, listener in listeners:
            event.remove(engine, name, listener)

    return trace, end


def replay_on_sqlite(file: str, trace: Trace, warm: int) -> float:
    """Return the seconds on `sqlite3`, with the pragmas of our store, for what follows `warm` statements."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    _replay_on_sqlite(connection, trace[:warm])
    start = time.perf_counter()
    _replay_on_sqlite(connection, trace[warm:])
    seconds = time.perf_counter() - start
    connection.close()
    return seconds


def _replay_on_sqlite(connection: sqlite3.Connection, trace: Trace) -> None:
    for sql, values, many in trace:
        if sql == COMMIT:
            connection.execute(COMMIT)
        elif many:
            connection.executemany(sql, values)
        else:
            connection.execute(sql, values).fetchall()


async def replay_on_postgres(dsn: str, trace: Trace, warm: int) -> float:
    """Return the seconds on `psycopg`, asynchronously, on one connection, for what follows `warm` statements."""
    connection = await psycopg.AsyncConnection.connect(dsn)
    async with connection:
        await _replay_on_postgres(connection, trace[:warm])
        start = time.perf_counter()
        await _replay_on_postgres(connection, trace[warm:])
        return time.perf_counter() - start


async def _replay_on_postgres(
    connection: psycopg.AsyncConnection[Any], trace: Trace
) -> None:
    async with connection.cursor() as cursor:
        for sql, values, many in trace:
            if sql == COMMIT:
                await connection.commit()
            elif many:
                await cursor.executemany(sql.encode(), values)
            else:
                await cursor.execute(sql.encode(), values)
                if cursor.description:
                    await cursor.fetchall()
