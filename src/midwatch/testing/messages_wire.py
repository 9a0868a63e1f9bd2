"""The wire of the scripted API: connections, requests and their record, replies, server-sent events.

h11 parses the requests and frames the responses. Bytes that break the protocol on purpose go
to the socket directly.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import datetime
from http.client import responses
from typing import Any, Literal, Protocol, TypeGuard, runtime_checkable

import h11

from midwatch.lifecycle import Clock

MAX_HEAD = 64 * 1024
"""Bytes of request line and headers together."""
_READ = 16 * 1024
"""Bytes of one read. h11 measures a head only while it is incomplete: after each read but the last."""
_DISCARD_FACTOR = 8
"""A body over the limit is read and dropped up to this multiple of the limit, so that the client
can read the answer; the connection of a longer one is closed."""
_LINGER = 1.0
"""Seconds that a client has to read an answer that was sent before its request was complete."""
_PIECE = 40
"""Characters of text or JSON in one delta: small, so that most answers take several."""
_MOST_PIECES = 500
"""The most deltas of one block: a text of megabytes is sent in larger pieces."""
JSON = "application/json"
EVENT_STREAM = "text/event-stream; charset=utf-8"
_SECRET_HEADERS = {"x-api-key", "authorization", "proxy-authorization", "cookie"}

Delivery = Literal["pending", "complete", "broken"]
Condition = Callable[[], bool]


@dataclass(frozen=True)
class Incoming:
    """A request as it was read; header names in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    too_large: bool
    """The body was over the limit and is not in `body`."""


class Connection:
    """One client's connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, max_body: int
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._max_body = max_body
        self._http = h11.Connection(h11.SERVER, MAX_HEAD - _READ)
        # Only then does drain() mean that everything went to the kernel.
        writer.transport.set_write_buffer_limits(high=0)

    async def read(self) -> Incoming | None:
        """Return the next request; None when the client has closed. Raises h11.RemoteProtocolError."""
        request = await self._next_event()
        if not isinstance(request, h11.Request):
            return None
        size, body = 0, bytearray()
        while isinstance(event := await self._next_event(), h11.Data):
            size += len(event.data)
            if size > _DISCARD_FACTOR * self._max_body:
                raise h11.RemoteProtocolError("request body is too large", 413)
            if size <= self._max_body:
                body += event.data
        too_large = size > self._max_body
        return Incoming(
            request.method.decode(),
            request.target.decode(),
            {name.decode(): value.decode("latin-1") for name, value in request.headers},
            b"" if too_large else bytes(body),
            too_large,
        )

    async def send(self, event: h11.Event) -> None:
        """Write a part of the response, framed. Raises ConnectionError when the client has closed."""
        await self.write(self._http.send(event) or b"")

    async def write(self, data: bytes) -> None:
        """Hand all of `data` to the kernel as it is. Raises ConnectionError as `send` does."""
        self._writer.write(data)
        await self._writer.drain()

    def next_cycle(self) -> bool:
        """Return whether the connection can take another request after this response."""
        if {self._http.our_state, self._http.their_state} != {h11.DONE}:
            return False
        self._http.start_next_cycle()
        return True

    async def gone(self) -> None:
        """Return when the client closes, or shuts down its sending side, which no HTTP client does while it waits.

        Data that arrives meanwhile is kept for `read`.
        """
        while len(self._http.trailing_data[0]) <= MAX_HEAD:
            try:
                data = await self._reader.read(_READ)
            except ConnectionError:
                return
            if not data:
                return
            self._http.receive_data(data)
        await asyncio.Event().wait()

    async def linger(self) -> None:
        """Read and drop what the client still sends: closing with unread data would reset the connection."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_LINGER):
                while await self._reader.read(_READ):
                    pass

    async def abort(self, *, reset: bool = False) -> None:
        """Close at once and drop unsent data; with `reset` the client sees a reset, not an end of file."""
        if reset:
            handle = self._writer.get_extra_info("socket")
            linger_zero = struct.pack("ii", 1, 0)
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_zero)
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _next_event(
        self,
    ) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            self._http.receive_data(await self._reader.read(_READ))
        return event


