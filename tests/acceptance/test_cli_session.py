"""`midwatch session …` as a person uses it: real processes, the real claude program, real git."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from midwatch.session.events import Phase
from midwatch.session.status import SessionStatus
from midwatch.store.sessions import SqlSessions
from midwatch.store.sql import SqlStore
from midwatch.testing.fakes import run_git
from midwatch.testing.messages_api import (
    Answer,
    Rule,
    ScriptedMessagesAPI,
    ToolUse,
    unauthorized,
)
from midwatch.testing.postgres import PrivatePostgres

from ..hostile import no_file, put
from ..waiting import PATIENCE
from .cli import in_store, midwatch, refused, said, said_json
from .session_cli import (
    asking,
    bash,
    events_of,
    make_desk,
    make_repositories,
    only_session,
    started,
)

JSON_MD = Path(__file__).parents[2] / "docs" / "json.md"


def test_from_a_prompt_to_a_pushed_change(tmp_path: Path) -> None:
    """Run, list, show, diff, push, fork, remove: what a day with a session is made of."""
    desk = make_desk(tmp_path)
    app, lib = make_repositories(tmp_path)
    change = "echo \"print('bye')\" > main.py; git commit -qam 'Say bye'; echo B=2 >> ../lib/lib.py"
    answers = [bash(change), "Changed\x1b[2J both.", "Nothing more."]
    repos = ("--repo", f"{app}@main", "--repo", lib)
    with ScriptedMessagesAPI(Rule(answers, tools=True)) as api:
        prompt = tmp_path / "prompt.txt"
        prompt.write_text("Say bye, with sk-ant-dummy-0123456789 hidden.")
        told = said(desk, "session", "run", *repos, "-p", f"@{prompt}", env=asking(api))
        lines = told.splitlines()
        id_ = re.findall(r"s-[0-9a-f]{12}", lines[0])[0]
        assert [line.split()[1] for line in lines if line[:2].isdigit()] == [
            "phase",
            "prompt",
            "phase",
            "started",
            "tool_use",
            "tool_result",
            "message",
            "result",
            "phase",
        ]
        assert "app: changed, 1 file +1 -1, 1 commit" in told
        assert "lib: changed, 1 file +1 -0" in told
        assert f"session {id_}: Completed" in lines[-1] and "2 calls" in lines[-1]
        assert "\x1b" not in told

        (row,) = said_json(desk, "session", "list")
        assert (row["id"], row["phase"], row["turns"]) == (id_, "Completed", 2)
        assert "sk-ant-dummy" not in json.dumps(row) and row["prompt"].startswith("Say")
        stored = b"".join(file.read_bytes() for file in desk.glob("midwatch.db*"))
        assert (
            b"hidden." in stored and b"sk-ant-dummy" not in stored
        ), "nor a transcript"
        shown = said_json(desk, "session", "show", id_)
        assert shown["result"].startswith("Changed") and shown["cost_usd"] > 0
        assert [r["status"] for r in shown["repositories"]] == ["changed", "changed"]
        assert set(shown) == documented("## A session", "`midwatch session list")
        assert set(row) < set(shown)
        assert "+B=2" in said(desk, "session", "diff", id_, "--repo", "lib")
        assert "+print('bye')" in said(desk, "session", "diff", id_)

        said(desk, "session", "push", id_, "--push-branch", "fix/bye")
        assert run_git(Path(app), "log", "-1", "--format=%s", "fix/bye") == "Say bye"
        assert "B=2" in run_git(Path(lib), "show", "fix/bye:lib.py")
        (row,) = said_json(desk, "session", "list", "--phase", "completed")
        assert [r["status"] for r in row["repositories"]] == ["pushed", "pushed"]

        _forget_the_end(desk, id_)
        assert said_json(desk, "session", "list")[0]["phase"] == "Completed"
        prune = ("session", "prune", "--older-than", "1h", "--dry-run")
        assert said_json(desk, *prune)["removed"] == []

        fork = started(desk, api, "fork", id_, "-p", "And now?")
        assert fork["result"] == "Nothing more." and fork["id"] != id_
        assert "Say bye, with" in api.calls[-1].prompt
        said(desk, "session", "rm", id_)
        assert [r["id"] for r in said_json(desk, "session", "list")] == [fork["id"]]
        assert f"no session {id_}" in refused(desk, "session", "show", id_)
        (pruned,) = said_json(desk, "session", "prune", "--max-size", "0")["removed"]
        assert pruned["id"] == fork["id"] and pruned["size"] > 1000
    for kind in ("sessions", "workspaces"):
        assert not list((tmp_path / "state" / kind).iterdir())
    mirrors = said_json(desk, "cache", "list")
    assert {mirror["url"] for mirror in mirrors} == {app, lib}
    said(desk, "cache", "prune", "--max-size", "0")
    assert said_json(desk, "cache", "list") == []


def _forget_the_end(desk: Path, id_: str) -> None:
    """As if the database had been away when the session ended."""

    async def forget(store: SqlStore) -> None:
        sessions = SqlSessions(store.transactions)
        await sessions.save_status(id_, SessionStatus(phase=Phase.RUNNING, run=1))

    in_store(desk, forget)


def documented(start: str, end: str) -> set[str]:
    """The fields in the first column of the table between two texts of docs/json.md."""
    text = JSON_MD.read_text(encoding="utf-8")
    section = text[text.index(start) : text.index(end)]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}


def test_another_machine_goes_on_with_everything_that_was_said(tmp_path: Path) -> None:
    """One PostgreSQL, two folders with sessions and caches of their own: two machines."""
    with PrivatePostgres() as server:
        _on_two_machines(tmp_path, f"database: {server.dsn()}\n")


def _on_two_machines(tmp_path: Path, database: str) -> None:
    here = make_desk(tmp_path / "here", extra=database)
    there = make_desk(tmp_path / "there", extra=database)
    said(here, "db", "upgrade")
    app, _ = make_repositories(tmp_path)
    answers = [bash("echo 1 > one; git add one; git commit -qm One"), "First.", "Then."]
    with ScriptedMessagesAPI(Rule(answers, tools=True)) as api:
        first = started(here, api, "run", "-r", app, "-p", "Do the first.", "--push")
        id_ = first["id"]
        resume = ("session", "resume", id_, "--json", "-p")
        done = midwatch(there, *resume, "Do the next.", env=asking(api))
        assert done.returncode == 0, done.stderr
        second = api.calls[-1].prompt
        back = midwatch(here, *resume, "Do the last.", env=asking(api))
        assert back.returncode == 0, back.stderr
        third = api.calls[-1].prompt
    assert "did not push are not in this workspace" in done.stderr
    assert "Do the first." in second and "First." in second
    assert (there / "state" / "workspaces" / id_ / "app" / "one").exists()
    assert "Do the first." in third and "Do the next." in third and "Then." in third
    row = said_json(there, "session", "show", id_)
    assert (row["turns"], row["runs"], row["phase"]) == (4, 3, "Completed")
    assert row["cost_usd"] == pytest.approx(2 * first["cost_usd"])
    assert row["folder"].startswith(str(here))


def test_a_refused_key_is_one_line_and_soon(tmp_path: Path) -> None:
    desk = make_desk(tmp_path)
    app, _ = make_repositories(tmp_path)
    run = ("session", "run", "-r", app, "-p", "Do it.")
    assert "there is no API key" in refused(desk, *run)
    with ScriptedMessagesAPI(Rule(unauthorized(), tools=True)) as api:
        began = time.monotonic()
        done = midwatch(desk, *run, "--json", env=asking(api))
    assert time.monotonic() - began < PATIENCE
    assert done.returncode == 1
    assert "cloned" not in done.stderr and "key" in done.stderr.splitlines()[-1]
    assert events_of(done.stdout)[-1]["phase"] == "Failed"
    (row,) = said_json(desk, "session", "list")
    assert (row["phase"], row["reason"]) == ("Failed", "KeyRefused")


@pytest.mark.parametrize(
    ("repo", "says", "phases"),
    [
        ("/nowhere/at/all", "/nowhere/at/all", ["Failed"]),
        ("ext::sh -c id", "refused", []),
        ("https://me:hunter2@example.org/x", "a password or a token", []),
    ],
)
def test_a_repository_that_cannot_be_is_one_line(
    tmp_path: Path, repo: str, says: str, phases: list[str]
) -> None:
    desk = make_desk(tmp_path)
    said(desk, "db", "upgrade")
    run = ("session", "run", "-r", repo, "-p", "Do it.")
    code = 1 if phases else 2  # it was tried, or what was asked for is wrong
    line = refused(desk, *run, env=asking("http://127.0.0.1:1"), code=code)
    assert says in line and "hunter2" not in line
    rows = said_json(desk, "session", "list")
    assert [row["phase"] for row in rows] == phases


def test_an_error_before_the_log_has_its_time(tmp_path: Path) -> None:
    run = ("session", "run", "-r", "/nowhere/at/all", "-p", "Do it.", "--json")
    done = midwatch(make_desk(tmp_path), *run, env=asking("http://127.0.0.1:1"))
    assert done.returncode == 1 and '"type": "error"' in done.stdout
    assert "1970-" not in done.stdout


def test_a_session_that_loses_its_log_has_failed_and_a_mailbox_that_is_no_file_is_one_line(
    tmp_path: Path,
) -> None:
    desk = make_desk(tmp_path)
    app, _ = make_repositories(tmp_path)
    sessions = desk / "state" / "sessions"
    steps = [bash(f"rm {sessions}/*/outbox.jsonl"), "Done.", "Yes."]
    with ScriptedMessagesAPI(Rule(steps, tools=True)) as api:
        run = ("session", "run", "-r", app, "-p", "Clean up.")
        ended = midwatch(desk, *run, env=asking(api))
        assert ended.returncode == 1 and "Traceback" not in ended.stderr
        assert "outbox.jsonl vanished while the session ran" in ended.stderr
        id_ = only_session(desk)
        assert "Failed: OutboxLost" in said(desk, "session", "list")
        shown = said(desk, "session", "show", id_)
        assert "vanished while the session ran" in shown
        followed = said(desk, "session", "attach", id_, "--json")
        assert events_of(followed)[-1]["reason"] == "OutboxLost"
        again = ("session", "resume", id_, "-p", "Go on.")
        said(desk, *again, env=asking(api))
        assert said_json(desk, "session", "show", id_)["phase"] == "Completed"

    put("pipe", sessions / id_ / "inbox.jsonl")
    for command in (("send", id_, "Hi."), ("interrupt", id_), ("end", id_)):
        line = refused(desk, "session", *command)
        assert "inbox.jsonl: is a named pipe, not a regular file" in line
    no_file(sessions / id_ / "outbox.jsonl")
    put("device", sessions / id_ / "outbox.jsonl")
    for command in (("attach", id_), ("resume", id_, "-p", "On.")):
        line = refused(desk, "session", *command, env=asking(""))
        assert "outbox.jsonl: is a symbolic link, not a regular file" in line
    assert said_json(desk, "session", "show", id_)["phase"] == "Completed"


def test_what_is_asked_wrongly_is_one_line(tmp_path: Path) -> None:
    desk = make_desk(tmp_path)
    for code, arguments in (
        (2, ("run", "-r", "x")),
        (2, ("run", "-r", "x", "-p", "y", "--timeout", "soon")),
        (2, ("run", "-r", "x", "-p", f"@{tmp_path}/none")),
        (1, ("show", "../../etc")),
        (1, ("send", "s-none", "hello")),
        (1, ("rm", "s-none")),
        (2, ("list", "--phase", "nonsense")),
        (2, ("prune", "--max-size", "much")),
    ):
        refused(desk, "session", *arguments, code=code)


def test_what_claude_may_use_is_on_the_command_line(tmp_path: Path) -> None:
    desk = make_desk(tmp_path)
    app, _ = make_repositories(tmp_path)
    write = ToolUse("Write", {"file_path": "new.txt", "content": "x"})
    answers = [Answer(tool_uses=[write]), "Done."]
    with ScriptedMessagesAPI(Rule(answers, tools=True)) as api:
        run = ("run", "-r", app, "-p", "Do it.", "--deny-tool", "Write")
        started(desk, api, *run, "--model", "claude-x", "--max-turns", "5")
        assert "Write" not in api.calls[-1].tools
        assert api.calls[-1].model == "claude-x"


def test_a_repository_that_cannot_be_looked_at_hides_no_ending(tmp_path: Path) -> None:
    """The agent, without a sandbox, took our own notes away: the session is Completed even so."""
    desk = make_desk(tmp_path)
    app, _ = make_repositories(tmp_path)
    notes = f"{tmp_path}/state/sessions/*/repositories/app.git"
    removal = f"import glob, shutil; shutil.rmtree(glob.glob('{notes}')[0])"
    answers = [bash(f'python3 -c "{removal}"'), "Tidied up."]
    with ScriptedMessagesAPI(Rule(answers, tools=True)) as api:
        told = midwatch(
            desk, "session", "run", "--repo", app, "-p", "Tidy up.", env=asking(api)
        )
    assert told.returncode == 0, told.stderr
    assert "Tidied up." in told.stdout and "Completed" in told.stdout.splitlines()[-1]
    assert "the inspection of the repositories failed" in told.stderr
