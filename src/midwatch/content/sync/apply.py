"""Change local folders to what a tree says, without ever going through a symlink.

Files are made ready in a folder of their root (`staging`), then a plan is written down (`journal`), then it is carried
out: remove, make folders, move the files into place, set the modes of folders. Every step can be done twice. A path that is
no longer what the plan says it was is skipped: the next round sees what became of it.
"""

from __future__ import annotations

import errno
import json
import os
import stat as stats
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midwatch.content.errors import ContentFull, ContentUnavailable
from midwatch.content.sync.merge import folders_above, tree_order
from midwatch.content.sync.roots import (
    STAGING,
    Roots,
    Signature,
    Walker,
    open_folder,
    set_mode,
    signature_of,
)
from midwatch.content.sync.scan import Scan
from midwatch.content.tree import CHUNK, Delta, Entry, Tree, compact, entry_from_json
from midwatch.files import are_many, replace_file, sync_file_system, with_descriptor
from midwatch.model import Json

# ------------------------------------------------------------ journal
# What is about to be done to the local folders, on disk before it is done.
#
# A process that was killed in the middle is followed by one that does the rest. What a path was `before` is in it, so that
# nothing is replaced that somebody wrote meanwhile.

Before = int | Signature | None
"""What was there: the mode of a folder, the signature of a file or symlink, or nothing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`delta` for the folders; `staged` the names of the files made ready for it; `modes` of folders that
    have to be opened for it; `base` what the base then becomes, at `version`."""

    delta: Delta
    before: Mapping[str, Before]
    staged: Mapping[str, str] = field(default_factory=dict)
    modes: Mapping[str, int] = field(default_factory=dict)
    base: Delta = Delta({}, frozenset())
    version: str = ""


def write_plan(path: Path, plan: Plan) -> None:
    """The plan is made as soon as this returns. Raises OSError."""
    data = {
        "delta": delta_to_json(plan.delta),
        "before": dict(plan.before),
        "staged": dict(plan.staged),
        "modes": dict(plan.modes),
        "base": delta_to_json(plan.base),
        "version": plan.version,
    }
    replace_file(path, compact(data))


