"""The words of a session's events: the same on the command line and on the page (pure)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
    TurnStarted,
    main_argument,
)
from midwatch.session.mailbox import WHOLE_FILE

KIND_WIDTH = 11
"""The longest kind, in characters."""


def event_line(event: Event) -> tuple[str, str] | None:
    """Return the kind and the text of an event's line; None for an event without one."""
    line = _LINES.get(type(event))
    return None if line is None else line(event)


def _phase(event: PhaseChanged) -> tuple[str, str]:
    why = f": {event.reason}" if event.reason else ""
    return "phase", f"{event.phase}{why}"


def _started(event: Started) -> tuple[str, str]:
    sandbox = "Bash in a sandbox" if event.sandbox else "no sandbox"
    version = f"claude {event.program_version}, " if event.program_version else ""
    return "started", f"{version}{event.model}, {event.permission_mode}, {sandbox}"


def _tool_use(event: ToolUse) -> tuple[str, str]:
    return (
        _subagent_kind(event.parent_id, "tool_use"),
        f"{event.name} {main_argument(event.input)}",
    )


def _tool_result(event: ToolResult) -> tuple[str, str]:
    if event.is_error:
        return "error", f"the tool failed: {event.text}"
    return _subagent_kind(event.parent_id, "tool_result"), event.text


def _answer(event: PermissionAnswer) -> tuple[str, str]:
    why = f": {event.why}" if event.why else ""
    answer = "allowed" if event.allowed else "denied"
    return "permission", f"{event.request_id} {answer}{why}"


def _retry(event: Retry) -> tuple[str, str]:
    status = f"{event.status} " if event.status else ""
    when = f"in {event.delay:.1f} s, {event.attempt} of {event.max_attempts}"
    return "retry", f"{status}{event.error}: again {when}"


def _rejected(event: MailboxRejected) -> str:
    what = "the inbox" if event.offset == WHOLE_FILE else "a line of the inbox"
    return f"{what}: {event.why}"


def _result(event: TurnResult) -> tuple[str, str]:
    tokens = sum(
        spend.usage.input_tokens + spend.usage.output_tokens
        for spend in event.models.values()
    )
    why = f" ({event.reason})" if event.outcome != "completed" else ""
    cost = f"${event.cost_usd:.4f}, {tokens:,} tokens"
    if event.requests > event.turns:
        cost += f", {event.requests} requests"
    return "result", f"{event.outcome}{why}: {event.duration:.1f} s, {cost}"


def _subagent_kind(parent: str | None, kind: str) -> str:
    """Return the kind, marked if the event is from a subagent."""
    return kind if parent is None else f"> {kind}"[:KIND_WIDTH]


_LINES: dict[type, Callable[[Any], tuple[str, str] | None]] = {
    PhaseChanged: _phase,
    Started: _started,
    Prompt: lambda e: ("prompt", e.text),
    TurnStarted: lambda e: None,
    Message: lambda e: (
        _subagent_kind(e.parent_id, "message"),
        f"{e.text} [interrupted]" if e.interrupted else e.text,
    ),
    Thinking: lambda e: (_subagent_kind(e.parent_id, "thinking"), e.text),
    ToolUse: _tool_use,
    ToolResult: _tool_result,
    PermissionAnswer: _answer,
    PermissionRequest: lambda e: (
        "permission",
        f"requested as {e.request_id}: {e.tool} {main_argument(e.input)}",
    ),
    Retry: _retry,
    Failure: lambda e: ("error", e.message),
    TurnResult: _result,
    Command: lambda e: ("command", f"{e.kind} {e.effect}"),
    MailboxRejected: lambda e: ("rejected", _rejected(e)),
    Subagent: lambda e: ("subagent", f"{e.state} {e.description}"),
    Notice: lambda e: ("notice", e.text),
}
