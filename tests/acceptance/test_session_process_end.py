"""Programs that use a session as a script does, without `close` or `with`: each ends by itself.

Each runs in a process of its own, forked from one that has the imports. Afterwards the session has its true end in
every record, and no program runs.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from midwatch.session.events import Failure, Phase, PhaseChanged
from midwatch.session.log import SessionFolder, read_events
from midwatch.testing.fakes import KEY
from midwatch.testing.messages_api import (
    Answer,
    Hang,
    Reply,
    Rule,
    ScriptedMessagesAPI,
    ToolUse,
)
from midwatch.testing.messages_script import unauthorized

from ..scripts import Script, run_script
from ..waiting import PATIENCE, alive, wait_until

pytestmark = pytest.mark.timeout(900)
LONGEST = 4 * PATIENCE
"""Seconds for a script: Python with all modules, Claude Code, and the end of both start after one another."""

START = """
import signal, sys, threading, time
from midwatch import AgenticSession, ApiAccess

client = ApiAccess(api_key=sys.argv[1], base_url=sys.argv[2])
workspace, folder, prompt = sys.argv[3], sys.argv[4], "Work."

def new(**more):
    return AgenticSession(client=client, workspace=workspace, folder=folder, **more)

def wait_for(kind, events):
    for event in events:
        print(event.type, flush=True)
        if event.type == kind:
            return event
"""

AS_PEOPLE_WRITE_IT = """
import anthropic

client = anthropic.Anthropic(api_key=sys.argv[1], base_url=sys.argv[2])

def run():
    session = AgenticSession(client=client, workspace=workspace, model="claude-sonnet-4-5-20250929", folder=folder)
    for event in session.execute(prompt):
        if event.type == "message":
            print(f"Message: {event.content}")
        elif event.type == "tool_use":
            print(f"Tool: {event.tool_name}")
        elif event.type == "error":
            raise RuntimeError(f"Session failed: {event.message}")
    return session.get_results()

result = run()
print(result.phase, result.text)
"""

HANGS = {
    "an abandoned loop": """
        session = new()
        for event in session.execute(prompt):
            if event.type == "turn":
                break
        print("left")
    """,
    "a loop that is kept": """
        session = new()
        events = session.execute(prompt)
        wait_for("turn", events)
        print("left")
    """,
    "a loop that only garbage collection finds": """
        class Ring: pass
        ring = Ring()
        ring.itself, ring.session = ring, new()
        ring.events = ring.session.execute(prompt)
        wait_for("turn", ring.events)
        del ring
        print("left")
    """,
    "a loop of an interactive session": """
        session = new(interactive=True)
        events = session.execute(prompt)
        wait_for("turn", events)
        print("left")
    """,
    "a daemon thread that waits": """
        session = new()
        seen = threading.Event()
        def work():
            for event in session.execute(prompt):
                if event.type == "turn":
                    seen.set()
        threading.Thread(target=work, daemon=True).start()
        seen.wait()
        print("left")
    """,
    "an exit": """
        session = new()
        events = session.execute(prompt)
        wait_for("turn", events)
        print("left", flush=True)
        sys.exit()
    """,
    "a program that was prepared and not used": """
        session = new()
        session.prepare()
        print("left")
    """,
    "results before the end": """
        session = new()
        events = session.execute(prompt)
        wait_for("turn", events)
        print(session.get_results().phase)
        session.close()
        print(session.get_results().phase, list(events), "left")
    """,
    "an abandoned asynchronous loop": """
        import asyncio
        from midwatch import AsyncAgenticSession
        async def main():
            session = AsyncAgenticSession(client=client, workspace=workspace, folder=folder)
            async for event in session.execute(prompt):
                if event.type == "turn":
                    break
        asyncio.run(main())
        print("left")
    """,
    "an asynchronous loop that is kept": """
        import asyncio
        from midwatch import AsyncAgenticSession
        async def main():
            global session, events
            session = AsyncAgenticSession(client=client, workspace=workspace, folder=folder)
            events = session.execute(prompt)
            async for event in events:
                if event.type == "turn":
                    return
        asyncio.run(main())
        print("left")
    """,
}


def run(
    tmp_path: Path, script: str, reply: Reply | list[Reply], code: int = 0
) -> tuple[str, SessionFolder]:
    """Run a script to its end. Return its output and the folder of its session."""
    work, folder = tmp_path / "work", SessionFolder(tmp_path / "session")
    work.mkdir()
    with ScriptedMessagesAPI(Rule(reply, tools=True)) as api:
        arguments = [KEY, api.base_url, str(work), str(folder.path)]
        ended, said = run_script(START + script, arguments, timeout=LONGEST)
    assert ended == code, said
    return said, folder


def end_of(folder: SessionFolder) -> PhaseChanged:
    """Return the last event: a terminal phase, which the status has too. No program runs, and no lock is held."""
    [*_, last] = read_events(folder.outbox)
    assert isinstance(last, PhaseChanged) and last.phase.terminal
    status = json.loads((folder.path / "status.json").read_text())
    assert status["phase"] == last.phase and status["last_seq"] == last.seq
    pids = (folder.path / "run" / "processes").read_text().splitlines()
    wait_until(lambda: not any(alive(int(line.split()[0])) for line in pids))
    with folder.locked():
        pass
    return last


def dedent(script: str) -> str:
    return "\n".join(line.removeprefix("        ") for line in script.splitlines())


def test_the_code_that_people_write_runs(tmp_path: Path) -> None:
    tool = ToolUse("Write", {"file_path": "new", "content": "1\n"})
    replies: list[Reply] = [Answer("I write.", tool_uses=[tool]), Answer("Done.")]
    said, folder = run(tmp_path, AS_PEOPLE_WRITE_IT, replies)
    assert said.splitlines() == [
        "Message: I write.",
        "Tool: Write",
        "Message: Done.",
        "Completed Done.",
    ]
    assert end_of(folder).phase is Phase.COMPLETED
    assert (tmp_path / "work" / "new").read_text() == "1\n"


def test_a_loop_that_raises_at_the_error_ends_the_process(tmp_path: Path) -> None:
    said, folder = run(tmp_path, AS_PEOPLE_WRITE_IT, unauthorized(), code=1)
    assert "RuntimeError: Session failed: " in said.splitlines()[-1]
    assert end_of(folder).phase is Phase.FAILED
    [error] = [e for e in read_events(folder.outbox) if isinstance(e, Failure)]
    assert error.kind == "KeyRefused" and error.message in said


def test_the_error_of_the_session_ends_the_process(tmp_path: Path) -> None:
    script = "session = new()\nfor event in session.execute(prompt): pass\n"
    said, folder = run(tmp_path, script, unauthorized(), code=1)
    assert "midwatch.session.errors.KeyRefused" in said.splitlines()[-1]
    assert end_of(folder).reason == "KeyRefused"


def test_an_error_in_the_loop_ends_the_process(tmp_path: Path) -> None:
    script = """
