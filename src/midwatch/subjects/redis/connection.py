"""Connections to a Redis server, and the only place where redis-py's errors are mapped.

Commands are sent in one piece and answered one by one. No message contains the password.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Iterator, Sequence
from typing import Any, Self

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
)
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as TimedOut

from midwatch.errors import (
    ObservationFailed,
    SettingsError,
    Unsupported,
    without_frames,
)
from midwatch.subjects.redis.settings import RedisSettings
from midwatch.subjects.rows import text
from midwatch.subjects.tls import TlsSettings, failure_of

Command = Sequence[str | int]
Info = dict[str, str]
_FULL = "max number of clients"
_LOADING = ("LOADING", "MASTERDOWN")
_NOT_PERMITTED = ("NOPERM", "ERR unknown command", "ERR unknown subcommand")
_HUNG_UP = re.compile("reset by peer|closed by server", re.IGNORECASE)
_GOODBYE = 0.5  # seconds for the end of a connection


class Unreachable(ObservationFailed):
    """The server does not answer."""


class Busy(Unreachable):
    """The server answers nothing but that it is busy with a script, or loads its data set."""


class Exhausted(ObservationFailed):
    """The server has no free connection."""

    hint = "see who holds the connections: CLIENT LIST"


class CommandFailed(ObservationFailed):
    """One command failed; others may work."""


class NotPermitted(CommandFailed, Unsupported):
    """The user may not run one command, or the server does not have it."""


class Server:
    """One connection, a context manager. Entering raises Unreachable, Exhausted or ObservationFailed."""

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._connection: AbstractConnection = _connection(settings)
        self._tls = isinstance(self._connection, SSLConnection)
        self._guess = _guess(settings, self._tls)  # until the first answer

    async def __aenter__(self) -> Self:
        if isinstance(self._connection, SSLConnection):
            context = await _tls_context(self._settings)
            self._connection.ssl_context.context = context
        try:
            async with asyncio.timeout(self._settings.connect_timeout):
                with _errors(self._guess):
                    await self._connection.connect()  # type: ignore[no-untyped-call]
        except TimeoutError:
            waited = f"{self._settings.connect_timeout:g}s"
            raise Unreachable(
                f"timeout: no connection within {waited}"
                if not self._tls
                else f"timeout: no connection with TLS within {waited}: does the server speak TLS on this port?"
            ) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(_GOODBYE):
                await self._connection.disconnect()

    async def ask(self, *commands: Command) -> list[Any]:
        """Send commands in one piece; return the answers, text within them decoded, or the CommandFailed of each.

        Raises:
            Unreachable: The connection broke, or the server did not answer in time.
            Exhausted: The server is full.
        """
        connection = self._connection
        answers: list[Any] = []
        try:
            async with asyncio.timeout(self._settings.command_timeout):
                with _errors(self._guess):
                    await connection.send_packed_command(
                        connection.pack_commands(commands)
                    )
                    for command in commands:
                        answers.append(await self._answer(command))
        except TimeoutError:
            name = " ".join(str(word) for word in commands[len(answers)][:2])
            raise Unreachable(
                f"timeout: {name} was not answered within {self._settings.command_timeout:g}s"
            ) from None
        return answers

    async def one(self, *command: str | int) -> Any:
        """Return the answer to one command. Raises as `ask`, and CommandFailed."""
        (answer,) = await self.ask(command)
        if isinstance(answer, CommandFailed):
            raise answer
        return answer

    async def info(self, *sections: str) -> Info:
        """Return the fields of INFO. Raises as `one`."""
        return read_info(await self.one("INFO", *sections))

    async def _answer(self, command: Command) -> Any:
        try:
            answer = _decoded(await self._connection.read_response())
            self._guess = ""
            return answer
        except (AuthenticationError, AuthorizationError, Disconnected):
            raise
        except ResponseError as error:
            return _refused(str(error), command)


def read_info(answer: object) -> Info:
    """Return the fields of an answer to INFO or CLUSTER INFO."""
    lines = (line.partition(":") for line in str(answer).splitlines())
    return {
        name: value for name, colon, value in lines if colon and not name[:1] == "#"
    }


def _refused(message: str, command: Command) -> CommandFailed:
    """Return why a command failed. Raises Busy where no command is answered."""
    if message.startswith("BUSY"):
        raise Busy("the server is busy with a script that does not end (BUSY)")
    if message.startswith(_LOADING):
        raise Busy(f"the server does not serve: {text(message, 200)}")
    name = " ".join(str(word) for word in command[:2])
    why = f"{name}: {text(message, 200)}"
    lowered = message.lower()
    if message.startswith("NOPERM") or "permissions to run" in lowered:
        grant = str(command[0]).lower()
        if len(command) > 1 and grant in _WITH_SUBCOMMANDS:
            grant = f"{grant}|{str(command[1]).lower()}"
        return NotPermitted(why, hint=f"allow it: ACL SETUSER USER +{grant}")
    if "unknown command" in lowered or "unknown subcommand" in lowered:
        return NotPermitted(why, hint="the server does not have it")
    return CommandFailed(why)


_WITH_SUBCOMMANDS = frozenset(
    ("acl", "client", "cluster", "config", "latency", "memory", "slowlog")
)


def _guess(settings: RedisSettings, tls: bool) -> str:
    """Return why a server may hang up before its first answer."""
    if not tls:
        return "if this port speaks TLS, use rediss://"
    known = settings.client_certificate is not None
    return "" if known else "the server may ask for a client_certificate"


@contextlib.contextmanager
def _errors(guess: str) -> Iterator[None]:
    """Map the errors of a connection. A refused login, or TLS that fails, is an error in the settings, not an outage.

    `guess` is why the server may hang up at this moment.
    """
    try:
        yield
    except (AuthenticationError, AuthorizationError) as error:
        raise ObservationFailed(
            f"the login is refused: {text(error, 200)}",
            hint="check the user and the password in url or password_file",
        ) from None
    except TimedOut as error:
        raise Unreachable(f"timeout: {text(error, 200)}") from None
    except (Disconnected, RedisError) as error:
        raise _mapped(without_frames(error), guess) from None
    except TimeoutError:  # the caller's
        raise
    except OSError as error:
        raise Unreachable(text(error.strerror or error, 300)) from None


def _mapped(error: Exception, guess: str) -> Exception:
    """Return the error to raise for one of a connection that could not be made, or broke."""
    if failure := failure_of(error):
        return failure
    message = text(error, 300)
    if guess and _HUNG_UP.search(message):
        message = f"{message} ({guess})"
    if _FULL in message.lower():
        return Exhausted(f"no free connection: {message}")
    return Unreachable(message)


def _decoded(answer: Any) -> Any:
    if isinstance(answer, bytes):
        return answer.decode("utf-8", "replace")
    if isinstance(answer, list):
        return [_decoded(one) for one in answer]
    return answer


# ------------------------------------------------------------------ the address


def password_of(settings: RedisSettings) -> str | None:
    """Return the password, the present content of the file; None for that of the URL. Raises SettingsError."""
    if settings.password_file is None:
        return None
    try:
        return settings.password_file.read_text("utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"cannot read {settings.password_file}: {error}",
            path=f"subjects.{settings.name}.password_file",
            hint="the file must hold the password and nothing else",
        ) from None


def _connection(settings: RedisSettings) -> AbstractConnection:
    parts: dict[str, Any] = dict(parse_url(settings.url.get_secret_value()))
    kind = parts.pop("connection_class", Connection)
    parts["password"] = password_of(settings) or parts.get("password")
    options: dict[str, Any] = {
        **parts,
        "protocol": 2,  # one form of answers, whatever the version
        "driver_info": None,  # a user with few permissions may not run CLIENT SETINFO
        "socket_timeout": settings.command_timeout,
    }
    if kind is not UnixDomainSocketConnection:
        options["socket_connect_timeout"] = settings.connect_timeout
    connection: AbstractConnection = kind(**options)
    return connection


async def _tls_context(settings: RedisSettings) -> ssl.SSLContext:
    wanted = TlsSettings(
        settings.verify,
        settings.ca_file,
        settings.client_certificate,
        settings.client_key,
        alone=True,
    )
    return await wanted.shared(f"subjects.{settings.name}")
