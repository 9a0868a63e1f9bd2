"""Where a server is, by its settings, and which account is used. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import parse_qs, quote, unquote, urlsplit

from midwatch.errors import SettingsError
from midwatch.subjects.base import Address
from midwatch.subjects.mysql.settings import MysqlSettings

_SCHEME = re.compile(r"(?:mysql|mariadb)(?:\+\w+)?")  # SQLAlchemy's too
_LOCAL = frozenset(("localhost", "127.0.0.1", "::1"))


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """An address and an account; `socket` is used instead of host and port where it is given."""

    host: str
    port: int
    user: str
    password: str
    socket: str | None = None
    extra_port: int | None = None

    @property
    def local(self) -> bool:
        """Whether the server is on this machine."""
        return self.socket is not None or self.host in _LOCAL

    def on_extra_port(self) -> ServerAddress:
        """Return the address for when all connections are taken. Raises ValueError without an extra_port."""
        if self.extra_port is None:
            raise ValueError("no extra_port")
        return replace(self, socket=None, port=self.extra_port)

    def as_address(self) -> Address:
        """Return it as links between subjects take it."""
        if self.socket is not None:
            return Address(self.socket.rpartition("/")[0] or "/", self.port)
        return Address(self.host.lower(), self.port)


def address_of(settings: MysqlSettings) -> ServerAddress:
    """Return the address of the settings. Raises SettingsError for a wrong DSN, which it does not repeat."""
    if settings.dsn is not None:
        return replace(
            _of_dsn(settings.dsn.get_secret_value(), settings.name),
            extra_port=settings.extra_port,
        )
    return ServerAddress(
        settings.host or "localhost",
        settings.port,
        settings.user or "",
        settings.password.get_secret_value() if settings.password else "",
        str(settings.socket) if settings.socket else None,
        settings.extra_port,
    )


def _of_dsn(dsn: str, name: str) -> ServerAddress:
    try:
        parts = urlsplit(dsn)
        options = parse_qs(parts.query, strict_parsing=bool(parts.query))
        if not _SCHEME.fullmatch(parts.scheme) or options.keys() - {"socket"}:
            raise ValueError
        socket = options.get("socket", [""])[-1] or None
        return ServerAddress(
            parts.hostname or "localhost",
            parts.port or 3306,
            unquote(parts.username or ""),
            unquote(parts.password or ""),
            socket,
        )
    except ValueError:
        raise SettingsError(
            "the DSN is invalid",
            path=f"subjects.{name}.dsn",
            hint="use mysql://user:password@host:3306 or mysql://user@localhost?socket=/path, %-encode special "
            "characters of the password, and set TLS by tls and ca_file",
        ) from None


def secrets_of(settings: MysqlSettings) -> tuple[str, ...]:
    """Return the password, plain and in the forms that a URL can have."""
    password = address_of(settings).password
    forms = {password, quote(password), quote(password, safe="")}
    if settings.dsn is not None:
        written = urlsplit(settings.dsn.get_secret_value()).password
        forms.add(written or "")
    return tuple(sorted(filter(None, forms), key=len, reverse=True))
