"""One bounded HTTP request."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from midwatch.lifecycle import Clock, SystemClock, load_modules
from midwatch.subjects import tls
from midwatch.subjects.content_coding import Decompressor, decode
from midwatch.subjects.http_errors import (
    WebFailure,
    foreign_errors,
    map_handshake_error,
    map_http_error,
)
from midwatch.subjects.http_trace import Handshaken, Hop, Trace, origin_of, show_origin
from midwatch.text import ticket_line

if TYPE_CHECKING:
    import httpx2

    from midwatch.subjects.http_transport import Transport

T = TypeVar("T")
_OUTSIDE = {"timeout", "dns", "refused", "network"}


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. `body` is decompressed and ends at the limit where `cut` is true.

    `undecoded` says why the body is still compressed, `malformed` why it cannot be decompressed by anyone.
    `timings` are seconds by phase; `seconds` is the total. `hops` end with the address that answered, and
    `slowest` is the one of several that took longest.
    """

    status: int
    reason: str
    version: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    cut: bool
    seconds: float
    hops: tuple[Hop, ...]
    undecoded: str = ""
    malformed: str = ""
    timings: Mapping[str, float] = field(default_factory=dict)
    slowest: str = ""

    @property
    def host(self) -> str:
        return self.hops[-1].origin[1]

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key == name), "")

    def text(self) -> str:
        """Return the body as text: as its byte order mark says, else its content type, else as UTF-8."""
        return decode(self.body, self.header("content-type"))


