"""Where subjects answer: which of them are at one address or on one machine, by names and IP addresses."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence

from midwatch.subjects.base import Address, Subject

Resolve = Callable[[str], Collection[str]]
_Ports = dict[int | None, list[str]]
"""The names of subjects by the port at which they are; None has the machines."""

_LOCAL, _LOCAL_NETWORK = "this machine", "the network of this machine"
"""Places of what is on this machine: of all of it, and of all that is no unix socket."""
_REFRESH_SECONDS = 300.0
"""Seconds after which host names are resolved again."""
_SECONDS = 1.0
"""Least time between two changes that are taken into account while names are resolved."""
_MOST_EACH = 20
"""Subjects at one place of which each is named; of more one stands for all."""


class Places:
    """The addresses of subjects.

    Args:
        subjects: The watched systems.
        resolve: Returns the IP addresses of a host name; it may block, and may raise OSError.
        monotonic: The source of time, in seconds.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        resolve: Resolve | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.addresses = {one.name: _addresses(one) for one in subjects}
        self._changed = 0
        self._known: tuple[int, float] | None = None
        self._machines = {
            name
            for name, found in self.addresses.items()
            if any(one.port is None for one in found)
        }
        self._resolve = resolve or _ip_addresses
        self._monotonic = monotonic
        self._ips: dict[str, frozenset[str]] = {}
        self._own: frozenset[str] = frozenset()
        self._resolver: threading.Thread | None = None
        self._resolved_at: float | None = None
        self._indexed: tuple[int, dict[str, _Ports]] | None = None

    @property
    def changes(self) -> int:
        """How often places have changed. While many names are resolved, what follows from them is made once a second."""
        now = self._monotonic()
        resolving = self._resolver is not None and self._resolver.is_alive()
        if self._known is None or not resolving or now - self._known[1] >= _SECONDS:
            self._known = self._changed, now
        return self._known[0]

    # ------------------------------------------------------------------ host names

    def refresh(self) -> None:
        """Start to resolve host names if that is due; never waits.

        A name server may not answer for long. So the names are resolved by a thread of its own, one after the
        other, and places are those of the names that are known.
        """
        now = self._monotonic()
        due = self._resolved_at is None or now - self._resolved_at > _REFRESH_SECONDS
        if not due or len(self.addresses) < 2:
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
        self._set_own(_own_addresses())
        hosts = {one.host for found in self.addresses.values() for one in found}
        for host in sorted(hosts):
            if _ip(host) is None and not host.startswith("/"):
                try:
                    found = frozenset(self._resolve(host))
                except (OSError, UnicodeError):
                    continue  # what was known of it stays
                if found != self._ips.get(host):
                    self._ips[host] = found
                    self._changed += 1

    def _set_own(self, found: frozenset[str]) -> None:
        if found != self._own:
            self._own = found
            self._changed += 1

    # ------------------------------------------------------------------ who is where

    def is_machine(self, name: str) -> bool:
        """Return whether a subject is a whole machine."""
        return name in self._machines

    def is_local(self, name: str) -> bool:
        """Return whether a subject is on this machine; one without an address is observed from here."""
        addresses = self.addresses.get(name, ())
        return not addresses or any(self.is_here(one.host) for one in addresses)

    def is_here(self, host: str) -> bool:
        """Return whether a host is this machine."""
        return _LOCAL in self._names(host)

    def machines(self, host: str) -> list[str]:
        """Return the subjects that are the machine of a host."""
        return sorted({name for some in self._there(host, None) for name in some})

    def at(self, address: Address, name: str) -> list[str]:
        """Return the subjects at a port of a host.

        Of many only the one that follows `name` by the alphabet: each leads to the next one, and so to all.
        """
        return _few(self._there(address.host, address.port), name)

    def on(self, host: str, name: str) -> list[str]:
        """Return the subjects on a host; of those at one port as `at` does. Of many ports only the machines."""
        index = self._index()
        return _on([index[one] for one in self._wanted(host) if one in index], name)

    def named(self, words: Iterable[str], name: str) -> dict[str, str]:
        """Return the subjects whose host has a name that is among words, as `on` does, each with its host."""
        index = self._index()
        return {
            other: word
            for word in words
            if word in index and _ip(word) is None
            for other in _on([index[word]], name)
        }

    def _there(self, host: str, port: int | None) -> list[list[str]]:
        """Return the subjects at a port, once for each name of the place."""
        index = self._index()
        found = (index.get(place, {}).get(port) for place in self._wanted(host))
        return [some for some in found if some]

    def _index(self) -> dict[str, _Ports]:
        """Return the subjects by each name of their places, sorted."""
        changes = self.changes
        if self._indexed is None or self._indexed[0] != changes:
            index: dict[str, _Ports] = {}
            for name in sorted(self.addresses):
                for one in dict.fromkeys(self.addresses[name]):
                    for place in self._names(one.host):
                        there = index.setdefault(place, {}).setdefault(one.port, [])
                        if there[-1:] != [name]:
                            there.append(name)
            self._indexed = changes, index
        return self._indexed[1]

    def _names(self, host: str) -> set[str]:
        """Return the names of the place of a host: two hosts that share one are the same."""
        if host.startswith("/"):  # the folder of a unix socket
            return {host, _LOCAL}
        known = {host, *self._ips.get(host, ())}
        if host == "localhost" or any(map(self._is_own, known)):
            known |= {_LOCAL, _LOCAL_NETWORK}
        return known

    def _wanted(self, host: str) -> set[str]:
        """Return the names of the places of what is on a host: of two sockets the folder decides."""
        if host.startswith("/"):
            return {host, _LOCAL_NETWORK}
        return self._names(host) - {_LOCAL_NETWORK}

    def _is_own(self, host: str) -> bool:
        found = _ip(host)
        return host in self._own or (found is not None and found.is_loopback)


def _on(places: Sequence[_Ports], name: str) -> list[str]:
    """Return the subjects of all ports of places; the machines alone, if these are many."""
    found = {
        other
        for ports in places
        for port, some in ports.items()
        if port is None or len(ports) <= _MOST_EACH
        for other in _few([some], name)
    }
    if len(found) <= _MOST_EACH:
        return sorted(found)
    machines = [ports[None] for ports in places if None in ports]
    return _few(machines, name)


def _few(groups: Sequence[Sequence[str]], name: str) -> list[str]:
    """Return the names of sorted groups; of many only the one that follows `name`, after the last the first."""
    if max(map(len, groups), default=0) <= _MOST_EACH:
        found = {one for some in groups for one in some}
        if len(found - {name}) < _MOST_EACH:
            return sorted(found)
    after = [bisect_right(some, name) for some in groups]
    next_ = [some[at] for some, at in zip(groups, after, strict=True) if at < len(some)]
    return [min(next_ or (some[0] for some in groups))]


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
