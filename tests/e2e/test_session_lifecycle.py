"""What becomes of a session when its runner is told to end, or is killed; and talking to one."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from pathlib import Path

import pytest

from midwatch.session import errors
from midwatch.session.agentic_session import AsyncAgenticSession
from midwatch.session.events import (
    Command,
    Event,
    MailboxRejected,
    PermissionAnswer,
    PermissionRequest,
    Phase,
    PhaseChanged,
    Prompt,
    TurnResult,
    TurnStarted,
)
from midwatch.session.log import EventReader, read_events
from midwatch.session.mailbox import write_mail
from midwatch.testing.fakes import collect, only, options, post, session_in
from midwatch.testing.messages_api import (
    Answer,
    Hold,
    Request,
    Rule,
    ScriptedMessagesAPI,
    ToolUse,
)

from ..scripts import Script
from ..waiting import PATIENCE, LeapingClock, alive, wait_until

RUNNER = """
import asyncio, sys
from pathlib import Path
from midwatch.errors import MidwatchError
from midwatch.lifecycle import StopEvent, stop_on_signals
from midwatch.testing.fakes import options, session_in

async def main(folder, base_url, prompt, interactive):
    stop = StopEvent()
    session = session_in(Path(folder), base_url, interactive=interactive == "yes")
    async def watch():
        await stop.wait()
        session.stop(stop.reason)
    with stop_on_signals(stop):
        watching = asyncio.create_task(watch())
        async for event in session.execute(prompt or None):
            pass
        watching.cancel()

try:
    asyncio.run(main(*sys.argv[1:]))
except MidwatchError as error:
    sys.exit(error.one_line())
