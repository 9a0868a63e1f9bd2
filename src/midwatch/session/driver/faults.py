"""What the SDK, the program and the API report, as errors of ours. The one place that maps them."""

from __future__ import annotations

from collections.abc import Sequence

from claude_agent_sdk import (
    ClaudeSDKError,
    CLIJSONDecodeError,
    CLINotFoundError,
    ProcessError,
    ResultMessage,
)

from midwatch.errors import MidwatchError
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
_OF_THE_API = frozenset({"", "api_error", "model_error"})
_SAID_LENGTH = 500


def api_error(status: int | None, said: str) -> MidwatchError:
    """The error for an answer of the API with this status; None is no answer."""
    if status is None:
        return ApiUnreachable(_message("the API gave no whole answer", said))
    kind = _BY_STATUS.get(status)
    if kind is None:
        kind = ApiFailed if status >= 500 or status in (408, 409) else RequestRefused
    error = kind(_message(f"{_words(kind)} ({status})", said))
    error.status = status  # type: ignore[attr-defined]
    return error


def result_error(result: ResultMessage) -> MidwatchError | None:
    """What a result says went wrong. Never looks at the subtype: that is "success" for an API error."""
    reason = result.terminal_reason or ""
    if not result.is_error or reason in INTERRUPTED:
        return None
    said = (result.result or "; ".join(result.errors or [])).strip()
    kind = _BY_REASON.get(reason)
    if kind is not None:
        return kind(said or None)
    if result.api_error_status is not None or reason in _OF_THE_API:
        return api_error(result.api_error_status, said)
    return TurnFailed(_message(f"the turn failed ({reason or result.subtype})", said))


def program_error(
    error: Exception, stderr: Sequence[str], *, running: bool
) -> MidwatchError:
    """What ended the program; `running` is true once it had answered for the first time."""
    said = " ".join(stderr)
    if isinstance(error, CLINotFoundError):
        return ProgramMissing()
    if isinstance(error, CLIJSONDecodeError) and "maximum buffer size" in str(error):
        return LineTooLong()
    if "andbox" in said and "unavailable" in said:
        return SandboxUnavailable(_message("the sandbox does not work here", said))
    if not running:
        return _not_started(error, said)
    crash = ProgramCrashed(_message("the claude program ended", said or str(error)))
    crash.exit_code = getattr(error, "exit_code", None)
    return crash


def _not_started(error: Exception, said: str) -> MidwatchError:
    if getattr(error, "exit_code", None) == 127:
        return ProgramMissing(_message("the claude program cannot be run", said))
    if isinstance(error, (ClaudeSDKError, ProcessError)) or said:
        return ProgramRefused(
            _message("the claude program did not start", said or str(error))
        )
    return ProgramCrashed(_message("the claude program did not answer", str(error)))


def _words(kind: type[MidwatchError]) -> str:
    return {
        KeyRefused: "key refused",
        Overloaded: "the API is overloaded",
        RateLimited: "rate limit reached",
        ModelNotFound: "model not found",
        RequestTooLarge: "request too large",
        RequestRefused: "the API refused the request",
    }.get(kind, "the API failed")


def _message(what: str, said: str) -> str:
    said = " ".join(said.split())[:_SAID_LENGTH]
    return f"{what}: {said}" if said else what
