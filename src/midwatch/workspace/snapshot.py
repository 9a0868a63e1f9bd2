"""Take the state of a clone as a tree in the trusted git directory.

An agent has worked in the clone, so its `.git` may be hostile: its configuration, hooks, filters and
index are not read. Git runs in the trusted git directory, with a new index, and reads the files only.
A repository inside the work tree, a submodule or a planted one, is never entered: git would start
another git there, with the configuration of that repository. Git LFS pointers are computed here: the
filter program of the repository never runs.

A `.git` is read as data: nothing here follows a symbolic link, opens a device or a pipe, or trusts a size. The
results are an object id and copies of object files, whose content git then checks.

`git fetch` from the clone is not safe: it starts upload-pack there, with the configuration of the clone.
Instead, copies of the object files are read by a `pack-objects` that runs in the trusted git directory,
and `index-pack` computes the id of every object, so that a false index cannot pass one content off as
another.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from midwatch.files import locked
from midwatch.files import open_regular as open_regular_file
from midwatch.workspace.errors import (
    CacheBusy,
    GitFailed,
    RepositoryError,
    WorkspaceDiskFull,
)
from midwatch.workspace.git import Git, GitCommand, GitOutput
from midwatch.workspace.record import ClonedRepo
from midwatch.workspace.refs import is_oid, read_refs
from midwatch.workspace.urls import is_ref_name

# ------------------------------------------------------------ reading a `.git`

MAX_QUARANTINE_BYTES = 8_000_000_000
_SMALL = 4096
_PACKED_REFS = 64_000_000
_HEX = re.compile(r"[0-9a-f]+")
_PACK = re.compile(r"pack-[0-9a-f]+\.(pack|idx)")


class UntrustedRepositoryError(Exception):
    """Something in `.git` is not as git writes it."""


@dataclass(frozen=True, slots=True)
class Head:
    """The HEAD of a clone: a commit (None before the first), and the branch (None if detached)."""

    commit: str | None
    branch: str | None


def read_head(clone: Path) -> Head:
    """Return the HEAD of a clone. Raises UntrustedRepositoryError, and FileNotFoundError without one."""
    with _open_folder(None, str(clone)) as root, _open_folder(root, ".git") as git_dir:
        name = _read_text(git_dir, "HEAD", _SMALL).strip()
        for _ in range(5):
            if is_oid(name):
                return Head(name, None)
            ref = name.removeprefix("ref:").strip()
            if ref == name or not ref.startswith("refs/") or not is_ref_name(ref):
                raise UntrustedRepositoryError("its HEAD does not name a commit")
            value = _ref(git_dir, ref)
            if value is None or is_oid(value):
                return Head(value, ref.removeprefix("refs/heads/"))
            name = value
    raise UntrustedRepositoryError("its HEAD is a loop of refs")


def copy_new_objects(clone: Path, known: Path, quarantine: Path) -> None:
    """Copy packs and loose objects of a clone, without alternates, commit graphs and multi-pack indexes.

    Args:
        clone: The clone.
        known: A git directory whose object files are not copied.
        quarantine: The object folder to copy into.

    Raises:
        UntrustedRepositoryError: A file is not as git writes it, or all together are larger than
            MAX_QUARANTINE_BYTES.
    """
    left = MAX_QUARANTINE_BYTES
    with (
        _open_folder(None, str(clone)) as root,
        _open_folder(root, ".git") as git_dir,
        _open_folder(git_dir, "objects") as objects,
    ):
        for folder, pattern in _object_folders(objects):
            with _open_folder(objects, folder) as source:
                for name in sorted(os.listdir(source)):
                    old = known / "objects" / folder / name
                    if pattern.fullmatch(name) and not old.exists():
                        left -= _copy(source, name, quarantine / folder / name, left)


def kind_of(root: Path, relative: str) -> str:
    """Return the kind of a path in a work tree: "file", "link" or "gone".

    "gone" includes what git cannot store (a folder, a pipe), and paths through a symbolic link, which
    may lead anywhere.
    """
    place = root
    parts = relative.split("/")
    try:
        for part in parts[:-1]:
            place = place / part
            if not stat.S_ISDIR(os.lstat(place).st_mode):
                return "gone"
        mode = os.lstat(place / parts[-1]).st_mode
    except (OSError, ValueError):
        return "gone"
    if stat.S_ISLNK(mode):
        return "link"
    return "file" if stat.S_ISREG(mode) else "gone"


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder, and not a symbolic link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


@contextlib.contextmanager
def open_regular(folder: int | None, name: str) -> Iterator[int]:
    """Yield a descriptor of a regular file.

    Raises UntrustedRepositoryError for anything else, and FileNotFoundError.
    """
    # Without O_NONBLOCK, opening a named pipe blocks until another process writes.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UntrustedRepositoryError(
            f"{name} cannot be opened: {error.strerror}"
        ) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UntrustedRepositoryError(f"{name} is not a file")
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _open_folder(parent: int | None, name: str) -> Iterator[int]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=parent)
    except OSError:
        raise UntrustedRepositoryError(
            f"{os.path.basename(name)} is not a folder"
        ) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _object_folders(objects: int) -> list[tuple[str, re.Pattern[str]]]:
    loose = [n for n in os.listdir(objects) if len(n) == 2 and _HEX.fullmatch(n)]
    return [(name, _HEX) for name in sorted(loose)] + [("pack", _PACK)]


def _ref(git_dir: int, ref: str) -> str | None:
    """Return the value of a ref, loose or packed, or None."""
    *folders, name = ref.split("/")
    with contextlib.ExitStack() as opened:
        folder = git_dir
        try:
            for part in folders:
                folder = opened.enter_context(_open_folder(folder, part))
            return _read_text(folder, name, _SMALL).strip()
        except (UntrustedRepositoryError, FileNotFoundError):
            pass  # a packed ref may have no folder
    try:
        packed = _read_text(git_dir, "packed-refs", _PACKED_REFS)
    except FileNotFoundError:
        return None
    for line in packed.split("\n"):
        oid, _, found = line.partition(" ")
        if found == ref and is_oid(oid):
            return oid
    return None


def _read_text(folder: int, name: str, limit: int) -> str:
    with open_regular(folder, name) as descriptor:
        data = b""
        while chunk := os.read(descriptor, min(_CHUNK, limit + 1 - len(data))):
            data += chunk
            if len(data) > limit:
                raise UntrustedRepositoryError(f"{name} is too long")
    return data.decode("utf-8", "replace")


def _copy(folder: int, name: str, target: Path, limit: int) -> int:
    target.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with open_regular(folder, name) as source, target.open("wb") as copy:
        while chunk := os.read(source, _CHUNK):
            size += len(chunk)
            if size > limit:
                raise UntrustedRepositoryError("its objects are too large to inspect")
            copy.write(chunk)
    return size


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
    if await _is_complete(git, repo, commit):
        return
    with tempfile.TemporaryDirectory(dir=repo.git_dir, prefix="quarantine-") as name:
        quarantine = Path(name)
        (quarantine / "objects").mkdir()
        objects = quarantine / "objects"
        await asyncio.to_thread(copy_new_objects, repo.path, repo.git_dir, objects)
        try:
            pack = await _packed(git, repo, commit, quarantine)
            await run_trusted(git, repo, ["index-pack", "--stdin"], stdin=pack)
        except RepositoryError as error:
            raise UntrustedRepositoryError(
                f"its commits cannot be read: {error.cause}"
            ) from None
    if not await _is_complete(git, repo, commit):
        raise UntrustedRepositoryError("objects of its commits are missing or false")


async def _packed(git: Git, repo: ClonedRepo, commit: str, quarantine: Path) -> Path:
    """Return a pack with the objects of a commit that the trusted git directory does not have."""
    known = sorted({oid for oid in read_refs(repo.git_dir).values()})[:_MOST_REFS]
    known += [repo.base] if repo.base else []
    revisions = "".join([f"{commit}\n"] + [f"^{oid}\n" for oid in known])
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


async def _is_complete(git: Git, repo: ClonedRepo, commit: str) -> bool:
    args = ["rev-list", "--objects", "--quiet", commit]
    if repo.blobless:
        args.insert(1, "--exclude-promisor-objects")
    if repo.base is not None:
        args += ["--not", repo.base]
    try:
        await run_trusted(git, repo, args)
    except RepositoryError:
        return False
    return True


def clear_quarantine(git_dir: Path) -> None:
    """Remove the files that killed inspections left behind."""
    for left in git_dir.glob("quarantine-*"):
        shutil.rmtree(left, ignore_errors=True)


# ------------------------------------------------------------ the trusted git directory

_YES_OR_NO = frozenset({0, 1})


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
    """Copy the head commit of a clone into the trusted git directory.

    Return the head and None, or the base and the reason why it failed.
    """
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
        await self._run(refresh, ok=_YES_OR_NO)
        changed = await self._paths(
            ["diff-files", "-z", "--name-only", "--ignore-submodules=all"]
        )
        others = await self._paths(["ls-files", "-z", "--others", "--exclude-standard"])
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
        kinds = {path: kind_of(self.repo.path, path) for path in paths}
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
