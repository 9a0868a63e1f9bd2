"""The signals that wake the loop of a session, and the messages and errors of the claude program as such signals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from claude_agent_sdk import (
    AssistantMessage,
    ClaudeSDKError,
    CLIJSONDecodeError,
    CLINotFoundError,
    ProcessError,
    ResultMessage,
    SystemMessage,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)
from claude_agent_sdk.types import (
    MirrorErrorMessage,
    ServerToolResultBlock,
    ServerToolUseBlock,
    TaskNotificationMessage,
    TaskProgressMessage,
    TaskStartedMessage,
)

from midwatch.errors import MidwatchError
from midwatch.model import Json
from midwatch.session.errors import (
    ApiFailed,
    ApiUnreachable,
    BudgetSpent,
    KeyRefused,
    LineTooLong,
    ModelNotFound,
    Overloaded,
    ProgramCrashed,
    ProgramMissing,
    ProgramRefused,
    RateLimited,
    RequestRefused,
    RequestTooLarge,
    SandboxUnavailable,
    TurnFailed,
    TurnLimit,
)
from midwatch.session.events import (
    DeniedCall,
    Event,
    Message,
    ModelUsage,
    Notice,
    Retry,
    Started,
    Subagent,
    Thinking,
    ToolResult,
    ToolUse,
    TurnResult,
    denied_call,
)
from midwatch.session.transcripts import spend_by_model, usage_since


@dataclass(frozen=True, slots=True)
class ProgramEvent:
    """The program emitted an event."""

    event: Event


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """The program ended a turn. An `error` ends the session.

    `uuids` are the prompts of the turn; empty if the program does not report them.
    """

    result: TurnResult
    error: MidwatchError | None = None
    uuids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The program's state. It is "idle" when neither a turn nor a subagent runs or is due."""

    state: str


