"""Set up a workspace of five repositories of some 50 MB from warm mirrors.

Floors: `git clone` of the same five one after the other, and `git worktree add` of them. Unlike these,
the setup queries every remote for its newest commit, and gives every clone objects of its own.

It runs in memory if there is space: on ext4, creating a file takes 20 times longer for half a minute
after many files were removed by any process, which would be most of the measured time.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from midwatch.workspace.setup import WorkspaceOptions, setup_workspace_async

from ._meter import Cost, Meter
from .report import Row, compared, sized, turns

REPOSITORIES = 5
COMMITS = sized(1500, 100)
FILES_PER_COMMIT = 15
BLOB_BYTES = 2000
FILES = 900
ROUNDS = 3
MEMORY = Path("/dev/shm")
NEEDED_BYTES = 4_000_000_000
_ENV = {
    "PATH": os.defpath + ":/usr/local/bin",
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
}


async def run() -> Sequence[Row]:
    """Return the ratios, from medians of rounds in which the three take turns."""
    with tempfile.TemporaryDirectory(dir=_in_memory()) as name:
        return await _measured(Path(name))


def _in_memory() -> Path | None:
    """Return a file system in memory with space for all rounds, or None."""
    has_space = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > NEEDED_BYTES
    return MEMORY if has_space else None


async def _measured(root: Path) -> list[Row]:
    repos = _make_repositories(root)
    bases = [_linked(repo, root / "bases" / repo.name) for repo in repos]
    await _setup(root, repos, "warm-up")
    numbers = itertools.count()
    # No file is removed in between: see above.
    samples = await turns(
        {
            "setup": lambda: _setup(root, repos, str(next(numbers))),
            "git clone, one by one": lambda: _clones(root, repos, next(numbers)),
            "git worktree add": lambda: _worktrees(root, bases, next(numbers)),
        },
        ROUNDS,
    )
    place = "in memory" if MEMORY in root.parents else "on disk"
    size = f"{_megabytes(repos[0])} MB, {place}"
    what = f"workspace: {REPOSITORIES} warm clones of {size}"
    aims = {"git clone, one by one": 1 / 15, "git worktree add": 2.0}
    return compared(what, samples, aims, judged=("wall",))


async def _setup(root: Path, repos: Sequence[Path], name: str) -> Cost:
    options = WorkspaceOptions(cache=root / "cache", state=root / f"state-{name}")
    urls = [f"file://{repo}" for repo in repos]
    with Meter() as meter:
        await setup_workspace_async(urls, root / f"setup-{name}", options=options)
    return meter.cost


async def _clones(root: Path, repos: Sequence[Path], number: int) -> Cost:
    folder = root / f"clones-{number}"
    with Meter() as meter:
        for repo in repos:
            _git("clone", "-q", f"file://{repo}", str(folder / repo.name))
    return meter.cost


async def _worktrees(root: Path, bases: Sequence[Path], number: int) -> Cost:
    with Meter() as meter:
        for base in bases:
            target = root / f"worktrees-{number}" / base.name
            add = ["worktree", "add", "-q", "-b", f"w{number}", str(target), "main"]
            _git("-C", str(base), *add)
    return meter.cost


def _linked(repo: Path, target: Path) -> Path:
    """Return a copy of a repository for the worktrees: the remote must not have their branches."""
    shutil.copytree(repo, target, copy_function=os.link)
    return target


def _make_repositories(root: Path) -> list[Path]:
    """Return bare repositories of equal content: many small blobs that hardly compress."""
    first = root / "sources" / "r0.git"
    _git("init", "-q", "--bare", "-b", "main", str(first))
    importing = ["git", "-C", str(first), "fast-import", "--quiet"]
    with subprocess.Popen(importing, stdin=subprocess.PIPE, env=_ENV) as process:
        assert process.stdin
        chance = random.Random(1)
        for number in range(COMMITS):
            process.stdin.write(_commit(chance, number))
    repos = [first] + [first.with_name(f"r{n}.git") for n in range(1, REPOSITORIES)]
    for copy in repos[1:]:
        shutil.copytree(first, copy)
    return repos


def _commit(chance: random.Random, number: int) -> bytes:
    when = 1_750_000_000 + number
    lines = [b"commit refs/heads/main\ncommitter A <a@example.org> %d +0000\n" % when]
    lines.append(b"data 1\n.\n")
    for _ in range(FILES_PER_COMMIT):
        place = chance.randrange(FILES)
        path = b"src/part%d/file%d.txt" % (place % 30, place)
        data = chance.randbytes(BLOB_BYTES)
        lines.append(b"M 100644 inline %s\ndata %d\n%s\n" % (path, len(data), data))
    return b"".join(lines)


def _megabytes(repo: Path) -> int:
    size = sum(file.stat().st_size for file in repo.rglob("*") if file.is_file())
    return round(size / 1_000_000)


def _git(*args: str) -> None:
    subprocess.run(["git", *args], check=True, env=_ENV, stdout=subprocess.DEVNULL)
