"""Connections to a PostgreSQL server, and the only place where errors of psycopg are mapped.

A connection is in autocommit: no transaction outlives its statement. No message contains the DSN.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import re
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import cache
from typing import Any, Self
from urllib.parse import quote

import psycopg
from psycopg import conninfo
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.rows import dict_row
from pydantic import SecretStr

from midwatch.errors import (
    ObservationFailed,
    SettingsError,
    Unsupported,
    without_frames,
)
from midwatch.subjects.base import Address
from midwatch.subjects.postgres import sql
from midwatch.subjects.postgres.settings import PostgresSettings
from midwatch.subjects.rows import Row, number, text
from midwatch.units import format_duration, parse_port


def who(row: Row) -> str:
    """Return `user app, application orders`."""
    application = text(row.get("application_name"), 64)
    user = f"user {text(row.get('usename'), 64) or 'unknown'}"
    return f"{user}, application {application}" if application else user


def state(row: Row) -> str:
    """Return `idle in transaction for 3m 20s`."""
    name = text(row.get("state"), 40) or "unknown state"
    since = row.get("query_age") if name == "active" else row.get("state_age")
    return name if since is None else f"{name} for {format_duration(number(since))}"


_LOCK_LIMIT = (
    500  # milliseconds that a statement waits for a lock: a catalog may be locked
)
_SILENCE_LIMIT = 0.5  # seconds after statement_timeout until the connection to a silent server is closed


class Unreachable(ObservationFailed):
    """The server does not answer."""


class Exhausted(ObservationFailed):
    """The server has no free connection; `component` is the limit that was reached."""

    def __init__(self, message: str, component: str) -> None:
        super().__init__(message, hint="see who holds the connections")
        self.component = component


class QueryFailed(ObservationFailed):
    """One statement failed; others may work."""


class NotPermitted(QueryFailed, Unsupported):
    """The role may not run one statement, or the server does not have what it needs."""


# Messages of the server or libpq when the server cannot be reached. Any other error of a
# connection attempt is an answer; an unknown one leaves the state of the server unknown.
_UNREACHABLE = re.compile(
    r"connection refused|no such file or directory|could not connect|no route to host"
    r"|network is unreachable|connection reset|timed out|timeout expired|failed to resolve"
    r"|could not translate host name|server closed the connection unexpectedly"
    r"|is starting up|is shutting down|in recovery mode|not yet accepting connections"
    r"|not accepting connections|host is down|broken pipe|connection aborted"
    r"|terminating connection due to",
    re.IGNORECASE,
)
_FULL = re.compile(
    r"too many clients already|remaining connection slots are reserved"
    r'|too many connections for (?P<kind>role|database) "(?P<name>[^"]*)"',
    re.IGNORECASE,
)


# Errors of one statement that the same statement will have again, with the remedy.
_NEVER_WORKS: tuple[tuple[type[psycopg.Error], str], ...] = (
    (
        psycopg.errors.InsufficientPrivilege,
        "grant pg_monitor to the role of the dsn, or what was revoked: EXECUTE on the "
        "function, SELECT on the view",
    ),
    (psycopg.errors.UndefinedFunction, "PostgreSQL 14 or later is needed"),
    (psycopg.errors.UndefinedColumn, "PostgreSQL 14 or later is needed"),
    (psycopg.errors.UndefinedTable, "PostgreSQL 14 or later is needed"),
    (psycopg.errors.UndefinedObject, "PostgreSQL 14 or later is needed"),
    (
        psycopg.errors.FeatureNotSupported,
        "this service does not offer it: turn the invariant off with enabled: false",
    ),
)


def decode(data: bytes, codec: str | None) -> str:
    """Return text of the server, never failing.

    Text of other databases may be in UTF-8 or in any encoding, whatever that of our database (`codec`).
    """
    for name in filter(None, ("utf-8", codec)):
        with contextlib.suppress(UnicodeDecodeError):
            return data.decode(name)
    return data.decode("utf-8", "replace")


@cache
def _lenient(codec: str | None) -> type[Loader]:
    """Return the loader of text in a database with this codec. A class for each connection would be left to the garbage collector."""

    class LenientText(Loader):
        def load(self, data: Buffer) -> str:
            return decode(bytes(data), codec)

    return LenientText


def codec_of(encoding: str) -> str | None:
    """Return Python's name of a server encoding (`LATIN1`, `WIN1252`), or None where it has none."""
    with contextlib.suppress(LookupError):
        return codecs.lookup(encoding.replace("WIN", "cp")).name
    return None


