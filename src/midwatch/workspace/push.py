"""Push the commits of a session from the trusted git directory. A push is never forced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from midwatch.errors import MidwatchError
from midwatch.workspace.errors import PushRejected, RepositoryError
from midwatch.workspace.git import Git, GitCommand
from midwatch.workspace.record import ClonedRepo, Workspace
from midwatch.workspace.setup import Identity
from midwatch.workspace.snapshot import (
    Snapshot,
    SnapshotLimits,
    is_ancestor,
    pushed_commit,
    pushed_ref,
    run_trusted,
    take_snapshot,
    tree_of,
)

DEFAULT_MESSAGE = "Changes made in a Midwatch session"


@dataclass(frozen=True, slots=True)
class PushResult:
    """The result of a push.

    Attributes:
        name: Name of the clone's folder.
        remote: The URL that was pushed to.
        branch: The branch that was pushed to.
        outcome: "nothing" if the remote has everything.
        commit: The commit that was pushed.
        error: Why the push failed.
    """

    name: str
    remote: str
    branch: str
    outcome: Literal["pushed", "nothing", "failed"]
    commit: str | None = None
    error: MidwatchError | None = None


@dataclass(frozen=True, slots=True)
class PushOptions:
    """What is pushed.

    Attributes:
        commit_rest: Commit the changes that the agent did not commit, and push them too.
        message: The message of that commit.
        identity: The author of that commit.
        limits: Limits on untracked files; a file beyond them fails the push.
    """

    commit_rest: bool = True
    message: str = DEFAULT_MESSAGE
    identity: Identity = Identity()
    limits: SnapshotLimits = SnapshotLimits(
        file_bytes=100_000_000, total_bytes=2_000_000_000, files=200_000
    )


async def push_workspace(
    workspace: Workspace, git: Git, options: PushOptions | None = None
) -> list[PushResult]:
    """Push every repository. A failed push is in its result, and does not stop the others."""
    return [await push_repo(repo, git, options) for repo in workspace.repos]


async def push_repo(
    repo: ClonedRepo, git: Git, options: PushOptions | None = None
) -> PushResult:
    """Push a repository to its `push_url` and `push_branch`.

    Args:
        repo: The clone.
        git: Runs git.
        options: What to push.

    Returns:
        The result, with the error of a failed push.

    Raises:
        CacheBusy: Another inspection of the clone did not end in time.
    """
    options = options or PushOptions()
    remote = repo.push_remote
    try:
        snapshot = await take_snapshot(git, repo, options.limits)
        _check(repo, snapshot, options)
        tip = await _tip(repo, git, snapshot, options)
        if tip is None:
            return PushResult(repo.name, remote.url, repo.push_branch, "nothing")
        await _push(repo, git, tip)
    except RepositoryError as error:
        return PushResult(
            repo.name, remote.url, repo.push_branch, "failed", error=error
        )
    return PushResult(repo.name, remote.url, repo.push_branch, "pushed", tip)


def _check(repo: ClonedRepo, snapshot: Snapshot, options: PushOptions) -> None:
    if snapshot.problem is not None:
        raise PushRejected(
            repo.url, snapshot.problem, hint="inspect the clone by hand before you push"
        )
    if options.commit_rest and snapshot.new_pointers:
        raise PushRejected(
            repo.url,
            f"Midwatch does not upload Git LFS content: {ascii(snapshot.new_pointers[0])}",
            hint="commit and push it in the clone with git-lfs",
        )
    if options.commit_rest and snapshot.left_out:
        shown = ", ".join(ascii(path) for path in snapshot.left_out[:3])
        raise PushRejected(
            repo.url,
            f"{len(snapshot.left_out)} files cannot be committed: {shown}",
            hint="remove or ignore them, or push only the commits",
        )


async def _tip(
    repo: ClonedRepo, git: Git, snapshot: Snapshot, options: PushOptions
) -> str | None:
    """Return the commit to push, or None if the remote has everything."""
    head, pushed = snapshot.head, await pushed_commit(git, repo)
    committed = await tree_of(git, repo, head)
    tree = snapshot.tree if options.commit_rest else committed
    last = pushed or repo.base
    if await tree_of(git, repo, last) == tree and (
        await is_ancestor(git, repo, head, last)
    ):
        return None
    if committed == tree and await is_ancestor(git, repo, pushed, head):
        return head
    parents = await _parents(repo, git, pushed, head)
    return await _commit(repo, git, tree, parents, options)


async def _parents(
    repo: ClonedRepo, git: Git, pushed: str | None, head: str | None
) -> list[str]:
    """Return the parents of a commit of the uncommitted changes.

    An earlier push may have made such a commit, which the clone does not have. Then the new one has both
    as parents, so that the branch of the remote moves forward.
    """
    if await is_ancestor(git, repo, pushed, head):
        return [head] if head else []
    if await is_ancestor(git, repo, head, pushed):
        return [pushed] if pushed else []
    return [oid for oid in (pushed, head) if oid]


async def _commit(
    repo: ClonedRepo,
    git: Git,
    tree: str,
    parents: list[str],
    options: PushOptions,
) -> str:
    args = ["commit-tree", tree]
    for parent in parents:
        args += ["-p", parent]
    name, email = options.identity.name, options.identity.email
    output = await run_trusted(
        git,
        repo,
        args,
        stdin=options.message.encode("utf-8", "replace"),
        variables={
            "GIT_AUTHOR_NAME": name,
            "GIT_AUTHOR_EMAIL": email,
            "GIT_COMMITTER_NAME": name,
            "GIT_COMMITTER_EMAIL": email,
        },
    )
    return output.text.strip()


async def _push(repo: ClonedRepo, git: Git, tip: str) -> None:
    remote, branch = repo.push_remote, repo.push_branch
    command = GitCommand(
        ["push", "--porcelain", "--no-follow-tags", "--end-of-options"]
        + [remote.transport_url, f"{tip}:refs/heads/{branch}"],
        repository=remote.url,
        branch=branch,
        git_dir=repo.git_dir,
        remote=remote,
    )
    await git.retry(lambda: git.run(command))
    await run_trusted(git, repo, ["update-ref", pushed_ref(repo), tip])
