"""Read a clone and its `.git` as data: nothing in it runs, and nothing is followed.

An agent has worked in the clone. So no symbolic link is followed, no device or pipe is opened, no size is
trusted, and every list has a limit. The results are object ids, names, and copies of object files, whose
content git then checks in the trusted git directory.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from midwatch.text import show_unseen
from midwatch.workspace.refs import is_oid

_CHUNK = 1 << 20

MAX_QUARANTINE_BYTES = 8_000_000_000
_SMALL = 4096
_PACKED_REFS = 64_000_000
_HEX = re.compile(r"[0-9a-f]+")
_PACK = re.compile(r"pack-[0-9a-f]+\.(pack|idx)")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")
LONGEST_NAME = 200
"""The most characters of a name that are shown."""


class UntrustedRepositoryError(Exception):
    """Something in `.git` is not as git writes it."""


GitPlace = tuple[Path, str]
"""A trusted folder, and the path in it of a `.git`, whose folders are opened one by one."""
MAX_REFS = 20_000
"""The most refs, and the most entries of a log, that are read of a clone."""
_MAX_DEPTH = 12
_AUTOSTASHES = ("MERGE_AUTOSTASH", "rebase-merge/autostash", "rebase-apply/autostash")
"""What git has put away for the time of a merge or a rebase."""
_LOG_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Head:
    """The HEAD of a clone: a commit (None before the first), and the branch, as shown (None if detached)."""

    commit: str | None
    branch: str | None


def read_head(place: GitPlace) -> Head:
    """Return the HEAD of a clone. Raises UntrustedRepositoryError, and FileNotFoundError without one."""
    with _open_git(place) as git_dir:
        return _head_in(git_dir, git_dir)


def _head_in(folder: int, git_dir: int) -> Head:
    """Return the HEAD in a folder: `.git` itself, or that of a worktree; its branches are in `git_dir`."""
    name = _read_text(folder, "HEAD", _SMALL).strip()
    for _ in range(5):
        if is_oid(name):
            return Head(name, None)
        ref = name.removeprefix("ref:").strip()
        if ref == name or not _is_path_of_ref(ref):
            raise UntrustedRepositoryError("its HEAD does not name a commit")
        value = _ref(git_dir, ref)
        if value is None or is_oid(value):
            return Head(value, shown_name(ref.removeprefix("refs/heads/")))
        name = value
    raise UntrustedRepositoryError("its HEAD is a loop of refs")


def shown_name(name: str) -> str:
    """Return a name that an agent gave, printable and shortened. Git allows all but control characters."""
    text = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return show_unseen(_UNPRINTABLE.sub("?", text))[:LONGEST_NAME]


def _is_path_of_ref(ref: str) -> bool:
    """Return whether the parts of a ref are names of files, none of which begins with a dot, as git has it."""
    top, *parts = ref.split("/")
    return top == "refs" and all(part and part[0] != "." for part in parts)


def copy_new_objects(place: GitPlace, known: Path, quarantine: Path) -> None:
    """Copy packs and loose objects of a clone, without alternates, commit graphs and multi-pack indexes.

    Args:
        place: The `.git` of the clone.
        known: A git directory whose object files are not copied.
        quarantine: The object folder to copy into.

    Raises:
        UntrustedRepositoryError: A file is not as git writes it, or all together are larger than
            MAX_QUARANTINE_BYTES.
    """
    left = MAX_QUARANTINE_BYTES
    with _open_git(place) as git_dir, _open_folder(git_dir, "objects") as objects:
        for folder, pattern in _object_folders(objects):
            with _open_folder(objects, folder) as source:
                for name in sorted(os.listdir(source)):
                    old = known / "objects" / folder / name
                    if pattern.fullmatch(name) and not old.exists():
                        left -= _copy(source, name, quarantine / folder / name, left)


@dataclass(frozen=True, slots=True)
class Worktree:
    """A linked worktree of a clone: its name, its HEAD, and where its `.git` file says that it is."""

    name: str
    head: Head
    path: str


@dataclass(frozen=True, slots=True)
class UntrustedRefs:
    """What names a commit in a `.git`, besides HEAD.

    Attributes:
        refs: Object ids by full ref name, without remote-tracking branches, which are copies.
        stashes: The stash commits, newest first.
        detached: Commits of a detached HEAD that was left for a branch, newest first.
        worktrees: The linked worktrees.
        problem: Why the list is not complete, or None.
    """

    refs: Mapping[str, str]
    stashes: tuple[str, ...] = ()
    detached: tuple[str, ...] = ()
    worktrees: tuple[Worktree, ...] = ()
    problem: str | None = None


def read_untrusted_refs(place: GitPlace) -> UntrustedRefs:
    """Return what names commits in a `.git`. Raises UntrustedRepositoryError."""
    problems: list[str] = []
    with _open_git(place) as git_dir:
        refs = _packed_refs(git_dir)
        try:
            with _open_folder(git_dir, "refs") as folder:
                _read_loose(folder, "refs", refs, _MAX_DEPTH, problems)
        except UntrustedRepositoryError as error:
            problems.append(f"its refs cannot be read: {error}")
        if len(refs) > MAX_REFS:
            problems.append(f"it has more than {MAX_REFS} refs")
        stash = refs.pop("refs/stash", None)
        stashes = _log_oids(git_dir, "logs/refs/stash", _stashed, problems)
        if stash is not None and stash not in stashes:
            stashes = [stash, *stashes]
        stashes += _autostashes(git_dir, "")
        detached = _log_oids(git_dir, "logs/HEAD", _left_detached, problems)
        worktrees = []
        for name in _names(git_dir, "worktrees", problems):
            folder_of = os.path.join(*place, "worktrees", name)
            log = f"worktrees/{name}/logs/HEAD"
            detached += _log_oids(git_dir, log, _left_detached, problems)
            stashes += _autostashes(git_dir, f"worktrees/{name}/")
            try:
                worktrees.append(_worktree(git_dir, name, folder_of))
            except (UntrustedRepositoryError, FileNotFoundError) as error:
                why = getattr(error, "strerror", None) or error
                problems.append(
                    f"its worktree {shown_name(name)} cannot be read: {why}"
                )
    kept = {
        name: oid for name, oid in refs.items() if not name.startswith("refs/remotes/")
    }
    return UntrustedRefs(
        dict(list(kept.items())[:MAX_REFS]),
        tuple(stashes),
        tuple(dict.fromkeys(detached)),
        tuple(worktrees),
        problems[0] if problems else None,
    )


def worktree_folder(root: Path, worktree: Worktree) -> str | None:
    """Return the path of a worktree below `root`; None if it is not there, or behind a symbolic link."""
    inside = path_within(root, worktree.path)
    if inside is None or not is_folder_within(root, inside):
        return None
    return inside if kind_of(root, f"{inside}/.git") == "file" else None


def is_linked_worktree(place: GitPlace, root: Path, folder: str) -> bool:
    """Return whether a folder below `root` is a linked worktree, and the `.git` at `place` knows it there.

    After `mv` or `cp` it names a worktree that is elsewhere, and an inspection of that one skips its files.
    """
    top, inner = place
    within = path_within(top, link_target(root, folder) or "") or ""
    parent, name = os.path.split(within)
    if parent != f"{inner}/worktrees":
        return False
    try:
        with _open_git(place) as git_dir:
            known = _worktree(git_dir, name, os.path.join(top, within))
    except (UntrustedRepositoryError, FileNotFoundError):
        return False
    return path_within(root, known.path) == os.path.normpath(folder)


def git_place_of(top: Path, folder: str) -> GitPlace | None:
    """Return where the `.git` of a submodule is, or None if it is not there.

    Args:
        top: The clone that contains the submodule.
        folder: Path of the submodule in the clone.

    Raises:
        UntrustedRepositoryError: It is not inside of the clone, or cannot be read.
    """
    if not os.path.lexists(top / folder):
        return None
    if not is_folder_within(top, folder):
        raise UntrustedRepositoryError("it is not a folder")
    inner = f"{folder}/.git"
    if is_folder_within(top, inner):
        return top, inner
    target = link_target(top, folder)
    if target is None:
        with _open_path(top, folder) as opened:
            empty = not os.listdir(opened)
        if not empty:
            raise UntrustedRepositoryError("it has files, and no .git that can be read")
        return None  # not initialised
    inside = path_within(top, target) or "."
    if not is_folder_within(top, inside):
        raise UntrustedRepositoryError("its .git is not in the clone")
    return top, inside


def link_target(top: Path, folder: str) -> str | None:
    """Return the path in the `.git` file of a folder below `top`, or None if it has none."""
    try:
        with _open_path(top, folder) as opened:
            text = _read_text(opened, ".git", _SMALL)
    except (FileNotFoundError, UntrustedRepositoryError):
        return None
    target = text.strip().removeprefix("gitdir:").strip()
    return os.path.normpath(top / folder / target)


def path_within(root: Path, path: str) -> str | None:
    """Return a path relative to `root`, or None if it is not below; git may have written the real path of `root`."""
    for top in (os.path.abspath(root), os.path.realpath(root)):
        if path.startswith(f"{top}{os.sep}"):
            return os.path.relpath(path, top)
    return None


def read_shallow(place: GitPlace) -> list[str]:
    """Return the commits at which the history of a clone is cut. Raises UntrustedRepositoryError."""
    with _open_git(place) as git_dir:
        try:
            lines = _read_text(git_dir, "shallow", _LOG_BYTES).split()
        except FileNotFoundError:
            return []
    return [oid for oid in lines if is_oid(oid)]


def is_folder_within(top: Path, relative: str) -> bool:
    """Return whether a path below `top` is a folder that no symbolic link leads to."""
    try:
        with _open_path(top, relative):
            return True
    except UntrustedRepositoryError:
        return False


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
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UntrustedRepositoryError(f"{name!a} cannot be opened: {why}") from None
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
    except (OSError, ValueError):
        raise UntrustedRepositoryError(
            f"{os.path.basename(name)} is not a folder"
        ) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _open_path(top: Path, relative: str) -> Iterator[int]:
    with contextlib.ExitStack() as opened:
        folder = opened.enter_context(_open_folder(None, str(top)))
        for part in relative.split("/"):
            if part in ("", ".", ".."):
                raise UntrustedRepositoryError(f"{relative} is not a path in a clone")
            folder = opened.enter_context(_open_folder(folder, part))
        yield folder


@contextlib.contextmanager
def _open_git(place: GitPlace) -> Iterator[int]:
    with _open_path(*place) as git_dir:
        yield git_dir


def _packed_refs(git_dir: int) -> dict[str, str]:
    try:
        text = _read_text(git_dir, "packed-refs", _PACKED_REFS)
    except FileNotFoundError:
        return {}
    refs = {}
    for line in text.split("\n"):
        oid, _, name = line.partition(" ")
        if is_oid(oid) and _is_path_of_ref(name):
            refs[name] = oid
    return refs


def _read_loose(
    folder: int, prefix: str, refs: dict[str, str], depth: int, problems: list[str]
) -> None:
    """Add the loose refs below an open folder; a loose ref replaces the packed one."""
    for name in _listed(folder, problems):
        ref = f"{prefix}/{name}"
        if name.startswith(".") or name.endswith(".lock") or ref == "refs/remotes":
            continue
        unreadable = f"its {shown_name(ref)} cannot be read"
        try:
            value = _read_text(folder, name, _SMALL).strip()
        except FileNotFoundError:  # it was deleted meanwhile
            continue
        except UntrustedRepositoryError:
            try:
                with _open_folder(folder, name) as inner:
                    if depth:
                        _read_loose(inner, ref, refs, depth - 1, problems)
                    else:
                        problems.append("its refs are nested too deeply")
            except UntrustedRepositoryError:
                problems.append(unreadable)
            continue
        if is_oid(value):
            refs[ref] = value
        elif not value.startswith("ref:"):  # such as empty, after a power cut
            problems.append(unreadable)
        if len(refs) > 2 * MAX_REFS:
            return


def _listed(folder: int, problems: list[str]) -> list[str]:
    names: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if len(names) == MAX_REFS:
                problems.append(f"a folder of its .git has more than {MAX_REFS} files")
                break
            names.append(entry.name)
    return sorted(names)


def _names(git_dir: int, name: str, problems: list[str]) -> list[str]:
    try:
        with _open_folder(git_dir, name) as folder:
            return _listed(folder, problems)
    except UntrustedRepositoryError:
        with contextlib.suppress(FileNotFoundError):
            os.stat(name, dir_fd=git_dir, follow_symlinks=False)
            problems.append(f"its {name} cannot be read")
        return []


def _autostashes(git_dir: int, prefix: str) -> list[str]:
    found = (_loose_ref(git_dir, prefix + name) for name in _AUTOSTASHES)
    return [oid for oid in found if oid and is_oid(oid)]


def _worktree(git_dir: int, name: str, place: str) -> Worktree:
    with (
        _open_folder(git_dir, "worktrees") as worktrees,
        _open_folder(worktrees, name) as folder,
    ):
        path = _read_text(folder, "gitdir", _SMALL).rstrip("\n")
        path = os.path.normpath(os.path.join(place, path))  # it may be relative
        return Worktree(name, _head_in(folder, git_dir), os.path.dirname(path))


_LEFT = re.compile(r"checkout: moving from ([0-9a-f]{40,64}) to ")


def _left_detached(old: str, new: str, message: str) -> str | None:
    """Return the commit that a checkout left: git names it by its id if HEAD was detached."""
    match = _LEFT.match(message)
    return old if match and match[1] == old else None


def _stashed(old: str, new: str, message: str) -> str:
    return new


def _log_oids(
    git_dir: int,
    path: str,
    choose: Callable[[str, str, str], str | None],
    problems: list[str],
) -> list[str]:
    """Return the chosen commits of a reflog, newest first; of a long one, those of its end."""
    *folders, name = path.split("/")
    with contextlib.ExitStack() as opened:
        folder = git_dir
        try:
            for part in folders:
                folder = opened.enter_context(_open_folder(folder, part))
            descriptor = opened.enter_context(open_regular(folder, name))
        except (UntrustedRepositoryError, FileNotFoundError):
            return []
        size = os.fstat(descriptor).st_size
        if size > _LOG_BYTES:
            problems.append(f"only the end of its {path} is read")
        data = os.pread(descriptor, _LOG_BYTES, max(0, size - _LOG_BYTES))
    found: dict[str, None] = {}
    for line in reversed(data.decode("utf-8", "replace").split("\n")):
        entry, _, message = line.partition("\t")
        old, _, rest = entry.partition(" ")
        new = rest.partition(" ")[0]
        if is_oid(old) and is_oid(new):
            oid = choose(old, new, message)
            if oid is not None:
                found[oid] = None
    return list(found)


def _object_folders(objects: int) -> list[tuple[str, re.Pattern[str]]]:
    loose = [n for n in os.listdir(objects) if len(n) == 2 and _HEX.fullmatch(n)]
    return [(name, _HEX) for name in sorted(loose)] + [("pack", _PACK)]


def _ref(git_dir: int, ref: str) -> str | None:
    """Return the value of a ref, loose or packed, or None."""
    # A packed ref may have no folder.
    return _loose_ref(git_dir, ref) or _packed_refs(git_dir).get(ref)


def _loose_ref(git_dir: int, ref: str) -> str | None:
    *folders, name = ref.split("/")
    with contextlib.ExitStack() as opened:
        folder = git_dir
        try:
            for part in folders:
                folder = opened.enter_context(_open_folder(folder, part))
            return _read_text(folder, name, _SMALL).strip()
        except (UntrustedRepositoryError, FileNotFoundError):
            return None


def _read_text(folder: int, name: str, limit: int) -> str:
    with open_regular(folder, name) as descriptor:
        data = b""
        while chunk := os.read(descriptor, min(_CHUNK, limit + 1 - len(data))):
            data += chunk
            if len(data) > limit:
                raise UntrustedRepositoryError(f"{name} is too long")
    return data.decode("utf-8", "surrogateescape")


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
