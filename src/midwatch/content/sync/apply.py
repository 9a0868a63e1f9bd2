"""Change local folders to what a tree says, without ever going through a symlink.

Files are made ready in a folder of their root (`staging`), then a plan is written down (`journal`), then it is carried
out: remove, make folders, move the files into place, set the modes of folders. Every step can be done twice. A path that is
no longer what the plan says it was is skipped: the next round sees what became of it.
"""

from __future__ import annotations

import errno
import os
import stat as stats
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from midwatch.content.durable import are_many, sync_file_system, with_descriptor
from midwatch.content.errors import ContentFull, ContentUnavailable
from midwatch.content.sync.journal import Before, Plan
from midwatch.content.sync.merge import folders_above, tree_order
from midwatch.content.sync.roots import STAGING, Roots, Walker, set_mode
from midwatch.content.sync.scan import Scan
from midwatch.content.sync.stats import signature_of
from midwatch.content.tree import Delta, Entry, Tree

_IMPOSSIBLE = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_AILING = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENODEV}
_KINDS = {
    "file": stats.S_IFREG,
    "folder": stats.S_IFDIR,
    "symlink": stats.S_IFLNK,
}
OPEN = 0o700
"""What the owner needs of a folder in which something changes."""


def plan(
    delta: Delta,
    scan: Scan,
    tree: Tree,
    staged: Mapping[str, str],
    base: Delta = Delta({}, frozenset()),
    version: str = "",
) -> Plan:
    """`delta` goes from the scan's tree to `tree`. Pure."""
    changed = [*delta.put, *delta.removed]
    before = {path: _before(scan, path) for path in changed}
    above = {folder for path in changed for folder in folders_above(path)}
    modes = {
        path: (tree.get(path) or scan.tree[path]).mode
        for path in above
        if "/" in path
        and (_is_closed(tree.get(path)) or _is_closed(scan.tree.get(path)))
    }
    return Plan(delta, before, staged, modes, base, version)


def _before(scan: Scan, path: str) -> Before:
    entry = scan.tree.get(path)
    if entry is None or entry.kind == "folder":
        return entry.mode if entry else None
    return scan.kept[path][0]


def _is_closed(entry: Entry | None) -> bool:
    return entry is not None and entry.kind == "folder" and entry.mode & OPEN != OPEN


@dataclass(frozen=True, slots=True)
class Outcome:
    """The paths that were not changed: `skipped` all of them, `never` those that cannot be on this file system."""

    skipped: frozenset[str]
    never: frozenset[str] = frozenset()


def carry_out(
    roots: Roots, made: Plan, step: Callable[[str], None] = lambda name: None
) -> Outcome:
    """Do what is planned, or the rest of it. `step` is told before each part of it and each file.

    Raises ContentFull or ContentUnavailable if the local disk fails; then the plan stays to be done.
    """
    with roots.walker() as walker:
        run = _Run(walker, made, step)
        step("remove")
        run.open_folders()
        run.remove()
        step("make folders")
        run.make_folders()
        run.place()
        step("close folders")
        run.close_folders()
        step("sync folders")
        run.sync()
    return Outcome(frozenset(run.skipped), frozenset(run.never))


