"""Everything that can go wrong at the Messages API, as values that stand where an answer can.

A fault that concerns a body takes the answer it spoils and follows the request: events for a
request with `stream`, JSON otherwise. `Pings`, `StreamError` and `Garbled` are streams by
nature and send events in any case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .answers import STRICT, Answer
from .errors import Error, overloaded
from .exchange import EVENT_STREAM, JSON, Exchange, Reply
from .sse import PING, event, events

_NESTING = {**STRICT, "arbitrary_types_allowed": True}


@dataclass(frozen=True)
class Raw:
    """Any response at all."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT

    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)

    async def send(self, exchange: Exchange) -> None:
        await exchange.send(self.status, self.body, self.content_type, self.headers)


def html_page(status: int = 200) -> Raw:
    """What a proxy or a log-in page answers in the API's place."""
    page = b"<!doctype html><title>Sign in</title><p>Sign in to the network.</p>"
    return Raw(status, page, "text/html; charset=utf-8")


def empty_body() -> Raw:
    """200 and nothing."""
    return Raw()


@dataclass(frozen=True)
class Truncated:
    """200 and a well-formed response whose content stops half-way."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _NESTING

    answer: Answer = Answer()
    keep: float = 0.5
    """The share of the bytes that is sent."""

    async def send(self, exchange: Exchange) -> None:
        rendered = self.answer.render(exchange.request)
        kept = _share(rendered.whole, self.keep)
        await exchange.send(200, kept, rendered.content_type)


@dataclass(frozen=True)
class Cut:
    """The connection ends in the middle of the body: less comes than was announced."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _NESTING

    answer: Answer = Answer()
    keep: float = 0.5
    """The share of the bytes that is sent."""
    reset: bool = False
    """End with a reset instead of a plain close."""

    async def send(self, exchange: Exchange) -> None:
        rendered = self.answer.render(exchange.request)
        await exchange.open(200, rendered.content_type, length=rendered.length)
        await exchange.write(_share(rendered.whole, self.keep))
        await exchange.break_off(reset=self.reset)


@dataclass(frozen=True)
class Reset:
    """The connection is reset before any answer."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT

    async def send(self, exchange: Exchange) -> None:
        await exchange.break_off(reset=True)


@dataclass(frozen=True)
class Drip:
    """The body comes `size` bytes at a time, `interval` seconds apart."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _NESTING

    answer: Answer = Answer()
    size: int = 1
    interval: float = 0.1

    async def send(self, exchange: Exchange) -> None:
        rendered = self.answer.render(exchange.request)
        await exchange.open(200, rendered.content_type, length=rendered.length)
        whole = rendered.whole
        for start in range(0, len(whole), max(1, self.size)):
            await exchange.clock.sleep(self.interval)
            await exchange.write(whole[start : start + max(1, self.size)])
        await exchange.finish()


@dataclass(frozen=True)
class Hang:
    """Nothing comes until the client goes or the server stops."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT

    after_head: bool = False
    """Send status and headers first."""

    async def send(self, exchange: Exchange) -> None:
        if self.after_head:
            kind = EVENT_STREAM if exchange.request.stream else JSON
            await exchange.open(200, kind)
        await asyncio.Event().wait()


@dataclass(frozen=True)
class Pings:
    """A stream that begins, and then has pings for ever, `interval` seconds apart."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT

    interval: float = 1.0

    async def send(self, exchange: Exchange) -> None:
        await exchange.open(200, EVENT_STREAM)
        await exchange.write(events(Answer().message(exchange.request))[0])
        while True:
            await exchange.write(PING)
            await exchange.clock.sleep(self.interval)


@dataclass(frozen=True)
class StreamError:
    """A stream of status 200 with an `error` event after the first `after` events of `answer`."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _NESTING

    error: Error = overloaded()
    answer: Answer = Answer()
    after: int = 1

    async def send(self, exchange: Exchange) -> None:
        beginning = events(self.answer.message(exchange.request))[: self.after]
        failure = event("error", self.error.body())
        body = b"".join([*beginning, failure])
        await exchange.send(200, body, EVENT_STREAM)


@dataclass(frozen=True)
class Garbled:
    """A stream with bytes in it that are no event of the API, after `after` events of `answer`.

    The stream goes on behind them. By default they are an event whose data is no JSON.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _NESTING

    garbage: bytes = b'event: content_block_delta\ndata: {"type": "conte\n\n'
    answer: Answer = Answer()
    after: int = 3

    async def send(self, exchange: Exchange) -> None:
        parts = events(self.answer.message(exchange.request))
        body = [*parts[: self.after], self.garbage, *parts[self.after :]]
        await exchange.send(200, b"".join(body), EVENT_STREAM)


@dataclass(frozen=True)
class Delay:
    """Nothing for so many seconds, then the reply."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _NESTING

    seconds: float
    then: Reply = Answer()

    async def send(self, exchange: Exchange) -> None:
        await exchange.clock.sleep(self.seconds)
        await self.then.send(exchange)


def _share(whole: bytes, keep: float) -> bytes:
    return whole[: int(len(whole) * keep)]