def read_plan(path: Path) -> Plan | None:
    """The plan that was not finished, if there is one. Raises OSError, and ValueError for what is none."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    try:
        return Plan(
            delta_from_json(data["delta"]),
            {name: _before_from_json(was) for name, was in data["before"].items()},
            data["staged"],
            data["modes"],
            delta_from_json(data["base"]),
            data["version"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no plan") from error


def _before_from_json(data: Any) -> Before:
    if data is None or isinstance(data, int):
        return data
    size, mtime, ctime, inode, mode = data
    return size, mtime, ctime, inode, mode


def delta_to_json(delta: Delta) -> Json:
    put = {path: entry.to_json() for path, entry in delta.put.items()}
    return {"put": put, "removed": sorted(delta.removed)}


def delta_from_json(data: Any) -> Delta:
    """Raises ValueError, KeyError or TypeError."""
    put: dict[str, Entry] = {p: entry_from_json(e) for p, e in data["put"].items()}
    return Delta(put, frozenset(data["removed"]))


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
            raise_for_disk_error(error)
            self._walker.forget()
            if counts:
                self.skipped.add(path)
            if error.errno in _IMPOSSIBLE:
                self.never.add(path)


def raise_for_disk_error(error: OSError) -> None:
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


# ------------------------------------------------------------ staging
# Files made ready beside the place they go to: in the same file system, so that a rename is all that is left.


class Staging:
    """Files that become ready, chunk by chunk in any order. To be opened, and closed.

    Raises ContentFull or ContentUnavailable if the disk fails.
    """

    def __init__(self, roots: Roots, put: Mapping[str, Entry]) -> None:
        self._roots = roots
        self._put = put
        self._stack = ExitStack()
        self._folders: dict[str, int] = {}
        self.names: dict[str, str] = {}
        self._wanted: dict[str, list[tuple[str, int]]] = {}

    def open(self) -> None:
        """Make the empty files, and the symlinks."""
        with _told():
            self._open()
            for number, (path, entry) in enumerate(self._put.items()):
                if entry.kind != "folder":
                    self._begin(path, entry, str(number))

    def close(self) -> None:
        """What was made stays where it is."""
        self._stack.close()

    @property
    def wanted(self) -> list[str]:
        """The chunks that are still to come, in the order of the files."""
        return list(self._wanted)

    def write(self, chunks: Iterable[tuple[str, bytes]]) -> None:
        """Chunks that were checked, to all places where they belong."""
        with _told():
            for name, data in chunks:
                for path, offset in self._wanted.pop(name, ()):
                    self._write(path, offset, data)

    def finish(self) -> None:
        """All is there: the modes are set, and it is on the disk before anything takes a place.

        Otherwise a power cut could leave empty files there, which would be sent as somebody's work.
        Raises ValueError if chunks are still wanted or have another length.
        """
        if self._wanted:
            raise ValueError("chunks are missing")
        many = are_many(len(self.names))
        with _told():
            for path, name in self.names.items():
                entry = self._put[path]
                if entry.kind == "file":
                    self._finish(self._folder(path), name, entry, sync=not many)
            for folder in self._folders.values():
                (sync_file_system if many else os.fsync)(folder)

    def _finish(self, folder: int, name: str, entry: Entry, *, sync: bool) -> None:
        file = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            if os.fstat(file).st_size != entry.size:
                raise ValueError("the chunks are not as long as the file")
            os.fchmod(file, entry.mode)
            if sync:
                os.fsync(file)
        finally:
            os.close(file)

    def _open(self) -> None:
        for root in {path.partition("/")[0] for path in self._put}:
            with self._roots.walker() as walker:
                place = walker.folder(root)
                clear(place)
                os.mkdir(STAGING, 0o700, dir_fd=place)
                self._folders[root] = open_folder(STAGING, place)
                self._stack.callback(os.close, self._folders[root])

    def _begin(self, path: str, entry: Entry, name: str) -> None:
        folder = self._folder(path)
        if entry.kind == "symlink":
            try:
                os.symlink(entry.target, name, dir_fd=folder)
            except OSError as error:
                # A target that this file system does not take: the path is skipped.
                return raise_for_disk_error(error)
            self.names[path] = name
            return
        self.names[path] = name
        os.close(os.open(name, _NEW, 0o600, dir_fd=folder))
        for number, chunk in enumerate(entry.chunks):
            self._wanted.setdefault(chunk, []).append((path, number * CHUNK))

    def _write(self, path: str, offset: int, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(self.names[path], flags, dir_fd=self._folder(path))
        try:
            view = memoryview(data)
            while view:
                written = os.pwrite(file, view, offset)
                view, offset = view[written:], offset + written
        finally:
            os.close(file)

    def _folder(self, path: str) -> int:
        return self._folders[path.partition("/")[0]]


_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise_for_disk_error(error)
        raise


def clear_all(roots: Roots) -> None:
    """Take away what was made ready and is not needed any more."""
    with roots.walker() as walker:
        for root in roots.places:
            clear(walker.folder(root))


def clear(place: int) -> None:
    """Remove the staging folder of a root, whatever became of it."""
    try:
        staging = open_folder(STAGING, place)
    except FileNotFoundError:
        return
    except OSError:
        # Something else has its name.
        return os.unlink(STAGING, dir_fd=place)
    try:
        _empty(staging)
    finally:
        os.close(staging)
    os.rmdir(STAGING, dir_fd=place)


def _empty(folder: int) -> None:
    with os.scandir(folder) as items:
        entries = [(item.name, item.is_dir(follow_symlinks=False)) for item in items]
    for name, is_folder in entries:
        if is_folder:
            inner = open_folder(name, folder)
            try:
                _empty(inner)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)
