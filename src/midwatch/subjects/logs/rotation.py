"""Files as a source: which there are, where each was read to, and what was rotated since (blocking).

A file is known by its inode number and the bytes before a position. So one that was renamed goes on where it was, and
the copy that `copytruncate` leaves, also compressed, is recognised by its content. What was written and cannot
be found any more is reported as lost.
"""

from __future__ import annotations

import bisect
import errno
import itertools
import os
import re
import stat
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

from midwatch.log_shapes import time_of
from midwatch.subjects.log_position import (
    COMPRESSED,
    LogPosition,
    mark_of,
    rotated_name,
)
from midwatch.subjects.logs.file_reader import (
    UNREADABLE,
    Entry,
    Feed,
    FileReader,
    Found,
    NotReached,
    Part,
    done,
    is_at,
    is_longer,
    is_surely_at,
    leave_out,
    opened,
    why,
)
from midwatch.subjects.logs.framing import Format
from midwatch.subjects.logs.source_reading import Budget, Reading
from midwatch.subjects.logs.wildcards import has_wildcard, matching
from midwatch.text import ticket_line
from midwatch.units import format_size

_MOST_FILES = 300
_MOST_LISTED = 20_000  # paths that patterns may match
_LATE = 2.0
"""Seconds by which the time of a file may be before the clock: it is that of the kernel's last tick, on some file systems that of the last even second."""
_TRIES = 5  # to list files, while these are renamed
_PROBE = 8_000  # bytes in which a time is looked for


