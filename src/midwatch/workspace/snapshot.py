"""Take the state of a clone as a tree in the trusted git directory.

An agent has worked in the clone, so its `.git` may be hostile: its configuration, hooks, filters and
index are not read. Git runs in the trusted git directory, with a new index, and reads the files only.
A repository inside the work tree, a submodule or a planted one, is never entered: git would start
another git there, with the configuration of that repository. Git LFS pointers are computed here: the
filter program of the repository never runs.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from midwatch.files import open_regular as open_regular_file
from midwatch.workspace.errors import RepositoryError, WorkspaceDiskFull
from midwatch.workspace.git import Git, GitCommand, GitOutput
from midwatch.workspace.mount_points import is_mount_point
from midwatch.workspace.record import ClonedRepo
from midwatch.workspace.trusted import YES_OR_NO, locked_clone, take_commit, tree_of
from midwatch.workspace.untrusted import (
    Head,
    UntrustedRepositoryError,
    is_folder,
    is_linked_worktree,
    kind_of,
    read_head,
)

_SIGNATURE = b"version https://git-lfs.github.com/spec/v1\n"
_CHUNK = 1 << 20


def pointer_of(path: Path) -> bytes:
    """Return the Git LFS pointer that a commit has in place of a file; a pointer is its own.

    Raises OSError. The format: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
    """
    digest, size = hashlib.sha256(), 0
    with os.fdopen(open_regular_file(path), "rb") as file:
        first = file.read(1024)
        if first.startswith(_SIGNATURE):
            return first
        while first:
            digest.update(first)
            size += len(first)
            first = file.read(_CHUNK)
    return _SIGNATURE + f"oid sha256:{digest.hexdigest()}\nsize {size}\n".encode()


@dataclass(frozen=True, slots=True)
class SnapshotLimits:
    """Limits on the untracked files that are read; the others are only counted.

    Attributes:
        file_bytes: The largest file.
        total_bytes: The largest size of all together.
        files: The largest number.
    """

    file_bytes: int = 5_000_000
    total_bytes: int = 200_000_000
    files: int = 20_000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A clone at one moment. All objects are in the trusted git directory.

    Attributes:
        head: The last commit, or None.
        branch: The branch; None if HEAD is detached.
        tree: The whole content, with changes that are not committed.
        dirty: Whether `tree` differs from that of `head`.
        untracked: Number of untracked files.
        left_out: Untracked files that are not in `tree`.
        new_pointers: Git LFS files whose content changed, so that no server has the content that
            their pointers in `tree` refer to.
        problem: What could not be inspected, or None.
    """

    head: str | None
    branch: str | None
    tree: str
    dirty: bool
    untracked: int = 0
    left_out: tuple[str, ...] = ()
    new_pointers: tuple[str, ...] = ()
    problem: str | None = None


async def take_snapshot(
    git: Git, repo: ClonedRepo, limits: SnapshotLimits | None = None
) -> Snapshot:
    """Inspect a clone without running anything in it.

    Args:
        git: Runs git.
        repo: The clone.
        limits: Limits on untracked files.

    Returns:
        The snapshot. Its `problem` names what the agent made impossible to inspect.

    Raises:
        CacheBusy: Another inspection of the clone did not end in time.
        WorkspaceDiskFull: There is no space for the objects.
        RepositoryError: The trusted git directory is broken.
    """
    async with locked_clone(git, repo):
        return await _take(git, repo, limits or SnapshotLimits())


async def _take(git: Git, repo: ClonedRepo, limits: SnapshotLimits) -> Snapshot:
    head, problem = await _head(git, repo)
    if not is_folder(repo.path):
        tree = await tree_of(git, repo, head.commit)
        gone = "its folder is missing"
        return Snapshot(head.commit, head.branch, tree, False, problem=gone)
    snapshot = await snapshot_files(git, repo, head, limits)
    return replace(snapshot, problem=problem or snapshot.problem)


async def snapshot_files(
    git: Git, repo: ClonedRepo, head: Head, limits: SnapshotLimits
) -> Snapshot:
    """Return a snapshot of the files in `repo.path`, compared with a commit that was taken already."""
    with tempfile.TemporaryDirectory(dir=repo.git_dir, prefix="quarantine-") as folder:
        work_tree = _WorkTree(git, repo, Path(folder) / "index", limits)
        return await _of_work_tree(work_tree, head)


async def _of_work_tree(work_tree: _WorkTree, head: Head) -> Snapshot:
    try:
        return await work_tree.snapshot(head)
    except WorkspaceDiskFull:
        raise
    except RepositoryError as error:
        # A pipe named .gitignore blocks git, a file may be unreadable: report it with the rest.
        tree = await tree_of(work_tree.git, work_tree.repo, head.commit)
        why = f"its files cannot be compared: {error.cause}"
        return Snapshot(head.commit, head.branch, tree, True, problem=why)


async def _head(git: Git, repo: ClonedRepo) -> tuple[Head, str | None]:
    """Copy the head commit of a clone into the trusted git directory.

    Return the head and None, or the base and the reason why it failed.
    """
    try:
        head = await asyncio.to_thread(read_head, repo.agent_git)
        if head.commit is not None:
            await take_commit(git, repo, head.commit)
    except (UntrustedRepositoryError, FileNotFoundError) as error:
        why = "its .git was changed: " + (
            str(error)
            if isinstance(error, UntrustedRepositoryError)
            else "HEAD is missing"
        )
        return Head(repo.base, None), why
    return head, None