session = new()
for event in session.execute(prompt):
    if event.type == "turn":
        raise ValueError("mine")
"""
    said, folder = run(tmp_path, script, Hang(), code=1)
    assert said.splitlines()[-1] == "ValueError: mine"
    assert "Exception ignored" not in said
    assert end_of(folder).phase is Phase.STOPPED


@pytest.mark.parametrize("script", HANGS.values(), ids=HANGS.keys())
def test_a_process_ends_with_its_session(tmp_path: Path, script: str) -> None:
    """The API never answers: without the end of the process nothing would end."""
    said, folder = run(tmp_path, dedent(script), Hang())
    assert said.splitlines()[-1].endswith("left")
    assert end_of(folder).phase is Phase.STOPPED


def test_two_sessions_end_with_one_process(tmp_path: Path) -> None:
    """Also where others use `weakref.finalize` before the Agent SDK is imported, as the process does that this is forked from."""
    script = """
one, two = new(), AgenticSession(client=client, workspace=workspace, folder=folder + "-2")
for session in one, two:
    wait_for("turn", events := session.execute(prompt))
    session.kept = events
"""
    _, folder = run(tmp_path, script, Hang())
    for one in folder, SessionFolder(tmp_path / "session-2"):
        assert end_of(one).phase is Phase.STOPPED


def test_a_forked_process_leaves_the_session_alone(tmp_path: Path) -> None:
    script = """
import os
session = new()
events = session.execute(prompt)
wait_for("turn", events)
child = os.fork()
if not child:
    session.close()
    del events
    sys.exit(3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
print(session.status().phase)
"""
    said, folder = run(tmp_path, script, Hang())
    assert said.splitlines()[-1] == "Running"
    assert end_of(folder).phase is Phase.STOPPED


@pytest.mark.parametrize("where", ["in the wait", "in the body"])
def test_ctrl_c_ends_the_process(tmp_path: Path, where: str) -> None:
    body = "signal.pause()" if where == "in the body" else "pass"
    script = f"""
session = new()
for event in session.execute(prompt):
    print(event.type, flush=True)
    if event.type == "turn":
        {body}
"""
    work, folder = tmp_path / "work", SessionFolder(tmp_path / "session")
    work.mkdir()
    output = tmp_path / "output"
    with ScriptedMessagesAPI(Rule(Hang(), tools=True)) as api, output.open("w") as file:
        arguments = [KEY, api.base_url, str(work), str(folder.path)]
        process = Script(START + script, ["-c", *arguments], stdout=file, whole=True)
        wait_until(
            lambda: "turn" in output.read_text() or process.poll() is not None, LONGEST
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(LONGEST) == -signal.SIGINT, output.read_text()
    assert output.read_text().splitlines()[-1] == "KeyboardInterrupt"
    assert end_of(folder).phase is Phase.STOPPED
