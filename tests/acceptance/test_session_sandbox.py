"""Bash in a sandbox that works. Needs bubblewrap and socat; what happens without them is tested elsewhere."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from midwatch.session.events import Started, ToolResult
from midwatch.testing.fakes import collect, only, options, session_in
from midwatch.testing.messages_api import (
    Answer,
    Rule,
    ScriptedMessagesAPI,
    ToolUse,
)

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