@dataclass(frozen=True, slots=True)
class PermissionDecision:
    """The answer to a permission request."""

    allowed: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class PermissionRequested:
    """The program asks for permission, and waits until `answer` has a result."""

    request_id: str
    tool: str
    input: Json
    answer: asyncio.Future[PermissionDecision] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ProgramEnded:
    """The program has ended."""

    error: MidwatchError


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Someone asked for the end of the session."""

    reason: str


@dataclass(frozen=True, slots=True)
class InterruptRequested:
    """Someone asked for the end of the turn."""


@dataclass(frozen=True, slots=True)
class MailArrived:
    """The inbox has changed."""


Signal = (
    ProgramEvent
    | TurnEnded
    | StateChanged
    | PermissionRequested
    | ProgramEnded
    | StopRequested
    | InterruptRequested
    | MailArrived
)


# ------------------------------------------------------------------ errors


INTERRUPTED = frozenset({"aborted_streaming", "aborted_tools"})
_BY_STATUS: dict[int, type[MidwatchError]] = {
    400: RequestRefused,
    401: KeyRefused,
    403: KeyRefused,
    404: ModelNotFound,
    413: RequestTooLarge,
    429: RateLimited,
    529: Overloaded,
}
_BY_REASON: dict[str, type[MidwatchError]] = {
    "max_turns": TurnLimit,
    "budget_exhausted": BudgetSpent,
    "prompt_too_long": RequestTooLarge,
    "blocking_limit": RequestTooLarge,
}
_API_REASONS = frozenset({"", "api_error", "model_error"})
_DETAIL_LENGTH = 500


def map_api_error(status: int | None, detail: str) -> MidwatchError:
    """Return the error for an answer of the API with this status; None means no answer."""
    if status is None:
        return ApiUnreachable(_message("the API gave no complete answer", detail))
    kind = _BY_STATUS.get(status)
    if kind is None:
        kind = ApiFailed if status >= 500 or status in (408, 409) else RequestRefused
    error = kind(_message(f"{_description(kind)} ({status})", detail))
    error.status = status  # type: ignore[attr-defined]
    return error


def map_result_error(result: ResultMessage) -> MidwatchError | None:
    """Return the error of a result, or None. The subtype is not used: it is "success" also for an API error."""
    reason = result.terminal_reason or ""
    if not result.is_error or reason in INTERRUPTED:
        return None
    detail = (result.result or "; ".join(result.errors or [])).strip()
    kind = _BY_REASON.get(reason)
    if kind is not None:
        return kind(detail or None)
    if result.api_error_status is not None or reason in _API_REASONS:
        return map_api_error(result.api_error_status, detail)
    return TurnFailed(_message(f"the turn failed ({reason or result.subtype})", detail))


def map_program_error(
    error: Exception, stderr: Sequence[str], *, running: bool
) -> MidwatchError:
    """Return the error that ended the program; `running` is false until its first answer."""
    detail = " ".join(stderr)
    if isinstance(error, CLINotFoundError):
        return ProgramMissing()
    if isinstance(error, CLIJSONDecodeError) and "maximum buffer size" in str(error):
        return LineTooLong()
    if "andbox" in detail and "unavailable" in detail:
        return SandboxUnavailable(_message("the sandbox does not work here", detail))
    if not running:
        return _map_start_error(error, detail)
    crash = ProgramCrashed(_message("the claude program ended", detail or str(error)))
    crash.exit_code = getattr(error, "exit_code", None)
    return crash


def _map_start_error(error: Exception, detail: str) -> MidwatchError:
    if getattr(error, "exit_code", None) == 127:
        return ProgramMissing(_message("the claude program cannot be run", detail))
    if isinstance(error, (ClaudeSDKError, ProcessError)) or detail:
        return ProgramRefused(
            _message("the claude program did not start", detail or str(error))
        )
    return ProgramCrashed(_message("the claude program did not answer", str(error)))


def _description(kind: type[MidwatchError]) -> str:
    return {
        KeyRefused: "key refused",
        Overloaded: "the API is overloaded",
        RateLimited: "rate limit reached",
        ModelNotFound: "model not found",
        RequestTooLarge: "request too large",
        RequestRefused: "the API refused the request",
    }.get(kind, "the API failed")


def _message(what: str, detail: str) -> str:
    detail = " ".join(detail.split())[:_DETAIL_LENGTH]
    return f"{what}: {detail}" if detail else what


_SYNTHETIC_MODEL = "<synthetic>"
"""The model name of messages that the program writes itself: the text of an error, which the result repeats."""


class Translator:
    """Translate the messages of one program. It keeps the usage at the last result: the program reports sums."""

    def __init__(
        self, spent: Mapping[str, ModelUsage], sandbox: bool, permissions: str = ""
    ) -> None:
        self._spent = dict(spent)
        self._sandbox = sandbox
        self._permissions = permissions
        self._initialized = False

    def signals(self, message: object) -> Iterator[Signal]:
        """Yield the signals for a message of the SDK; none for a message that the session does not use."""
        match message:
            case AssistantMessage():
                yield from map(ProgramEvent, _assistant_events(message))
            case UserMessage():
                yield from map(ProgramEvent, _user_events(message))
            case ResultMessage():
                yield self._turn_ended(message)
            case SystemMessage():
                yield from self._system(message)

    def _system(self, message: SystemMessage) -> Iterator[Signal]:
        if message.subtype == "api_retry":
            retry = _retry(message.data)
            yield ProgramEvent(retry)
            if retry.status in (401, 403):  # a retry with the same key fails again
                error = map_api_error(retry.status, "")
                yield TurnEnded(_failed(retry.status, error.message), error)
        elif message.subtype == "session_state_changed":
            yield StateChanged(str(message.data.get("state")))
        elif message.subtype == "init" and not self._initialized:
            self._initialized = True
            started = _started(message.data, self._sandbox, self._permissions)
            yield ProgramEvent(started)
        else:
            yield from map(ProgramEvent, _task_events(message))

    def _turn_ended(self, result: ResultMessage) -> TurnEnded:
        total = spend_by_model(result.model_usage or {})
        models = usage_since(total, self._spent)
        self._spent |= total
        error = map_result_error(result)
        interrupted = (result.terminal_reason or "") in INTERRUPTED
        return TurnEnded(
            TurnResult(
                prompt_id="",
                outcome=(
                    "failed" if error else "interrupted" if interrupted else "completed"
                ),
                text=result.result or "",
                turns=result.num_turns,
                duration=result.duration_ms / 1000,
                models=models,
                status=result.api_error_status,
                reason=result.terminal_reason or result.subtype,
                denied=() if interrupted else _denied(result),
            ),
            error,
            _uuids(result),
        )


def _denied(result: ResultMessage) -> tuple[DeniedCall, ...]:
    """Return the calls that the program denied, by a rule, by its mode or on request."""
    return tuple(
        denied_call(
            str(one.get("tool_use_id") or ""),
            str(one.get("tool_name") or ""),
            one.get("tool_input"),
        )
        for one in result.permission_denials or ()
        if isinstance(one, dict)
    )


def _uuids(result: ResultMessage) -> tuple[str, ...]:
    one = [result.user_message_uuid] if result.user_message_uuid else []
    return tuple(result.user_message_uuids or one)


def _failed(status: int | None, reason: str) -> TurnResult:
    return TurnResult(prompt_id="", outcome="failed", status=status, reason=reason)


def _assistant_events(message: AssistantMessage) -> Iterator[Event]:
    if message.model == _SYNTHETIC_MODEL:
        return
    parent = message.parent_tool_use_id
    for block in message.content:
        match block:
            case TextBlock():
                yield Message(text=block.text, model=message.model, parent_id=parent)
            case ThinkingBlock():
                yield Thinking(text=block.thinking, parent_id=parent)
            case ToolUseBlock() | ServerToolUseBlock():
                yield ToolUse(
                    id=block.id,
                    name=block.name,
                    input=_object(block.input),
                    parent_id=parent,
                )
            case ToolResultBlock() | ServerToolResultBlock():
                yield _result(block, parent)


def _user_events(message: UserMessage) -> Iterator[Event]:
    if isinstance(message.content, str):
        return
    for block in message.content:
        if isinstance(block, ToolResultBlock):
            yield _result(block, message.parent_tool_use_id)


def _result(
    block: ToolResultBlock | ServerToolResultBlock, parent: str | None
) -> ToolResult:
    return ToolResult(
        tool_use_id=block.tool_use_id,
        text=_text(block.content),
        is_error=bool(getattr(block, "is_error", False)),
        parent_id=parent,
    )


def _text(content: object) -> str:
    """Return the text of a tool's result; a block without text is named by its type."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        return json.dumps(content)
    parts = []
    for block in content:
        if isinstance(block, dict):
            parts.append(str(block.get("text") or f"[{block.get('type', 'block')}]"))
    return "\n".join(parts)


