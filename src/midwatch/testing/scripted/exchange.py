"""One request and the ways to answer it, well or badly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from midwatch.lifecycle import Clock

from .http1 import Connection, chunk, head, to_json
from .requests import Request

JSON = "application/json"
EVENT_STREAM = "text/event-stream; charset=utf-8"


@runtime_checkable
class Reply(Protocol):
    """What a rule may give: an answer, a fault, or anything else that writes to an exchange.

    `send` is cancelled when the client goes or the server stops.
    """

    async def send(self, exchange: Exchange) -> None: ...


class Exchange:
    """A request that waits for its reply. Writing raises ConnectionError once the client is gone."""

    def __init__(self, connection: Connection, request: Request, clock: Clock) -> None:
        self.request = request
        self.clock = clock
        self.started = False
        """Whether a byte of a response was written."""
        self.broken = False
        """Whether the connection was broken off on purpose."""
        self._connection = connection
        self._chunked = False

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
        """A whole response."""
        await self.open(status, content_type, length=len(body), headers=headers)
        await self.write(body)

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
        """Send the head. Without a length in bytes the body is chunked and ends with `finish`."""
        self._chunked = length is None
        framing = {"transfer-encoding": "chunked"}
        if length is not None:
            framing = {"content-length": str(length)}
        fields = {
            "content-type": content_type,
            "request-id": self.request_id,
            **framing,
            **(headers or {}),
        }
        self.started = True
        await self._connection.write(head(status, fields))

    async def write(self, data: bytes) -> None:
        """A piece of the body."""
        if data and self.request.method != "HEAD":
            await self._connection.write(chunk(data) if self._chunked else data)

    async def finish(self) -> None:
        """End a chunked body."""
        if self._chunked and self.request.method != "HEAD":
            await self._connection.write(chunk(b""))

    async def break_off(self, *, reset: bool = False) -> None:
        """Close the connection here, plainly or with a reset."""
        self.broken = True
        await self._connection.abort(reset=reset)
