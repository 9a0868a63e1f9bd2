"""What a request went through: the addresses, their certificates, and the seconds of each phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from midwatch.lifecycle import Clock
from midwatch.subjects import tls
from midwatch.units import format_duration

if TYPE_CHECKING:
    import httpx2

Origin = tuple[str, str, int]
_PORTS = {"http": 80, "https": 443}
_PHASES = {
    "connect_tcp": "connect",
    "start_tls": "tls",
    "send_request_headers": "send",
    "receive_response_headers": "first byte",
}
PHASES = ("dns", "connect", "tls", "send", "first byte", "body")
"""The phases of a request, in order."""


@dataclass(frozen=True, slots=True)
class Hop:
    """One address of a request and its redirects, and the certificates that it showed (see `tls.chain`).

    `name` is the one that its own certificate must have; `accepted_until` is when that ends, where Python verified it.
    """

    origin: Origin
    name: str
    chain: tuple[bytes, ...] = ()
    accepted_until: datetime | None = None


class Handshaken(Exception):
    """Ends a request that is about the TLS handshake only."""


class Trace:
    """Times of the phases of a request, and where it went, from the events of the HTTP client."""

    def __init__(
        self, clock: Clock, by_proxy: bool, handshake_only: bool = False
    ) -> None:
        self._clock = clock
        # The connection to a proxy may have TLS too.
        self._tls_event = f"{'proxy' if by_proxy else 'connection'}.start_tls.complete"
        self._handshake_only = handshake_only
        self._began = clock.monotonic()
        self._starts: dict[str, float] = {}
        self._hop_began: list[float] = []
        self.timings: dict[str, float] = {}
        self.hops: list[Hop] = []

    async def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        name, _, moment = event.rpartition(".")
        phase = _PHASES.get(name.rpartition(".")[2])
        if event == self._tls_event:
            await self._secured(info["return_value"])
        if phase is not None:
            self.mark(phase, moment)

    def mark(self, phase: str, moment: str) -> None:
        """Note that a phase has "started" or is "complete"."""
        now = self._clock.monotonic()
        if moment == "started":
            self._starts[phase] = now
        elif moment == "complete" and phase in self._starts:
            spent = now - self._starts.pop(phase)
            self.timings[phase] = self.timings.get(phase, 0.0) + spent

    def follow(self, hop: Hop) -> None:
        """Note that this address is requested next."""
        self.hops.append(hop)
        self._hop_began.append(self._clock.monotonic())

    def so_far(self) -> tuple[Mapping[str, float], str]:
        """Return the seconds by phase, in order, and the phase that did not end. Connecting is without its DNS lookup."""
        now, spent = self._clock.monotonic(), dict(self.timings)
        open_ = [phase for phase in PHASES if phase in self._starts]
        for phase in open_:
            spent[phase] = spent.get(phase, 0.0) + now - self._starts[phase]
        if "dns" in spent and "connect" in spent:
            spent["connect"] = max(0.0, spent["connect"] - spent["dns"])
        if "dns" in open_:
            spent.pop("connect", None)
        ordered = {phase: spent[phase] for phase in PHASES if phase in spent}
        return ordered, open_[0] if open_ else ""

    def slowest(self) -> str:
        """Return which of several addresses took longest, and how long."""
        ends = [*self._hop_began[1:], self._clock.monotonic()]
        spent = [end - began for began, end in zip(self._hop_began, ends, strict=True)]
        if len(spent) < 2:
            return ""
        worst = spent.index(max(spent))
        return f"{show_origin(self.hops[worst].origin)} took {format_duration(spent[worst])}"

    async def _secured(self, stream: Any) -> None:
        secured = stream.get_extra_info("ssl_object")
        until = tls.accepted_until(secured)
        self.hops[-1] = replace(
            self.hops[-1], chain=tls.chain(secured), accepted_until=until
        )
        if self._handshake_only:
            await stream.aclose()
            raise Handshaken

    def elapsed(self) -> float:
        return self._clock.monotonic() - self._began

    def reached(self) -> str:
        """Return how far the request got, for a person."""
        if "first byte" in self.timings:
            return "the answer began but did not end"
        if "send" in self.timings:
            return "connected, but the server sends nothing"
        if "tls" in self._starts:
            return "connected, but the TLS handshake did not end"
        if "connect" in self.timings:
            return "connected, but the request could not be sent"
        if "dns" in self._starts:
            return "the DNS lookup did not end"
        return "no connection"


def origin_of(url: httpx2.URL) -> Origin:
    """Return scheme, host and port of a URL."""
    return url.scheme, url.host, url.port or _PORTS[url.scheme]


def show_origin(origin: Origin) -> str:
    """Return `https://shop.example`, with the port where it is not the usual one."""
    scheme, host, port = origin
    literal = f"[{host}]" if ":" in host else host
    return f"{scheme}://{literal}" + ("" if port == _PORTS[scheme] else f":{port}")
