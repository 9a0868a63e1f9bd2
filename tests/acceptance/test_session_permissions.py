"""What a session may do without asking, with a sandbox and without; what it is told, and what was denied."""

from __future__ import annotations

import io
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from midwatch.cli.output import Output
from midwatch.cli.session.chat import send_line
from midwatch.cli.session.view import EventPrinter
from midwatch.errors import Conflict
from midwatch.kube.status import Writer, denied_conditions, merged
from midwatch.session import errors
from midwatch.session.events import PermissionRequest, Phase, Started, ToolResult
from midwatch.session.log import SessionFolder
from midwatch.session.mailbox import Inbox, Mail, Mailbox
from midwatch.session.options import SessionOptions
from midwatch.session.permissions import Sandbox, describe_permissions, find_sandbox
from midwatch.testing.fakes import collect, only, options, session_in
from midwatch.testing.messages_api import Answer, Rule, ScriptedMessagesAPI, ToolUse

from ..waiting import wait_until
from .cli import midwatch, refused, said, said_json
from .session_cli import (
    asking,
    bash,
    events_of,
    make_desk,
    make_repositories,
    only_session,
    runner,
    started,
)

SANDBOX = find_sandbox(SessionOptions())
needs_sandbox = pytest.mark.skipif(
    not SANDBOX.enabled, reason=f"no sandbox works here: {SANDBOX.problem}"
)


def desk_with(folder: Path, sandbox: str) -> Path:
    """A folder with the default permissions, and this sandbox."""
    desk = make_desk(folder)
    file = desk / "midwatch.yaml"
    text = file.read_text().replace("  allowed_tools: [Bash]\n", "")
    file.write_text(text.replace('sandbox: "off"', f'sandbox: "{sandbox}"'))
    return desk


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def path_with(folder: Path) -> str:
    return f"{folder}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


# ------------------------------------------------------------------ the rule


def test_without_a_sandbox_denied_calls_are_told(tmp_path: Path) -> None:
    desk = desk_with(tmp_path, "off")
    app, _ = make_repositories(tmp_path)
    run = ("session", "run", "-r", app, "-p", "Make the tests pass.")
    script = [bash("make all"), bash("git add -A"), Answer("Done.")]
    with ScriptedMessagesAPI(Rule(script, tools=True)) as api:
        done = midwatch(desk, *run, env=asking(api))
    with ScriptedMessagesAPI(Rule(script, tools=True)) as api:
        again = midwatch(desk, *run, "--json", env=asking(api))
    assert done.returncode == 3, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].startswith("allowed: reading the workspace, edits")
    assert "denied: Bash" in lines[1] and "--allow-tool Bash" in lines[1]
    assert "Completed" in lines[-1]
    assert "2 tool calls denied: Bash `make all`, Bash `git add -A`" in lines[-1]
    assert "Completed, but 2 tool calls denied" in done.stderr

    assert again.returncode == 3
    events = events_of(again.stdout)
    result = next(one for one in events if one["type"] == "session")
    assert result["phase"] == "Completed" and result["conditions"] == ["ToolsDenied"]
    assert [one["call"] for one in result["denied"]] == ["make all", "git add -A"]
    assert (
        "denied: Bash"
        in next(e for e in events if e["type"] == "started")["permissions"]
    )

    shown = said(desk, "session", "show", result["id"])
    assert "Completed, ToolsDenied" in shown and "Bash make all" in shown
    document = said_json(desk, "session", "show", result["id"])
    assert document["conditions"] == ["ToolsDenied"]
    assert {one["tool"] for one in document["denied"]} == {"Bash"}
    row, _ = said_json(desk, "session", "list")
    assert row["conditions"] == ["ToolsDenied"]


def test_a_tool_that_is_allowed_is_not_denied(tmp_path: Path) -> None:
    desk = desk_with(tmp_path, "off")
    app, _ = make_repositories(tmp_path)
    run = ("session", "run", "-r", app, "-p", "Go.", "--allow-tool", "Bash")
    script = Rule([bash("echo yes > inside"), Answer("Done.")], tools=True)
    with ScriptedMessagesAPI(script) as api:
        told = said(desk, *run, env=asking(api))
    assert "Bash without a sandbox" in told.splitlines()[1]
    assert "tool call" not in told.splitlines()[-1]


