"""The options of a session reach the program and the API."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import pytest

from midwatch.session import errors
from midwatch.session.events import Retry, ToolResult, TurnResult
from midwatch.testing.fakes import LIMITS, collect, only, options, post, session_in
from midwatch.testing.messages_api import (
    Answer,
    Rule,
    ScriptedMessagesAPI,
    ToolUse,
    overloaded,
)

from ..waiting import PATIENCE, LeapingClock
from .cli import comes_true


def bash(command: str) -> Answer:
    return Answer(tool_uses=[ToolUse("Bash", {"command": command})])


async def test_model_tools_and_an_addition_to_the_system_prompt(
    tmp_path: Path,
) -> None:
    wish = options(
        denied_tools=("Write", "Bash(touch *)"),
        system_prompt_addition="ADDED-BY-THE-TEAM",
    )
    async with ScriptedMessagesAPI(
        Rule([bash("touch denied"), bash("echo 1 > allowed"), "Done."], tools=True)
    ) as api:
        session = session_in(tmp_path, api, model="claude-haiku-4-5", options=wish)
        events = await collect(session, "Work.")
        asked = api.calls[0].body
    assert asked["model"] == "claude-haiku-4-5"
    assert "ADDED-BY-THE-TEAM" in json.dumps(asked["system"])
    tools = {tool["name"] for tool in asked["tools"]}
    assert "Bash" in tools and "Write" not in tools
    assert [result.is_error for result in only(events, ToolResult)] == [True, False]
    assert not (tmp_path / "work" / "denied").exists()
    assert (tmp_path / "work" / "allowed").exists()
    assert list(session.status().spend) == ["claude-haiku-4-5"]


async def test_effort(tmp_path: Path) -> None:
    async with ScriptedMessagesAPI(Rule("Done.", tools=True)) as api:
        await collect(session_in(tmp_path, api, options=options(effort="max")), "Work.")
        assert api.calls[0].body["output_config"]["effort"] == "max"


async def test_an_overloaded_model_falls_back_to_another(tmp_path: Path) -> None:
    wish = options(fallback_model="claude-haiku-4-5", limits={"retries": 3})
    answers = [overloaded()] * 3 + ["Fine."]
    async with ScriptedMessagesAPI(Rule(answers, tools=True)) as api:
        session = session_in(tmp_path, api, options=wish)
        events = await collect(session, "Work.")
        assert api.calls[-1].body["model"] == "claude-haiku-4-5"
    assert only(events, TurnResult)[0].text == "Fine." and only(events, Retry)
    assert (await session.get_results()).models["claude-haiku-4-5"].cost_usd > 0


async def test_a_hung_tool_ends_at_the_idle_limit_too(tmp_path: Path) -> None:
    hung = bash("echo $$ > pid; tail -f /dev/null")
    async with ScriptedMessagesAPI(Rule(hung, tools=True)) as api:
        clock, pid = LeapingClock(), tmp_path / "work" / "pid"
        session = session_in(tmp_path, api, interactive=True, clock=clock)
        running = asyncio.create_task(collect(session, "Work."))
        await comes_true(lambda: pid.exists() and pid.read_text(), PATIENCE)
        clock.leap(LIMITS.idle or 0)
        reply = {"request_id": "of no request", "allow": True}
        post(session, "permission_response", reply, "a look at the clock")
        with pytest.raises(errors.SessionIdle):
            await running
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


async def test_a_program_that_is_asked_to_end_says_nothing_but_its_code(
    tmp_path: Path,
) -> None:
    async with ScriptedMessagesAPI(
        Rule(bash("kill $PPID; sleep 9"), tools=True)
    ) as api:
        session = session_in(tmp_path, api)
        with pytest.raises(errors.ProgramCrashed) as raised:
            await collect(session, "Work.")
    assert raised.value.exit_code == 128 + signal.SIGTERM
    assert session.status().unfinished
