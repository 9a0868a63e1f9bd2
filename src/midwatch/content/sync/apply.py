"""Apply a tree to local folders without following symlinks.

Files are first written to a staging folder in their root, on the same file system. Then a plan is saved, so that
after a kill the next process can finish it. Then the plan is applied: remove, make folders, rename
the files into place, set the modes of folders. Every step can be repeated. A path that has changed since
the plan was made is skipped, so that newer content is never replaced; the next round merges it.
"""

from __future__ import annotations

import errno
import json
import os
import stat as stats
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
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
    change_mode,
    open_folder,
    set_mode,
    signature_of,
)
from midwatch.content.sync.scan import Scan
from midwatch.content.tree import (
    CHUNK,
    NO_CHANGE,
    Delta,
    Entry,
    Tree,
    compact,
    delta_from_json,
)
from midwatch.files import (
    are_many,
    is_disk_full,
    read_regular,
    replace_file,
    sync_file_system,
    with_descriptor,
)

OPEN = 0o700
"""The permissions that the owner needs to change what is in a folder."""
_IMPOSSIBLE = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY}
_DISK_ERRORS = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENODEV}
_KINDS = {
    "file": stats.S_IFREG,
    "folder": stats.S_IFDIR,
    "symlink": stats.S_IFLNK,
}
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
Before = int | Signature | None
"""What was at a path: the mode of a folder, the signature of a file or symlink, or nothing."""


def raise_for_disk_error(error: OSError) -> None:
    """Raise ContentFull or ContentUnavailable if the error is about the disk or the machine, not about one path."""
    if is_disk_full(error):
        raise ContentFull(
            f"the local folders cannot be written: {error.strerror}",
            hint="free some disk, or give the workspace a larger volume",
        ) from error
    if error.errno in _DISK_ERRORS:
        raise ContentUnavailable(
            f"the local folders cannot be written: {error.strerror}",
            hint="check the disk of the node",
        ) from error


@contextmanager
def _map_disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise_for_disk_error(error)
        raise


# ------------------------------------------------------------------ plans


@dataclass(frozen=True, slots=True)
class Plan:
    """A change of the local folders.

    Attributes:
        delta: The change.
        before: What is at each of its paths.
        staged: Names of the staged files, by path.
        modes: Modes of folders that have to be opened for the change, by path.
        base: The change of the base after it.
        version: The version of the base after it.
    """

    delta: Delta
    before: Mapping[str, Before]
    staged: Mapping[str, str] = field(default_factory=dict)
    modes: Mapping[str, int] = field(default_factory=dict)
    base: Delta = NO_CHANGE
    version: str = ""


def write_plan(path: Path, plan: Plan) -> None:
    """Save the plan; from now on it will be applied. Raises OSError."""
    data = {
        "delta": plan.delta.to_json(),
        "before": dict(plan.before),
        "staged": dict(plan.staged),
        "modes": dict(plan.modes),
        "base": plan.base.to_json(),
        "version": plan.version,
    }
    replace_file(path, compact(data))


def read_plan(path: Path) -> Plan | None:
    """Return the plan that was not finished, or None. Raises OSError, and ValueError for an invalid file."""
    try:
        data = json.loads(read_regular(path))
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
        raise ValueError(f"{path} is not a plan") from error


def _before_from_json(data: Any) -> Before:
    if data is None or isinstance(data, int):
        return data
    size, mtime, ctime, inode, mode = data
    return size, mtime, ctime, inode, mode


def make_plan(
    delta: Delta,
    scan: Scan,
    tree: Tree,
    staged: Mapping[str, str],
    base: Delta = NO_CHANGE,
    version: str = "",
) -> Plan:
    """Return the plan for a change from the scan's tree to `tree`."""
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
    return scan.files[path][0]


def _is_closed(entry: Entry | None) -> bool:
    return entry is not None and entry.kind == "folder" and entry.mode & OPEN != OPEN


# ------------------------------------------------------------------ applying


@dataclass(frozen=True, slots=True)
class Applied:
    """The paths that were not changed: all of them, those that cannot exist on this file system, and why others were denied."""

    skipped: frozenset[str]
    impossible: frozenset[str] = frozenset()
    denied: Mapping[str, str] = field(default_factory=dict)


