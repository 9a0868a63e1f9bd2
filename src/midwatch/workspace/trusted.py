"""The trusted git directory of a clone: git runs here, and the clone's commits are copied into it.

`git fetch` from the clone is not safe: it starts upload-pack there, with the configuration of the clone.
Instead, copies of the object files are read by a `pack-objects` that runs in the trusted git directory,
and `index-pack` computes the id of every object, so that a false index cannot pass one content off as
another.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from midwatch.files import locked
from midwatch.workspace.errors import (
    CacheBusy,
    GitFailed,
    RepositoryError,
    WorkspaceDiskFull,
)
from midwatch.workspace.git import Git, GitCommand, GitOutput
from midwatch.workspace.record import ClonedRepo, Submodule
from midwatch.workspace.refs import read_refs
from midwatch.workspace.untrusted import UntrustedRepositoryError, copy_new_objects

# ------------------------------------------------------------ commits of the clone

_MOST_REFS = 5000


async def take_commit(git: Git, repo: ClonedRepo, commit: str) -> None:
    """Copy a commit with all its objects into the trusted git directory, and check their ids.

    Args:
        git: Runs git.
        repo: The clone.
        commit: Id of a commit of the clone.

    Raises:
        UntrustedRepositoryError: Objects are missing, false or too large.
    """
    failed = await take_commits(git, repo, [commit])
    if failed:
        raise UntrustedRepositoryError(failed[commit])


async def take_commits(
    git: Git, repo: ClonedRepo, commits: Sequence[str]
) -> dict[str, str]:
    """Copy commits, or tags, with all their objects into the trusted git directory, and check their ids.

    Args:
        git: Runs git.
        repo: The clone.
        commits: Ids of objects of the clone.

    Returns:
        The reason for each that could not be taken: objects are missing, false or too large.
    """
    if await _are_complete(git, repo, commits):
        return {}
    with tempfile.TemporaryDirectory(dir=repo.git_dir, prefix="quarantine-") as name:
        quarantine = Path(name)
        (quarantine / "objects").mkdir()
        objects = quarantine / "objects"
        try:
            await asyncio.to_thread(
                copy_new_objects, repo.agent_git, repo.git_dir, objects
            )
        except UntrustedRepositoryError as error:
            return dict.fromkeys(commits, str(error))
        return await _take_packed(git, repo, commits, quarantine)


async def _take_packed(
    git: Git, repo: ClonedRepo, commits: Sequence[str], quarantine: Path
) -> dict[str, str]:
    """Take commits in one pack; where that fails, each half by itself, so that one does not spoil the others."""
    why = "objects of its commits are missing or false"
    try:
        pack = await _packed(git, repo, commits, quarantine)
        await run_trusted(git, repo, ["index-pack", "--stdin"], stdin=pack)
    except WorkspaceDiskFull:
        raise
    except RepositoryError as error:
        why = f"its commits cannot be read: {error.cause}"
    else:
        if await _are_complete(git, repo, commits):
            return {}
    if len(commits) == 1:
        return {commits[0]: why}
    middle = len(commits) // 2
    first = await _take_packed(git, repo, commits[:middle], quarantine)
    return first | await _take_packed(git, repo, commits[middle:], quarantine)


async def _packed(
    git: Git, repo: ClonedRepo, commits: Sequence[str], quarantine: Path
) -> Path:
    """Return a pack with the objects of commits that the trusted git directory does not have."""
    known = sorted({oid for oid in read_refs(repo.git_dir).values()})[:_MOST_REFS]
    known += [repo.base] if await has_base(git, repo) and repo.base else []
    revisions = "".join([f"{c}\n" for c in commits] + [f"^{oid}\n" for oid in known])
    packed = await run_trusted(
        git,
        repo,
        ["pack-objects", "--revs", "--quiet", str(quarantine / "taken")],
        stdin=revisions.encode(),
        variables={"GIT_ALTERNATE_OBJECT_DIRECTORIES": str(quarantine / "objects")},
    )
    names = packed.text.split()
    if len(names) != 1:
        raise GitFailed(repo.url, "git pack-objects made no pack")
    return quarantine / f"taken-{names[0]}.pack"


async def _are_complete(git: Git, repo: ClonedRepo, commits: Sequence[str]) -> bool:
    args = ["rev-list", "--objects", "--quiet", "--stdin"]
    if repo.blobless:
        args.insert(1, "--exclude-promisor-objects")
    wanted = "".join(f"{commit}\n" for commit in commits)
    if repo.base is not None and await has_base(git, repo):
        wanted += f"^{repo.base}\n"
    try:
        await run_trusted(git, repo, args, stdin=wanted.encode())
    except RepositoryError:
        return False
    return True


async def has_base(git: Git, repo: ClonedRepo) -> bool:
    """Return whether the trusted git directory has the base with all its objects.

    It has that of a clone from the start; that of a submodule, once `take_base` has taken it.
    """
    if not isinstance(repo, Submodule) or repo.base is None:
        return repo.base is not None
    args = ["rev-parse", "--verify", "--quiet", _base_ref(repo.base)]
    return (await run_trusted(git, repo, args, ok=YES_OR_NO)).code == 0


async def take_base(git: Git, repo: Submodule) -> None:
    """Take the base of a submodule. Its id comes from the clone's own base. Raises UntrustedRepositoryError."""
    if repo.base is not None and not await has_base(git, repo):
        await take_commit(git, repo, repo.base)
        await run_trusted(git, repo, ["update-ref", _base_ref(repo.base), repo.base])