def test_a_rule_of_the_program_denies_too(tmp_path: Path) -> None:
    """`dontAsk` asks nobody: the denial is only in the result of the turn."""
    desk = desk_with(tmp_path, "off")
    with (desk / "midwatch.yaml").open("a") as file:
        file.write("  permission_mode: dontAsk\n")
    app, _ = make_repositories(tmp_path)
    script = Rule([bash("make all"), Answer("Done.")], tools=True)
    with ScriptedMessagesAPI(script) as api:
        done = midwatch(desk, "session", "run", "-r", app, "-p", "Go.", env=asking(api))
    assert done.returncode == 3 and "Bash `make all`" in done.stdout.splitlines()[-1]


@needs_sandbox
def test_in_a_sandbox_bash_may_do_its_work(tmp_path: Path) -> None:
    desk = desk_with(tmp_path, "auto")
    app, _ = make_repositories(tmp_path)
    commands = [
        "echo yes > inside",
        "find . -name inside -exec cat {} \\;",
        'bash -c "$(printf \'echo %s\' `id -u`)"; eval "ls"',
        "git -c core.pager=cat commit -qm change || true",
    ]
    script = Rule([*map(bash, commands), Answer("Done.")], tools=True)
    with ScriptedMessagesAPI(script) as api:
        result = started(desk, api, "run", "-r", app, "-p", "Make the tests pass.")
    assert result["denied"] == [] and result["conditions"] == []
    [repo] = [one for one in result["repositories"] if one["name"] == "app"]
    assert repo["untracked"] >= 1


@needs_sandbox
async def test_bash_cannot_ask_its_way_out_of_the_sandbox(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    call = {"command": f"touch {outside}/x", "dangerouslyDisableSandbox": True}
    script = [Answer(tool_uses=[ToolUse("Bash", call)]), Answer("Done.")]
    with ScriptedMessagesAPI(Rule(script, tools=True)) as api:
        given = options(sandbox="on", allowed_tools=())
        await collect(session_in(tmp_path, api, options=given), "Look.")
    assert not list(outside.iterdir())


@needs_sandbox
async def test_a_denied_tool_stays_denied_in_a_sandbox(tmp_path: Path) -> None:
    script = Rule([bash("touch made"), Answer("Done.")], tools=True)
    with ScriptedMessagesAPI(script) as api:
        given = options(sandbox="on", allowed_tools=(), denied_tools=("Bash(touch:*)",))
        async with session_in(tmp_path, api, options=given) as session:
            await collect(session, "Look.")
            result = await session.get_results()
    assert [one.call for one in result.denied] == ["touch made"]
    assert not (tmp_path / "work" / "made").exists()


def test_the_line_before_the_start() -> None:
    given = SessionOptions(allowed_tools=("WebFetch",), denied_tools=("Write",))
    sandbox = find_sandbox(SessionOptions(sandbox="off"))
    line = describe_permissions(given, sandbox, interactive=False)
    assert "WebFetch" in line and "forbidden: Write" in line and "denied: Bash" in line
    asked = describe_permissions(given, sandbox, interactive=True)
    assert "asked for: Bash" in asked and "denied:" not in asked
    # Without a question the program also edits with Bash: `touch`, `sed -i`, `rm`.
    assert "edits in the workspace" in line and "Bash that does more" in line
    everything = SessionOptions(permission_mode="bypassPermissions")
    assert "every tool" in describe_permissions(everything, sandbox, interactive=False)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_forbidden_bash_is_not_told_as_allowed(enabled: bool) -> None:
    given = SessionOptions(denied_tools=("Bash",), allowed_tools=("Bash",))
    line = describe_permissions(given, Sandbox(enabled), interactive=False)
    before, _, forbidden = line.partition("forbidden: Bash")
    assert forbidden and "Bash" not in before and "--allow-tool Bash" not in forbidden


# ------------------------------------------------------------------ the trial


async def no_sandbox(
    tmp_path: Path, folder: Path, match: str, timeout: float | None = None
) -> None:
    """`on` is an error before anything starts, and `auto` works without one and says why."""
    path = path_with(folder)
    if timeout is not None:
        found = find_sandbox(SessionOptions(path=path), timeout)
        assert not found.enabled and match in found.problem
        return
    with ScriptedMessagesAPI(Rule("Done.", tools=True)) as api:
        required = options(sandbox="on", path=path)
        with pytest.raises(errors.SandboxUnavailable, match=match):
            await collect(session_in(tmp_path, api, options=required), "Look.")
        assert not api.calls
        wished = options(sandbox="auto", path=path, allowed_tools=())
        session = session_in(tmp_path, api, options=wished)
        [begun] = only(await collect(session, "Look."), Started)
    assert not begun.sandbox and match in begun.permissions


async def test_a_bubblewrap_that_the_kernel_refuses(tmp_path: Path) -> None:
    said_ = "bwrap: setting up uid map: Permission denied"
    program(tmp_path / "bin", "bwrap", f"echo '{said_}' >&2; exit 1")
    program(tmp_path / "bin", "socat", "exit 0")
    await no_sandbox(tmp_path, tmp_path / "bin", "setting up uid map")


async def test_a_bubblewrap_that_hangs(tmp_path: Path) -> None:
    program(tmp_path / "bin", "bwrap", "exec sleep 60")
    program(tmp_path / "bin", "socat", "exit 0")
    await no_sandbox(tmp_path, tmp_path / "bin", "did not start within", 0.5)


@needs_sandbox
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="only root can start a process with inherited capabilities",
)
async def test_bubblewrap_as_an_ordinary_user_with_inherited_capabilities(
    tmp_path: Path,
) -> None:
    real = shutil.which("bwrap")
    caps = "--inh-caps=+net_bind_service --ambient-caps=+net_bind_service"
    program(
        tmp_path / "bin",
        "bwrap",
        f'exec setpriv --reuid 10001 --clear-groups {caps} {real} "$@"',
    )
    await no_sandbox(tmp_path, tmp_path / "bin", "Unexpected capabilities")


