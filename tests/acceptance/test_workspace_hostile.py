"""After an agent has worked in a clone: what it planted does not run, and its changes are found."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from midwatch.testing.fakes import make_repository, run_git
from midwatch.workspace.git import Git, GitLimits
from midwatch.workspace.inspect import diff_of, inspect_repo
from midwatch.workspace.plan import RepoSpec
from midwatch.workspace.push import push_repo
from midwatch.workspace.record import ClonedRepo, open_workspace
from midwatch.workspace.setup import WorkspaceOptions, setup_workspace_async
from midwatch.workspace.snapshot import pointer_of

from ..waiting import PATIENCE

FILES = {
    "README.md": "one\ntwo\n",
    "src/app.py": "print(1)\n",
    "data.bin": "x" * 100,
    "old.txt": "old\n",
}


@pytest.fixture
def git() -> Git:
    return Git(limits=GitLimits(attempts=1, local_seconds=PATIENCE))


@pytest.fixture
async def repo(tmp_path: Path) -> ClonedRepo:
    return await _cloned(tmp_path)


async def _cloned(tmp_path: Path) -> ClonedRepo:
    origin = make_repository(tmp_path / "origin.git", FILES)
    options = WorkspaceOptions(
        cache=tmp_path / "cache", state=tmp_path / "state", session="s1"
    )
    await setup_workspace_async([str(origin)], tmp_path / "ws", options=options)
    return open_workspace(tmp_path / "state").repos[0]


def _script(tmp_path: Path) -> tuple[Path, Path]:
    """Write a program that writes a canary when it runs, and works as a filter."""
    canary = tmp_path / "canary"
    script = tmp_path / "evil.sh"
    script.write_text(f'#!/bin/sh\necho "$0 $@" >> {canary}\ncat\n')
    script.chmod(0o755)
    return script, canary


def plant(clone: Path, script: Path) -> None:
    """Plant a program in every known place that git runs one from."""
    settings = {
        "core.fsmonitor": str(script),
        "core.fsmonitorHookVersion": "1",
        "core.sshCommand": str(script),
        "core.pager": str(script),
        "core.editor": str(script),
        "core.askPass": str(script),
        "core.gitProxy": str(script),
        "core.alternateRefsCommand": str(script),
        "credential.helper": f"!{script}",
        "filter.evil.clean": str(script),
        "filter.evil.smudge": str(script),
        "filter.evil.process": str(script),
        "filter.lfs.clean": str(script),
        "filter.lfs.process": str(script),
        "diff.evil.textconv": str(script),
        "diff.evil.command": str(script),
        "diff.external": str(script),
        "merge.evil.driver": str(script),
        "gpg.program": str(script),
        "log.showSignature": "true",
        "uploadpack.packObjectsHook": str(script),
        "alias.status": f"!{script}",
        "alias.read-tree": f"!{script}",
        "remote.origin.uploadpack": str(script),
        "remote.origin.receivepack": str(script),
        "remote.origin.vcs": "ext",
        "remote.origin.promisor": "true",
        "extensions.partialclone": "origin",
        "core.repositoryformatversion": "1",
        "protocol.ext.allow": "always",
        "url.ext::sh -c evil.insteadOf": "file://",
    }
    extra = clone.parent / "included"
    config = (clone / ".git/config").read_text()
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        first, _, rest = section.partition(".")
        heading = f'{first} "{rest}"' if rest else first
        config += f'[{heading}]\n\t{name} = "{value}"\n'
    (clone / ".git/config").write_text(
        config + f"[include]\n\tpath = {extra}\n[core]\n\thooksPath = .hooks\n"
    )
    extra.write_text(f"[core]\n\tfsmonitor = {script}\n")
    for folder in (clone / ".git/hooks", clone / ".hooks"):
        folder.mkdir(exist_ok=True)
        for hook in ("pre-commit", "post-checkout", "pre-push", "post-index-change"):
            (folder / hook).write_bytes(script.read_bytes())
            (folder / hook).chmod(0o755)
    (clone / ".gitattributes").write_text("* filter=evil diff=evil merge=evil\n")
    (clone / ".git/info/attributes").write_text("* filter=evil diff=evil\n")


def test_the_plants_do_run_in_a_careless_git(repo: ClonedRepo, tmp_path: Path) -> None:
    """Otherwise the tests below could not fail."""
    script, canary = _script(tmp_path)
    plant(repo.path, script)
    os.utime(repo.path / "README.md", (1, 1))
    with contextlib.suppress(subprocess.CalledProcessError):
        run_git(repo.path, "diff", "HEAD")
    assert canary.exists()


async def test_nothing_planted_runs_and_all_changes_are_seen(
    repo: ClonedRepo, tmp_path: Path, git: Git
) -> None:
    (repo.path / "src/app.py").write_text("print(2)\nprint(3)\n")
    run_git(repo.path, "commit", "-qam", "made by the agent")
    (repo.path / "README.md").write_text("one\nthree\nfour\n")
    (repo.path / "old.txt").unlink()
    (repo.path / "new.txt").write_text("new\n")
    script, canary = _script(tmp_path)
    plant(repo.path, script)
    nested = repo.path / "nested"
    nested.mkdir()
    run_git(nested, "init", "-q")
    (nested / "f").write_text("f")
    run_git(nested, "add", "f")
    run_git(nested, "commit", "-qm", "inner")
    plant(nested, script)

    state = await inspect_repo(repo, git)
    diff = await diff_of(repo, git)
    pushed = await push_repo(repo, git)

    assert not canary.exists()
    assert state.problem is None and state.status == "changed"
    assert state.commit_count == 1
    assert state.commits[0].subject == "made by the agent"
    lines = {f.path: (f.kind, f.added, f.removed) for f in state.files}
    assert lines["src/app.py"] == ("changed", 2, 1)
    assert lines["README.md"] == ("changed", 2, 1)
    assert lines["old.txt"] == ("deleted", 0, 1)
    assert lines["new.txt"] == ("added", 1, 0)
    assert "nested/" in state.left_out and "nested/f" not in lines
    assert "+print(3)" in diff.text and "+new" in diff.text
    # The nested repository cannot be committed: it is reported, not skipped.
    assert pushed.error is not None and "nested" in pushed.error.one_line()


async def test_a_hostile_submodule_is_not_entered(tmp_path: Path, git: Git) -> None:
    inner = make_repository(tmp_path / "inner.git", {"lib.c": "int x;\n"})
    origin = make_repository(tmp_path / "origin.git", FILES)
    work = tmp_path / "work"
    run_git(tmp_path, "clone", "-q", str(origin), str(work))
    add = ["submodule", "add", "-q", str(inner), "lib"]
    run_git(work, "-c", "protocol.file.allow=always", *add)
    run_git(work, "commit", "-qam", "add lib")
    run_git(work, "push", "-q", "origin", "HEAD:main")
    options = WorkspaceOptions(cache=tmp_path / "cache", state=tmp_path / "state")
    spec = RepoSpec(str(origin), submodules=True)
    await setup_workspace_async([spec], tmp_path / "ws", options=options)
    repo = open_workspace(tmp_path / "state").repos[0]
    assert (repo.path / "lib/lib.c").read_text() == "int x;\n"

    script, canary = _script(tmp_path)
    config = repo.path / ".git/modules/lib/config"
    config.write_text(config.read_text() + f"[core]\n\tfsmonitor = {script}\n")
    (repo.path / "lib/lib.c").write_text("int y;\n")
    (repo.path / "README.md").write_text("changed\n")

    state = await inspect_repo(repo, git)
    assert not canary.exists()
    assert [f.path for f in state.files] == ["README.md"]
    run_git(repo.path, "status")
    assert canary.exists(), "the plant would have run"


def _git_file(clone: Path) -> None:
    (clone / ".git").rename(clone.parent / "elsewhere")
    (clone / ".git").write_text(f"gitdir: {clone.parent / 'elsewhere'}\n")


def _git_link(clone: Path) -> None:
    (clone / ".git").rename(clone.parent / "elsewhere")
    (clone / ".git").symlink_to(clone.parent / "elsewhere")


def _no_git(clone: Path) -> None:
    (clone / ".git").rename(clone.parent / "elsewhere")


def _pipe_for_head(clone: Path) -> None:
    (clone / ".git/HEAD").unlink()
    os.mkfifo(clone / ".git/HEAD")


def _head_out_of_the_folder(clone: Path) -> None:
    (clone / ".git/HEAD").write_text("ref: refs/heads/../../../../../etc/passwd\n")


def _link_for_objects(clone: Path) -> None:
    _commit_something(clone)
    (clone / ".git/objects").rename(clone.parent / "objects")
    (clone / ".git/objects").symlink_to(clone.parent / "objects")


def _commit_without_objects(clone: Path) -> None:
    (clone / ".git/HEAD").write_text("1" * 40 + "\n")


def _objects_only_in_an_alternate(clone: Path) -> None:
    other = clone.parent / "other"
    run_git(clone.parent, "clone", "-q", str(clone), str(other))
    _commit_something(other)
    oid = run_git(other, "rev-parse", "HEAD")
    (clone / ".git/objects/info/alternates").write_text(f"{other}/.git/objects\n")
    (clone / ".git/HEAD").write_text(f"{oid}\n")


def _a_commit_that_lies_about_its_content(clone: Path) -> None:
    _commit_something(clone)
    oid = run_git(clone, "rev-parse", "HEAD:secret.txt")
    (clone / "secret.txt").unlink()  # otherwise the file would supply the object
    false = run_git(clone, "hash-object", "-w", "--stdin", stdin=b"something else\n")
    objects = clone / ".git/objects"
    target = objects / oid[:2] / oid[2:]
    target.unlink()
    target.write_bytes((objects / false[:2] / false[2:]).read_bytes())


def _commit_something(clone: Path) -> None:
    (clone / "secret.txt").write_text("hello\n")
    run_git(clone, "add", "secret.txt")
    run_git(clone, "commit", "-qm", "more")


@pytest.mark.parametrize(
    "damage",
    [
        _git_file,
        _git_link,
        _no_git,
        _pipe_for_head,
        _head_out_of_the_folder,
        _link_for_objects,
        _commit_without_objects,
        _objects_only_in_an_alternate,
        _a_commit_that_lies_about_its_content,
    ],
)
async def test_a_replaced_git_is_a_problem_and_the_files_are_still_compared(
    repo: ClonedRepo, git: Git, damage: Callable[[Path], None]
) -> None:
    damage(repo.path)
    (repo.path / "README.md").write_text("one\n")
    state = await inspect_repo(repo, git)
    assert state.problem is not None and state.status == "changed"
    assert ("README.md", 0, 1) in [(f.path, f.added, f.removed) for f in state.files]
    result = await push_repo(repo, git)
    assert result.outcome == "failed" and result.error is not None


async def test_odd_files_are_not_followed_and_do_not_hang(
    repo: ClonedRepo, git: Git, tmp_path: Path
) -> None:
    secret = tmp_path / "private"
    secret.mkdir()
    (secret / "app.py").write_text("password\n")
    (repo.path / "data.bin").unlink()
    os.mkfifo(repo.path / "data.bin")
    os.mkfifo(repo.path / "pipe")
    (repo.path / "old.txt").unlink()
    (repo.path / "old.txt").mkdir()
    (repo.path / "old.txt/inside").write_text("in\n")
    (repo.path / "src").rename(tmp_path / "src")
    (repo.path / "src").symlink_to(secret)
    (repo.path / "weird\x1b[31m name\n").write_text("a\n")
    (repo.path / os.fsdecode(b"latin-\xe9")).write_text("b\n")
    big = repo.path / "big"
    big.write_bytes(b"\0" * 6_000_000)

    state = await inspect_repo(repo, git)
    diff = await diff_of(repo, git)
    found = {f.path: f.kind for f in state.files}
    assert found["data.bin"] == "deleted" and found["old.txt"] == "deleted"
    assert found["old.txt/inside"] == "added" and found["src"] == "added"
    assert "password" not in diff.text
    assert "\x1b" not in diff.text and not any("\x1b" in path for path in found)
    assert state.left_out == ("big",)


async def test_a_pipe_that_git_would_read_does_not_hold_us_up(
    repo: ClonedRepo,
) -> None:
    os.mkfifo(repo.path / ".gitignore")
    impatient = Git(limits=GitLimits(local_seconds=4))
    state = await inspect_repo(repo, impatient)
    assert state.status == "changed" and "compared" in (state.problem or "")


async def test_a_folder_replaced_by_a_link_is_not_entered(
    repo: ClonedRepo, git: Git, tmp_path: Path
) -> None:
    other = tmp_path / "home"
    other.mkdir()
    (other / "key").write_text("private\n")
    repo.path.rename(tmp_path / "away")
    repo.path.symlink_to(other)
    state = await inspect_repo(repo, git)
    assert state.problem is not None
    assert "key" not in [f.path for f in state.files]


async def test_an_agent_cannot_write_into_the_mirror_through_its_clone(
    repo: ClonedRepo, tmp_path: Path
) -> None:
    """A hard link would be the same file, outside of a sandbox that allows the workspace."""
    ours = {
        (f.stat().st_dev, f.stat().st_ino)
        for place in (tmp_path / "cache", tmp_path / "state")
        for f in place.rglob("*")
        if f.is_file()
    }
    theirs = [f for f in repo.path.rglob("*") if stat.S_ISREG(f.lstat().st_mode)]
    assert theirs and not any(
        (f.stat().st_dev, f.stat().st_ino) in ours for f in theirs
    )
    assert not (repo.path / ".git/objects/info/alternates").exists()


async def test_lfs_content_is_compared_by_its_pointer(tmp_path: Path, git: Git) -> None:
    content = tmp_path / "content"
    content.write_text("large\n")
    pointer = pointer_of(content).decode()
    files = {".gitattributes": "*.big filter=lfs diff=lfs -text\n", "a.big": pointer}
    origin = make_repository(tmp_path / "origin.git", files)
    options = WorkspaceOptions(cache=tmp_path / "cache", state=tmp_path / "state")
    await setup_workspace_async([str(origin)], tmp_path / "ws", options=options)
    repo = open_workspace(tmp_path / "state").repos[0]
    (repo.path / "a.big").write_text("large\n")
    assert (await inspect_repo(repo, git)).status == "clean"
    (repo.path / "a.big").write_text("other\n")
    assert [f.path for f in (await inspect_repo(repo, git)).files] == ["a.big"]
    pushed = await push_repo(repo, git)
    assert pushed.error is not None and "LFS" in pushed.error.one_line()
