"""Inspect the repositories of a session: clean, changed or pushed, with files, lines and commits."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from midwatch.errors import MidwatchError
from midwatch.text import show_unseen
from midwatch.units import format_count
from midwatch.workspace.git import Git
from midwatch.workspace.other_work import (
    OtherWork,
    OtherWorkList,
    merge_base,
    take_other_work,
)
from midwatch.workspace.record import (
    PREFIX,
    ClonedRepo,
    Submodule,
    Workspace,
    load_record,
)
from midwatch.workspace.snapshot import Snapshot, SnapshotLimits, take_snapshot
from midwatch.workspace.submodules import MAX_DEPTH, find_submodules
from midwatch.workspace.trusted import (
    is_ancestor,
    parents_of,
    pushed_commit,
    run_trusted,
    tree_of,
)
from midwatch.workspace.untrusted import is_linked_worktree

RepoStatus = Literal["clean", "changed", "pushed"]
MAX_DIFF_BYTES = 2_000_000
_MAX_LIST_BYTES = 8_000_000
_MAX_COMMITS = 200
_MAX_NAMED = 10
_LOG_FORMAT = "--format=%H%x1f%an%x1f%at%x1f%s"
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class FileChange:
    """A changed file, compared with the base; the lines are None for a binary file."""

    path: str
    kind: Literal["added", "changed", "deleted"]
    added: int | None
    removed: int | None


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit since the base. `at` is in seconds since 1970. The agent wrote the texts."""

    oid: str
    author: str
    at: int
    subject: str


@dataclass(frozen=True, slots=True)
class RepoState:
    """The state of a repository after a session.

    Attributes:
        name: Name of the clone's folder.
        url: Where it was cloned from.
        status: "clean" without differences from the base, "pushed" if the remote has them all. The other work
            and the submodules count too.
        base: The commit that the session started from, or None.
        head: The last commit, or None.
        branch: The branch; None if HEAD is detached.
        commit_count: Number of commits since the base.
        commits: The newest 200 of them, newest first.
        files: Differences between the base and the files on disk, with untracked files.
        untracked: Number of untracked files.
        left_out: Untracked files that are not in `files`, such as too large ones.
        problem: What could not be inspected, or None.
        other: Work that HEAD does not have: other branches, worktrees, stashes, detached commits and tags.
            The first 100 items; those that are not pushed come first.
        other_count: Number of all items.
        submodules: The submodules with work, and those that could not be inspected. Their `name` begins
            with that of this repository.
    """

    name: str
    url: str
    status: RepoStatus
    base: str | None
    head: str | None
    branch: str | None
    commit_count: int
    commits: tuple[Commit, ...]
    files: tuple[FileChange, ...]
    untracked: int
    left_out: tuple[str, ...] = ()
    problem: str | None = None
    other: tuple[OtherWork, ...] = ()
    other_count: int = 0
    submodules: tuple[RepoState, ...] = ()

    @property
    def added(self) -> int:
        """Number of added lines."""
        return sum(file.added or 0 for file in self.files)

    @property
    def removed(self) -> int:
        """Number of removed lines."""
        return sum(file.removed or 0 for file in self.files)


@dataclass(frozen=True, slots=True)
class Diff:
    """A unified diff, printable on a terminal; `cut` if it was longer than the limit."""

    text: str
    cut: bool


async def inspect_workspace(
    workspace: Workspace, git: Git, limits: SnapshotLimits | None = None
) -> list[RepoState]:
    """Return the state of every repository, in order. Raises as `inspect_repo`."""
    return [await inspect_repo(repo, git, limits) for repo in workspace.repos]


async def unpushed_work(folder: Path, state: Path, git: Git) -> str:
    """Return the work in a workspace that is not pushed anywhere, as text; empty if there is none.

    What cannot be inspected counts as work: unknown is not pushed. Files beside the repositories count too.

    Args:
        folder: The folder of the workspace.
        state: Its state folder.
        git: Runs git.
    """
    try:
        workspace = load_record(state)
    except MidwatchError as error:
        return error.message
    found: list[str] = []
    repos = () if workspace is None or workspace.staging else workspace.repos
    for repo in repos:
        if os.path.lexists(repo.path):
            try:
                one = await inspect_repo(repo, git)
            except MidwatchError as error:
                found.append(f"{repo.name} cannot be inspected: {error.message}")
            else:
                if one.status == "changed":
                    found.append(f"{one.name}: {describe_work(one)}")
    beside = await asyncio.to_thread(_beside, folder, repos)
    if beside:
        more = f" and {len(beside) - 3} more" if len(beside) > 3 else ""
        names = ", ".join(printable(name) for name in beside[:3])
        found.append(f"beside its repositories: {names}{more}")
    return "; ".join(found)


