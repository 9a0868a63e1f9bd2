"""The certificates that the hosts of ingresses show, by handshakes: their Secrets are never read.

Each host is connected to about once an hour, away from the API server and from the cycle of observations. What was
seen is kept in the state of the subject, so that a restart examines nothing twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from midwatch.errors import MidwatchError
from midwatch.lifecycle import Clock, cancel
from midwatch.model import Fact, Invariant, Json, Ticket
from midwatch.subjects import tls
from midwatch.subjects.base import EvidenceSource
from midwatch.subjects.certificates import (
    CERTIFICATE_INVARIANTS,
    check_certificates,
    described,
    explained,
    parse_chain,
)
from midwatch.subjects.http_client import WebClient
from midwatch.subjects.http_trace import Hop
from midwatch.subjects.kubernetes.ingress_fields import Ingress
from midwatch.text import ticket_line

INTERVAL = 3600.0
"""Seconds between two handshakes with a host whose certificate is fine."""
_SOONER = 300.0
"""The same for one that is refused, ends soon, or could not be seen: a new certificate is noticed soon."""
_STILL_TRUE = 3 * INTERVAL
MOST_HOSTS = 200
_AT_ONCE = 4
_MOST_ADDRESSES = 3
_MOST_SOURCES = 4
_PORT = 443
_ALL = {one.id: one for one in CERTIFICATE_INVARIANTS}


@dataclass(frozen=True, slots=True)
class Examined:
    """What a host showed; times are seconds since 1970.

    Attributes:
        at: When it was examined; 0 for never.
        end: When the first certificate of the chain ends; 0 if that is unknown.
        refused: Why clients refuse the certificate; empty if they accept it.
        unknown: Why nothing is known; empty if something is.
        shown: The host's own certificate in a line.
        address: Where it was seen.
    """

    at: float = 0.0
    end: float = 0.0
    refused: str = ""
    unknown: str = ""
    shown: str = ""
    address: str = ""


NEVER = Examined(unknown="it was not examined yet")


class IngressCertificates:
    """Examines the certificates of hosts.

    Args:
        ca_file: Certificate authorities to trust besides the system's.
        path: The path of the subject in the settings, for errors.
        invariant: The invariant, with the limit and `ignore` of the settings.
        clock: The source of time.
        limit: Seconds that a handshake may take.

    Attributes:
        soon: Seconds before the end of a certificate from which it breaks the invariant.

    Raises:
        SettingsError: `ca_file` cannot be used.
    """

    def __init__(
        self,
        ca_file: Path | None,
        path: str,
        invariant: Invariant,
        clock: Clock,
        limit: float,
    ) -> None:
        self._client = WebClient(ca_file=ca_file, path=path, clock=clock)
        self.soon, self._clock = invariant.limit or 0.0, clock
        self._ignores = invariant.ignores
        self._limit = limit
        self._known: dict[str, Examined] = {}
        self._hosts: dict[str, str] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def restore(self, state: object) -> None:
        """Take over what an earlier process has seen, unless something is known already."""
        if self._known or not isinstance(state, dict):
            return
        for key, values in state.items():
            if isinstance(values, list) and len(values) == len(astuple(NEVER)):
                self._known[str(key)] = Examined(*values)

    def state(self) -> Json:
        """Return what `restore` takes."""
        return {key: list(astuple(one)) for key, one in self._known.items()}

    def of(self, ingress: Ingress, host: str) -> Examined:
        """Return what a host showed; `unknown` says why that is not known now."""
        key = _key(host, ingress.addresses)
        found = self._known.get(key, NEVER)
        if key not in self._hosts:
            return Examined(unknown=f"more than {MOST_HOSTS} hosts have certificates")
        if not found.unknown and self._age(found) > _STILL_TRUE:
            return replace(found, unknown="it was not examined for hours")
        return found

    def shown(self) -> dict[str, Fact]:
        """Return the certificate of each host in a line; None where it is not known."""
        return {
            f"certificate {host}": self._known.get(key, NEVER).shown or None
            for key, host in self._hosts.items()
        }

    async def examine(self, ingresses: Iterable[Ingress], seconds: float) -> None:
        """Begin the handshakes that are due, and wait for them for `seconds` at most; they go on after that."""
        wanted: dict[str, tuple[str, Sequence[tuple[str, int]]]] = {}
        for one in sorted(ingresses, key=lambda one: one.key):
            about = {"namespace": one.namespace, "kind": "Ingress", "name": one.name}
            for host in one.tls_hosts:
                if self._ignores({**about, "host": host}):
                    continue
                wanted[_key(host, one.addresses)] = host, one.addresses
        some = dict(list(wanted.items())[:MOST_HOSTS])
        self._hosts = {key: host for key, (host, _) in some.items()}
        self._known = {
            key: one for key, one in self._known.items() if key in self._hosts
        }
        for key, (host, addresses) in some.items():
            if key not in self._running and self._is_due(self._known.get(key, NEVER)):
                work = self._examined(key, host, addresses)
                self._running[key] = asyncio.create_task(work)
        if self._running:
            await asyncio.wait(self._running.values(), timeout=max(0.0, seconds))

    def sources(
        self, tickets: Sequence[Ticket], timeout: float
    ) -> list[EvidenceSource]:
        """Return the sources of the certificates that tickets are about; `timeout` is in seconds."""
        found = []
        for one in tickets[:_MOST_SOURCES]:
            host, address = one.facts.get("host"), one.facts.get("address")
            if isinstance(host, str) and isinstance(address, str) and address:
                fetch = partial(self._chain, host, address)
                title = f"Certificates that {host} shows"
                found.append(EvidenceSource(title, address, fetch, 7, timeout))
        return found

    async def _chain(self, host: str, address: str) -> str:
        """Return the certificates that a host shows now, one field a line. Raises WebFailure."""
        where, _, port = address.rpartition(":")
        hop = Hop(("https", where.strip("[]"), int(port)), host)
        chain = await self._client.peek(hop, self._limit)
        certificates, unreadable = parse_chain(chain, None)
        return "\n".join(
            filter(None, (tls.describe(certificates, self._clock.now()), unreadable))
        )

    async def close(self) -> None:
        """End the handshakes."""
        await cancel(*self._running.values())
        self._running.clear()
        await self._client.close()

    def _age(self, found: Examined) -> float:
        return self._clock.now().timestamp() - found.at

    def _is_due(self, found: Examined) -> bool:
        age = self._age(found)
        ends_soon = found.end - self._clock.now().timestamp() < self.soon
        sooner = found.refused or found.unknown or ends_soon
        return not 0 <= age < (_SOONER if sooner else INTERVAL)

    async def _examined(
        self, key: str, host: str, addresses: Sequence[tuple[str, int]]
    ) -> None:
        try:
            async with self._turns:
                found = NEVER
                places = [*addresses[:_MOST_ADDRESSES]] or [(host, _PORT)]
                for address, port in places:
                    hop = Hop(("https", address, port), host)
                    found = await self._one(hop)
                    if not found.unknown:
                        break
            if key in self._hosts:
                self._known[key] = found
        finally:
            self._running.pop(key, None)

    async def _one(self, hop: Hop) -> Examined:
        """Return what one address shows for a host."""
        _, address, port = hop.origin
        place = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        try:
            try:
                chain = await self._client.accepted(hop, self._limit)
                problems = tls.Problems("", "", chain)
            except tls.Refused as refused:
                problems = await self._reasons(hop, refused)
        except MidwatchError as failure:
            why = ticket_line(f"{place}: {failure.message}", 200)
            problems, unknown = tls.Problems(None, None), why
        else:
            unknown = ""
        return judged(hop.name, problems, self._clock.now(), place, unknown)

    async def _reasons(self, hop: Hop, refused: tls.Refused) -> tls.Problems:
        try:
            found = await self._client.examine(hop, self._limit)
        except (MidwatchError, tls.Refused):
            return tls.Problems.of_first(refused)
        return explained(found, refused, self._clock.now())


def judged(
    host: str, problems: tls.Problems, now: datetime, place: str, unknown: str
) -> Examined:
    """Return what the certificates of a host mean (pure).

    Args:
        host: The name that its certificate must have.
        problems: Its certificates and why they are refused.
        now: The time.
        place: The address.
        unknown: Why nothing was seen; empty otherwise.
    """
    if unknown:
        return Examined(now.timestamp(), unknown=unknown, address=place)
    found = check_certificates(host, place, problems, None, now, _ALL)
    ends = [one.value for one in found.signals if one.value is not None]
    refused = [one.message for one in found.signals if one.holds is False]
    refused += [
        one.message for one in found.signals if one.value is not None and one.value <= 0
    ]
    unread = next(iter(found.unsupported.values()), "")
    return Examined(
        at=now.timestamp(),
        end=now.timestamp() + min(ends) if ends else 0.0,
        refused=ticket_line("; ".join(refused), 400),
        unknown="" if refused else unread or ("" if ends else "it has no end"),
        shown=described(problems.chain[0]) if problems.chain else "",
        address=place,
    )


def ends_at(found: Examined) -> str:
    """Return the end of a certificate as text."""
    return datetime.fromtimestamp(found.end, UTC).isoformat(timespec="minutes")


def _key(host: str, addresses: Sequence[tuple[str, int]]) -> str:
    return f"{host} {','.join(f'{address}:{port}' for address, port in addresses)}"
