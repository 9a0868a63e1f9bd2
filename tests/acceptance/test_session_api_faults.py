"""Every way in which the API can fail, with the real claude program."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from midwatch.errors import MidwatchError, PermanentError, TemporaryError
from midwatch.session import errors
from midwatch.session.events import Failure, Phase, PhaseChanged, Retry, TurnResult
from midwatch.session.log import read_events
from midwatch.testing.fakes import LIMITS, collect, only, options, post, session_in
from midwatch.testing.messages_api import (
    Answer,
    Cut,
    Garbled,
    Hang,
    Rule,
    ScriptedMessagesAPI,
    StreamError,
    ToolUse,
    bad_request,
    forbidden,
    overloaded,
    rate_limited,
    request_too_large,
    server_error,
    unauthorized,
    unknown_model,
)

from ..waiting import PATIENCE, LeapingClock
from .cli import comes_true


@pytest.mark.parametrize(
    ("fault", "kind", "status", "retries"),
    [
        (bad_request("no such field"), errors.RequestRefused, 400, 0),
        (unauthorized(), errors.KeyRefused, 401, 1),
        (forbidden(), errors.KeyRefused, 403, 0),
        (unknown_model(), errors.ModelNotFound, 404, 0),
        (request_too_large(), errors.RequestTooLarge, 413, 0),
        (rate_limited(), errors.RateLimited, 429, 1),
        (rate_limited(retry_after=1), errors.RateLimited, 429, 1),
        (server_error(500), errors.ApiFailed, 500, 1),
        (overloaded(), errors.Overloaded, 529, 1),
        (rate_limited(retry_after=3600), errors.RateLimited, 429, 0),
        (Cut(Answer("x" * 400)), errors.ApiUnreachable, None, 1),
        # Asked again without a stream, which the program does not call a retry.
        (Garbled(), errors.ApiUnreachable, None, 0),
        (StreamError(), errors.ApiUnreachable, None, 0),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_a_failing_api_fails_the_session(
    tmp_path: Path,
    fault: object,
    kind: type[MidwatchError],
    status: int | None,
    retries: int,
) -> None:
    async with ScriptedMessagesAPI(Rule(fault, tools=True)) as api:
        session = session_in(tmp_path, api)
        began = time.monotonic()
        with pytest.raises(kind) as raised:
            await collect(session, "Do it.")
    assert time.monotonic() - began < PATIENCE
    assert getattr(raised.value, "status", None) == status
    assert raised.value.hint
    result = await session.get_results()
    assert (result.phase, result.reason) == (Phase.FAILED, kind.__name__)
    assert result.error is not None and result.error.status == status
    assert result.text == "" and not session.status().last_message
    assert result.error.temporary == issubclass(kind, TemporaryError)
    log = session.status()
    assert log.retries == retries and len(log.unfinished) == 1


def test_every_error_of_a_session_says_whether_to_try_again() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and kind.__module__ == errors.__name__
    ]
    for kind in kinds:
        if issubclass(kind, MidwatchError):
            assert kind().hint
            assert issubclass(kind, TemporaryError) != issubclass(kind, PermanentError)


@pytest.mark.parametrize(
    "fault", [overloaded(), Cut(Answer("x" * 400)), Garbled(), StreamError()]
)
async def test_it_recovers_within_its_retries(tmp_path: Path, fault: object) -> None:
    async with ScriptedMessagesAPI(Rule([fault, Answer("Fine.")], tools=True)) as api:
        session = session_in(tmp_path, api)
        events = await collect(session, "Do it.")
    assert [result.text for result in only(events, TurnResult)] == ["Fine."]
    assert events[-1].phase is Phase.COMPLETED  # type: ignore[union-attr]
    assert not only(events, Failure)
    if fault == overloaded():
        assert only(events, Retry)[0].status == 529


async def test_what_failed_is_tried_again_by_a_resume(tmp_path: Path) -> None:
    answers = [overloaded(), overloaded(), "Fine."]
    async with ScriptedMessagesAPI(Rule(answers, tools=True)) as api:
        session = session_in(tmp_path, api)
        with pytest.raises(errors.Overloaded):
            await collect(session, "Do it.")
        events = await collect(session, None)
        said = api.calls[-1].prompt
    assert [(r.outcome, r.text) for r in only(events, TurnResult)] == [
        ("completed", "Fine.")
    ]
    assert said.count("Do it.") == 1 and not session.status().unfinished


async def test_a_hung_api_ends_the_session_at_its_idle_limit(tmp_path: Path) -> None:
    async with ScriptedMessagesAPI(Rule(Hang(), tools=True)) as api:
        session = session_in(tmp_path, api, options=options(limits={"idle": 1.0}))
        began = time.monotonic()
        with pytest.raises(errors.SessionIdle):
            await collect(session, "Do it.")
    assert time.monotonic() - began < PATIENCE
    assert session.status().phase is Phase.FAILED


async def test_a_hung_tool_ends_with_the_session_at_its_wall_limit(
    tmp_path: Path,
) -> None:
    hung = ToolUse("Bash", {"command": "echo $$ > pid; tail -f /dev/null"})
    async with ScriptedMessagesAPI(Rule(Answer(tool_uses=[hung]), tools=True)) as api:
        clock, pid = LeapingClock(), tmp_path / "work" / "pid"
        session = session_in(tmp_path, api, interactive=True, clock=clock)
        running = asyncio.create_task(collect(session, "Do it."))
        await comes_true(lambda: pid.exists() and pid.read_text(), PATIENCE)
        clock.leap(LIMITS.wall or 0)
        reply = {"request_id": "of no request", "allow": True}
        post(session, "permission_response", reply, "a look at the clock")
        with pytest.raises(errors.SessionTimedOut):
            await running
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


@pytest.mark.parametrize(
    ("limits", "kind"),
    [({"max_turns": 2}, errors.TurnLimit), ({"max_usd": 0.0005}, errors.BudgetSpent)],
    ids=["turns", "dollars"],
)
async def test_limits_of_turns_and_dollars(
    tmp_path: Path, limits: dict[str, float], kind: type[MidwatchError]
) -> None:
    again = Answer(tool_uses=[ToolUse("Bash", {"command": "true"})])
    async with ScriptedMessagesAPI(Rule(again, tools=True)) as api:
        session = session_in(tmp_path, api, options=options(limits=limits))
        with pytest.raises(kind):
            await collect(session, "Do it.")
        assert len(api.calls) == 2
        if "max_usd" in limits:  # a resume has nothing left to spend
            with pytest.raises(errors.BudgetSpent):
                await collect(session, "More.")
            assert len(api.calls) == 2
    phases = [
        e.phase
        for e in only(list(read_events(session.folder.outbox)), PhaseChanged)
        if e.run == 1
    ]
    assert phases == [Phase.CREATING, Phase.RUNNING, Phase.FAILED]
