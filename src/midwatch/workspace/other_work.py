"""Find the work of a clone that is not at its HEAD: other branches, tags, stashes, worktrees, detached commits.

What an agent commits on another branch is not in the files of the clone, and would be lost with it. All such
commits are taken into the trusted git directory, and compared with what the remote has. Lists have limits, and
what is beyond a limit is a problem that is reported: unknown is not clean.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from midwatch.workspace.git import Git
from midwatch.workspace.record import ClonedRepo
from midwatch.workspace.refs import read_refs
from midwatch.workspace.snapshot import Snapshot, SnapshotLimits, snapshot_files
from midwatch.workspace.trusted import (
    PUSHED,
    YES_OR_NO,
    locked_clone,
    pushed_commit,
    run_trusted,
    take_commits,
    tree_of,
)
from midwatch.workspace.untrusted import (
    LONGEST_NAME,
    UntrustedRefs,
    UntrustedRepositoryError,
    Worktree,
    read_untrusted_refs,
    shown_name,
    worktree_folder,
)
from midwatch.workspace.urls import is_ref_name

MAX_TIPS = 2000
"""The most commits that are taken of one clone."""
MAX_LISTED = 100
"""The most items that are described; the others are counted."""
_MAX_WORKTREES = 50
WorkKind = Literal["branch", "worktree", "stash", "detached", "tag", "ref"]
Tip = tuple[WorkKind, str, str]
"""What names a commit, its name, and the id of the commit."""
_KINDS: tuple[WorkKind, ...] = (
    *("branch", "worktree", "stash", "detached", "tag", "ref"),
)


@dataclass(frozen=True, slots=True)
class OtherWork:
    """Work in a clone that its HEAD does not have.

    Attributes:
        kind: What holds it; "detached" is a commit of a detached HEAD that was left.
        name: The branch, worktree, tag or ref; for a stash and a detached commit, the start of its id.
        commit: The commit, or None if it has none that the clone's HEAD does not have.
        commits: Number of commits that neither HEAD nor the remote had when the session started.
        files: Files of a worktree that are not committed.
        pushed: Whether a push of the session has brought all of it to the remote.
        problem: Why it cannot be inspected, or None.
        tree: The content of a worktree with its files, or None.
        parent: The last commit of that worktree.
    """

    kind: WorkKind
    name: str
    commit: str | None
    commits: int = 0
    files: int = 0
    pushed: bool = False
    problem: str | None = None
    tree: str | None = None
    parent: str | None = None

    @property
    def label(self) -> str:
        """What it is, such as `branch fix/total`."""
        return f"{self.kind} {self.name}"

    def push_branch(self, repo: ClonedRepo) -> str:
        """Return the branch that it is pushed to.

        It begins with the clone's own: an agent that names its branch `main` must not push to `main`.
        """
        name = self.name if self.kind == "branch" else f"{self.kind}-{self.name}"
        branch = f"{repo.push_branch}-{name}"
        if is_ref_name(branch) and len(self.name) < LONGEST_NAME:
            return branch
        digest = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:8]
        return f"{repo.push_branch}-{self.kind}-{digest}"


@dataclass(frozen=True, slots=True)
class OtherWorkList:
    """The other work of a clone: the first `MAX_LISTED` items, and the number of all."""

    items: tuple[OtherWork, ...] = ()
    count: int = 0
    problem: str | None = None

    @property
    def pushed(self) -> bool:
        """Whether the remote has all of it."""
        return (
            all(item.pushed for item in self.items)
            and self.count == len(self.items)
            and self.problem is None
        )


async def take_other_work(
    git: Git, repo: ClonedRepo, snapshot: Snapshot, limits: SnapshotLimits | None = None
) -> OtherWorkList:
    """Find the work of a clone that is not at its HEAD, without running anything in it.

    Args:
        git: Runs git.
        repo: The clone.
        snapshot: The snapshot of the clone.
        limits: Limits on untracked files of worktrees.

    Raises:
        CacheBusy: Another inspection of the clone did not end in time.
        WorkspaceDiskFull: There is no space for the objects.
        RepositoryError: The trusted git directory is broken.
    """
    async with locked_clone(git, repo):
        try:
            refs = await asyncio.to_thread(read_untrusted_refs, repo.agent_git)
        except UntrustedRepositoryError as error:
            return OtherWorkList(problem=f"its .git was changed: {error}")
        search = _Search(git, repo, snapshot, limits or SnapshotLimits())
        return await search.run(refs)


@dataclass(frozen=True, slots=True)
class _Search:
    git: Git
    repo: ClonedRepo
    snapshot: Snapshot
    limits: SnapshotLimits

    async def run(self, refs: UntrustedRefs) -> OtherWorkList:
        known = set(read_refs(self.repo.git_dir).values())
        known |= {oid for oid in (self.repo.base, self.snapshot.head) if oid}
        tips = [one for one in self._tips(refs) if one[2] not in known]
        wanted = list(dict.fromkeys(oid for _, _, oid in tips))
        problem = refs.problem
        if len(wanted) > MAX_TIPS:
            problem = f"only {MAX_TIPS} of its {len(wanted)} branches, tags and stashes are inspected"
        wanted = wanted[:MAX_TIPS]
        failed = await take_commits(self.git, self.repo, wanted) if wanted else {}
        taken = [oid for oid in wanted if oid not in failed]
        commits = await self._peeled(taken)
        new = await self._reachable(commits.values(), known)
        unpushed = new - await self._pushed(commits.values(), known)
        found = [
            *self._broken(tips, failed),
            *(
                OtherWork(kind, name, commits[oid], pushed=commits[oid] not in unpushed)
                for kind, name, oid in tips
                if commits.get(oid) in new
            ),
        ]
        found, more = await self._with_files(found, refs.worktrees, failed)
        found.sort(key=lambda item: (item.pushed, _KINDS.index(item.kind)))
        counted = [await self._counted(one, known) for one in found[:MAX_LISTED]]
        return OtherWorkList(tuple(counted), len(found), problem or more)

    def _tips(self, refs: UntrustedRefs) -> list[Tip]:
        detached: list[Tip] = [
            ("worktree", shown_name(tree.name), tree.head.commit)
            for tree in refs.worktrees
            if tree.head.commit and tree.head.branch is None
        ]
        tips: list[Tip] = [(*_kind_of(name), oid) for name, oid in refs.refs.items()]
        tips += detached
        tips += (("stash", oid[:8], oid) for oid in refs.stashes)
        tips += (("detached", oid[:8], oid) for oid in refs.detached)
        return _without_repetitions(tips)

    async def _peeled(self, oids: Sequence[str]) -> dict[str, str]:
        """Return the commit of each id; a tag may name a commit or something else."""
        if not oids:
            return {}
        lines = "".join(f"{oid}^{{commit}}\n" for oid in oids)
        check = ["cat-file", "--batch-check=%(objectname) %(objecttype)"]
        output = await run_trusted(self.git, self.repo, check, stdin=lines.encode())
        answers = (line.split(" ") for line in output.text.splitlines())
        return {
            oid: answer[0]
            for oid, answer in zip(oids, answers, strict=True)
            if answer[1:] == ["commit"]
        }

    async def _reachable(
        self, commits: Iterable[str], known: Iterable[str]
    ) -> set[str]:
        """Return the commits that are reachable from `commits`, and not from `known`."""
        wanted = list(dict.fromkeys(commits))
        if not wanted:
            return set()
        lines = [*wanted, *(f"^{oid}" for oid in sorted(known))]
        data = "".join(f"{line}\n" for line in lines).encode()
        args = ["rev-list", "--stdin"]
        return set(
            (await run_trusted(self.git, self.repo, args, stdin=data)).text.split()
        )

    async def _pushed(self, commits: Iterable[str], known: set[str]) -> set[str]:
        """Return those of the new commits that were pushed."""
        tips = list(commits)
        if not tips:
            return set()
        args = ["for-each-ref", "--format=%(objectname)", f"{PUSHED}/"]
        pushed = (await run_trusted(self.git, self.repo, args)).text.split()
        if not pushed:
            return set()
        new = await self._reachable(tips, known)
        return new - await self._reachable(tips, known.union(pushed))

    def _broken(self, tips: Sequence[Tip], failed: dict[str, str]) -> list[OtherWork]:
        return [
            OtherWork(kind, name, None, problem=failed[oid])
            for kind, name, oid in tips
            if oid in failed
        ]

    async def _with_files(
        self,
        found: list[OtherWork],
        worktrees: Sequence[Worktree],
        failed: dict[str, str],
    ) -> tuple[list[OtherWork], str | None]:
        """Add the files of worktrees that are not committed. Return the items, and what is not inspected."""
        problem = None
        if len(worktrees) > _MAX_WORKTREES:
            problem = f"the files of only {_MAX_WORKTREES} of its {len(worktrees)} worktrees are inspected"
        for tree in worktrees[:_MAX_WORKTREES]:
            if tree.head.commit in failed:
                continue
            own = [
                o
                for o in found
                if (o.kind, o.name) == ("worktree", shown_name(tree.name))
            ]
            changed = await self._files(tree, own[0] if own else None)
            if changed is not None:
                found = [one for one in found if one not in own] + [changed]
        return found, problem

    async def _files(self, tree: Worktree, own: OtherWork | None) -> OtherWork | None:
        """Return the item of a worktree with files that are not committed, or None."""
        item = own or OtherWork("worktree", shown_name(tree.name), None)
        root = self._root()
        inside = worktree_folder(root, tree)
        if inside is None:
            gone = not os.path.lexists(tree.path)
            why = "it is outside of the workspace, and its files are not inspected"
            return None if gone else replace(item, problem=why, pushed=False)
        place = replace(self.repo, path=root / inside)
        shot = await snapshot_files(self.git, place, tree.head, self.limits)
        if not shot.dirty and shot.problem is None:
            return None
        problem = shot.problem
        if shot.left_out:
            problem = problem or f"{len(shot.left_out)} of its files are not inspected"
        files = await self._count_files(tree.head.commit, shot.tree) + len(
            shot.left_out
        )
        changed = replace(
            item, files=files, problem=problem, tree=shot.tree, parent=tree.head.commit
        )
        last = await pushed_commit(self.git, self.repo, changed.push_branch(self.repo))
        same = last and await tree_of(self.git, self.repo, last) == shot.tree
        return replace(changed, pushed=bool(same) and problem is None)

    def _root(self) -> Path:
        """Return the folder that a worktree must be in: the workspace."""
        top, _ = self.repo.agent_git
        return top.parent

    async def _count_files(self, commit: str | None, tree: str) -> int:
        before = await tree_of(self.git, self.repo, commit)
        args = ["diff-tree", "-r", "-z", "--name-only", before, tree]
        return (await run_trusted(self.git, self.repo, args)).out.count(b"\0")

    async def _counted(self, item: OtherWork, known: set[str]) -> OtherWork:
        if item.commit is None:
            return item
        lines = "".join([f"{item.commit}\n", *(f"^{oid}\n" for oid in sorted(known))])
        args = ["rev-list", "--count", "--stdin"]
        if (
            item.kind == "stash"
        ):  # its other parents are the index and the untracked files
            args.append("--first-parent")
        output = await run_trusted(self.git, self.repo, args, stdin=lines.encode())
        return replace(item, commits=int(output.text))


async def merge_base(git: Git, repo: ClonedRepo, commit: str) -> str | None:
    """Return the commit that a commit and the base of the session have in common, or None."""
    if repo.base is None:
        return None
    args = ["merge-base", repo.base, commit]
    output = await run_trusted(git, repo, args, ok=YES_OR_NO)
    return output.text.strip() or None


_REFS: dict[str, WorkKind] = {"heads": "branch", "tags": "tag"}


def _kind_of(ref: str) -> tuple[WorkKind, str]:
    kind, _, name = ref.removeprefix("refs/").partition("/")
    found = _REFS.get(kind)
    return (found, shown_name(name)) if found else ("ref", shown_name(ref))


def _without_repetitions(
    tips: list[Tip],
) -> list[Tip]:
    """Leave out what is only another name: a detached commit or worktree that a branch names too."""
    named = {oid for kind, _, oid in tips if kind == "branch"}
    worktrees = {oid for kind, _, oid in tips if kind == "worktree"}
    return [
        (kind, name, oid)
        for kind, name, oid in tips
        if not (kind in ("detached", "worktree") and oid in named)
        and not (kind == "detached" and oid in worktrees)
    ]
