"""Inspect the repositories of a session: clean, changed or pushed, with files, lines and commits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from midwatch.text import show_unseen
from midwatch.workspace.git import Git
from midwatch.workspace.record import ClonedRepo, Workspace
from midwatch.workspace.snapshot import (
    Snapshot,
    SnapshotLimits,
    is_ancestor,
    pushed_commit,
    run_trusted,
    take_snapshot,
    tree_of,
)

RepoStatus = Literal["clean", "changed", "pushed"]
MAX_DIFF_BYTES = 2_000_000
_MAX_LIST_BYTES = 8_000_000
_MAX_COMMITS = 200
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
        status: "clean" without differences from the base, "pushed" if the remote has them all.
        base: The commit that the session started from, or None.
        head: The last commit, or None.
        branch: The branch; None if HEAD is detached.
        commit_count: Number of commits since the base.
        commits: The newest 200 of them, newest first.
        files: Differences between the base and the files on disk, with untracked files.
        untracked: Number of untracked files.
        left_out: Untracked files that are not in `files`, such as too large ones.
        problem: What could not be inspected, or None.
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
    return await describe(repo, git, await take_snapshot(git, repo, limits))


async def diff_of(
    repo: ClonedRepo,
    git: Git,
    max_bytes: int = MAX_DIFF_BYTES,
    limits: SnapshotLimits | None = None,
) -> Diff:
    """Return all changes since the base, with new files. Nothing in the clone runs.

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
    args = ["diff-tree", "-p", "-r", "--no-ext-diff", "--no-textconv", "--no-color"]
    output = await run_trusted(
        git, repo, [*args, *await _sides(git, repo, snapshot)], max_bytes
    )
    return Diff(printable(output.text), output.cut)


async def describe(repo: ClonedRepo, git: Git, snapshot: Snapshot) -> RepoState:
    """Return the state of a repository from a snapshot. Raises RepositoryError."""
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