def _object(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {"value": value}


def _retry(data: Mapping[str, Any]) -> Retry:
    status = data.get("error_status")
    return Retry(
        attempt=int(data.get("attempt") or 0),
        max_attempts=int(data.get("max_retries") or 0),
        delay=float(data.get("retry_delay_ms") or 0) / 1000,
        status=status if isinstance(status, int) else None,
        error=str(data.get("error") or ""),
    )


def _started(data: Mapping[str, Any], sandbox: bool, permissions: str) -> Started:
    servers = data.get("mcp_servers") or []
    return Started(
        conversation=str(data.get("session_id") or ""),
        model=str(data.get("model") or ""),
        program_version=str(data.get("claude_code_version") or ""),
        permission_mode=str(data.get("permissionMode") or ""),
        sandbox=sandbox,
        permissions=permissions,
        tools=tuple(str(name) for name in data.get("tools") or []),
        mcp_servers=tuple(
            f"{server.get('name')} ({server.get('status')})" for server in servers
        ),
    )


def _task_events(message: SystemMessage) -> Iterator[Event]:
    match message:
        case TaskStartedMessage():
            yield _subagent(message, "started", message.description)
        case TaskProgressMessage():
            yield _subagent(message, "progress", message.description)
        case TaskNotificationMessage():
            yield _subagent(message, message.status, message.summary)
        case MirrorErrorMessage():
            yield Notice(text=f"the transcript could not be stored: {message.error}")


def _subagent(
    message: TaskStartedMessage | TaskProgressMessage | TaskNotificationMessage,
    state: str,
    description: str,
) -> Subagent:
    return Subagent(
        task_id=message.task_id,
        state=state,
        description=description,
        tool_use_id=message.tool_use_id,
    )
