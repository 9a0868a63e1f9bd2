"""What a run prints: each event as one line, or as one line of JSON; then how it ended."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from midwatch.cli.output import BOLD, DIM, GREEN, RED, YELLOW, Output, cut
from midwatch.errors import MidwatchError
from midwatch.session.events import (
    Command,
    Event,
    Failure,
    MailboxRejected,
    Message,
    Notice,
    PermissionAnswer,
    PermissionRequest,
    Phase,
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
    to_json,
)
from midwatch.text import one_line

_LONGEST = 2000
_KIND = 11
_STYLES: dict[str, str] = {
    "message": BOLD,
    "thinking": DIM,
    "tool_result": DIM,
    "notice": DIM,
    "permission": YELLOW,
    "retry": YELLOW,
    "rejected": YELLOW,
    "error": RED,
}


@dataclass(frozen=True, slots=True)
class Teller:
    """Prints at once: whoever reads a pipe sees each event as it happens."""

    output: Output
    as_json: bool = False

    def event(self, event: Event) -> None:
        if self.as_json:
            self.document(to_json(event))
        elif told := told_line(event):
            kind, text = told
            self.line(f"{event.at:%H:%M:%S}", kind, text)

    def document(self, document: Any) -> None:
        """One line of JSON, escaped to ASCII."""
        print(json.dumps(document), file=self.output.stream, flush=True)

    def line(self, time: str, kind: str, text: str) -> None:
        head = f"{time} {kind:<{_KIND}} "
        shown = one_line(text, _LONGEST)
        if self.output.terminal:
            shown = cut(shown, max(self.output.width - len(head), 20))
        self.output.line(f"{head}{shown}".rstrip(), _STYLES.get(kind, ""))
        self.output.stream.flush()

    def plain(self, text: str = "", style: str = "") -> None:
        """A line for people; with --json there is none."""
        if not self.as_json:
            self.output.line(text, style)
            self.output.stream.flush()

    def answer(self, text: str) -> None:
        """What Claude said last, whole."""
        if text and not self.as_json:
            self.output.line()
            self.output.markdown(text)
            self.output.stream.flush()

    def phase(self, phase: Phase, text: str) -> None:
        self.plain(text, GREEN if phase is Phase.COMPLETED else RED)


def aside(text: str) -> None:
    """Something to know that is no result: on standard error."""
    print(f"midwatch: {one_line(text, _LONGEST)}", file=sys.stderr, flush=True)


def aside_error(what: str, error: MidwatchError) -> None:
    aside(f"{what}: {error.line()}")


def told_line(event: Event) -> tuple[str, str] | None:
    """What kind of line an event is, and its text; None where it tells a person nothing."""
    tell = _TOLD.get(type(event))
    return None if tell is None else tell(event)


def _phase(event: PhaseChanged) -> tuple[str, str]:
    why = f": {event.reason}" if event.reason else ""
    return "phase", f"{event.phase}{why}"


def _started(event: Started) -> tuple[str, str]:
    sandbox = "Bash in a sandbox" if event.sandbox else "no sandbox"
    version = f"claude {event.program_version}, " if event.program_version else ""
    return "started", f"{version}{event.model}, {event.permission_mode}, {sandbox}"


def _tool_use(event: ToolUse) -> tuple[str, str]:
    return _of(event.parent_id, "tool_use"), f"{event.name} {_input(event.input)}"


def _input(data: Any) -> str:
    """A tool's input: the one value that matters, where there is one."""
    for name in ("command", "file_path", "pattern", "url", "description"):
        if isinstance(data, dict) and isinstance(data.get(name), str):
            return str(data[name])
    return json.dumps(data, ensure_ascii=False)


def _tool_result(event: ToolResult) -> tuple[str, str]:
    if event.is_error:
        return "error", f"the tool failed: {event.text}"
    return _of(event.parent_id, "tool_result"), event.text


def _permission(event: PermissionRequest) -> tuple[str, str]:
    asked = f"{event.tool} {_input(event.input)}"
    return "permission", f"asked as {event.request_id}: {asked}"


def _answer(event: PermissionAnswer) -> tuple[str, str]:
    why = f": {event.why}" if event.why else ""
    said = "allowed" if event.allowed else "denied"
    return "permission", f"{event.request_id} {said}{why}"


def _retry(event: Retry) -> tuple[str, str]:
    status = f"{event.status} " if event.status else ""
    when = f"in {event.delay:.1f} s, {event.attempt} of {event.max_attempts}"
    return "retry", f"{status}{event.error}: again {when}"


def _result(event: TurnResult) -> tuple[str, str]:
    tokens = sum(
        spend.usage.input_tokens + spend.usage.output_tokens
        for spend in event.models.values()
    )
    why = f" ({event.reason})" if event.outcome != "completed" else ""
    cost = f"${event.cost_usd:.4f}, {tokens:,} tokens"
    return "result", f"{event.outcome}{why}: {event.duration:.1f} s, {cost}"


def _of(parent: str | None, kind: str) -> str:
    """What a subagent does is shown as such."""
    return kind if parent is None else f"> {kind}"[:_KIND]


_TOLD: dict[type, Callable[[Any], tuple[str, str] | None]] = {
    PhaseChanged: _phase,
    Started: _started,
    Prompt: lambda e: ("prompt", e.text),
    TurnStarted: lambda e: None,
    Message: lambda e: (_of(e.parent_id, "message"), e.text),
    Thinking: lambda e: (_of(e.parent_id, "thinking"), e.text),
    ToolUse: _tool_use,
    ToolResult: _tool_result,
    PermissionRequest: _permission,
    PermissionAnswer: _answer,
    Retry: _retry,
    Failure: lambda e: ("error", e.message),
    TurnResult: _result,
    Command: lambda e: ("command", f"{e.kind} {e.effect}"),
    MailboxRejected: lambda e: ("rejected", f"a line of the inbox: {e.why}"),
    Subagent: lambda e: ("subagent", f"{e.state} {e.description}"),
    Notice: lambda e: ("notice", e.text),
}