class _Run:
    def __init__(self, walker: Walker, made: Plan, step: Callable[[str], None]) -> None:
        self._walker = walker
        self._step = step
        self._plan = made
        self._put = made.delta.put
        self.skipped: set[str] = set()
        self.never: set[str] = set()

    def open_folders(self) -> None:
        """Those that forbid even their owner to change what is in them."""
        for path in sorted(self._plan.modes, key=tree_order):
            with self._tried(path, counts=False):
                mode = os.stat(self._walker.folder(path)).st_mode & 0o777
                if mode & OPEN != OPEN:
                    set_mode(self._walker.folder(path), mode | OPEN)

    def remove(self) -> None:
        """What is to go, and what is of another kind than what is to come."""
        gone = [*self._plan.delta.removed, *filter(self._changes_kind, self._put)]
        for path in sorted(gone, key=tree_order, reverse=True):
            with self._tried(path):
                self._remove(path)
        self._walker.forget()

    def _changes_kind(self, path: str) -> bool:
        was = self._plan.before[path]
        is_folder = self._put[path].kind == "folder"
        return was is not None and isinstance(was, int) != is_folder

    def _remove(self, path: str) -> None:
        try:
            folder, name = self._parent(path)
        except (FileNotFoundError, NotADirectoryError):
            return  # It went with its folder.
        found = _look(folder, name)
        if found is None or self._is_of_its_kind(path, found):
            return
        before = self._plan.before[path]
        if not isinstance(before, int):
            if signature_of(found) == before:
                return os.unlink(name, dir_fd=folder)
        elif stats.S_ISDIR(found.st_mode):
            return os.rmdir(name, dir_fd=folder)
        self.skipped.add(path)

    def _is_of_its_kind(self, path: str, found: os.stat_result) -> bool:
        """It was replaced already, by a process that was killed afterwards."""
        entry = self._put.get(path)
        return entry is not None and stats.S_IFMT(found.st_mode) == _KINDS[entry.kind]

    def make_folders(self) -> None:
        for path in self._put_in_order("folder"):
            with self._tried(path):
                folder, name = self._parent(path)
                found = _look(folder, name)
                if found is None:
                    os.mkdir(name, OPEN, dir_fd=folder)
                elif not stats.S_ISDIR(found.st_mode):
                    self.skipped.add(path)

    def place(self) -> None:
        """Move what was made ready to where it belongs."""
        by_root: dict[str, list[str]] = {}
        files = (path for path, entry in self._put.items() if entry.kind != "folder")
        self.skipped.update(path for path in files if path not in self._plan.staged)
        for path in sorted(self._plan.staged, key=tree_order):
            by_root.setdefault(path.partition("/")[0], []).append(path)
        for root, paths in by_root.items():
            with self._staging(root) as staging:
                for path in paths:
                    self._step("place")
                    with self._tried(path):
                        self._place(path, staging)

    def _place(self, path: str, staging: int | None) -> None:
        made = self._plan.staged[path]
        folder, name = self._parent(path)
        found = _look(folder, name)
        if staging is None or _look(staging, made) is None:
            # Moved before, by a process that was killed afterwards; or somebody took it away.
            if found is None or not _is_like(found, self._put[path]):
                self.skipped.add(path)
        elif found is None or signature_of(found) == self._plan.before[path]:
            os.rename(made, name, src_dir_fd=staging, dst_dir_fd=folder)
        else:
            self.skipped.add(path)

    def close_folders(self) -> None:
        """Set the modes of folders, the inner ones first."""
        self._walker.forget()
        modes = {path: self._put[path].mode for path in self._put_in_order("folder")}
        for path in sorted({**self._plan.modes, **modes}, key=tree_order, reverse=True):
            mode = modes.get(path, self._plan.modes.get(path, 0))
            with self._tried(path, counts=path in modes):
                self._set_mode(path, mode)

    def _set_mode(self, path: str, mode: int) -> None:
        folder = self._walker.folder(path)
        present = os.stat(folder).st_mode & 0o777
        before = self._plan.before.get(path)
        expected = {OPEN, mode | OPEN} | (
            {before, before | OPEN} if isinstance(before, int) else set()
        )
        if present == mode:
            return
        if present in expected:
            set_mode(folder, mode)
        else:
            self.skipped.add(path)

    def sync(self) -> None:
        """What took its place stays there in a power cut: the base is about to say that it is there."""
        changed = [p for p in (*self._put, *self._plan.delta.removed) if "/" in p]
        folders = {path.rpartition("/")[0] for path in changed}
        folders.update(self._put_in_order("folder"))
        many = are_many(len(folders))
        if many:
            folders = {path.partition("/")[0] for path in changed}
        for path in sorted(folders, key=tree_order):
            # One that is gone by now, or that cannot be listed, is synced with what is around it.
            with self._tried(path, counts=False):
                folder = self._walker.folder(path)
                with_descriptor(".", sync_file_system if many else os.fsync, folder)

    def _put_in_order(self, kind: str) -> list[str]:
        paths = (path for path, entry in self._put.items() if entry.kind == kind)
        return sorted((p for p in paths if "/" in p), key=tree_order)

    def _parent(self, path: str) -> tuple[int, str]:
        return self._walker.parent(path)

    @contextmanager
    def _staging(self, root: str) -> Iterator[int | None]:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            staging = os.open(STAGING, flags, dir_fd=self._walker.folder(root))
        except OSError:
            yield None
            return
        try:
            yield staging
        finally:
            os.close(staging)

    @contextmanager
    def _tried(self, path: str, *, counts: bool = True) -> Iterator[None]:
        """A path that cannot be changed is skipped; a disk that fails ends it all."""
        try:
            yield
        except OSError as error:
            raise_if_ailing(error)
            self._walker.forget()
            if counts:
                self.skipped.add(path)
            if error.errno in _IMPOSSIBLE:
                self.never.add(path)


def raise_if_ailing(error: OSError) -> None:
    """Raises for what is about the disk or the machine rather than about one path."""
    if error.errno in _FULL:
        raise ContentFull(
            "there is no space left for the local folders",
            hint="free some disk, or give the workspace a larger volume",
        ) from error
    if error.errno in _AILING:
        raise ContentUnavailable(
            f"the local folders cannot be written: {error.strerror}",
            hint="check the disk of the node",
        ) from error


def _look(folder: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_like(found: os.stat_result, entry: Entry) -> bool:
    if entry.kind == "symlink":
        return stats.S_ISLNK(found.st_mode)
    return (
        stats.S_ISREG(found.st_mode)
        and found.st_size == entry.size
        and found.st_mode & 0o777 == entry.mode
    )
