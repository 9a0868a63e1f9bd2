"""When lines were written, by the times that they have themselves. Pure.

ISO 8601 and its like, also in the prefix of a container's log and in fields of JSON and logfmt, epoch numbers, syslog
(RFC 3164), klog, and the Common Log Format of web servers. A time without a zone is that of this machine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from midwatch.subjects.logs.error_shapes import Shape
from midwatch.subjects.logs.framing import Format, unwrap
from midwatch.subjects.logs.levels import LONGEST_JSON, readable

_HEAD = 200  # characters of a line in which its time begins
_TRIED = 50  # lines that are tried for one with a time
_SLACK = 60.0  # seconds by which a clock may differ
_MOST_PIECES = 2000  # of one block
_MOST_ODD = (
    16  # times of a block that are not in order, after which it is not divided any more
)
_MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_CLOCK = r"(?P<clock>\d\d:\d\d:\d\d)(?:[.,](?P<part>\d+))?"
_ZONE = r"(?: ?(?P<zone>Z\b|UTC\b|GMT\b|[+-]\d\d:?\d\d\b))?"
_ISO = re.compile(
    rf"(?P<year>\d{{4}})[-/](?P<number>\d\d)[-/](?P<day>\d\d)[T ]{_CLOCK}{_ZONE}"
)
_OTHERS = tuple(
    re.compile(one)
    for one in (
        rf"(?:<\d{{1,3}}>)?{_MONTH} +(?P<day>\d{{1,2}}) {_CLOCK}",
        rf"[IWEF](?P<number>\d\d)(?P<day>\d\d) {_CLOCK}",
        rf"[^\[]*\[(?P<day>\d\d)/{_MONTH}/(?P<year>\d{{4}}):{_CLOCK}{_ZONE}",
        rf"\[\w{{3}} {_MONTH} (?P<day>\d\d) {_CLOCK} (?P<year>\d{{4}})\]",
    )
)
_FIELD = re.compile(
    r'"@?(?:time|ts|timestamp|t|@t|datetime|date|asctime|eventTime|timeMillis|time_unix_nano|timeUnixNano)" ?: ?"?'
)
_EPOCH = re.compile(r'(\d{10})(?:\.\d+|\d{3}|\d{6}|\d{9})?(?=[\s",}\]]|$)')
_LOGFMT = re.compile(r"(?:^|\s)(?:ts|time|timestamp)=\"?")

Span = tuple[int, int, float | None]
"""Where a part of a block begins and ends, and when it was written; None where that is not known."""


def line_time(text: str, near: float) -> float | None:
    """Return when a line was written, in epoch seconds; None if it has no time.

    Args:
        text: The line.
        near: A time that is near, in epoch seconds, for lines that name no year.
    """
    for pattern in (_FIELD,) if text[:1] == "{" else (_LOGFMT,):
        if found := pattern.search(text, 0, LONGEST_JSON):
            if epoch := _EPOCH.match(text, found.end()):
                whole = epoch[0]
                return (
                    float(whole)
                    if "." in whole
                    else int(whole) / 10 ** (len(whole) - 10)
                )
            if iso := _ISO.match(text, found.end()):
                return _seconds(iso, near)
    for other in _OTHERS:
        if found := other.match(text, 0, _HEAD):
            return _seconds(found, near)
    found = _ISO.search(text, 0, _HEAD)
    return _seconds(found, near) if found else None


def _seconds(found: re.Match[str], near: float) -> float | None:
    parts = found.groupdict()
    number = parts.get("number") or _MONTHS.index(parts["month"]) + 1
    year, day = parts.get("year"), int(parts["day"])
    zone = (parts.get("zone") or "").replace("UTC", "Z").replace("GMT", "Z")
    second = float(f"0.{parts['part'] or 0}")
    about = datetime.fromtimestamp(near, UTC)
    try:
        at = datetime.fromisoformat(
            f"{year or about.year}-{int(number):02}-{day:02}T{parts['clock']}{zone}"
        )
        if not year and at.replace(tzinfo=UTC) - about > timedelta(days=180):
            at = at.replace(year=at.year - 1)
        return at.timestamp() + second
    except (ValueError, OverflowError):  # no such day, or a 29th of February
        return None


# ------------------------------------------------------------------ pieces of a block


def pieces(
    data: bytes, start: int, form: Format, width: float, near: float
) -> Iterator[Span]:
    """Yield parts of a block, in complete lines, each of which was written within some seconds.

    Args:
        data: Lines, each with its line feed.
        start: Where the first line begins.
        form: What is around each line.
        width: How many seconds those of a part may differ.
        near: A time that is near, in epoch seconds.

    Yields:
        Where the part begins and ends, and when it was written, in epoch seconds; None without a time.
    """
    size = len(data)
    first = _time_from(data, start, size, form, near)
    if first is None:
        yield start, size, None
        return
    last = _time_before(data, start, size, form, near)
    last = first if last is None else last
    width, odd = max(width, abs(last - first) / _MOST_PIECES), 0
    waiting = [(start, size, first, last)]
    while waiting:
        low, high, early, late = waiting.pop()
        splits = abs(late - early) > width and odd < _MOST_ODD
        middle = _middle(data, low, high) if splits else low
        if not low < middle < high:
            yield low, high, early
            continue
        at = _time_from(data, middle, high, form, near)
        if at is None:
            at = late
        low_at, high_at = min(early, late), max(early, late)
        odd += not low_at - width <= at <= high_at + width
        waiting += [(middle, high, at, late), (low, middle, early, at)]


def _middle(data: bytes, low: int, high: int) -> int:
    """Return where a line begins in the middle of a part; `low` where there is one line."""
    half = (low + high) // 2
    after = data.find(b"\n", half, high - 1) + 1
    return after or data.rfind(b"\n", low, half) + 1 or low


def _time_from(
    data: bytes, start: int, end: int, form: Format, near: float
) -> float | None:
    """Return the time of the first line with one."""
    for _ in range(_TRIED):
        if start >= end:
            break
        stop = data.find(b"\n", start, end)
        stop = end if stop < 0 else stop
        if (at := _time_of(data[start:stop], form, near)) is not None:
            return at
        start = stop + 1
    return None


def _time_before(
    data: bytes, start: int, end: int, form: Format, near: float
) -> float | None:
    """Return the time of the last line with one."""
    for _ in range(_TRIED):
        if end <= start:
            break
        begin = max(start, data.rfind(b"\n", start, end - 1) + 1)
        if (at := _time_of(data[begin : end - 1], form, near)) is not None:
            return at
        end = begin
    return None


def _time_of(line: bytes, form: Format, near: float) -> float | None:
    if form == "plain":
        return line_time(readable(line, 0, len(line)).decode("latin-1"), near)
    entry = unwrap(line, form)
    if entry.time:
        return line_time(entry.time, near)
    text = readable(entry.text, 0, len(entry.text))
    return line_time(text.decode("latin-1"), near)


# ------------------------------------------------------------------ counts by time


@dataclass(slots=True)
class Moment:
    """What was written within some seconds: lines, those of level error or worse, and these by shape."""

    lines: float = 0.0
    errors: float = 0.0
    shapes: dict[Shape, float] = field(default_factory=dict)

    def add(self, other: Moment) -> None:
        self.lines += other.lines
        self.errors += other.errors
        for shape, count in other.shapes.items():
            while shape.wider is not None:
                shape = shape.wider
            self.shapes[shape] = self.shapes.get(shape, 0.0) + count


@dataclass(slots=True)
class Written:
    """What one observation read, by when it was written.

    Attributes:
        width: Seconds of a moment. Number n begins n times as many seconds after 1970.
        untimed: Of lines without a time.
    """

    width: float
    untimed: Moment = field(default_factory=Moment)
    _files: dict[str, dict[int, Moment]] = field(default_factory=dict)
    _last: dict[str, float] = field(default_factory=dict)

    def add(self, file: str, at: float | None, what: Moment) -> None:
        """Count lines of a file; `at` is the time that they have, in epoch seconds."""
        if at is None:
            self.untimed.add(what)
            return
        moments = self._files.setdefault(file, {})
        moments.setdefault(int(at // self.width), Moment()).add(what)
        self._last[file] = at

    def moments(self, before: float, now: float) -> dict[int, Moment]:
        """Return what was written when, by number of the moment.

        Clocks and zones of other machines, and lines that come late, are no input: where the last line of a file is not of
        the time since all was last read, all of them are moved so that it is written now.

        Args:
            before: When all was last read, in epoch seconds.
            now: When this was read.
        """
        found: dict[int, Moment] = {}
        newest = int(now // self.width)
        for file, moments in self._files.items():
            last = self._last[file]
            known = before - _SLACK <= last <= now + _SLACK
            moved = 0 if known else newest - int(last // self.width)
            for number, moment in moments.items():
                found.setdefault(min(newest, number + moved), Moment()).add(moment)
        return found


def shares(
    start: float, end: float, width: float, origin: float = 0.0
) -> dict[int, float]:
    """Return which share of a time lies in each of the intervals of `width` seconds since `origin`, by their number."""
    first, last = (math.floor((at - origin) / width) for at in (start, end))
    if end <= start or first == last:
        return {last: 1.0}
    edges = [start, *(origin + n * width for n in range(first + 1, last + 1)), end]
    parts = (after - at for at, after in zip(edges, edges[1:]))
    return {first + n: part / (end - start) for n, part in enumerate(parts) if part > 0}
