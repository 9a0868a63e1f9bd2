"""Where transactions run: SQLite on a thread of its own, PostgreSQL on an async pool.

The statements are written once, as plain functions of a `Connection`. On SQLite a whole
transaction is one hop to a thread, where the async adapter would need one for every cursor
call (docs/architecture.md has the figures).
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy import (
    Connection,
    CursorResult,
    Engine,
    Executable,
    Insert,
    Row,
    Table,
    create_engine,
    event,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from midwatch.errors import SettingsError, StoreUnavailable
from midwatch.model import Json
from midwatch.store.errors import translated
from midwatch.store.schema import audit, database_now, dump_json

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

P = ParamSpec("P")
T = TypeVar("T")

_BEGIN = "midwatch_begin"
_PRAGMAS = ("synchronous=FULL", "foreign_keys=ON")
SQLITE_BUSY_SECONDS = 3.0
POSTGRES_SECONDS = 10.0
"""Longest statement; a connection is given half of it to be made."""


class Transactions(Protocol):
    """Runs functions of a connection, each in one transaction."""

    dialect: str

    async def run(
        self,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T: ...

    async def read(
        self,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Like `run`, for a function that writes nothing: it waits for no writer."""
        ...

    async def close(self) -> None: ...


def parse_database(database: str) -> URL:
    """The URL of a supported database. Raises SettingsError that never shows a password."""
    hint = "write sqlite:///FILE or postgresql://USER@HOST/DATABASE"
    try:
        url = make_url(database)
    except (ArgumentError, ValueError):
        raise SettingsError("is no database URL", path="database", hint=hint) from None
    kind = url.get_backend_name()
    if kind == "sqlite":
        return url.set(drivername="sqlite")
    if kind in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    raise SettingsError(
        f"{kind} is not a supported database", path="database", hint=hint
    )


def open_transactions(url: URL) -> Transactions:
    """The right way to run transactions on this database. Does not connect yet."""
    if url.get_backend_name() == "sqlite":
        return SqliteTransactions(url)
    return PostgresTransactions(url)


