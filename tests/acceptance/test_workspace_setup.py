"""Set up a workspace, all clones or none."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from midwatch.errors import NotFound
from midwatch.testing.fakes import add_commit, make_repository, run_git
from midwatch.workspace.environment import GitEnvironment
from midwatch.workspace.errors import (
    GitFailed,
    NoSuchBranch,
    RepositoryNotFound,
    WorkspaceExists,
    WorkspaceNotWritable,
    WorkspaceRefused,
)
from midwatch.workspace.git import Git, Progress
from midwatch.workspace.inspect import inspect_workspace
from midwatch.workspace.plan import RepoSpec
from midwatch.workspace.record import open_workspace
from midwatch.workspace.setup import (
    WorkspaceOptions,
    setup_workspace,
    setup_workspace_async,
)

from ..waiting import PATIENCE


@pytest.fixture
def options(tmp_path: Path) -> WorkspaceOptions:
    return WorkspaceOptions(
        cache=tmp_path / "cache", state=tmp_path / "state", session="s1"
    )


def git_alone(folder: Path) -> GitEnvironment:
    """Git without git-lfs, which the machine may have beside it."""
    folder.mkdir()
    for name in ("git", "sh"):
        program = shutil.which(name)
        assert program is not None
        (folder / name).symlink_to(program)
    return GitEnvironment(path=str(folder))


def files_under(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def test_clones_side_by_side_in_order(
    tmp_path: Path, options: WorkspaceOptions
) -> None:
    one = make_repository(tmp_path / "a/x.git", {"a.txt": "a\n", "s p/ü.txt": "u\n"})
    two = make_repository(tmp_path / "b b/x.git", {"b.txt": "b\n"})
    run_git(two, "branch", "dev")
    add_commit(two, {"b.txt": "dev\n"}, "on dev", branch="dev")
    seen: list[Progress] = []

    specs = [str(one), RepoSpec(f"file://{two}", branch="dev")]
    paths = setup_workspace(
        specs, tmp_path / "ws", options=options, on_progress=seen.append
    )

    assert [path.name for path in paths] == ["a-x", "b-b-x"]
    assert (paths[0] / "s p/ü.txt").read_text() == "u\n"
    assert (paths[1] / "b.txt").read_text() == "dev\n"
    for path in paths:
        assert run_git(path, "status", "--porcelain") == ""
        assert run_git(path, "branch", "--show-current") == "midwatch/s1"
        assert run_git(path, "config", "user.name") == "Midwatch"
        assert run_git(path, "fsck", "--strict") == ""
    assert run_git(paths[1], "config", "remote.origin.url").startswith("file://")
    assert run_git(paths[1], "rev-parse", "origin/main", "origin/dev")
    assert {event.phase for event in seen} >= {"asking", "done"}
    assert files_under(tmp_path / "ws") >= {"a-x", "b-b-x"}
    assert not [name for name in files_under(tmp_path / "ws") if ".midwatch" in name]


def test_the_newest_commit_comes_through_a_warm_mirror(
    tmp_path: Path, options: WorkspaceOptions
) -> None:
    repo = make_repository(tmp_path / "x.git", {"f": "1\n"})
    setup_workspace([str(repo)], tmp_path / "w0", options=options)
    add_commit(repo, {"f": "2\n"}, "second")
    again = WorkspaceOptions(cache=options.cache, session="s2")
    [path] = setup_workspace([str(repo)], tmp_path / "w1", options=again)
    assert (path / "f").read_text() == "2\n"


def test_tag_depth_blobless_and_empty(
    tmp_path: Path, options: WorkspaceOptions
) -> None:
    repo = make_repository(tmp_path / "x.git", {"f": "1\n", "g": "old\n"})
    run_git(repo, "config", "uploadpack.allowFilter", "true")
    run_git(repo, "tag", "-a", "-m", "first", "v1", "main")
    add_commit(repo, {"f": "2\n", "g": "new\n"}, "second")
    empty = make_repository(tmp_path / "empty.git")
    specs = [
        RepoSpec(str(repo), name="tag", tag="v1"),
        RepoSpec(str(repo), name="shallow", depth=1),
        RepoSpec(str(repo), name="blobless", blobless=True),
        RepoSpec(str(empty)),
    ]
    tag, shallow, blobless, nothing = setup_workspace(
        specs, tmp_path / "ws", options=options
    )
    assert (tag / "f").read_text() == "1\n"
    assert run_git(shallow, "rev-list", "--count", "HEAD") == "1"
    assert run_git(blobless, "rev-list", "--count", "HEAD") == "2"
    missing = run_git(blobless, "rev-list", "--all", "--objects", "--missing=print")
    assert "?" in missing and (blobless / "g").read_text() == "new\n"
    assert run_git(nothing, "branch", "--show-current") == "midwatch/s1"

    for path in (tag, shallow, blobless, nothing):
        (path / "f").write_text("mine\n")
        run_git(path, "add", "f")
        run_git(path, "commit", "-qm", "mine")
    found = open_workspace(tmp_path / "state")
    states = asyncio.run(inspect_workspace(found, Git()))
    assert [s.problem for s in states] == [None] * 4
    assert [(s.commit_count, s.added, s.removed) for s in states] == [
        (1, 1, 1),
        (1, 1, 1),
        (1, 1, 1),
        (1, 1, 0),
    ]


@pytest.mark.parametrize(
    ("spec", "kind", "said"),
    [
        (RepoSpec("{good}", name="b", branch="nope"), NoSuchBranch, "nope"),
        (RepoSpec("{good}", name="b", branch="v1"), NoSuchBranch, "tag"),
        (RepoSpec("{good}", name="b", tag="v9"), NoSuchBranch, "v9"),
        (RepoSpec("{good}-not"), RepositoryNotFound, "good.git-not"),
        (RepoSpec("{empty}", branch="main"), NoSuchBranch, "main"),
        (RepoSpec("{good}", name="b", lfs=True), GitFailed, "git-lfs"),
    ],
)
async def test_one_failure_leaves_nothing_and_is_named(
    tmp_path: Path,
    options: WorkspaceOptions,
    spec: RepoSpec,
    kind: type[Exception],
    said: str,
) -> None:
    good = make_repository(tmp_path / "good.git", {"f": "1\n"})
    run_git(good, "tag", "v1", "main")
    empty = make_repository(tmp_path / "empty.git")
    url = spec.url.format(good=good, empty=empty)
    bad = RepoSpec(url, spec.branch, spec.tag, spec.name, lfs=spec.lfs)
    workspace = tmp_path / "deep/ws"
    options = replace(options, environment=git_alone(tmp_path / "programs"))
    with pytest.raises(kind) as caught:
        await setup_workspace_async([str(good), bad], workspace, options=options)
    assert url in str(caught.value) and said in str(caught.value)
    assert not (tmp_path / "deep").exists() and not (tmp_path / "state").exists()


async def test_what_was_there_stays(tmp_path: Path, options: WorkspaceOptions) -> None:
    good = make_repository(tmp_path / "good.git", {"f": "1\n"})
    workspace = tmp_path / "ws"
    (workspace / "notes").mkdir(parents=True)
    (workspace / "notes/mine.txt").write_text("mine")
    before = files_under(workspace)
    with pytest.raises(NoSuchBranch):
        bad = RepoSpec(str(good), branch="nope")
        await setup_workspace_async([bad], workspace, options=options)
    assert files_under(workspace) == before
    for name in ("notes", "NOTES"):
        with pytest.raises(WorkspaceExists):
            spec = RepoSpec(str(good), name=name)
            await setup_workspace_async([spec], workspace, options=options)
    assert files_under(workspace) == before
    with pytest.raises(WorkspaceExists):
        note = workspace / "notes/mine.txt"
        await setup_workspace_async([str(good)], note, options=options)
    inside = WorkspaceOptions(cache=tmp_path / "cache", state=workspace / "state")
    with pytest.raises(WorkspaceRefused):
        await setup_workspace_async([str(good)], workspace, options=inside)


async def test_attaching_again_keeps_the_work(
    tmp_path: Path, options: WorkspaceOptions
) -> None:
    good = make_repository(tmp_path / "good.git", {"f": "1\n"})
    other = make_repository(tmp_path / "other.git", {"f": "1\n"})
    with pytest.raises(NotFound):
        open_workspace(tmp_path / "state")
    [path] = await setup_workspace_async([str(good)], tmp_path / "ws", options=options)
    (path / "f").write_text("work\n")
    assert await setup_workspace_async(
        [str(good)], tmp_path / "ws", options=options
    ) == [path]
    assert (path / "f").read_text() == "work\n"
    with pytest.raises(WorkspaceExists):
        await setup_workspace_async([str(other)], tmp_path / "ws", options=options)


async def test_what_cannot_be_written_or_read_is_typed(
    tmp_path: Path, options: WorkspaceOptions
) -> None:
    good = make_repository(tmp_path / "good.git", {"f": "1\n"})
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceNotWritable):
        below = WorkspaceOptions(cache=tmp_path / "file/cache", state=options.state)
        await setup_workspace_async([str(good)], tmp_path / "ws", options=below)
    assert not (tmp_path / "ws").exists() and not (tmp_path / "state").exists()
    (tmp_path / "state").mkdir()
    (tmp_path / "state/workspace.json").write_text("{")
    with pytest.raises(WorkspaceExists):
        await setup_workspace_async([str(good)], tmp_path / "ws", options=options)


KILLED = """
import os, sys
from midwatch.workspace.setup import WorkspaceOptions, setup_workspace
from pathlib import Path
from typing import Any
root, when = Path(sys.argv[1]), sys.argv[2]
def killing(real):
    def rename(self, target):
        if when in str(target):
            os._exit(9)
        return real(self, target)
    return rename
