"""The events of a session as the page shows them: a kind, a text, and how it looks (pure)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from midwatch.session.event_words import event_line
from midwatch.session.events import (
    Event,
    Failure,
    MailboxRejected,
    Message,
    PermissionRequest,
    Prompt,
    ToolResult,
    ToolUse,
)
from midwatch.text import clean

_LONGEST = 8000
"""Characters of one event that are shown."""


@dataclass(frozen=True, slots=True)
class EventView:
    """An event. `look` is a class of the style sheet: "message", "code", "bad" or "plain"."""

    seq: int
    at: datetime
    kind: str
    text: str
    look: str = "plain"


def event_views(events: Iterable[Event]) -> list[EventView]:
    """Return the events that a page shows, in order."""
    return list(_views(events))


def _views(events: Iterable[Event]) -> Iterator[EventView]:
    for event in events:
        made = _made(event)
        if made is not None:
            kind, text, look = made
            yield EventView(event.seq, event.at, kind, _cut(text), look)


def _made(event: Event) -> tuple[str, str, str] | None:
    """Return kind, text and look of an event, with what a tool got and what went wrong in full."""
    match event:
        case ToolUse():
            return f"use {event.name}", _input(event.input), "code"
        case ToolResult():
            look = "code bad" if event.is_error else "code"
            return "failed" if event.is_error else "result", event.text, look
        case PermissionRequest():
            return "asks", f"{event.tool}\n{_input(event.input)}", "code"
        case Failure():
            return "error", f"{event.message} {event.hint}", "bad"
    line = event_line(event)
    return None if line is None else (*line, _LOOKS.get(type(event), "plain"))


_LOOKS: dict[type, str] = {
    Prompt: "message",
    Message: "message",
    MailboxRejected: "bad",
}


def _input(given: dict[str, object]) -> str:
    """Return the arguments of a tool, one a line; a single text as it is."""
    if len(given) == 1 and isinstance(text := next(iter(given.values())), str):
        return text
    return "\n".join(f"{name}: {value}" for name, value in _fields(given))


def _fields(given: dict[str, object]) -> Iterator[tuple[str, str]]:
    for name, value in given.items():
        text = value if isinstance(value, str) else json.dumps(value)
        yield name, text


def permission_fields(request: PermissionRequest) -> list[tuple[str, str]]:
    """Return the arguments that somebody is asked to allow, whole: nothing of them is cut."""
    return [(name, clean(text, longest=None)) for name, text in _fields(request.input)]


def _cut(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}… [{len(text) - _LONGEST:,} characters cut]"
