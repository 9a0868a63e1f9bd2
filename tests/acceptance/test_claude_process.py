"""The child process that calls the API: the same replies, nothing left over, nothing paid twice."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from midwatch.agent.claude import Claude
from midwatch.agent.claude_process import ClaudeProcess
from midwatch.agent.diagnosis import Prompt
from midwatch.agent.evidence import ContextGatherer
from midwatch.agent.runner import AgentRunner
from midwatch.diagnosis_schema import Kind, NotSent
from midwatch.errors import SettingsError
from midwatch.lifecycle import StopEvent
from midwatch.model import TicketStatus
from midwatch.provider import ApiAccess
from midwatch.redaction import Redactor
from midwatch.settings import AgentSettings
from midwatch.store.sql import SqlStore
from midwatch.testing.fakes import FakeSubject, ManualClock, answer, open_tickets
from midwatch.testing.messages_api import (
    Answer,
    Hold,
    Reset,
    Rule,
    ScriptedMessagesAPI,
    bad_request,
    cut_by_max_tokens,
    fingerprint,
    overloaded,
    rate_limited,
    refusal,
    unauthorized,
)

from ..waiting import PATIENCE
from .cli import KEY, comes_true

MODEL = "claude-sonnet-5-5"
GOOD = Answer(structured=answer())
PROMPT = Prompt("Diagnose.", "It is slow.")


def process(api: ScriptedMessagesAPI, **more: float) -> ClaudeProcess:
    environ = {**os.environ, "ANTHROPIC_API_KEY": KEY, "COLOUR": "teal"}
    access = ApiAccess.from_environ(environ, base_url=api.base_url)
    return ClaudeProcess(MODEL, PATIENCE, access, **more)


@pytest.fixture
async def api() -> AsyncIterator[ScriptedMessagesAPI]:
    async with ScriptedMessagesAPI(GOOD) as started:
        yield started


async def test_a_reply_is_as_in_this_process(api: ScriptedMessagesAPI) -> None:
    rows = [
        GOOD,
        Answer("no JSON"),
        refusal(),
        cut_by_max_tokens(GOOD),
        rate_limited(retry_after=7),
        unauthorized(),
        bad_request("too long"),
        overloaded(),
        Reset(),
    ]
    child, here = process(api), Claude(MODEL, PATIENCE, KEY, api.base_url)
    try:
        for row in rows:
            api.script(Rule([row]))
            ours = await here.ask(PROMPT, 100)
            theirs = await child.ask(PROMPT, 100)
            assert (theirs.kind, theirs.error) == (ours.kind, ours.error)
            assert (theirs.output, theirs.usage) == (ours.output, ours.usage)
            assert (theirs.retry_after, theirs.text) == (ours.retry_after, ours.text)
        assert {call.key for call in api.calls} == {fingerprint(KEY)}
    finally:
        await child.close()
        await here.close()


async def test_no_argument_and_no_variable_has_the_key(
    api: ScriptedMessagesAPI,
) -> None:
    child = process(api)
    await child.ask(PROMPT, 100)
    files = Path(f"/proc/{child.pid}")
    assert b"claude_worker" in (files / "cmdline").read_bytes()
    for name in ("cmdline", "environ"):
        assert KEY.encode() not in (files / name).read_bytes()
        assert b"teal" not in (files / name).read_bytes()
    pid = child.pid
    await child.close()
    assert pid is not None and not psutil.pid_exists(pid)


async def test_an_idle_child_ends_and_the_next_call_starts_another(
    api: ScriptedMessagesAPI,
) -> None:
    child = process(api, idle=0)
    assert (await child.ask(PROMPT, 100)).kind is Kind.ANSWERED
    await comes_true(lambda: child.pid is None, PATIENCE)
    assert (await child.ask(PROMPT, 100)).kind is Kind.ANSWERED
    await child.close()


async def test_a_call_that_is_cancelled_ends_in_the_child_too(
    api: ScriptedMessagesAPI,
) -> None:
    child, hold = process(api), Hold(GOOD)
    api.script(Rule([hold]))
    early = asyncio.create_task(child.ask(PROMPT, 100))
    await asyncio.sleep(0)
    early.cancel()
    with pytest.raises(NotSent):  # the child had no request of it
        await early
    late = asyncio.create_task(child.ask(PROMPT, 100))
    await asyncio.to_thread(api.wait_for_requests_sync, 1, PATIENCE)
    late.cancel()
    with pytest.raises(asyncio.CancelledError) as cut:
        await late
    assert not isinstance(cut.value, NotSent), "the API may bill it"
    hold.release()
    assert (await child.ask(PROMPT, 100)).kind is Kind.ANSWERED, "it goes on"
    await child.close()


async def test_signals_for_the_daemon_do_not_end_a_call(
    api: ScriptedMessagesAPI,
) -> None:
    child, hold = process(api), Hold(GOOD)
    api.script(Rule([hold]))
    asked = asyncio.create_task(child.ask(PROMPT, 100))
    await asyncio.to_thread(api.wait_for_requests_sync, 1, PATIENCE)
    assert child.pid is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(child.pid, number)
    hold.release()
    assert (await asked).kind is Kind.ANSWERED
    await child.close()


async def test_a_killed_child_costs_its_worst_case_and_is_tried_again(
    api: ScriptedMessagesAPI,
    store: SqlStore,
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hold = Hold(GOOD)
    api.script(Rule([hold]))
    child = process(api)
    gatherer = ContextGatherer(
        {"fake": FakeSubject("fake")}, Redactor(), clock, store.past
    )
    agent = AgentRunner(
        store,
        gatherer,
        lambda: child,
        AgentSettings(backoff=15),
        clock=clock,
        random=lambda: 1.0,
    )
    [ticket] = await open_tickets(store, "db")
    draining = asyncio.create_task(agent.drain(StopEvent(clock)))
    await asyncio.to_thread(api.wait_for_requests_sync, 1, PATIENCE)
    worst = await store.spent_today()
    assert child.pid is not None and worst > 0
    os.kill(child.pid, signal.SIGKILL)
    assert await draining is None
    after = await store.ticket(ticket.id)
    assert after.status is TicketStatus.OPEN and after.attempts == 1
    assert "killed by signal 9" in (after.last_error or "")
    assert await store.spent_today() == worst
    hold.release()
    await clock.advance(16)
    assert await agent.drain(StopEvent(clock)) is None
    lost, answered = await store.diagnoses(ticket.id)
    assert (lost.outcome, answered.outcome) == ("lost", "answered")
    assert lost.cost_usd == answered.cost_usd < worst
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]
    await child.close()


PARENT = """
import asyncio, sys
from midwatch.agent.claude_process import ClaudeProcess
from midwatch.agent.diagnosis import Prompt
from midwatch.provider import ApiAccess
model = ClaudeProcess("claude-sonnet-5-5", 600, ApiAccess("sk-ant-test", sys.argv[1]))
async def main():
    asking = asyncio.create_task(model.ask(Prompt("Diagnose.", "It is slow."), 100))
    while model.pid is None:
        await asyncio.sleep(0.01)
    print(model.pid, flush=True)
    await asking
