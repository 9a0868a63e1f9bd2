"""What happens in a session, as one frozen union of events, and the union's JSON.

Every event has `seq` (1, 2, 3, … within a session; 0 before it is logged), `at` and `type`. A name
that ends in `_id` refers to another event: `parent_id` is the tool use that a subagent works for.
Times are aware and in UTC, durations are seconds, money is US dollars.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from midwatch.errors import MidwatchError, TemporaryError
from midwatch.model import Json, Usage

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Phase(StrEnum):
    """Where a session stands. The last three are terminal: each run ends in just one of them."""

    PENDING = "Pending"
    CREATING = "Creating"
    RUNNING = "Running"
    COMPLETED = "Completed"
    FAILED = "Failed"
    STOPPED = "Stopped"

    @property
    def terminal(self) -> bool:
        return self in (Phase.COMPLETED, Phase.FAILED, Phase.STOPPED)


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """What one model cost."""

    usage: Usage = Usage()
    cost_usd: float = 0.0

    def __add__(self, other: ModelUsage) -> ModelUsage:
        return ModelUsage(self.usage + other.usage, self.cost_usd + other.cost_usd)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    seq: int = 0
    at: datetime = _EPOCH


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseChanged(_Base):
    """The session is in another phase. `run` counts its starts from 1."""

    type: Literal["phase"] = "phase"
    phase: Phase
    run: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(_Base):
    """The program runs. `conversation` is its own session id; `sandbox`: whether Bash is in one."""

    type: Literal["started"] = "started"
    conversation: str
    model: str = ""
    program_version: str = ""
    permission_mode: str = ""
    sandbox: bool = False
    tools: tuple[str, ...] = ()
    mcp_servers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt(_Base):
    """A text for Claude was accepted. `uuid` names it in the transcript."""

    type: Literal["prompt"] = "prompt"
    id: str
    uuid: str
    text: str
    source: Literal["call", "inbox"] = "call"


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnStarted(_Base):
    """From here on, the program may have the prompt."""

    type: Literal["turn"] = "turn"
    prompt_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message(_Base):
    """Text that Claude wrote."""

    type: Literal["message"] = "message"
    text: str
    model: str = ""
    parent_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking(_Base):
    type: Literal["thinking"] = "thinking"
    text: str
    parent_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse(_Base):
    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: Json = field(default_factory=dict)
    parent_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult(_Base):
    type: Literal["tool_result"] = "tool_result"
    tool_use_id: str
    text: str
    is_error: bool = False
    parent_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionRequest(_Base):
    """Claude wants to use a tool that needs a yes; without one by `expires_at` it is a no."""

    type: Literal["permission_request"] = "permission_request"
    request_id: str
    tool: str
    input: Json = field(default_factory=dict)
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionAnswer(_Base):
    type: Literal["permission_answer"] = "permission_answer"
    request_id: str
    allowed: bool
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry(_Base):
    """The program tries an API call again, `delay` seconds from now."""

    type: Literal["retry"] = "retry"
    attempt: int
    max_attempts: int
    delay: float
    status: int | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure(_Base):
    """What ended the session. `kind` is the class of the error, `status` the API's."""

    type: Literal["error"] = "error"
    kind: str
    message: str
    hint: str = ""
    temporary: bool = False
    status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnResult(_Base):
    """A turn ended. `models` is what this turn cost, per model; `turns` counts calls of the API."""

    type: Literal["result"] = "result"
    prompt_id: str
    outcome: Literal["completed", "interrupted", "failed"]
    text: str = ""
    turns: int = 0
    duration: float = 0.0
    models: dict[str, ModelUsage] = field(default_factory=dict)
    status: int | None = None
    reason: str = ""

    @property
    def cost_usd(self) -> float:
        return sum(spend.cost_usd for spend in self.models.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Command(_Base):
    """A command from the mailbox was accepted; `effect` says what it did."""

    type: Literal["command"] = "command"
    id: str
    kind: Literal["interrupt", "permission_response", "end_session"]
    effect: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxRejected(_Base):
    """A line of the inbox is not valid; it was put into `inbox.rejected.jsonl`."""

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
    """Something worth knowing that ends nothing."""

    type: Literal["notice"] = "notice"
    text: str


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

_ADAPTER: TypeAdapter[Event] = TypeAdapter(
    Annotated[Event, Field(discriminator="type")]
)


def to_json(event: Event) -> Json:
    """The event as plain data."""
    data: Json = _ADAPTER.dump_python(event, mode="json")
    return data


def from_json(data: Mapping[str, Any]) -> Event:
    """The event in plain data. Raises ValueError for what is none."""
    try:
        return _ADAPTER.validate_python(data)
    except ValidationError as error:
        raise ValueError(f"not an event: {error.errors()[0]['msg']}") from None


def parse_line(line: bytes) -> Event | None:
    """The event of one line; None for a torn line and for a type that is not known here."""
    try:
        data = json.loads(line)
        return from_json(data) if isinstance(data, dict) else None
    except (ValueError, RecursionError):
        return None


def failure(error: MidwatchError) -> Failure:
    """An error as an event."""
    status = getattr(error, "status", None)
    return Failure(
        kind=type(error).__name__,
        message=error.message,
        hint=error.hint,
        temporary=isinstance(error, TemporaryError),
        status=status if isinstance(status, int) else None,
    )