def apply_plan(
    roots: Roots, plan: Plan, step: Callable[[str], None] = lambda name: None
) -> Applied:
    """Apply the plan, or the rest of it.

    Args:
        roots: The local folders.
        plan: The change.
        step: Called with the name of each part before it, and before each file.

    Raises:
        ContentFull, ContentUnavailable: The local disk fails; the plan has to be applied again.
    """
    with roots.walker() as walker:
        run = _PlanRun(walker, plan, step)
        step("remove")
        run.open_folders()
        run.remove()
        step("make folders")
        run.make_folders()
        run.place_files()
        step("close folders")
        run.close_folders()
        step("sync folders")
        run.sync()
    return Applied(frozenset(run.skipped), frozenset(run.impossible), run.denied)


class _PlanRun:
    """The steps of `apply_plan`."""

    def __init__(self, walker: Walker, plan: Plan, step: Callable[[str], None]) -> None:
        self._walker = walker
        self._step = step
        self._plan = plan
        self._put = plan.delta.put
        self.skipped: set[str] = set()
        self.impossible: set[str] = set()
        self.denied: dict[str, str] = {}

    def open_folders(self) -> None:
        """Open folders that forbid even their owner to change what is in them."""
        for path in sorted(self._plan.modes, key=tree_order):
            with self._skip_on_error(path, counts=False):
                mode = os.stat(self._walker.folder(path)).st_mode & 0o777
                if mode & OPEN != OPEN:
                    set_mode(self._walker.folder(path), mode | OPEN)

    def remove(self) -> None:
        """Remove what the plan removes, and what it replaces by an entry of another kind."""
        removed = [*self._plan.delta.removed, *filter(self._changes_kind, self._put)]
        for path in sorted(removed, key=tree_order, reverse=True):
            with self._skip_on_error(path):
                self._remove(path)
        self._walker.close()

    def _changes_kind(self, path: str) -> bool:
        was = self._plan.before[path]
        is_folder = self._put[path].kind == "folder"
        return was is not None and isinstance(was, int) != is_folder

    def _remove(self, path: str) -> None:
        try:
            folder, name = self._walker.parent(path)
        except (FileNotFoundError, NotADirectoryError):
            return  # removed with its folder
        found = _lstat(folder, name)
        if found is None:
            return
        entry = self._put.get(path)
        if entry is not None and stats.S_IFMT(found.st_mode) == _KINDS[entry.kind]:
            return  # replaced already, by a process that was killed afterwards
        before = self._plan.before[path]
        if not isinstance(before, int):
            if signature_of(found) == before:
                return os.unlink(name, dir_fd=folder)
        elif stats.S_ISDIR(found.st_mode):
            return os.rmdir(name, dir_fd=folder)
        self.skipped.add(path)

    def make_folders(self) -> None:
        """Make the folders, open to their owner."""
        for path in self._folders_in_order():
            with self._skip_on_error(path):
                folder, name = self._walker.parent(path)
                found = _lstat(folder, name)
                if found is None:
                    os.mkdir(name, OPEN, dir_fd=folder)
                elif not stats.S_ISDIR(found.st_mode):
                    self.skipped.add(path)

    def place_files(self) -> None:
        """Rename the staged files to their paths."""
        by_root: dict[str, list[str]] = {}
        files = (path for path, entry in self._put.items() if entry.kind != "folder")
        self.skipped.update(path for path in files if path not in self._plan.staged)
        for path in sorted(self._plan.staged, key=tree_order):
            by_root.setdefault(path.partition("/")[0], []).append(path)
        for root, paths in by_root.items():
            with self._staging(root) as staging:
                for path in paths:
                    self._step("place")
                    with self._skip_on_error(path):
                        self._place(path, staging)

    def _place(self, path: str, staging: int | None) -> None:
        staged = self._plan.staged[path]
        folder, name = self._walker.parent(path)
        found = _lstat(folder, name)
        if staging is None or _lstat(staging, staged) is None:
            # Renamed before, by a process that was killed afterwards; or removed meanwhile.
            if found is None or not _is_like(found, self._put[path]):
                self.skipped.add(path)
        elif found is None or signature_of(found) == self._plan.before[path]:
            os.rename(staged, name, src_dir_fd=staging, dst_dir_fd=folder)
        else:
            self.skipped.add(path)

    def close_folders(self) -> None:
        """Set the modes of folders, the inner ones first."""
        self._walker.close()
        modes = {path: self._put[path].mode for path in self._folders_in_order()}
        for path in sorted({**self._plan.modes, **modes}, key=tree_order, reverse=True):
            mode = modes.get(path, self._plan.modes.get(path, 0))
            with self._skip_on_error(path, counts=path in modes):
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
        """Sync the folders: after a power cut, the files must be where the base says that they are."""
        changed = [p for p in (*self._put, *self._plan.delta.removed) if "/" in p]
        folders = {path.rpartition("/")[0] for path in changed}
        folders.update(self._folders_in_order())
        many = are_many(len(folders))
        if many:
            folders = {path.partition("/")[0] for path in changed}
        for path in sorted(folders, key=tree_order):
            # One that is gone, or that cannot be listed, is synced with the folder above it.
            with self._skip_on_error(path, counts=False):
                folder = self._walker.folder(path)
                with_descriptor(".", sync_file_system if many else os.fsync, folder)

    def _folders_in_order(self) -> list[str]:
        paths = (path for path, entry in self._put.items() if entry.kind == "folder")
        return sorted((p for p in paths if "/" in p), key=tree_order)

    @contextmanager
    def _staging(self, root: str) -> Iterator[int | None]:
        try:
            staging = open_folder(STAGING, self._walker.folder(root))
        except OSError:
            yield None
            return
        try:
            yield staging
        finally:
            os.close(staging)

    @contextmanager
    def _skip_on_error(self, path: str, *, counts: bool = True) -> Iterator[None]:
        """Skip a path that cannot be changed; a disk that fails ends the run."""
        try:
            yield
        except OSError as error:
            raise_for_disk_error(error)
            self._walker.close()
            if counts:
                self.skipped.add(path)
            if error.errno in _IMPOSSIBLE:
                self.impossible.add(path)
            if counts and error.errno in _DENIED:
                self.denied[path] = str(error.strerror)


