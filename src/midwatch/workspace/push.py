"""Push the commits of a session from the trusted git directory. A push is never forced."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from midwatch.errors import MidwatchError
from midwatch.workspace.errors import PushRejected, RepositoryError
from midwatch.workspace.git import Git, GitCommand
from midwatch.workspace.inspect import (
    describe_work,
    inspect_submodule,
    submodules_of,
)
from midwatch.workspace.other_work import OtherWork, take_other_work
from midwatch.workspace.record import ClonedRepo, Submodule, Workspace
from midwatch.workspace.setup import Identity
from midwatch.workspace.snapshot import Snapshot, SnapshotLimits, take_snapshot
from midwatch.workspace.submodules import (
    fetch_remote_refs,
    missing_on_remote,
    on_remote,
)
from midwatch.workspace.trusted import (
    is_ancestor,
    pushed_commit,
    pushed_ref,
    run_trusted,
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
        at: The time of that commit; now by default. With it, a push that is made again after a crash is the same.
        limits: Limits on untracked files; a file beyond them fails the push.
    """

    commit_rest: bool = True
    message: str = DEFAULT_MESSAGE
    identity: Identity = Identity()
    at: datetime | None = None
    limits: SnapshotLimits = SnapshotLimits(
        file_bytes=100_000_000, total_bytes=2_000_000_000, files=200_000
    )


async def push_workspace(
    workspace: Workspace, git: Git, options: PushOptions | None = None
) -> list[PushResult]:
    """Push every repository, as `push_all`. A failed push is in its result, and does not stop the others."""
    results = [await push_all(repo, git, options) for repo in workspace.repos]
    return [one for several in results for one in several]


async def push_all(
    repo: ClonedRepo, git: Git, options: PushOptions | None = None
) -> list[PushResult]:
    """Push a repository, and its work on other branches, in worktrees and stashes to branches of their own.

    Midwatch pushes to the repositories that were asked for, so not to submodules: work in them is a failed push,
    with the reason, until their remotes have it.

    Args:
        repo: The clone.
        git: Runs git.
        options: What to push.

    Returns:
        The result of `push_repo`, then one for each other branch, and one for each submodule with work.

    Raises:
        CacheBusy: Another inspection of the clone did not end in time.
    """
    options = options or PushOptions()
    results = []
    try:
        snapshot = await take_snapshot(git, repo, options.limits)
        results.append(await _push_head(repo, git, snapshot, options))
        submodules = await submodules_of(repo, git, snapshot)
        other = await take_other_work(git, repo, snapshot, options.limits)
        for item in other.items:
            if not item.pushed:
                results.append(await _push_other(repo, git, item, submodules, options))
        if other.problem or other.count > len(other.items):
            why = other.problem or f"only the first {len(other.items)} are pushed"
            results.append(_failed(repo, PushRejected(repo.url, why, hint=_BY_HAND)))
        results += [r for sub in submodules for r in await _unpushed(sub, git, options)]
    except RepositoryError as error:
        results.append(_failed(repo, error))
    return results


_BY_HAND = "push it by hand, in the clone"


def _failed(
    repo: ClonedRepo, error: MidwatchError, branch: str | None = None
) -> PushResult:
    branch = branch or repo.push_branch
    return PushResult(repo.name, repo.push_url, branch, "failed", error=error)


async def _unpushed(sub: Submodule, git: Git, options: PushOptions) -> list[PushResult]:
    """Return a failed push for a submodule with work that its remote does not have."""
    if not sub.inner and sub.problem is None:
        return []
    await _record_pushed_by_hand(sub, git)
    state = await inspect_submodule(sub, git, options.limits)
    if state.status != "changed":
        return []
    error = PushRejected(
        sub.url or sub.name,
        f"the submodule {ascii(sub.place)} has {describe_work(state)}",
        hint="Midwatch does not push submodules: commit and push in its folder, then push again",
    )
    return [_failed(sub, error)]


