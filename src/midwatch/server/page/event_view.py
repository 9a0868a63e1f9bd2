"""The events of a session as the page shows them: a kind, a text, and how it looks (pure)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from midwatch.session.events import (
    Command,
    Event,
    Failure,
    MailboxRejected,
    Message,
    Notice,
    PermissionAnswer,
    PermissionRequest,
    PhaseChanged,
    Prompt,
    Retry,
    Started,
    Subagent,
    Thinking,
    ToolResult,
    ToolUse,
    TurnResult,
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
    match event:
        case PhaseChanged():
            why = f": {event.reason}" if event.reason else ""
            return "phase", f"{event.phase}{why}", "plain"
        case Started():
            sandbox = "Bash in a sandbox" if event.sandbox else "no sandbox"
            return "started", f"{event.model}, {event.permission_mode}, {sandbox}", ""
        case Prompt():
            return "prompt", event.text, "message"
        case Message():
            cut = " [interrupted]" if event.interrupted else ""
            return "Claude", event.text + cut, "message"
        case Thinking():
            return "thinking", event.text, "plain"
        case ToolUse():
            return f"use {event.name}", _input(event.input), "code"
        case ToolResult():
            look = "code bad" if event.is_error else "code"
            return "failed" if event.is_error else "result", event.text, look
        case PermissionRequest():
            asked = f"{event.tool}\n{_input(event.input)}"
            return "asks", asked, "code"
        case PermissionAnswer():
            answer = "allowed" if event.allowed else "denied"
            why = f": {event.why}" if event.why else ""
            return answer, f"{event.request_id}{why}", "plain"
        case _:
            return _made_of_rest(event)


def _made_of_rest(event: Event) -> tuple[str, str, str] | None:
    match event:
        case Retry():
            again = (
                f"again in {event.delay:.1f} s, {event.attempt} of {event.max_attempts}"
            )
            return "retry", f"{event.status or ''} {event.error}: {again}", "plain"
        case Failure():
            return "error", f"{event.message} {event.hint}", "bad"
        case TurnResult():
            why = f" ({event.reason})" if event.outcome != "completed" else ""
            cost = f"{event.duration:.1f} s, ${event.cost_usd:.4f}"
            return "turn", f"{event.outcome}{why}: {cost}", "plain"
        case Command():
            return "command", f"{event.kind} {event.effect}", "plain"
        case MailboxRejected():
            return "rejected", event.why, "bad"
        case Subagent():
            return "subagent", f"{event.state} {event.description}", "plain"
        case Notice():
            return "notice", event.text, "plain"
        case _:
            return None


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
