"""As much HTTP/1.1 as a scripted server needs: bounded reading, exact writing, rude endings."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

MAX_HEAD = 64 * 1024
"""Bytes of request line and headers together."""
_DISCARD_FACTOR = 8
"""A body over the limit is read and dropped up to so many times the limit, so that its sender
gets to read the answer; what is longer still loses its connection."""
_LINGER = 1.0
"""Seconds for a client to notice an answer that came before it had sent everything."""


class ProtocolError(Exception):
    """What the client sent is no HTTP request this server takes."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Incoming:
    """A request as it was read; header names in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    too_large: bool
    """The body was over the limit and is not in `body`."""
    keep_alive: bool


class Connection:
    """One client's connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, max_body: int
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._max_body = max_body
        self._buffer = bytearray()
        # Only then does drain() mean that everything went to the kernel.
        writer.transport.set_write_buffer_limits(high=0)

    async def read(self) -> Incoming | None:
        """The next request; None when the client has closed. Raises ProtocolError."""
        head = await self._read_head()
        if head is None:
            return None
        method, target, version, headers = _parse_head(head)
        if headers.get("expect", "").lower() == "100-continue":
            await self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await self._read_body(headers)
        keep_alive = version != "HTTP/1.0" and (
            headers.get("connection", "").lower() != "close"
        )
        return Incoming(method, target, headers, body or b"", body is None, keep_alive)

    async def write(self, data: bytes) -> None:
        """Hand all of `data` to the kernel. Raises ConnectionError when the client is gone."""
        self._writer.write(data)
        await self._writer.drain()

    async def gone(self) -> None:
        """Return when the client closes, if only for sending; no HTTP client does that and waits.

        What it sends meanwhile is kept for `read`.
        """
        while len(self._buffer) <= MAX_HEAD:
            try:
                data = await self._reader.read(MAX_HEAD)
            except ConnectionError:
                return
            if not data:
                return
            self._buffer += data
        await asyncio.Event().wait()

    async def linger(self) -> None:
        """Take and drop what still comes: closing over unread data would destroy the answer."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_LINGER):
                while await self._reader.read(MAX_HEAD):
                    pass

    async def abort(self, *, reset: bool = False) -> None:
        """Close at once, unsent data dropped; with `reset` the client sees a reset, not an end."""
        if reset:
            handle = self._writer.get_extra_info("socket")
            linger_zero = struct.pack("ii", 1, 0)
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_zero)
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _fill(self) -> bool:
        data = await self._reader.read(MAX_HEAD)
        self._buffer += data
        return bool(data)

    async def _read_head(self) -> bytes | None:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > MAX_HEAD:
                raise ProtocolError(431, "request headers are too large")
            if not await self._fill():
                return None
        if end > MAX_HEAD:
            raise ProtocolError(431, "request headers are too large")
        return self._take(end + 4)

    async def _read_body(self, headers: Mapping[str, str]) -> bytes | None:
        """The body, or None if it was over the limit."""
        body = _Bounded(self._max_body)
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while size := _number(await self._read_line(), base=16):
                await self._read_into(body, size)
                await self._read_line()
            while await self._read_line():
                pass
        else:
            await self._read_into(body, _number(headers.get("content-length", "0")))
        return body.content()

    async def _read_into(self, body: _Bounded, size: int) -> None:
        body.expect(size)
        while size:
            if not self._buffer and not await self._fill():
                raise ConnectionResetError("the client went in the middle of a request")
            piece = self._take(min(size, len(self._buffer)))
            size -= len(piece)
            body.add(piece)

    async def _read_line(self) -> str:
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > MAX_HEAD:
                raise ProtocolError(400, "a line of a chunked body is too long")
            if not await self._fill():
                raise ConnectionResetError("the client went in the middle of a request")
        return self._take(end + 2)[:-2].decode("latin-1")

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


class _Bounded:
    """A body that is kept up to the limit, and counted beyond it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._announced = 0
        self._kept = bytearray()

    def expect(self, size: int) -> None:
        self._announced += size
        if self._announced > _DISCARD_FACTOR * self._limit:
            raise ProtocolError(413, "request body is too large")
        if self._announced > self._limit:
            self._kept.clear()

    def add(self, piece: bytes) -> None:
        if self._announced <= self._limit:
            self._kept += piece

    def content(self) -> bytes | None:
        return bytes(self._kept) if self._announced <= self._limit else None


def head(status: int, headers: Mapping[str, str]) -> bytes:
    """Status line and headers. Raises ValueError for a header that would not stay one."""
    lines = [f"HTTP/1.1 {status} {_reason(status)}"]
    for name, value in headers.items():
        if "\r" in name + value or "\n" in name + value:
            raise ValueError(f"the header {name!r} has a line break in it")
        lines.append(f"{name}: {value}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def to_json(value: Any) -> bytes:
    """JSON in UTF-8, as the API writes it; with escapes where a lone surrogate forbids UTF-8."""
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()


def chunk(data: bytes) -> bytes:
    """`data` as one piece of a chunked body; no data ends the body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def _parse_head(raw: bytes) -> tuple[str, str, str, dict[str, str]]:
    first, *lines = raw.decode("latin-1")[:-4].split("\r\n")
    try:
        method, target, version = first.split(" ")
    except ValueError:
        raise ProtocolError(400, "the request line is not HTTP") from None
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise ProtocolError(400, "the request line is not HTTP/1.1")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return method, target, version, headers


def _number(text: str, base: int = 10) -> int:
    digits = text.partition(";")[0].strip()
    if not digits.isalnum() or len(digits) > 15:
        raise ProtocolError(400, "the length of the body is no number")
    try:
        return int(digits, base)
    except ValueError:
        raise ProtocolError(400, "the length of the body is no number") from None


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Overloaded" if status == 529 else "Scripted"
