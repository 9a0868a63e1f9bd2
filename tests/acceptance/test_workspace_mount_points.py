"""The empty files that a sandbox leaves are neither work nor in the way of git; files that somebody wrote are."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from midwatch.testing.fakes import make_repository, run_git
from midwatch.workspace.git import Git, GitLimits
from midwatch.workspace.inspect import diff_of, inspect_repo
from midwatch.workspace.mount_points import hide_mount_points, remove_mount_points
from midwatch.workspace.push import push_repo
from midwatch.workspace.record import ClonedRepo, open_workspace
from midwatch.workspace.setup import WorkspaceOptions, setup_workspace_async

from ..waiting import PATIENCE

LEFT = [".bashrc", ".mcp.json", ".vscode", ".claude/settings.json", ".claude/agents"]
"""Some of those that the program leaves."""
FILES = {"f": "1\n", ".profile": "", ".idea/x.xml": "<x/>\n", ".zshrc": "alias\n"}


@pytest.fixture
def git() -> Git:
    return Git(limits=GitLimits(attempts=1, local_seconds=PATIENCE))


@pytest.fixture
async def repo(tmp_path: Path) -> ClonedRepo:
    origin = make_repository(tmp_path / "origin.git", FILES)
    options = WorkspaceOptions(cache=tmp_path / "cache", state=tmp_path / "state")
    await setup_workspace_async([str(origin)], tmp_path / "ws", options=options)
    return open_workspace(tmp_path / "state").repos[0]


def mount_point(path: Path) -> None:
    """Create what bubblewrap creates: `creat(path, 0444)` without a umask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    path.chmod(0o444)


def leave_all(folder: Path) -> None:
    for name in LEFT:
        if not (folder / name).exists():  # bubblewrap mounts on what is there
            mount_point(folder / name)
    (folder / ".claude/.cc-writes").mkdir(mode=0o700)


async def test_they_are_no_changes_and_are_not_pushed(
    repo: ClonedRepo, git: Git, tmp_path: Path
) -> None:
    leave_all(repo.path)
    assert (await inspect_repo(repo, git)).status == "clean"
    assert (await push_repo(repo, git)).outcome == "nothing"
    (repo.path / "f").write_text("2\n")
    state = await inspect_repo(repo, git)
    assert [file.path for file in state.files] == ["f"] and state.untracked == 0
    assert (await diff_of(repo, git)).text.count("diff --git") == 1
    assert (await push_repo(repo, git)).outcome == "pushed"
    names = run_git(
        tmp_path / "origin.git", "diff", "--name-only", "main..midwatch/session"
    )
    assert names == "f"


async def test_a_file_that_a_mount_point_replaced_is_a_deleted_file(
    repo: ClonedRepo, git: Git
) -> None:
    (repo.path / ".zshrc").unlink()
    mount_point(repo.path / ".zshrc")
    state = await inspect_repo(repo, git)
    assert [(f.path, f.kind) for f in state.files] == [(".zshrc", "deleted")]


async def test_files_that_somebody_wrote_are_kept(repo: ClonedRepo, git: Git) -> None:
    (repo.path / ".bashrc").write_text("alias ll='ls -l'\n")
    (repo.path / ".mcp.json").touch()  # empty, as the Write tool makes it
    (repo.path / ".mcp.json").chmod(0o644)
    (repo.path / ".vscode").mkdir()
    (repo.path / ".vscode/settings.json").write_text("{}\n")
    (repo.path / ".claude").mkdir()
    (repo.path / ".claude/settings.json").write_text("{}\n")
    (repo.path / ".claude/settings.json").chmod(0o444)
    mount_point(repo.path / "empty.txt")  # not a name of the program
    assert remove_mount_points([repo.path]) == 0
    state = await inspect_repo(repo, git)
    assert {file.path for file in state.files} == {
        *(".bashrc", ".mcp.json", ".vscode/settings.json", ".claude/settings.json"),
        "empty.txt",
    }


async def test_they_are_removed_and_the_repositorys_files_are_kept(
    repo: ClonedRepo,
) -> None:
    leave_all(repo.path)
    mount_point(repo.path / ".git/config.lock")
    worktree = repo.path / ".claude/worktrees/w1"
    mount_point(worktree / ".bashrc")
    (worktree / "work").write_text("work\n")
    assert remove_mount_points([repo.path]) == len(LEFT) + 2
    assert (worktree / "work").exists() and not (worktree / ".bashrc").exists()
    assert not (repo.path / ".git/config.lock").exists()
    assert not any(os.path.lexists(repo.path / name) for name in LEFT)
    assert all((repo.path / name).exists() for name in FILES)
    assert run_git(repo.path, "status", "--porcelain") == "?? .claude/"


async def test_the_folder_of_the_program_goes_if_it_has_nothing_else(
    repo: ClonedRepo,
) -> None:
    leave_all(repo.path)
    remove_mount_points([repo.path])
    assert not (repo.path / ".claude").exists()


async def test_no_link_is_followed(repo: ClonedRepo, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    mount_point(outside / "settings.json")
    mount_point(outside / "worktrees/w1/.bashrc")
    (repo.path / ".claude").symlink_to(outside)
    assert remove_mount_points([repo.path, tmp_path / "missing"]) == 0
    assert (outside / "settings.json").exists()
    assert (outside / "worktrees/w1/.bashrc").exists()


def git_in_session(folder: Path, env: dict[str, str], *args: str) -> str:
    run = subprocess.run(
        ["git", *args], cwd=folder, env=env, capture_output=True, check=True
    )
    return run.stdout.decode().strip()


@pytest.mark.parametrize("where", ["", "odd [name] *"])
async def test_git_in_the_session_does_not_see_them(tmp_path: Path, where: str) -> None:
    clone = tmp_path / where / "clone"
    clone.mkdir(parents=True)
    other = tmp_path / "other"
    other.mkdir()
    home = tmp_path / "home"
    (home / ".config/git").mkdir(parents=True)
    (home / ".config/git/ignore").write_text("*.own\n")
    for folder in (clone, other):
        run_git(folder, "init", "-q")
    (clone / ".vscode").mkdir()
    (clone / ".vscode/tasks.json").write_text("{}\n")
    base = {"PATH": os.environ["PATH"], "HOME": str(home)}
    run = tmp_path / "run"
    run.mkdir()
    env = hide_mount_points(run, clone, [other], base)
    leave_all(clone)
    seen = git_in_session(clone, base, "status", "--porcelain").split()
    assert {".bashrc", ".mcp.json", ".claude/"} <= set(seen), "else this could not fail"
    (clone / "new").write_text("new\n")
    (clone / "a.own").write_text("own\n")
    (clone / "dotfiles").mkdir()
    (clone / "dotfiles/.bashrc").write_text("real\n")
    (other / ".bashrc").write_text("real\n")
    for folder in (clone, other):
        git_in_session(folder, env, "add", "-A")
    added = git_in_session(clone, env, "ls-files").splitlines()
    assert added == [".vscode/tasks.json", "dotfiles/.bashrc", "new"]
    assert git_in_session(other, env, "ls-files") == ".bashrc"


async def test_variables_of_the_caller_stay(tmp_path: Path) -> None:
    run_git(tmp_path, "init", "-q")
    env = {
        "HOME": str(tmp_path),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "user.name",
        "GIT_CONFIG_VALUE_0": "Ada",
    }
    changed = hide_mount_points(tmp_path, tmp_path, [], env)
    assert changed.items() >= {**env, "GIT_CONFIG_COUNT": "2"}.items()
