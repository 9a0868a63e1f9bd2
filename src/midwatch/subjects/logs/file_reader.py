"""Read parts of log files: complete lines from a position on, decompressed, without holes (blocking)."""

from __future__ import annotations

import bz2
import errno
import gzip
import importlib
import itertools
import lzma
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from midwatch.subjects.log_position import COMPRESSED, MARK, LogPosition, mark_of
from midwatch.subjects.logs.framing import Format, complete, format_of
from midwatch.subjects.logs.source_reading import Budget, Reading
from midwatch.text import ticket_line

BLOCK = 1_000_000  # bytes read at a time
_CONTEXT = 4096  # bytes before a block that show what a stack trace belongs to
_KEEP = 3600.0  # seconds for which a rotated file is still looked at
_ENDED = 60.0  # seconds after which a rotated file gets no more of its last line
_BINARY = 0.1  # share of control characters
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\x0c\x08\x1b"))

Feed = Callable[[bytes, str, Format, int], None]
"""Takes complete lines: the data, their file, its format, and how many bytes were read before."""


@dataclass(slots=True)
class Entry:
    """What is known of one file: its position, and its state when that was stored.

    Attributes:
        at: The position.
        within: Whether the position is within a line that was too long.
        changed: The modification time, in epoch seconds.
        rest: Bytes after the position that were not read yet.
    """

    at: LogPosition
    within: bool = False
    changed: float = 0.0
    rest: int = 0

    def is_done_with(self, found: Found) -> bool:
        """Return whether this file is compressed, and was read."""
        return found.compressed and not self.rest and self.changed == found.changed

    def to_state(self) -> list[Any]:
        place = self.at
        return [
            *(place.path, place.file, place.offset, place.mark),
            *(int(self.within), self.changed, self.rest),
        ]

    @classmethod
    def of(cls, raw: Any) -> Entry | None:
        """Return the entry from stored state; None for anything else."""
        try:
            path, file, offset, mark, within, changed, rest = raw
            place = LogPosition(str(path), int(file), int(offset), str(mark))
            return cls(place, bool(within), float(changed), int(rest))
        except (TypeError, ValueError):
            return None


@dataclass(frozen=True, slots=True)
class Found:
    """One file as it is now.

    `named` tells whether a pattern matches it; else it is a rotated one. `wild` tells whether that has wildcards.
    """

    path: str
    file: int
    size: int
    changed: float
    named: bool = True
    readable: bool = True
    wild: bool = False

    @property
    def compressed(self) -> bool:
        return self.path.endswith(COMPRESSED)


@dataclass(slots=True)
class Part:
    """A file, from where on it has not been read, and the length of it that is read now."""

    found: Found
    start: int
    within: bool = False
    mark: str = ""  # of where it has not been read
    copied: bool = False  # by copytruncate: its last line may go on in the file itself

    @property
    def rest(self) -> int:
        return max(0, self.found.size - self.start)


# ------------------------------------------------------------------ opening and recognising


@contextmanager
def opened(path: str, file: int = 0) -> Iterator[IO[bytes]]:
    """Open a regular file without waiting, decompressed if its name says so.

    Args:
        path: Where it is.
        file: Its inode number: it may have another name by now. 0 where any file counts.

    Raises:
        OSError: It cannot be opened.
    """
    with open(_descriptor(path, file), "rb") as raw:
        if not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file any more")
        if Path(path).suffix != ".zst":
            yield _decompressed(raw, path)
            return
        zstd = _zstd()
        try:
            yield zstd.open(raw)
        except zstd.ZstdError as error:  # an Exception, and of no other class
            raise OSError(errno.EINVAL, str(error)) from error


def _descriptor(path: str, file: int) -> int:
    """Open a path, or the file of its folder that was renamed since it was listed. Raises OSError."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    paths: Iterator[str] = iter([path])
    if file:
        paths = itertools.chain([path], _names(os.path.dirname(path), file))
    for one in paths:
        try:
            found = os.open(one, flags)
        except FileNotFoundError:
            continue
        if not file or os.fstat(found).st_ino == file:
            return found
        os.close(found)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def _names(folder: str, file: int) -> Iterator[str]:
    with os.scandir(folder) as entries:
        yield from (one.path for one in entries if one.inode() == file)


def _decompressed(raw: IO[bytes], path: str) -> IO[bytes]:
    suffix = Path(path).suffix
    if suffix == ".gz":
        return gzip.open(raw)  # type: ignore[return-value]
    if suffix == ".bz2":
        return bz2.open(raw)
    if suffix == ".xz":
        return lzma.open(raw)
    if suffix == ".lz4":
        raise OSError(
            errno.ENOSYS,
            "no .lz4 is read (hint: let the log be compressed by gzip, xz or zstd)",
        )
    return raw


def _zstd() -> Any:
    """Return the module of the standard library, which Python has from 3.14 on, or its backport. Raises OSError."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise OSError(
        errno.ENOSYS, "this Python reads no .zst (hint: pip install 'midwatch[logs]')"
    )


