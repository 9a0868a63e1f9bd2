"""Transactions on SQLite, a file or memory: one at a time, on one thread."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from midwatch.errors import StoreUnavailable
from midwatch.store.errors import map_database_errors
from midwatch.store.rows import document_of
from midwatch.store.schema import dump_json

P = ParamSpec("P")
T = TypeVar("T")

_Identity = tuple[int, int] | None
_BEGIN = "midwatch_begin"
_CLOSING = "midwatch_closing"
_PRAGMAS = ("synchronous=FULL", "foreign_keys=ON")
SQLITE_BUSY_SECONDS = 3.0
"""The longest wait for another process's transaction, in seconds."""
_SQLITE_RETRY_SECONDS = 0.005
"""The mean wait between two attempts to begin a transaction that may write."""
SQLITE_MIGRATION_SECONDS = 300.0
"""The longest wait for another process's transaction before a migration, which the other may be making, in seconds."""


@dataclass(frozen=True, slots=True)
class Renewal:
    """What is done about a SQLite file that was deleted or replaced while it was open.

    `make` makes the tables that are missing in the new file; `told` gets one line for a person, on the thread of
    the database.
    """

    make: Callable[[Connection], object]
    told: Callable[[str], object]


class SqliteTransactions:
    """Transactions on a SQLite file or in memory, one at a time.

    A transaction that may write begins immediate: one that reads first and writes later would
    fail with BUSY_SNAPSHOT whatever the timeout (sqlite.org/rescode.html).

    Args:
        url: The database.
        renew: What is done about a file that was deleted or replaced meanwhile. Without it a deleted file is
            not made again.
    """

    dialect = "sqlite"

    def __init__(self, url: URL, renew: Renewal | None = None) -> None:
        self.notice = ""
        self.listeners: list[Callable[[], object]] = []
        self._renew = renew
        self._file = url.database if url.database not in (None, "", ":memory:") else ""
        self.engine = sqlite_engine(url)
        self._reader = self.engine.execution_options(**{_BEGIN: "BEGIN"})
        self._closing = threading.Event()
        self._migrator = self.engine.execution_options(**{_CLOSING: self._closing})
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="midwatch-sqlite")
        self._lock = threading.Lock()
        self._identity: _Identity = None
        self._log_identity: _Identity = None

    async def run(
        self,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        return await self._on_thread(self.engine, function, *args, **kwargs)

    async def read(
        self,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        return await self._on_thread(self._reader, function, *args, **kwargs)

    async def migrate(self, function: Callable[[Connection], T]) -> T:
        return await self._on_thread(self._migrator, function)

    async def _on_thread(
        self,
        engine: Engine,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        def call() -> T:
            with map_database_errors(self._file), self._lock:
                self._check_file()
                with engine.begin() as connection:
                    self._identity = self._identity or _identity(self._file)
                    try:
                        return function(connection, *args, **kwargs)
                    finally:
                        self._log_identity = _identity(f"{self._file}-wal")

        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _check_file(self) -> None:
        """Open a file again that is not the one that is open: no other process sees what is written there.

        Raises:
            StoreUnavailable: The file is gone, or `renew` has just been called.
        """
        if self._identity is None:
            return
        found = _identity(self._file)
        if found == self._identity:
            if _identity(f"{self._file}-wal") != self._log_identity:
                self.engine.dispose()  # writes what the deleted log has into the file
            return
        self.engine.dispose()
        if self._renew is not None:
            self._make_again("deleted" if found is None else "replaced")
        if found is None:
            raise StoreUnavailable(
                f"the database file {self._file} is gone",
                hint="put it back; a daemon makes a new one",
            )
        self._identity = found

    def _make_again(self, what: str) -> NoReturn:
        assert self._renew is not None
        with self.engine.begin() as connection:
            self._renew.make(connection)
        self._identity = _identity(self._file)
        made = "a new one was made" if what == "deleted" else "the new one is used"
        text = f"the database file {self._file} was {what} while it was in use; {made}"
        self.notice = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC: {text}"
        self._renew.told(text)
        raise StoreUnavailable(
            text, hint="what is still broken gets new tickets; earlier ones are lost"
        )

    async def close(self) -> None:
        if self._closing.is_set():
            return
        self._closing.set()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self.engine.dispose)
        self._thread.shutdown(wait=True)


def sqlite_engine(url: URL) -> Engine:
    """Return a synchronous SQLite engine. A new file is readable by its owner only."""
    memory = url.database in (None, "", ":memory:")
    options: dict[str, Any] = {"poolclass": StaticPool} if memory else {}
    engine = create_engine(
        url,
        json_serializer=dump_json,
        json_deserializer=document_of,
        connect_args={"timeout": SQLITE_BUSY_SECONDS, "check_same_thread": False},
        **options,
    )

    @event.listens_for(engine, "do_connect")
    def before(dialect: Any, record: Any, args: Any, kwargs: Any) -> None:
        if not memory and url.database is not None:
            _create_private(url.database)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # `begin` below begins transactions
        try:
            for pragma in _PRAGMAS:
                connection.execute(f"PRAGMA {pragma}").close()
            if not memory:
                # Of two that do so with a new file SQLite lets one fail at once, whatever its timeout.
                wal = connection.execute, "PRAGMA journal_mode=WAL"
                _until_free(*wal, SQLITE_BUSY_SECONDS, threading.Event()).close()
        except sqlite3.Error:
            connection.close()  # SQLAlchemy does not close one that failed here
            raise

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if statement := options.get(_BEGIN):
            connection.exec_driver_sql(statement)
        elif closing := options.get(_CLOSING):
            _begin_immediate(connection, SQLITE_MIGRATION_SECONDS, closing)
        else:
            _begin_immediate(connection, SQLITE_BUSY_SECONDS, threading.Event())

    return engine


def _begin_immediate(
    connection: Connection, longest: float, closing: threading.Event
) -> None:
    """Take SQLite's write lock within `longest` seconds, with attempts at short random intervals.

    SQLite's own busy handler waits up to 100 ms between its attempts the longer it has waited. A process
    that has just arrived then finds the lock free before one that waits, which can fail after
    SQLITE_BUSY_SECONDS although no transaction is long. `closing` ends the wait.
    """
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA busy_timeout=0").close()
    try:
        _until_free(connection.exec_driver_sql, "BEGIN IMMEDIATE", longest, closing)
    finally:
        timeout = round(SQLITE_BUSY_SECONDS * 1000)
        driver.execute(f"PRAGMA busy_timeout={timeout}").close()


def _until_free(
    execute: Callable[[str], T],
    statement: str,
    longest: float,
    closing: threading.Event,
) -> T:
    """Execute a statement again and again while the file is locked, for `longest` seconds or until `closing`."""
    deadline = time.monotonic() + longest
    while True:
        try:
            return execute(statement)
        except (DBAPIError, sqlite3.Error) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
            if code != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            if closing.wait(_SQLITE_RETRY_SECONDS * random.uniform(0.5, 1.5)):
                raise


def _identity(path: str) -> _Identity:
    """Return the device and inode of a file; None if there is none, as in memory."""
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