"""


def runner(
    folder: Path, api: ScriptedMessagesAPI, prompt: str = "", interactive: bool = False
) -> Script:
    asked = "yes" if interactive else "no"
    return Script(RUNNER, ["-c", str(folder), api.base_url, prompt, asked])


def pids(folder: Path) -> list[int]:
    text = written(folder / "session" / "run" / "processes")
    return [int(line.split()[0]) for line in text.splitlines()]


def written(path: Path) -> str:
    """Wait until a file has a whole line, and return its text: a shell opens it before it writes."""
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    return path.read_text()


def log(folder: Path) -> list[Event]:
    return list(read_events(folder / "session" / "outbox.jsonl"))


def test_sigterm_stops_the_session_and_keeps_all_it_has(tmp_path: Path) -> None:
    slow = Answer(
        tool_uses=[ToolUse("Bash", {"command": "echo 1 > f; tail -f /dev/null"})]
    )
    with ScriptedMessagesAPI(Rule([slow, "Fine."], tools=True)) as api:
        process = runner(tmp_path, api, "Work.")
        wait_until((tmp_path / "work" / "f").exists, PATIENCE)
        began = time.monotonic()
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert time.monotonic() - began < PATIENCE
        events = log(tmp_path)
        last = events[-1]
        assert isinstance(last, PhaseChanged)
        assert (last.phase, last.reason) == (Phase.STOPPED, "SIGTERM")
        assert [r.outcome for r in only(events, TurnResult)] == ["interrupted"]
        assert not any(alive(pid) for pid in pids(tmp_path))
        asyncio.run(collect(session_in(tmp_path, api), "Go on."))
        assert "Work." in api.calls[-1].prompt


def test_a_killed_runner_leaves_no_process_and_the_next_one_goes_on(
    tmp_path: Path,
) -> None:
    command = "echo $$ > pid; trap '' TERM; tail -f /dev/null"
    slow = Answer(tool_uses=[ToolUse("Bash", {"command": command})])
    with ScriptedMessagesAPI(Rule([slow, "Fine."], tools=True)) as api:
        process = runner(tmp_path, api, "Work.")
        tool = int(written(tmp_path / "work" / "pid"))
        running = [*pids(tmp_path), tool]
        assert all(alive(pid) for pid in running)
        with pytest.raises(errors.SessionBusy):
            asyncio.run(collect(session_in(tmp_path, api), "Meanwhile."))
        process.kill()
        process.wait()
        wait_until(lambda: not any(alive(pid) for pid in running), PATIENCE)
        events = asyncio.run(collect(session_in(tmp_path, api), None))
        phases = [(e.run, e.phase) for e in only(events, PhaseChanged)]
        assert phases[0] == (1, Phase.FAILED) and phases[-1] == (2, Phase.COMPLETED)
        assert only(events, PhaseChanged)[0].reason == "RunnerCrashed"
        assert only(events, TurnResult)[-1].text == "Fine."
        assert said_by_the_person(api.calls[-1]).count("Work.") == 1


def said_by_the_person(call: Request) -> list[str]:
    """The texts of the person in a conversation, in order."""
    texts: list[str] = []
    for message in call.body["messages"]:
        content = message["content"]
        blocks = [{"text": content}] if isinstance(content, str) else content
        if message["role"] == "user":
            texts += [str(block.get("text", "")).strip() for block in blocks]
    return texts


@pytest.mark.timeout(600)
def test_no_message_is_lost_or_doubled_when_the_runner_is_killed(
    tmp_path: Path,
) -> None:
    """Kills at random points, while messages are appended all the time."""
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    answer = Answer(tool_uses=[ToolUse("Bash", {"command": "true"})])
    count = 0
    inbox = tmp_path / "session" / "inbox.jsonl"
    inbox.parent.mkdir()

    def send(text: str) -> None:
        write_mail(inbox, id=text, kind="user_message", content=text, timestamp="")

    def respond(request: Request) -> Answer:
        last = request.body["messages"][-1]["content"]
        done = any(isinstance(b, dict) and b.get("type") == "tool_result" for b in last)
        return Answer("Done.") if done or chance.random() < 0.5 else answer

    with ScriptedMessagesAPI(Rule(respond, tools=True)) as api:
        for _ in range(6):
            process = runner(tmp_path, api, interactive=True)
            until = time.monotonic() + chance.uniform(0.3, 1.6)
            while time.monotonic() < until:
                send(f"message-{count}")
                count += 1
                time.sleep(chance.uniform(0.01, 0.3))
            process.kill()
            process.wait()
        write_mail(inbox, id="end", kind="end_session", content=None, timestamp="")
        assert runner(tmp_path, api, interactive=True).wait(4 * PATIENCE) == 0, seed
        final = api.calls[-1]
    wanted = [f"message-{number}" for number in range(count)]
    said = [text for text in said_by_the_person(final) if text in set(wanted)]
    assert said == wanted, seed
    events = log(tmp_path)
    assert [p.id for p in only(events, Prompt)] == wanted
    answered = [r.prompt_id for r in only(events, TurnResult)]
    assert answered == wanted, seed


async def follow(
    session: AsyncAgenticSession,
) -> tuple[asyncio.Task[list[Event]], EventReader]:
    return asyncio.create_task(collect(session, None)), EventReader(
        session.folder.outbox
    )


async def seen(
    reader: EventReader, kind: type[Event], timeout: float = PATIENCE
) -> Event:
    """The next event of a kind in the outbox, as another program would read it."""
    async with asyncio.timeout(timeout):
        while True:
            for event in reader.poll(1):
                if isinstance(event, kind):
                    return event
            await asyncio.sleep(0.002)


async def test_a_conversation_through_the_two_files(tmp_path: Path) -> None:
    hold = Hold(Answer("Too late."))
    answers = ["Hello.", hold, "There.", "Good."]
    async with ScriptedMessagesAPI(Rule(answers, tools=True)) as api:
        session = session_in(tmp_path, api, interactive=True)
        post(session, "user_message", "written before it runs", "m1")
        task, reader = await follow(session)
        assert (await seen(reader, TurnResult)).text == "Hello."  # type: ignore[attr-defined]
        post(session, "user_message", "a slow one", "m2")
        post(session, "user_message", "fix /endpoint", "m3")
        await hold.arrived()
        post(session, "interrupt", None, "i1")
        assert (await seen(reader, TurnResult)).outcome == "interrupted"  # type: ignore[attr-defined]
        assert (await seen(reader, TurnResult)).text == "There."  # type: ignore[attr-defined]
        post(session, "user_message", "a slow one", "m2")  # the same id again
        with session.folder.inbox.open("ab") as inbox:
            inbox.write(b'{"id": "x", "type": "nonsense"}\n{"id": "m4", "type": "user')
        assert (await seen(reader, MailboxRejected)).why.startswith("type must be")  # type: ignore[attr-defined]
        with session.folder.inbox.open("ab") as inbox:
            inbox.write(b'_message", "content": "in two parts"}\n')
        assert (await seen(reader, TurnResult)).text == "Good."  # type: ignore[attr-defined]
        post(session, "user_message", " /end\n", "m5")
        events = await asyncio.wait_for(task, PATIENCE)
        assert len(api.calls) == 4
    assert [p.id for p in only(events, Prompt)] == ["m1", "m2", "m3", "m4"]
    assert only(events, Command)[-1].kind == "end_session"
    assert (events[-1].phase, events[-1].reason) == (Phase.COMPLETED, "end_session")  # type: ignore[union-attr]
    assert session.folder.rejected.read_text().count("\n") == 1


async def test_a_person_answers_permission_requests(tmp_path: Path) -> None:
    def touch(name: str) -> Answer:
        return Answer(tool_uses=[ToolUse("Bash", {"command": f"touch {name}"})])

    names = ("yes", "no", "late")
    script = [touch(tmp_path / name) for name in names]  # type: ignore[arg-type]
    async with ScriptedMessagesAPI(Rule([*script, "Done."], tools=True)) as api:
        asking = options(
            permission_mode="default",
            allowed_tools=(),
            limits={"permission_wait": 500.0, "idle": 400.0},
        )
        clock = LeapingClock()
        session = session_in(
            tmp_path, api, interactive=True, options=asking, clock=clock
        )
        post(session, "user_message", "Make files.", "m1")
        post(session, "end_session", None, "end")
        task, reader = await follow(session)
        for number, allow in enumerate((True, False)):
            request = await seen(reader, PermissionRequest)
            assert isinstance(request, PermissionRequest)
            assert session.status().pending_permissions == (request,)
            reply = {"request_id": request.request_id, "allow": allow}
            post(session, "permission_response", reply, f"p{number}")
        await seen(reader, PermissionRequest)
        clock.leap(499.0)  # longer than the idle limit, which does not hold meanwhile
        unknown = {"request_id": "of no request", "allow": True}
        post(session, "permission_response", unknown, "a look at the clock")
        await seen(reader, Command)
        clock.leap(1.0)
        post(session, "permission_response", unknown, "another look at it")
        events = await asyncio.wait_for(task, PATIENCE)
    assert [a.allowed for a in only(events, PermissionAnswer)] == [True, False, False]
    assert [(tmp_path / name).exists() for name in names] == [True, False, False]
    assert not session.status().pending_permissions


async def test_nobody_to_ask_is_a_no(tmp_path: Path) -> None:
    use = Answer(tool_uses=[ToolUse("Bash", {"command": f"touch {tmp_path}/yes"})])
    async with ScriptedMessagesAPI(Rule([use, "Done."], tools=True)) as api:
        asking = options(permission_mode="default", allowed_tools=())
        events = await collect(session_in(tmp_path, api, options=asking), "Do it.")
    assert [a.allowed for a in only(events, PermissionAnswer)] == [False]
    assert not (tmp_path / "yes").exists()


async def count_beats() -> int:
    """How often the event loop could sleep for 10 ms before this was cancelled."""
    beats = 0
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            await asyncio.sleep(0.01)
            beats += 1
    return beats


async def test_a_message_is_picked_up_at_once(tmp_path: Path) -> None:
    waits: list[int] = []
    async with ScriptedMessagesAPI(Rule("Yes.", tools=True)) as api:
        session = session_in(tmp_path, api, interactive=True)
        task, reader = await follow(session)
        await seen(reader, PhaseChanged)
        await seen(reader, PhaseChanged)
        for number in range(7):
            beats = asyncio.create_task(count_beats())
            post(session, "user_message", f"m{number}", f"m{number}")
            await seen(reader, TurnStarted)
            beats.cancel()
            waits.append(await beats)
            await seen(reader, TurnResult)
        session.stop()
        await task
    # How soon exactly is for `make bench`; a look every second would show. The beats are of
    # the session's own event loop: where the machine is busy, there are fewer of them.
    assert sorted(waits)[len(waits) // 2] < 40