def _lstat(folder: int, name: str) -> os.stat_result | None:
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


# ------------------------------------------------------------------ staging


class Staging:
    """Files that are written chunk by chunk, in any order, before they are put in place.

    Call `open` first and `close` at the end. Raises ContentFull or ContentUnavailable if the disk fails.

    Args:
        roots: The local folders.
        put: The files and symlinks, by path.
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
        with _map_disk_errors():
            self._make_folders()
            for number, (path, entry) in enumerate(self._put.items()):
                if entry.kind != "folder":
                    self._begin(path, entry, str(number))

    def close(self) -> None:
        """Close the folders; the files stay."""
        self._stack.close()

    @property
    def wanted(self) -> list[str]:
        """The chunks that are still missing, in the order of the files."""
        return list(self._wanted)

    def write(self, chunks: Iterable[tuple[str, bytes]]) -> None:
        """Write verified chunks to all files that have them."""
        with _map_disk_errors():
            for name, data in chunks:
                for path, offset in self._wanted.pop(name, ()):
                    self._write(path, offset, data)

    def finish(self) -> None:
        """Set the modes, and sync the files before any of them is put in place.

        Otherwise a power cut could leave empty files, which the next push would send.
        Raises ValueError if chunks are missing or have another length.
        """
        if self._wanted:
            raise ValueError("chunks are missing")
        many = are_many(len(self.names))
        with _map_disk_errors():
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
                raise ValueError("the chunks do not add up to the size of the file")
            os.fchmod(file, entry.mode)
            if sync:
                os.fsync(file)
        finally:
            os.close(file)

    def _make_folders(self) -> None:
        for root in {path.partition("/")[0] for path in self._put}:
            with self._roots.walker() as walker:
                folder = walker.folder(root)
                _clear(folder)
                os.mkdir(STAGING, 0o700, dir_fd=folder)
                self._folders[root] = open_folder(STAGING, folder)
                self._stack.callback(os.close, self._folders[root])

    def _begin(self, path: str, entry: Entry, name: str) -> None:
        folder = self._folder(path)
        if entry.kind == "symlink":
            try:
                os.symlink(entry.target, name, dir_fd=folder)
            except OSError as error:
                # The file system refuses the target: the path is skipped.
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


def clear_all(roots: Roots) -> None:
    """Remove the staging folders. Raises OSError."""
    with roots.walker() as walker:
        for root in roots.folders:
            _clear(walker.folder(root))


def _clear(root: int) -> None:
    """Remove the staging folder of a root, or whatever else has its name."""
    with suppress(OSError):
        change_mode(STAGING, root, OPEN)
    try:
        staging = open_folder(STAGING, root)
    except FileNotFoundError:
        return
    except OSError:
        # Something else has its name.
        return os.unlink(STAGING, dir_fd=root)
    try:
        _empty(staging)
    finally:
        os.close(staging)
    os.rmdir(STAGING, dir_fd=root)


def _empty(folder: int) -> None:
    set_mode(folder, OPEN)
    with os.scandir(folder) as items:
        entries = [(item.name, item.is_dir(follow_symlinks=False)) for item in items]
    for name, is_folder in entries:
        if is_folder:
            with suppress(OSError):
                change_mode(name, folder, OPEN)
            inner = open_folder(name, folder)
            try:
                _empty(inner)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)
