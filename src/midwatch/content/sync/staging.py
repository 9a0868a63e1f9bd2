"""Files made ready beside the place they go to: in the same file system, so that a rename is all that is left."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from midwatch.content.durable import are_many, sync_file_system
from midwatch.content.sync.apply import raise_if_ailing
from midwatch.content.sync.roots import STAGING, Roots, open_folder
from midwatch.content.tree import CHUNK, Entry


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
                return raise_if_ailing(error)
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
        raise_if_ailing(error)
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
