"""Mirrors: shared safely, created again when broken, pruned without breaking a clone."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from midwatch.testing.fakes import add_commit, git_server, make_repository, run_git
from midwatch.workspace.git import Git
from midwatch.workspace.mirrors import Mirrors
from midwatch.workspace.refs import ask_remote, read_refs
from midwatch.workspace.setup import WorkspaceOptions, setup_workspace_async
from midwatch.workspace.urls import parse_remote

from ..waiting import PATIENCE

FILES = {"f": "1\n", "g": "text\n" * 2000}


async def clone(tmp_path: Path, number: int, *repos: Path | str) -> list[Path]:
    options = WorkspaceOptions(
        cache=tmp_path / "cache", state=tmp_path / f"state{number}"
    )
    urls = [str(repo) for repo in repos]
    return await setup_workspace_async(urls, tmp_path / f"ws{number}", options=options)


def packs(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache/mirrors").glob("*.git/objects/pack/*.pack"))


async def test_a_warm_mirror_transfers_nothing(tmp_path: Path) -> None:
    make_repository(tmp_path / "served/x.git", FILES)
    with git_server(tmp_path / "served") as server:
        url = f"{server.url}/x.git"
        await clone(tmp_path, 0, url)
        cold = len(server.requests)
        await clone(tmp_path, 1, url)
        warm = server.requests[cold:]
    assert len(warm) == 2 < cold  # only its refs are queried


async def test_branches_that_went_away_go_away(tmp_path: Path) -> None:
    repo = make_repository(tmp_path / "x.git", FILES)
    run_git(repo, "branch", "gone")
    await clone(tmp_path, 0, repo)
    run_git(repo, "branch", "-D", "gone")
    run_git(repo, "branch", "gone/deeper")
    [path] = await clone(tmp_path, 1, repo)
    branches = run_git(path, "branch", "-r", "--format=%(refname:short)").split()
    assert sorted(branches) == ["origin/gone/deeper", "origin/main"]


def _truncate(pack: Path) -> None:
    pack.chmod(0o644)
    os.truncate(pack, 50)


def _flip(pack: Path) -> None:
    """Corrupt a pack without changing its size."""
    data = bytearray(pack.read_bytes())
    data[12:-20] = bytes(b ^ 0x55 for b in data[12:-20])
    pack.chmod(0o644)
    pack.write_bytes(data)


def _remove(pack: Path) -> None:
    pack.unlink()


def _no_refs(pack: Path) -> None:
    mirror = pack.parents[2]
    (mirror / "packed-refs").unlink()
    (mirror / "config").write_text("[nonsense")
    (mirror / "HEAD").unlink()


@pytest.mark.parametrize("damage", [_truncate, _flip, _remove, _no_refs])
async def test_a_broken_mirror_is_created_again(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    repo = make_repository(tmp_path / "x.git", FILES)
    await clone(tmp_path, 0, repo)
    damage(packs(tmp_path)[0])
    [path] = await clone(tmp_path, 1, repo)
    assert (path / "f").read_text() == "1\n"
    assert run_git(path, "fsck", "--full") == ""


SESSION = """
import sys
from pathlib import Path
from midwatch.workspace.setup import WorkspaceOptions, setup_workspace
root, number = Path(sys.argv[1]), sys.argv[2]
options = WorkspaceOptions(cache=root / "cache", state=root / f"p{number}")
[path] = setup_workspace([str(root / "x.git")], root / f"pw{number}", options=options)
assert (path / "g").read_text() == "text\\n" * 2000
"""


async def test_sessions_and_processes_at_once_make_one_mirror(tmp_path: Path) -> None:
    repo = make_repository(tmp_path / "x.git", FILES)
    others = [
        subprocess.Popen([sys.executable, "-c", SESSION, str(tmp_path), str(n)])
        for n in range(2)
    ]
    done = await asyncio.gather(*(clone(tmp_path, n, repo) for n in range(4)))
    assert [other.wait(PATIENCE) for other in others] == [0, 0]
    assert all((path / "f").read_text() == "1\n" for [path] in done)
    assert len(list((tmp_path / "cache/mirrors").glob("*.git"))) == 1
    assert list((tmp_path / "cache/mirrors/trash").glob("*")) == []


async def test_sessions_while_the_remote_moves_on(tmp_path: Path) -> None:
    repo = make_repository(tmp_path / "x.git", FILES)
    await clone(tmp_path, 99, repo)

    async def commits() -> None:
        for number in range(5):
            await asyncio.to_thread(add_commit, repo, {"f": f"{number}\n"}, "more")

    async def clones(number: int) -> str:
        [path] = await clone(tmp_path, number, repo)
        return run_git(path, "fsck", "--connectivity-only", "HEAD")

    *fscks, _ = await asyncio.gather(*(clones(n) for n in range(3)), commits())
    assert fscks == ["", "", ""]


async def test_pruning_takes_the_least_used_and_breaks_no_clone(tmp_path: Path) -> None:
    repos = [make_repository(tmp_path / f"{n}.git", FILES) for n in "abc"]
    for number, repo in enumerate(repos):
        [path] = await clone(tmp_path, number, repo)
        url = str(repo)
        for found in (tmp_path / "cache/mirrors").glob("*.git"):
            if url in (found / "midwatch.json").read_text():
                os.utime(found / "midwatch.json", (1000 + number, 1000 + number))
    git = Git()
    mirrors = Mirrors(tmp_path / "cache/mirrors", git)
    listed = mirrors.listed()
    assert [Path(m.url).name for m in listed] == ["c.git", "b.git", "a.git"]
    assert all(m.size > 0 for m in listed)

    remote = parse_remote(str(repos[0]))
    async with mirrors.reading(remote, await ask_remote(git, remote, None)) as held:
        os.utime(held / "midwatch.json", (1000, 1000))
        keep = listed[0].size + 10
        removed = mirrors.prune(keep)
        assert [Path(m.url).name for m in removed] == ["b.git", "c.git"]
        assert read_refs(held)
    assert [m.url for m in mirrors.prune()] == [str(repos[0])]
    for number in range(3):
        [path] = (tmp_path / f"ws{number}").iterdir()
        assert run_git(path, "fsck", "--full") == ""
        trusted = next((tmp_path / f"state{number}").glob("*.git"))
        assert run_git(trusted, "fsck", "--full") == ""


async def test_the_size_of_all_mirrors_is_bounded(tmp_path: Path) -> None:
    for number in range(3):
        repo = make_repository(
            tmp_path / f"{number}.git", {"f": os.urandom(50_000).hex()}
        )
        options = WorkspaceOptions(
            cache=tmp_path / "cache",
            state=tmp_path / f"s{number}",
            mirror_bytes=100_000,
        )
        await setup_workspace_async(
            [str(repo)], tmp_path / f"w{number}", options=options
        )
    [left] = Mirrors(tmp_path / "cache/mirrors", Git()).listed()
    assert left.url == str(tmp_path / "2.git")


async def test_many_fetches_do_not_pile_up_packs(tmp_path: Path) -> None:
    repo = make_repository(tmp_path / "x.git", FILES)
    git, remote = Git(), parse_remote(str(repo))
    mirrors = Mirrors(tmp_path / "mirrors", git)
    for number in range(16):
        add_commit(repo, {"f": f"{number}\n"}, "more")
        async with mirrors.reading(remote, await ask_remote(git, remote, None)) as held:
            count = len(list(held.glob("objects/pack/*.pack")))
            assert count <= 13
            assert not [p for p in held.glob("objects/*") if len(p.name) == 2]
