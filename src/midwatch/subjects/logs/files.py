"""Files as a source: which there are, where each was read to, and what was rotated since (blocking).

A file is known by its inode number and the bytes before a position. So one that was renamed goes on where it was, and
the copy that `copytruncate` leaves, also compressed, is recognised by its content. What was written and cannot
be found any more is reported as lost.
"""

from __future__ import annotations

import bz2
import errno
import glob
import gzip
import itertools
import lzma
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from midwatch.log_shapes import time_of
from midwatch.subjects.log_position import (
    COMPRESSED,
    MARK,
    LogPosition,
    mark_of,
    rotated_name,
)
from midwatch.subjects.logs.framing import Format, complete, format_of
from midwatch.subjects.logs.reading import Budget, Reading
from midwatch.text import ticket_line
from midwatch.units import format_size

BLOCK = 1_000_000  # bytes read at a time
_CONTEXT = 4096  # bytes before a block that show what a stack trace belongs to
_MOST_FILES = 300
_MOST_LISTED = 20_000  # paths that patterns may match
_KEEP = 3600.0  # seconds for which a rotated file is still looked at
_ENDED = 60.0  # seconds after which a rotated file gets no more of its last line
_BINARY = 0.1  # share of control characters
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\x0c\x08\x1b"))
_PROBE = 8_000  # bytes in which a time is looked for
_GLOB = re.compile(r"[*?\[]")

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
class _Part:
    """A file, from where on it has not been read, and the length of it that is read now."""

    found: Found
    start: int
    within: bool = False
    copied: bool = False  # by copytruncate: its last line may go on in the file itself

    @property
    def rest(self) -> int:
        return max(0, self.found.size - self.start)


def read_files(
    patterns: Sequence[str],
    form: Format | None,
    state: Any,
    last: float | None,
    since: float,
    budget: Budget,
    feed: Feed,
) -> Reading:
    """Read what is new in the files, as far as the budget goes.

    Args:
        patterns: Paths, which may have wildcards.
        form: The format of the files; None finds it out for each.
        state: The `place` of the last reading.
        last: When that began, in epoch seconds; None for the first reading, which begins at the ends.
        since: How many seconds before now the first reading begins.
        budget: The time and the bytes that it may take.
        feed: Takes the lines.
    """
    began = time.time()
    reading = Reading(began)
    entries = [e for raw in _listed(state) if (e := Entry.of(raw)) is not None]
    named = _named(patterns, reading)
    closed = {one.file: one for one in named if not one.readable}
    kept = [_unread(one, entries) for one in closed.values()]
    entries = [one for one in entries if one.at.file not in closed]
    named = [one for one in named if one.readable]
    if last is None:
        parts = [_first(one, since, began) for one in named]
    else:
        parts = _Plan(named, entries, last, reading, budget).parts()
    reader = _Reader(form, budget, feed, reading)
    for family in _families(parts):
        kept += reader.family(family)
    reading.place = [one.to_state() for one in kept]
    return reading


def _unread(found: Found, entries: Sequence[Entry]) -> Entry:
    """Return what is kept of a file that may not be read now: where it goes on once it may."""
    known = next((one for one in entries if one.at.file == found.file), None)
    if known is not None:
        return known
    place = LogPosition(found.path, found.file, found.size)
    return Entry(place, found.size > 0, found.changed)


def _listed(state: Any) -> list[Any]:
    return state if isinstance(state, list) else []


def _families(parts: Iterable[_Part]) -> list[list[_Part]]:
    """Return the parts of each file with its rotated ones, oldest first; small families first."""
    groups: dict[str, list[_Part]] = {}
    for one in parts:
        groups.setdefault(_base(one.found.path), []).append(one)
    for group in groups.values():
        group.sort(key=lambda one: (one.found.named, one.found.changed))
    return sorted(groups.values(), key=lambda group: sum(one.rest for one in group))


_ROTATED = re.compile(r"(?:[.-]\d[\d.-]*)?(?:\.(?:gz|bz2|xz|zst|lz4))?$", re.ASCII)
_DATED = re.compile(r"[.-]\d[\d.-]*(?=\.[A-Za-z]+$)", re.ASCII)


def _unrotated(path: str) -> str:
    """Return the path without what rotation adds at its end."""
    return _ROTATED.sub("", path, count=1)


