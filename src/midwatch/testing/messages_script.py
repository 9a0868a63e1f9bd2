"""The script of the API: answers, errors, faults, holds, and the rules that choose among them.

A fault can be used in place of an answer. A fault of the body takes the answer that it damages and
sends what the request asked for: events with `stream`, JSON otherwise. `Pings`, `StreamError` and
`Garbled` always send events.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from midwatch.testing.messages_wire import (
    EVENT_STREAM,
    JSON,
    PING,
    Exchange,
    Reply,
    Request,
    Waiting,
    event,
    events,
    to_json,
)
from midwatch.testing.schema_instance import smallest_instance

DEFAULT_TEXT = "This is the scripted answer to your request."
STRICT = {"extra": "forbid"}
"""Read by pydantic when a script file is loaded: an unknown field is an error."""


@dataclass(frozen=True)
class Usage:
    """The usage that a message reports, in tokens."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT

    input_tokens: int = 100
    output_tokens: int = 20
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0

    def to_json(self) -> dict[str, int]:
        return dict(vars(self))


@dataclass(frozen=True)
class ToolUse:
    """The model asks for a tool to be run."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT

    name: str
    input: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None
    """By default built from the number of the request and the index of the block."""


@dataclass(frozen=True)
class Rendered:
    """An answer as bytes: the parts are events, or one JSON text."""

    content_type: str
    parts: tuple[bytes, ...]

    @property
    def whole(self) -> bytes:
        return b"".join(self.parts)

    @property
    def length(self) -> int | None:
        """Bytes of a JSON body; None for a stream, whose length is not known in advance."""
        return None if self.content_type == EVENT_STREAM else len(self.whole)


@dataclass(frozen=True)
class Answer:
    """A message of the model, sent as a stream of events when the request asked for one.

    Without a text (`Answer()`), it is a minimal instance of the schema when structured
    output was asked for, else a short text.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT

    text: str | None = None
    structured: Any = None
    """Sent as text: a JSON value, or anything with pydantic's `model_dump`."""
    tool_uses: Sequence[ToolUse] = ()
    thinking: str | None = None
    blocks: Sequence[Mapping[str, Any]] | None = None
    """The content blocks, sent unchanged instead of the fields above; () for an empty content."""
    stop_reason: str | None = None
    """By default `tool_use` with tool uses, else `end_turn`."""
    stop_sequence: str | None = None
    usage: Usage = Usage()
    model: str | None = None
    """By default the model that was asked for."""
    id: str | None = None
    keep: float = 1.0
    """The share of the text that is sent, from its beginning."""

    async def send(self, exchange: Exchange) -> None:
        rendered = self.render(exchange.request)
        await exchange.open(200, rendered.content_type, length=rendered.length)
        for part in rendered.parts:
            await exchange.write(part)
        await exchange.finish()

    def render(self, request: Request) -> Rendered:
        message = self.message(request)
        if request.stream:
            return Rendered(EVENT_STREAM, events(message))
        return Rendered(JSON, (to_json(message),))

    def message(self, request: Request) -> dict[str, Any]:
        """Return the message as JSON of the API. Raises ValueError for a schema that no value fits."""
        refused = {"type": "refusal", "category": None, "explanation": None}
        stop_reason = self.stop_reason or ("tool_use" if self.tool_uses else "end_turn")
        return {
            "id": self.id or f"msg_scripted{request.number:06d}",
            "type": "message",
            "role": "assistant",
            "model": self.model or request.model,
            "content": self._content(request),
            "stop_reason": stop_reason,
            "stop_sequence": self.stop_sequence,
            "stop_details": refused if stop_reason == "refusal" else None,
            "usage": self.usage.to_json(),
        }

    def _content(self, request: Request) -> list[dict[str, Any]]:
        if self.blocks is not None:
            return [dict(block) for block in self.blocks]
        content: list[dict[str, Any]] = []
        if self.thinking is not None:
            signed = {"thinking": self.thinking, "signature": "c2NyaXB0ZWQ="}
            content.append({"type": "thinking", **signed})
        text = self._text(request)
        if text is not None:
            text = text[: round(len(text) * self.keep)]
            content.append({"type": "text", "text": text})
        for place, tool_use in enumerate(self.tool_uses):
            made = f"toolu_scripted{request.number:06d}_{place}"
            called = {"name": tool_use.name, "input": dict(tool_use.input)}
            content.append({"type": "tool_use", "id": tool_use.id or made, **called})
        return content

    def _text(self, request: Request) -> str | None:
        if self.text is not None:
            return self.text
        value = self.structured
        if value is None:
            if self.tool_uses:
                return None
            if request.output_schema is None:
                return DEFAULT_TEXT
            value = smallest_instance(request.output_schema)
        elif hasattr(value, "model_dump"):
            value = value.model_dump(mode="json")
        return json.dumps(value, ensure_ascii=False)