class SqliteTransactions:
    """A transaction that may write begins immediate: one that reads first and writes later
    would fail with BUSY_SNAPSHOT whatever the time-out."""

    dialect = "sqlite"

    def __init__(self, url: URL) -> None:
        self._file = url.database if url.database not in (None, "", ":memory:") else ""
        self.engine = sqlite_engine(url)
        self._reader = self.engine.execution_options(**{_BEGIN: "BEGIN"})
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="midwatch-sqlite")
        self._lock = threading.Lock()
        self._identity: tuple[int, int] | None = None
        self._closed = False

    async def run(
        self,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        call = self._call(self.engine, function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def read(
        self,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        call = self._call(self._reader, function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _call(
        self,
        engine: Engine,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Callable[[], T]:
        def call() -> T:
            with translated(self._file), self._lock:
                self._follow_file()
                with engine.begin() as connection:
                    self._identity = self._identity or _identity(self._file)
                    return function(connection, *args, **kwargs)

        return call

    def _follow_file(self) -> None:
        """A file that was removed or replaced under us would swallow our writes."""
        if self._identity is None or self._identity == (found := _identity(self._file)):
            return
        self.engine.dispose()
        if found is None:
            raise StoreUnavailable(
                f"the database file {self._file} is gone", hint="put it back"
            )
        self._identity = found

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self.engine.dispose)
        self._thread.shutdown(wait=True)


def sqlite_engine(url: URL) -> Engine:
    """A synchronous SQLite engine with our pragmas. The file is made readable by its owner only."""
    memory = url.database in (None, "", ":memory:")
    options: dict[str, Any] = {"poolclass": StaticPool} if memory else {}
    engine = create_engine(
        url,
        json_serializer=dump_json,
        connect_args={"timeout": SQLITE_BUSY_SECONDS, "check_same_thread": False},
        **options,
    )

    @event.listens_for(engine, "do_connect")
    def before(dialect: Any, record: Any, args: Any, kwargs: Any) -> None:
        if not memory and url.database is not None:
            _create_private(url.database)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # begin is ours, see below
        pragmas = [*_PRAGMAS, *(() if memory else ("journal_mode=WAL",))]
        try:
            for pragma in pragmas:
                connection.execute(f"PRAGMA {pragma}").close()
        except sqlite3.Error:
            connection.close()  # not a database, or locked: nobody else would close it
            raise

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        connection.exec_driver_sql(options.get(_BEGIN, "BEGIN IMMEDIATE"))

    return engine


def _identity(path: str) -> tuple[int, int] | None:
    """Which file the path leads to; None for no file, or memory."""
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _create_private(path: str) -> None:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise StoreUnavailable(
            f"cannot open the database file {path}: {error.strerror}",
            hint="its folder must exist and be writable",
        ) from error


class PostgresTransactions:
    """A small pool; connections are checked before use, so a restarted server is no event."""

    dialect = "postgresql"

    def __init__(self, url: URL) -> None:
        self._url = url
        self._engine: AsyncEngine | None = None
        self._abandoned: set[asyncio.Task[Any]] = set()

    @property
    def engine(self) -> AsyncEngine:
        if self._engine is None:
            from sqlalchemy.ext.asyncio import create_async_engine

            milliseconds = int(POSTGRES_SECONDS * 1000)
            self._engine = create_async_engine(
                self._url,
                pool_size=4,
                max_overflow=4,
                pool_timeout=POSTGRES_SECONDS,
                pool_pre_ping=True,
                json_serializer=dump_json,
                connect_args={
                    "connect_timeout": int(POSTGRES_SECONDS / 2),
                    "application_name": "midwatch",
                    "options": f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds // 2}"
                    f" -c idle_in_transaction_session_timeout={milliseconds * 3}",
                    "tcp_user_timeout": milliseconds,
                },
            )
        return self._engine

    async def run(
        self,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        task = asyncio.ensure_future(self._transaction(function, *args, **kwargs))
        try:
            await asyncio.wait({task}, timeout=2 * POSTGRES_SECONDS)
        except asyncio.CancelledError:
            self._abandon(task)
            raise
        if not task.done():
            self._abandon(task)
            raise StoreUnavailable("the database did not answer in time")
        return task.result()

    async def _transaction(
        self,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        with translated():
            async with self.engine.begin() as connection:
                return await connection.run_sync(function, *args, **kwargs)

    def _abandon(self, task: asyncio.Task[Any]) -> None:
        """End it without waiting: on a frozen server psycopg takes ten seconds to give up."""
        self._abandoned.add(task)
        task.add_done_callback(self._forget)
        task.cancel()

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._abandoned.discard(task)
        if not task.cancelled():
            task.exception()  # taken note of: nobody else waits for it

    async def read(
        self,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        return await self.run(function, *args, **kwargs)

    async def close(self) -> None:
        if self._abandoned:
            for task in self._abandoned:
                task.cancel()
            await asyncio.wait(self._abandoned.copy(), timeout=1)
        if self._engine is not None:
            try:
                await self._engine.dispose()
            except SQLAlchemyError:
                pass  # the connections are gone with the server


# ------------------------------------------------------------ work
# One transaction as the statements see it: a connection and the moment it happens at.

DatabaseClock = Callable[[Connection], datetime]
CLOCK_SLACK = timedelta(seconds=5)
"""What was set further in the future than this is from before the clock went back, and void."""


@dataclass(eq=False)
class Transaction:
    """Statements of one transaction; `now` is asked of the database at most once."""

    connection: Connection
    clock: DatabaseClock

    @cached_property
    def now(self) -> datetime:
        return self.clock(self.connection)

    def execute(
        self, statement: Executable, values: Json | Sequence[Json] | None = None
    ) -> CursorResult[Any]:
        """Run a statement; `values` are its parameters, or one row of them each."""
        return self.connection.execute(statement, values)

    def one(self, statement: Executable, values: Json | None = None) -> Row[Any] | None:
        return self.connection.execute(statement, values).first()

    def all(
        self, statement: Executable, values: Json | None = None
    ) -> Sequence[Row[Any]]:
        return self.connection.execute(statement, values).all()

    def insert_or_update(
        self, table: Table, row: Json, update: Json | None = None
    ) -> None:
        """Insert `row`; where its primary key exists, set `update`, or leave it alone if None."""
        insert: Any = self._insert(table).values(row)
        key = list(table.primary_key.columns)
        statement: Insert = (
            insert.on_conflict_do_nothing(index_elements=key)
            if update is None
            else insert.on_conflict_do_update(index_elements=key, set_=update)
        )
        self.execute(statement)

    def insert_new(self, table: Table, rows: Sequence[Json]) -> None:
        """Insert rows; one that a unique index has already is left out."""
        self.execute(self._insert(table).on_conflict_do_nothing(), rows)

    def _insert(self, table: Table) -> Any:
        """An insert that knows ON CONFLICT."""
        if self.connection.dialect.name == "postgresql":
            from sqlalchemy.dialects import postgresql  # slow to import

            return postgresql.insert(table)
        return sqlite.insert(table)

    def note(self, rows: Sequence[Json]) -> None:
        """Append audit rows; their time is now."""
        if rows:
            self.execute(audit.insert(), [{"at": self.now, **row} for row in rows])


def audit_row(
    ticket_id: int,
    actor: str,
    action: str,
    before: str | None,
    after: str | None,
    why: str = "",
) -> Json:
    return {
        "ticket_id": ticket_id,
        "actor": actor,
        "action": action,
        "before": before,
        "after": after,
        "why": why,
    }


# ------------------------------------------------------------ on_sql
# Where async methods hand their statements to a transaction: shared by all that is on SQL.


class TransactionalStore:
    """Runs functions of `Work`, each in one transaction. `clock` stands in for the
    database's clock in tests."""

    def __init__(
        self, transactions: Transactions, clock: DatabaseClock = database_now
    ) -> None:
        self.transactions = transactions
        self._clock = clock

    async def _run(
        self,
        function: Callable[Concatenate[Transaction, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        def transaction(connection: Connection) -> T:
            return function(Transaction(connection, self._clock), *args, **kwargs)

        return await self.transactions.run(transaction)

    async def _read(
        self,
        function: Callable[Concatenate[Transaction, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Like `_run`, for a function that writes nothing: it waits for no writer."""

        def transaction(connection: Connection) -> T:
            return function(Transaction(connection, self._clock), *args, **kwargs)

        return await self.transactions.read(transaction)