@dataclass(frozen=True)
class Request:
    """One request, as it arrived."""

    number: int
    """Counts from 1, in order of arrival."""
    method: str
    path: str
    """Without the query."""
    query: str
    headers: Mapping[str, str]
    """Names in lower case; a secret's value is only its fingerprint, see `fingerprint`."""
    body: Mapping[str, Any]
    """The JSON object that was sent; empty if there was none."""
    size: int
    """Bytes of the body that were kept: 0 for one over the limit."""
    received_at: datetime
    delivery: Delivery = "pending"
    """complete: the whole scripted answer was sent. broken: the script, the client or the
    server's stop ended it earlier."""

    @property
    def delivered(self) -> bool:
        return self.delivery == "complete"

    @property
    def is_call(self) -> bool:
        """Whether it asks for a message; only these requests are billed."""
        return self.method == "POST" and self.path == "/v1/messages"

    @property
    def key(self) -> str:
        """The fingerprint of the API key, from either header; empty if there was none."""
        return self.headers.get("x-api-key") or self.headers.get("authorization", "")

    @property
    def model(self) -> str:
        return str(self.body.get("model", ""))

    @property
    def stream(self) -> bool:
        return self.body.get("stream") is True

    @property
    def system(self) -> str:
        """The text of the system prompt."""
        return "\n".join(_texts(self.body.get("system")))

    @property
    def prompt(self) -> str:
        """All texts that the model would read: system prompt, messages, results of tools."""
        parts = list(_texts(self.body.get("system")))
        messages = self.body.get("messages")
        for message in messages if isinstance(messages, list) else []:
            parts += _texts(message.get("content") if _is_object(message) else None)
        return "\n".join(parts)

    @property
    def tools(self) -> tuple[str, ...]:
        """The names of the tools the model may use."""
        tools = self.body.get("tools")
        listed = tools if isinstance(tools, list) else []
        return tuple(str(tool.get("name", "")) for tool in listed if _is_object(tool))

    @property
    def output_schema(self) -> Mapping[str, Any] | None:
        """The JSON schema of the answer, if the request has one."""
        config = self.body.get("output_config")
        asked = config.get("format") if _is_object(config) else None
        asked = asked or self.body.get("output_format")
        if not _is_object(asked) or asked.get("type") != "json_schema":
            return None
        schema = asked.get("schema")
        return schema if _is_object(schema) else None

    def to_json(self) -> dict[str, Any]:
        """Return what `--record` writes as one line."""
        return {
            "number": self.number,
            "received_at": self.received_at.isoformat(),
            "method": self.method,
            "path": self.path,
            "query": self.query,
            "headers": dict(self.headers),
            "body": dict(self.body),
        }


def parse_body(raw: bytes) -> dict[str, Any] | None:
    """Return the JSON object in `raw`; None if it is anything else."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def without_secrets(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers with every secret replaced by its fingerprint."""
    return {
        name: fingerprint(value) if name in _SECRET_HEADERS else value
        for name, value in headers.items()
    }


def fingerprint(secret: str) -> str:
    """Return a text that identifies a secret without revealing it: `sha256:1a2b3c4d5e6f …test`.

    The scheme of an authorization is left out, so a key reads the same in both headers. The
    last four characters are shown of a secret of eight or more.
    """
    value = secret.removeprefix("Bearer ").strip()
    digest = hashlib.sha256(value.encode("utf-8", "replace")).hexdigest()[:12]
    return f"sha256:{digest} …{value[-4:]}" if len(value) >= 8 else f"sha256:{digest}"