class Connection:
    """One connection, a context manager. Entering raises Unreachable, Exhausted or ObservationFailed.

    `all_stats` tells whether the role may see the sessions of others; `pid` is that of the backend;
    `version` is the server's as a number (180001).
    """

    def __init__(self, settings: PostgresSettings) -> None:
        self._settings = settings
        self._connection: psycopg.AsyncConnection[dict[str, Any]] | None = None
        self._codec: str | None = None
        self.all_stats = False
        self.pid = 0
        self.version = 0

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.timeout(self._settings.connect_timeout):
                self._connection = await _connect(self._settings)
        except TimeoutError:
            raise Unreachable(
                f"timeout: no connection within {self._settings.connect_timeout:g}s"
            ) from None
        except psycopg.Error as error:
            raise map_connect_error(without_frames(error), self._settings) from None
        try:
            await self._set_up()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def rows(
        self, statement: str, params: Mapping[str, object] | None = None
    ) -> list[Row]:
        """Run one statement and return its rows. Raises QueryFailed, or NotPermitted if it can never work."""
        cursor = await self.execute(statement, params)
        return [self._decoded(row) for row in await cursor.fetchall()]

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Make what runs in the block one transaction that only reads: tables stay what they were at first."""
        await self.execute("BEGIN TRANSACTION READ ONLY")
        try:
            yield
        finally:
            with contextlib.suppress(QueryFailed):
                await self.execute("ROLLBACK")

    async def execute(
        self, statement: str, params: Mapping[str, object] | None = None
    ) -> psycopg.AsyncCursor[dict[str, Any]]:
        """Run one statement and return its cursor. Raises as `rows` does."""
        if self._connection is None or self._connection.closed:
            raise QueryFailed("the connection was lost")
        # The server ends a slow statement itself. If it does not, the socket is shut down:
        # psycopg's own cancellation would wait for the silent server again.
        limit = self._settings.statement_timeout + _SILENCE_LIMIT
        timer = asyncio.get_running_loop().call_later(limit, self._hang_up)
        try:
            return await self._connection.execute(statement.encode(), params)
        except psycopg.errors.QueryCanceled:
            raise QueryFailed(
                f"the statement took longer than {self._settings.statement_timeout:g}s",
                hint="raise statement_timeout if the server is merely slow",
            ) from None
        except psycopg.Error as error:
            message = text(_error_text(error, self._settings), 300)
            for kind, hint in _NEVER_WORKS:
                if isinstance(error, kind):
                    raise NotPermitted(message, hint=hint) from None
            raise QueryFailed(message) from None
        finally:
            timer.cancel()

    async def plan(self, statements: Sequence[str], limits: str) -> list[Row]:
        """Return the rows of the last of some statements, all in one transaction that is read-only and rolled back.

        The extended protocol is used, with which the server refuses a text of more than one statement.

        Args:
            statements: What is prepared and explained.
            limits: A statement before them that limits the transaction.

        Raises:
            QueryFailed: One of them failed.
        """
        if self._connection is None or self._connection.closed:
            raise QueryFailed("the connection was lost")
        limit = self._settings.statement_timeout * 2 + _SILENCE_LIMIT
        timer = asyncio.get_running_loop().call_later(limit, self._hang_up)
        try:
            async with self._connection.transaction(force_rollback=True):
                await self._connection.execute("SET TRANSACTION READ ONLY")
                await self._connection.execute(limits.encode())
                for statement in statements:
                    # Binary results are what makes psycopg use the extended protocol.
                    cursor = await self._connection.execute(
                        statement.encode(), binary=True
                    )
                return list(await cursor.fetchall())
        except (psycopg.Error, UnicodeError) as error:
            message = (
                _error_text(error, self._settings)
                if isinstance(error, psycopg.Error)
                else "its text cannot be decoded"
            )
            raise QueryFailed(text(message, 300)) from None
        finally:
            timer.cancel()

    def _decoded(self, row: dict[str, Any]) -> Row:
        """Return the row with its statement as text: it is queried as bytes."""
        query = row.get("query")
        if isinstance(query, bytes):
            row["query"] = decode(query, self._codec)
        return row

    async def _set_up(self) -> None:
        milliseconds = max(1, round(self._settings.statement_timeout * 1000))
        lock = min(milliseconds, _LOCK_LIMIT)
        try:
            rows = await self.rows(
                sql.SETUP, {"statement": str(milliseconds), "lock": str(lock)}
            )
        except QueryFailed as error:
            raise Unreachable(
                f"connected, but a trivial statement was not answered: {error.message}"
            ) from None
        self.all_stats, self.pid = bool(rows[0]["all_stats"]), int(rows[0]["pid"])
        self._set_loaders()

    def _set_loaders(self) -> None:
        """Load text whatever its encoding is: it arrives without a conversion."""
        assert self._connection is not None
        info = self._connection.info
        self.version = info.server_version
        encoding = info.parameter_status("server_encoding") or "UTF8"
        self._codec = None if encoding == "UTF8" else codec_of(encoding)
        loader = _lenient(self._codec)
        for name in ("text", "varchar", "name", "bpchar", 0):
            self._connection.adapters.register_loader(name, loader)

    def _hang_up(self) -> None:
        if self._connection is None or self._connection.closed:
            return
        with contextlib.suppress(OSError):
            with socket.socket(fileno=os.dup(self._connection.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)


async def _connect(
    settings: PostgresSettings,
) -> psycopg.AsyncConnection[dict[str, Any]]:
    return await psycopg.AsyncConnection.connect(
        plain_dsn(settings),
        autocommit=True,
        prepare_threshold=None,
        row_factory=dict_row,
        application_name="midwatch",
        client_encoding="SQL_ASCII",
        connect_timeout=max(2, round(settings.connect_timeout)),
    )


def map_connect_error(
    error: psycopg.Error, settings: PostgresSettings
) -> ObservationFailed:
    """Map an error of a connection attempt: unreachable, full, or a failed login."""
    message = text(_error_text(error, settings), 300)
    full = _FULL.search(message)
    if full and str(full["kind"]).lower() == "role":  # our own: the server is not full
        return ObservationFailed(
            f"the login failed: {message}",
            hint="raise the CONNECTION LIMIT of the role: monitor, agent and `check` connect at the same time",
        )
    if full:
        name = full["name"] and f"{full['kind'].lower()} {text(full['name'], 64)}"
        return Exhausted(message, name or "server")
    if isinstance(error, psycopg.errors.ConnectionTimeout):
        return Unreachable(f"timeout: {message}")
    if _UNREACHABLE.search(message):
        return Unreachable(message)
    return ObservationFailed(
        f"the login failed: {message}",
        hint=f"check user, password and database in the dsn of subject {settings.name}",
    )


def _error_text(error: psycopg.Error, settings: PostgresSettings) -> str:
    message = error.diag.message_primary or str(error) or type(error).__name__
    for secret in secrets_of(settings):
        message = message.replace(secret, "…")
    return message


def plain_dsn(settings: PostgresSettings) -> str:
    """Return the DSN for libpq: SQLAlchemy's `postgresql+driver://` is accepted too."""
    return re.sub(
        r"^(postgres(?:ql)?)\+\w+://", r"\1://", settings.dsn.get_secret_value()
    )


