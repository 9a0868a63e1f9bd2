"""What the scripted model says: a message, as JSON or as a stream of events."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from .exchange import EVENT_STREAM, JSON, Exchange
from .http1 import to_json
from .instance import smallest_instance
from .requests import Request
from .sse import events

DEFAULT_TEXT = "This is the scripted answer to your request."
STRICT = {"extra": "forbid"}
"""Read by pydantic when a script file is loaded: an unknown field is an error."""


@dataclass(frozen=True)
class Usage:
    """The tokens a message says it took."""

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
    """By default made of the request's number and the block's place."""


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
        """Bytes, for a JSON body; a stream has no length that is known beforehand."""
        return None if self.content_type == EVENT_STREAM else len(self.whole)


@dataclass(frozen=True)
class Answer:
    """A message of the model, sent as a stream of events when the request asked for one.

    With nothing said (`Answer()`), it is a minimal instance of the schema when structured
    output was asked for, else a short text.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT

    text: str | None = None
    structured: Any = None
    """Sent as text: a JSON value, or anything with pydantic's `model_dump`."""
    tool_uses: Sequence[ToolUse] = ()
    thinking: str | None = None
    blocks: Sequence[Mapping[str, Any]] | None = None
    """The content blocks as they are, instead of all the above; () for an empty content."""
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
        """The message as the API's JSON. Raises ValueError for a schema nothing fits."""
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
    """The model declines; without a text the content is empty, as it can be."""
    blocks = [{"type": "text", "text": text}] if text else []
    return Answer(blocks=blocks, stop_reason="refusal", usage=usage)


def cut_by_max_tokens(answer: Answer = Answer(), *, keep: float = 0.5) -> Answer:
    """The answer broken off by the request's own `max_tokens`; `keep` is the share that is left."""
    return replace(answer, stop_reason="max_tokens", keep=keep)


def context_window_exceeded(answer: Answer = Answer(), *, keep: float = 0.5) -> Answer:
    """The answer broken off because the model's context window was full."""
    return replace(answer, stop_reason="model_context_window_exceeded", keep=keep)