def _beside(folder: Path, repos: Sequence[ClonedRepo]) -> list[str]:
    """Return what is in a workspace beside its clones, their worktrees and unfinished clones."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    own = {repo.path.name for repo in repos}

    def is_worktree(name: str) -> bool:
        return any(is_linked_worktree(repo.agent_git, folder, name) for repo in repos)

    names = [n for n in names if n not in own and not n.startswith(PREFIX)]
    return [name for name in names if not is_worktree(name)]


async def inspect_repo(
    repo: ClonedRepo, git: Git, limits: SnapshotLimits | None = None
) -> RepoState:
    """Return the state of a repository. Nothing in the clone runs.

    Args:
        repo: The clone.
        git: Runs git.
        limits: Limits on untracked files.

    Raises:
        CacheBusy: Another inspection of the clone did not end in time.
        RepositoryError: Git failed.
    """
    return await _inspect(repo, git, limits, MAX_DEPTH)


async def _inspect(
    repo: ClonedRepo, git: Git, limits: SnapshotLimits | None, depth: int
) -> RepoState:
    snapshot = await take_snapshot(git, repo, limits)
    other = await take_other_work(git, repo, snapshot, limits)
    state = _with_other(await describe(repo, git, snapshot), other)
    inner = [
        await inspect_submodule(sub, git, limits, depth)
        for sub in await submodules_of(repo, git, snapshot)
        if sub.inner or sub.problem
    ]
    shown = tuple(sub for sub in inner if sub.status != "clean")
    statuses = {state.status, *(sub.status for sub in shown)}
    status: RepoStatus = "changed" if "changed" in statuses else state.status
    return replace(state, status=status, submodules=shown)


def _with_other(state: RepoState, other: OtherWorkList) -> RepoState:
    status = state.status
    if not other.pushed:
        status = "changed"
    elif other.items and status == "clean":
        status = "pushed"
    return replace(
        state,
        status=status,
        problem=state.problem or other.problem,
        other=other.items,
        other_count=other.count,
    )


async def inspect_submodule(
    sub: Submodule, git: Git, limits: SnapshotLimits | None, depth: int = MAX_DEPTH
) -> RepoState:
    """Return the state of a submodule, as `inspect_repo`; `depth` is that of submodules in it."""
    too_deep = "its submodules are nested too deeply" if depth == 0 else None
    problem = sub.problem or too_deep
    if not sub.inner or depth == 0:
        return RepoState(
            printable(sub.name),
            sub.url,
            *("changed", sub.base, None, None, 0, (), (), 0),
            problem=problem,
        )
    state = await _inspect(sub, git, limits, depth - 1)
    state = replace(state, name=printable(sub.name), problem=state.problem or problem)
    return replace(state, status="changed") if problem else state


def describe_work(state: RepoState) -> str:
    """Return the work of a repository that is not pushed, such as `2 files, 1 commit, branch fix (1 commit)`."""
    parts = []
    if state.files:
        parts.append(format_count(len(state.files), "file"))
    if state.commit_count:
        parts.append(format_count(state.commit_count, "commit"))
    parts += [other_line(item) for item in state.other[:_MAX_NAMED] if not item.pushed]
    if state.other_count > _MAX_NAMED:
        parts.append(f"{state.other_count - _MAX_NAMED} more branches or stashes")
    if state.left_out:
        parts.append(f"{format_count(len(state.left_out), 'file')} not inspected")
    parts += [f"{sub.name} ({describe_work(sub)})" for sub in state.submodules]
    return ", ".join([*parts, *([state.problem] if state.problem else [])])


def other_line(item: OtherWork) -> str:
    """Return other work as `branch fix/total (1 commit)`."""
    parts = [format_count(item.commits, "commit")] if item.commits else []
    if item.files:
        parts.append(f"{format_count(item.files, 'file')} not committed")
    if item.problem:
        parts.append(item.problem)
    if item.pushed:
        parts.append("pushed")
    return f"{item.label} ({', '.join(parts)})"


async def submodules_of(
    repo: ClonedRepo, git: Git, snapshot: Snapshot
) -> list[Submodule]:
    """Return the submodules of a clone; see `find_submodules`."""
    base_tree = await tree_of(git, repo, repo.base)
    return await find_submodules(git, repo, snapshot.tree, base_tree)


async def diffs_of(
    repo: ClonedRepo,
    git: Git,
    max_bytes: int = MAX_DIFF_BYTES,
    limits: SnapshotLimits | None = None,
) -> list[tuple[str, Diff]]:
    """Return all changes of a repository: of its files, its other work, and its submodules. Nothing in it runs.

    Args:
        repo: The clone.
        git: Runs git.
        max_bytes: The largest size of each diff and of all diffs of other work; more is cut.
        limits: Limits on untracked files.

    Returns:
        The diffs by name, such as `app`, `app: branch fix/total` and `app/vendor/lib`. The first is that of `diff_of`.

    Raises:
        CacheBusy: Another inspection of the clone did not end in time.
        RepositoryError: Git failed.
    """
    return await _diffs(repo, git, max_bytes, limits, MAX_DEPTH)


async def _diffs(
    repo: ClonedRepo,
    git: Git,
    max_bytes: int,
    limits: SnapshotLimits | None,
    depth: int,
) -> list[tuple[str, Diff]]:
    snapshot = await take_snapshot(git, repo, limits)
    sides = await _sides(git, repo, snapshot)
    name, left = printable(repo.name), max_bytes
    diffs = [(name, await _diff(git, repo, sides, max_bytes))]
    other = await take_other_work(git, repo, snapshot, limits)
    for item in other.items:
        for title, pair in await _other_sides(git, repo, item):
            diff = await _diff(git, repo, pair, left)
            left = max(left - len(diff.text.encode()), 0)
            diffs.append((f"{name}: {title}", diff))
    for sub in await submodules_of(repo, git, snapshot) if depth else ():
        if sub.inner:
            inner = await _diffs(sub, git, max_bytes, limits, depth - 1)
            diffs += [one for one in inner if one[1].text or one[1].cut]
    return diffs


async def _other_sides(
    git: Git, repo: ClonedRepo, item: OtherWork
) -> list[tuple[str, list[str]]]:
    """Return the titles and the two trees of the diffs of other work."""
    tip = item.commit or item.parent
    if tip is None and item.tree is None:
        return []
    start = await merge_base(git, repo, tip) if tip else None
    if item.kind == "stash" and item.commit:
        parents = await parents_of(git, repo, item.commit)
        start = parents[0] if parents else None
        untracked = parents[2:3]
    else:
        untracked = []
    trees = [
        await tree_of(git, repo, start),
        item.tree or await tree_of(git, repo, tip),
    ]
    empty = await tree_of(git, repo, None)
    return [(item.label, trees)] + [
        (f"{item.label}, untracked files", [empty, await tree_of(git, repo, oid)])
        for oid in untracked
    ]


async def _diff(git: Git, repo: ClonedRepo, sides: list[str], max_bytes: int) -> Diff:
    args = ["diff-tree", "-p", "-r", "--no-ext-diff", "--no-textconv", "--no-color"]
    output = await run_trusted(git, repo, [*args, *sides], max_bytes)
    return Diff(printable(output.text), output.cut)


async def diff_of(
    repo: ClonedRepo,
    git: Git,
    max_bytes: int = MAX_DIFF_BYTES,
    limits: SnapshotLimits | None = None,
) -> Diff:
    """Return the changes of the files since the base, with new files. Nothing in the clone runs.

    `diffs_of` also has the changes on other branches, in stashes, worktrees and submodules.

    Args:
        repo: The clone.
        git: Runs git.
        max_bytes: The largest size of the diff; more is cut.
        limits: Limits on untracked files.

    Raises:
        CacheBusy: Another inspection of the clone did not end in time.
        RepositoryError: Git failed.
    """
    snapshot = await take_snapshot(git, repo, limits)
    return await _diff(git, repo, await _sides(git, repo, snapshot), max_bytes)


async def describe(repo: ClonedRepo, git: Git, snapshot: Snapshot) -> RepoState:
    """Return the state of the files and of HEAD from a snapshot. Raises RepositoryError."""
    files = await _files(repo, git, snapshot)
    count, commits = await _commits(repo, git, snapshot)
    return RepoState(
        name=repo.name,
        url=repo.url,
        status=await _status(repo, git, snapshot, bool(files or count)),
        base=repo.base,
        head=snapshot.head,
        branch=snapshot.branch,
        commit_count=count,
        commits=commits,
        files=files,
        untracked=snapshot.untracked,
        left_out=tuple(printable(path) for path in snapshot.left_out),
        problem=snapshot.problem,
    )


def printable(text: str) -> str:
    """Return text in which control characters and characters that cannot be seen are visible.

    An agent wrote it, and a person reviews it on a terminal.
    """
    text = text.encode("utf-8", "replace").decode("utf-8")
    return show_unseen(_UNPRINTABLE.sub(_visible, text))


def _visible(match: re.Match[str]) -> str:
    code = ord(match.group())
    if match.group() == "\r":
        return "\r" if match.string[match.end() : match.end() + 1] == "\n" else "\u240d"
    return chr(0x2400 + code) if code < 0x20 else "\ufffd"


async def _status(
    repo: ClonedRepo, git: Git, snapshot: Snapshot, differs: bool
) -> RepoStatus:
    if not (differs or snapshot.left_out or snapshot.problem):
        return "clean"
    pushed = await pushed_commit(git, repo)
    if pushed is None or snapshot.left_out or snapshot.problem:
        return "changed"
    same = await tree_of(git, repo, pushed) == snapshot.tree
    covered = same and await is_ancestor(git, repo, snapshot.head, pushed)
    return "pushed" if covered else "changed"


async def _files(
    repo: ClonedRepo, git: Git, snapshot: Snapshot
) -> tuple[FileChange, ...]:
    args = ["diff-tree", "-r", "-z", "--raw", "--numstat", "--no-renames"]
    args += ["--no-ext-diff", "--no-textconv", *await _sides(git, repo, snapshot)]
    output = await run_trusted(git, repo, args, _MAX_LIST_BYTES)
    return parse_changes(output.out)


def parse_changes(data: bytes) -> tuple[FileChange, ...]:
    """Return the files in the output of `git diff-tree -z --raw --numstat`."""
    fields = iter(data.decode("utf-8", "surrogateescape").split("\0")[:-1])
    kinds: dict[str, str] = {}
    changes = []
    for field in fields:
        if field.startswith(":"):
            kinds[next(fields, "")] = field.rsplit(" ", 1)[-1]
            continue
        added, removed, path = [*field.split("\t", 2), "", ""][:3]
        changes.append(
            FileChange(
                path=printable(path),
                kind=_kind(kinds.get(path, "M")),
                added=int(added) if added.isdigit() else None,
                removed=int(removed) if removed.isdigit() else None,
            )
        )
    return tuple(changes)


def _kind(letter: str) -> Literal["added", "changed", "deleted"]:
    if letter == "A":
        return "added"
    return "deleted" if letter == "D" else "changed"


async def _commits(
    repo: ClonedRepo, git: Git, snapshot: Snapshot
) -> tuple[int, tuple[Commit, ...]]:
    if snapshot.head is None or snapshot.head == repo.base:
        return 0, ()
    since = [snapshot.head, *(["--not", repo.base] if repo.base else [])]
    count = await run_trusted(git, repo, ["rev-list", "--count", *since])
    args = ["log", "-z", _LOG_FORMAT, f"--max-count={_MAX_COMMITS}", *since]
    output = await run_trusted(git, repo, args, _MAX_LIST_BYTES)
    return int(count.text), parse_commits(output.text)


def parse_commits(text: str) -> tuple[Commit, ...]:
    """Return the commits in the output of `git log -z` with `_LOG_FORMAT`."""
    commits = []
    for record in text.split("\0"):
        fields = record.split("\x1f", 3)
        if len(fields) == 4:
            oid, author, at, subject = fields
            when = int(at) if at.isdigit() else 0
            commits.append(Commit(oid, printable(author), when, printable(subject)))
    return tuple(commits)


async def _sides(git: Git, repo: ClonedRepo, snapshot: Snapshot) -> list[str]:
    return [await tree_of(git, repo, repo.base), snapshot.tree]