@needs_sandbox
async def test_a_sandbox_that_stops_to_work_ends_the_session(tmp_path: Path) -> None:
    """The trial has passed; the mounts of the workspace fail at every command."""
    real = shutil.which("bwrap")
    words = "bwrap: Can't create file at /newroot/x: Permission denied"
    program(
        tmp_path / "bin",
        "bwrap",
        f'case "$*" in *--sync-fd*) echo "{words}" >&2; exit 1;; esac\nexec {real} "$@"',
    )
    script = [bash("true"), Answer("All is well.")]
    with ScriptedMessagesAPI(Rule(script, tools=True)) as api:
        given = options(sandbox="on", path=path_with(tmp_path / "bin"))
        session = session_in(tmp_path, api, options=given)
        with pytest.raises(errors.SandboxUnavailable, match="Can't create file"):
            await collect(session, "Look.")
    assert session.status().phase is Phase.FAILED


@needs_sandbox
async def test_commands_that_fail_are_not_a_sandbox_that_fails(tmp_path: Path) -> None:
    steps = [
        bash("echo 'bwrap: no such thing' >&2; echo more; exit 1"),
        bash("bwrap --nonsense"),
        Answer("Done."),
    ]
    with ScriptedMessagesAPI(Rule(steps, tools=True)) as api:
        session = session_in(tmp_path, api, options=options(sandbox="on"))
        events = await collect(session, "Look.")
    assert [one.is_error for one in only(events, ToolResult)] == [True, True]
    assert session.status().phase is Phase.COMPLETED


# ------------------------------------------------------------------ approvals


LONG = "echo " + " ".join(f"word{number}" for number in range(900)) + "\nrm -rf build"


def printed(request: PermissionRequest, width: int = 60) -> str:
    stream = io.StringIO()
    now = datetime(2026, 1, 1, tzinfo=UTC)
    EventPrinter(Output(stream, True, False, width, now), False, "s-1").event(request)
    return stream.getvalue()


def test_a_request_is_shown_whole_and_with_its_answers() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    request = PermissionRequest(
        seq=1,
        at=at,
        request_id="toolu_1",
        tool="Bash",
        input={"command": LONG, "description": "tidy"},
        expires_at=at + timedelta(seconds=60),
    )
    told = printed(request)
    assert "…" not in told
    assert max(map(len, told.splitlines()[1:-5])) <= 60
    whole = "".join(line.strip() for line in told.splitlines()).replace(" ", "")
    assert LONG.replace(" ", "").replace("\n", "") in whole
    assert "tidy" in told and "/approve toolu_1 or /deny toolu_1" in told
    assert "midwatch session approve s-1 toolu_1" in told


