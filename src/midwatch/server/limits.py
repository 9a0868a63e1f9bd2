"""What a request must satisfy before any route sees it: its Host, its origin, its headers, its size and its pace."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import Message, Receive

from midwatch.errors import TemporaryError
from midwatch.server.authentication import Authenticator, address_of
from midwatch.server.metrics import ServerStats
from midwatch.server.problems import (
    Forbidden,
    Misdirected,
    TooLarge,
    TooManyHeaders,
    TooSlow,
    Unsupported,
)
from midwatch.server_settings import ServerSettings

_MOST_HEADERS = 100
LONGEST_HEAD = 32_768
"""Bytes of the header of a request."""
_SAFE = ("GET", "HEAD", "OPTIONS")
_OWN = ("same-origin", "none")
"""Values of Sec-Fetch-Site that no other site can cause; `none` is the address bar."""


class TooBusy(TemporaryError):
    """Too many requests are in progress."""

    hint = "try again in a moment"


class Limits:
    """Checks requests before any route sees them, and counts what is in progress.

    Args:
        settings: The limits.
        authenticator: Knows whether a request needs no sign-in, and the cookie of one.
        stats: Where requests, streams and bodies in progress are counted.
    """

    def __init__(
        self, settings: ServerSettings, authenticator: Authenticator, stats: ServerStats
    ) -> None:
        self._settings = settings
        self._cookie = authenticator.cookie
        self._stats = stats
        names = {*settings.hosts, "localhost"}
        if settings.url:
            names.add(urlsplit(settings.url).hostname or "")
        self._names = {name.lower() for name in names}

    def check(self, request: Request) -> None:
        """Check the head of a request.

        Raises:
            RequestRefused: It is not for this server, comes from another site, or has too much or the wrong body.
        """
        raw = request.headers.raw
        if len(raw) > _MOST_HEADERS:
            raise TooManyHeaders(
                f"the request has more than {_MOST_HEADERS} header fields"
            )
        if sum(len(name) + len(value) for name, value in raw) > LONGEST_HEAD:
            raise TooManyHeaders(f"the header has more than {LONGEST_HEAD} bytes")
        host = request.headers.get("host", "")
        given = request.headers.get("authorization", "")
        if not given:
            self._check_host(host)
        if not given.lower().startswith("bearer "):
            # A browser sends Basic by itself, once it has been given it; no browser does so with Bearer.
            self._check_origin(request, host)
        coding = request.headers.get("content-encoding", "identity")
        if coding.lower() != "identity":
            raise Unsupported(
                "the body is compressed", hint="send it without content-encoding"
            )
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._settings.max_body:
            raise self._too_large()

    def _check_host(self, given: str) -> None:
        """Refuse a name that is not ours.

        A foreign site can point its name at this server (DNS rebinding), and its scripts would then be of the same
        origin. It cannot do so with an address.
        """
        try:
            host = urlsplit(f"//{given}").hostname or ""
        except ValueError:
            host = ""
        if address_of(host) is None and host not in self._names:
            raise Misdirected(
                f"this server is not reached as {host[:200]!a}",
                hint="set server.url, or add the name to server.hosts",
            )

    def _check_origin(self, request: Request, host: str) -> None:
        """Refuse a change that another site makes with this browser's cookie, address or sign-in at the proxy."""
        if request.method in _SAFE:
            return
        site = request.headers.get("sec-fetch-site")
        origin = request.headers.get("origin")
        if site is not None:
            own = site in _OWN
        elif origin is not None:
            own = _netloc(origin) == host.lower()
        else:
            # No browser of today sends a change without either of them.
            own = self._cookie not in request.cookies
        if not own:
            raise Forbidden(
                "the request comes from another site",
                hint="open the page itself; a program sends a token instead",
            )

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"the body may have {self._settings.max_body:.0f} bytes",
            hint="send less, or raise server.max_body",
        )

    @contextmanager
    def slot(self, request: Request) -> Iterator[None]:
        """Count a request as in progress while the block runs. Raises TooBusy."""
        stats, settings = self._stats, self._settings
        if is_stream(request):
            if stats.streams >= settings.max_streams:
                raise TooBusy("too many streams of events are open", retry_after=10.0)
            stats.streams += 1
            try:
                yield
            finally:
                stats.streams -= 1
            return
        if stats.active >= settings.max_requests:
            raise TooBusy(retry_after=1.0)
        stats.active += 1
        try:
            yield
        finally:
            stats.active -= 1

    def bounded(self, receive: Receive) -> BoundedBody:
        """Return a receive of ASGI that bounds the body's bytes and its time."""
        return BoundedBody(receive, self._settings, self._stats, self._too_large)


def _netloc(origin: str) -> str | None:
    """Return host and port of an origin; None if it has none."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def is_stream(request: Request) -> bool:
    """Return whether a request is for a stream of events, as EventSource asks for it."""
    return request.headers.get("accept", "").strip() == "text/event-stream"


class BoundedBody:
    """Receives a body of bounded size, in bounded time. `close` gives its memory back.

    Attributes:
        size: Bytes received.
    """

    def __init__(
        self,
        receive: Receive,
        settings: ServerSettings,
        stats: ServerStats,
        too_large: Callable[[], TooLarge],
    ) -> None:
        self._receive = receive
        self._settings = settings
        self._stats = stats
        self._too_large = too_large
        self._complete = False
        self._left = settings.request_time
        self.size = 0

    async def __call__(self) -> Message:
        """Receive the next message. Raises TooLarge, TooSlow, TooBusy."""
        if self._complete:
            return await self._receive()
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(self._left):
                message = await self._receive()
        except TimeoutError:
            raise TooSlow(
                f"the body did not arrive within {self._settings.request_time:g} s"
            ) from None
        # Only the time spent waiting counts, not that of the route between two pieces.
        self._left = max(self._left - (loop.time() - began), 0.0)
        self._count(len(message.get("body", b"")))
        self._complete = not message.get("more_body", False)
        return message

    def _count(self, size: int) -> None:
        self.size += size
        self._stats.bodies += size
        if self.size > self._settings.max_body:
            raise self._too_large()
        if self._stats.bodies > self._settings.max_bodies:
            raise TooBusy("too many large bodies are in memory", retry_after=2.0)

    def close(self) -> None:
        self._stats.bodies -= self.size
