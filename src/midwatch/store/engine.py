"""Run transactions, on SQLite or on an async pool of PostgreSQL.

Statements are written once, as plain functions of a `Transaction`; `read` and `write` make methods
of a store from them. On SQLite a whole transaction is one hop to the thread, where the async
adapter needs one for every cursor call (docs/architecture.md has the figures).
"""

from __future__ import annotations

import asyncio
import enum
import functools
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    ParamSpec,
    Protocol,
    TypeVar,
)

from sqlalchemy import (
    Connection,
    CursorResult,
    Executable,
    Insert,
    Row,
    Table,
    bindparam,
    event,
    text,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from midwatch.errors import SettingsError, StoreUnavailable
from midwatch.model import Json
from midwatch.store.errors import map_database_errors
from midwatch.store.schema import Instant, SanitizedText, audit, database_now, dump_json
from midwatch.store.sqlite import Renewal, SqliteTransactions
from midwatch.units import parse_port

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

P = ParamSpec("P")
T = TypeVar("T")

POSTGRES_SECONDS = 10.0
"""Timeout of a statement, in seconds; that of a connection attempt is half of it."""
UPGRADE_SECONDS = 3600.0
"""The same for an upgrade of the schema, in which an index of a large table may take minutes."""


class Transactions(Protocol):
    """Runs functions of a connection, each in one transaction.

    `notice` is what a person has to know of the database since it was opened; empty if there is nothing.
    Both methods raise the errors that `midwatch.store.errors` maps, and what the function raises:
    the transaction is then rolled back.
    """

    dialect: str
    notice: str
    listeners: list[Callable[[], object]]
    """Called after each transaction of a store that wrote audit rows, on the event loop."""

    async def run(
        self,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Return the result of `function`, once the transaction is committed."""
        ...

    async def read(
        self,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Do the same as `run` for a function that only reads; it does not wait for a writer."""
        ...

    async def migrate(self, function: Callable[[Connection], T]) -> T:
        """Do the same as `run` for a migration, and wait while another process makes it."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


def parse_database(database: str) -> URL:
    """Return the URL of a supported database. Raises SettingsError, without the password."""
    hint = "use sqlite:///FILE or postgresql://USER@HOST/DATABASE"
    try:
        url = make_url(database)
    except (ArgumentError, ValueError):
        raise SettingsError("not a database URL", path="database", hint=hint) from None
    kind = url.get_backend_name()
    if "\0" in database:
        raise SettingsError("has a NUL character", path="database", hint=hint)
    if kind == "sqlite":
        if url.host:
            hint = "use sqlite:///FILE, or sqlite:////FOLDER/FILE for an absolute path"
            raise SettingsError(
                "a SQLite database has no host", path="database", hint=hint
            )
        return url.set(drivername="sqlite")
    if kind in ("postgresql", "postgres"):
        if url.port is not None:
            _check_port(str(url.port))
        return url.set(drivername="postgresql+psycopg")
    raise SettingsError(
        f"{kind} is not a supported database", path="database", hint=hint
    )


def _check_port(port: str) -> None:
    try:
        parse_port(port)
    except ValueError as error:
        raise SettingsError(str(error), path="database") from None


def missing_file(url: URL) -> str | None:
    """Return the path of a SQLite database that does not exist, or None."""
    file = url.database
    if url.get_backend_name() != "sqlite" or not file or file == ":memory:":
        return None
    return None if os.path.exists(file) else file


def open_transactions(
    url: URL, renew: Renewal | None = None, *, longest: float = POSTGRES_SECONDS
) -> Transactions:
    """Return what runs transactions on this database. Nothing connects before the first one.

    Args:
        url: The database.
        renew: What is done about a SQLite file that was deleted.
        longest: Seconds that one statement may take on PostgreSQL. The wait for a lock may take half of it.
    """
    if url.get_backend_name() == "sqlite":
        return SqliteTransactions(url, renew)
    return PostgresTransactions(url, longest=longest)


class _Answers:
    """When the database last answered in a transaction: one of many statements may take long in all."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.any = False

    @property
    def silence(self) -> float:
        """The seconds since the last answer."""
        return time.monotonic() - self._last

    @staticmethod
    def note(connection: Connection, *_: object) -> None:
        """Listen to "after_cursor_execute" of an engine."""
        answers = connection.info.get(_Answers)
        if answers is not None:
            answers._last = time.monotonic()
            answers.any = True


class PostgresTransactions:
    """Transactions on a small pool.

    A transaction whose connection turns out to be gone with its first statement, as after a restart of the server, is
    begun once more on a new one: nothing of it was done. So no connection is asked whether it lives before it is used.
    """

    dialect = "postgresql"
    notice = ""

    def __init__(
        self,
        url: URL,
        *,
        longest: float = POSTGRES_SECONDS,
        silence: float | None = None,
    ) -> None:
        self.listeners: list[Callable[[], object]] = []
        self._url = url
        self._longest = longest
        # The wait for one answer within a transaction, when the server's own timeouts do not end it.
        self._silence = 2 * longest if silence is None else silence
        self._engine: AsyncEngine | None = None
        self._abandoned: set[asyncio.Task[Any]] = set()

    @property
    def engine(self) -> AsyncEngine:
        if self._engine is None:
            from sqlalchemy.ext.asyncio import create_async_engine

            milliseconds = int(self._longest * 1000)
            self._engine = create_async_engine(
                self._url,
                pool_size=4,
                max_overflow=4,
                pool_timeout=POSTGRES_SECONDS,
                json_serializer=dump_json,
                connect_args={
                    "connect_timeout": int(POSTGRES_SECONDS / 2),
                    "application_name": "midwatch",
                    "options": f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds // 2}"
                    f" -c idle_in_transaction_session_timeout={milliseconds * 3}"
                    r" -c default_transaction_isolation=read\ committed",
                    "tcp_user_timeout": int(POSTGRES_SECONDS * 1000),
                },
            )
            event.listen(
                self._engine.sync_engine, "after_cursor_execute", _Answers.note
            )
        return self._engine

    async def run(
        self,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        answers = _Answers()
        task = asyncio.ensure_future(
            self._transaction(answers, function, *args, **kwargs)
        )
        try:
            while not task.done() and (left := self._silence - answers.silence) > 0:
                await asyncio.wait({task}, timeout=left)
        except asyncio.CancelledError:
            self._abandon(task)
            raise
        if not task.done():
            self._abandon(task)
            raise StoreUnavailable(
                f"the database did not answer within {self._silence:g} s"
            )
        return task.result()

    async def _transaction(
        self,
        answers: _Answers,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        with map_database_errors():
            try:
                return await self._attempt(answers, function, *args, **kwargs)
            except DBAPIError as error:
                if answers.any or not error.connection_invalidated:
                    raise
            return await self._attempt(answers, function, *args, **kwargs)

    async def _attempt(
        self,
        answers: _Answers,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        async with self.engine.begin() as connection:
            (await connection.get_raw_connection()).info[_Answers] = answers
            return await connection.run_sync(function, *args, **kwargs)

    def _abandon(self, task: asyncio.Task[Any]) -> None:
        """Cancel without waiting: on a frozen server psycopg needs ten seconds to end."""
        self._abandoned.add(task)
        task.add_done_callback(self._forget)
        task.cancel()

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._abandoned.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as retrieved

    async def read(
        self,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        return await self.run(function, *args, **kwargs)

    async def migrate(self, function: Callable[[Connection], T]) -> T:
        return await self.run(function)

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


@enum.unique
class Lock(enum.IntEnum):
    """The advisory locks of PostgreSQL, which end with their transaction. What has one number excludes each other."""

    UPGRADE = 7305614
    INCIDENTS = 7305615
    SILENCES = 7305616
    DELIVERIES = 7305617
    SUMS = 7305618
    SHARES = 7305619


AUDIT_LOCK = 0x6D77
"""The upper 16 bits of the advisory locks of transactions that write audit rows; see `midwatch.store.feed`."""
LOCK_AUDIT = (
    f"SELECT pg_advisory_xact_lock_shared({AUDIT_LOCK}::bigint << 48 |"
    " coalesce(pg_sequence_last_value(pg_get_serial_sequence('audit', 'id')::regclass), 0))"
)
_LOCK_AUDIT = text(LOCK_AUDIT)

_NOTE_OPENED = text(
    "INSERT INTO audit (ticket_id, at, actor, action, before, after, why)"
    " SELECT id, :at, :actor, 'open', NULL, status, message FROM tickets"
    " WHERE id BETWEEN :first AND :last AND batch_id = :batch AND subject = :subject ORDER BY id"
).bindparams(
    bindparam("at", type_=Instant),
    *(bindparam(name, type_=SanitizedText) for name in ("actor", "subject")),
)

DatabaseClock = Callable[[Connection], datetime]
CLOCK_SLACK = timedelta(seconds=5)
"""Times further in the future than this were set before the clock went back, and are void."""


@dataclass(eq=False)
class Transaction:
    """The statements of one transaction, with one time for all of them."""

    connection: Connection
    clock: DatabaseClock
    noted: bool = field(default=False, init=False)
    """Whether it wrote audit rows."""

    @cached_property
    def now(self) -> datetime:
        """The time by the database's clock, read once in a transaction."""
        return self.clock(self.connection)

    @property
    def known_now(self) -> datetime | None:
        """The time, or None for a statement on PostgreSQL to read it: `read_now` takes what it returns."""
        if "now" in self.__dict__ or not self.postgres or self.clock != database_now:
            return self.now
        return None

    def read_now(self, now: datetime) -> None:
        """Take the time that a statement has read as that of the transaction."""
        self.__dict__.setdefault("now", now)

    @property
    def postgres(self) -> bool:
        """Whether the database is PostgreSQL."""
        return self.connection.dialect.name == "postgresql"

    def execute(
        self, statement: Executable, values: Json | Sequence[Json] | None = None
    ) -> CursorResult[Any]:
        """Run a statement with its parameters, or once for each row of them."""
        return self.connection.execute(statement, values)

    def one(self, statement: Executable, values: Json | None = None) -> Row[Any] | None:
        """Return the first row, or None."""
        return self.connection.execute(statement, values).first()

    def all(
        self, statement: Executable, values: Json | None = None
    ) -> Sequence[Row[Any]]:
        """Return all rows."""
        return self.connection.execute(statement, values).all()

    def insert_or_update(
        self, table: Table, row: Json, update: Json | None = None
    ) -> bool:
        """Insert `row`. If its primary key exists, set `update`; with None, change nothing. Return whether it wrote."""
        insert: Any = self._insert(table).values(row)
        key = list(table.primary_key.columns)
        statement: Insert = (
            insert.on_conflict_do_nothing(index_elements=key)
            if update is None
            else insert.on_conflict_do_update(index_elements=key, set_=update)
        )
        return self.one(statement.returning(*key)) is not None

    def insert_or_replace(self, table: Table, rows: Sequence[Json]) -> None:
        """Insert rows. Where a primary key exists, the row takes the place of the one that has it."""
        self.execute(_replacing(table, self.connection.dialect.name), rows)

    def insert_new(self, table: Table, rows: Sequence[Json]) -> None:
        """Insert rows, without those that a unique index already has."""
        self.execute(self._insert(table).on_conflict_do_nothing(), rows)

    def _insert(self, table: Table) -> Any:
        return _insert(table, self.connection.dialect.name)

    def note(self, rows: Sequence[Json]) -> None:
        """Append audit rows, at the time of the transaction."""
        if not rows:
            return
        self._begin_note()
        self.execute(audit.insert(), [{"at": self.now, **row} for row in rows])

    def note_opened(
        self, subject: str, batch: int, first: int, last: int, actor: str
    ) -> None:
        """Append the audit rows of the tickets of a batch that have just opened: those of `subject` from id `first` to `last`."""
        self._begin_note()
        values = {"subject": subject, "batch": batch, "actor": actor, "at": self.now}
        self.execute(_NOTE_OPENED, {**values, "first": first, "last": last})

    def _begin_note(self) -> None:
        if not self.noted and self.postgres:
            self.execute(_LOCK_AUDIT)
        self.noted = True


def _insert(table: Table, dialect: str) -> Any:
    """Return an insert that has ON CONFLICT."""
    if dialect == "postgresql":
        from sqlalchemy.dialects import postgresql  # slow to import

        return postgresql.insert(table)
    return sqlite.insert(table)


@functools.cache
def _replacing(table: Table, dialect: str) -> Insert:
    """Return an insert of a row that takes the place of the one with its primary key."""
    insert = _insert(table, dialect)
    others = {
        column.name: insert.excluded[column.name]
        for column in table.columns
        if not column.primary_key
    }
    key = list(table.primary_key.columns)
    replacing: Insert = insert.on_conflict_do_update(index_elements=key, set_=others)
    return replacing


_CHUNK = 500  # ids in one statement


def chunks(items: Sequence[T]) -> list[Sequence[T]]:
    """Return `items` in parts that one statement can take."""
    return [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]


def audit_row(
    ticket_id: int,
    actor: str,
    action: str,
    before: str | None,
    after: str | None,
    why: str = "",
) -> Json:
    """Return a row for `Transaction.note`; `before` and `after` are statuses."""
    return {
        "ticket_id": ticket_id,
        "actor": actor,
        "action": action,
        "before": before,
        "after": after,
        "why": why,
    }


class TransactionalStore:
    """Runs functions of a `Transaction`, each in one transaction.

    Args:
        transactions: Runs the transactions; a store closes it.
        clock: Replaces the database's clock in tests.
    """

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
        used: list[Transaction] = []
        result = await self.transactions.run(
            self._bind(function, used.append), *args, **kwargs
        )
        if used[-1].noted:
            for listener in self.transactions.listeners:
                listener()
        return result

    async def _read(
        self,
        function: Callable[Concatenate[Transaction, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Do the same as `_run` for a function that only reads; it does not wait for a writer."""
        return await self.transactions.read(self._bind(function), *args, **kwargs)

    def _bind(
        self,
        function: Callable[Concatenate[Transaction, P], T],
        used: Callable[[Transaction], object] = lambda _: None,
    ) -> Callable[Concatenate[Connection, P], T]:
        def transaction(
            connection: Connection, /, *args: P.args, **kwargs: P.kwargs
        ) -> T:
            tx = Transaction(connection, self._clock)
            used(tx)
            return function(tx, *args, **kwargs)

        return transaction


def write(
    function: Callable[Concatenate[Transaction, P], T],
) -> Callable[Concatenate[TransactionalStore, P], Coroutine[Any, Any, T]]:
    """Return a store's method that runs `function` in a transaction."""
    return _method(TransactionalStore._run, function)


def read(
    function: Callable[Concatenate[Transaction, P], T],
) -> Callable[Concatenate[TransactionalStore, P], Coroutine[Any, Any, T]]:
    """Return a store's method that runs `function`, which only reads, in a transaction."""
    return _method(TransactionalStore._read, function)


def _method(
    run: Callable[..., Coroutine[Any, Any, T]],
    function: Callable[Concatenate[Transaction, P], T],
) -> Callable[Concatenate[TransactionalStore, P], Coroutine[Any, Any, T]]:
    @functools.wraps(function)
    async def method(
        self: TransactionalStore, /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return await run(self, function, *args, **kwargs)

    return method