def refusal(text: str = "", *, usage: Usage = Usage()) -> Answer:
    """Return a refusal; without a text the content is empty, as the API may send it."""
    blocks = [{"type": "text", "text": text}] if text else []
    return Answer(blocks=blocks, stop_reason="refusal", usage=usage)


def cut_by_max_tokens(answer: Answer = Answer(), *, keep: float = 0.5) -> Answer:
    """Return an answer that `max_tokens` of the request cut; `keep` is the share that is left."""
    return replace(answer, stop_reason="max_tokens", keep=keep)


def context_window_exceeded(answer: Answer = Answer(), *, keep: float = 0.5) -> Answer:
    """Return an answer that ended because the context window of the model was full."""
    return replace(answer, stop_reason="model_context_window_exceeded", keep=keep)


@dataclass(frozen=True)
class Error:
    """An error as the API words it: `type`, `message` and, if given, `details.error_code`."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT

    status: int
    type: str
    message: str = "scripted error"
    error_code: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    async def send(self, exchange: Exchange) -> None:
        body = {**self.body(), "request_id": exchange.request_id}
        await exchange.send_json(self.status, body, self.headers)

    def body(self) -> dict[str, Any]:
        error: dict[str, Any] = {"type": self.type, "message": self.message}
        code = {"error_code": self.error_code} if self.error_code else {}
        if code or self.details:
            error["details"] = {**code, **self.details}
        return {"type": "error", "error": error}


def rate_limited(
    retry_after: float | None = None, error_code: str | None = None
) -> Error:
    """429, with `retry-after` in seconds if given."""
    headers = {} if retry_after is None else {"retry-after": f"{retry_after:g}"}
    message = "This request would exceed your rate limit."
    return Error(429, "rate_limit_error", message, error_code, headers=headers)


def spend_limit_reached() -> Error:
    """Return a 429 that a short wait does not clear: the spend limit is reached."""
    return rate_limited(error_code="enforced_spend_limit_reached")


def overloaded() -> Error:
    """529."""
    return Error(529, "overloaded_error", "Overloaded")


def server_error(status: int = 500) -> Error:
    """500, or another status of a failure in the API."""
    return Error(status, "api_error", "Internal server error")


def unauthorized() -> Error:
    """401: the key is not valid."""
    return Error(401, "authentication_error", "invalid x-api-key")


def forbidden() -> Error:
    """403: the key lacks the permission."""
    message = "Your API key does not have permission to use the specified resource."
    return Error(403, "permission_error", message)


def unknown_model(model: str = "unknown") -> Error:
    """404: there is no such model."""
    return Error(404, "not_found_error", f"model: {model}")


def request_too_large() -> Error:
    """413."""
    message = "Request exceeds the maximum allowed number of bytes."
    return Error(413, "request_too_large", message)


def bad_request(message: str = "messages: invalid") -> Error:
    """400."""
    return Error(400, "invalid_request_error", message)


def prompt_too_long(tokens: int = 250_000, limit: int = 200_000) -> Error:
    """400 for a prompt that is longer than the context window."""
    return bad_request(f"prompt is too long: {tokens} tokens > {limit} maximum")


_NESTING = {**STRICT, "arbitrary_types_allowed": True}


@dataclass(frozen=True)
class Raw:
    """Any response. If headers or status contradict the body, the connection then hangs."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT

    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)

    async def send(self, exchange: Exchange) -> None:
        if exchange.request.method == "HEAD" or self._body_fits_head():
            await exchange.send(self.status, self.body, self.content_type, self.headers)
            return
        await exchange.open(
            self.status, self.content_type, length=len(self.body), headers=self.headers
        )
        await exchange.write_raw(self.body)
        await asyncio.Event().wait()

    def _body_fits_head(self) -> bool:
        if self.status in (204, 304) and self.body:
            return False
        named = {name.lower(): value for name, value in self.headers.items()}
        size = str(len(self.body))
        return named.get("content-length", size) == size and (
            "transfer-encoding" not in named
        )


def html_page(status: int = 200) -> Raw:
    """Return a page such as a proxy or a login page sends instead of the API."""
    page = b"<!doctype html><title>Sign in</title><p>Sign in to the network.</p>"
    return Raw(status, page, "text/html; charset=utf-8")


def empty_body() -> Raw:
    """200 with an empty body."""
    return Raw()


@dataclass(frozen=True)
class Truncated:
    """200 and a valid HTTP response whose content is incomplete."""

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
    """The connection ends in the middle of the body, before the announced length."""

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
    """The body is sent in pieces of `size` bytes, `interval` seconds apart."""

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
    """Nothing is sent until the client closes or the server stops."""

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
    """A stream that starts and then sends only pings, `interval` seconds apart."""

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
    """A stream with bytes that are not an event of the API, after the first `after` events of `answer`.

    The stream continues after them. By default they are an event whose data is not JSON.
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
    """Wait for `seconds`, then send the reply."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _NESTING

    seconds: float
    then: Reply = Answer()

    async def send(self, exchange: Exchange) -> None:
        await exchange.clock.sleep(self.seconds)
        await self.then.send(exchange)


