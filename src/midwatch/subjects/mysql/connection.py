"""Connections to a MariaDB or MySQL server, and the only place where errors of asyncmy are mapped.

A connection commits each statement by itself and only reads. No message contains the password.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, NoReturn, Self

import asyncmy
import asyncmy.errors
from asyncmy.cursors import DictCursor

from midwatch.errors import ObservationFailed, Unsupported, without_frames
from midwatch.subjects.mysql import sql
from midwatch.subjects.mysql.address import ServerAddress, address_of, secrets_of
from midwatch.subjects.mysql.server_version import ServerVersion
from midwatch.subjects.mysql.settings import MysqlSettings
from midwatch.subjects.rows import Row, text
from midwatch.subjects.tls import TlsSettings, failure_of

_SILENCE_LIMIT = 0.5  # seconds after statement_timeout until a silent server is left
_GOODBYE = 0.5  # seconds for the end of a connection
_LARGEST = 64 * 1024 * 1024  # bytes that a connection may send or get in one packet


class Unreachable(ObservationFailed):
    """The server does not answer."""


class Exhausted(ObservationFailed):
    """The server has no free connection."""

    hint = "see who holds the connections"


class QueryFailed(ObservationFailed):
    """One statement failed; others may work."""


class NotPermitted(QueryFailed, Unsupported):
    """The account may not run one statement, or the server does not have what it needs."""


# Numbers of errors: https://mariadb.com/kb/en/mariadb-error-code-reference/ and the MySQL error reference.
# The client's own (2000 to 2999) and the server's while it starts, stops or loses the connection.
_UNREACHABLE = frozenset((2002, 2003, 2006, 2013, 2055, 1053, 1077, 1079, 1158, 1159))
_UNREACHABLE |= frozenset((1160, 1161, 1184, 1927))
_FULL = frozenset((1040,))
_OWN_LIMIT = frozenset((1203, 1226))  # of the account itself: the server is not full
_TOO_SLOW = frozenset((1317, 1969, 3024))
_NOT_PERMITTED = frozenset((1044, 1142, 1143, 1227, 1370, 1698))
_UNKNOWN_HERE = frozenset((1054, 1109, 1146, 1193, 1235, 1286, 1305))


class _Cursor(DictCursor):
    """A cursor that does not ask for the warnings of each statement, which costs a round trip."""

    async def _show_warnings(self, conn: Any) -> None:
        pass


class _Refusing:
    """What answers a server that wants the password in clear text over a connection that is not encrypted."""

    def __init__(self, connection: object) -> None:
        pass

    def authenticate(self, packet: object) -> NoReturn:
        raise asyncmy.errors.OperationalError(
            2061, "the server asks for the password in clear text; set tls: verify"
        )

    def prompt(self, echo: object, prompt: object) -> NoReturn:
        self.authenticate(None)


_CLEAR_TEXT = {b"mysql_clear_password": _Refusing, b"dialog": _Refusing}


class Connection:
    """One connection, a context manager. Entering raises Unreachable, Exhausted or ObservationFailed.

    `id` is that of the connection at the server, `account` the account that it is, `version` the server's.
    """

    def __init__(self, settings: MysqlSettings) -> None:
        self._settings = settings
        self._connection: Any = None
        self.id = 0
        self.account = ""
        self.version = ServerVersion(True, (10, 5, 0))

    async def __aenter__(self) -> Self:
        address = address_of(self._settings)
        try:
            async with asyncio.timeout(self._settings.connect_timeout):
                await self._open(address)
        except TimeoutError:
            raise Unreachable(
                f"timeout: no connection within {self._settings.connect_timeout:g}s"
            ) from None
        try:
            await self._set_up()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Take leave of the server, which counts a connection that just ends as aborted. Never raises."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                async with asyncio.timeout(_GOODBYE):
                    await connection.ensure_closed()
            except (TimeoutError, OSError, asyncmy.errors.Error):
                connection.close()

    async def _open(self, address: ServerAddress) -> None:
        try:
            await self._connect(address)
        except Exhausted:
            if address.extra_port is None:
                raise
            await self._connect(address.on_extra_port())

    async def _connect(self, address: ServerAddress) -> None:
        context = await tls_context(self._settings, address)
        secure = context is not None or address.socket is not None
        try:
            self._connection = await asyncmy.connect(
                host=address.host,
                port=address.port,
                unix_socket=address.socket,
                user=address.user,
                password=address.password.encode(),  # a text would be latin1
                charset="utf8mb4",
                autocommit=None,  # set with everything else
                connect_timeout=self._settings.connect_timeout + 1,  # ours ends first
                ssl=context,
                max_allowed_packet=_LARGEST,
                cursor_cls=_Cursor,
                program_name="midwatch",
                auth_plugin_map={} if secure else _CLEAR_TEXT,
            )
        except (asyncmy.errors.Error, OSError, UnicodeError) as error:
            raise map_connect_error(without_frames(error), self._settings) from None

    async def _set_up(self) -> None:
        announced = self._connection.get_server_info()
        self.version = ServerVersion.parse(announced)
        [*_, rows] = await self._batch_or_raise(self._setting_up())
        version = str(rows[0]["version"])
        self.id, self.account = int(rows[0]["id"]), str(rows[0]["account"])
        self.version = ServerVersion.parse(version, bool(rows[0]["performance_schema"]))

    def _setting_up(self) -> list[str]:
        return sql.setting_up(self.version, self._settings.statement_timeout)

    async def _batch_or_raise(self, statements: Sequence[str]) -> list[list[Row]]:
        found = []
        for result in await self.batch(statements):
            if isinstance(result, QueryFailed):
                raise Unreachable(
                    f"connected, but a trivial statement was not answered: {result.message}"
                )
            found.append(result)
        return found

    async def rows(self, statement: str, values: Sequence[object] = ()) -> list[Row]:
        """Run one statement and return its rows. Raises QueryFailed, or NotPermitted if it can never work.

        Args:
            statement: SQL; with `values`, each `%s` of it stands for one of these and `%%` for a percent sign.
            values: Texts, numbers, or lists of these for IN.
        """
        async with self._cursor() as cursor:
            with self._mapped():
                async with asyncio.timeout(self._limit):
                    await cursor.execute(statement, _driver_values(values) or None)
                    return list(await cursor.fetchall())
        raise AssertionError  # `_mapped` raises

    async def columns(self, statement: str) -> list[tuple[str, int]]:
        """Run one statement and return the names and types of its columns. Raises as `rows` does."""
        async with self._cursor() as cursor:
            with self._mapped():
                async with asyncio.timeout(self._limit):
                    await cursor.execute(statement)
                    found = cursor.description or ()
                    return [(str(one[0]), int(one[1])) for one in found]
        raise AssertionError  # `_mapped` raises

    async def batch(self, statements: Sequence[str]) -> list[list[Row] | QueryFailed]:
        """Run several statements in one round trip, and return the rows of each, or why it failed."""
        found: list[list[Row] | QueryFailed] = []
        while len(found) < len(statements):
            try:
                await self._run(statements[len(found) :], found)
            except QueryFailed as error:
                found.append(error)
        return found

    async def _run(
        self, statements: Sequence[str], found: list[list[Row] | QueryFailed]
    ) -> None:
        async with self._cursor() as cursor:
            with self._mapped():
                for number in range(len(statements)):
                    async with asyncio.timeout(self._limit):
                        if number:
                            await cursor.nextset()
                        else:
                            await cursor.execute(";\n".join(statements))
                        rows = await cursor.fetchall() if cursor.description else ()
                    found.append(list(rows))

    @property
    def _limit(self) -> float:
        """Seconds after which a statement is not waited for any more: the server ends a slow one before that."""
        return self._settings.statement_timeout + _SILENCE_LIMIT

    @contextlib.asynccontextmanager
    async def _cursor(self) -> AsyncIterator[Any]:
        if self._connection is None or not self._connection.connected:
            raise QueryFailed("the connection was lost")
        async with self._connection.cursor() as cursor:
            yield cursor

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        """Raise QueryFailed for what the driver raises."""
        try:
            yield
        except TimeoutError:  # the driver has closed the connection
            raise self._too_slow() from None
        except (asyncmy.errors.Error, OSError, UnicodeError, RuntimeError) as error:
            number = _number(error)
            if number in _TOO_SLOW:
                raise self._too_slow() from None
            message = text(_message(error, self._settings), 300)
            if number in _NOT_PERMITTED:
                raise NotPermitted(
                    message, hint=remedy(message, self.account)
                ) from None
            if number in _UNKNOWN_HERE:
                raise NotPermitted(
                    message,
                    hint="this server does not have it: turn the invariant off with enabled: false",
                ) from None
            raise QueryFailed(message) from None

    def _too_slow(self) -> QueryFailed:
        return QueryFailed(
            f"the statement took longer than {self._settings.statement_timeout:g}s",
            hint="raise statement_timeout if the server is merely slow",
        )


def _driver_values(values: Sequence[object]) -> tuple[object, ...]:
    """Return the values as the driver wants them: tuples for lists."""
    return tuple(tuple(one) if isinstance(one, list) else one for one in values)


def remedy(message: str, account: str) -> str:
    """Return the GRANT that is missing, by what the server says is needed."""
    name, _, host = account.rpartition("@")
    to = f"'{name}'@'{host}'" if name else "the account of the subject"
    for needle, grant in _GRANTS:
        if needle in message:
            return f"{grant} TO {to}"
    return f"grant what docs/mysql.md lists to {to}"


_GRANTS = (
    ("SLAVE MONITOR", "GRANT SLAVE MONITOR ON *.*"),
    ("REPLICATION CLIENT", "GRANT REPLICATION CLIENT ON *.*"),
    ("BINLOG MONITOR", "GRANT BINLOG MONITOR ON *.*"),
    ("PROCESS", "GRANT PROCESS ON *.*"),
    ("'user'", "GRANT SELECT (User, Host, max_user_connections) ON mysql.user"),
    ("`user`", "GRANT SELECT (User, Host, max_user_connections) ON mysql.user"),
    ("performance_schema", "GRANT SELECT ON performance_schema.*"),
    ("'data_lock", "GRANT SELECT ON performance_schema.*"),
    ("'metadata_locks'", "GRANT SELECT ON performance_schema.*"),
)


def _number(error: BaseException) -> int:
    first = error.args[0] if error.args else 0
    return first if isinstance(first, int) else 0


def map_connect_error(
    error: BaseException, settings: MysqlSettings
) -> ObservationFailed:
    """Map an error of a connection attempt: unreachable, full, or a failed login."""
    message = text(_message(error, settings), 300)
    number = _number(error)
    if failure := failure_of(error):
        return failure
    if number in _FULL:
        return Exhausted(message)
    if number in _OWN_LIMIT:
        return ObservationFailed(
            f"the login failed: {message}",
            hint="raise MAX_USER_CONNECTIONS of the account: monitor, agent and `check` connect at the same time",
        )
    if number in _UNREACHABLE or isinstance(error, OSError):
        return Unreachable(message)
    return ObservationFailed(
        f"the login failed: {message}", hint=_LOGIN_HINTS.get(number, _LOGIN_HINT)
    )


_LOGIN_HINT = "check user and password; an account that REQUIREs SSL needs tls: verify, one that REQUIREs X509 a client_certificate"
_LOGIN_HINTS = {
    1129: "the server blocks this host after many failed connections: mariadb-admin flush-hosts",
    1130: "the server has no account for connections from this host",
    1043: "the server does not speak TLS as the settings say: see tls",
    3159: "the server takes encrypted connections only: set tls: verify",
    2061: "set tls: verify, or give the account another authentication plugin",
}


def _message(error: BaseException, settings: MysqlSettings) -> str:
    """Return what the server or the driver says, without the password."""
    said = error.args[1] if len(error.args) > 1 else str(error)
    message = str(said) or type(error).__name__
    for secret in secrets_of(settings):
        message = message.replace(secret, "…")
    return message


# ------------------------------------------------------------------ TLS


async def tls_context(
    settings: MysqlSettings, address: ServerAddress
) -> ssl.SSLContext | None:
    """Return the context of the settings, None without TLS. Raises SettingsError for a file.

    No other machine is between this one and its own socket, which has no name either: its certificate is not verified.
    """
    files = (settings.ca_file, settings.client_certificate, settings.client_key)
    mode = settings.tls or ("verify" if any(files) else "off")
    if mode == "off":
        return None
    verify = mode == "verify" and address.socket is None
    wanted = TlsSettings(verify, *files, alone=True)
    return await wanted.shared(f"subjects.{settings.name}")
