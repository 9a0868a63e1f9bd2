"""Pull requests: one for a ticket and repository, whatever is killed, refused, changed by people or resolved meanwhile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from midwatch.kube.resource import read_resource
from midwatch.testing.fakes import add_commit, run_git

from ..forge_server import (
    TOKEN,
    Fault,
    Forge,
    GitHubServer,
    GitLabServer,
    HeldRequest,
    merge,
)
from ..waiting import wait_until
from .cli import refused, said, said_json
from .pull_request_desk import GIT_TOKEN, pull_request_desk
from .server_process import server_process

FILES = {"main.py": "print('bye')\n"}


def forget_push(folder: Path) -> None:
    """Leave what a process leaves that was killed after the push and before it recorded that."""
    git_dir = folder / "repositories" / "shop.git"
    refs = run_git(git_dir, "for-each-ref", "--format=%(refname)", "refs/midwatch")
    assert refs
    for ref in refs.split():
        run_git(git_dir, "update-ref", "-d", ref)


def test_whatever_is_killed_there_is_one(tmp_path: Path) -> None:
    """After the push, before the pull request is made, and before it is recorded."""
    with pull_request_desk(tmp_path) as desk:
        session = desk.session(**FILES)
        desk.killed(session, HeldRequest("GET", "/pulls", skip=1))
        assert not desk.forge.pulls and desk.pull()["state"] == "pushed"
        pushed = desk.show("rev-parse", desk.pull()["branch"])
        forget_push(tmp_path / "state" / "sessions" / session)
        desk.killed(session, HeldRequest("POST", "/pulls"))
        assert not desk.forge.pulls
        desk.killed(session, HeldRequest("POST", "/pulls", after=True))
        assert len(desk.forge.pulls) == 1 and desk.pull()["url"] is None
        # A daemon finds it, once the process that made it had its time.
        assert desk.watch() == 0 and desk.watch(ahead=70) == 1
        url = desk.forge.pulls[0]["html_url"]
        assert (desk.pull()["url"], desk.pull()["state"]) == (url, "open")
        assert desk.history() == [f"is open: {url}"]
        assert "no change" in desk.publish(session)
        assert len(desk.forge.pulls) == 1 and desk.history() == [f"is open: {url}"]
        assert desk.show("rev-parse", desk.pull()["branch"]) == pushed
        assert desk.forge.made("POST", "/pulls") == 1


def test_a_daemon_opens_what_a_killed_process_pushed(tmp_path: Path) -> None:
    with pull_request_desk(tmp_path) as desk:
        session = desk.session(**FILES)
        desk.killed(session, HeldRequest("POST", "/pulls"))
        assert desk.watch(ahead=70) == 1 and len(desk.forge.pulls) == 1
        assert "It is done." in desk.forge.pulls[0]["body"]
        assert desk.pull()["state"] == "open" and desk.watch() == 0


def test_already_exists_is_found_again(tmp_path: Path) -> None:
    with pull_request_desk(tmp_path) as desk:
        says = "A pull request already exists for team:midwatch/ticket-1."
        body = {"message": "Validation Failed", "errors": [{"message": says}]}
        desk.forge.faults = [Fault("POST", "/pulls", 422, body, after=True)]
        assert "opened" not in desk.publish(desk.session(**FILES))
        assert len(desk.forge.pulls) == 1 and desk.pull()["state"] == "open"


def test_two_sessions_add_to_one_and_nobody_is_overwritten(tmp_path: Path) -> None:
    with pull_request_desk(tmp_path) as desk:
        desk.publish(desk.session(**FILES))
        branch = desk.pull()["branch"]
        late = desk.session(branch, **{"more.py": "1\n"})
        add_commit(
            desk.git.root / "team" / "shop", {"hers.py": "2\n"}, "Hers", branch=branch
        )
        hers = desk.show("rev-parse", branch)
        told = desk.publish(late)
        assert "push rejected" in told and told.count("\n") == 2, told
        assert desk.show("rev-parse", branch) == hers
        next_ = desk.session(branch, **{"more.py": "1\n"})
        assert "new commits in http" in desk.publish(next_)
        assert (
            run_git(
                desk.git.root / "team" / "shop",
                "merge-base",
                "--is-ancestor",
                hers,
                branch,
            )
            == ""
        )
        assert len(desk.forge.pulls) == 1
        pages = [one for one in desk.forge.seen if one.method == "PATCH"]
        assert pages and next_ in desk.forge.pulls[0]["body"]


def test_a_person_closes_it_for_good(tmp_path: Path) -> None:
    with pull_request_desk(tmp_path) as desk:
        session = desk.session(**FILES)
        desk.publish(session)
        url = desk.pull()["url"]
        desk.forge.pulls[0].update(state="closed", closed_by={"login": "ada"})
        assert desk.watch(ahead=70) == 1 and desk.pull()["state"] == "closed"
        assert desk.history() == [f"opened {url}", f"closed {url} by ada"]
        again = desk.session(**{"other.py": "3\n"})
        told = desk.publish(again)
        assert f"{url} is closed" in told and "--new-pr" in told
        assert len(desk.forge.pulls) == 1 and desk.forge.pulls[0]["state"] == "closed"
        assert "opened" in desk.publish(again, "--new-pr")
        assert [one["state"] for one in desk.forge.pulls] == ["closed", "open"]
        shown = said_json(tmp_path, "tickets", "show", "1")["pull_requests"]
        assert [one["attempt"] for one in shown] == [1, 2]
        assert shown[1]["branch"] == f"{shown[0]['branch']}-2"
        # The next session goes on with the open one.
        assert "no change" in desk.publish(again) and len(desk.forge.pulls) == 2


def test_a_deleted_branch_stays_deleted(tmp_path: Path) -> None:
    with pull_request_desk(tmp_path) as desk:
        desk.publish(desk.session(**FILES))
        branch = desk.pull()["branch"]
        desk.show("update-ref", "-d", f"refs/heads/{branch}")
        told = desk.publish(desk.session(**{"other.py": "3\n"}))
        assert "was deleted" in told and "--new-pr" in told
        assert branch not in desk.forge.refs("team/shop")


def test_what_happens_at_the_forge_is_shown(tmp_path: Path) -> None:
    """With conditional requests, within its limits, and once in the history. Merging resolves nothing."""
    with pull_request_desk(tmp_path, GitHubServer, draft=True) as desk:
        desk.publish(desk.session(**FILES))
        assert desk.forge.pulls[0]["draft"]
        running = {"status": "in_progress", "conclusion": None}
        desk.forge.runs = [{"name": "test", **running}]
        assert desk.watch(ahead=70) == 1
        shown = desk.pull()
        assert (shown["state"], shown["checks"], shown["review"]) == (
            "draft",
            "pending",
            "none",
        )
        desk.forge.seen.clear()
        desk.watch(ahead=140)
        assert {one.status for one in desk.forge.seen} == {304}
        desk.forge.pulls[0]["draft"] = False
        desk.forge.runs = [{"status": "completed", "conclusion": "failure"}]
        desk.forge.reviews = [
            {"user": {"login": "ada"}, "state": "CHANGES_REQUESTED"},
            {"user": {"login": "bob"}, "state": "APPROVED"},
        ]
        desk.watch(ahead=210)
        shown = desk.pull()
        assert (shown["state"], shown["checks"], shown["review"]) == (
            "open",
            "failed",
            "changes_requested",
        )
        limits = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "99999999999"}
        body = {"message": "API rate limit exceeded for user ID 1."}
        desk.forge.faults = [Fault("GET", "/pulls/1", 403, body, limits)]
        desk.watch(ahead=280)
        assert "rate limit" in desk.pull()["last_error"]
        assert desk.watch(ahead=1000) == 0, "it waits for the limit"
        merge(desk.forge, 1)
        desk.watch(ahead=280 + 3601)
        url = desk.pull()["url"]
        assert desk.history()[-1] == f"merged {url} by ada"
        assert desk.pull()["last_error"] is None and desk.watch(ahead=10**6) == 0
        assert desk.results == {"opened": 1, "failed": 1, "merged": 1}
        assert said_json(tmp_path, "tickets", "show", "1")["status"] == "open"
        assert "--new-pr" in desk.publish(desk.session(**{"other.py": "3\n"}))


def test_a_resolved_ticket_is_told_once(tmp_path: Path) -> None:
    with pull_request_desk(tmp_path) as desk:
        desk.publish(desk.session(**FILES))
        said(tmp_path, "tickets", "resolve", "1", "--why", "it recovered")
        desk.forge.faults = [Fault("POST", "/comments", 502, None, after=True)]
        for ahead in (70, 300, 4000):
            desk.watch(ahead=ahead)
        assert len(desk.forge.comments) == 1 and desk.forge.pulls[0]["state"] == "open"
        number, text = desk.forge.comments[0]
        assert number == 1 and "Ticket 1 was resolved" in text


def test_a_person_approves_before_anything_leaves_the_machine(tmp_path: Path) -> None:
    with pull_request_desk(tmp_path, GitHubServer, approval=True) as desk:
        session = desk.session(**FILES)
        told = desk.publish(session)
        assert (
            "waits for approval" in told and f"session pr {session} --approve" in told
        )
        assert not desk.forge.pulls and list(desk.forge.refs("team/shop")) == ["main"]
        assert not any("receive-pack" in one.path for one in desk.git.requests)
        assert (desk.pull()["state"], desk.pull()["waiting"]) == ("waiting", session)
        assert desk.watch(ahead=10**6) == 0
        assert "opened" in desk.publish(session, "--approve")
        shown = desk.pull()
        assert shown["state"] == "open" and shown["waiting"] is None
        assert "@" in shown["approved_by"] and len(desk.forge.pulls) == 1
        # New commits wait as well.
        more = desk.session(shown["branch"], **{"more.py": "1\n"})
        assert "waits for approval" in desk.publish(more)
        assert "new commits wait for approval" in said(tmp_path, "tickets", "show", "1")
        desk.watch(ahead=70)
        assert desk.pull()["waiting"] == more and desk.results == {"opened": 1}
        assert "new commits in" in desk.publish(more, "--approve")
        assert desk.pull()["waiting"] is None and len(desk.forge.pulls) == 1
        desk.watch(ahead=140)
        desk.watch(ahead=210)
        assert desk.results == {"opened": 1, "updated": 1}


def test_a_session_in_a_cluster_pushes_and_a_daemon_opens(tmp_path: Path) -> None:
    """The resource has the branch and no token; nothing is opened before it is there, and once then."""
    with pull_request_desk(tmp_path) as desk:
        fix = ("session", "fix", "1", "--pr", "--resource", "--model", "claude-x")
        printed = said(tmp_path, *fix, env=desk.env)
        resource = json.loads(printed)
        spec = read_resource(resource).spec
        assert spec.auto_push_on_complete and spec.llm_settings.model == "claude-x"
        [repository] = resource["spec"]["repos"]
        branch = desk.pull()["branch"]
        assert repository["output"] == {"branch": branch}
        assert TOKEN not in printed and GIT_TOKEN not in printed
        assert "broken" in spec.prompt and not desk.forge.pulls
        session = resource["metadata"]["name"]
        shown = said(tmp_path, "tickets", "show", "1")
        assert "waits for the branch of its session" in shown
        assert desk.watch() == 0 and desk.watch(ahead=70) == 1
        assert not desk.forge.pulls and desk.pull()["state"] == "waiting"
        add_commit(desk.git.root / "team" / "shop", FILES, "Bye", branch=branch)
        assert desk.watch(ahead=140) == 1
        [pull] = desk.forge.pulls
        assert desk.pull()["url"] == pull["html_url"] and pull["head"]["ref"] == branch
        assert session in pull["body"] and desk.results == {"opened": 1}
        assert desk.history()[0] == f"waits for the branch of session {session}"
        # The next session begins on the branch, and its commits show in the same one.
        again = json.loads(said(tmp_path, *fix, env=desk.env))
        assert again["spec"]["repos"][0]["input"]["branch"] == branch
        desk.watch(ahead=300)
        assert len(desk.forge.pulls) == 1 and desk.pull()["state"] == "open"
        for more in (("--interactive",), ("--allow-tool", "Bash")):
            assert "--resource" in refused(tmp_path, *fix, *more, env=desk.env, code=2)
        desk.pull_requests = {"approval": True}
        desk.write()
        assert "pushes by itself" in refused(tmp_path, *fix, env=desk.env)


def test_a_cluster_that_never_pushes_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    """Of two repositories it may have changed one."""
    with pull_request_desk(tmp_path, GitHubServer, "shop", "lib") as desk:
        fix = ("session", "fix", "1", "--pr", "--resource")
        said(tmp_path, *fix, env=desk.env)
        [branch, _] = [
            one["branch"]
            for one in said_json(tmp_path, "tickets", "show", "1")["pull_requests"]
        ]
        add_commit(desk.git.root / "team" / "shop", FILES, "Bye", branch=branch)
        assert desk.watch(ahead=70) == 2 and len(desk.forge.pulls) == 1
        desk.created_days_ago(8)
        desk.watch(ahead=70)
        assert desk.pull()["state"] == "open", "the other one changed nothing"
        said(tmp_path, *fix, env=desk.env)
        desk.created_days_ago(8)
        desk.watch(ahead=140)
        [lib, _] = said_json(tmp_path, "tickets", "show", "1")["pull_requests"]
        assert "pushed nothing within 7 days" in lib["last_error"]
        assert len(desk.forge.pulls) == 1


def test_gitlab_has_the_same_as_merge_requests(tmp_path: Path) -> None:
    with pull_request_desk(tmp_path, GitLabServer, draft=True) as desk:
        session = desk.session(**FILES)
        desk.killed(session, HeldRequest("POST", "/merge_requests", after=True))
        assert "new commits in" in desk.publish(session)
        (merge_request,) = desk.forge.pulls
        assert merge_request["title"].startswith("Draft: Ticket 1")
        assert desk.pull()["state"] in ("open", "draft")
        merge_request["head_pipeline"] = {"status": "success"}
        desk.forge.reviews = [{"user": {"username": "ada"}}]
        desk.watch(ahead=70)
        shown = desk.pull()
        assert (shown["state"], shown["checks"], shown["review"]) == (
            "draft",
            "passed",
            "approved",
        )
        limited = Fault("GET", "/merge_requests/1", 429, {}, {"retry-after": "120"})
        desk.forge.faults = [limited]
        desk.watch(ahead=140)
        assert desk.watch(ahead=250) == 0 and desk.watch(ahead=270) == 1
        merge_request.update(state="merged", merge_user={"username": "ada"})
        desk.watch(ahead=400)
        assert (
            desk.history()[-1].startswith("merged http") and "ada" in desk.history()[-1]
        )


REPOSITORY: dict[str, tuple[type[Forge], dict[str, Any], str]] = {
    "archived": (GitHubServer, {"archived": True}, "it is archived"),
    "fork": (
        GitHubServer,
        {"fork": True, "parent": {"full_name": "up/shop"}},
        "it is a fork of up/shop, and pull requests of forks are not supported",
    ),
    "no default branch": (
        GitHubServer,
        {"default_branch": None},
        "has no default branch",
    ),
    "read only": (
        GitHubServer,
        {"permissions": {"push": False}},
        "contents: write and pull requests: write",
    ),
    "archived at GitLab": (GitLabServer, {"archived": True}, "it is archived"),
    "fork at GitLab": (
        GitLabServer,
        {"forked_from_project": {"path_with_namespace": "up/shop"}},
        "it is a fork of up/shop, and merge requests of forks are not supported",
    ),
    "no merge requests": (
        GitLabServer,
        {"merge_requests_access_level": "disabled"},
        "merge requests are disabled",
    ),
}
ANSWERS: dict[str, tuple[type[Forge], Fault, str]] = {
    "401": (
        GitHubServer,
        Fault("GET", "/repos", 401, {"message": "Bad credentials"}),
        "renew it",
    ),
    "404": (
        GitHubServer,
        Fault("GET", "/repos", 404, {"message": "Not Found"}),
        "check the name of the repository; the token needs contents: write",
    ),
    "fine-grained": (
        GitHubServer,
        Fault(
            "POST",
            "/pulls",
            403,
            {"message": "Resource not accessible by personal access token"},
            {"x-accepted-github-permissions": "pull_requests=write"},
        ),
        "the token needs pull requests: write",
    ),
    "moved": (
        GitHubServer,
        Fault(
            "GET", "/repos", 301, {"message": "Moved"}, {"location": "http://[::1]:9/"}
        ),
        "write its present URL",
    ),
    "500": (GitHubServer, Fault("GET", "/repos", 500, None), "try again later"),
    "no JSON": (GitHubServer, Fault("GET", "/repos", 200, None), "without JSON"),
    "another JSON": (GitHubServer, Fault("GET", "/pulls", 200, {}), "not one of the"),
    "secondary limit": (
        GitHubServer,
        Fault(
            "POST",
            "/pulls",
            403,
            {"message": "You have exceeded a secondary rate limit."},
        ),
        "a running daemon goes on",
    ),
    "scope at GitLab": (
        GitLabServer,
        Fault(
            "POST",
            "/merge_requests",
            403,
            {"error": "insufficient_scope", "scope": "api"},
        ),
        "the token needs the scope api",
    ),
}


@pytest.mark.parametrize("name", REPOSITORY)
def test_a_repository_without_pull_requests_is_said(tmp_path: Path, name: str) -> None:
    kind, fields, words = REPOSITORY[name]
    with pull_request_desk(tmp_path, kind) as desk:
        session = desk.session(**FILES)
        desk.forge.repository = fields
        told = desk.publish(session)
        assert words in told and told.count("\n") == 1, told
        assert not desk.forge.pulls and list(desk.forge.refs("team/shop")) == ["main"]


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_refuses_is_one_line(tmp_path: Path, name: str) -> None:
    kind, fault, words = ANSWERS[name]
    with pull_request_desk(tmp_path, kind) as desk:
        session = desk.session(**FILES)
        desk.forge.faults = [fault]
        told = desk.publish(session)
        assert words in told and told.count("midwatch: ") == 1, told
        assert "Traceback" not in told and not desk.forge.pulls
        assert desk.publish(session).count("opened") == 1 and len(desk.forge.pulls) == 1


def test_what_cannot_be_pushed_or_is_nothing_is_said(tmp_path: Path) -> None:
    with pull_request_desk(tmp_path) as desk:
        nothing = desk.session()
        assert "shop: no change" in desk.publish(nothing) and not desk.forge.pulls
        hook = desk.git.root / "team" / "shop" / "hooks" / "pre-receive"
        hook.write_text("#!/bin/sh\necho 'GH006: Protected branch' >&2\nexit 1\n")
        hook.chmod(0o755)
        session = desk.session(**FILES)
        told = desk.publish(session)
        assert "GH006" in told and not desk.forge.pulls, told
        hook.unlink()
        desk.branch = "release"
        desk.write()
        assert "team/shop has no branch release" in desk.publish(session)
        desk.branch = None
        desk.write()
        assert "opened" in desk.publish(session)


def test_a_repository_is_found_among_pages(tmp_path: Path) -> None:
    with pull_request_desk(tmp_path) as desk:
        desk.forge.page_size = 1
        desk.publish(desk.session(**FILES))
        desk.forge.pulls[0].update(state="closed")
        again = desk.session(**{"other.py": "3\n"})
        desk.publish(again, "--new-pr")
        # Somebody opens a later one from the same branch and closes it: the open one counts.
        ours = desk.forge.pulls[1]
        later = {**ours, "number": 3, "state": "closed"}
        desk.forge.pulls.append(later)
        assert "no change" in desk.publish(again)
        assert (
            said_json(tmp_path, "tickets", "show", "1")["pull_requests"][1]["number"]
            == 2
        )


def test_settings_that_would_leak_or_miss_a_token_are_refused(tmp_path: Path) -> None:
    with pull_request_desk(tmp_path) as desk:
        session = desk.session(**FILES)
        file = tmp_path / "midwatch.yaml"
        whole = file.read_text()
        file.write_text(whole.replace(desk.forge.url, "http://forge.example"))
        told = desk.publish(session)
        assert "without encryption" in told and "forges[0].api" in told
        file.write_text(whole.replace('"FORGE_TOKEN"', '"NO_TOKEN"'))
        assert "the environment has no NO_TOKEN" in desk.publish(session)
        file.write_text(whole.replace('"token_variable": "FORGE_TOKEN"', '"api": null'))
        assert not desk.forge.pulls
        other = whole.replace(
            f'"host": "{desk.git.url}", "kind"', '"host": "https://x.example", "kind"'
        )
        file.write_text(other)
        assert "is at no known forge" in desk.publish(session)
        assert not desk.git.saw(TOKEN)
        assert not any(GIT_TOKEN in one.authorization for one in desk.forge.seen)


def test_the_server_shows_them_and_a_person_approves_there(tmp_path: Path) -> None:
    """The daemon looks by itself. Who may only read cannot approve."""
    with pull_request_desk(
        tmp_path, GitHubServer, approval=True, interval="5s"
    ) as desk:
        session = desk.session(**FILES)
        desk.publish(session)
        settings = json.loads((tmp_path / "midwatch.yaml").read_text())
        settings["server"] = {}  # who is on this machine needs no sign-in
        approve = "/api/v1/tickets/1/approve-pull-requests"
        with server_process(tmp_path, settings, env=desk.env) as server:
            button = "Approve: push and open"
            page = server.http.get("/tickets/1").text
            assert button in page and "waits for approval" in page
            assert server.http.get(f"/sessions/{session}/diff").status_code == 200
            opened = server.http.post(approve)
            assert opened.status_code == 200, opened.text
            url = desk.forge.pulls[0]["html_url"]
            assert [(one["url"], one["state"]) for one in opened.json()] == [
                (url, "open")
            ]
            page = server.http.get("/tickets/1").text
            assert f'href="{url}"' in page and button not in page
            assert server.http.post(approve).status_code == 409
            merge(desk.forge, 1)

            def state() -> str:
                ticket = server.http.get("/api/v1/tickets/1").json()
                return str(ticket["pull_requests"][0]["state"])

            wait_until(lambda: state() == "merged")
            log = json.dumps(server.log())
        assert TOKEN not in log and GIT_TOKEN not in log