Path.rename, Path.replace = killing(Path.rename), killing(Path.replace)
options = WorkspaceOptions(cache=root / "cache", state=root / "state", session="s1")
setup_workspace([str(root / "a.git"), str(root / "b.git")], root / "ws", options=options)
"""


@pytest.mark.parametrize("when", ["ws/b", "/state", "mirrors/"])
async def test_a_killed_set_up_is_finished_or_begun_again(
    tmp_path: Path, options: WorkspaceOptions, when: str
) -> None:
    for name in ("a", "b"):
        make_repository(tmp_path / f"{name}.git", {"f": f"{name}\n"})
    target = f"{tmp_path}/{when.strip('/')}" if when != "mirrors/" else "cache/mirrors/"
    script = [sys.executable, "-c", KILLED, str(tmp_path), target]
    killed = subprocess.run(script, capture_output=True, timeout=PATIENCE)
    assert killed.returncode == 9, killed.stderr.decode()
    repos = [str(tmp_path / "a.git"), str(tmp_path / "b.git")]
    paths = await setup_workspace_async(repos, tmp_path / "ws", options=options)
    assert [(path / "f").read_text() for path in paths] == ["a\n", "b\n"]
    left = [
        p for p in tmp_path.rglob("*") if ".midwatch-" in p.name or ".new-" in p.name
    ]
    assert left == []


# ------------------------------------------------------------------ as people write them

AS_PEOPLE_WRITE_IT = """
import os, sys
from pathlib import Path
from typing import Any
from midwatch import RepoSpec, WorkspaceOptions, setup_workspace

