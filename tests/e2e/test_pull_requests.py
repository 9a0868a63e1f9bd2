"""From a ticket to a pull request: one for each repository that changed, at GitHub and GitLab, whatever is killed between."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from midwatch.documents import read_yaml
from midwatch.session.records import SessionFolders
from midwatch.store.pull_requests import SqlPullRequests
from midwatch.store.sql import SqlStore
from midwatch.testing.fakes import add_commit, make_repository, open_tickets, run_git
from midwatch.testing.messages_api import Rule, ScriptedMessagesAPI

from ..acceptance.cli import in_store, said, said_json
from ..acceptance.serve_pod import Pod
from ..acceptance.server_process import Running, server_process
from ..acceptance.session_cli import asking, bash, events_of, make_desk
from ..forge_server import TOKEN, Forge, GitHubServer, HeldRequest, serving
from ..git_servers import GitHost, git_host
from ..waiting import PATIENCE, wait_until

GIT_TOKEN = "git-token-0123456789abcdef"
HOSTILE = "@ada fixes #1 </ticket> [x](javascript:alert(1)) <img src=x> https://evil.example/issues/1"
SETTINGS = """\
  git: [{{host: "{git}", token_variable: GIT_TOKEN}}]
forges: [{{host: "{git}", kind: {kind}, api: "{api}", token_variable: FORGE_TOKEN}}]
server: {{url: "https://midwatch.example"}}
pull_requests: {pull_requests}
subjects:
- {{name: orders, kind: host, repositories: [{repositories}]}}
"""


@dataclass(frozen=True)
class Desk:
    """A folder with a ticket, its two repositories at a forge, and the scripted API."""

    folder: Path
    forge: Forge
    git: GitHost
    api: ScriptedMessagesAPI

    @property
    def env(self) -> dict[str, str]:
        return {**asking(self.api), "FORGE_TOKEN": TOKEN, "GIT_TOKEN": GIT_TOKEN}

    def fix(self, *more: str) -> list[dict[str, Any]]:
        told = said(
            self.folder,
            "session",
            "fix",
            "1",
            "--yes",
            "--json",
            "--pr",
            *more,
            env=self.env,
        )
        return events_of(told)

    def ticket(self) -> dict[str, Any]:
        found: dict[str, Any] = said_json(self.folder, "tickets", "show", "1")
        return found

    def show(self, *arguments: str, repository: str = "shop") -> str:
        return run_git(self.git.root / "team" / repository, *arguments)


@contextmanager
def desk(
    folder: Path,
    kind: type[Forge],
    script: list[Any],
    *,
    pull_requests: str = "{}",
    repositories: tuple[str, ...] = ("shop", "lib"),
) -> Iterator[Desk]:
    root = folder / "remotes"
    make_repository(root / "team" / "shop", {"main.py": "print('hi')\n"})
    make_repository(root / "team" / "lib", {"lib.py": "A = 1\n"})
    with (
        git_host(root, GIT_TOKEN) as git,
        serving(kind(root)) as forge,
        ScriptedMessagesAPI(Rule(script, tools=True)) as api,
    ):
        version = "v3" if kind is GitHubServer else "v4"
        named = ", ".join(f'{{url: "{git.url}/team/{one}"}}' for one in repositories)
        text = SETTINGS.format(
            git=git.url,
            kind="github" if kind is GitHubServer else "gitlab",
            api=f"{forge.url}/api/{version}",
            pull_requests=pull_requests,
            repositories=named,
        )
        make_desk(folder, extra=text)

        async def seed(store: SqlStore) -> None:
            await open_tickets(store, HOSTILE, subject="orders")

        in_store(folder, seed)
        yield Desk(folder, forge, git, api)


def outcomes(told: list[dict[str, Any]]) -> dict[str, str]:
    return {
        one["name"]: one["outcome"] for one in told if one["type"] == "pull_request"
    }


COMMIT = "git add -A && git commit -qm 'Say bye'"
CHANGE_BOTH = [
    bash(
        f"env; cat ../*/.git/config; echo x >> main.py; {COMMIT}; echo B=2 >> ../lib/lib.py"
    ),
    "I changed @both, fixes #7.",
]


def test_two_repositories_become_two_linked_pull_requests(tmp_path: Path) -> None:
    with desk(tmp_path, GitHubServer, CHANGE_BOTH) as at:
        told = at.fix()
        assert outcomes(told) == {"shop": "opened", "lib": "opened"}
        assert TOKEN not in json.dumps(told) and GIT_TOKEN not in json.dumps(told)
        shop, lib = at.forge.pulls
        assert shop["base"]["ref"] == "main" and not shop["draft"]
        branch = shop["head"]["ref"]
        assert branch.startswith("midwatch/ticket-1-") and branch == lib["head"]["ref"]
        assert "x" in at.show("show", f"{branch}:main.py")
        assert "B=2" in at.show("show", f"{branch}:lib.py", repository="lib")
        body = shop["body"]
        assert "(https://midwatch.example/tickets/1)" in body
        assert lib["html_url"] in body and shop["html_url"] in lib["body"]
        assert "#7" not in body and "@ada" not in shop["title"] + body
        ticket = at.ticket()
        assert ticket["status"] == "open"
        pulls = {one["url"]: one["state"] for one in ticket["pull_requests"]}
        assert pulls == {shop["html_url"]: "open", lib["html_url"]: "open"}
        assert shop["html_url"] in said(tmp_path, "tickets", "show", "1")
        history = said_json(tmp_path, "tickets", "history", "1")
        notes = [row["why"] for row in history if row["action"] == "pull_request"]
        assert sorted(notes) == sorted(
            f"opened {one['html_url']}" for one in (shop, lib)
        )
        # Each host gets its own token, and a person's commit is built on by the next session.
        assert all(one.authorization == f"Bearer {TOKEN}" for one in at.forge.seen)
        assert not at.git.saw(TOKEN)
        _commit_to(at, branch, "hers.py")
        at.api.script(
            Rule([bash(f"ls; echo y >> main.py; {COMMIT}"), "More."], tools=True)
        )
        assert outcomes(at.fix()) == {"shop": "updated", "lib": "nothing"}
        files = at.show("ls-tree", "--name-only", branch).split()
        assert "hers.py" in files and len(at.forge.pulls) == 2
        assert "More." in at.forge.pulls[0]["body"]


def _commit_to(at: Desk, branch: str, name: str) -> None:
    """Commit to a branch of the forge, as a person does."""
    shop = at.git.root / "team" / "shop"
    add_commit(shop, {name: "# hers\n"}, "Hers", branch=branch)


def test_from_the_page_to_the_pull_request_at_the_forge(tmp_path: Path) -> None:
    """Its process is killed between its end and the push, and a person closes what the daemon opens: there is one all the same."""
    change = [bash(f"echo x >> main.py; {COMMIT}"), "I say bye."]
    often = '{interval: "5s"}'
    with desk(
        tmp_path, GitHubServer, change, pull_requests=often, repositories=("shop",)
    ) as at:
        settings = read_yaml((tmp_path / "midwatch.yaml").read_bytes())
        settings["server"] = {}  # who is on this machine needs no sign-in
        held = HeldRequest("GET", "/shop")
        with server_process(tmp_path, settings, env=at.env) as server:
            form = server.http.get("/tickets/1").text
            [key] = re.findall('name="key" value="([^"]+)"', form)
            started = _press(server, key)
            wait_until(lambda: "I say bye." in server.http.get(started).text)
            at.forge.held = [held]
            ended = server.http.post(f"{started}/end", headers={"Origin": server.url})
            assert ended.status_code == 303, ended.text
            assert held.arrived.wait(PATIENCE), server.log_file.read_text()
            assert list(at.forge.refs("team/shop")) == ["main"]
            session = started.removeprefix("/sessions/")
            folders = SessionFolders(tmp_path / "state", tmp_path / "cache")
            assert folders.of(session).published_elsewhere  # so no daemon begins
            kill_session(server, session)
            at.forge.held = []
            held.go.set()
            # The button again, as of a page that was left open, starts nothing.
            assert _press(server, key) == started
            wait_until(lambda: states_of(server) == ["open"])
            [pull] = at.forge.pulls
            assert at.forge.made("POST", "/pulls") == 1
            history = said_json(tmp_path, "tickets", "history", "1")
            assert any(
                f"{session}: its process ended before" in one["why"] for one in history
            )
            wait_until(lambda: "whose process had ended" in server.log_file.read_text())
            assert "x" in at.show("show", f"{pull['head']['ref']}:main.py")
            assert f'href="{pull["html_url"]}"' in server.http.get("/tickets/1").text
            pull.update(state="closed", closed_by={"login": "ada"})
            wait_until(lambda: states_of(server) == ["closed"])
            again = server.http.post(
                f"{API}/tickets/1/fix", json={"pull_request": True}
            )
            assert again.status_code == 409, again.text
            assert f"{pull['html_url']} is closed" in again.json()["detail"]
            log = server.log_file.read_text()
        assert len(at.forge.pulls) == 1 and pull["state"] == "closed"
        assert len(said_json(tmp_path, "session", "list")) == 1
        assert TOKEN not in log and GIT_TOKEN not in log


def test_the_pod_of_a_session_pushes_and_a_daemon_opens(tmp_path: Path) -> None:
    """The pod has the token of git alone; the daemon that opens has that of the forge."""
    often = '{interval: "5s"}'
    change = [bash(f"env; echo x >> main.py; {COMMIT}"), "I say bye."]
    with desk(
        tmp_path, GitHubServer, change, pull_requests=often, repositories=("shop",)
    ) as at:
        fix = ("session", "fix", "1", "--pr", "--resource")
        spec = json.loads(said(tmp_path, *fix, env=at.env))["spec"]
        git = [{"host": at.git.url, "token_variable": "GIT_TOKEN"}]
        own = {
            "PROMPT": spec["prompt"],
            "AUTO_PUSH_ON_COMPLETE": str(spec["autoPushOnComplete"]).lower(),
            "MIDWATCH_SESSIONS__GIT": json.dumps(git),
            "GIT_TOKEN": GIT_TOKEN,
        }
        done = Pod(tmp_path / "pod", at.api, spec["repos"], own).serve()
        assert done.returncode == 0, done.stdout + done.stderr
        settings = read_yaml((tmp_path / "midwatch.yaml").read_bytes())
        settings["server"] = {}
        in_store(tmp_path, let_a_minute_pass)
        with server_process(tmp_path, settings, env=at.env) as server:
            wait_until(lambda: states_of(server) == ["open"])
        [pull] = at.forge.pulls
        assert "x" in at.show("show", f"{pull['head']['ref']}:main.py")


API = "/api/v1"


def _press(server: Running, key: str) -> str:
    """Press the button with its box checked. Return where the page goes."""
    answer = server.http.post(
        "/tickets/1/fix",
        data={"key": key, "pull_request": "true"},
        headers={"Origin": server.url},
    )
    assert answer.status_code == 303, answer.text
    return str(answer.headers["location"])


def states_of(server: Running) -> list[str]:
    ticket = server.http.get(f"{API}/tickets/1").json()
    return [one["state"] for one in ticket["pull_requests"]]


def kill_session(server: Running, session: str) -> None:
    """Kill the process of a session that the server has started, and wait for its end."""
    [process] = [
        one for one in psutil.Process(server.pid).children() if session in one.cmdline()
    ]
    process.kill()
    wait_until(lambda: not process.is_running())


async def let_a_minute_pass(store: SqlStore) -> None:
    """Let a daemon look at the pull request of ticket 1 now, as it does after a minute."""
    (row,) = await store.pull_requests_of(1)
    await SqlPullRequests(store.transactions).change(row, {}, seconds=0)