asyncio.run(main())
"""


async def test_a_killed_parent_leaves_no_child(api: ScriptedMessagesAPI) -> None:
    api.script(Rule([Hold(GOOD)]))
    command = [sys.executable, "-c", PARENT, api.base_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(await asyncio.to_thread(parent.stdout.readline))
        child = psutil.Process(pid)
        await asyncio.to_thread(api.wait_for_requests_sync, 1, PATIENCE)
        parent.kill()
    await comes_true(
        lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE,
        PATIENCE,
    )


async def test_what_cannot_work_is_refused_before_a_call() -> None:
    environ = {"HTTPS_PROXY": "http://[proxy"}
    with pytest.raises(SettingsError, match="HTTPS_PROXY"):
        ClaudeProcess(MODEL, 5, ApiAccess(KEY, environ=environ))
    with pytest.raises(SettingsError, match="CLOUD_ML_REGION"):
        ClaudeProcess(MODEL, 5, ApiAccess(provider="vertex"))


async def test_a_cloud_without_a_region_is_a_matter_of_the_login() -> None:
    environ = {"AWS_BEARER_TOKEN_BEDROCK": "token", "HOME": "/nonexistent"}
    child = ClaudeProcess(MODEL, 5, ApiAccess(provider="bedrock", environ=environ))
    reply = await child.ask(PROMPT, 100)
    assert reply.kind is Kind.UNAUTHORISED and "AWS_REGION" in reply.error
    await child.close()
