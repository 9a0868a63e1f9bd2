"""What a pod says to a session that earlier pods have worked on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from midwatch.kube.runner_task import next_prompt
from midwatch.session.events import (
    Event,
    Phase,
    PhaseChanged,
    Prompt,
    TurnResult,
    TurnStarted,
)
from midwatch.session.runner import CONTINUE_PROMPT

PROMPT = Prompt(id="call/1", uuid="u", text="Do it.", source="call")
STARTED = TurnStarted(prompt_id="call/1")
CUT = TurnResult(prompt_id="call/1", outcome="interrupted")
DRAINED = PhaseChanged(phase=Phase.STOPPED, run=1, reason="SIGTERM")
CRASHED = PhaseChanged(phase=Phase.FAILED, run=2, reason="RunnerCrashed")
AGAIN = Prompt(id="call/2", uuid="v", text=CONTINUE_PROMPT, source="call")
DONE = TurnResult(prompt_id="call/2", outcome="completed")


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([], "Do it."),
        ([CRASHED], "Do it."),
        ([PROMPT, STARTED], None),
        ([PROMPT, STARTED, CUT, DRAINED], CONTINUE_PROMPT),
        ([PROMPT, STARTED, CUT, DRAINED, CRASHED], CONTINUE_PROMPT),
        ([PROMPT, STARTED, CUT, DRAINED, AGAIN, CRASHED], None),
        (
            [
                PROMPT,
                STARTED,
                CUT,
                DRAINED,
                AGAIN,
                TurnStarted(prompt_id="call/2"),
                DONE,
            ],
            None,
        ),
        ([PROMPT, STARTED, CUT, replace(DRAINED, reason="interrupted")], None),
        (
            [
                PROMPT,
                STARTED,
                TurnResult(prompt_id="call/1", outcome="completed"),
                DRAINED,
            ],
            None,
        ),
    ],
)
def test_a_turn_that_was_cut_is_gone_on_with(
    events: Sequence[Event], said: str | None
) -> None:
    at = datetime(2026, 11, 22, tzinfo=UTC)
    numbered = [replace(e, seq=n, at=at) for n, e in enumerate(events, 1)]
    assert next_prompt(numbered, "Do it.") == said
