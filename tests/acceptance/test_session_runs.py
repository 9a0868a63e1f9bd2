"""A session as a library runs it, with the real claude program."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from midwatch.errors import StoreUnavailable
from midwatch.model import Usage
from midwatch.session import errors
from midwatch.session.agentic_session import AgenticSession, run_agentic_session
from midwatch.session.claude_code import Launcher
from midwatch.session.events import (
    Message,
    Notice,
    Phase,
    PhaseChanged,
    Started,
    Subagent,
    Thinking,
    ToolResult,
    ToolUse,
    TurnResult,
)
from midwatch.session.log import EventLog, read_events
from midwatch.session.options import ApiAccess, SubagentSpec
from midwatch.session.records import FolderRecords, SessionSpec
from midwatch.session.status import SessionStatus, fold
from midwatch.session.transcripts import FileTranscripts
from midwatch.testing.fakes import (
    KEY,
    collect,
    make_repository,
    only,
    options,
    session_in,
)
from midwatch.testing.messages_api import Answer, Hold, Rule, ScriptedMessagesAPI
from midwatch.testing.messages_api import ToolUse as Use
from midwatch.workspace.setup import WorkspaceOptions, setup_workspace_async

from ..waiting import alive, wait_until

MCP_SERVER = """
import json, os, sys
for line in sys.stdin:
    asked = json.loads(line)
    method, version = asked["method"], asked.get("params", {}).get("protocolVersion")
    answers = {
        "initialize": {"protocolVersion": version, "capabilities": {"tools": {}},
                       "serverInfo": {"name": "clock", "version": "1"}},
        "tools/list": {"tools": [{"name": "now", "inputSchema": {"type": "object"}}]},
        "tools/call": {"content": [{"type": "text",
                                    "text": "noon " + os.environ["CLOCK_TOKEN"][-3:]}]},
    }
    if "id" in asked:
        answer = {"result": answers[method]} if method in answers else {
            "error": {"code": -32601, "message": method}}
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **answer}), flush=True)
"""


def bash(command: str, **more: object) -> Answer:
    return Answer(tool_uses=[Use("Bash", {"command": command})], **more)  # type: ignore[arg-type]


async def test_one_prompt_from_creating_to_completed(tmp_path: Path) -> None:
    answers = [bash("echo hello > file", thinking="Hm.", text="Look:"), "Done."]
    async with ScriptedMessagesAPI(Rule(answers, tools=True)) as api:
        session = session_in(tmp_path, api)
        events = await collect(session, "Write a file.")
    assert (tmp_path / "work" / "file").read_text() == "hello\n"
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [e.phase for e in only(events, PhaseChanged)] == [
        Phase.CREATING,
        Phase.RUNNING,
        Phase.COMPLETED,
    ]
    assert only(events, Thinking)[0].text == "Hm."
    assert [m.text for m in only(events, Message)] == ["Look:", "Done."]
    assert only(events, ToolResult)[0].tool_use_id == only(events, ToolUse)[0].id
    result = await session.get_results()
    assert result.ok and result.text == "Done." and result.turns == 2
    assert result.usage == Usage(input_tokens=200, output_tokens=40)
    assert list(result.models) == ["claude-sonnet-5-5"] and result.cost_usd > 0
    assert list(read_events(session.folder.outbox)) == events
    assert fold(SessionStatus(), events) == session.status()


async def test_bash_sees_neither_the_runner_s_secrets_nor_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD_OF_RUNNER", "runner-secret")
    up = "p=$PPID; for i in 1 2; do tr '\\0' '\\n' < /proc/$p/environ; tr '\\0' ' ' < /proc/$p/cmdline; p=$(awk '{print $4}' /proc/$p/stat); done"
    look = f"(env; {up}; cat /proc/$PPID/fd/* < /dev/null 2>/dev/null & sleep 0.3; kill %1) > seen"
    async with ScriptedMessagesAPI(Rule([bash(look), "Done."], tools=True)) as api:
        session = session_in(tmp_path, api)
        await collect(session, "Look around.")
        assert api.calls[0].key.endswith(KEY[-4:])
    seen = (tmp_path / "work" / "seen").read_text(errors="replace")
    assert "CLAUDE_CONFIG_DIR" in seen and "--output-format" in seen
    assert "runner-secret" not in seen and KEY not in seen
    for path in (tmp_path / "session").rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


async def test_temporary_files_are_the_sessions_own_and_go_with_its_program(
    tmp_path: Path,
) -> None:
    made = "mkdir -p $TMPDIR/a/b; ln -s $PWD $TMPDIR/a/link; mktemp -d > own"
    rule = Rule([bash(made), "Done."], tools=True)
    with tempfile.TemporaryDirectory() as shared:
        given = options(variables={"TMPDIR": shared})
        async with ScriptedMessagesAPI(rule) as api:
            await collect(session_in(tmp_path, api, options=given), "Look around.")
        own = Path((tmp_path / "work" / "own").read_text().strip()).parent
        assert own.parent == Path(shared) and os.listdir(shared) == []


async def test_what_a_killed_supervisor_left_goes_with_the_next_program(
    tmp_path: Path,
) -> None:
    """And nothing of a session that still runs."""
    gate = Hold(Answer("Done."))
    steps = [bash("echo $TMPDIR > own"), gate]
    rule = Rule(steps, contains="The first.", tools=True)
    with tempfile.TemporaryDirectory() as shared:
        given = options(variables={"TMPDIR": shared})
        places = [tmp_path / name for name in ("first", "second")]
        for place in places:
            place.mkdir()
        async with ScriptedMessagesAPI(rule, Rule("Done.", tools=True)) as api:
            first = session_in(places[0], api, options=given)
            working = asyncio.create_task(collect(first, "The first."))
            await gate.arrived()
            await collect(session_in(places[1], api, options=given), "Another.")
            own = (places[0] / "work" / "own").read_text().strip()
            assert [str(one) for one in Path(shared).iterdir()] == [own]
            for pid in reversed(
                Launcher.in_folder(first.folder.path / "run").processes()
            ):
                os.kill(pid, signal.SIGKILL)
            with pytest.raises(errors.ProgramCrashed):
                await working
            assert Path(own).exists()
            await collect(session_in(places[1], api, options=given), "Another.")
        assert os.listdir(shared) == []


async def test_a_hostile_repository_runs_nothing(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / ".claude" / "agents").mkdir(parents=True)
    hook = {"hooks": [{"type": "command", "command": f"touch {tmp_path}/hook-ran"}]}
    hooks = {name: [hook] for name in ("SessionStart", "UserPromptSubmit", "Stop")}
    (work / ".claude" / "settings.json").write_text(
        json.dumps({"hooks": hooks, "env": {"PLANTED": "1"}})
    )
    server = {"command": "touch", "args": [f"{tmp_path}/server-ran"]}
    (work / ".mcp.json").write_text(json.dumps({"mcpServers": {"evil": server}}))
    for name in ("CLAUDE.md", "AGENTS.md", ".claude/CLAUDE.md"):
        (work / name).write_text("ORDERS-FROM-THE-REPOSITORY")
    answers = [bash("echo ${PLANTED:-clean}"), "Done."]
    async with ScriptedMessagesAPI(Rule(answers, tools=True)) as api:
        events = await collect(session_in(tmp_path, api), "Look.")
        prompts = "".join(call.prompt for call in api.calls)
    assert not (tmp_path / "hook-ran").exists()
    assert not (tmp_path / "server-ran").exists()
    assert "ORDERS-FROM" not in prompts
    assert only(events, ToolResult)[0].text == "clean"
    assert only(events, Started)[0].mcp_servers == ()

    trusting = options(trust_repository=True)
    async with ScriptedMessagesAPI(Rule("Done.", tools=True)) as api:
        await collect(session_in(tmp_path, api, options=trusting), "Look.")
        assert "ORDERS-FROM" in api.calls[-1].prompt
    assert (tmp_path / "hook-ran").exists()


async def test_an_at_sign_and_a_slash_in_a_prompt_are_only_text(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("CONTENT-OF-THE-FILE")
    async with ScriptedMessagesAPI(Rule("Done.", tools=True)) as api:
        session = session_in(tmp_path, api)
        await collect(session, f"/clear and read @{secret}")
        assert f"/clear and read @{secret}" in api.calls[0].prompt
        assert "CONTENT-OF-THE-FILE" not in api.calls[0].prompt


async def test_a_sandbox_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    async with ScriptedMessagesAPI() as api:
        wish = options(sandbox="on", path=str(tmp_path))
        with pytest.raises(errors.SandboxUnavailable, match="bwrap"):
            await collect(session_in(tmp_path, api, options=wish), "Look.")
        assert not api.calls


async def test_a_sandbox_that_does_not_work_is_an_error(tmp_path: Path) -> None:
    for name in ("bwrap", "socat"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    async with ScriptedMessagesAPI(Rule([bash("touch out"), "No."], tools=True)) as api:
        wish = options(sandbox="on", path=f"{tmp_path}:/usr/bin:/bin")
        try:
            events = await collect(session_in(tmp_path, api, options=wish), "Look.")
        except errors.SandboxUnavailable:
            pass
        else:
            assert only(events, Started)[0].sandbox
    assert not (tmp_path / "work" / "out").exists()


async def test_a_missing_program_is_an_error_of_its_own(tmp_path: Path) -> None:
    session = session_in(
        tmp_path, "http://127.0.0.1:9", options=options(program=tmp_path / "claude")
    )
    with pytest.raises(errors.ProgramMissing):
        await collect(session, "Look.")
    assert session.status().phase is Phase.FAILED


async def test_options_that_the_program_refuses_are_named(tmp_path: Path) -> None:
    async with ScriptedMessagesAPI() as api:
        wrong = options(permission_mode="whatever")
        with pytest.raises(errors.SessionRefused, match="permission_mode 'whatever'"):
            await collect(session_in(tmp_path, api, options=wrong), "Look.")


async def test_a_program_that_is_killed_ends_the_session_and_its_tools(
    tmp_path: Path,
) -> None:
    command = "echo $$ > pid; kill -9 $PPID; tail -f /dev/null"
    async with ScriptedMessagesAPI(Rule(bash(command), tools=True)) as api:
        session = session_in(tmp_path, api)
        with pytest.raises(errors.ProgramCrashed) as raised:
            await collect(session, "Look.")
    assert raised.value.exit_code == 128 + signal.SIGKILL
    assert not alive(int((tmp_path / "work" / "pid").read_text()))


async def test_an_over_long_line_ends_the_session_with_its_reason(
    tmp_path: Path,
) -> None:
    short = options(limits={"line_bytes": 20_000})
    async with ScriptedMessagesAPI(Rule(Answer("x" * 30_000), tools=True)) as api:
        with pytest.raises(errors.LineTooLong):
            await collect(session_in(tmp_path, api, options=short), "Look.")


async def test_a_full_disk_ends_the_session_truthfully(tmp_path: Path) -> None:
    (tmp_path / "session").mkdir()
    log = EventLog(tmp_path / "session" / "outbox.jsonl")
    while log.last_seq < 20:
        log.append(Notice(text="x " * 50_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    full = log.path.stat().st_size + 700  # some events fit, a session's do not
    async with ScriptedMessagesAPI(Rule("Done.", tools=True)) as api:
        session = session_in(tmp_path, api)
        resource.setrlimit(resource.RLIMIT_FSIZE, (full, hard))
        try:
            with pytest.raises(errors.DiskFull):
                await collect(session, "Look.")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (await session.get_results()).phase is Phase.FAILED
        log.close()
        recorded = FolderRecords(tmp_path / "session").load_status()
        assert recorded is not None and recorded.phase is Phase.FAILED
        assert recorded.error is not None and recorded.error.kind == "DiskFull"
        events = await collect(session, None)  # there is space again
    assert session.status().result == "Done."
    assert events[-1].phase is Phase.COMPLETED  # type: ignore[union-attr]


async def test_who_leaves_early_stops_the_session(tmp_path: Path) -> None:
    hold = Hold(Answer("Too late."))
    async with ScriptedMessagesAPI(Rule(hold, tools=True)) as api:
        async with session_in(tmp_path, api) as session:
            async for event in session.execute("Look."):
                if isinstance(event, Started):
                    break
        hold.release()
    assert session.status().phase is Phase.STOPPED
    assert not session.status().unfinished


async def test_an_interrupt_ends_the_turn_and_the_next_prompt_goes_on(
    tmp_path: Path,
) -> None:
    hold = Hold(Answer("Too late."))
    async with ScriptedMessagesAPI(Rule([hold, "Fine."], tools=True)) as api:
        session = session_in(tmp_path, api)
        events = []
        async for event in session.execute("First."):
            events.append(event)
            if isinstance(event, Started):
                await hold.arrived()
                session.interrupt()
        assert [r.outcome for r in only(events, TurnResult)] == ["interrupted"]
        assert session.status().phase is Phase.STOPPED
        await collect(session, "Second.")
        assert api.calls[-1].prompt.count("First.") == 1
        assert (await session.get_results()).text == "Fine."


async def test_subagents_are_visible_and_their_cost_counts(tmp_path: Path) -> None:
    task = Use("Agent", {"description": "d", "prompt": "SUB", "subagent_type": "scout"})
    scout = SubagentSpec("Looks around.", "You are a scout.", tools=("Read",))
    found = Hold(Answer("Found it."))
    async with ScriptedMessagesAPI(
        Rule(found, contains="You are a scout."),
        Rule([Answer(tool_uses=[task]), "It looks.", "All done."], tools=True),
    ) as api:
        session = session_in(tmp_path, api, options=options(subagents={"scout": scout}))
        events = []
        async for event in session.execute("Look."):
            events.append(event)
            if isinstance(event, TurnResult):  # the first one; the scout still looks
                found.release()
    assert [result.text for result in only(events, TurnResult)] == [
        "It looks.",
        "All done.",
    ]
    parent = only(events, ToolUse)[0].id
    assert any(
        m.text == "Found it." and m.parent_id == parent for m in only(events, Message)
    )
    assert only(events, Subagent)[0].tool_use_id == parent
    assert session.status().usage.input_tokens >= 300


async def test_a_session_goes_on_and_forks_on_another_machine(tmp_path: Path) -> None:
    here, there, fork = (tmp_path / name for name in ("here", "there", "fork"))
    for folder in (here, there, fork):
        folder.mkdir()
    store = FileTranscripts(tmp_path / "database")
    async with ScriptedMessagesAPI(Rule(["One.", "Two.", "Three."], tools=True)) as api:
        await collect(session_in(here, api, transcripts=store), "First question.")
        shutil.rmtree(
            here / "session" / "claude"
        )  # the machine is gone; so is its disk
        moved = session_in(there, api, transcripts=store)
        await collect(moved, "Second question.")
        assert "First question." in api.calls[1].prompt
        assert "One." in api.calls[1].prompt
        assert moved.status().usage.input_tokens == 100
        branch = session_in(
            fork, api, transcripts=store, session_id="branch", forked_from="test"
        )
        await collect(branch, "Third question.")
        assert "Two." in api.calls[2].prompt
        assert branch.status().usage.input_tokens == 100
        assert branch.status().conversation != moved.status().conversation


async def test_an_mcp_server_works_and_its_token_is_in_no_argument(
    tmp_path: Path,
) -> None:
    server = tmp_path / "server.py"
    server.write_text(MCP_SERVER)
    clock = {
        "command": sys.executable,
        "args": [str(server)],
        "env": {"CLOCK_TOKEN": "the-token-of-the-clock-xyz"},
    }
    look = bash("tr '\\0' ' ' < /proc/$PPID/cmdline; cat ../session/run/mcp.json")
    answers = [Answer(tool_uses=[Use("mcp__clock__now")]), look, "Done."]
    async with ScriptedMessagesAPI(Rule(answers, tools=True)) as api:
        tools = ("Bash", "mcp__clock__now")
        asked = options(mcp_servers={"clock": clock}, allowed_tools=tools)
        events = await collect(session_in(tmp_path, api, options=asked), "Time?")
    told, seen = only(events, ToolResult)
    assert told.text == "noon xyz"
    assert "--mcp-config" in seen.text and "the-token" not in seen.text
    assert "No such file" in seen.text


async def test_a_stop_that_comes_before_the_start_counts(tmp_path: Path) -> None:
    async with ScriptedMessagesAPI() as api:
        session = session_in(tmp_path, api)
        session.stop("too late")
        events = await collect(session, "Look.")
        assert not api.calls
    last = events[-1]
    assert isinstance(last, PhaseChanged)
    assert (last.phase, last.reason) == (Phase.STOPPED, "too late")
    with pytest.raises(errors.FolderUnusable, match="inside the workspace"):
        session_in(tmp_path, api, folder=tmp_path / "work" / "session")


class FailingRecords(FolderRecords):
    """A database that is away at the worst moment."""

    async def save_spec(self, spec: SessionSpec) -> None:
        raise StoreUnavailable()


async def test_records_that_fail_leave_the_session_closed(tmp_path: Path) -> None:
    async with ScriptedMessagesAPI(Rule("Done.", tools=True)) as api:
        records = FailingRecords(tmp_path / "session")
        with pytest.raises(StoreUnavailable):
            await collect(session_in(tmp_path, api, records=records), "Look.")
        session = session_in(tmp_path, api)
        assert session.status().phase is Phase.FAILED
        await collect(session, "Look.")
        assert session.status().phase is Phase.COMPLETED


async def test_results_name_what_changed_in_the_repositories(tmp_path: Path) -> None:
    repos = [make_repository(tmp_path / name, {"a": "1\n"}) for name in ("one", "two")]
    mine = WorkspaceOptions(cache=tmp_path / "cache")
    paths = await setup_workspace_async(
        [str(repo) for repo in repos], tmp_path / "ws", 1, options=mine
    )
    change = f"pwd > where; echo 2 >> {paths[0]}/a"
    async with ScriptedMessagesAPI(Rule([bash(change), "Done."], tools=True)) as api:
        session = session_in(
            tmp_path,
            api,
            workspace=paths,
            main_repo_index=1,
            workspace_options=mine,
            options=options(permission_mode="acceptEdits"),
        )
        await collect(session, "Change it.")
        assert str(paths[0]) in api.calls[0].prompt
    assert (paths[1] / "where").read_text().strip() == str(paths[1])
    one, two = (await session.get_results()).repositories
    assert (one.name, one.status, one.added) == ("one", "changed", 1)
    assert (two.name, [file.path for file in two.files]) == ("two", ["where"])


def test_without_an_event_loop(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    with ScriptedMessagesAPI(Rule("Done.", tools=True)) as api:
        seen: list[object] = []
        result = run_agentic_session(
            "Say done.",
            tmp_path / "work",
            KEY,
            base_url=api.base_url,
            folder=tmp_path / "session",
            options=options(),
            on_event=seen.append,
        )
        assert result.ok and result.text == "Done." and len(seen) > 4
        with AgenticSession(
            client=ApiAccess("sk-wrong", api.base_url),
            workspace=tmp_path / "work",
            folder=tmp_path / "other",
        ) as session:
            session.prepare()
            wait_until(lambda: (tmp_path / "other" / "run" / "processes").exists())
            lines = (tmp_path / "other/run/processes").read_text().splitlines()
        assert session.status().phase is Phase.STOPPED
        assert not any(alive(int(line.split()[0])) for line in lines)
    assert os.environ.get("ANTHROPIC_API_KEY") != KEY


async def test_an_interactive_session_that_nobody_writes_to_stops(
    tmp_path: Path,
) -> None:
    limited = options(limits={"mail_idle": 0.5})
    async with ScriptedMessagesAPI(Rule("Yes.", tools=True)) as api:
        session = session_in(tmp_path, api, options=limited, interactive=True)
        events = await collect(session, "There?")
    last = only(events, PhaseChanged)[-1]
    assert (last.phase, last.reason) == (Phase.STOPPED, "idle")
    [answered] = only(events, TurnResult)
    assert (last.at - answered.at).total_seconds() >= 0.5


@pytest.mark.parametrize("lost", ["work", "session"])
async def test_a_folder_that_is_removed_while_it_runs_is_a_failure(
    tmp_path: Path, lost: str
) -> None:
    """Not Completed: what the session did there is lost."""
    gone = f"until [ -e {tmp_path}/gone ]; do sleep 0.05; done"
    async with ScriptedMessagesAPI(Rule([bash(gone), "Done."], tools=True)) as api:
        session = session_in(tmp_path, api)
        folder = {"work": tmp_path / "work", "session": session.folder.path}[lost]
        # The outbox is in the session's folder, and its loss may be noticed first.
        expected = (errors.WorkspaceGone, errors.OutboxLost)
        with pytest.raises(expected, match="while the session ran") as raised:
            async for event in session.execute("Wait."):
                if isinstance(event, ToolUse):
                    # The program still writes, so the folder goes in one step.
                    folder.rename(tmp_path / "removed")
                    shutil.rmtree(tmp_path / "removed", ignore_errors=True)
                    (tmp_path / "gone").touch()
    assert str(folder) in raised.value.message and raised.value.hint
    status = session.status()
    assert (status.phase, status.reason) == (Phase.FAILED, type(raised.value).__name__)
    assert lost == "session" or status.reason == "WorkspaceGone"
