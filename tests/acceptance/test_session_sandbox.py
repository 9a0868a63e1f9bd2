"""Bash in a sandbox that works. Needs bubblewrap and socat; what happens without them is tested elsewhere."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from midwatch.session.claude_code import Launcher
from midwatch.session.errors import ProgramCrashed
from midwatch.session.events import Started, ToolResult
from midwatch.session.events import ToolUse as ToolUseEvent
from midwatch.testing.fakes import collect, only, options, run_git, session_in
from midwatch.testing.messages_api import (
    Answer,
    Rule,
    ScriptedMessagesAPI,
    ToolUse,
)

from ..waiting import wait_until

pytestmark = pytest.mark.skipif(
    not (shutil.which("bwrap") and shutil.which("socat")),
    reason="bubblewrap and socat are not installed",
)


def bash(command: str) -> Answer:
    return Answer(tool_uses=[ToolUse("Bash", {"command": command})])


@pytest.mark.parametrize("wish", ["on", "auto"])
async def test_what_bash_may_touch(tmp_path: Path, wish: str) -> None:
    """It writes in the workspace and nowhere else, and sees no process of ours."""
    outside = tmp_path / "outside"
    outside.mkdir()
    steps = [
        bash(f"echo no > {outside}/file; echo yes > inside"),
        bash(f"tr '\\0' '\\n' < /proc/{os.getpid()}/environ | head -3; ls /proc"),
        Answer("Done."),
    ]
    with ScriptedMessagesAPI(Rule(steps, tools=True)) as api:
        async with session_in(tmp_path, api, options=options(sandbox=wish)) as session:
            events = await collect(session, "Look around.")
    [started] = only(events, Started)
    assert started.sandbox
    assert (tmp_path / "work" / "inside").read_text() == "yes\n"
    assert not list(outside.iterdir())
    told = only(events, ToolResult)[1].text
    assert str(os.getpid()) not in told.split() and "No such file" in told


async def test_bash_has_a_place_for_temporary_files_that_goes(tmp_path: Path) -> None:
    steps = [bash("mktemp > inside; echo yes > $(cat inside)"), Answer("Done.")]
    # Not below `tmp_path`: the sandbox has sockets there, and their paths are short.
    with (
        tempfile.TemporaryDirectory() as shared,
        ScriptedMessagesAPI(Rule(steps, tools=True)) as api,
    ):
        given = options(sandbox="on", variables={"TMPDIR": shared})
        async with session_in(tmp_path, api, options=given) as session:
            await collect(session, "Look around.")
        made = Path((tmp_path / "work" / "inside").read_text().strip())
        assert Path(shared) in made.parents and os.listdir(shared) == []


async def test_git_adds_everything_in_the_sandbox(tmp_path: Path) -> None:
    """Mount points of the sandbox are devices there, which git refuses to add."""
    steps = [
        bash("echo new > new && git add -A && git ls-files > list"),
        bash("git add -A; echo $? > code; ls -A > seen"),
        Answer("Done."),
    ]
    with ScriptedMessagesAPI(Rule(steps, tools=True)) as api:
        run_git(tmp_path, "init", "-q", "work")
        async with session_in(tmp_path, api, options=options(sandbox="on")) as session:
            await collect(session, "Commit it.")
    work = tmp_path / "work"
    assert (work / "list").read_text().split() == ["new"]
    assert (work / "code").read_text() == "0\n"
    assert ".bashrc" in (work / "seen").read_text(), "else this could not fail"
    assert set(os.listdir(work)) == {".git", "new", "list", "code", "seen"}


async def test_what_a_killed_program_leaves_is_removed(tmp_path: Path) -> None:
    """Mount points go at the end of the run; what was there, or has content, stays."""
    wait = f"until [ -e {tmp_path}/never ]; do sleep 0.1; done"
    with ScriptedMessagesAPI(Rule([bash(wait), Answer("Done.")], tools=True)) as api:
        session = session_in(tmp_path, api, options=options(sandbox="on"))
        work = tmp_path / "work"
        (work / ".profile").touch()
        (work / ".mcp.json").write_text("{}")
        launcher = Launcher.in_folder(session.folder.path / "run")
        with pytest.raises(ProgramCrashed):
            async for event in session.execute("Wait."):
                if isinstance(event, ToolUseEvent):
                    bashrc = work / ".bashrc"
                    await asyncio.to_thread(wait_until, bashrc.exists)
                    os.kill(launcher.processes()[0], signal.SIGKILL)
    left = {path.name for path in work.iterdir()}
    assert left <= {".profile", ".mcp.json", ".git"}
    assert {".profile", ".mcp.json"} <= left
