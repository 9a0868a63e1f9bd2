"""Links between subjects: who depends on whom, by the settings and by what the systems themselves show.

A link comes from `depends_on`, from addresses (two subjects at one address, a subject at an address of a machine
that is watched too), or from text in which a subject names the address or the name of another one: a command
line, a message, a label, a line of evidence. What was read from text is forgotten after a while.
"""

from __future__ import annotations

import ipaddress
import math
import re
import socket
import string
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from midwatch.subjects.base import Address, Subject

Resolve = Callable[[str], Collection[str]]
_Index = dict[str, list[tuple[str, Address]]]

_LOCAL = "this machine"
_REFRESH_SECONDS = 300.0
"""Seconds after which host names are resolved again."""
_LEARNED_SECONDS = 3600.0
"""Seconds for which a link counts that was read from text."""
_MOST_LEARNED = 1000
_MOST_PAIRED = 20
"""Subjects at one address that are linked each with each; more of them are linked in a ring."""
_LONGEST_TEXT = 20_000  # characters that are searched for addresses


@dataclass(frozen=True, slots=True)
class Link:
    """`subject` depends on the subject `on`. `why` says where that was seen."""

    subject: str
    on: str
    why: str


class Links:
    """The links between subjects.

    Args:
        subjects: The watched systems.
        depends_on: Names of the subjects that each depends on, from the settings.
        resolve: Returns the IP addresses of a host name; it may block, and may raise OSError.
        monotonic: The source of time, in seconds.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        depends_on: Mapping[str, Sequence[str]] | None = None,
        *,
        resolve: Resolve | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._written = dict(depends_on or {})
        self._addresses = {one.name: _addresses(one) for one in subjects}
        self._uses = {one.name: str(getattr(one, "uses", "")) for one in subjects}
        self._resolve = resolve or _ip_addresses
        self._monotonic = monotonic
        self._ips: dict[str, frozenset[str]] = {}
        self._own: frozenset[str] = frozenset()
        self._learned: dict[tuple[str, str], tuple[str, float]] = {}
        self._resolver: threading.Thread | None = None
        self._resolved_at: float | None = None
        self._changes = 0  # of what the links come from
        self._cached: tuple[int, float, dict[str, set[str]]] | None = None

    # ------------------------------------------------------------------ host names

    def refresh(self) -> None:
        """Start to resolve host names if that is due; never waits.

        A name server may not answer for long. So the names are resolved by a thread of its own, one after the
        other, and the links are those of the names that are known.
        """
        now = self._monotonic()
        due = self._resolved_at is None or now - self._resolved_at > _REFRESH_SECONDS
        if not due or len(self._addresses) < 2:
            return
        if self._resolver is None or not self._resolver.is_alive():
            self._resolved_at = now
            self._resolver = threading.Thread(
                target=self._resolve_all, name="midwatch-links", daemon=True
            )
            self._resolver.start()

    def wait(self, seconds: float) -> None:
        """Wait for the host names for `seconds` at most. For commands; it blocks."""
        self.refresh()
        if self._resolver is not None:
            self._resolver.join(seconds)

    def _resolve_all(self) -> None:
        self._own = _own_addresses()
        self._changes += 1
        hosts = {one.host for found in self._addresses.values() for one in found}
        for host in sorted(hosts):
            if _ip(host) is None and not host.startswith("/"):
                try:
                    self._ips[host] = frozenset(self._resolve(host))
                    self._changes += 1
                except (OSError, UnicodeError):
                    pass  # what was known of it stays

    def _places(self, host: str) -> frozenset[str]:
        """Return the names of the place of a host: two hosts that share one are the same."""
        if host.startswith("/"):  # the folder of a unix socket
            return frozenset({host, _LOCAL})
        known = {host, *self._ips.get(host, ())}
        if host == "localhost" or any(self._is_own(each) for each in known):
            known.add(_LOCAL)
        return frozenset(known)

    def _is_own(self, host: str) -> bool:
        found = _ip(host)
        return host in self._own or (found is not None and found.is_loopback)

    @staticmethod
    def _same_host(one: str, other: str) -> bool:
        """Return whether two hosts that share a place are the same: of two sockets the folder decides."""
        sockets = one.startswith("/") and other.startswith("/")
        return one == other if sockets else True

    def _is_local(self, name: str) -> bool:
        """Return whether a subject is on this machine; one without an address is observed from here."""
        addresses = self._addresses.get(name, ())
        return not addresses or any(
            _LOCAL in self._places(one.host) for one in addresses
        )

    def _is_machine(self, name: str) -> bool:
        return any(one.port is None for one in self._addresses[name])

    # ------------------------------------------------------------------ the links

    def links(self) -> tuple[Link, ...]:
        """Return all links that are known now, each pair once."""
        found: dict[tuple[str, str], Link] = {}
        for link in self._all():
            if link.subject != link.on and link.on in self._addresses:
                found.setdefault((link.subject, link.on), link)
        return tuple(found.values())

    def _all(self) -> Iterable[Link]:
        for name, others in self._written.items():
            for other in others:
                yield Link(name, other, "depends_on in the settings")
        there = self._index()
        for name, addresses in self._addresses.items():
            for address in addresses:
                yield from self._at(name, address, there)
        for name, text in self._uses.items():
            for other, said in self._named(name, text, there).items():
                yield Link(name, other, f"{said} in its settings")
            for other, _ in self._on_host("localhost", there) if text else ():
                if self._is_machine(other):
                    yield Link(name, other, "it runs on that machine")
        now = self._monotonic()
        for (name, other), (why, until) in self._learned.copy().items():
            if now < until:
                yield Link(name, other, why)

    def _at(self, name: str, address: Address, there: _Index) -> Iterable[Link]:
        """Return the links of a subject by an address of its own."""
        if address.port is None:
            return
        found = self._on_host(address.host, there)
        for other, port in found:
            if port is None:
                yield Link(name, other, f"it is on that machine ({address.host})")
        same = {other for other, port in found if port == address.port} - {name}
        if (
            len(same) >= _MOST_PAIRED
        ):  # a thousand sites of one proxy have a million pairs
            same = {min((one for one in same if one > name), default=min(same))}
        for other in sorted(same):
            yield Link(name, other, f"both are at {address}")

    def _index(self) -> _Index:
        """Return the subjects with their addresses by each name of the place."""
        found: _Index = {}
        for name, addresses in self._addresses.items():
            for one in addresses:
                for place in self._places(one.host):
                    found.setdefault(place, []).append((name, one))
        return found

    def _on_host(self, host: str, there: _Index) -> list[tuple[str, int | None]]:
        """Return the subjects on a host, each with its port there."""
        return [
            (name, one.port)
            for place in self._places(host)
            for name, one in there.get(place, ())
            if self._same_host(one.host, host)
        ]

    def reach(self, name: str) -> list[str]:
        """Return the subjects that `name` depends on, directly or through others, the deepest first."""
        edges = self._edges()
        return sorted(reached(name, edges), key=lambda one: (_depth(one, edges), one))

    def related(self, name: str) -> frozenset[str]:
        """Return the subjects whose tickets may be of one incident with those of `name`.

        They are those that it depends on, those that depend on it, and those that depend on a system on which it
        depends too; on a machine alone everything depends.
        """
        edges = self._edges()
        needs = reached(name, edges)
        users: dict[str, set[str]] = {}
        for user, others in edges.items():
            for other in others:
                users.setdefault(other, set()).add(user)
        near = {one for one in needs if not self._is_machine(one)}
        left = [name, *near]
        while left:
            new = users.get(left.pop(), set()) - near
            near |= new
            left += new
        return frozenset(needs | near) - {name}

    def deepest_first(self, names: Iterable[str]) -> list[str]:
        """Return names without repetition: what others depend on comes first, else the order stays."""
        edges = self._edges()
        return sorted(dict.fromkeys(names), key=lambda one: _depth(one, edges))

    def _edges(self) -> Mapping[str, set[str]]:
        now, changes = self._monotonic(), self._changes
        if self._cached is not None and self._cached[0] == changes:
            if now < self._cached[1]:
                return self._cached[2]
        edges: dict[str, set[str]] = {name: set() for name in self._addresses}
        for link in self.links():
            edges[link.subject].add(link.on)
        ends = (until for _, until in self._learned.copy().values() if until > now)
        self._cached = changes, min(ends, default=math.inf), edges
        return edges

    # ------------------------------------------------------------------ text

    def learn(self, name: str, text: str, where: str) -> None:
        """Remember which subjects a text of subject `name` has addresses of. `where` is shown as the reason."""
        if self._can_learn(name):
            self._remember(name, self.named(name, text), where)

    def _can_learn(self, name: str) -> bool:
        """Return whether what `name` shows can be a link of it.

        A machine shows the addresses of what runs on it, and does not depend on it; and a link needs two subjects.
        """
        return (
            len(self._addresses) > 1
            and name in self._addresses
            and not self._is_machine(name)
        )

    def learn_opening(
        self, name: str, message: str, facts: Mapping[str, object]
    ) -> None:
        """Remember which subjects a violation of subject `name` names.

        In the message the full name of a host suffices. The value of a label may be the name of a subject, or a
        host: without a subject at the port all that are there.
        """
        self.learn_openings(name, [(message, facts)])

    def learn_openings(
        self, name: str, openings: Iterable[tuple[str, Mapping[str, object]]]
    ) -> None:
        """Do the same for many violations: a message and facts each."""
        if not self._can_learn(name):
            return
        of_fact: dict[str, dict[str, None]] = defaultdict(dict)
        messages: dict[str, None] = {}
        for message, facts in openings:
            messages[message] = None
            for fact, value in facts.items():
                if isinstance(value, str):
                    of_fact[fact][value] = None
        where = "the message of a ticket"
        for text in _joined(messages):
            self.learn(name, text, where)
            self._remember(name, self._hosts_in(name, text), where)
        for fact, values in of_fact.items():
            where = f"the fact {fact} of a ticket"
            for text in _joined(values):
                self.learn(name, text, where)
            if fact.startswith("label_"):
                for value in values:
                    self._remember(name, self._labelled(name, value.strip()), where)

    def _remember(self, name: str, found: Mapping[str, str], where: str) -> None:
        if len(self._learned) >= _MOST_LEARNED:
            self._learned.clear()
            self._changes += 1
        until = self._monotonic() + _LEARNED_SECONDS
        for other, said in found.items():
            if other != name:
                _, known = self._learned.get((name, other), ("", 0.0))
                self._changes += known <= self._monotonic()
                self._learned[name, other] = (f"{said} in {where}", until)

    def named(self, name: str, text: str) -> dict[str, str]:
        """Return the subjects whose addresses a text of subject `name` has, each with the address.

        A loopback address in it means the machine of that subject, not this one.
        """
        return self._named(name, text, self._index())

    def _named(self, name: str, text: str, there: _Index) -> dict[str, str]:
        return {
            other: str(said)
            for said in addresses_in(text[:_LONGEST_TEXT])
            for host in self._from_there(name, said.host)
            for other, port in self._on_host(host, there)
            if said.port in (port, None)
        }

    def _hosts_in(self, name: str, message: str) -> dict[str, str]:
        """Return the subjects whose hosts a message has by a name with a dot in it."""
        words = {word.lower().strip(".") for word in _NAME.findall(message)}
        return {
            other: one.host
            for other, addresses in self._addresses.items()
            for one in addresses
            if one.host in words and "." in one.host and _ip(one.host) is None
        }

    def _labelled(self, name: str, value: str) -> dict[str, str]:
        """Return the subjects that the value of a label stands for."""
        if value in self._addresses:
            return {value: value}
        if self.named(name, value):
            return {}
        there = self._index()
        hosts = [one.host for one in addresses_in(value)] or [value.lower()]
        return {
            other: value
            for said in hosts
            for host in self._from_there(name, said)
            for other, _ in self._on_host(host, there)
        }

    def _from_there(self, name: str, host: str) -> list[str]:
        if _LOCAL not in self._places(host) or self._is_local(name):
            return [host]
        return [one.host for one in self._addresses.get(name, ())]


def reached(name: str, edges: Mapping[str, set[str]]) -> set[str]:
    """Return what can be reached from `name`, without itself; cycles end at what was seen."""
    seen: set[str] = set()
    left = [name]
    while left:
        new = edges.get(left.pop(), set()) - seen
        seen |= new
        left += new
    return seen - {name}


def _depth(name: str, edges: Mapping[str, set[str]]) -> int:
    """Return how many subjects one depends on: always more than any of these, unless they are in a cycle."""
    return len(reached(name, edges))


# ------------------------------------------------------------------ addresses

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


def _joined(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts together, as paragraphs of some that are not too long to be read."""
    part: list[str] = []
    size = 0
    for one in texts:
        if part and size + len(one) > _LONGEST_TEXT:
            yield "\n\n".join(part)
            part, size = [], 0
        part.append(one)
        size += len(one) + 2
    if part:
        yield "\n\n".join(part)


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
        joined = rest[-1:] == ":" or rest[-1:].isalnum()
        if host[-1].isalnum() and not joined and 0 < int(match[1]) < 65536:
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


def _addresses(subject: Subject) -> tuple[Address, ...]:
    """Return where a subject answers; a plug-in may not tell."""
    given: Sequence[Address] = getattr(subject, "addresses", ())
    return tuple(given)


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _ip_addresses(host: str) -> set[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return {str(address[0]).partition("%")[0] for *_, address in found}


def _own_addresses() -> frozenset[str]:
    """Return the addresses of this machine's interfaces."""
    import psutil

    found = psutil.net_if_addrs().values()
    return frozenset(one.address.partition("%")[0] for some in found for one in some)
