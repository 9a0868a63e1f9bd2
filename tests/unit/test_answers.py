"""What models write around an answer, where nothing holds them to the schema."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from midwatch.agent.diagnosis import Step, next_step
from midwatch.diagnosis_schema import Kind, Reply, parse_answer, parse_truncated
from midwatch.model import Context
from midwatch.testing.fakes import answer

WHOLE = answer("pid 4711 {holds} the lock", quote="pid 4711")
TEXT = json.dumps(WHOLE, indent=1)


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        f"```json\n{TEXT}\n```",
        f"```\n{TEXT}\n```\n",
        f"Here is the diagnosis:\n\n```JSON\n{TEXT}\n```\nGood luck!",
        f"```json\n{TEXT}",
        f"Here it is: {TEXT} Good luck!",
        f"```text\nlook {{here}}\n```\n```json\n{TEXT}\n```",
        f"E1 says {{so}}, and {{}}:\n{TEXT}\nSee {{E2}}.",
        f'{{"plan": [1]}}\n{TEXT}',
        f'{{"diagnosis": {TEXT}}}',
    ],
)
def test_an_answer_is_found(text: str) -> None:
    assert parse_answer(text).model_dump() == WHOLE


def test_lists_that_are_left_out_are_empty() -> None:
    few = {name: one for name, one in WHOLE.items() if one not in ([], "")}
    assert parse_answer(f"```\n{json.dumps(few)}\n```").risks == []


def test_what_does_not_fit_says_why() -> None:
    wrong = json.dumps({**WHOLE, "verdict": "perhaps"})
    with pytest.raises(ValidationError) as caught:
        parse_answer(f"Sure.\n```json\n{wrong}\n```")
    assert [error["loc"] for error in caught.value.errors()] == [("verdict",)]
    with pytest.raises(ValidationError):
        parse_answer("I cannot help with that.")


def test_a_cut_answer_in_a_fence_is_read() -> None:
    cut = parse_truncated(f"After {{E1}}:\n```json\n{TEXT[: len(TEXT) // 2]}")
    assert cut is not None and cut.summary == WHOLE["summary"]


def test_a_gateway_without_the_schema_is_asked_in_words() -> None:
    context = Context((), (), datetime(2026, 3, 1, tzinfo=UTC))
    unknown = "400 invalid_request_error: output_config: Extra inputs are not permitted"
    step = Step(context, 1000)
    again = next_step(step, Reply(Kind.REJECTED, error=unknown))
    assert again is not None and again.context is context
    assert not again.prompt.schema and '"explained_tickets"' in again.prompt.user
    assert '"explained_tickets"' not in step.prompt.user
    invalid = next_step(step, Reply(Kind.INVALID, error="verdict: missing"))
    assert invalid is not None and '"explained_tickets"' in invalid.prompt.user