async def _record_pushed_by_hand(sub: Submodule, git: Git) -> None:
    """Record the head of a submodule as pushed if its remote has it."""
    head = (await take_snapshot(git, sub)).head if sub.inner else None
    if not sub.url or head is None or head == sub.base:
        return
    with contextlib.suppress(RepositoryError):
        await fetch_remote_refs(git, sub)
        if await on_remote(git, sub, head):
            await run_trusted(git, sub, ["update-ref", pushed_ref(sub), head])


async def _push_other(
    repo: ClonedRepo,
    git: Git,
    item: OtherWork,
    submodules: Sequence[Submodule],
    options: PushOptions,
) -> PushResult:
    """Push other work to its own branch of the remote. The error of a failed push is in the result."""
    branch = item.push_branch(repo)
    try:
        if item.problem is not None:
            why = f"{item.label}: {item.problem}"
            raise PushRejected(repo.url, why, branch=branch, hint=_BY_HAND)
        tip = await _other_tip(repo, git, item, branch, options)
        if tip is None:
            return PushResult(repo.name, repo.push_url, branch, "nothing")
        await _check_submodules(repo, git, tip, submodules)
        await _push(repo, git, tip, branch, only_if_ours=True)
    except RepositoryError as error:
        return _failed(repo, error, branch)
    return PushResult(repo.name, repo.push_url, branch, "pushed", tip)


async def _other_tip(
    repo: ClonedRepo, git: Git, item: OtherWork, branch: str, options: PushOptions
) -> str | None:
    if item.tree is None or not options.commit_rest:
        return item.commit
    pushed = await pushed_commit(git, repo, branch)
    parents = await _parents(repo, git, pushed, item.parent)
    return await _commit(repo, git, item.tree, parents, options)


async def _check_submodules(
    repo: ClonedRepo, git: Git, tip: str, submodules: Sequence[Submodule]
) -> None:
    """Raise PushRejected if a commit names a commit of a submodule that its remote does not have."""
    places = {sub.place: sub for sub in submodules}
    missing = await missing_on_remote(git, repo, tip, places)
    if missing is not None:
        place, why = missing
        raise PushRejected(
            repo.url,
            f"it needs a commit of the submodule {ascii(place)}, and {why}",
            hint="push the submodule's commit first, in its folder, then push again",
        )


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
    try:
        snapshot = await take_snapshot(git, repo, options.limits)
    except RepositoryError as error:
        return _failed(repo, error)
    return await _push_head(repo, git, snapshot, options)


async def _push_head(
    repo: ClonedRepo, git: Git, snapshot: Snapshot, options: PushOptions
) -> PushResult:
    remote = repo.push_remote
    try:
        _check(repo, snapshot, options)
        tip = await _tip(repo, git, snapshot, options)
        if tip is None:
            return PushResult(repo.name, remote.url, repo.push_branch, "nothing")
        submodules = await submodules_of(repo, git, snapshot)
        await _check_submodules(repo, git, tip, submodules)
        await _push(repo, git, tip, repo.push_branch)
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
    date = "" if options.at is None else f"{int(options.at.timestamp())} +0000"
    dates = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date} if date else {}
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
            **dates,
        },
    )
    return output.text.strip()


async def _push(
    repo: ClonedRepo, git: Git, tip: str, branch: str, *, only_if_ours: bool = False
) -> None:
    """Push a commit, never by force; with `only_if_ours`, not to a branch that somebody else made."""
    remote = repo.push_remote
    args = ["push", "--porcelain", "--no-follow-tags"]
    if only_if_ours:
        ours = await pushed_commit(git, repo, branch)
        if not await is_ancestor(git, repo, ours, tip):
            raise PushRejected(
                remote.url, "it was rewritten after it was pushed", branch=branch
            )
        args.append(f"--force-with-lease=refs/heads/{branch}:{ours or ''}")
    command = GitCommand(
        [*args, "--end-of-options", remote.transport_url, f"{tip}:refs/heads/{branch}"],
        repository=remote.url,
        branch=branch,
        git_dir=repo.git_dir,
        remote=remote,
    )
    await git.retry(lambda: git.run(command))
    await run_trusted(git, repo, ["update-ref", pushed_ref(repo, branch), tip])
