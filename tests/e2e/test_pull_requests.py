"""From a ticket to a pull request: one for each repository that changed, at GitHub and GitLab, whatever is killed between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midwatch.store.sql import SqlStore
from midwatch.testing.fakes import add_commit, make_repository, open_tickets, run_git
from midwatch.testing.messages_api import Rule, ScriptedMessagesAPI

from ..acceptance.cli import in_store, said, said_json
from ..acceptance.session_cli import asking, bash, events_of, make_desk
from ..forge_server import TOKEN, Forge, GitHubServer, serving
from ..git_servers import GitHost, git_host

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
