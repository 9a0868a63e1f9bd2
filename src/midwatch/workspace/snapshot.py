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
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from midwatch.files import locked
from midwatch.workspace.errors import CacheBusy, RepositoryError, WorkspaceDiskFull
from midwatch.workspace.git import Git, GitCommand, GitOutput
from midwatch.workspace.record import ClonedRepo
from midwatch.workspace.untrusted import (
    Head,
    UntrustedRepositoryError,
    clear_quarantine,
    is_folder,
    kind_of,
    read_head,
    take_commit,
)

# ------------------------------------------------------------ the trusted git directory

_YES_OR_NO = frozenset({0, 1})


async def run_trusted(
    git: Git,
    repo: ClonedRepo,
    args: list[str],
    max_output: int | None = None,
    ok: frozenset[int] = frozenset({0}),
) -> GitOutput:
    """Run git in the trusted git directory of a clone, without its work tree. Raises as `Git.run`."""
    command = GitCommand(
        args, repository=repo.url, git_dir=repo.git_dir, max_output=max_output, ok=ok
    )
    return await git.run(command)


async def tree_of(git: Git, repo: ClonedRepo, commit: str | None) -> str:
    """Return the tree of a commit, or the empty tree for None."""
    if commit is None:
        args = ["hash-object", "-t", "tree", "-w", "--stdin"]  # stdin is empty
    else:
        args = ["rev-parse", "--verify", "--quiet", f"{commit}^{{tree}}"]
    return (await run_trusted(git, repo, args)).text.strip()


def pushed_ref(repo: ClonedRepo) -> str:
    """Return the ref of the commit that was last pushed to the present URL and branch."""
    target = f"{repo.push_url}\0{repo.push_branch}".encode("utf-8", "surrogateescape")
    return f"refs/midwatch/pushed-to/{hashlib.sha256(target).hexdigest()[:16]}"


async def pushed_commit(git: Git, repo: ClonedRepo) -> str | None:
    """Return the commit that was last pushed to the present URL and branch, or None."""
    args = ["rev-parse", "--verify", "--quiet", pushed_ref(repo)]
    return (await run_trusted(git, repo, args, ok=_YES_OR_NO)).text.strip() or None


async def is_ancestor(
    git: Git, repo: ClonedRepo, older: str | None, newer: str | None
) -> bool:
    """Return whether `newer` has all commits of `older`; None stands for no commit."""
    if older is None or newer is None:
        return older is None
    args = ["merge-base", "--is-ancestor", older, newer]
    return (await run_trusted(git, repo, args, ok=_YES_OR_NO)).code == 0


# ------------------------------------------------------------ snapshots

_SIGNATURE = b"version https://git-lfs.github.com/spec/v1\n"
_CHUNK = 1 << 20


def pointer_of(path: Path) -> bytes:
    """Return the Git LFS pointer that a commit has in place of a file; a pointer is its own.

    Raises OSError. The format: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
    """
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
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
        new_pointers: Files of Git LFS whose content changed: no server has what their pointers
            in `tree` name.
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
    lock, wait = repo.git_dir / "snapshot.lock", git.limits.local_seconds
    async with locked(lock, git.clock, shared=False, seconds=wait) as held:
        if not held:
            raise CacheBusy(
                f"another inspection of {repo.path} did not end within {wait:g} s",
                hint="try again when it has ended",
            )
        clear_quarantine(repo.git_dir)
        return await _take(git, repo, limits or SnapshotLimits())


async def _take(git: Git, repo: ClonedRepo, limits: SnapshotLimits) -> Snapshot:
    head, problem = await _head(git, repo)
    if not is_folder(repo.path):
        tree = await tree_of(git, repo, head.commit)
        gone = "its folder is missing"
        return Snapshot(head.commit, head.branch, tree, False, problem=gone)
    with tempfile.TemporaryDirectory(dir=repo.git_dir, prefix="quarantine-") as folder:
        work_tree = _WorkTree(git, repo, Path(folder) / "index", limits)
        snapshot = await _of_work_tree(work_tree, head)
    return replace(snapshot, problem=problem or snapshot.problem)


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
    """Take the head commit of a clone in. Return it and None, or the base and why it failed."""
    try:
        head = await asyncio.to_thread(read_head, repo.path)
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
    """The work tree of a clone, read through a new index."""

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
        await self._run(refresh, ok=_YES_OR_NO)
        changed = await self._paths(
            ["diff-files", "-z", "--name-only", "--ignore-submodules=all"]
        )
        others = await self._paths(["ls-files", "-z", "--others", "--exclude-standard"])
        taken, left_out = self._bounded(others)
        pointers = await self._add([*changed, *taken], no_object="0" * len(before))
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

    async def _changed(
        self, before: str, after: str, among: set[str]
    ) -> tuple[str, ...]:
        if not among:
            return ()
        differ = ["diff-tree", "-r", "-z", "--name-only", before, after]
        return tuple(path for path in await self._paths(differ) if path in among)

    def _bounded(self, paths: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the untracked paths that are read, and those that are only counted."""
        taken: list[str] = []
        left_out: list[str] = []
        total = 0
        for path in paths:
            # A path with a trailing slash is another repository, which is never entered.
            kind = "gone" if path.endswith("/") else kind_of(self.repo.path, path)
            size = (self.repo.path / path).lstat().st_size if kind != "gone" else 0
            fits = size <= self.limits.file_bytes
            fits = fits and total + size <= self.limits.total_bytes
            if kind != "gone" and fits and len(taken) < self.limits.files:
                taken.append(path)
                total += size
            else:
                left_out.append(path)
        return taken, left_out

    async def _add(self, paths: Sequence[str], no_object: str) -> set[str]:
        """Update paths in the index from the disk; missing files are removed.

        Returns:
            The paths that were added as Git LFS pointers.
        """
        kinds = {path: kind_of(self.repo.path, path) for path in paths}
        gone = [path for path, kind in kinds.items() if kind == "gone"]
        if gone:
            await self._index_info(f"0 {no_object}\t{path}" for path in gone)
        present = [path for path, kind in kinds.items() if kind != "gone"]
        pointers = await self._lfs_paths([p for p in present if kinds[p] == "file"])
        plain = [path for path in present if path not in pointers]
        if plain:
            add = ["update-index", "-z", "--add", "--remove", "--replace", "--stdin"]
            await self._run(add, stdin=_joined(plain))
        for path in sorted(pointers):
            await self._add_pointer(path)
        return pointers

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