options = WorkspaceOptions(cache=Path("cache"), state=Path("state"))
repos = [
    {"url": "file://" + os.path.abspath("app"), "branch": "dev"},
    RepoSpec("lib", branch="main"),
    "tool@dev",
    "file://" + os.path.abspath("more") + "@dev",
]
paths = setup_workspace(repos, "ws", main_repo_index=int(sys.argv[1]), chdir=True, options=options)
print(*(path.name for path in paths), os.getcwd() == str(paths[int(sys.argv[1])]), sorted(os.listdir()))
"""


@pytest.mark.parametrize("main", [0, 2])
def test_a_script_clones_and_works_in_the_main_repository(
    tmp_path: Path, main: int
) -> None:
    for name in ("app", "lib", "tool", "more"):
        remote = make_repository(tmp_path / name, {"main.txt": "m\n"})
        run_git(remote, "branch", "dev")
        add_commit(remote, {f"{name}.txt": "d\n"}, "on dev", branch="dev")
    for _ in range(2):  # the second finds the workspace as it is
        done = subprocess.run(
            [sys.executable, "-c", AS_PEOPLE_WRITE_IT, str(main)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        own = ["app", "lib", "tool", "more"][main]
        files = sorted([".git", f"{own}.txt", "main.txt"])
        assert done.stdout == f"app lib tool more True {files}\n", done.stderr
    assert (tmp_path / "ws/more/more.txt").exists()
    assert not (tmp_path / "ws/lib/lib.txt").exists()


async def test_the_working_directory_changes_only_on_request(
    tmp_path: Path, options: WorkspaceOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = make_repository(tmp_path / "app", {"a.txt": "a\n"})
    monkeypatch.chdir(tmp_path)
    [path] = await setup_workspace_async([str(remote)], "ws", options=options)
    assert Path.cwd() == tmp_path
    with pytest.raises(WorkspaceRefused):
        await setup_workspace_async([3], "other", chdir=True, options=options)  # type: ignore[list-item]
    assert Path.cwd() == tmp_path
    await setup_workspace_async([str(remote)], "ws", chdir=True, options=options)
    assert Path.cwd() == path


@pytest.mark.parametrize("workspace", [None, 3, "", " ", b"ws", "a\0b"])
def test_what_is_not_a_folder_is_refused(workspace: Any) -> None:
    with pytest.raises(WorkspaceRefused, match="not a folder") as refused:
        setup_workspace(["https://h/a/app"], workspace)
    assert refused.value.hint == "give the path of a folder"