def _base_ref(oid: str) -> str:
    return f"refs/midwatch/base/{oid}"


@contextlib.asynccontextmanager
async def locked_clone(git: Git, repo: ClonedRepo) -> AsyncIterator[None]:
    """Lock the trusted git directory of a clone while the block runs. Raises CacheBusy."""
    lock, wait = repo.git_dir / "snapshot.lock", git.limits.local_seconds
    async with locked(lock, git.clock, shared=False, seconds=wait) as held:
        if not held:
            raise CacheBusy(
                f"another inspection of {repo.path} did not end within {wait:g} s",
                hint="try again when it has ended",
            )
        clear_quarantine(repo.git_dir)
        yield


def clear_quarantine(git_dir: Path) -> None:
    """Remove the files that killed inspections left behind."""
    for left in git_dir.glob("quarantine-*"):
        shutil.rmtree(left, ignore_errors=True)


# ------------------------------------------------------------ git in the trusted git directory

YES_OR_NO = frozenset({0, 1})


async def run_trusted(
    git: Git,
    repo: ClonedRepo,
    args: list[str],
    max_output: int | None = None,
    ok: frozenset[int] = frozenset({0}),
    *,
    stdin: bytes | Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> GitOutput:
    """Run git in the trusted git directory of a clone, without its work tree. Raises as `Git.run`."""
    command = GitCommand(
        args,
        repository=repo.url,
        git_dir=repo.git_dir,
        max_output=max_output,
        ok=ok,
        stdin=stdin,
        variables=variables or {},
    )
    return await git.run(command)


async def tree_of(git: Git, repo: ClonedRepo, commit: str | None) -> str:
    """Return the tree of a commit, or the empty tree for None."""
    if commit is None:
        args = ["hash-object", "-t", "tree", "-w", "--stdin"]  # stdin is empty
    else:
        args = ["rev-parse", "--verify", "--quiet", f"{commit}^{{tree}}"]
    return (await run_trusted(git, repo, args)).text.strip()


async def parents_of(git: Git, repo: ClonedRepo, commit: str) -> list[str]:
    """Return the parents of a commit."""
    args = ["rev-list", "--parents", "--max-count=1", commit]
    return (await run_trusted(git, repo, args)).text.split()[1:]


PUSHED = "refs/midwatch/pushed-to"
"""The refs of all commits that were pushed, by URL and branch."""


def pushed_ref(repo: ClonedRepo, branch: str | None = None) -> str:
    """Return the ref of the commit that was last pushed to the present URL and `branch` (or `push_branch`)."""
    target = f"{repo.push_url}\0{branch or repo.push_branch}".encode(
        "utf-8", "surrogateescape"
    )
    return f"{PUSHED}/{hashlib.sha256(target).hexdigest()[:16]}"


async def pushed_commit(
    git: Git, repo: ClonedRepo, branch: str | None = None
) -> str | None:
    """Return the commit that was last pushed to the present URL and `branch` (or `push_branch`), or None."""
    args = ["rev-parse", "--verify", "--quiet", pushed_ref(repo, branch)]
    return (await run_trusted(git, repo, args, ok=YES_OR_NO)).text.strip() or None


async def is_ancestor(
    git: Git, repo: ClonedRepo, older: str | None, newer: str | None
) -> bool:
    """Return whether `newer` has all commits of `older`; None stands for no commit."""
    if older is None or newer is None:
        return older is None
    args = ["merge-base", "--is-ancestor", older, newer]
    return (await run_trusted(git, repo, args, ok=YES_OR_NO)).code == 0