UNREADABLE = (OSError, EOFError, lzma.LZMAError, zlib.error, ValueError)
"""What reading of a file raises, also of a damaged compressed one."""


class NotReached(OSError):
    """A place of a compressed file was not reached in time."""

    def __init__(self) -> None:
        super().__init__(errno.ETIME, "it could not be decompressed in time")


def is_at(found: Found, place: LogPosition, budget: Budget) -> bool:
    """Return whether a file has before the offset what was read there; false for one that cannot be read."""
    try:
        return is_surely_at(found, place, budget)
    except UNREADABLE:
        return False


def is_surely_at(found: Found, place: LogPosition, budget: Budget) -> bool:
    """Return whether a file has before the offset what was read there. Raises one of `UNREADABLE`."""
    if not found.compressed and found.size < place.offset:
        return False
    if not place.mark:  # its content could never be read
        return found.file == place.file
    start = max(0, place.offset - MARK)
    with opened(found.path, found.file) as file:
        if not _seek(file, start, found.compressed, budget):
            if budget.is_spent:
                raise NotReached
            return False
        return mark_of(file.read(place.offset - start)) == place.mark


def is_longer(found: Found, size: int, budget: Budget) -> bool:
    """Return whether a file has more than some bytes, decompressed; false for one that cannot be read."""
    if not found.compressed:
        return found.size > size
    try:
        with opened(found.path, found.file) as file:
            return _seek(file, size, True, budget) and bool(file.read(1))
    except UNREADABLE:
        return False


def why(error: Exception) -> str:
    """Return why a file cannot be read."""
    return getattr(error, "strerror", None) or str(error)


def _seek(file: IO[bytes], start: int, compressed: bool, budget: Budget) -> bool:
    """Go to a place; return whether it was reached in time. What is compressed is read up to there."""
    if not compressed:
        file.seek(start)
        return True
    at = 0
    while at < start:
        part = file.read(min(BLOCK, start - at))
        if not part or budget.is_spent:
            return False
        at += len(part)
    return True


# ------------------------------------------------------------------ reading


@dataclass(slots=True)
class _Cursor:
    """How far a file is read.

    Attributes:
        at: The offset.
        within: Whether that is within a line of which the rest is left out.
        context: The last lines before it.
        left: Bytes of a compressed file from the offset on that are decompressed already.
    """

    at: int
    within: bool
    context: bytes
    left: bytes = b""


class _Binary(Exception):
    """A file is no text."""


