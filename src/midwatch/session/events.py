"""The events of a session as one union of frozen values, and their JSON.

Every event has `seq` (1, 2, 3, … within a session; 0 before it is logged), `at` and `type`. A field
whose name ends in `_id` refers to another event: `parent_id` is the tool use that started a subagent.
An event with a `text` has it also as `content`, one with a tool has `tool_name` and `tool_input`; an error has a
`message`. Times are aware and in UTC, durations are seconds, costs are US dollars.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal, get_args

from pydantic import TypeAdapter, ValidationError

from midwatch.errors import MidwatchError, TemporaryError
from midwatch.model import Json, Usage
from midwatch.text import one_line

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Phase(StrEnum):
    """The phase of a session. The last three are terminal: each run ends in exactly one of them."""

    PENDING = "Pending"
    CREATING = "Creating"
    RUNNING = "Running"
    COMPLETED = "Completed"
    FAILED = "Failed"
    STOPPED = "Stopped"

    @property
    def terminal(self) -> bool:
        """Whether a run ends in this phase."""
        return self in (Phase.COMPLETED, Phase.FAILED, Phase.STOPPED)


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """The tokens and the cost of one model."""

    usage: Usage = Usage()
    cost_usd: float = 0.0

    def __add__(self, other: ModelUsage) -> ModelUsage:
        return ModelUsage(self.usage + other.usage, self.cost_usd + other.cost_usd)


@dataclass(frozen=True, slots=True)
class DeniedCall:
    """A tool call that was denied. `id` is that of its tool use, `call` its main argument, `why` the reason."""

    id: str
    tool: str
    call: str = ""
    why: str = ""

    def one_line(self) -> str:
        return one_line(f"{self.tool} `{self.call}`" if self.call else self.tool)


_MAX_CALL = 2000


def denied_call(id: str, tool: str, input: Any, why: str = "") -> DeniedCall:
    """Return the denial of a tool's call with this input."""
    call = main_argument(input)
    if len(call) > _MAX_CALL:
        call = call[: _MAX_CALL - 1] + "…"
    return DeniedCall(id, tool, call, why)


