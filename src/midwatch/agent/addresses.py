"""Addresses that a text has: URLs, HOST:PORT, connection strings and the options of command lines."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Iterator

from midwatch.subjects.base import Address

LONGEST_TEXT = 20_000
"""Characters that are searched for addresses."""
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,250}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]"
_PATTERNS = {
    "://": re.compile(
        r"(?<![\w+.-])(?P<scheme>[a-z][a-z0-9+.-]{0,20})://(?:[^\s/@\"']{0,250}@)?"
        rf"(?P<host>{_HOST})(?::(?P<port>\d{{1,5}}))?(?![\w.-])"
    ),
    "]:": re.compile(
        r"(?<![\w.:-])(?P<host>\[[0-9A-Fa-f:.]{2,45}\]):(?P<port>\d{2,5})(?!\w|:\d)"
    ),
    # libpq: connection to server at "db.example" (10.0.0.5), port 5432 failed
    'at "': re.compile(
        r"at \"(?P<host>[^\"\s]{1,255})\"(?: \([^)]{0,80}\))?, port (?P<port>\d{1,5})"
    ),
    # libpq: connection to server on socket "/run/postgresql/.s.PGSQL.5432" failed
    "/.s.PGSQL.": re.compile(
        r"(?<![^\s\"'(=])(?P<host>/[^\s\"']{0,200}|)/\.s\.PGSQL\.(?P<port>\d{1,5})"
    ),
}
"""Patterns by what every text has that one matches: looking for that costs next to nothing."""
_PORT = re.compile(r":(\d{2,5})(?!\w|:\d)")
_IN_HOST = string.ascii_letters + string.digits + "._-"
_LONGEST_HOST = 252
_NAME = re.compile(r"(?<![\w.-])[A-Za-z0-9][A-Za-z0-9._-]{2,252}+(?!:\d)")
_OPTION = re.compile(
    r"(?<![\w-])(?:-(?P<short>[hp])[ =]?|(?:--|sender_)?(?P<long>host(?:addr)?|port)[ =])"
    r"['\"]?(?P<value>[^\s'\"&;]{1,255})"
)
_PORTS = {
    **{"http": 80, "https": 443, "postgres": 5432, "postgresql": 5432, "mysql": 3306},
    **{"mariadb": 3306, "redis": 6379, "rediss": 6379, "amqp": 5672, "amqps": 5671},
    **{"mongodb": 27017, "ldap": 389, "ldaps": 636, "nats": 4222, "memcached": 11211},
}
"""Ports by the scheme of a URL without one (IANA's service names)."""


def joined(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts together, as paragraphs of some that are not too long to be read."""
    part: list[str] = []
    size = 0
    for one in texts:
        if part and size + len(one) > LONGEST_TEXT:
            yield "\n\n".join(part)
            part, size = [], 0
        part.append(one)
        size += len(one) + 2
    if part:
        yield "\n\n".join(part)


def host_names_in(text: str) -> set[str]:
    """Return the words of a text that may be full names of hosts, in lower case."""
    words = (word.lower().strip(".") for word in _NAME.findall(text))
    return {word for word in words if "." in word}


def addresses_in(text: str) -> list[Address]:
    """Return the addresses that a text has: URLs, HOST:PORT, connection strings, options such as `-h HOST -p PORT`.

    Most of them are no subject's; it is for comparing with known ones.
    """
    found: dict[Address, None] = {}
    for sign, pattern in _PATTERNS.items():
        for match in pattern.finditer(text) if sign in text else ():
            parts = match.groupdict()
            port = parts["port"] or _PORTS.get(_scheme(parts.get("scheme")), 0)
            if 0 < int(port) < 65536:
                host = parts["host"].strip("[]") or "localhost"
                found[Address(_lowered(host), int(port))] = None
    found.update(dict.fromkeys(_with_ports(text)))
    if "-h" in text or "host" in text:
        options = map(_options, text.splitlines())
        found.update((one, None) for one in options if one is not None)
    return list(found)


def _with_ports(text: str) -> Iterator[Address]:
    """Yield each HOST:PORT of a text. What looks like a port is rarer than what looks like a host, so it leads."""
    for match in _PORT.finditer(text):
        before = text[max(match.start() - _LONGEST_HOST - 2, 0) : match.start()]
        rest = before.rstrip(_IN_HOST)
        host = before[len(rest) :]
        if not host or len(host) > _LONGEST_HOST or not host[0].isalnum():
            continue
        is_part = rest[-1:] == ":" or rest[-1:].isalnum()
        if host[-1].isalnum() and not is_part and 0 < int(match[1]) < 65536:
            yield Address(host.lower(), int(match[1]))


def _options(line: str) -> Address | None:
    """Return the address in the options of a line: `-h HOST -p PORT`, `host=HOST port=PORT`."""
    options = {
        (one["short"] or one["long"])[0]: _lowered(one["value"])
        for one in _OPTION.finditer(line[:4000])
    }
    if not (host := options.get("h", "")):
        return None
    port = options.get("p", "").rstrip(",.")
    known = port.isdecimal() and 0 < int(port) < 65536
    return Address(host, int(port) if known else None)


def _lowered(host: str) -> str:
    """Return a host as it is compared: of the folder of a socket the case counts."""
    return host if host.startswith("/") else host.lower()


def _scheme(name: str | None) -> str:
    return (name or "").partition("+")[0]
