"""What the scripted API was asked: one frozen record per request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeGuard

Delivery = Literal["pending", "complete", "broken"]

_SECRET_HEADERS = {"x-api-key", "authorization", "proxy-authorization", "cookie"}


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
    """complete: the whole scripted answer went out. broken: the script, the client or the
    server's stop ended it earlier."""

    @property
    def delivered(self) -> bool:
        return self.delivery == "complete"

    @property
    def is_call(self) -> bool:
        """Whether it asks for a message: the requests that are paid for."""
        return self.method == "POST" and self.path == "/v1/messages"

    @property
    def key(self) -> str:
        """The fingerprint of the key, in whichever header it came; empty if there was none."""
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
        """Every text the model would read: system prompt, messages, results of tools."""
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
        """The JSON schema the answer must fit, if one was asked for."""
        config = self.body.get("output_config")
        asked = config.get("format") if _is_object(config) else None
        asked = asked or self.body.get("output_format")
        if not _is_object(asked) or asked.get("type") != "json_schema":
            return None
        schema = asked.get("schema")
        return schema if _is_object(schema) else None

    def to_json(self) -> dict[str, Any]:
        """Plain data: what the process form writes as one line."""
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
    """The JSON object in `raw`; None if it holds anything else."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def without_secrets(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers with every secret replaced by its fingerprint."""
    return {
        name: fingerprint(value) if name in _SECRET_HEADERS else value
        for name, value in headers.items()
    }


def fingerprint(secret: str) -> str:
    """What tells two secrets apart without giving them away: `sha256:1a2b3c4d5e6f …test`.

    The scheme of an authorization is left out, so a key reads the same in both headers. The
    last four characters are shown of a secret of eight or more.
    """
    value = secret.removeprefix("Bearer ").strip()
    digest = hashlib.sha256(value.encode("utf-8", "replace")).hexdigest()[:12]
    return f"sha256:{digest} …{value[-4:]}" if len(value) >= 8 else f"sha256:{digest}"


def _is_object(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _texts(content: object) -> Iterator[str]:
    """The texts of a content field: a string, or blocks that may hold content themselves."""
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
