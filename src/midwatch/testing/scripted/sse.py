"""A message as the events that stream it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from .http1 import to_json

_PIECE = 40
"""Characters of text or JSON in one delta: small, so that most answers take several."""
_MOST_PIECES = 500
"""Deltas of one block: a text of megabytes comes in larger ones."""


def event(name: str, data: Mapping[str, Any]) -> bytes:
    """One server-sent event of the Messages API."""
    payload = to_json({"type": name, **data})
    return b"event: %s\ndata: %s\n\n" % (name.encode(), payload)


PING = event("ping", {})


def events(message: Mapping[str, Any]) -> tuple[bytes, ...]:
    """All events of a message, from message_start to message_stop, with one ping."""
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