def _base(path: str) -> str:
    """Return what the paths of a file and of its rotated ones have in common."""
    return _DATED.sub("", _unrotated(path))


# ------------------------------------------------------------------ which files there are


def _named(patterns: Sequence[str], reading: Reading) -> list[Found]:
    """Return the regular files that the patterns match, each once."""
    found: dict[int, Found] = {}
    for pattern in patterns:
        wild = _GLOB.search(pattern) is not None
        paths: Iterable[str] = [pattern]
        if wild:
            paths = itertools.islice(glob.iglob(pattern, recursive=True), _MOST_LISTED)
        some = False
        for path in paths:
            some = True
            if wild and path.endswith(COMPRESSED):
                continue
            one = _look(path, wild, reading)
            if one is not None:
                found.setdefault(one.file, one)
        if not some:
            reading.fail(f"no file matches {pattern}")
    if len(found) > _MOST_FILES:
        reading.fail(
            f"the patterns match {len(found):,} files, of which {_MOST_FILES} are read"
        )
    ranked = sorted(found.values(), key=lambda one: one.changed, reverse=True)
    return ranked[:_MOST_FILES]


def _look(path: str, wild: bool, reading: Reading) -> Found | None:
    """Return a file; None with a note for one that cannot be read, and for what is none."""
    shown = ticket_line(path, 150)
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            if not (wild and stat.S_ISDIR(info.st_mode)):
                _leave_out(f"{shown} is {_kind(info.st_mode)}", wild, reading)
            return None
    except OSError as error:
        if not (wild and isinstance(error, FileNotFoundError)):
            reading.fail(f"{shown}: {error.strerror}")
        return None
    readable = os.access(path, os.R_OK)
    if not readable:
        reading.fail(f"{shown}: {os.strerror(errno.EACCES)}")
    known = info.st_ino, info.st_size, info.st_mtime
    return Found(path, *known, readable=readable, wild=wild)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return f"{kinds.get(stat.S_IFMT(mode), 'special')}, not a regular file"


def _leave_out(what: str, wild: bool, reading: Reading) -> None:
    """Note what is no log: a pattern may match it, a path names it by mistake."""
    if wild:
        reading.left_out.append(what)
    else:
        reading.fail(what)


def _first(found: Found, since: float, now: float) -> _Part:
    """Return where the first reading of a file begins: at its end, or at a time before now."""
    start = found.size
    if since > 0 and found.changed >= now - since:
        start = place_of(found.path, found.size, now - since)
    return _Part(found, start, within=start > 0)


def place_of(path: str, size: int, at: float) -> int:
    """Return where the lines from a time on begin in a file, to within some kilobytes; its end without times."""
    low, high = 0, size
    try:
        with opened(path) as file:
            while high - low > _PROBE:
                middle = (low + high) // 2
                first = _time_at(file, middle, at)
                if first is None or first >= at:
                    high = middle
                else:
                    low = middle
            known = _time_at(file, low, at)
    except OSError:
        return size
    return low if known is not None else size


def _time_at(file: IO[bytes], start: int, near: float) -> float | None:
    from datetime import UTC, datetime

    file.seek(start)
    for line in file.read(_PROBE).split(b"\n")[1 if start else 0 :]:
        text = line.decode("utf-8", "replace")[:300]
        found = _STAMP.search(text)
        at, _ = time_of(
            text[found.start() :] if found else text, datetime.fromtimestamp(near, UTC)
        )
        if at is not None:
            return at.timestamp()
        if found:  # without a zone it is that of this machine
            try:
                return datetime.fromisoformat(found[0]).timestamp()
            except ValueError:
                continue
    return None


_STAMP = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d")


