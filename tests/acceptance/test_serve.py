"""`midwatch session serve` as a pod runs it: a real process with the real claude program."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from midwatch.session.events import (
    MailboxRejected,
    Phase,
    PhaseChanged,
    Prompt,
    ToolResult,
    TurnResult,
)
from midwatch.session.mailbox import write_mail
from midwatch.testing.fakes import git_server, run_git
from midwatch.testing.messages_api import (
    Answer,
    Hold,
    Rule,
    ScriptedMessagesAPI,
    unauthorized,
)

from ..hostile import HOSTILE, put
from ..waiting import PATIENCE
from .serve_pod import Pod
from .session_cli import bash, make_repositories, until


@pytest.fixture
def repos(tmp_path: Path) -> tuple[str, str]:
    return make_repositories(tmp_path)


@pytest.fixture
def hold() -> Iterator[Hold]:
    gate = Hold(Answer("Go on."))
    yield gate
    gate.release()


def test_a_session_of_two_repositories_from_its_environment_to_its_push(
    tmp_path: Path, repos: tuple[str, str]
) -> None:
    steps = [
        bash('pwd; ls ..; echo "$DATABASE"; echo "[$ANTHROPIC_API_KEY$GIT_TOKEN]"'),
        bash("echo more >> lib.py; echo new > ../app/new.py"),
        Answer("Both are changed."),
    ]
    asked = [{"name": "app", "input": {"url": repos[0]}}, {"input": {"url": repos[1]}}]
    asked[1] |= {"output": {"url": repos[1], "branch": "fix/lib"}}
    with ScriptedMessagesAPI(Rule(steps, tools=True)) as api:
        pod = Pod(tmp_path / "pod", api, asked)
        ended = pod.serve(
            MAIN_REPO_INDEX="1",
            AUTO_PUSH_ON_COMPLETE="true",
            DATABASE="staging",
            GIT_TOKEN="t0ken-0123456789",
        )
    assert ended.returncode == 0, ended.stderr
    assert "Completed" in ended.stderr and "Both are changed." in ended.stdout
    [looked] = [e for e in pod.events() if isinstance(e, ToolResult)][:1]
    cwd, *rest = looked.text.splitlines()
    assert cwd == str(pod.workspace / "lib")
    assert rest == ["app", "lib", "staging", "[]"]
    assert pod.status().phase is Phase.COMPLETED
    assert "more" in run_git(Path(repos[1]), "show", "fix/lib:lib.py")
    assert "new" in run_git(Path(repos[0]), "show", "midwatch/fix:new.py")
    assert os.listdir(pod.cwd) == []  # the image's own folder is read-only in a pod


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"TIMEOUT": "abc"}, "TIMEOUT"),
        ({"TIMEOUT": "-1"}, "TIMEOUT"),
        ({"SYNC_INTERVAL": "nan"}, "SYNC_INTERVAL"),
        ({"REPOS_JSON": "[{"}, "REPOS_JSON"),
        ({"REPOS_JSON": "[]"}, "REPOS_JSON"),
        ({"REPOS_JSON": '[{"input": {"url": "ext::sh -c x"}}]'}, "REPOS_JSON"),
        ({"MAIN_REPO_INDEX": "2"}, "MAIN_REPO_INDEX"),
        ({"MAIN_REPO_INDEX": "-1"}, "MAIN_REPO_INDEX"),
        ({"EFFORT": "extreme"}, "EFFORT"),
        ({"INTERACTIVE": "perhaps"}, "INTERACTIVE"),
        ({"ANTHROPIC_API_KEY": ""}, "ANTHROPIC_API_KEY"),
        ({"ANTHROPIC_API_KEY": "sk-ant bad-0123456789"}, "ANTHROPIC_API_KEY"),
        ({"PROMPT": ""}, "PROMPT"),
        ({"SESSION_NAME": "../x"}, "SESSION_NAME"),
        ({"STATE_PATH": "/work/ws/inside", "WORKSPACE_PATH": "/work/ws"}, "STATE_PATH"),
        ({"WORKSPACE_PATH": "ws"}, "WORKSPACE_PATH"),
        ({"CONTENT_URL": "http://content", "CONTENT_TOKEN": ""}, "CONTENT_TOKEN"),
        ({"MAX_TURNS": "0"}, "MAX_TURNS"),
        ({"STATUS": "loud"}, "STATUS"),
    ],
)
def test_a_wrong_variable_is_one_line_that_names_it(
    tmp_path: Path, changed: dict[str, str], named: str
) -> None:
    """In this process: the command itself is tried once, below."""
    from midwatch.errors import SettingsError
    from midwatch.kube.environment import sorted_variables
    from midwatch.kube.runner_task import read_task

    pod = Pod(tmp_path, "http://127.0.0.1:1", ["https://example.org/app"])
    with pytest.raises(SettingsError) as raised:
        read_task(sorted_variables(pod.environ(**changed)))
    assert raised.value.path == named
    assert raised.value.one_line().startswith(f"{named}: ")
    assert "bad-0123456789" not in raised.value.one_line()


def test_a_wrong_environment_ends_with_its_own_exit_code(tmp_path: Path) -> None:
    pod = Pod(tmp_path, "http://127.0.0.1:1", ["https://example.org/app"])
    ended = pod.serve(TIMEOUT="abc")
    assert ended.returncode == 2
    assert ended.stderr == ("midwatch: TIMEOUT: 'abc' is not valid (write a number)\n")
    assert not pod.state.exists()


def test_every_variable_of_the_table_is_read(tmp_path: Path) -> None:
    from midwatch.kube.environment import RUNNER_VARIABLES, PodVariables
    from midwatch.kube.runner_task import read_task

    class Watched(dict[str, str]):
        read: set[str] = set()

        def get(self, name: str, default: Any = None) -> Any:
            self.read.add(name)
            return super().get(name, default)

    pod = Pod(tmp_path, "http://127.0.0.1:1", ["https://example.org/app"])
    environ = Watched(
        pod.environ(
            CONTENT_URL="http://content",
            CONTENT_TOKEN="t",
            CONTENT_FOLDER="ns/fix.0",
            GIT_TOKEN="t0ken-0123456789",
            MAX_TURNS="3",
        )
    )
    task = read_task(PodVariables(environ, {}, {}))
    assert {variable.name for variable in RUNNER_VARIABLES} == environ.read
    [credential] = task.credentials
    assert credential.scope == "https://example.org"
    assert "t0ken-0123456789" in task.secrets and "t0ken" not in repr(task)


def test_an_invalid_key(tmp_path: Path, repos: tuple[str, str]) -> None:
    with ScriptedMessagesAPI(Rule(unauthorized(), tools=True)) as api:
        pod = Pod(tmp_path / "pod", api, repos)
        ended = pod.serve()
    assert ended.returncode == 1
    assert "KeyRefused" in ended.stderr and "spec.apiKeySecret" in ended.stderr


def test_repositories_that_cannot_be_cloned(
    tmp_path: Path, repos: tuple[str, str]
) -> None:
    """Unreachable, no such branch, and one that wants a token that it does not get."""
    with git_server(tmp_path / "remotes", token="secret") as server:
        for url, branch, reason in (
            ("http://127.0.0.1:1/app", None, "RepositoryUnreachable"),
            (repos[0], "no-such", "NoSuchBranch"),
            (f"{server.url}/app", None, "NotAuthorised"),
        ):
            place: dict[str, str] = {"url": url} | (
                {"branch": branch} if branch else {}
            )
            pod = Pod(tmp_path / reason, "http://127.0.0.1:1", [{"input": place}])
            ended = pod.serve()
            assert ended.returncode == 1, ended.stderr
            assert f"Failed: {reason}: {url}" in ended.stderr
            assert pod.events()[-1].reason == reason  # type: ignore[union-attr]


def test_sigterm_stops_it_and_its_program(
    tmp_path: Path, repos: tuple[str, str]
) -> None:
    steps = [bash("echo begun > begun; sleep 60"), "Done."]
    with ScriptedMessagesAPI(Rule(steps, tools=True)) as api:
        pod = Pod(tmp_path / "pod", api, repos)
        with pod.serving() as runner:
            begun = pod.workspace / "app" / "begun"
            until(lambda: begun.exists() and begun.read_text(), lambda: "the tool")
            assert runner.end(signal.SIGTERM) == 0
    assert pod.status().phase is Phase.STOPPED
    assert begun.read_text() == "begun\n"


def test_the_mailbox_of_an_interactive_session_and_its_idle_end(
    tmp_path: Path, repos: tuple[str, str]
) -> None:
    with ScriptedMessagesAPI(Rule(["Yes.", "Again."], tools=True)) as api:
        pod = Pod(tmp_path / "pod", api, repos)
        with pod.serving(INTERACTIVE="true", PROMPT="", IDLE_TIMEOUT="2") as runner:
            until(lambda: (pod.state / "run").exists(), lambda: "the folder")
            inbox = pod.state / "inbox.jsonl"
            write_mail(
                inbox, id="1", kind="user_message", content="There?", timestamp=""
            )
            runner.until(TurnResult, text="Yes.")
            assert runner.process.wait(PATIENCE) == 0
        assert "Stopped: Idle" in runner.log.read_text()
    assert (pod.status().phase, pod.status().reason) == (Phase.STOPPED, "idle")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_an_inbox_that_is_no_file_does_not_hold_up_a_pod(
    tmp_path: Path, repos: tuple[str, str], kind: str
) -> None:
    """It is told, and SIGTERM still ends the session."""
    with ScriptedMessagesAPI(Rule(["Yes."], tools=True)) as api:
        pod = Pod(tmp_path / "pod", api, repos)
        put(kind, pod.state / "inbox.jsonl")
        with pod.serving(INTERACTIVE="true", PROMPT="") as runner:
            told = runner.until(MailboxRejected)
            assert HOSTILE[kind] in told.why  # type: ignore[union-attr]
            assert runner.end(signal.SIGTERM) == 0, runner.log.read_text()
    assert pod.status().phase is Phase.STOPPED


def test_a_pod_whose_session_replaces_its_own_log_fails(
    tmp_path: Path, repos: tuple[str, str]
) -> None:
    outbox = tmp_path / "pod" / "session" / "outbox.jsonl"
    steps = [bash(f"rm {outbox}; mkfifo {outbox}"), "Done."]
    with ScriptedMessagesAPI(Rule(steps, tools=True)) as api:
        pod = Pod(tmp_path / "pod", api, repos)
        ended = pod.serve()
    assert ended.returncode == 1
    assert "Failed: OutboxLost" in ended.stderr + ended.stdout
    assert (pod.status().phase, pod.status().reason) == (Phase.FAILED, "OutboxLost")
    last = pod.events()[-1]
    assert isinstance(last, PhaseChanged) and last.reason == "OutboxLost"


def test_a_pod_whose_log_is_no_file_fails_and_says_why(
    tmp_path: Path, repos: tuple[str, str]
) -> None:
    with ScriptedMessagesAPI(Rule(["Yes."], tools=True)) as api:
        pod = Pod(tmp_path / "pod", api, repos)
        put("pipe", pod.state / "outbox.jsonl")
        ended = pod.serve()
        assert api.calls == []
    assert ended.returncode == 1
    assert "a named pipe" in ended.stderr + ended.stdout
    assert pod.status().reason == "FolderUnusable"


def test_a_lost_pod_goes_on_where_it_was(
    tmp_path: Path, repos: tuple[str, str], hold: Hold
) -> None:
    first = [bash("echo one > one"), hold]
    with ScriptedMessagesAPI(Rule(first, tools=True)) as api:
        pod = Pod(tmp_path / "pod", api, repos)
        with pod.serving() as runner:
            until(lambda: (pod.workspace / "app/one").exists(), lambda: "the tool")
            runner.until(ToolResult)
            until(lambda: len(api.calls) > 1, lambda: "the second call")
            runner.end(signal.SIGKILL)
        hold.release()
    with ScriptedMessagesAPI(Rule(["Two."], tools=True)) as api:
        pod.api = api
        ended = pod.serve(SESSION_ATTEMPT="2")
        assert ended.returncode == 0, ended.stderr
        [call] = [one for one in api.calls if one.tools]
        assert "echo one > one" in json.dumps(call.body)
    prompts = [event for event in pod.events() if isinstance(event, Prompt)]
    assert len(prompts) == 1 and pod.status().result == "Two."
    assert (pod.workspace / "app" / "one").exists()


def test_clones_without_a_whole_record_are_kept_aside(
    tmp_path: Path, repos: tuple[str, str]
) -> None:
    with ScriptedMessagesAPI(Rule("Done.", tools=True)) as api:
        pod = Pod(tmp_path / "pod", api, [repos[0]])
        lost = pod.workspace / "app" / "lost.py"
        lost.parent.mkdir(parents=True)
        lost.write_text("work\n")
        record = pod.state / "repositories"
        record.mkdir(parents=True)
        (record / "workspace.json").write_text('{"torn')
        ended = pod.serve()
        assert ended.returncode == 0, ended.stderr
        assert "is cloned again" in ended.stderr
    saved = pod.workspace / ".midwatch-saved-1" / "app" / "lost.py"
    assert saved.read_text() == "work\n"
    assert (pod.workspace / "app" / "main.py").exists() and not lost.exists()


def test_a_push_that_is_refused_is_no_success(
    tmp_path: Path, repos: tuple[str, str]
) -> None:
    remote = Path(repos[0])
    hook = remote / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho frozen >&2\nexit 1\n")
    hook.chmod(0o755)
    steps = [bash("echo x > x"), "Done."]
    with ScriptedMessagesAPI(Rule(steps, tools=True)) as api:
        ended = Pod(tmp_path / "pod", api, repos).serve(AUTO_PUSH_ON_COMPLETE="true")
    assert ended.returncode == 1
    assert "Failed: PushFailed: the session completed, but" in ended.stderr


def test_time_is_up(tmp_path: Path, repos: tuple[str, str], hold: Hold) -> None:
    with ScriptedMessagesAPI(Rule([hold], tools=True)) as api:
        pod = Pod(tmp_path / "pod", api, repos)
        ended = pod.serve(TIMEOUT="3")
        hold.release()
    assert ended.returncode == 1
    assert "Failed: SessionTimedOut" in ended.stderr
    assert "raise spec.timeout" in ended.stderr


@pytest.mark.parametrize(
    ("limit", "reason"),
    [({"MAX_TURNS": "1"}, "TurnLimit"), ({"MAX_BUDGET_USD": "0.0001"}, "BudgetSpent")],
)
def test_a_limit_that_is_reached(
    tmp_path: Path, repos: tuple[str, str], limit: dict[str, str], reason: str
) -> None:
    steps = [bash("echo x"), bash("echo y"), "Done."]
    with ScriptedMessagesAPI(Rule(steps, tools=True)) as api:
        pod = Pod(tmp_path / "pod", api, repos)
        ended = pod.serve(**limit)
    assert ended.returncode == 1, ended.stderr
    assert f"Failed: {reason}" in ended.stderr and "raise spec.llmS" in ended.stderr


def test_the_hints_are_for_errors_that_there_are() -> None:
    """One that was renamed would lose its hint without anybody noticing."""
    from midwatch import errors
    from midwatch.content import errors as content
    from midwatch.kube.status_writer import HINTS
    from midwatch.session import errors as session
    from midwatch.workspace import errors as workspace

    known = {
        *vars(errors),
        *vars(session),
        *vars(workspace),
        *vars(content),
        "PushFailed",
    }
    assert set(HINTS) <= known
