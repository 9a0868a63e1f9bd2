"""One bounded HTTP request. Every error of the HTTP client is mapped here and nowhere else."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from midwatch.errors import ObservationFailed
from midwatch.lifecycle import Clock, SystemClock
from midwatch.subjects import tls
from midwatch.text import ticket_line

if TYPE_CHECKING:
    import httpx2

Cause = Literal[
    "timeout",  # no full answer within the time limit
    "dns",  # the host name has no address
    "refused",  # nothing listens there
    "network",  # the connection could not be made, or broke
    "certificate",  # the server's certificate was not accepted
    "tls",  # the TLS handshake failed for another reason
    "protocol",  # what came back is not HTTP
    "redirects",  # too many, or to a place that is not HTTP
    "request",  # the request could not be sent at all
    "local",  # this machine had no descriptors or no memory left
]
Origin = tuple[str, str, int]
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_PHASES = {
    "connect_tcp": "connect",
    "start_tls": "tls",
    "send_request_headers": "send",
    "receive_response_headers": "first byte",
}


class WebFailure(ObservationFailed):
    """The HTTP request failed."""

    def __init__(self, cause: Cause, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. `body` ends at the limit where `cut` is true; it is never decompressed.

    `timings` are seconds by phase; `seconds` is the total. `certificate` is the server's own,
    in DER form; `accepted_until` is when it ends, where Python verified it.
    """

    status: int
    reason: str
    version: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    cut: bool
    host: str
    origin: Origin
    seconds: float
    timings: Mapping[str, float] = field(default_factory=dict)
    certificate: bytes | None = None
    accepted_until: datetime | None = None

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key == name), "")


