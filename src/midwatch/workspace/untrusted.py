"""Reading a `.git` that an agent may have changed: as plain data, by no program.

Nothing here follows a symbolic link, opens a device or a pipe, or trusts a size. What comes out are
an object id and copies of object files, which git then checks by content.
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
from midwatch.workspace.git import Command, Git
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
    """Something in `.git` is not what git itself would have put there."""


@dataclass(frozen=True, slots=True)
class Head:
    """Where a clone stands: a commit (None before the first), and its branch unless detached."""

    commit: str | None
    branch: str | None


def read_head(clone: Path) -> Head:
    """What the HEAD of a clone names. Raises NotPlain."""
    with _folder(None, str(clone)) as root, _folder(root, ".git") as git_dir:
        name = _text(git_dir, "HEAD", _SMALL).strip()
        for _ in range(5):
            if is_oid(name):
                return Head(name, None)
            ref = name.removeprefix("ref:").strip()
            if ref == name or not ref.startswith("refs/") or not is_ref_name(ref):
                raise UntrustedRepositoryError("its HEAD names no commit")
            value = _ref(git_dir, ref)
            if value is None or is_oid(value):
                return Head(value, ref.removeprefix("refs/heads/"))
            name = value
    raise UntrustedRepositoryError("its HEAD goes in circles")


def copy_new_objects(clone: Path, known: Path, quarantine: Path) -> None:
    """Copy the object files of a clone that `known` (a git directory of ours) does not have.

    Only packs and loose objects: no list of alternates, no graph, no index over packs. Raises
    NotPlain, also when they are larger than MAX_QUARANTINE_BYTES together.
    """
    left = MAX_QUARANTINE_BYTES
    with (
        _folder(None, str(clone)) as root,
        _folder(root, ".git") as git_dir,
        _folder(git_dir, "objects") as objects,
    ):
        for folder, pattern in _object_folders(objects):
            with _folder(objects, folder) as source:
                for name in sorted(os.listdir(source)):
                    old = known / "objects" / folder / name
                    if pattern.fullmatch(name) and not old.exists():
                        left -= _copy(source, name, quarantine / folder / name, left)


def kind_of(root: Path, relative: str) -> str:
    """What stands at a path of a work tree: file, link or gone.

    "gone" includes what git cannot hold (a folder, a pipe) and what is only reached through a
    symbolic link, which may lead anywhere.
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


def is_plain_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


@contextlib.contextmanager
def open_plain(folder: int | None, name: str) -> Iterator[int]:
    """A descriptor of a regular file; raises NotPlain for anything else, FileNotFoundError."""
    # Without O_NONBLOCK a named pipe would hold the open until somebody writes.
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
def _folder(parent: int | None, name: str) -> Iterator[int]:
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
    """The value of a ref, loose before packed; None if it is in neither."""
    *folders, name = ref.split("/")
    with contextlib.ExitStack() as opened:
        folder = git_dir
        try:
            for part in folders:
                folder = opened.enter_context(_folder(folder, part))
            return _text(folder, name, _SMALL).strip()
        except (UntrustedRepositoryError, FileNotFoundError):
            pass  # a branch that was packed has no folder
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
    with open_plain(folder, name) as descriptor:
        data = b""
        while chunk := os.read(descriptor, min(_CHUNK, limit + 1 - len(data))):
            data += chunk
            if len(data) > limit:
                raise UntrustedRepositoryError(f"{name} is too long")
    return data.decode("utf-8", "replace")


def _copy(folder: int, name: str, target: Path, limit: int) -> int:
    target.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with open_plain(folder, name) as source, target.open("wb") as copy:
        while chunk := os.read(source, _CHUNK):
            size += len(chunk)
            if size > limit:
                raise UntrustedRepositoryError("its objects are too large to look at")
            copy.write(chunk)
    return size


# ------------------------------------------------------------ intake
# Taking an agent's commits into a git directory of ours, checked by content.
#
# `git fetch` from the clone is no way: it starts upload-pack there, with the clone's own
# configuration. Instead, copies of the object files are offered to a `pack-objects` that runs in our
# git directory, and `index-pack` computes every object's id anew, so a false index cannot pass off one content
# as another.

_MOST_REFS = 5000


async def take_commit(git: Git, repo: ClonedRepo, commit: str) -> None:
    """Bring `commit`, and all that it needs, into the trusted git directory.

    Raises NotPlain where that cannot be done. Afterwards the objects are all there and as
    their ids say.
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
    """A pack of what the commit has beyond all that we have."""
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
        raise GitFailed(repo.url, "nothing to take")
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
) -> Command:
    return Command(
        args,
        repository=repo.url,
        git_dir=repo.git_dir,
        stdin=stdin,
        variables=variables or {},
    )


def clear_quarantine(git_dir: Path) -> None:
    """Remove what an inspection that was killed left behind."""
    for left in git_dir.glob("quarantine-*"):
        shutil.rmtree(left, ignore_errors=True)
