"""What the program reports, as errors: complete, and never fooled by a subtype."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import claude_agent_sdk
import pytest
from claude_agent_sdk import ClaudeSDKError, ResultMessage

from midwatch.errors import MidwatchError, TemporaryError
from midwatch.session import errors
from midwatch.session.translate import (
    map_api_error,
    map_program_error,
    map_result_error,
)


def result(**changes: Any) -> ResultMessage:
    given: dict[str, Any] = {
        "subtype": "success",
        "duration_ms": 1,
        "duration_api_ms": 1,
        "is_error": True,
        "num_turns": 1,
        "session_id": "s",
    }
    return ResultMessage(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"is_error": False}, None),
        ({"terminal_reason": "aborted_tools"}, None),
        ({"terminal_reason": "aborted_streaming"}, None),
        ({"api_error_status": 529, "terminal_reason": "api_error"}, errors.Overloaded),
        ({"terminal_reason": "api_error"}, errors.ApiUnreachable),
        ({}, errors.ApiUnreachable),
        ({"terminal_reason": "max_turns"}, errors.TurnLimit),
        ({"terminal_reason": "budget_exhausted"}, errors.BudgetSpent),
        (
            {"terminal_reason": "prompt_too_long", "api_error_status": 400},
            errors.RequestTooLarge,
        ),
        ({"terminal_reason": "of the future"}, errors.TurnFailed),
    ],
)
def test_a_result_is_judged_by_what_it_says(
    changes: dict[str, Any], kind: type[MidwatchError] | None
) -> None:
    found = map_result_error(result(**changes))
    assert (type(found) if found else None) == kind


@pytest.mark.parametrize("status", range(400, 600))
def test_every_status_has_an_error_with_that_status(status: int) -> None:
    error = map_api_error(status, "said")
    assert error.status == status and str(status) in error.one_line()  # type: ignore[attr-defined]
    temporary = status >= 500 or status in (408, 409, 429)
    assert isinstance(error, TemporaryError) == temporary


@pytest.mark.integration
def test_a_missing_sdk_is_a_missing_program() -> None:
    code = (
        "import sys; sys.modules['claude_agent_sdk'] = None\n"
        "from midwatch.session.errors import ProgramMissing\n"
        "try:\n    from midwatch import AsyncAgenticSession\n"
        "except ProgramMissing as error:\n    print(error.one_line())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "SDK is not installed" in ended.stdout and "sessions" in ended.stdout


def test_every_error_of_the_sdk_is_mapped() -> None:
    kinds = [
        kind
        for kind in vars(claude_agent_sdk).values()
        if isinstance(kind, type) and issubclass(kind, ClaudeSDKError)
    ]
    assert len(kinds) >= 5
    for kind in kinds:
        error = kind.__new__(kind)
        Exception.__init__(error, "it said so")
        for running in (True, False):
            found = map_program_error(error, ["last words"], running=running)
            assert isinstance(found, MidwatchError) and found.hint
