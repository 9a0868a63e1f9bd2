"""Read a `.git` that an agent may have changed: as data, without running a program on it.

Nothing here follows a symbolic link, opens a device or a pipe, or trusts a size. The results are an object
id and copies of object files, whose content git then checks.

`git fetch` from the clone is not safe: it starts upload-pack there, with the configuration of the clone.
Instead, copies of the object files are read by a `pack-objects` that runs in the trusted git directory,
and `index-pack` computes the id of every object, so that a false index cannot pass one content off as
another.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from midwatch.workspace.errors import GitFailed, RepositoryError
from midwatch.workspace.git import Git, GitCommand
from midwatch.workspace.record import ClonedRepo
from midwatch.workspace.refs import is_oid, read_refs
from midwatch.workspace.urls import is_ref_name

MAX_QUARANTINE_BYTES = 8_000_000_000
_SMALL = 4096
_PACKED_REFS = 64_000_000
_HEX = re.compile(r"[0-9a-f]+")
_PACK = re.compile(r"pack-[0-9a-f]+\.(pack|idx)")
_CHUNK = 1 << 20


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
        name = _text(git_dir, "HEAD", _SMALL).strip()
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
    """Return what is at a path of a work tree: "file", "link" or "gone".

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
            return _text(folder, name, _SMALL).strip()
        except (UntrustedRepositoryError, FileNotFoundError):
            pass  # a packed ref may have no folder
    try:
        packed = _text(git_dir, "packed-refs", _PACKED_REFS)
    except FileNotFoundError:
        return None
    for line in packed.split("\n"):
        oid, _, found = line.partition(" ")
        if found == ref and is_oid(oid):
            return oid
    return None


def _text(folder: int, name: str, limit: int) -> str:
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


# ------------------------------------------------------------ taking commits in

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
            await git.run(_command(repo, ["index-pack", "--stdin"], stdin=pack))
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
    command = _command(
        repo,
        ["pack-objects", "--revs", "--quiet", str(quarantine / "taken")],
        stdin=revisions.encode(),
        variables={"GIT_ALTERNATE_OBJECT_DIRECTORIES": str(quarantine / "objects")},
    )
    names = (await git.run(command)).text.split()
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
        await git.run(_command(repo, args))
    except RepositoryError:
        return False
    return True


def _command(
    repo: ClonedRepo,
    args: list[str],
    *,
    stdin: bytes | Path | None = None,
    variables: dict[str, str] | None = None,
) -> GitCommand:
    return GitCommand(
        args,
        repository=repo.url,
        git_dir=repo.git_dir,
        stdin=stdin,
        variables=variables or {},
    )


def clear_quarantine(git_dir: Path) -> None:
    """Remove what killed inspections left."""
    for left in git_dir.glob("quarantine-*"):
        shutil.rmtree(left, ignore_errors=True)