def _is_object(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _texts(content: object) -> Iterator[str]:
    """Yield the texts of a content field: a string, or blocks that may have content of their own."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for block in content:
            yield from _texts_of_block(block)


def _texts_of_block(block: object) -> Iterator[str]:
    if not isinstance(block, dict):
        return
    for field in ("text", "thinking", "title"):
        if isinstance(block.get(field), str):
            yield block[field]
    if block.get("type") == "tool_use":
        yield json.dumps(block.get("input"), ensure_ascii=False)
    source = block.get("source")
    if isinstance(source, dict) and source.get("type") == "text":
        yield from _texts(source.get("data"))
    yield from _texts(block.get("content"))


class Waiting:
    """Waits for conditions, from threads and event loops. Change the state under `lock`, then call `changed`."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._waiters: dict[Future[None], Condition] = {}

    def changed(self) -> None:
        """Wake every waiter whose condition holds now."""
        with self.lock:
            ready = [waiter for waiter, holds in self._waiters.items() if holds()]
            for waiter in ready:
                del self._waiters[waiter]
        for waiter in ready:
            if waiter.set_running_or_notify_cancel():
                waiter.set_result(None)

    async def until(self, holds: Condition, timeout: float | None = None) -> bool:
        """Wait for a condition in an event loop. Return false if it does not hold within `timeout` seconds."""
        waiter = self._register(holds)
        try:
            await asyncio.wait_for(asyncio.wrap_future(waiter), timeout)
        except TimeoutError:
            return False
        finally:
            self._forget(waiter)
        return True

    def until_sync(self, holds: Condition, timeout: float | None = None) -> bool:
        """Do as `until`, and block the calling thread."""
        waiter = self._register(holds)
        try:
            waiter.result(timeout)
        except TimeoutError:
            return False
        finally:
            self._forget(waiter)
        return True

    def _register(self, holds: Condition) -> Future[None]:
        waiter: Future[None] = Future()
        with self.lock:
            self._waiters[waiter] = holds
        self.changed()
        return waiter

    def _forget(self, waiter: Future[None]) -> None:
        with self.lock:
            self._waiters.pop(waiter, None)


class Journal:
    """Requests in order of arrival, and the waits for them."""

    def __init__(self) -> None:
        self._waiting = Waiting()
        self._requests: list[Request] = []

    @property
    def requests(self) -> list[Request]:
        with self._waiting.lock:
            return list(self._requests)

    def next_number(self) -> int:
        return len(self._requests) + 1

    def arrived(self, request: Request) -> None:
        with self._waiting.lock:
            self._requests.append(request)
        self._waiting.changed()

    def finished(self, number: int, delivery: Delivery) -> None:
        with self._waiting.lock:
            before = self._requests[number - 1]
            self._requests[number - 1] = replace(before, delivery=delivery)
        self._waiting.changed()

    async def wait(
        self, count: int, timeout: float, *, answered: bool
    ) -> list[Request]:
        """`count` requests or more; only those whose reply has ended if `answered`."""
        enough = self._enough(count, answered)
        if not await self._waiting.until(enough, timeout):
            raise self._too_late(count, timeout, answered)
        return self._found(answered)

    def wait_sync(self, count: int, timeout: float, *, answered: bool) -> list[Request]:
        """As `wait`, blocking the calling thread."""
        enough = self._enough(count, answered)
        if not self._waiting.until_sync(enough, timeout):
            raise self._too_late(count, timeout, answered)
        return self._found(answered)

    def _found(self, answered: bool) -> list[Request]:
        everything = self.requests
        if not answered:
            return everything
        return [request for request in everything if request.delivery != "pending"]

    def _enough(self, count: int, answered: bool) -> Callable[[], bool]:
        return lambda: len(self._found(answered)) >= count

    def _too_late(self, count: int, timeout: float, answered: bool) -> TimeoutError:
        verb = "were answered" if answered else "came"
        found = len(self._found(answered))
        return TimeoutError(f"{found} of {count} requests {verb} in {timeout:g} s")


@runtime_checkable
class Reply(Protocol):
    """What a rule replies with: an answer, a fault, or anything else that writes to an exchange.

    `send` is cancelled when the client closes or the server stops.
    """

    async def send(self, exchange: Exchange) -> None: ...


class Exchange:
    """A request that waits for its reply. Writing raises ConnectionError once the client has closed."""

    def __init__(self, connection: Connection, request: Request, clock: Clock) -> None:
        self.request = request
        self.clock = clock
        self.started = False
        """Whether a byte of a response was written."""
        self.broken = False
        """Whether the reply closed the connection on purpose."""
        self._connection = connection
        self._finished = False

    @property
    def request_id(self) -> str:
        return f"req_scripted{self.request.number:06d}"

    async def send(
        self,
        status: int,
        body: bytes,
        content_type: str = JSON,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send a whole response."""
        await self.open(status, content_type, length=len(body), headers=headers)
        await self.write(body)
        await self.finish()

    async def send_json(
        self, status: int, value: Any, headers: Mapping[str, str] | None = None
    ) -> None:
        await self.send(status, to_json(value), headers=headers)

    async def open(
        self,
        status: int,
        content_type: str,
        *,
        length: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send the head. Without a length in bytes the body is chunked and ends with `finish`.

        Raises h11.LocalProtocolError for a status or header that HTTP does not have.
        """
        fields = {"content-type": content_type, "request-id": self.request_id}
        if length is not None:
            fields["content-length"] = str(length)
        fields |= {name.lower(): value for name, value in (headers or {}).items()}
        response = h11.Response(
            status_code=status,
            headers=[
                (name.encode(), value.encode("latin-1", "replace"))
                for name, value in fields.items()
            ],
            reason=responses.get(status, "Overloaded" if status == 529 else "Scripted"),
        )
        self.started = True
        await self._connection.send(response)

    async def write(self, data: bytes) -> None:
        """Send a part of the body."""
        if data and self.request.method != "HEAD":
            await self._connection.send(h11.Data(data=data))

    async def write_raw(self, data: bytes) -> None:
        """Send bytes as the body without framing, whatever the head announced; the body then has no valid end."""
        await self._connection.write(data)

    async def finish(self) -> None:
        """End the body. May be called twice."""
        if not self._finished:
            self._finished = True
            await self._connection.send(h11.EndOfMessage())

    async def break_off(self, *, reset: bool = False) -> None:
        """Close the connection here, plainly or with a reset."""
        self.broken = True
        await self._connection.abort(reset=reset)


def to_json(value: Any) -> bytes:
    """Return JSON in UTF-8, as the API writes it; with escapes if a lone surrogate rules out UTF-8."""
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()


def event(name: str, data: Mapping[str, Any]) -> bytes:
    """Return one server-sent event of the Messages API."""
    payload = to_json({"type": name, **data})
    return b"event: %s\ndata: %s\n\n" % (name.encode(), payload)


PING = event("ping", {})


def events(message: Mapping[str, Any]) -> tuple[bytes, ...]:
    """Return all events of a message, from message_start to message_stop, with one ping."""
    return tuple(_events(message))


def _events(message: Mapping[str, Any]) -> Iterator[bytes]:
    yield event("message_start", {"message": _opening(message)})
    yield PING
    for index, block in enumerate(message["content"]):
        yield from _block(index, block)
    ending = {
        name: message[name]
        for name in ("stop_reason", "stop_sequence", "stop_details")
        if name in message
    }
    yield event("message_delta", {"delta": ending, "usage": message["usage"]})
    yield event("message_stop", {})


def _opening(message: Mapping[str, Any]) -> dict[str, Any]:
    usage = {**message["usage"], "output_tokens": 1}
    nothing_yet: dict[str, Any] = {
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }
    opening = {**message, **nothing_yet, "usage": usage}
    opening.pop("stop_details", None)
    return opening


def _block(index: int, block: Mapping[str, Any]) -> Iterator[bytes]:
    empty, deltas = _parts(block)
    yield event("content_block_start", {"index": index, "content_block": empty})
    for delta in deltas:
        yield event("content_block_delta", {"index": index, "delta": delta})
    yield event("content_block_stop", {"index": index})


def _parts(block: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A block as it starts, and what is added to it. A kind not known here starts complete."""
    kind = block.get("type")
    if kind == "text":
        pieces = _pieces(block["text"])
        return {**block, "text": ""}, [
            {"type": "text_delta", "text": piece} for piece in pieces
        ]
    if kind == "thinking":
        deltas = [
            {"type": "thinking_delta", "thinking": piece}
            for piece in _pieces(block["thinking"])
        ]
        signature = {"type": "signature_delta", "signature": block["signature"]}
        return {**block, "thinking": "", "signature": ""}, [*deltas, signature]
    if kind == "tool_use":
        written = json.dumps(block["input"], ensure_ascii=False)
        return {**block, "input": {}}, [
            {"type": "input_json_delta", "partial_json": piece}
            for piece in _pieces(written)
        ]
    return dict(block), []


def _pieces(text: str) -> list[str]:
    size = max(_PIECE, len(text) // _MOST_PIECES + 1)
    return [text[start : start + size] for start in range(0, len(text), size)]
