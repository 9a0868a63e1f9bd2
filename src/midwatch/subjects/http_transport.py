"""Connections that read the answers which curl and browsers read.

h11 reads HTTP/1.1 as RFC 9112 writes it, and refuses `Server : x`, a chunk that ends with a bare line feed or
`Transfer-Encoding: chunked` given twice. Every other client of such a server works, so that its monitor must
not find it broken. `AnswerReader` writes such answers in the strict form; what cannot be understood, or would
leave the length of the body unclear, passes unchanged, and h11 refuses it.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import re
import socket
import ssl
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Sequence,
)
from contextvars import ContextVar
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

import httpcore2
import httpx2

MAX_HEAD = 300_000
"""Bytes of a head that are read, as by curl."""
_MAX_SIZE_LINE = 16_384
_END_OF_HEAD = re.compile(rb"\n\r*\n")
_STATUS = re.compile(
    rb"HTTP/(\d)(?:\.(\d))?[ \t]+(\d{3})(?!\d)[ \t]*(.*)", re.IGNORECASE | re.DOTALL
)
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_SIZE = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,16})(?![0-9A-Fa-f])")
_LENGTH = re.compile(rb"\+?([0-9]+)\b")
_END_OF_LINE = re.compile(rb"\r*\n")
_NO_BREAK = bytes.maketrans(b"\r\x0b\x0c", b"   ")  # RFC 9110, section 5.5


class AnswerReader:
    """Turns what a server sends into strict HTTP/1.1, in any pieces, without waiting for a body."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._left = 0  # bytes of the chunk
        self._step: Callable[[], bytes | None] = self._head

    def restart(self) -> None:
        """Expect the answer to another request."""
        self._buffer.clear()
        self._searched = 0
        self._step = self._head

    def feed(self, data: bytes) -> bytes:
        """Return what can be passed on after `data`; b"" ends the connection."""
        self._buffer += data
        out = bytearray()
        while (part := self._step()) is not None:
            out += part
        if not data:  # a head that ends with the connection is complete
            rest = bytes(self._buffer)
            self._buffer.clear()
            out += strict_head(rest) if self._step == self._head and rest else rest
        return bytes(out)

    def _taken(self, end: int) -> bytes:
        part = bytes(self._buffer[:end])
        del self._buffer[:end]
        self._searched = 0
        return part

    def _head(self) -> bytes | None:
        blank = len(self._buffer) - len(self._buffer.lstrip(b"\r\n"))
        del self._buffer[:blank]
        found = _END_OF_HEAD.search(self._buffer, max(0, self._searched - 8))
        if found is None:
            self._searched = len(self._buffer)
            if len(self._buffer) <= MAX_HEAD:
                return None
            self._step = self._rest
            return b""
        head = strict_head(self._taken(found.end()))
        lines = head.split(b"\r\n")
        status = lines[0][9:12]
        if not status.startswith(b"1") or status == b"101":
            chunked = b"Transfer-Encoding: chunked" in lines
            self._step = self._size if chunked else self._rest
        return head

    def _rest(self) -> bytes | None:
        return self._taken(len(self._buffer)) or None

    def _line(self, limit: int) -> bytes | None:
        """Return the next line with its end, or nothing; a line beyond `limit` passes unchanged."""
        end = self._buffer.find(b"\n", self._searched) + 1
        if not end:
            self._searched = len(self._buffer)
            if len(self._buffer) > limit:
                self._step = self._rest
            return b"" if len(self._buffer) > limit else None
        return self._taken(end)

    def _size(self) -> bytes | None:
        line = self._line(_MAX_SIZE_LINE)
        if not line:
            return line
        found = _SIZE.match(line)
        if found is None:
            self._step = self._rest
            return line
        self._left = int(found[1], 16)
        self._step = self._chunk if self._left else self._trailer
        return b"%x\r\n" % self._left

    def _chunk(self) -> bytes | None:
        if self._left:
            part = self._taken(min(self._left, len(self._buffer)))
            self._left -= len(part)
            return part or None
        end = _END_OF_LINE.match(self._buffer)
        if end is None:
            if not self._buffer.strip(b"\r"):
                return None
            self._step = self._rest
            return b""
        self._taken(end.end())
        self._step = self._size
        return b"\r\n"

    def _trailer(self) -> bytes | None:
        line = self._line(MAX_HEAD)
        if not line:
            return line
        if line.strip(b"\r\n"):
            return b""  # a trailer, which is not needed
        self._step = self._rest
        return b"\r\n"