def read_files(
    patterns: Sequence[str],
    form: Format | None,
    state: Any,
    last: float | None,
    since: float,
    budget: Budget,
    feed: Feed,
    most: int = _MOST_FILES,
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
        most: How many files are read.
    """
    began = time.time()
    entries = [e for raw in _listed(state) if (e := Entry.of(raw)) is not None]
    before = [one.at.path for one in entries]
    for _ in range(_TRIES):
        reading = Reading(began)
        named = named_files(patterns, reading, most)
        paths = [*(one.path for one in named), *before]
        rotated = siblings(paths, {one.file for one in named})
        if not any(map(_has_moved, named)):
            break
    closed = {one.file: one for one in named if not one.readable}
    kept = [_unread(one, entries) for one in closed.values()]
    files = {one.file for one in named}
    unseen = [
        one
        for one in entries
        if one.at.file not in files and reading.is_unseen(one.at.path)
    ]
    kept += unseen
    entries = [e for e in entries if e.at.file not in closed and e not in unseen]
    named = [one for one in named if one.readable]
    if last is None:
        parts = [_first(one, since, began) for one in named]
        kept += [done(one) for one in rotated if one.changed > began - _LATE]
    else:
        plan = _Plan(named, rotated, entries, last, reading, budget)
        parts = plan.parts()
        kept += plan.kept()
    reader = FileReader(form, budget, feed, reading)
    for family in _families(parts):
        kept += reader.family(family)
    reading.place = [one.to_state() for one in kept]
    return reading


def _has_moved(found: Found) -> bool:
    """Return whether a path leads to another file than when it was listed."""
    try:
        return os.stat(found.path).st_ino != found.file
    except OSError:
        return True


def _unread(found: Found, entries: Sequence[Entry]) -> Entry:
    """Return what is kept of a file that may not be read now: where it goes on once it may."""
    known = next((one for one in entries if one.at.file == found.file), None)
    if known is not None:
        return known
    place = LogPosition(found.path, found.file, found.size)
    return Entry(place, found.size > 0, found.changed)


def _listed(state: Any) -> list[Any]:
    return state if isinstance(state, list) else []


def _families(parts: Iterable[Part]) -> list[list[Part]]:
    """Return the parts of each file with its rotated ones, oldest first; small families first."""
    groups: dict[str, list[Part]] = {}
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


def named_files(
    patterns: Sequence[str], reading: Reading, most: int = _MOST_FILES
) -> list[Found]:
    """Return the regular files that the patterns match, each once."""
    found: dict[int, Found] = {}
    for pattern in patterns:
        wild = has_wildcard(pattern)
        paths: Iterable[str] = [pattern]
        if wild:
            matched = matching(pattern, partial(_not_listed, reading))
            paths = itertools.islice(matched, _MOST_LISTED + 1)
        before, some = len(reading.unseen), 0
        for path in paths:
            some += 1
            if some > _MOST_LISTED:
                reading.fail(f"{pattern} matches more than {_MOST_LISTED:,} paths")
                break
            if wild and path.endswith(COMPRESSED):
                continue
            one = _look(path, wild, reading)
            if one is not None:
                found.setdefault(one.file, one)
        if not some and len(reading.unseen) == before:
            reading.fail(f"no file matches {pattern}")
    if len(found) > most:
        reading.fail(
            f"the patterns match {len(found):,} files, of which {most} are read"
        )
    ranked = sorted(found.values(), key=lambda one: one.changed, reverse=True)
    return ranked[:most]


def _not_listed(reading: Reading, path: str, error: OSError) -> None:
    """Note a folder under a wildcard of which is not known which files it has."""
    if path not in reading.unseen:
        reading.unseen.add(path)
        hint = " (hint: let Midwatch list it, or give narrower patterns)"
        denied = isinstance(error, PermissionError)
        reading.fail(
            f"{ticket_line(path, 150)} cannot be listed: {error.strerror}{hint if denied else ''}"
        )


def _look(path: str, wild: bool, reading: Reading) -> Found | None:
    """Return a file; None with a note for one that cannot be read, and for what is none."""
    shown = ticket_line(path, 150)
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            if not (wild and stat.S_ISDIR(info.st_mode)):
                leave_out(f"{shown} is {_kind(info.st_mode)}", wild, reading)
            return None
    except OSError as error:
        if not (wild and isinstance(error, FileNotFoundError)):
            reading.fail(f"{shown}: {error.strerror}")
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            reading.unseen.add(path)
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


def _first(found: Found, since: float, now: float) -> Part:
    """Return where the first reading of a file begins: at its end, or at a time before now."""
    start = found.size
    if since > 0 and found.changed >= now - since:
        start = place_of(found.path, found.size, now - since)
    return Part(found, start, within=start > 0)


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
    file.seek(start)
    for line in file.read(_PROBE).split(b"\n")[1 if start else 0 :]:
        at = line_time(line[:300].decode("utf-8", "replace"), near)
        if at is not None:
            return at
    return None


def line_time(text: str, near: float) -> float | None:
    """Return when a line was written, in epoch seconds; a time without a zone is that of this machine.

    Args:
        text: The line.
        near: A time that is near, for lines that name no year.
    """
    found = _STAMP.search(text, 0, 300)
    if found is None:
        at, _ = time_of(text, datetime.fromtimestamp(near, UTC))
        return at.timestamp() if at else None
    at, _ = time_of(text[found.start() :], None)
    try:
        return (at or datetime.fromisoformat(found[0])).timestamp()
    except ValueError:
        return None


_STAMP = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d")


class _Plan:
    """Finds for each file where to go on, and which rotated ones hold the rest of what was read before."""

    def __init__(
        self,
        named: Sequence[Found],
        rotated: Sequence[Found],
        entries: Sequence[Entry],
        last: float,
        reading: Reading,
        budget: Budget,
    ) -> None:
        self._named, self._rotated, self._entries = named, rotated, entries
        self._last, self._reading, self._budget = last, reading, budget
        self._taken: dict[int, Part] = {}
        self._done: list[Entry] = []
        self._gone: list[Entry] = []

    def parts(self) -> list[Part]:
        everything = {one.file: one for one in (*self._rotated, *self._named)}
        open_: list[Entry] = []
        for entry in self._entries:
            found = everything.get(entry.at.file)
            if found is None:
                open_.append(entry)
            elif entry.is_done_with(found):
                self._done.append(entry)
            else:
                self._go_on(found, entry, open_)
        for entry in open_:
            self._look_for(entry, everything.get(entry.at.file))
        for found in self._named:
            if found.file not in self._taken:
                self._take_new(found)
        known = {*self._taken, *(one.at.file for one in self._done)}
        for found in self._rotated:  # rotated since the last reading, and never seen
            if found.file not in known and found.changed > self._last - _LATE:
                self._take_new(found)
        return list(self._taken.values())

    def kept(self) -> list[Entry]:
        """Return what stays known of files that are not read now: those that were compressed meanwhile, or were read and would be taken for new ones."""
        late = self._last - _LATE
        return self._gone + [one for one in self._done if one.changed > late]

    def _go_on(self, found: Found, entry: Entry, others: list[Entry]) -> None:
        """Go on with a file where it was read to; add to `others` what is not known to be in it any more."""
        try:
            same = is_surely_at(found, entry.at, self._budget)
        except FileNotFoundError:  # compressed since it was listed, say
            self._gone.append(entry)
            self._reading.behind += max(1, entry.rest)
            return
        except UNREADABLE:
            same = False
        if same and not self._has_begun_again(found, entry):
            self._take(found, entry)
        else:
            others.append(entry)

    def _has_begun_again(self, found: Found, entry: Entry) -> bool:
        """Return whether a file was truncated, or another has its inode, and the same text before the position again."""
        known = {one.at.file for one in self._entries}
        return any(
            one.changed > self._last - _LATE
            and one.file not in known
            and _base(one.path) == _base(found.path)
            and is_longer(one, found.size, self._budget)
            and is_at(one, entry.at, self._budget)
            for one in (self._rotated if entry.at.offset else ())
        )

    def _take(self, found: Found, entry: Entry) -> None:
        self._taken[found.file] = Part(
            found, entry.at.offset, entry.within, entry.at.mark
        )

    def _take_new(self, found: Found) -> None:
        """Take a file that is not known, but for what was read elsewhere; none of which that is not known in time."""
        try:
            copied = self._copied(found)
        except (NotReached, FileNotFoundError) as error:
            shown = ticket_line(found.path, 100)
            self._reading.lose(f"{shown} was not read: {why(error)}", 0)
            return
        if copied is not None:
            self._take(found, copied)
        else:
            self._taken[found.file] = Part(found, 0, mark=mark_of(b""))

    def _look_for(self, entry: Entry, same: Found | None) -> None:
        """Find the copy of a file that is gone or was truncated; note what is lost without one."""
        base = _base(entry.at.path)
        read = {*self._taken, *(one.at.file for one in self._done)}
        candidates = [
            one
            for one in (*self._rotated, *self._named)
            if one.file not in read
            and one.file != entry.at.file
            and _base(one.path) == base
            and one.changed >= entry.changed - 1
        ]
        if not entry.at.offset:  # that, compressed; others are read as new ones
            candidates = [
                one
                for one in candidates
                if one.compressed and one.changed == entry.changed
            ]
        elif candidates and not entry.rest and entry.changed < self._last - _LATE:
            if all(
                one.compressed and one.changed <= entry.changed for one in candidates
            ):
                return  # it was read to its end before it was compressed
        candidates.sort(key=lambda one: one.changed)
        unreadable = ""
        for one in candidates:
            try:
                found = is_surely_at(one, entry.at, self._budget)
            except UNREADABLE as error:
                path = ticket_line(one.path, 100)
                unreadable = f"{path} cannot be read: {why(error)}"
                continue
            if found:
                self._take(one, entry)
                self._taken[one.file].copied = same is not None
                return
        if unreadable:  # it may be the one
            self._reading.lose(unreadable, entry.rest)
        else:
            self._lost(entry, same)

    def _lost(self, entry: Entry, same: Found | None) -> None:
        """Note what is lost of a file that is gone or was truncated, and of which there is no copy."""
        shown, path = ticket_line(entry.at.path, 100), entry.at.path
        if not entry.rest and _unrotated(path) != path:
            return  # no one writes to a rotated file that was read to its end
        if not entry.rest:  # no line is known that is lost
            self._reading.vanished.add(path)
        elif same is None or entry.at.offset:
            what = "is gone" if same is None else "was truncated"
            self._reading.lose(
                f"{shown} {what} before its last {format_size(entry.rest)} were read",
                entry.rest,
            )

    def _copied(self, found: Found) -> Entry | None:
        """Return what a new file is a copy of, and was read elsewhere. Raises NotReached or FileNotFoundError."""
        base = _base(found.path)
        if base == found.path:  # a new file may begin as others did
            return None
        for entry in self._entries:
            if (
                entry.at.offset
                and entry.at.mark
                and entry.at.file != found.file
                and _base(entry.at.path) == base
            ):
                try:
                    if is_surely_at(found, entry.at, self._budget):
                        return replace(entry, within=False)
                except (NotReached, FileNotFoundError):
                    raise
                except UNREADABLE:  # the reader reports it
                    pass
        return None


def siblings(paths: Iterable[str], named: Container[int]) -> list[Found]:
    """Return what logrotate made of these files, but for those that are `named` or are being compressed."""
    folders: dict[str, dict[str, None]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        folders.setdefault(folder, {})[name] = None
    found: dict[int, Found] = {}
    for folder, names in folders.items():
        for _ in range(_TRIES):  # until nothing is renamed meanwhile
            listed = _inodes(folder)
            rotated = {name: listed[name] for name in _rotated_of(names, [*listed])}
            those = [*_looked_at(folder, rotated, listed)]
            if rotated.items() <= (after := _inodes(folder)).items() and len(
                rotated
            ) == len([*_rotated_of(names, [*after])]):
                break
        for one in those:
            if one.file not in named:
                found[one.file] = replace(one, named=False)
    return list(found.values())


def _inodes(folder: str) -> dict[str, int]:
    """Return the inode numbers of what is in a folder, by name, in their order."""
    try:
        with os.scandir(folder) as entries:
            return dict(sorted((one.name, one.inode()) for one in entries))
    except OSError:
        return {}


def _looked_at(
    folder: str, rotated: Iterable[str], listed: Container[str]
) -> Iterator[Found]:
    for name in rotated:
        if name.endswith(COMPRESSED) and Path(name).stem in listed:
            continue
        one = _look(os.path.join(folder, name), True, Reading(0.0))
        if one is not None:
            yield one


def _rotated_of(names: Iterable[str], listed: Sequence[str]) -> Iterator[str]:
    for name in names:
        pattern = rotated_name(Path(name))
        for other in _starting(listed, Path(name).stem):
            if other != name and pattern.fullmatch(other):
                yield other


def _starting(names: Sequence[str], start: str) -> Iterator[str]:
    for name in names[bisect.bisect_left(names, start) :]:
        if not name.startswith(start):
            return
        yield name