class WebClient:
    """The HTTP client of one subject. It keeps no cookies, uses no proxies, and bounds bodies.

    Without `keep_alive` every request makes a connection of its own: an old one proves little. The
    client of httpx2 is created at the first request, so that an idle monitor stays small.
    """

    def __init__(
        self,
        *,
        verify: bool = True,
        ca_file: Path | None = None,
        path: str = "",
        keep_alive: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self._keep_alive = keep_alive
        self._verify, self._ca_file = verify, ca_file
        self._path = path
        self._clock = clock or SystemClock()
        self._tls = tls.ssl_context(verify, ca_file, path) if ca_file else None
        self._client: httpx2.AsyncClient | None = None

    @property
    def tls(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = tls.ssl_context(self._verify, self._ca_file, self._path)
        return self._tls

    async def fetch(
        self,
        method: str,
        url: str,
        *,
        timeout: float,
        limit: int,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        redirects: int = 0,
    ) -> Answer:
        """Send one request and read its response.

        Args:
            method: The HTTP method.
            url: The URL.
            timeout: Seconds for all of it, redirects included.
            limit: Bytes of the body that are read.
            params: Added to the query.
            headers: Sent to the origin of `url` only, not to other origins that it redirects to.
            redirects: How many redirects are followed.

        Raises:
            WebFailure: There is no complete answer; `cause` has the reason.
        """
        import httpx2

        trace = _Trace(self._clock)
        try:
            async with asyncio.timeout(timeout):
                return await self._follow(
                    method, url, params, dict(headers or {}), redirects, limit, trace
                )
        except TimeoutError:
            raise WebFailure(
                "timeout", f"no answer within {timeout:.3g} s: {trace.reached()}"
            ) from None
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL) as error:
            raise map_http_error(error) from None

    async def _follow(
        self,
        method: str,
        url: str,
        params: Mapping[str, str] | None,
        headers: dict[str, str],
        redirects: int,
        limit: int,
        trace: _Trace,
    ) -> Answer:
        client = self._opened()
        client.cookies.clear()
        request = client.build_request(
            method,
            url,
            params=params,
            # A compressed body could be a bomb: only the bytes on the wire are read.
            headers={"accept-encoding": "identity", **headers},
            extensions={"trace": trace},
        )
        home = _origin(request.url)
        for _ in range(redirects + 1):
            response = await client.send(request, stream=True)
            try:
                if response.next_request is None or not redirects:
                    return await self._read(response, limit, trace)
                request = response.next_request
            finally:
                await response.aclose()
            if _origin(request.url) != home:
                for name in headers:
                    request.headers.pop(name, None)
        raise WebFailure("redirects", f"more than {redirects} redirects")

    async def _read(
        self, response: httpx2.Response, limit: int, trace: _Trace
    ) -> Answer:
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > limit:
                break
        stream = response.extensions.get("network_stream")
        secured = stream.get_extra_info("ssl_object") if stream else None
        return Answer(
            status=response.status_code,
            reason=ticket_line(response.reason_phrase, 60),
            version=response.http_version,
            headers=tuple(
                (name, ticket_line(value, 500))
                for name, value in response.headers.multi_items()
            ),
            body=bytes(body[:limit]),
            cut=len(body) > limit,
            host=response.request.url.host,
            origin=_origin(response.request.url),
            seconds=trace.elapsed(),
            timings=trace.timings,
            certificate=secured.getpeercert(True) if secured else None,
            accepted_until=tls.accepted_until(secured) if secured else None,
        )

    def _opened(self) -> httpx2.AsyncClient:
        if self._client is None:
            import httpx2

            kept = None if self._keep_alive else 0
            self._client = httpx2.AsyncClient(
                verify=self.tls,
                trust_env=False,
                timeout=None,
                follow_redirects=False,
                limits=httpx2.Limits(max_keepalive_connections=kept),
            )
        return self._client

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


class _Trace:
    """Times of the phases of a request, from the events of the HTTP client."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began = clock.monotonic()
        self._starts: dict[str, float] = {}
        self.timings: dict[str, float] = {}

    async def __call__(self, event: str, _info: Mapping[str, Any]) -> None:
        name, _, moment = event.rpartition(".")
        phase = _PHASES.get(name.rpartition(".")[2])
        if phase is None:
            return
        now = self._clock.monotonic()
        if moment == "started":
            self._starts[phase] = now
        elif moment == "complete" and phase in self._starts:
            spent = now - self._starts[phase]
            self.timings[phase] = self.timings.get(phase, 0.0) + spent

    def elapsed(self) -> float:
        return self._clock.monotonic() - self._began

    def reached(self) -> str:
        """Return how far the request got, for a person."""
        if "first byte" in self.timings:
            return "the answer began but did not end"
        if "send" in self.timings:
            return "connected, but the server sends nothing"
        if "connect" in self.timings:
            return "connected, but the request could not be sent"
        return "no connection"


def map_http_error(error: Exception) -> WebFailure:
    """Map an error of the HTTP client, or the system error below it, to a WebFailure."""
    import httpx2

    for inner in _chain(error):
        known = _map_system_error(inner)
        if known is not None:
            return known
    text = ticket_line(str(error) or type(error).__name__, 200)
    match error:
        case httpx2.TimeoutException():
            return WebFailure("timeout", f"no answer in time: {text}")
        case httpx2.UnsupportedProtocol() | httpx2.TooManyRedirects():
            return WebFailure(
                "redirects", f"redirected to an unsupported address: {text}"
            )
        case httpx2.NetworkError() | httpx2.ProxyError():
            return WebFailure("network", f"the connection failed: {text}")
        case httpx2.LocalProtocolError() | httpx2.InvalidURL():
            return WebFailure("request", f"the request could not be sent: {text}")
        case _:
            return WebFailure("protocol", f"no valid HTTP answer: {text}")


def _map_system_error(error: BaseException) -> WebFailure | None:
    match error:
        case ssl.SSLCertVerificationError():
            reason = ticket_line(error.verify_message or str(error), 200)
            return WebFailure("certificate", f"certificate not accepted: {reason}")
        case ssl.SSLError():
            reason = ticket_line(error.reason or str(error), 200)
            return WebFailure("tls", f"TLS handshake failed: {reason}")
        case socket.gaierror():
            return WebFailure(
                "dns", f"the host name has no address: {error.strerror or error}"
            )
        case ConnectionRefusedError():
            return WebFailure("refused", "connection refused")
        case OSError(errno=code) if code in _EXHAUSTED:
            return WebFailure(
                "local", f"this machine ran out of resources: {error.strerror}"
            )
        case OSError(strerror=str() as reason) if error.errno:
            return WebFailure("network", f"the connection failed: {reason}")
        case _:
            return None


def _chain(error: BaseException, depth: int = 8) -> Iterator[BaseException]:
    """Yield the causes of `error`, the deepest first, then itself."""
    below = error.__cause__ or error.__context__
    if depth and below is not None:
        yield from _chain(below, depth - 1)
    if depth and isinstance(error, BaseExceptionGroup):
        for member in error.exceptions[:4]:
            yield from _chain(member, depth - 1)
    yield error


def _origin(url: httpx2.URL) -> Origin:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)
