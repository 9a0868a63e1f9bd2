"""A `.git` folder as it was at one moment, while git may be at work in it.

Git writes objects first and then what names them (refs, the index, logs). So these are read first and the objects
afterwards, and then it is looked whether they are still the same: if so, all that they name was there to be read.
A `gc` meanwhile shows as a change of the packs. While a lock is held, a command is half done.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from midwatch.content.sync.found import Found
from midwatch.content.sync.roots import open_folder
from midwatch.content.tree import Entry

if TYPE_CHECKING:
    from midwatch.content.sync.scan import Walk

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


def scan_git(walk: Walk, fd: int, path: str, found: Found) -> None:
    """Adds the unit to what was found, or as `base` had it if it does not hold still."""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        if unit := _snapshot(walk, fd, path):
            found.add(unit)
            return
    found.tree.pop(path, None)
    found.carry(path, walk.base, _ERROR)


def _snapshot(walk: Walk, fd: int, path: str) -> Found | None:
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


def _refs(walk: Walk, fd: int, path: str) -> tuple[Found, GitRules]:
    found, rules = Found(), _rules(walk)
    walk.folder(fd, path + "/", found, rules)
    # The second reading takes from the first what cannot have changed unseen.
    walk.cache.update(
        (name, known) for name, known in found.kept.items() if name not in found.racy
    )
    return found, rules


def _objects(walk: Walk, fd: int, path: str, rules: GitRules) -> Found:
    found = Found()
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
