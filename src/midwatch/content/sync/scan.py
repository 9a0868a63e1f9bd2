"""Local folders → tree. What was not touched since the last scan is not read again.

What cannot be read as it is (no permission, written to all the time, a `.git` in the middle of a change) stays in the
tree as `base` had it and is `unsure`: a failed read is never a removal.
"""

from __future__ import annotations

import os
import stat as stats
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from midwatch.content.sync.merge import folders_above, unit_of
from midwatch.content.sync.roots import (
    STAGING,
    Captured,
    Kept,
    Roots,
    Signature,
    is_racy,
    load,
    open_folder,
    read_file,
    save,
    signature_of,
)
from midwatch.content.tree import MAX_PATH, Entry, Tree

# ------------------------------------------------------------ found
# What a scan has so far, or a part of one that may be thrown away.


def carried(base: Tree, path: str) -> Iterator[tuple[str, Entry]]:
    """The entries of `base` at and below a path."""
    if entry := base.get(path):
        yield path, entry
        if entry.kind == "folder":
            below = path + "/"
            yield from ((p, e) for p, e in base.items() if p.startswith(below))


@dataclass(slots=True)
class ScanResult:
    """`kept` are files and symlinks with their signatures, `racy` those of them that may change unseen,
    `unsure` the paths that are as the base had them, `unsent` the notes about those."""

    tree: dict[str, Entry] = field(default_factory=dict)
    kept: Kept = field(default_factory=dict)
    racy: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    unsent: list[str] = field(default_factory=list)

    def add(self, other: ScanResult) -> None:
        self.tree.update(other.tree)
        self.kept.update(other.kept)
        self.racy |= other.racy
        self.unsure |= other.unsure
        self.notes += other.notes
        self.unsent += other.unsent

    def carry(self, path: str, base: Tree, why: str) -> None:
        self.unsure.add(path)
        self.tree.update(carried(base, path))
        note = f"{ascii(path[:200])} is left as it was: {why}"
        self.notes.append(note)
        self.unsent.append(note)


# ------------------------------------------------------------ gitfolder
# A `.git` folder as it was at one moment, while git may be at work in it.
#
# Git writes objects first and then what names them (refs, the index, logs). So these are read first and the objects
# afterwards, and then it is looked whether they are still the same: if so, all that they name was there to be read.
# A `gc` meanwhile shows as a change of the packs. While a lock is held, a command is half done.

TRIES = 3
_PAUSE_SECONDS = 0.02
"""Between two tries: most commands of git hold a lock for less."""
LEFT_BEHIND_SECONDS = 60.0
"""A lock of this age was left by a git that was killed, or is held by one that waits for a person."""
_ERROR = "git is at work in it"


@dataclass(slots=True)
class GitRules:
    """What of a `.git` is left out or comes later, and which locks are held."""

    now: float
    locks_count: bool
    objects: bool = False
    locked: bool = False
    later: list[str] = field(default_factory=list)

    @property
    def capture(self) -> bool:
        """Refs, index and logs change; objects do not."""
        return not self.objects

    def leave_out(self, item: os.DirEntry[str]) -> bool:
        name = item.name
        if name.endswith(".lock"):
            self.locked |= self.locks_count and self._is_fresh(item)
            return True
        if self.objects:
            return name.startswith(("tmp_", ".tmp-"))
        return name == "gc.pid"

    def comes_later(self, name: str, path: str, tree: Mapping[str, Entry]) -> bool:
        """The objects of this repository, or of one of its submodules."""
        if self.objects or name != "objects":
            return False
        if f"{path.removesuffix(name)}HEAD" not in tree:
            return False
        self.later.append(path)
        return True

    def _is_fresh(self, item: os.DirEntry[str]) -> bool:
        try:
            age = self.now - item.stat(follow_symlinks=False).st_mtime
        except FileNotFoundError:
            return True
        return age < LEFT_BEHIND_SECONDS


def scan_git(walk: Walk, fd: int, path: str, found: ScanResult) -> None:
    """Adds the unit to what was found, or as `base` had it if it does not hold still."""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        if unit := _snapshot(walk, fd, path):
            found.add(unit)
            return
    found.tree.pop(path, None)
    found.carry(path, walk.base, _ERROR)


