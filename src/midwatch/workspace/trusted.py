"""Questions to a git directory of ours about the objects in it."""

from __future__ import annotations

import hashlib

from midwatch.workspace.git import Command, Git, Output
from midwatch.workspace.record import ClonedRepo

_YES_OR_NO = frozenset({0, 1})


async def in_trusted(
    git: Git,
    repo: ClonedRepo,
    args: list[str],
    max_output: int | None = None,
    ok: frozenset[int] = frozenset({0}),
) -> Output:
    """Run git in the trusted git directory of a clone, away from its files."""
    command = Command(
        args, repository=repo.url, git_dir=repo.git_dir, max_output=max_output, ok=ok
    )
    return await git.run(command)


async def tree_of(git: Git, repo: ClonedRepo, commit: str | None) -> str:
    """The tree of a commit; the empty tree for None."""
    if commit is None:
        args = ["hash-object", "-t", "tree", "-w", "--stdin"]  # stdin is empty
    else:
        args = ["rev-parse", "--verify", "--quiet", f"{commit}^{{tree}}"]
    return (await in_trusted(git, repo, args)).text.strip()


def pushed_ref(repo: ClonedRepo) -> str:
    """Where the commit is noted that was last pushed; another target has another."""
    target = f"{repo.push_url}\0{repo.push_branch}".encode("utf-8", "surrogateescape")
    return f"refs/midwatch/pushed-to/{hashlib.sha256(target).hexdigest()[:16]}"


async def pushed_commit(git: Git, repo: ClonedRepo) -> str | None:
    """The commit that was last pushed from this clone to its present target."""
    args = ["rev-parse", "--verify", "--quiet", pushed_ref(repo)]
    return (await in_trusted(git, repo, args, ok=_YES_OR_NO)).text.strip() or None


async def is_ancestor(
    git: Git, repo: ClonedRepo, older: str | None, newer: str | None
) -> bool:
    """Whether `newer` has everything that `older` has; None stands for no commit at all."""
    if older is None or newer is None:
        return older is None
    args = ["merge-base", "--is-ancestor", older, newer]
    return (await in_trusted(git, repo, args, ok=_YES_OR_NO)).code == 0