def database_of(settings: PostgresSettings) -> str:
    """Return the name of the database that the DSN names; libpq takes that of the user otherwise."""
    fields = conninfo.conninfo_to_dict(plain_dsn(settings))
    return str(fields.get("dbname") or fields.get("user") or "")


def role_of(settings: PostgresSettings) -> str:
    """Return the role that the DSN names; empty where libpq takes that of the system's user."""
    fields = conninfo.conninfo_to_dict(plain_dsn(settings))
    return str(fields.get("user") or "")


def is_local(settings: PostgresSettings) -> bool:
    """Return whether the server is on this machine: its address is a socket or loopback."""
    fields = conninfo.conninfo_to_dict(plain_dsn(settings))
    hosts = str(fields.get("hostaddr") or fields.get("host") or "/").split(",")
    return all(
        one[:1] in ("/", "@") or one in ("localhost", "127.0.0.1", "::1", "")
        for one in hosts
    )


def in_database(settings: PostgresSettings, name: str) -> PostgresSettings:
    """Return the settings for another database of the same server."""
    dsn = SecretStr(conninfo.make_conninfo(plain_dsn(settings), dbname=name))
    return settings.model_copy(update={"dsn": dsn})


def check_dsn(settings: PostgresSettings, setting: str = "dsn") -> None:
    """Raise SettingsError if the DSN is invalid; the error does not repeat it, as libpq's own would."""
    path = f"subjects.{settings.name}.{setting}"
    try:
        if "\0" in plain_dsn(settings):  # libpq would not see what follows it
            raise psycopg.ProgrammingError
        fields = conninfo.conninfo_to_dict(plain_dsn(settings))
    except (psycopg.Error, UnicodeError):
        raise SettingsError(
            "the DSN is invalid",
            path=path,
            hint="use postgresql://user:password@host:5432/database and "
            "%-encode special characters of the password",
        ) from None
    try:
        for port in filter(None, str(fields.get("port") or "").split(",")):
            parse_port(port)
    except ValueError as error:
        raise SettingsError(str(error), path=path) from None


def addresses_of(settings: PostgresSettings) -> tuple[Address, ...]:
    """Return where the DSN says that the server is: each host with its port, as libpq reads them."""
    fields = conninfo.conninfo_to_dict(plain_dsn(settings))
    names = str(fields.get("host") or "localhost").split(",")
    hosts = str(fields["hostaddr"]).split(",") if fields.get("hostaddr") else names
    ports = str(fields.get("port") or "5432").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    return tuple(
        Address(
            host if host.startswith("/") else host.lower() or "localhost",
            int(port or 5432),
        )
        for host, port in zip(hosts, ports, strict=False)
    )


def secrets_of(settings: PostgresSettings) -> tuple[str, ...]:
    """Return the passwords in the DSN, plain and in the forms that a URL can have."""
    try:
        fields = conninfo.conninfo_to_dict(plain_dsn(settings))
    except (psycopg.Error, UnicodeError):
        return (settings.dsn.get_secret_value(),)
    found = [str(fields[key]) for key in ("password", "sslpassword") if fields.get(key)]
    written = re.findall(
        r"//[^/@]*?:([^@/]*)@|[?&](?:ssl)?password=([^&]*)", plain_dsn(settings)
    )
    forms = [*found, *map(quote, found), *(quote(one, safe="") for one in found)]
    forms += [part for pair in written for part in pair if part]
    return tuple(sorted(set(forms), key=len, reverse=True))