def test_a_request_that_is_denied_at_once_asks_for_no_answer() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    request = PermissionRequest(
        at=at,
        request_id="r",
        tool="Bash",
        input={"command": "x\x1b[2J\u202e"},
        expires_at=at,
    )
    told = printed(request)
    assert "approve" not in told and "\x1b" not in told and "\u202e" not in told


def test_answers_to_a_running_session(tmp_path: Path) -> None:
    desk = desk_with(tmp_path, "off")
    app, _ = make_repositories(tmp_path)
    command = "touch " + "a" * 3000
    script = Rule([bash(command), Answer("Done.")], tools=True)
    with ScriptedMessagesAPI(script) as api:
        with runner(desk, api, "run", "-r", app, "-i", "-p", "Go.") as running:
            asked = running.until("permission_request")["request_id"]
            id_ = only_session(desk)
            wait_until(lambda: asked in said(desk, "session", "show", id_))
            shown = said(desk, "session", "show", id_)
            assert "a" * 3000 in "".join(shown.split()), "the whole command"
            assert f"midwatch session approve {id_} {asked}" in shown
            wrong = refused(desk, "session", "approve", id_, "toolu_none")
            assert "unknown" in wrong and asked in wrong
            said(desk, "session", "deny", id_, asked, "--why", "not now")
            for verb in ("approve", "deny"):
                assert "answered already" in refused(desk, "session", verb, id_, asked)
            running.until("result")
            assert "answered already" in refused(desk, "session", "deny", id_, asked)
            calls = len(api.calls)
            for line in ("/help", "/compact", "/?", "/interrupt now"):
                assert "/approve" in refused(desk, "session", "send", id_, line) or (
                    "not sent" in refused(desk, "session", "send", id_, line)
                )
            said(desk, "session", "send", id_, "/end")
            running.until("phase", phase="Completed")
            assert running.process.wait(60) == 3
            assert len(api.calls) == calls, "nothing was sent to Claude"
        gone = refused(desk, "session", "approve", id_, asked)
        assert "does not run" in gone


@pytest.mark.parametrize("line", ["/help", "/compact", "/model opus", "/", "/end it"])
def test_a_slash_line_is_not_sent(tmp_path: Path, line: str) -> None:
    folder = SessionFolder(tmp_path / "s")
    folder.make()
    with pytest.raises(Conflict, match="Commands:|was not sent"):
        send_line(Mailbox("s", folder), line)
    assert not folder.inbox.exists()


@pytest.mark.parametrize("text", [" /help", "/etc/hosts is wrong", "a /help", "/x\ny"])
def test_other_lines_are_sent_as_they_are(tmp_path: Path, text: str) -> None:
    folder = SessionFolder(tmp_path / "s")
    folder.make()
    send_line(Mailbox("s", folder), text)
    [mail] = Inbox(folder.inbox, folder.cursor).poll()
    assert isinstance(mail, Mail) and mail.text == text


def test_a_branch_to_push_to_needs_a_push(tmp_path: Path) -> None:
    desk = make_desk(tmp_path)
    app, _ = make_repositories(tmp_path)
    branch = ("--push-branch", "b")
    line = refused(desk, "session", "run", "-r", app, "-p", "x", *branch, code=2)
    assert "--push-branch: has no effect without --push" in line
    for other in (("fork", "s-1", "-p", "x"), ("fix", "1")):
        assert "--push" in refused(desk, "session", *other, *branch, code=2)


# ------------------------------------------------------------------ the resource


async def test_the_condition_of_a_resource(tmp_path: Path) -> None:
    script = Rule([bash("make all"), Answer("Done.")], tools=True)
    with ScriptedMessagesAPI(script) as api:
        session = session_in(tmp_path, api, options=options(allowed_tools=()))
        await collect(session, "Go.")
    status = session.status()
    [condition] = denied_conditions(status)
    body = {"metadata": {"uid": "u"}}
    now = datetime(2026, 1, 1, tzinfo=UTC)
    patch = merged(body, Writer("u", 1, 1), {}, [condition], now) or {}
    [written] = [one for one in patch["conditions"] if one["type"] == "ToolsDenied"]
    assert written["status"] == "True" and "make all" in written["message"]