def strict_head(head: bytes) -> bytes:
    """Return the head of an answer as RFC 9112 writes it, or unchanged where it is not one."""
    lines = [line.rstrip(b"\r") for line in head.split(b"\n")]
    found = _STATUS.fullmatch(lines[0])
    if found is None:
        return head
    major, minor, status, reason = found.groups()
    shown = bytes(char for char in reason if char >= 32 or char == 9)
    kept = [b"HTTP/%s.%s %s %s" % (major, minor or b"0", status, shown)]
    lengths: list[bytes] = []
    codings: list[bytes] = []
    for name, value in _fields(lines[1:]):
        match name.lower():
            case b"content-length":
                lengths += [part.strip() for part in value.split(b",")]
            case b"transfer-encoding":
                codings += [part.strip().lower() for part in value.split(b",")]
            case _:
                kept.append(name + b": " + value)
    chunked = b"chunked" in codings
    # A coding of the transfer is one more coding of the content to the reader of the body.
    others = [
        coding for coding in codings if coding not in (b"", b"identity", b"chunked")
    ]
    kept += [b"Content-Encoding: " + coding for coding in others]
    kept += [b"Transfer-Encoding: chunked"] if chunked else _lengths(lengths)
    return b"\r\n".join([*kept, b"", b""])


def _fields(lines: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
    """Return names and values, with folded lines joined and without those whose name is not a token."""
    found: list[tuple[bytes, bytes]] = []
    parts: list[bytes] = []
    name = b""

    def end() -> None:
        if _TOKEN.fullmatch(name):
            found.append((name, b" ".join(parts)))

    for line in lines:
        text = line.translate(_NO_BREAK)
        if text[:1] in (b" ", b"\t"):
            parts.append(text.strip(b" \t"))
            continue
        end()
        before, _, after = text.partition(b":")
        name, parts = before.rstrip(b" \t"), [after.strip(b" \t")]
        if b":" not in text:
            name = b""
    end()
    return found


def _lengths(values: Iterable[bytes]) -> list[bytes]:
    """Return the header for the length of a body. One beyond every file means: until the connection ends."""
    found = {
        (match[1].lstrip(b"0") or b"0") if (match := _LENGTH.match(value)) else value
        for value in values
    }
    return [b"Content-Length: " + value for value in found if len(value) < 19]


# ------------------------------------------------------------------ the connections


class _Stream(httpcore2.AsyncNetworkStream):
    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream
        self._reader = AnswerReader()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        while True:
            data = await self._stream.read(max_bytes, timeout)
            ready = self._reader.feed(data)
            if ready or not data:
                return ready

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._reader.restart()
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            secured = await self._stream.start_tls(
                ssl_context, server_hostname, timeout
            )
        except asyncio.CancelledError:
            # At a time limit: httpcore2 has not got the connection yet, and would leave it open.
            await self._stream.aclose()
            raise
        return _Stream(secured)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


on_lookup: ContextVar[Callable[[str], None] | None] = ContextVar(
    "on_lookup", default=None
)
"""Called with "started" and "complete" around each DNS lookup, which the HTTP client counts as connecting."""
_NEXT_ADDRESS = 0.25  # seconds until the next address is tried as well (RFC 8305)


class _Backend(httpcore2.AnyIOBackend):
    """Connects to the first address that answers, and reports how long the lookup took.

    With `public_only` a name with any other address than public ones is refused.
    """

    def __init__(self, public_only: bool = False) -> None:
        super().__init__()
        self._public_only = public_only

    async def connect_tcp(
        self, host: str, port: int, *args: Any, **kwargs: Any
    ) -> httpcore2.AsyncNetworkStream:
        connect = (
            super().connect_tcp
        )  # in a comprehension there is no `super()` before Python 3.12
        addresses = await _addresses(host, port)
        if self._public_only and not all(map(is_public, addresses)):
            raise PermissionError(
                errno.EACCES, "its address is private, which is not allowed"
            )
        attempts = [
            partial(connect, address, port, *args, **kwargs) for address in addresses
        ]
        return _Stream(await _first_connected(attempts))


async def _first_connected(
    attempts: Sequence[Callable[[], Coroutine[Any, Any, httpcore2.AsyncNetworkStream]]],
) -> httpcore2.AsyncNetworkStream:
    """Return the first connection of several attempts, each begun a little after the one before, and close the others."""
    if len(attempts) == 1:
        return await attempts[0]()
    running: list[asyncio.Task[httpcore2.AsyncNetworkStream]] = []
    won: asyncio.Task[httpcore2.AsyncNetworkStream] | None = None
    try:
        for number, attempt in enumerate(attempts, 1):
            running.append(asyncio.create_task(attempt()))
            wait = _NEXT_ADDRESS if number < len(attempts) else None
            while won is None and (pending := [t for t in running if not t.done()]):
                done, _ = await asyncio.wait(
                    pending, timeout=wait, return_when=asyncio.FIRST_COMPLETED
                )
                won = next((t for t in done if t.exception() is None), None)
                if wait is not None:
                    break
            if won is not None:
                return won.result()
        return running[0].result()  # all have failed
    finally:
        for task in running:
            task.cancel()
        for task, ended in zip(
            running, await asyncio.gather(*running, return_exceptions=True), strict=True
        ):
            if task is not won and not isinstance(ended, BaseException):
                await ended.aclose()


_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
"""IPv4 addresses as NAT64 has them in IPv6 (RFC 6052)."""


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the public internet, also where it stands in an IPv6 address."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in _TRANSLATED:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return found.is_global and not found.is_multicast


async def _addresses(host: str, port: int) -> list[str]:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        report = on_lookup.get() or (lambda moment: None)
        report("started")
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        report("complete")
        return list(dict.fromkeys(str(item[4][0]) for item in found))
    return [host]


class _Body(httpx2.AsyncByteStream):
    def __init__(self, response: httpcore2.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert isinstance(self._response.stream, AsyncIterable)
        async for part in self._response.stream:
            yield part

    async def aclose(self) -> None:
        await self._response.aclose()


class Transport(httpx2.AsyncBaseTransport):
    """A pool of connections with HTTP/1.1. Raises the errors of httpcore2. Without a context it has no TLS."""

    def __init__(
        self,
        context: ssl.SSLContext | None,
        keep_alive: bool,
        proxy: str = "",
        public_only: bool = False,
    ) -> None:
        via = urlsplit(proxy)
        login = unquote(via.username or ""), unquote(via.password or "")
        address = f"{via.scheme}://{via.netloc.rpartition('@')[2]}" if proxy else ""
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=context,
            proxy=(
                httpcore2.Proxy(address, auth=login if any(login) else None)
                if proxy
                else None
            ),
            max_keepalive_connections=None if keep_alive else 0,
            network_backend=_Backend(public_only),
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url
        response = await self._pool.handle_async_request(
            httpcore2.Request(
                request.method,
                httpcore2.URL(
                    scheme=url.raw_scheme,
                    host=url.raw_host,
                    port=url.port,
                    target=url.raw_path,
                ),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx2.Response(
            response.status,
            headers=response.headers,
            stream=_Body(response),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()
