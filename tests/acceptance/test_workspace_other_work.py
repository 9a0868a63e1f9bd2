"""Work that is not at the HEAD of a clone: found, pushed to branches of its own, and counted before a removal."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from midwatch.testing.fakes import add_commit, make_repository, run_git
from midwatch.workspace.errors import PushRejected
from midwatch.workspace.git import Git, GitLimits
from midwatch.workspace.inspect import (
    diffs_of,
    inspect_repo,
    inspect_workspace,
    unpushed_work,
)
from midwatch.workspace.other_work import MAX_LISTED, MAX_TIPS
from midwatch.workspace.plan import RepoSpec
from midwatch.workspace.push import PushOptions, push_repo, push_workspace
from midwatch.workspace.record import ClonedRepo, Workspace, open_workspace
from midwatch.workspace.setup import WorkspaceOptions, setup_workspace_async

from ..waiting import PATIENCE
from .test_workspace_hostile import _script, plant


@pytest.fixture
def git() -> Git:
    return Git(limits=GitLimits(attempts=1, local_seconds=PATIENCE))


@pytest.fixture
async def repo(tmp_path: Path) -> ClonedRepo:
    make_repository(tmp_path / "origin.git", {"f": "1\n"})
    return (await _cloned(tmp_path, tmp_path / "origin.git")).repos[0]


async def _cloned(tmp_path: Path, origin: Path, **more: bool) -> Workspace:
    options = WorkspaceOptions(
        cache=tmp_path / "cache", state=tmp_path / "state", session="s1"
    )
    spec = RepoSpec(str(origin), **more)  # type: ignore[arg-type]
    await setup_workspace_async([spec], tmp_path / "ws", options=options)
    return open_workspace(tmp_path / "state")


def commit(clone: Path, name: str = "new") -> str:
    (clone / name).write_text(f"{name}\n")
    run_git(clone, "add", name)
    run_git(clone, "commit", "-qm", f"add {name}")
    return run_git(clone, "rev-parse", "HEAD")


def _on_a_branch(clone: Path) -> str:
    run_git(clone, "checkout", "-qb", "fix/total")
    commit(clone)
    run_git(clone, "checkout", "-q", "-")
    return "branch fix/total"


def _on_a_branch_with_a_joined_emoji(clone: Path) -> str:
    run_git(clone, "checkout", "-qb", "fix/\U0001f469\u200d\U0001f4bb")
    commit(clone)
    run_git(clone, "checkout", "-q", "-")
    return "branch fix/\U0001f469<U+200D>\U0001f4bb"


def _on_a_branch_that_is_not_utf8(clone: Path) -> str:
    run_git(clone, "checkout", "-qb", os.fsdecode(b"fix/caf\xe9"))
    commit(clone)
    run_git(clone, "checkout", "-q", "-")
    return r"branch fix/caf\udce9"


def _on_a_packed_branch_that_is_not_utf8(clone: Path) -> str:
    label = _on_a_branch_that_is_not_utf8(clone)
    run_git(clone, "pack-refs", "--all")
    return label


def _in_files_of_a_worktree_on_an_odd_branch(clone: Path) -> str:
    tree = ".claude/worktrees/w1"
    run_git(clone, "worktree", "add", "-q", tree, "-b", "fix/\u200d")
    (clone / tree / "new").write_text("new\n")
    return "worktree w1"


def _in_an_autostash(clone: Path) -> str:
    """As a rebase that stopped at a conflict leaves it."""
    (clone / "f").write_text("new\n")
    oid = run_git(clone, "stash", "create")
    run_git(clone, "checkout", "-q", "f")
    (clone / ".git/rebase-merge").mkdir()
    (clone / ".git/rebase-merge/autostash").write_text(f"{oid}\n")
    return f"stash {oid[:8]}"


def _in_a_worktree(clone: Path) -> str:
    run_git(clone, "worktree", "add", "-q", "../wt", "-b", "side")
    commit(clone.parent / "wt")
    return "branch side"


def _in_a_detached_worktree(clone: Path) -> str:
    run_git(clone, "worktree", "add", "-q", "--detach", ".claude/worktrees/w1")
    commit(clone / ".claude/worktrees/w1")
    return "worktree w1"


def _in_files_of_a_worktree(clone: Path) -> str:
    run_git(clone, "worktree", "add", "-q", ".claude/worktrees/w1", "-b", "side")
    (clone / ".claude/worktrees/w1/new").write_text("new\n")
    return "worktree w1"


def _in_a_stash(clone: Path) -> str:
    (clone / "f").write_text("2\n")
    (clone / "new").write_text("new\n")
    run_git(clone, "stash", "-q", "-u")
    return f"stash {run_git(clone, 'rev-parse', 'stash')[:8]}"


def _on_a_detached_head_that_was_left(clone: Path) -> str:
    run_git(clone, "checkout", "-q", "--detach")
    oid = commit(clone)
    run_git(clone, "checkout", "-q", "midwatch/s1")
    return f"detached {oid[:8]}"


def _at_a_tag(clone: Path) -> str:
    run_git(clone, "checkout", "-q", "--detach")
    commit(clone)
    run_git(clone, "tag", "-m", "one", "v1")
    run_git(clone, "checkout", "-q", "midwatch/s1")
    return "tag v1"


def _at_another_ref(clone: Path) -> str:
    run_git(clone, "checkout", "-qb", "tmp")
    oid = commit(clone)
    run_git(clone, "checkout", "-q", "midwatch/s1")
    run_git(clone, "update-ref", "refs/keep/one", oid)
    run_git(clone, "branch", "-qD", "tmp")
    return "ref refs/keep/one"


PLACES = [
    _on_a_branch,
    _on_a_branch_with_a_joined_emoji,
    _on_a_branch_that_is_not_utf8,
    _on_a_packed_branch_that_is_not_utf8,
    _in_files_of_a_worktree_on_an_odd_branch,
    _in_an_autostash,
    _in_a_worktree,
    _in_a_detached_worktree,
    _in_files_of_a_worktree,
    _in_a_stash,
    _on_a_detached_head_that_was_left,
    _at_a_tag,
    _at_another_ref,
]


@pytest.mark.parametrize("work", PLACES)
async def test_it_is_found_pushed_and_then_safe_to_remove(
    repo: ClonedRepo, git: Git, tmp_path: Path, work: Callable[[Path], str]
) -> None:
    workspace = open_workspace(tmp_path / "state")
    assert (await inspect_repo(repo, git)).status == "clean"
    assert await unpushed_work(workspace.path, workspace.state, git) == ""
    label = work(repo.path)
    script, canary = _script(tmp_path)
    attributes = repo.path / ".gitattributes"
    plant(repo.path, script)
    attributes.unlink()
    for folder in (repo.path / ".hooks", repo.path.parent / "included"):
        run = ["rm", "-rf", str(folder)]
        subprocess.run(run, check=True)

    state = await inspect_repo(repo, git)
    assert state.status == "changed" and state.problem is None
    assert label in [item.label for item in state.other]
    assert label in await unpushed_work(workspace.path, workspace.state, git)
    assert state.files == () and state.left_out == ()
    diffs = dict(await diffs_of(repo, git))
    shown = "".join(text.text for name, text in diffs.items() if label in name)
    assert "+new" in shown

    results = await push_workspace(workspace, git)
    assert results[0].outcome == "nothing"
    assert {one.outcome for one in results[1:]} == {"pushed"}
    origin = tmp_path / "origin.git"
    for one in results[1:]:
        assert one.branch.startswith("midwatch/s1-")
        assert run_git(origin, "rev-parse", one.branch) == one.commit
    again = await push_workspace(workspace, git)
    assert {one.outcome for one in again} == {"nothing"}
    assert (await inspect_repo(repo, git)).status == "pushed"
    assert await unpushed_work(workspace.path, workspace.state, git) == ""
    assert not canary.exists()


async def test_work_of_a_worktree_is_pushed_with_its_files(
    repo: ClonedRepo, git: Git, tmp_path: Path
) -> None:
    _in_files_of_a_worktree(repo.path)
    tree = repo.path / ".claude/worktrees/w1"
    workspace = open_workspace(tmp_path / "state")
    pushed = (await push_workspace(workspace, git))[1]
    origin = tmp_path / "origin.git"
    assert run_git(origin, "show", f"{pushed.branch}:new") == "new"
    (tree / "more").write_text("more\n")
    assert (await inspect_repo(repo, git)).status == "changed"
    pushed = (await push_workspace(workspace, git))[1]
    assert run_git(origin, "show", f"{pushed.branch}:more") == "more"


async def test_a_branch_named_main_does_not_go_to_main(
    repo: ClonedRepo, git: Git, tmp_path: Path
) -> None:
    origin = tmp_path / "origin.git"
    before = run_git(origin, "rev-parse", "main")
    run_git(repo.path, "checkout", "-qb", "main")
    oid = commit(repo.path)
    run_git(repo.path, "checkout", "-q", "midwatch/s1")
    results = await push_workspace(open_workspace(tmp_path / "state"), git)
    assert (results[1].branch, results[1].commit) == ("midwatch/s1-main", oid)
    assert run_git(origin, "rev-parse", "main") == before


async def test_a_branch_of_somebody_else_is_not_pushed_to(
    repo: ClonedRepo, git: Git, tmp_path: Path
) -> None:
    """Also where it would be a fast-forward."""
    origin = tmp_path / "origin.git"
    run_git(origin, "branch", "midwatch/s1-fix/total", "main")
    _on_a_branch(repo.path)
    result = (await push_workspace(open_workspace(tmp_path / "state"), git))[1]
    assert isinstance(result.error, PushRejected)
    same = run_git(origin, "rev-parse", "midwatch/s1-fix/total")
    assert same == run_git(origin, "rev-parse", "main")


async def test_a_branch_that_was_rewritten_is_not_forced(
    repo: ClonedRepo, git: Git, tmp_path: Path
) -> None:
    _on_a_branch(repo.path)
    workspace = open_workspace(tmp_path / "state")
    first = (await push_workspace(workspace, git))[1]
    run_git(repo.path, "checkout", "-q", "fix/total")
    run_git(repo.path, "commit", "-q", "--amend", "-m", "rewritten")
    run_git(repo.path, "checkout", "-q", "midwatch/s1")
    second = (await push_workspace(workspace, git))[1]
    assert isinstance(second.error, PushRejected)
    assert "rewritten" in second.error.one_line()
    origin = tmp_path / "origin.git"
    assert run_git(origin, "rev-parse", first.branch) == first.commit
    assert (await inspect_repo(repo, git)).status == "changed"


async def test_what_is_not_work(repo: ClonedRepo, git: Git) -> None:
    """A branch without commits, a removed worktree, an amended commit, and what HEAD has too."""
    clone = repo.path
    run_git(clone, "branch", "same")
    run_git(clone, "worktree", "add", "-q", "../wt", "-b", "side")
    run_git(clone, "worktree", "remove", "../wt")
    assert (await inspect_repo(repo, git)).status == "clean"
    commit(clone)
    run_git(clone, "commit", "-q", "--amend", "-m", "better")
    run_git(clone, "branch", "copy")
    state = await inspect_repo(repo, git)
    assert state.other == () and state.commit_count == 1


async def test_a_broken_branch_does_not_hide_the_others(
    repo: ClonedRepo, git: Git, tmp_path: Path
) -> None:
    _on_a_branch(repo.path)
    (repo.path / ".git/refs/heads/broken").write_text("1" * 40 + "\n")
    state = await inspect_repo(repo, git)
    found = {item.label: item for item in state.other}
    assert found["branch broken"].problem and found["branch fix/total"].commits == 1
    results = await push_workspace(open_workspace(tmp_path / "state"), git)
    outcomes = {one.branch: one.outcome for one in results[1:]}
    assert outcomes == {
        "midwatch/s1-broken": "failed",
        "midwatch/s1-fix/total": "pushed",
    }


def _worktree_outside(clone: Path) -> None:
    outside = clone.parent.parent / "outside"
    run_git(clone, "worktree", "add", "-q", str(outside), "-b", "side")
    (outside / "secret").write_text("password\n")


def _worktree_of_a_folder_outside(clone: Path) -> None:
    """The agent only says that the folder is a worktree."""
    _in_files_of_a_worktree(clone)
    outside = clone.parent.parent / "outside"
    outside.mkdir()
    (outside / ".git").write_text("gitdir: x\n")
    (outside / "secret").write_text("password\n")
    (clone / ".git/worktrees/w1/gitdir").write_text(f"{outside}/.git\n")


def _worktree_behind_a_link(clone: Path) -> None:
    _worktree_of_a_folder_outside(clone)
    (clone.parent / "link").symlink_to(clone.parent.parent / "outside")
    (clone / ".git/worktrees/w1/gitdir").write_text(f"{clone.parent}/link/.git\n")


@pytest.mark.parametrize(
    "work", [_worktree_outside, _worktree_of_a_folder_outside, _worktree_behind_a_link]
)
async def test_a_worktree_outside_of_the_workspace_is_named_and_not_read(
    repo: ClonedRepo, git: Git, tmp_path: Path, work: Callable[[Path], None]
) -> None:
    work(repo.path)
    state = await inspect_repo(repo, git)
    assert state.status == "changed"
    assert any("outside of the workspace" in (o.problem or "") for o in state.other)
    assert not any("password" in diff.text for _, diff in await diffs_of(repo, git))
    results = await push_workspace(open_workspace(tmp_path / "state"), git)
    branches = run_git(tmp_path / "origin.git", "branch", "--format=%(refname)").split()
    for branch in branches:
        with pytest.raises(subprocess.CalledProcessError):
            run_git(tmp_path / "origin.git", "show", f"{branch}:secret")
    assert any(one.error is not None for one in results)


def _refs_is_a_link(clone: Path) -> None:
    (clone / ".git/refs").rename(clone.parent / "elsewhere")
    (clone / ".git/refs").symlink_to(clone.parent / "elsewhere")


def _stash_log_is_a_pipe(clone: Path) -> None:
    (clone / ".git/logs/refs").mkdir(parents=True, exist_ok=True)
    os.mkfifo(clone / ".git/logs/refs/stash")


def _worktree_without_a_head(clone: Path) -> None:
    (clone / ".git/worktrees/x").mkdir(parents=True)
    os.mkfifo(clone / ".git/worktrees/x/gitdir")


def _worktree_with_an_odd_path(clone: Path) -> None:
    _in_files_of_a_worktree(clone)
    (clone / ".git/worktrees/w1/gitdir").write_bytes(b"/a\0b/.git\n")


def _worktree_that_nobody_may_read(clone: Path) -> None:
    _in_files_of_a_worktree(clone)
    (clone / ".git/worktrees/w1").chmod(0)


def _odd_names(clone: Path) -> None:
    oid = run_git(clone, "rev-parse", "HEAD")
    heads = clone / ".git/refs/heads"
    (heads / "a\x1b[31m").write_text(f"{oid}\n")
    (heads / os.fsdecode(b"latin-\xe9")).write_text(f"{oid}\n")
    (heads / "--upload-pack=x").write_text(f"{oid}\n")
    (clone / ".git/packed-refs").write_text("not a ref\n\0\n")


@pytest.mark.parametrize(
    "damage",
    [
        _refs_is_a_link,
        _stash_log_is_a_pipe,
        _worktree_without_a_head,
        _worktree_with_an_odd_path,
        _worktree_that_nobody_may_read,
        _odd_names,
    ],
)
async def test_odd_refs_are_neither_followed_nor_waited_for(
    repo: ClonedRepo, git: Git, damage: Callable[[Path], None]
) -> None:
    damage(repo.path)
    state = await inspect_repo(repo, git)
    assert not any("\x1b" in item.name for item in state.other)


@pytest.mark.parametrize("place", [".claude/worktrees/w1", "../w1"])
@pytest.mark.parametrize("how", ["mv", "cp"])
async def test_a_worktree_that_is_moved_by_hand_is_not_taken_for_a_known_one(
    repo: ClonedRepo, git: Git, tmp_path: Path, place: str, how: str
) -> None:
    tree = repo.path / place
    run_git(repo.path, "worktree", "add", "-q", place, "-b", "side")
    move = ["mv"] if how == "mv" else ["cp", "-r"]
    subprocess.run([*move, str(tree), str(tree.with_name("other"))], check=True)
    (tree.with_name("other") / "new").write_text("new\n")
    workspace = open_workspace(tmp_path / "state")
    work = await unpushed_work(workspace.path, workspace.state, git)
    beside = "beside its repositories: other"
    assert (beside if place.startswith("..") else "1 file not inspected") in work


def _empty_ref(clone: Path) -> None:
    _on_a_branch(clone)
    (clone / ".git/refs/heads/fix/total").write_text("")


def _ref_is_a_pipe(clone: Path) -> None:
    os.mkfifo(clone / ".git/refs/heads/x")


def _worktree_without_a_commit(clone: Path) -> None:
    _in_files_of_a_worktree(clone)
    (clone / ".git/worktrees/w1/HEAD").write_text("garbage\n")


@pytest.mark.parametrize(
    "damage",
    [
        _refs_is_a_link,
        _empty_ref,
        _ref_is_a_pipe,
        _worktree_without_a_head,
        _worktree_without_a_commit,
    ],
)
async def test_refs_that_cannot_be_read_may_be_work(
    repo: ClonedRepo, git: Git, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(repo.path)
    state = await inspect_repo(repo, git)
    assert state.status == "changed" and state.problem is not None
    assert "cannot be read" in state.problem
    workspace = open_workspace(tmp_path / "state")
    assert state.problem in await unpushed_work(workspace.path, workspace.state, git)


@pytest.mark.parametrize("branch", ["\u200d", os.fsdecode(b"caf\xe9"), "x" * 230])
async def test_commits_on_an_odd_branch_that_is_checked_out(
    repo: ClonedRepo, git: Git, tmp_path: Path, branch: str
) -> None:
    run_git(repo.path, "checkout", "-qb", branch)
    oid = commit(repo.path)
    state = await inspect_repo(repo, git)
    assert (state.head, state.commit_count, state.problem) == (oid, 1, None)
    assert state.branch is not None and state.branch.isprintable()
    state.branch.encode()
    [result] = await push_workspace(open_workspace(tmp_path / "state"), git)
    assert (result.outcome, result.commit) == ("pushed", oid)


async def test_thousands_of_branches_are_counted_and_the_list_is_short(
    repo: ClonedRepo, git: Git
) -> None:
    tree = run_git(repo.path, "write-tree")
    head = run_git(repo.path, "rev-parse", "HEAD")
    data = "".join(
        f"commit refs/heads/b{n}\ncommitter a <a@example.com> {n} +0000\n"
        f"data 1\nx\nfrom {head}\n\n"
        for n in range(MAX_TIPS + 5)
    )
    assert tree
    run_git(repo.path, "fast-import", "--quiet", "--force", stdin=data.encode())
    state = await inspect_repo(repo, git)
    assert len(state.other) == MAX_LISTED and state.other_count == MAX_TIPS
    assert state.problem is not None and str(MAX_TIPS) in state.problem
    assert all(item.commits == 1 for item in state.other)


# ------------------------------------------------------------------ submodules


@pytest.fixture
async def outer(tmp_path: Path) -> Workspace:
    inner = make_repository(tmp_path / "inner.git", {"lib.c": "int x;\n"})
    origin = make_repository(tmp_path / "origin.git", {"f": "1\n"})
    work = tmp_path / "work"
    run_git(tmp_path, "clone", "-q", str(origin), str(work))
    add = ["submodule", "add", "-q", "../inner.git", "vendor/lib"]
    run_git(work, "-c", "protocol.file.allow=always", *add)
    run_git(work, "commit", "-qam", "add lib")
    run_git(work, "push", "-q", "origin", "HEAD:main")
    assert inner.exists()
    return await _cloned(tmp_path, origin, submodules=True)


async def test_files_of_a_submodule_are_told_and_not_pushed(
    outer: Workspace, git: Git
) -> None:
    [clean] = await inspect_workspace(outer, git)
    assert clean.status == "clean" and clean.submodules == ()
    sub = outer.repos[0].path / "vendor/lib"
    (sub / "lib.c").write_text("int y;\n")
    [state] = await inspect_workspace(outer, git)
    assert state.status == "changed" and state.files == ()
    [inside] = state.submodules
    assert inside.name == "origin/vendor/lib"
    assert [f.path for f in inside.files] == ["lib.c"]
    names = dict(await diffs_of(outer.repos[0], git))
    assert "+int y;" in names["origin/vendor/lib"].text
    first, second = await push_workspace(outer, git)
    assert first.outcome == "nothing"
    assert second.error is not None and "vendor/lib" in second.error.one_line()
    assert "vendor/lib" in await unpushed_work(outer.path, outer.state, git)


async def test_a_commit_of_a_submodule_goes_first(
    outer: Workspace, git: Git, tmp_path: Path
) -> None:
    clone = outer.repos[0].path
    sub = clone / "vendor/lib"
    made = commit(sub)
    run_git(clone, "add", "vendor/lib")
    run_git(clone, "commit", "-qm", "bump")
    [state] = await inspect_workspace(outer, git)
    assert state.submodules[0].commit_count == 1
    first, second = await push_workspace(outer, git)
    assert isinstance(first.error, PushRejected) and first.commit is None
    assert "vendor/lib" in first.error.one_line()
    assert "does not have it" in first.error.one_line() and second.error is not None
    branches = run_git(tmp_path / "origin.git", "branch", "--format=%(refname)")
    assert branches == "refs/heads/main"

    # Somebody pushes it by hand.
    run_git(sub, "push", "-q", str(tmp_path / "inner.git"), f"{made}:refs/heads/fix")
    [first] = await push_workspace(outer, git)
    assert first.outcome == "pushed", first.error
    assert (await inspect_workspace(outer, git))[0].status == "pushed"
    assert await unpushed_work(outer.path, outer.state, git) == ""


async def test_a_submodule_moved_to_a_commit_of_its_remote_is_no_obstacle(
    outer: Workspace, git: Git, tmp_path: Path
) -> None:
    newer = add_commit(tmp_path / "inner.git", {"lib.c": "int z;\n"}, "newer")
    clone = outer.repos[0].path
    fetch = ["-c", "protocol.file.allow=always", "fetch", "-q", "origin"]
    run_git(clone / "vendor/lib", *fetch)
    run_git(clone / "vendor/lib", "checkout", "-q", newer)
    run_git(clone, "commit", "-qam", "newer lib")
    result = (await push_workspace(outer, git))[0]
    assert result.outcome == "pushed", result.error


async def test_branches_and_stashes_of_a_submodule(outer: Workspace, git: Git) -> None:
    sub = outer.repos[0].path / "vendor/lib"
    run_git(sub, "checkout", "-qb", "fix")
    commit(sub)
    run_git(sub, "checkout", "-q", "-")
    [state] = await inspect_workspace(outer, git)
    assert [o.label for o in state.submodules[0].other] == ["branch fix"]
    assert "branch fix" in await unpushed_work(outer.path, outer.state, git)


async def test_a_repository_that_the_agent_added_as_a_submodule(
    outer: Workspace, git: Git
) -> None:
    """Without an URL that the clone had from the start, nothing is fetched and nothing is pushed."""
    clone = outer.repos[0].path
    nested = clone / "nested"
    nested.mkdir()
    run_git(nested, "init", "-q")
    commit(nested)
    modules = clone / ".gitmodules"
    evil = '[submodule "nested"]\n\tpath = nested\n\turl = ext::sh -c "touch canary"\n'
    modules.write_text(modules.read_text() + evil)
    run_git(clone, "add", "nested", ".gitmodules")
    run_git(clone, "commit", "-qm", "nested")
    [state] = await inspect_workspace(outer, git)
    assert state.status == "changed"
    result = (await push_workspace(outer, git))[0]
    assert result.error is not None and "nested" in result.error.one_line()
    assert not (clone / "canary").exists() and not Path("canary").exists()


@pytest.mark.parametrize("kind", ["file", "link"])
async def test_a_submodule_whose_git_is_elsewhere_is_not_read(
    outer: Workspace, git: Git, tmp_path: Path, kind: str
) -> None:
    clone = outer.repos[0].path
    (clone / "vendor/lib/lib.c").write_text("int y;\n")
    other = tmp_path / "private"
    run_git(tmp_path, "clone", "-q", str(tmp_path / "inner.git"), str(other))
    commit(other, "secret")
    (clone / "vendor/lib/.git").unlink()
    if kind == "file":
        (clone / "vendor/lib/.git").write_text(f"gitdir: {other}/.git\n")
    else:
        (clone / "vendor/lib/.git").symlink_to(other / ".git")
    [state] = await inspect_workspace(outer, git)
    assert state.status == "changed" and state.submodules[0].problem
    assert "vendor/lib" in await unpushed_work(outer.path, outer.state, git)
    assert not any(
        "secret" in diff.text for _, diff in await diffs_of(outer.repos[0], git)
    )


async def test_a_submodule_with_a_cut_history(tmp_path: Path, git: Git) -> None:
    make_repository(tmp_path / "inner.git", {"lib.c": "int x;\n"})
    add_commit(tmp_path / "inner.git", {"lib.c": "int z;\n"}, "newer")
    origin = make_repository(tmp_path / "origin.git", {"f": "1\n"})
    work = tmp_path / "work"
    run_git(tmp_path, "clone", "-q", str(origin), str(work))
    add = ["submodule", "add", "-q", "../inner.git", "lib"]
    run_git(work, "-c", "protocol.file.allow=always", *add)
    run_git(work, "commit", "-qam", "add lib")
    run_git(work, "push", "-q", "origin", "HEAD:main")
    workspace = await _cloned(tmp_path, origin, submodules=True)
    sub = workspace.repos[0].path / "lib"
    url = f"file://{tmp_path}/inner.git"
    run_git(sub, "-c", "protocol.file.allow=always", "fetch", "-q", "--depth=1", url)
    run_git(sub, "reflog", "expire", "--expire=now", "--all")
    run_git(sub, "gc", "-q", "--prune=now")
    assert run_git(sub, "rev-parse", "--is-shallow-repository") == "true"
    assert (await inspect_workspace(workspace, git))[0].status == "clean"
    commit(sub)
    [state] = await inspect_workspace(workspace, git)
    assert state.submodules[0].commit_count == 1 and state.submodules[0].problem is None


async def test_a_workspace_behind_a_link_of_its_owner(tmp_path: Path, git: Git) -> None:
    """Git writes real paths into worktrees; the workspace is named by another one."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    make_repository(tmp_path / "real/origin.git", {"f": "1\n"})
    workspace = await _cloned(tmp_path / "link", tmp_path / "real/origin.git")
    label = _in_files_of_a_worktree(workspace.repos[0].path)
    run_git(workspace.repos[0].path, "worktree", "add", "-q", "../wt", "-b", "two")
    [state] = await inspect_workspace(workspace, git)
    assert [(o.label, o.problem) for o in state.other] == [(label, None)]
    assert state.left_out == ()
    work = await unpushed_work(workspace.path, workspace.state, git)
    assert label in work and "beside" not in work


async def test_without_the_rest_only_commits_are_pushed(
    repo: ClonedRepo, git: Git
) -> None:
    _on_a_branch(repo.path)
    (repo.path / "f").write_text("2\n")
    result = await push_repo(repo, git, PushOptions(commit_rest=False))
    assert result.outcome == "nothing"