def _snapshot(walk: Walk, fd: int, path: str) -> ScanResult | None:
    try:
        refs, rules = _refs(walk, fd, path)
        if rules.locked:
            return None
        packs = _packs(fd, path, rules.later)
        objects = _objects(walk, fd, path, rules)
        again, now = _refs(walk, fd, path)
        if now.locked or now.later != rules.later:
            return None
        if refs.kept != again.kept or refs.tree != again.tree or refs.unsure:
            return None
        if _packs(fd, path, rules.later) != packs:
            return None
    except FileNotFoundError:
        return None
    refs.add(objects)
    return refs


def _refs(walk: Walk, fd: int, path: str) -> tuple[ScanResult, GitRules]:
    found, rules = ScanResult(), _rules(walk)
    walk.folder(fd, path + "/", found, rules)
    # The second reading takes from the first what cannot have changed unseen.
    walk.cache.update(
        (name, known) for name, known in found.kept.items() if name not in found.racy
    )
    return found, rules


def _objects(walk: Walk, fd: int, path: str, rules: GitRules) -> ScanResult:
    found = ScanResult()
    within = _rules(walk, objects=True)
    for folder in rules.later:
        with _opened(fd, folder.removeprefix(path + "/")) as inner:
            walk.folder(inner, folder + "/", found, within)
    return found


def _packs(fd: int, path: str, later: list[str]) -> set[tuple[str, str, int, int]]:
    """The packs there are, by folder, name, inode and time of change."""
    packs = set()
    for folder in later:
        relative = f"{folder.removeprefix(path + '/')}/pack"
        try:
            with _opened(fd, relative) as inner, os.scandir(inner) as items:
                for item in items:
                    if not item.name.startswith(("tmp_", ".tmp-")):
                        stat = item.stat(follow_symlinks=False)
                        packs.add((folder, item.name, stat.st_ino, stat.st_mtime_ns))
        except FileNotFoundError:
            continue
    return packs


@contextmanager
def _opened(fd: int, relative: str) -> Iterator[int]:
    opened: list[int] = []
    try:
        for part in relative.split("/"):
            opened.append(open_folder(part, opened[-1] if opened else fd))
        yield opened[-1]
    finally:
        for one in opened:
            os.close(one)


def _rules(walk: Walk, *, objects: bool = False) -> GitRules:
    return GitRules(walk.now_ns() / 1e9, not walk.last, objects)


DEEPEST = 256
"""Folders within folders; each costs an open file while it is scanned."""
ROOT = Entry("folder", 0o755)
"""A root in the tree: its mode is the place's own and does not travel."""
Ignored = Callable[[str], bool]
"""Whether a path (with its root's name) is none of ours. What is in an ignored folder is not asked for."""


@dataclass(frozen=True, slots=True)
class Scan:
    """`kept` has the signatures of files and symlinks as they were, `captured` the bytes of some."""

    tree: Mapping[str, Entry]
    kept: Mapping[str, tuple[Signature, Entry]] = field(repr=False)
    unsure: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    unsent: tuple[str, ...] = ()
    captured: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def is_sure(self, path: str) -> bool:
        return not self.unsure or not (
            path in self.unsure
            or any(above in self.unsure for above in folders_above(path))
        )

    def without(self, paths: Iterable[str], base: Tree) -> Scan:
        """The same, but these paths (and the `.git` they are in) as `base` has them."""
        left = {unit_of(path) or path for path in paths}
        tree = {
            p: entry
            for p, entry in self.tree.items()
            if not left & {p, *folders_above(p)}
        }
        for path in left:
            tree.update(carried(base, path))
        return replace(self, tree=tree, unsure=self.unsure | left)