# ------------------------------------------------------------------ opening and recognising


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """Open a regular file without waiting, decompressed if its name says so. Raises OSError."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with open(os.open(path, flags), "rb") as raw:
        if not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file any more")
        yield _decompressed(raw, path)


def _decompressed(raw: IO[bytes], path: str) -> IO[bytes]:
    suffix = Path(path).suffix
    if suffix == ".gz":
        return gzip.open(raw)  # type: ignore[return-value]
    if suffix == ".bz2":
        return bz2.open(raw)
    if suffix == ".xz":
        return lzma.open(raw)
    if suffix == ".zst":
        try:
            from compression import zstd  # type: ignore[import-not-found]
        except ImportError:
            raise OSError(
                errno.ENOSYS, "this Python reads no .zst (from 3.14 on)"
            ) from None
        opened_zstd: IO[bytes] = zstd.open(raw)
        return opened_zstd
    if suffix == ".lz4":
        raise OSError(errno.ENOSYS, "Python reads no .lz4")
    return raw


UNREADABLE = (OSError, EOFError, lzma.LZMAError, ValueError)
"""What reading of a file raises, also of a damaged compressed one."""


def _is_at(found: Found, place: LogPosition, budget: Budget) -> bool:
    """Return whether a file has before the offset what was read there."""
    if not found.compressed and found.size < place.offset:
        return False
    if not place.mark:  # its content could never be read
        return found.file == place.file
    start = max(0, place.offset - MARK)
    try:
        with opened(found.path) as file:
            if not _seek(file, start, found.compressed, budget):
                return False
            return mark_of(file.read(place.offset - start)) == place.mark
    except UNREADABLE:
        return False


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


class _Plan:
    """Finds for each file where to go on, and which rotated ones hold the rest of what was read before."""

    def __init__(
        self,
        named: Sequence[Found],
        entries: Sequence[Entry],
        last: float,
        reading: Reading,
        budget: Budget,
    ) -> None:
        self._named, self._entries = named, entries
        self._last, self._reading, self._budget = last, reading, budget
        self._rotated = self._siblings()
        self._taken: dict[int, _Part] = {}

    def parts(self) -> list[_Part]:
        everything = {one.file: one for one in (*self._rotated, *self._named)}
        open_: list[Entry] = []
        for entry in self._entries:
            found = everything.get(entry.at.file)
            if (
                found is not None
                and _is_at(found, entry.at, self._budget)
                and not self._has_begun_again(found, entry)
            ):
                self._take(found, entry.at.offset, entry.within)
            else:
                open_.append(entry)
        for entry in open_:
            self._look_for(entry, everything.get(entry.at.file))
        for found in self._named:
            if found.file not in self._taken:
                self._take(found, self._copied(found))
        for found in self._rotated:  # rotated since the last reading, and never seen
            if found.file not in self._taken and found.changed > self._last:
                self._take(found, self._copied(found))
        return list(self._taken.values())

    def _has_begun_again(self, found: Found, entry: Entry) -> bool:
        """Return whether a file was copied, truncated, and has the same text before the position again."""
        known = {one.at.file for one in self._entries}
        return any(
            one.changed > self._last
            and one.size > found.size
            and one.file not in known
            and not one.compressed
            and _base(one.path) == _base(found.path)
            and _is_at(one, entry.at, self._budget)
            for one in (self._rotated if entry.at.offset else ())
        )

    def _take(self, found: Found, start: int, within: bool = False) -> None:
        self._taken[found.file] = _Part(found, start, within)

    def _siblings(self) -> list[Found]:
        """Return the files beside the known ones that logrotate made of them, but for one that is being compressed."""
        folders: dict[str, dict[str, None]] = {}
        paths = [one.path for one in self._named]
        paths += [one.at.path for one in self._entries]
        for path in paths:
            folder, name = os.path.split(path)
            folders.setdefault(folder, {})[name] = None
        named = {one.file for one in self._named}
        found: dict[int, Found] = {}
        for folder, names in folders.items():
            try:
                listed = sorted(os.listdir(folder or "."))
            except OSError:
                continue
            for name in names:
                pattern = rotated_name(Path(name))
                stem = Path(name).stem
                for other in _starting(listed, stem):
                    if other == name or not pattern.fullmatch(other):
                        continue
                    if other.endswith(COMPRESSED) and Path(other).stem in listed:
                        continue
                    one = _look(os.path.join(folder, other), True, Reading(0.0))
                    if one is not None and one.file not in named:
                        found[one.file] = Found(
                            one.path, one.file, one.size, one.changed, False
                        )
        return list(found.values())

    def _look_for(self, entry: Entry, same: Found | None) -> None:
        """Find the copy of a file that is gone or was truncated; note what is lost without one."""
        base = _base(entry.at.path)
        candidates = [
            one
            for one in (*self._rotated, *self._named)
            if one.file not in self._taken
            and one.file != entry.at.file
            and _base(one.path) == base
            and one.changed >= entry.changed - 1
        ]
        if not entry.at.offset:  # the files that changed since are read as new ones
            candidates = []
        elif not entry.rest and all(
            one.compressed and one.changed <= entry.changed for one in candidates
        ):
            if candidates:
                return  # it was read to its end before it was compressed
        candidates.sort(key=lambda one: one.changed)
        for one in candidates:
            if _is_at(one, entry.at, self._budget):
                self._take(one, entry.at.offset, entry.within)
                self._taken[one.file].copied = same is not None
                return
        self._lost(entry, same)

    def _lost(self, entry: Entry, same: Found | None) -> None:
        """Note what is lost of a file that is gone or was truncated, and of which there is no copy."""
        shown, path = ticket_line(entry.at.path, 100), entry.at.path
        if not entry.rest and _unrotated(path) != path:
            return  # nobody writes to a rotated file that was read to its end
        if same is not None and entry.at.offset:
            self._reading.lose(
                f"{shown} was truncated, and what was written before it cannot be found",
                entry.rest,
            )
        elif same is None and entry.rest:
            self._reading.lose(
                f"{shown} is gone before its last {format_size(entry.rest)} were read",
                entry.rest,
            )
        elif same is None and any(one.path == path for one in self._named):
            self._reading.lose(
                f"{shown} was rotated, and what was written before it cannot be found",
                0,
            )

    def _copied(self, found: Found) -> int:
        """Return how much of a new file is the copy of what was read elsewhere."""
        base = _base(found.path)
        if base == found.path:  # a new file may begin as others did
            return 0
        for entry in self._entries:
            if (
                entry.at.offset
                and entry.at.mark
                and entry.at.file != found.file
                and _base(entry.at.path) == base
                and _is_at(found, entry.at, self._budget)
            ):
                return entry.at.offset
        return 0


def _starting(names: Sequence[str], start: str) -> Iterator[str]:
    import bisect

    for name in names[bisect.bisect_left(names, start) :]:
        if not name.startswith(start):
            return
        yield name


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
class _Reader:
    """Reads parts of files and feeds their lines."""

    form: Format | None
    budget: Budget
    feed: Feed
    reading: Reading
    _began: float = field(default_factory=time.time)
    _fragment: bytes = b""

    def family(self, parts: Sequence[_Part]) -> list[Entry]:
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

    def _failed(self, part: _Part, error: Exception) -> Entry | None:
        why = getattr(error, "strerror", None) or str(error)
        shown = ticket_line(part.found.path, 100)
        if part.found.named:
            self.reading.fail(f"{shown}: {why}")
            return _entry(part, part.start, "", part.within, part.rest)
        if part.rest or part.found.compressed:
            self.reading.lose(f"{shown} cannot be read: {why}", part.rest)
        return None

    def _part(self, part: _Part) -> Entry | None:
        """Read one part; return what is known of the file then, None for one that is done with."""
        found = part.found
        with opened(found.path) as file:
            cursor = self._context(file, part)
            if cursor is None:
                self.reading.behind += max(1, part.rest)
                return _entry(part, part.start, "", part.within, part.rest)
            ended = self._lines(file, part, cursor)
            if found.compressed:
                return self._ended_compressed(part, cursor, ended)
            return self._ended(file, part, cursor, ended)

    def _lines(self, file: IO[bytes], part: _Part, cursor: _Cursor) -> bool:
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
        self, part: _Part, cursor: _Cursor, ended: bool
    ) -> Entry | None:
        if not ended:
            self.reading.behind += 1
            before = cursor.context[-min(MARK, cursor.at) :] if cursor.at else b""
            return _entry(part, cursor.at, mark_of(before), cursor.within, 1)
        if cursor.left and part.copied:
            self._fragment = cursor.left
        elif cursor.left:
            self._feed(cursor.context, cursor.left + b"\n", part.found, "plain")
        return None

    def _ended(
        self, file: IO[bytes], part: _Part, cursor: _Cursor, ended: bool
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

    def _context(self, file: IO[bytes], part: _Part) -> _Cursor | None:
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
        _leave_out(f"{shown} is binary, not text", found.wild, self.reading)
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


def _entry(part: _Part, at: int, mark: str, within: bool, rest: int) -> Entry:
    found = part.found
    place = LogPosition(found.path, found.file, at, mark)
    return Entry(place, within, found.changed, rest)
