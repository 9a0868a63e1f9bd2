"""Local folders → tree. Files that have not changed since the last scan are not read again.

What cannot be read (no permission, written to all the time, a `.git` in the middle of a change) stays in the tree as
`base` has it and is `unsure`: a path that cannot be read never counts as removed. In the last scan, when no program runs
in the folders any more, the files and folders that their owner closed to itself are opened until `Scanner.close_again`.
"""

from __future__ import annotations

import os
import stat as stats
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from midwatch.content.sync.merge import folders_above, git_folder_of, tree_order
from midwatch.content.sync.roots import (
    STAGING,
    Captured,
    Roots,
    Signature,
    Signed,
    change_mode,
    is_denied,
    is_racy,
    load_cache,
    open_folder,
    open_root,
    read_file,
    save_cache,
    signature_of,
)
from midwatch.content.tree import MAX_PATH, Entry, Tree

MAX_DEPTH = 256
"""Folders within folders; each takes a descriptor while it is scanned."""
ROOT = Entry("folder", 0o755)
"""The entry of a root: the mode of the local folder does not travel."""
_GIT_TRIES = 3
_GIT_PAUSE = 0.02
"""Seconds between two tries: most commands of git hold a lock for less."""
_STALE_LOCK = 60.0
"""Seconds: a lock of git of this age was left by a process that was killed, or waits for a person."""
Ignored = Callable[[str], bool]
"""Returns whether a path, with the name of its root, is not synchronised. Not called for paths in an ignored folder."""


# ------------------------------------------------------------------ results


@dataclass(frozen=True, slots=True)
class Scan:
    """The local tree.

    Attributes:
        tree: The entries.
        files: Files and symlinks with their signatures.
        unsure: Paths that could not be read and are as the base has them.
        notes: Messages about what is left out.
        unsent: Those of the notes that are about `unsure` paths.
        captured: The bytes of some chunks, by hash.
    """

    tree: Mapping[str, Entry]
    files: Mapping[str, tuple[Signature, Entry]] = field(repr=False)
    unsure: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    unsent: tuple[str, ...] = ()
    captured: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def is_sure(self, path: str) -> bool:
        """Return whether the path and the folders above it could be read."""
        return not self.unsure or not (
            path in self.unsure
            or any(above in self.unsure for above in folders_above(path))
        )

    def without(self, paths: Iterable[str], base: Tree) -> Scan:
        """Return the scan with these paths (and the `.git` folders they are in) as `base` has them."""
        left = {git_folder_of(path) or path for path in paths}
        tree = {
            p: entry
            for p, entry in self.tree.items()
            if not left & {p, *folders_above(p)}
        }
        for path in left:
            tree.update(_subtree(base, path))
        return replace(self, tree=tree, unsure=self.unsure | left)


@dataclass(slots=True)
class ScanResult:
    """A scan under way, or a part of one that may be dropped; `racy` files may change without a new signature."""

    tree: dict[str, Entry] = field(default_factory=dict)
    files: Signed = field(default_factory=dict)
    racy: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    unsent: list[str] = field(default_factory=list)

    def add(self, other: ScanResult) -> None:
        """Add all of another part."""
        self.tree.update(other.tree)
        self.files.update(other.files)
        self.racy |= other.racy
        self.unsure |= other.unsure
        self.notes += other.notes
        self.unsent += other.unsent

    def keep_base(self, path: str, base: Tree, why: str) -> None:
        """Keep the base's entries of a path and of everything below it."""
        self.unsure.add(path)
        self.tree.update(_subtree(base, path))
        note = f"{ascii(path[:200])} is not synchronised: {why}"
        self.notes.append(note)
        self.unsent.append(note)


def _subtree(tree: Tree, path: str) -> Iterator[tuple[str, Entry]]:
    """Yield the entries at and below a path."""
    if entry := tree.get(path):
        yield path, entry
        if entry.kind == "folder":
            below = path + "/"
            yield from ((p, e) for p, e in tree.items() if p.startswith(below))


# ------------------------------------------------------------------ scanning