class Scanner:
    """Scans the same roots again and again.

    `now_ns` is the clock that file times are from; `cache` is a file that lets a later scanner begin where this one ended.
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
        self._cache: Kept = load(cache) if cache else {}
        self._unsaved = 0

    def scan(self, base: Tree | None = None, *, last: bool = False) -> Scan:
        """Raises OSError if a root itself cannot be read.

        `last`: nothing runs in there any more, so that a lock of git is one that was left behind.
        """
        walk = Walk(self._cache, base or {}, self._ignored, self._now_ns, last)
        found = ScanResult()
        for name, place in self.roots.places.items():
            found.tree[name] = ROOT
            folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                walk.folder(folder, name + "/", found)
            finally:
                os.close(folder)
        self._remember(found, walk.hashed)
        return Scan(
            found.tree,
            found.kept,
            frozenset(found.unsure),
            tuple(found.notes),
            tuple(found.unsent),
            walk.captured.held,
        )

    def _remember(self, found: ScanResult, hashed: int) -> None:
        self._cache = dict(found.kept)
        for path in found.racy:
            self._cache.pop(path, None)
        self._unsaved += hashed

    def save(self, *, least: int = 1) -> None:
        """Keep the cache, if at least so many files were read since. Raises OSError."""
        if self._file and self._unsaved >= least:
            save(self._file, self._cache)
            self._unsaved = 0


class Walk:
    """One scan under way."""

    def __init__(
        self,
        cache: Kept,
        base: Tree,
        ignored: Ignored | None,
        now_ns: Callable[[], int],
        last: bool,
    ) -> None:
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
        """All that is in an open folder and below. Raises OSError if it cannot be listed."""
        below: list[tuple[str, int]] = []
        cache, tree, kept, ignored = self.cache, found.tree, found.kept, self._ignored
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
                except OSError as error:  # a folder that may be listed, but not entered
                    found.carry(path, self.base, str(error.strerror))
                    continue
                if stats.S_ISDIR(stat.st_mode):
                    below.append((name, stat.st_mode & 0o777))
                    continue
                signature = signature_of(stat)
                known = cache.get(path)
                if known is not None and known[0] == signature:
                    kept[path] = known
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
        if is_too_long(path):
            return found.carry(path, self.base, "its path is too long")
        depth = path.count("/")
        if depth == 1 and name == STAGING:
            return
        found.tree[path] = self._folders.setdefault(mode, Entry("folder", mode))
        if rules is not None and rules.comes_later(name, path, found.tree):
            return
        if depth > DEEPEST:
            return found.carry(path, self.base, "it is nested too deep")
        try:
            inner = open_folder(name, fd)
        except FileNotFoundError:
            found.tree.pop(path)
            return
        except OSError as error:
            return found.carry(path, self.base, str(error.strerror))
        try:
            if name == ".git" and rules is None:
                scan_git(self, inner, path, found)
            else:
                self.folder(inner, path + "/", found, rules)
        finally:
            os.close(inner)

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
        if is_too_long(path):
            return found.carry(path, self.base, "its path is too long")
        try:
            if stats.S_ISLNK(bits):
                read = _read_link(fd, name)
            elif stats.S_ISREG(bits):
                self.hashed += 1
                wanted = rules is not None and rules.capture
                read = read_file(fd, name, self.captured, wanted=wanted)
            else:
                found.notes.append(f"{ascii(path[:200])} is no file: left out")
                return
        except FileNotFoundError:
            return
        except OSError as error:
            return found.carry(path, self.base, str(error.strerror))
        if read is None:
            return found.carry(path, self.base, "it keeps changing")
        # The same object as in `base` makes comparing the trees a matter of identity.
        was = self.base.get(path)
        found.kept[path] = read if was != read[1] or was is None else (read[0], was)
        found.tree[path] = found.kept[path][1]
        if is_racy(read[0], read_at):
            found.racy.add(path)


def is_too_long(path: str) -> bool:
    return len(path) * 4 > MAX_PATH and len(os.fsencode(path)) > MAX_PATH


def _read_link(fd: int, name: str) -> tuple[Signature, Entry] | None:
    stat = os.stat(name, dir_fd=fd, follow_symlinks=False)
    if not stats.S_ISLNK(stat.st_mode):
        return None
    target = os.readlink(name, dir_fd=fd)
    return signature_of(stat), Entry("symlink", 0o777, target=target)