class WebClient:
    """The HTTP client of one subject. It keeps no cookies, uses no proxy but its own, and bounds bodies.

    Without `keep_alive` every request makes a connection of its own: an old one proves little. The
    connections are prepared at the first request, so that an idle monitor stays small, and the clients with the same
    settings for TLS share its context. `server_name` is the name that a certificate must have, instead of the host.
    With `public_only` nothing connects to a private, loopback or otherwise special address, whatever name leads to it.
    """

    def __init__(
        self,
        *,
        verify: bool = True,
        ca_file: Path | None = None,
        client_certificate: Path | None = None,
        client_key: Path | None = None,
        proxy: str = "",
        path: str = "",
        server_name: str = "",
        keep_alive: bool = False,
        public_only: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self._keep_alive = keep_alive
        self._public_only = public_only
        self._server_name = server_name
        self._tls = tls.TlsSettings(verify, ca_file, client_certificate, client_key)
        self._proxy, self._path = proxy, path
        self._clock = clock or SystemClock()
        if self._tls.has_files:
            self._tls.shared_context(path)  # raises for files that cannot be used
        self._transports: dict[bool, Transport] = {}

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
        consume: Callable[[bytes], bool] | None = None,
    ) -> Answer:
        """Send one request and read its response.

        Args:
            method: The HTTP method.
            url: The URL.
            timeout: Seconds for all of it, redirects included.
            limit: Bytes of the body that are read, and that it may have decompressed.
            params: Added to the query.
            headers: Sent to the origin of `url` only, not to other origins that it redirects to.
            redirects: How many redirects are followed.
            consume: Takes each piece of the body, which is not kept then, and returns whether to read on.

        Raises:
            WebFailure: There is no complete answer; `cause` has the reason.
        """
        await load_modules("midwatch.subjects.http_transport")
        trace = Trace(self._clock, bool(self._proxy))
        try:
            async with asyncio.timeout(timeout):
                return await self._follow(
                    method,
                    url,
                    params,
                    dict(headers or {}),
                    redirects,
                    limit,
                    trace,
                    consume,
                )
        except TimeoutError:
            failure = WebFailure(
                "timeout", f"no answer within {timeout:.3g} s: {trace.reached()}"
            )
        except WebFailure as known:
            failure = known
        except foreign_errors() as error:
            failure = map_http_error(error)
        if self._proxy and "connect" not in trace.timings and failure.cause in _OUTSIDE:
            failure = WebFailure(
                "proxy", f"no connection to the proxy: {failure.message}"
            )
        raise failure.at(trace)

    async def examine(self, hop: Hop, timeout: float) -> tls.Problems:
        """Return all the reasons for which the certificate of an address is not accepted.

        Nothing is requested. `timeout` is in seconds. Raises WebFailure.
        """
        new = partial(self._tls.new, self._path)
        examining = tls.examine(partial(self._handshake, hop), new)
        return await _in_time(examining, timeout)

    async def accepted(self, hop: Hop, timeout: float) -> tuple[bytes, ...]:
        """Return the certificates from an address up to a trusted authority, as `examine`. Raises Refused and WebFailure."""
        context = await self._tls.shared(self._path)
        return await _in_time(self._handshake(hop, context), timeout)

    async def peek(self, hop: Hop, timeout: float) -> tuple[bytes, ...]:
        """Return the certificates that an address shows, accepted or not; nothing is requested.

        A `hop.name` that is an IP address is not sent: the server then shows the certificate of a client without SNI
        (RFC 6066, section 3). `timeout` is in seconds. Raises WebFailure.
        """
        context = await self._tls.new(self._path)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return await _in_time(self._handshake(hop, context), timeout)

    async def _handshake(self, hop: Hop, context: ssl.SSLContext) -> tuple[bytes, ...]:
        """Connect as a request would, and return the certificates. Raises Refused and WebFailure."""
        transport = self._new_transport(context)
        trace = Trace(self._clock, bool(self._proxy), handshake_only=True)
        try:
            await self._send(
                transport, "HEAD", show_origin(hop.origin), {}, trace, hop.name
            )
        except Handshaken:
            if chain := trace.hops[-1].chain:
                return chain
            raise WebFailure("tls", "the server shows no certificate") from None
        except foreign_errors() as error:
            raise map_handshake_error(error) from None
        finally:
            await transport.aclose()
        raise WebFailure("tls", "the server does not speak TLS")

    async def _follow(
        self,
        method: str,
        url: str,
        params: Mapping[str, str] | None,
        headers: dict[str, str],
        redirects: int,
        limit: int,
        trace: Trace,
        consume: Callable[[bytes], bool] | None,
    ) -> Answer:
        import httpx2

        cookies = httpx2.Cookies()
        address = httpx2.URL(url)
        if params:
            address = address.copy_merge_params(params)
        home = origin_of(address)
        for _ in range(redirects + 1):
            at_home = origin_of(address) == home
            name = self._server_name if at_home else ""
            given = {
                "accept": "*/*",
                # Fewer servers compress then; what comes compressed all the same is read.
                "accept-encoding": "identity",
                "user-agent": "midwatch",
                **(headers if at_home else {}),
            }
            transport = await self._transport(secure=address.scheme == "https")
            response = await self._send(
                transport, method, address, given, trace, name, cookies
            )
            try:
                following = _location(response) if redirects else None
                if following is None:
                    return await self._read(response, limit, trace, consume)
                cookies.extract_cookies(response)
            finally:
                await response.aclose()
            address, method = following, _next_method(method, response.status_code)
        raise WebFailure("redirects", f"more than {redirects} redirects")

    async def _send(
        self,
        transport: Transport,
        method: str,
        url: httpx2.URL | str,
        headers: Mapping[str, str],
        trace: Trace,
        name: str,
        cookies: httpx2.Cookies | None = None,
    ) -> httpx2.Response:
        import httpx2

        from midwatch.subjects.http_transport import on_lookup

        address = httpx2.URL(url)
        # No certificate has a name that ends with the dot of an absolute name.
        name = name or address.host.rstrip(".")
        extensions: dict[str, Any] = {"trace": trace}
        if name != address.host:
            extensions["sni_hostname"] = name
        request = httpx2.Request(
            method,
            address,
            headers=[
                (name.encode(), value.encode()) for name, value in headers.items()
            ],
            cookies=cookies,
            extensions=extensions,
        )
        trace.follow(Hop(origin_of(address), name))
        on_lookup.set(partial(trace.mark, "dns"))
        response = await transport.handle_async_request(request)
        response.request = request
        return response

    async def _read(
        self,
        response: httpx2.Response,
        limit: int,
        trace: Trace,
        consume: Callable[[bytes], bool] | None,
    ) -> Answer:
        body = bytearray()
        received = 0
        decoder = Decompressor(response.headers.get("content-encoding", ""), limit)

        def keep(piece: bytes) -> bool:
            body.extend(piece)
            return not decoder.cut

        take = consume or keep
        trace.mark("body", "started")
        async for chunk in response.aiter_raw():
            received += len(chunk)
            wanted = all(take(piece) for piece in decoder.feed(chunk))
            if not wanted or decoder.malformed or received > limit:
                break
        trace.mark("body", "complete")
        problem = decoder.undecoded or decoder.malformed
        if problem and consume is not None:
            raise WebFailure("protocol", problem)
        return Answer(
            status=response.status_code,
            reason=ticket_line(response.reason_phrase, 60),
            version=response.http_version,
            headers=tuple(
                (name, ticket_line(value, 500))
                for name, value in response.headers.multi_items()
            ),
            body=bytes(body[:limit]),
            cut=received > limit or decoder.cut,
            seconds=trace.elapsed(),
            hops=tuple(trace.hops),
            undecoded=decoder.undecoded,
            malformed=decoder.malformed,
            timings=trace.so_far()[0],
            slowest=trace.slowest(),
        )

    async def _transport(self, *, secure: bool) -> Transport:
        """Return what connects to the addresses with TLS, or to those without."""
        if secure not in self._transports:
            context = None
            if secure or self._proxy:  # the connection to a proxy may have TLS too
                context = await self._tls.shared(self._path)
            if secure not in self._transports:
                self._transports[secure] = self._new_transport(context)
        return self._transports[secure]

    def _new_transport(self, context: ssl.SSLContext | None) -> Transport:
        from midwatch.subjects.http_transport import Transport

        return Transport(context, self._keep_alive, self._proxy, self._public_only)

    async def close(self) -> None:
        transports, self._transports = self._transports, {}
        for transport in transports.values():
            await transport.aclose()


async def _in_time(handshakes: Coroutine[Any, Any, T], timeout: float) -> T:
    """Await handshakes for `timeout` seconds at most. Raises WebFailure."""
    too_late = WebFailure("timeout", f"no TLS handshake within {timeout:.3g} s")
    try:
        async with asyncio.timeout(timeout):
            return await handshakes
    except TimeoutError:
        raise too_late from None
    except OSError as error:  # OpenSSL cannot read the certificate, for one
        raise map_http_error(error) from None


def _location(response: httpx2.Response) -> httpx2.URL | None:
    """Return the URL that a response redirects to, or None. Raises WebFailure for one that is none."""
    import httpx2

    location = response.headers.get("location", "").strip()
    if response.status_code not in (301, 302, 303, 307, 308) or not location:
        return None
    try:
        url = response.request.url.join(location)
    except (httpx2.InvalidURL, ValueError):
        url = None
    if url is None or url.scheme not in ("http", "https") or not url.host:
        bare = re.sub(r"//[^/]*@", "//", re.split(r"[?#]", location)[0])
        shown = ticket_line(bare, 60)
        raise WebFailure("redirects", f"redirected to an unsupported address: {shown}")
    return url


def _next_method(method: str, status: int) -> str:
    """Return the method after a redirect (RFC 9110, section 15.4)."""
    if status in (302, 303) and method != "HEAD" or (status, method) == (301, "POST"):
        return "GET"
    return method
