"""Push the commits of the agent and its other changes, never by force, with a hint when refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from midwatch.testing.fakes import (
    GitServer,
    add_commit,
    git_server,
    make_repository,
    run_git,
)
from midwatch.workspace.environment import Credential, GitEnvironment
from midwatch.workspace.errors import NotAuthorised, PushRejected
from midwatch.workspace.git import Git, GitLimits
from midwatch.workspace.inspect import inspect_repo
from midwatch.workspace.plan import RepoSpec
from midwatch.workspace.push import PushOptions, push_repo, push_workspace
from midwatch.workspace.record import ClonedRepo, open_workspace
from midwatch.workspace.setup import WorkspaceOptions, setup_workspace_async


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "origin.git", {"f": "1\n"})


@pytest.fixture
def git() -> Git:
    return Git(limits=GitLimits(attempts=1))


async def cloned(tmp_path: Path, spec: RepoSpec, git: Git | None = None) -> ClonedRepo:
    options = WorkspaceOptions(
        cache=tmp_path / "cache",
        state=tmp_path / "state",
        session="s1",
        environment=git.environment if git else GitEnvironment(),
    )
    await setup_workspace_async([spec], tmp_path / "ws", options=options)
    return open_workspace(tmp_path / "state").repos[0]


def agent_commits(clone: Path, name: str) -> str:
    (clone / name).write_text(f"{name}\n")
    run_git(clone, "add", name)
    run_git(clone, "commit", "-qm", f"add {name}")
    return run_git(clone, "rev-parse", "HEAD")


async def test_commits_and_the_rest_go_to_the_sessions_branch_again_and_again(
    tmp_path: Path, origin: Path, git: Git
) -> None:
    repo = await cloned(tmp_path, RepoSpec(str(origin)))
    assert (await push_repo(repo, git)).outcome == "nothing"
    assert (await inspect_repo(repo, git)).status == "clean"

    made = agent_commits(repo.path, "a")
    (repo.path / "rest").write_text("rest\n")
    first = await push_repo(repo, git)
    assert (first.outcome, first.branch) == ("pushed", "midwatch/s1")
    assert first.commit == run_git(origin, "rev-parse", "midwatch/s1")
    assert run_git(origin, "rev-parse", "midwatch/s1^") == made
    assert run_git(origin, "show", "midwatch/s1:rest") == "rest"
    assert (await inspect_repo(repo, git)).status == "pushed"
    assert (await push_repo(repo, git)).outcome == "nothing"

    # The agent continues from its own commit, without the commit of the other changes.
    agent_commits(repo.path, "b")
    (repo.path / "rest").write_text("more\n")
    assert (await inspect_repo(repo, git)).status == "changed"
    second = await push_repo(repo, git)
    assert second.outcome == "pushed", second.error
    assert run_git(origin, "show", "midwatch/s1:b") == "b"
    assert run_git(origin, "show", "midwatch/s1:rest") == "more"
    assert (
        run_git(origin, "merge-base", str(first.commit), "midwatch/s1") == first.commit
    )
    assert run_git(origin, "show", "-s", "--format=%an", "main") == "Ada"


async def test_commits_alone(tmp_path: Path, origin: Path, git: Git) -> None:
    repo = await cloned(tmp_path, RepoSpec(str(origin)))
    made = agent_commits(repo.path, "a")
    (repo.path / "rest").write_text("rest\n")
    result = await push_repo(repo, git, PushOptions(commit_rest=False))
    assert result.commit == made == run_git(origin, "rev-parse", "midwatch/s1")
    assert (await inspect_repo(repo, git)).status == "changed"


async def test_what_was_pushed_elsewhere_is_still_to_be_pushed_here(
    tmp_path: Path, origin: Path, git: Git
) -> None:
    repo = await cloned(tmp_path, RepoSpec(str(origin)))
    (repo.path / "rest").write_text("rest\n")
    assert (await push_repo(repo, git)).outcome == "pushed"
    assert (await push_repo(repo, git)).outcome == "nothing"
    other = replace(repo, push_branch="review/it")
    assert (await push_repo(other, git)).outcome == "pushed"
    assert run_git(origin, "show", "review/it:rest") == "rest"
    assert (await push_repo(repo, git)).outcome == "nothing"


async def test_another_remote_and_branch_and_an_empty_repository(
    tmp_path: Path, origin: Path, git: Git
) -> None:
    fork = make_repository(tmp_path / "fork.git")
    empty = make_repository(tmp_path / "empty.git")
    specs = [
        RepoSpec(str(origin), push_url=str(fork), push_branch="fix/it"),
        RepoSpec(str(empty), push_branch="main"),
    ]
    options = WorkspaceOptions(cache=tmp_path / "cache", state=tmp_path / "state")
    paths = await setup_workspace_async(specs, tmp_path / "ws", options=options)
    for path in paths:
        (path / "new").write_text("new\n")
    results = await push_workspace(open_workspace(tmp_path / "state"), git)
    assert [r.outcome for r in results] == ["pushed", "pushed"]
    assert run_git(fork, "show", "fix/it:new") == "new"
    assert run_git(empty, "show", "main:new") == "new"
    assert run_git(origin, "branch", "--list", "fix/it") == ""


async def test_a_branch_that_moved_on_is_not_forced(
    tmp_path: Path, origin: Path, git: Git
) -> None:
    repo = await cloned(tmp_path, RepoSpec(str(origin), push_branch="main"))
    agent_commits(repo.path, "a")
    theirs = add_commit(origin, {"f": "theirs\n"}, "meanwhile")
    result = await push_repo(repo, git)
    assert isinstance(result.error, PushRejected)
    assert "another branch" in result.error.hint and "main" in result.error.one_line()
    assert run_git(origin, "rev-parse", "main") == theirs
    assert (await inspect_repo(repo, git)).status == "changed"


async def test_a_server_that_declines(tmp_path: Path, origin: Path, git: Git) -> None:
    hook = origin / "hooks/pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho 'no pushes on Sunday' >&2\nexit 1\n")
    hook.chmod(0o755)
    repo = await cloned(tmp_path, RepoSpec(str(origin)))
    agent_commits(repo.path, "a")
    result = await push_repo(repo, git)
    assert isinstance(result.error, PushRejected)
    assert "declined" in result.error.one_line() and result.error.hint


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    make_repository(tmp_path / "served/x.git", {"f": "1\n"})
    with git_server(tmp_path / "served", "tok-write") as running:
        yield running


async def test_over_http_with_a_token(tmp_path: Path, server: GitServer) -> None:
    def with_token(token: str) -> Git:
        credentials = (Credential(server.url, token),)
        return Git(GitEnvironment(credentials=credentials), GitLimits(attempts=1))

    git = with_token("tok-write")
    repo = await cloned(tmp_path, RepoSpec(f"{server.url}/x.git"), git)
    agent_commits(repo.path, "a")
    refused = await push_repo(repo, with_token("tok-other"))
    assert isinstance(refused.error, NotAuthorised)
    server.may_write = False
    reader = await push_repo(repo, git)
    assert isinstance(reader.error, NotAuthorised) and "write" in reader.error.hint
    server.may_write = True
    done = await push_repo(repo, git)
    assert done.outcome == "pushed", done.error
    pushed = run_git(server.root / "x.git", "rev-parse", "midwatch/s1")
    assert pushed == done.commit