class Scanner:
    """Scans the same roots repeatedly.

    Args:
        roots: The local folders.
        ignored: Which paths are not synchronised.
        cache: A file that keeps the hashes for a later scanner.
        now_ns: The clock that stamps files, in nanoseconds since the epoch.
    """

    def __init__(
        self,
        roots: Roots,
        *,
        ignored: Ignored | None = None,
        cache: Path | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.roots = roots
        self._ignored = ignored
        self._file = cache
        self._now_ns = now_ns
        self._cache: Signed = load_cache(cache) if cache else {}
        self._unsaved = 0
        self._opened: dict[str, int] = {}

    def scan(self, base: Tree | None = None, *, last: bool = False) -> Scan:
        """Return the local tree.

        Args:
            base: The tree that supplies the entries of unreadable paths.
            last: Whether no program runs in the folders any more, so that every lock of git is stale.

        Raises:
            OSError: A root itself cannot be read.
        """
        walk = Walk(
            self._cache, base or {}, self._ignored, self._now_ns, last, self._opened
        )
        found = ScanResult()
        for name, path in self.roots.folders.items():
            found.tree[name] = ROOT
            folder = open_root(path)
            try:
                walk.folder(folder, name + "/", found)
            finally:
                os.close(folder)
        self._cache = {p: f for p, f in found.files.items() if p not in found.racy}
        self._unsaved += walk.hashed
        return Scan(
            found.tree,
            found.files,
            frozenset(found.unsure),
            tuple(found.notes),
            tuple(found.unsent),
            walk.captured.held,
        )

    def close_again(self) -> None:
        """Give what the last scan opened its mode again. What was removed or replaced meanwhile stays as it is."""
        with self.roots.walker() as walker:
            # The inner ones first: they cannot be reached once the outer ones are closed.
            for path in sorted(self._opened, key=tree_order, reverse=True):
                with suppress(OSError):
                    folder, name = walker.parent(path)
                    change_mode(name, folder, self._opened[path])
        self._opened.clear()

    def save(self, *, least: int = 1) -> None:
        """Write the cache, if at least this many files were read since. Raises OSError."""
        if self._file and self._unsaved >= least:
            save_cache(self._file, self._cache)
            self._unsaved = 0


class Walk:
    """One scan under way."""

    def __init__(
        self,
        cache: Signed,
        base: Tree,
        ignored: Ignored | None,
        now_ns: Callable[[], int],
        last: bool,
        opened: dict[str, int],
    ) -> None:
        self.opened = opened
        self.cache = cache
        self.base = base
        self.captured = Captured()
        self.now_ns = now_ns
        self.last = last
        self.hashed = 0
        self._ignored = ignored
        self._folders: dict[int, Entry] = {}

    def folder(
        self, fd: int, prefix: str, found: ScanResult, rules: GitRules | None = None
    ) -> None:
        """Scan an open folder and all below it. Raises OSError if it cannot be listed."""
        below: list[tuple[str, int]] = []
        cache, tree, files, ignored = self.cache, found.tree, found.files, self._ignored
        with os.scandir(fd) as items:
            for item in items:
                name = item.name
                path = prefix + name
                if rules is not None and rules.leave_out(item):
                    continue
                if ignored is not None and ignored(path):
                    continue
                try:
                    stat = item.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                except OSError as error:  # the folder may be listed, but not entered
                    found.keep_base(path, self.base, str(error.strerror))
                    continue
                if stats.S_ISDIR(stat.st_mode):
                    below.append((name, self.opened.get(path, stat.st_mode & 0o777)))
                    continue
                signature = signature_of(stat)
                known = cache.get(path)
                if known is not None and known[0] == signature:
                    files[path] = known
                    tree[path] = known[1]
                else:
                    self._read(fd, name, path, stat.st_mode, found, rules)
        for name, mode in below:
            self._below(fd, name, prefix + name, mode, found, rules)

    def _below(
        self,
        fd: int,
        name: str,
        path: str,
        mode: int,
        found: ScanResult,
        rules: GitRules | None,
    ) -> None:
        if _is_too_long(path):
            return found.keep_base(path, self.base, "its path is too long")
        depth = path.count("/")
        if depth == 1 and name == STAGING:
            return
        found.tree[path] = self._folders.setdefault(mode, Entry("folder", mode))
        if rules is not None and rules.comes_later(name, path, found.tree):
            return
        if depth > MAX_DEPTH:
            return found.keep_base(path, self.base, "it is nested too deep")
        self.open_up(fd, name, path, mode, 0o500)
        try:
            inner = open_folder(name, fd)
        except FileNotFoundError:
            found.tree.pop(path)
            return
        except OSError as error:
            return found.keep_base(path, self.base, str(error.strerror))
        try:
            if name == ".git" and rules is None:
                _scan_git(self, inner, path, found)
            else:
                self.folder(inner, path + "/", found, rules)
        finally:
            os.close(inner)

    def open_up(self, fd: int, name: str, path: str, mode: int, needed: int) -> None:
        """Give this user a permission on its own file or folder, if no program runs that could notice."""
        right = os.R_OK | (os.X_OK if needed & 0o100 else 0)
        if not self.last or os.access(name, right, dir_fd=fd, effective_ids=True):
            return
        with suppress(OSError):
            change_mode(name, fd, mode | needed)
            self.opened.setdefault(path, mode)

    def _read(
        self,
        fd: int,
        name: str,
        path: str,
        bits: int,
        found: ScanResult,
        rules: GitRules | None,
    ) -> None:
        read_at = self.now_ns()
        if _is_too_long(path):
            return found.keep_base(path, self.base, "its path is too long")
        try:
            if stats.S_ISLNK(bits):
                read = _read_link(fd, name)
            elif stats.S_ISREG(bits):
                self.hashed += 1
                # Refs, index and logs of git change; objects do not.
                wanted = rules is not None and not rules.objects
                read = self._read_file(fd, name, path, wanted)
            else:
                found.notes.append(f"{ascii(path[:200])} is left out: not a file")
                return
        except FileNotFoundError:
            return
        except OSError as error:
            return found.keep_base(path, self.base, str(error.strerror))
        if read is None:
            return found.keep_base(path, self.base, "it keeps changing")
        # The same object as in `base` makes comparing the trees a matter of identity.
        was = self.base.get(path)
        found.files[path] = read if was != read[1] or was is None else (read[0], was)
        found.tree[path] = found.files[path][1]
        if is_racy(read[0], read_at):
            found.racy.add(path)

    def _read_file(
        self, fd: int, name: str, path: str, wanted: bool
    ) -> tuple[Signature, Entry] | None:
        """Return the signature and the entry of a file. Raises OSError for one that cannot be read."""
        try:
            if path not in self.opened:
                return read_file(fd, name, self.captured, wanted=wanted)
        except OSError as error:
            if not is_denied(error):
                raise
            stat = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stats.S_ISREG(stat.st_mode) and (known := self._closed(path, stat)):
                return signature_of(stat), known
            self.open_up(fd, name, path, stat.st_mode & 0o7777, 0o400)
            if path not in self.opened:
                raise
        read = read_file(fd, name, self.captured, wanted=wanted)
        if read is None or path not in self.opened:
            return read
        return read[0], replace(read[1], mode=self.opened[path] & 0o777)

    def _closed(self, path: str, stat: os.stat_result) -> Entry | None:
        """Return the entry of a file that was closed after it was last read, or was put here closed; None without one.

        A mode changes nothing but the ctime. A file of the base has the base's content as long as size and mode are the
        same: what cannot be read is not what a program just wrote to.
        """
        mode = stat.st_mode & 0o777
        known, was = self.cache.get(path), self.base.get(path)
        if known is not None and known[1].kind == "file":
            size, mtime, _, inode, _ = known[0]
            if (size, mtime, inode) == (stat.st_size, stat.st_mtime_ns, stat.st_ino):
                return replace(known[1], mode=mode)
        if was is not None and was.kind == "file":
            if (was.size, was.mode) == (stat.st_size, mode):
                return was
        return None


def _is_too_long(path: str) -> bool:
    return len(path) * 4 > MAX_PATH and len(os.fsencode(path)) > MAX_PATH


def _read_link(fd: int, name: str) -> tuple[Signature, Entry] | None:
    stat = os.stat(name, dir_fd=fd, follow_symlinks=False)
    if not stats.S_ISLNK(stat.st_mode):
        return None
    target = os.readlink(name, dir_fd=fd)
    return signature_of(stat), Entry("symlink", 0o777, target=target)


# ------------------------------------------------------------------ a `.git` folder


@dataclass(slots=True)
class GitRules:
    """What is left out of a `.git` folder or read later, and whether a lock is held.

    Attributes:
        now: The time in seconds since the epoch.
        locks_count: Whether a recent lock means that a git command is running.
        objects: Whether this is a pass over the objects.
        locked: Whether a lock was found.
        later: The folders of objects that were found.
    """

    now: float
    locks_count: bool
    objects: bool = False
    locked: bool = False
    later: list[str] = field(default_factory=list)

    def leave_out(self, item: os.DirEntry[str]) -> bool:
        name = item.name
        if name.endswith(".lock"):
            self.locked |= self.locks_count and self._is_fresh(item)
            return True
        if self.objects:
            return name.startswith(("tmp_", ".tmp-"))
        return name == "gc.pid"

    def comes_later(self, name: str, path: str, tree: Mapping[str, Entry]) -> bool:
        """Return whether these are the objects of this repository, or of one of its submodules."""
        if self.objects or name != "objects":
            return False
        if f"{path.removesuffix(name)}HEAD" not in tree:
            return False
        self.later.append(path)
        return True

    def _is_fresh(self, item: os.DirEntry[str]) -> bool:
        try:
            age = self.now - item.stat(follow_symlinks=False).st_mtime
        except OSError:  # gone, or in a folder that may be listed and not entered
            return True
        return age < _STALE_LOCK


def _scan_git(walk: Walk, fd: int, path: str, found: ScanResult) -> None:
    """Add a `.git` folder as it was at one moment, or as `base` has it while git commands run in it.

    Git writes objects first, and then the refs, index and logs that refer to them. So these are read before the
    objects and once more after them: if they are the same, all objects that they refer to were read. A `gc` shows as
    a change of the packs. While a lock is held, a command is incomplete.
    """
    why = ""
    for attempt in range(_GIT_TRIES):
        if attempt:
            time.sleep(_GIT_PAUSE)
        try:
            part = _git_snapshot(walk, fd, path)
        except OSError as error:  # a folder of objects
            part, why = None, str(error.strerror)
            continue
        if part is not None and not part.unsure:
            found.add(part)
            return
        # Half of it would not be a repository.
        why = next(iter(part.unsent), "") if part is not None else ""
    found.tree.pop(path, None)
    found.keep_base(path, walk.base, why or "a git command is running in it")


def _git_snapshot(walk: Walk, fd: int, path: str) -> ScanResult | None:
    """Return the folder as it was at one moment, with what is unreadable in it; None if it changes. Raises OSError."""
    try:
        refs, rules = _git_refs(walk, fd, path)
        if rules.locked:
            return None
        packs = _git_packs(walk, fd, path, rules.later)
        objects = _git_objects(walk, fd, path, rules.later)
        again, now = _git_refs(walk, fd, path)
        if now.locked or now.later != rules.later:
            return None
        if refs.files != again.files or refs.tree != again.tree:
            return None
        if _git_packs(walk, fd, path, rules.later) != packs:
            return None
    except FileNotFoundError:
        return None
    refs.add(objects)
    return refs


def _git_refs(walk: Walk, fd: int, path: str) -> tuple[ScanResult, GitRules]:
    found, rules = ScanResult(), GitRules(walk.now_ns() / 1e9, not walk.last)
    walk.folder(fd, path + "/", found, rules)
    # The second reading takes from the first what cannot have changed without a new signature.
    walk.cache.update(
        (name, known) for name, known in found.files.items() if name not in found.racy
    )
    return found, rules


def _git_objects(walk: Walk, fd: int, path: str, folders: list[str]) -> ScanResult:
    found = ScanResult()
    rules = GitRules(walk.now_ns() / 1e9, not walk.last, objects=True)
    for folder in folders:
        with _opened_below(walk, fd, path, folder.removeprefix(path + "/")) as inner:
            walk.folder(inner, folder + "/", found, rules)
    return found


def _git_packs(
    walk: Walk, fd: int, path: str, folders: list[str]
) -> set[tuple[str, str, int, int]]:
    """Return the packs by folder, name, inode and modification time."""
    packs = set()
    for folder in folders:
        relative = f"{folder.removeprefix(path + '/')}/pack"
        try:
            with (
                _opened_below(walk, fd, path, relative) as inner,
                os.scandir(inner) as items,
            ):
                for item in items:
                    if not item.name.startswith(("tmp_", ".tmp-")):
                        stat = item.stat(follow_symlinks=False)
                        packs.add((folder, item.name, stat.st_ino, stat.st_mtime_ns))
        except FileNotFoundError:
            continue
    return packs


@contextmanager
def _opened_below(walk: Walk, fd: int, path: str, relative: str) -> Iterator[int]:
    with ExitStack() as stack:
        for part in relative.split("/"):
            path = f"{path}/{part}"
            mode = os.stat(part, dir_fd=fd, follow_symlinks=False).st_mode & 0o7777
            walk.open_up(fd, part, path, mode, 0o500)
            fd = open_folder(part, fd)
            stack.callback(os.close, fd)
        yield fd