@dataclass(frozen=True, slots=True)
class _WorkTree:
    """The work tree of a clone, read with a new index."""

    git: Git
    repo: ClonedRepo
    index: Path
    limits: SnapshotLimits

    async def snapshot(self, head: Head) -> Snapshot:
        await self._run(
            ["read-tree", head.commit] if head.commit else ["read-tree", "--empty"]
        )
        before = await self._tree()
        refresh = ["update-index", "-q", "--ignore-submodules", "--refresh"]
        await self._run(refresh, ok=YES_OR_NO)
        changed = await self._paths(
            ["diff-files", "-z", "--name-only", "--ignore-submodules=all"]
        )
        others = await self._others()
        included, left_out = self._bounded(others)
        pointers = await self._add([*changed, *included], no_object="0" * len(before))
        tree = await self._tree()
        return Snapshot(
            head=head.commit,
            branch=head.branch,
            tree=tree,
            dirty=tree != before or bool(left_out),
            untracked=len(others),
            left_out=tuple(left_out),
            new_pointers=await self._changed(before, tree, pointers),
        )

    async def _others(self) -> list[str]:
        """Return the untracked paths, without what is not work: mount points of a sandbox, and linked worktrees."""
        found = await self._paths(["ls-files", "-z", "--others", "--exclude-standard"])
        return [
            path
            for path in found
            if not is_mount_point(self.repo.path / path)
            and not (path.endswith("/") and self._is_worktree(path.rstrip("/")))
        ]

    def _is_worktree(self, path: str) -> bool:
        """Return whether a folder is a linked worktree of this clone; `take_other_work` inspects it."""
        return is_linked_worktree(self.repo.agent_git, self.repo.path, path)

    async def _changed(
        self, before: str, after: str, among: set[str]
    ) -> tuple[str, ...]:
        if not among:
            return ()
        differ = ["diff-tree", "-r", "-z", "--name-only", before, after]
        return tuple(path for path in await self._paths(differ) if path in among)

    def _bounded(self, paths: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the untracked paths that are read, and those that are only counted."""
        included: list[str] = []
        left_out: list[str] = []
        total = 0
        for path in paths:
            # A path with a trailing slash is another repository, which is never entered.
            kind = "gone" if path.endswith("/") else kind_of(self.repo.path, path)
            size = (self.repo.path / path).lstat().st_size if kind != "gone" else 0
            fits = size <= self.limits.file_bytes
            fits = fits and total + size <= self.limits.total_bytes
            if kind != "gone" and fits and len(included) < self.limits.files:
                included.append(path)
                total += size
            else:
                left_out.append(path)
        return included, left_out

    async def _add(self, paths: Sequence[str], no_object: str) -> set[str]:
        """Update paths in the index from the disk; missing files are removed.

        Returns:
            The paths that were added as Git LFS pointers.
        """
        kinds = {path: self._kind(path) for path in paths}
        gone = [path for path, kind in kinds.items() if kind == "gone"]
        if gone:
            await self._index_info(f"0 {no_object}\t{path}" for path in gone)
        present = [path for path, kind in kinds.items() if kind != "gone"]
        pointers = await self._lfs_paths([p for p in present if kinds[p] == "file"])
        regular = [path for path in present if path not in pointers]
        if regular:
            add = ["update-index", "-z", "--add", "--remove", "--replace", "--stdin"]
            await self._run(add, stdin=_joined(regular))
        for path in sorted(pointers):
            await self._add_pointer(path)
        return pointers

    def _kind(self, path: str) -> str:
        # A mount point where a file was removed.
        place = self.repo.path / path
        return "gone" if is_mount_point(place) else kind_of(self.repo.path, path)

    async def _lfs_paths(self, paths: Sequence[str]) -> set[str]:
        """Return the paths that the attributes of the repository assign to Git LFS."""
        if not paths:
            return set()
        check = ["check-attr", "-z", "--stdin", "filter"]
        fields = (await self._run(check, stdin=_joined(paths))).out.split(b"\0")
        values = zip(fields[0::3], fields[2::3], strict=False)
        return {_text(path) for path, value in values if value == b"lfs"}

    async def _add_pointer(self, path: str) -> None:
        file = self.repo.path / path
        pointer = await asyncio.to_thread(pointer_of, file)
        mode = "100755" if file.lstat().st_mode & 0o100 else "100644"
        hashed = await self._run(["hash-object", "-w", "--stdin"], stdin=pointer)
        await self._index_info([f"{mode} {hashed.text.strip()}\t{path}"])

    async def _index_info(self, lines: Iterable[str]) -> None:
        update = ["update-index", "-z", "--replace", "--index-info"]
        await self._run(update, stdin=_joined(list(lines)))

    async def _paths(self, args: list[str]) -> list[str]:
        output = await self._run(args)
        # The part after the last NUL is empty, or was cut.
        names = output.out.split(b"\0")[:-1]
        return [_text(name) for name in names]

    async def _tree(self) -> str:
        return (await self._run(["write-tree", "--missing-ok"])).text.strip()

    async def _run(
        self,
        args: list[str],
        *,
        stdin: bytes | None = None,
        ok: frozenset[int] = frozenset({0}),
    ) -> GitOutput:
        command = GitCommand(
            args,
            repository=self.repo.url,
            git_dir=self.repo.git_dir,
            work_tree=self.repo.path,
            stdin=stdin,
            ok=ok,
            variables={"GIT_INDEX_FILE": str(self.index)},
        )
        return await self.git.run(command)


def _text(name: bytes) -> str:
    # File names need not be UTF-8; this restores the same bytes.
    return name.decode("utf-8", "surrogateescape")


def _joined(lines: Iterable[str]) -> bytes:
    return b"".join(line.encode("utf-8", "surrogateescape") + b"\0" for line in lines)