@dataclass(slots=True)
class FileReader:
    """Reads parts of files and feeds their lines."""

    form: Format | None
    budget: Budget
    feed: Feed
    reading: Reading
    _began: float = field(default_factory=time.time)
    _fragment: bytes = b""

    def family(self, parts: Sequence[Part]) -> list[Entry]:
        """Read the parts of one file, oldest first; return what is known of each then."""
        entries: list[Entry] = []
        self._fragment = b""
        waiting: Entry | None = (
            None  # of a copy whose last line goes on in the next part
        )
        for part in parts:
            had = self._fragment
            try:
                entry = self._part(part)
            except UNREADABLE as error:
                entry = self._failed(part, error)
            except _Binary:
                entry = _entry(part, part.found.size, "", True, 0)
            if waiting is not None and had and not self._fragment:
                size = waiting.at.offset + len(had)
                waiting.at = replace(waiting.at, offset=size, mark="")
                waiting.rest = 0
            waiting = entry if part.copied else None
            if entry is not None:
                entries.append(entry)
        return entries

    def _failed(self, part: Part, error: Exception) -> Entry | None:
        shown = ticket_line(part.found.path, 100)
        if isinstance(error, FileNotFoundError):  # gone since it was listed
            self.reading.behind += max(1, part.rest)
            return _entry(part, part.start, part.mark, part.within, part.rest)
        if part.found.named:
            self.reading.fail(f"{shown}: {why(error)}")
            return _entry(part, part.start, "", part.within, part.rest)
        if part.rest or part.found.compressed:
            self.reading.lose(f"{shown} cannot be read: {why(error)}", part.rest)
        return None

    def _part(self, part: Part) -> Entry | None:
        """Read one part; return what is known of the file then, None for one that is done with."""
        found = part.found
        with opened(found.path, found.file) as file:
            cursor = self._context(file, part)
            if cursor is None:
                self.reading.behind += max(1, part.rest)
                return _entry(part, part.start, "", part.within, part.rest)
            ended = self._lines(file, part, cursor)
            if found.compressed:
                return self._ended_compressed(part, cursor, ended)
            return self._ended(file, part, cursor, ended)

    def _lines(self, file: IO[bytes], part: Part, cursor: _Cursor) -> bool:
        """Feed the complete lines; return whether no other ones are there."""
        form = self.form
        while not self.budget.is_spent:
            raw = self._next(file, part.found, cursor)
            if not raw:
                return True
            if not raw.strip(b"\0"):  # a hole that the file system does not tell
                cursor.at += len(raw)
                continue
            if cursor.at == part.start and self._is_binary(raw, part.found):
                raise _Binary
            skipped = 0
            if cursor.within:
                skipped = raw.find(b"\n") + 1 or len(raw)
                cursor.within = raw[skipped - 1] != 10
            data = raw[skipped : raw.rfind(b"\n") + 1]
            form = form or format_of(data.partition(b"\n")[0])
            data = data[: complete(data, form)]
            used = skipped + len(data)
            if not used:
                if len(raw) < BLOCK:
                    cursor.left = raw
                    return True
                data, used, cursor.within = raw + b"\n", len(raw), True
            if data:
                self._feed(cursor.context, data, part.found, form)
                cursor.context = data[-_CONTEXT:]
            cursor.at += used
            cursor.left = raw[used:]
            self.budget.take(used)
        return False

    def _next(self, file: IO[bytes], found: Found, cursor: _Cursor) -> bytes:
        if found.compressed:
            return cursor.left + file.read(BLOCK - len(cursor.left))
        if cursor.at >= found.size:
            return b""
        cursor.at = _data_at(file, cursor.at, found.size)
        return os.pread(file.fileno(), min(BLOCK, found.size - cursor.at), cursor.at)

    def _ended_compressed(
        self, part: Part, cursor: _Cursor, ended: bool
    ) -> Entry | None:
        if not ended:
            self.reading.behind += 1
            before = cursor.context[-min(MARK, cursor.at) :] if cursor.at else b""
            return _entry(part, cursor.at, mark_of(before), cursor.within, 1)
        if cursor.left and part.copied:
            self._fragment = cursor.left
        elif cursor.left:
            self._feed(cursor.context, cursor.left + b"\n", part.found, "plain")
        return done(part.found)

    def _ended(
        self, file: IO[bytes], part: Part, cursor: _Cursor, ended: bool
    ) -> Entry | None:
        """Return what is known of a file at the end of its reading."""
        found, at = part.found, cursor.at
        rest = found.size - at
        if rest and not ended:
            self.reading.behind += rest
        elif rest and not found.named:
            last = os.pread(file.fileno(), min(rest, BLOCK), at)
            if part.copied:
                self._fragment = last
            elif self._began - found.changed > _ENDED:
                self._feed(cursor.context, last + b"\n", found, self.form or "plain")
                at, rest = found.size, 0
        if not found.named and not rest and self._began - found.changed > _KEEP:
            return None
        start = max(0, at - MARK)
        before = os.pread(file.fileno(), at - start, start)
        return _entry(part, at, mark_of(before), cursor.within, rest)

    def _context(self, file: IO[bytes], part: Part) -> _Cursor | None:
        """Go to where the part begins; return None if that was not reached in time."""
        start = max(0, part.start - _CONTEXT)
        if not _seek(file, start, part.found.compressed, self.budget):
            return None
        before = file.read(part.start - start)
        whole = before.endswith(b"\n")
        lines = before[before.find(b"\n") + 1 :] if start else before
        return _Cursor(part.start, part.within and not whole, lines if whole else b"")

    def _feed(self, context: bytes, data: bytes, found: Found, form: Format) -> None:
        if self._fragment and not context:
            data, self._fragment = self._fragment + data, b""
        if b"\0" in data:  # a hole, as a file has that was truncated under its writer
            data = data.replace(b"\0", b"")
        context = context.replace(b"\0", b"")
        self.feed(context + data, found.path, form, len(context))

    def _is_binary(self, raw: bytes, found: Found) -> bool:
        start = raw[:4096].replace(b"\0", b"")
        zeros = min(len(raw), 4096) - len(start)
        odd = len(start) - len(start.translate(None, _CONTROLS))
        if zeros and start and zeros > len(start) // 4 and not _hole(raw):
            odd = len(start)
        if odd <= len(start) * _BINARY:
            return False
        shown = ticket_line(found.path, 150)
        leave_out(f"{shown} is binary, not text", found.wild, self.reading)
        return True


def _hole(raw: bytes) -> bool:
    """Return whether zeros are all in one run: UTF-16 has them between its letters."""
    start = raw[:4096]
    first, last = start.find(b"\0"), start.rfind(b"\0")
    return start.count(b"\0") == last - first + 1


def _data_at(file: IO[bytes], at: int, size: int) -> int:
    """Return where the data of a sparse file goes on."""
    try:
        return min(size, os.lseek(file.fileno(), at, os.SEEK_DATA))
    except (OSError, AttributeError):  # no hole, or a system that does not tell
        return at


def _entry(part: Part, at: int, mark: str, within: bool, rest: int) -> Entry:
    found = part.found
    place = LogPosition(found.path, found.file, at, mark)
    return Entry(place, within, found.changed, rest)


def done(found: Found) -> Entry:
    """Return what is known of a rotated file that was read, or is left out."""
    return Entry(LogPosition(found.path, found.file, found.size), False, found.changed)


def leave_out(what: str, wild: bool, reading: Reading) -> None:
    """Note a file that is not a log: a pattern may match it, a path names it by mistake."""
    if wild:
        reading.left_out.append(what)
    else:
        reading.fail(what)