def main_argument(input: Any) -> str:
    """Return the main value in the input of a tool, or all of it as JSON."""
    if not input:
        return ""
    for name in ("command", "file_path", "pattern", "url", "description"):
        if isinstance(input, dict) and isinstance(input.get(name), str):
            return str(input[name])
    return json.dumps(input, ensure_ascii=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    seq: int = 0
    at: datetime = _EPOCH


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseChanged(_Base):
    """The session has entered a phase. `run` counts its starts from 1."""

    type: Literal["phase"] = "phase"
    phase: Phase
    run: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(_Base):
    """The program runs. `conversation` is its own session id; `sandbox` is whether Bash runs in one.

    `permissions` says in one line what the session may do without asking.
    """

    type: Literal["started"] = "started"
    conversation: str
    model: str = ""
    program_version: str = ""
    permission_mode: str = ""
    sandbox: bool = False
    permissions: str = ""
    tools: tuple[str, ...] = ()
    mcp_servers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt(_Base):
    """A prompt was accepted. `uuid` is its id in the transcript."""

    type: Literal["prompt"] = "prompt"
    id: str
    uuid: str
    text: str
    source: Literal["call", "inbox"] = "call"

    @property
    def content(self) -> str:
        """The text."""
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnStarted(_Base):
    """The prompt is sent to the program, which may have it from now on."""

    type: Literal["turn"] = "turn"
    prompt_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message(_Base):
    """Text that Claude wrote. `interrupted`: an interrupt cut it, perhaps in the middle of a sentence."""

    type: Literal["message"] = "message"
    text: str
    model: str = ""
    parent_id: str | None = None
    interrupted: bool = False

    @property
    def content(self) -> str:
        """The text."""
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking(_Base):
    """Text that Claude thought."""

    type: Literal["thinking"] = "thinking"
    text: str
    parent_id: str | None = None

    @property
    def content(self) -> str:
        """The text."""
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse(_Base):
    """Claude calls a tool."""

    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: Json = field(default_factory=dict)
    parent_id: str | None = None

    @property
    def tool_name(self) -> str:
        """The name of the tool."""
        return self.name

    @property
    def tool_input(self) -> Json:
        """The arguments of the tool."""
        return self.input


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult(_Base):
    """A tool has returned."""

    type: Literal["tool_result"] = "tool_result"
    tool_use_id: str
    text: str
    is_error: bool = False
    parent_id: str | None = None

    @property
    def content(self) -> str:
        """The text."""
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionRequest(_Base):
    """Claude asks for permission to use a tool; it is denied if there is no answer by `expires_at`."""

    type: Literal["permission_request"] = "permission_request"
    request_id: str
    tool: str
    input: Json = field(default_factory=dict)
    expires_at: datetime | None = None

    @property
    def tool_name(self) -> str:
        """The name of the tool."""
        return self.tool

    @property
    def tool_input(self) -> Json:
        """The arguments of the tool."""
        return self.input


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionAnswer(_Base):
    """A permission request was answered, has expired, or was `withdrawn`: its turn or its session ended."""

    type: Literal["permission_answer"] = "permission_answer"
    request_id: str
    allowed: bool
    why: str = ""
    withdrawn: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry(_Base):
    """The program repeats a failed API call, `delay` seconds from now."""

    type: Literal["retry"] = "retry"
    attempt: int
    max_attempts: int
    delay: float
    status: int | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure(_Base):
    """The error that ended the session. `kind` is its class, `status` the HTTP status of the API."""

    type: Literal["error"] = "error"
    kind: str
    message: str
    hint: str = ""
    temporary: bool = False
    status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnResult(_Base):
    """A turn ended. `models` has its cost per model; `turns` counts calls of the API; `denied` has denied calls.

    `requests` counts the requests to the API, also those that the program repeats without a `Retry`.
    """

    type: Literal["result"] = "result"
    prompt_id: str
    outcome: Literal["completed", "interrupted", "failed"]
    text: str = ""
    turns: int = 0
    requests: int = 0
    duration: float = 0.0
    models: dict[str, ModelUsage] = field(default_factory=dict)
    status: int | None = None
    reason: str = ""
    denied: tuple[DeniedCall, ...] = ()

    @property
    def content(self) -> str:
        """The text."""
        return self.text

    @property
    def cost_usd(self) -> float:
        return sum(spend.cost_usd for spend in self.models.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Command(_Base):
    """A command from the mailbox was accepted; `effect` is what it did."""

    type: Literal["command"] = "command"
    id: str
    kind: Literal["interrupt", "permission_response", "end_session"]
    effect: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxRejected(_Base):
    """A line of the inbox is not valid; it was appended to `inbox.rejected.jsonl`.

    The offset -1 stands for the inbox itself: it is not a regular file, or cannot be read.
    """

    type: Literal["mailbox_rejected"] = "mailbox_rejected"
    offset: int
    why: str
    beginning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subagent(_Base):
    """A task of a subagent: `state` is started, progress, completed, failed or stopped."""

    type: Literal["subagent"] = "subagent"
    task_id: str
    state: str
    description: str = ""
    tool_use_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice(_Base):
    """Information that does not end the session."""

    type: Literal["notice"] = "notice"
    text: str

    @property
    def content(self) -> str:
        """The text."""
        return self.text


Event = (
    PhaseChanged
    | Started
    | Prompt
    | TurnStarted
    | Message
    | Thinking
    | ToolUse
    | ToolResult
    | PermissionRequest
    | PermissionAnswer
    | Retry
    | Failure
    | TurnResult
    | Command
    | MailboxRejected
    | Subagent
    | Notice
)

_TYPES: Mapping[str, type[Event]] = {
    kind.__dataclass_fields__["type"].default: kind for kind in get_args(Event)
}


@functools.cache
def _adapter(name: str) -> TypeAdapter[Event]:
    """Return the adapter for one type of events. Each takes time to build, and a session has few types."""
    return TypeAdapter(_TYPES[name])


_AT: TypeAdapter[datetime] = TypeAdapter(datetime)


def to_json(event: Event) -> Json:
    """Return an event as plain data."""
    data: Json = _adapter(event.type).dump_python(event, mode="json")
    return data


def numbered_json(event: Event, seq: int, at: datetime) -> Json:
    """Return an event as plain data, with another sequence number and time."""
    return {**to_json(event), "seq": seq, "at": _AT.dump_python(at, mode="json")}


def from_line(event: Event, line: bytes) -> Event:
    """Return the event in a line that was written for `event`. Raises ValueError for other data."""
    return _adapter(event.type).validate_json(line)


def from_json(data: Mapping[str, Any]) -> Event:
    """Return the event in plain data. Raises ValueError for other data."""
    name = data.get("type")
    if not isinstance(name, str) or name not in _TYPES:
        raise ValueError(f"not an event: its type is {str(name)[:80]!r}")
    try:
        return _adapter(name).validate_python(data)
    except ValidationError as error:
        raise ValueError(f"not an event: {error.errors()[0]['msg']}") from None


def parse_line(line: bytes) -> Event | None:
    """Return the event in a line; None for an incomplete line and for an unknown type."""
    try:
        data = json.loads(line)
        return from_json(data) if isinstance(data, dict) else None
    except (ValueError, RecursionError):
        return None


def failure(error: MidwatchError) -> Failure:
    """Return an error as an event."""
    status = getattr(error, "status", None)
    return Failure(
        kind=type(error).__name__,
        message=error.message,
        hint=error.hint,
        temporary=isinstance(error, TemporaryError),
        status=status if isinstance(status, int) else None,
    )