def _share(whole: bytes, keep: float) -> bytes:
    return whole[: int(len(whole) * keep)]


class Hold:
    """Requests wait until `release`; these and all later ones get `then`.

    A test waits for the call to arrive, acts while it is pending, and releases it, without a
    sleep. Any thread and any event loop may wait and release.
    """

    def __init__(self, then: Reply = Answer()) -> None:
        self.then = then
        self._waiting = Waiting()
        self._arrived = 0
        self._released = False

    async def send(self, exchange: Exchange) -> None:
        with self._waiting.lock:
            self._arrived += 1
        self._waiting.changed()
        await self._waiting.until(lambda: self._released)
        await self.then.send(exchange)

    async def arrived(self, count: int = 1, timeout: float = 60.0) -> None:
        """Return once `count` requests have arrived. Raises TimeoutError after `timeout` seconds."""
        if not await self._waiting.until(lambda: self._arrived >= count, timeout):
            raise self._too_late(count, timeout)

    def arrived_sync(self, count: int = 1, timeout: float = 60.0) -> None:
        """Do as `arrived`, and block the calling thread."""
        if not self._waiting.until_sync(lambda: self._arrived >= count, timeout):
            raise self._too_late(count, timeout)

    def release(self) -> None:
        """Let the requests go on."""
        with self._waiting.lock:
            self._released = True
        self._waiting.changed()

    def _too_late(self, count: int, timeout: float) -> TimeoutError:
        return TimeoutError(
            f"{self._arrived} of {count} requests reached the hold in {timeout:g} s"
        )


Given = Reply | str
"""A reply; a string is short for an answer with that text."""
Computed = Callable[[Request], Given | Awaitable[Given]]
"""Runs in the server's own thread and event loop."""
Answers = Given | Sequence[Given] | Computed
"""One reply for every call; or one per call, of which the last repeats; or a function."""


@dataclass(frozen=True)
class Rule:
    """Replies for the requests that fit all of the conditions given; without any, for every call.

    Raises ValueError without an answer, re.error for an invalid pattern.
    """

    answers: Answers
    model: str | None = None
    contains: str | None = None
    """A part of the prompt; case matters."""
    matches: str | None = None
    """A regular expression that is searched in the prompt; `.` matches a newline."""
    tools: bool | None = None
    """Whether tools are offered."""
    stream: bool | None = None
    structured: bool | None = None
    """Whether the request has a schema for the answer."""
    when: Callable[[Request], bool] | None = None
    path: str = "/v1/messages"
    method: str = "POST"

    def __post_init__(self) -> None:
        if isinstance(self.answers, Sequence) and not isinstance(self.answers, str):
            if not self.answers:
                raise ValueError("a rule needs at least one answer")
        if self.matches is not None:
            re.compile(self.matches)

    def fits(self, request: Request) -> bool:
        asked = (
            (self.path, request.path),
            (self.method, request.method),
            (self.model, request.model),
            (self.tools, bool(request.tools)),
            (self.stream, request.stream),
            (self.structured, request.output_schema is not None),
        )
        if any(wanted is not None and wanted != is_ for wanted, is_ in asked):
            return False
        return self._text_fits(request) and (self.when is None or self.when(request))

    def _text_fits(self, request: Request) -> bool:
        if self.contains is not None and self.contains not in request.prompt:
            return False
        if self.matches is None:
            return True
        return re.search(self.matches, request.prompt, re.DOTALL) is not None


class Script:
    """The rules in order, and how many replies each has given."""

    def __init__(self, rules: Sequence[Rule | Answers]) -> None:
        self._rules = [rule if isinstance(rule, Rule) else Rule(rule) for rule in rules]
        self._answered = [0] * len(self._rules)

    async def reply_to(self, request: Request) -> Reply | None:
        """Return the reply of the first rule that fits; None if there is none."""
        for place, rule in enumerate(self._rules):
            if rule.fits(request):
                turn = self._answered[place]
                self._answered[place] += 1
                return await _reply(rule.answers, request, turn)
        return None


async def _reply(answers: Answers, request: Request, turn: int) -> Reply:
    given: Given | Awaitable[Given]
    if isinstance(answers, (str, Reply)):
        given = answers
    elif isinstance(answers, Sequence):
        given = answers[min(turn, len(answers) - 1)]
    else:
        given = answers(request)
    if inspect.isawaitable(given):
        given = await given
    return Answer(given) if isinstance(given, str) else given
