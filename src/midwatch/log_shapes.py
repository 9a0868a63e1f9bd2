"""Collapse a log for a prompt: lines of one shape become one, with their count, times and distinct values.

All of it is pure. It works on any log with one record a line: a further line of a record is indented, or has a
title such as DETAIL before anything else. The text of what stays is not changed, so that it can be quoted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from midwatch.text import cut_lines, one_line

BEFORE = timedelta(minutes=15)
"""How long before the onset the lines of a log count."""
_FEW = 2
"""Records of one shape that are shown as they are: a note would be as long."""
_LONGEST = 500  # characters of a line that is shown
_SHAPED = 600  # characters of a line that determine its shape
_DISTINCT = 200  # values that are distinguished in one place of a shape

_STAMP = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)[T ](?P<time>\d\d:\d\d:\d\d)(?:[.,]\d+)?"
    r" ?(?P<zone>Z\b|UTC\b|GMT\b|[+-]\d\d:?\d\d\b)?"
)
_SYSLOG = re.compile(
    r"(?P<month>Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) +(?P<day>\d{1,2}) (?P<time>\d\d:\d\d:\d\d)"
)
_MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
_STAMP_WITHIN = 60  # characters of a line in which its time begins
# The first title on a line is the server's own; the text behind it may quote a client.
_TITLE = re.compile(
    r"\b(?P<more>DETAIL|HINT|QUERY|CONTEXT|LOCATION|BACKTRACE|STATEMENT)?"
    r"(?:LOG|INFO|NOTICE|WARNING|ERROR|FATAL|PANIC|DEBUG\d?)?:  "
)
_MORE = re.compile(r"\t\[× (\d{1,9}) more\]")
# What differs between lines of one shape: a literal, and every word with a digit, or a list of them.
_WORD = r"[\w.:/@+%-]*\d[\w.:/@+%-]*"
_VALUE = re.compile(rf"(?<![\w'])'(?:[^']|'')*'|{_WORD}(?:, {_WORD})*")


@dataclass(slots=True)
class _Record:
    lines: list[str]
    at: datetime | None
    stamp: str
    count: int = 1


@dataclass(slots=True)
class _Shape:
    """Records of one shape: all of them in order, and the distinct values in each place."""

    records: list[_Record] = field(default_factory=list)
    count: int = 0
    values: list[Counter[str]] = field(default_factory=list)

    def add(self, record: _Record, values: Sequence[str]) -> None:
        self.records.append(record)
        self.count += record.count
        self.values += [Counter() for _ in values[len(self.values) :]]
        for counter, value in zip(self.values, values, strict=False):
            if value in counter or len(counter) < _DISTINCT:
                counter[value] += 1


def collapse(text: str, onset: datetime | None = None) -> str:
    """Return the records of a log in the order of their first times, those of one shape as one.

    Args:
        text: The lines, oldest first; redacted, as what is cut here has no shape any more.
        onset: When what is examined began. Lines of more than `BEFORE` before it are only counted, if
            their times are known and others are left.
    """
    records = list(_records(text.split("\n"), onset))
    kept = _window(records, onset)
    shapes: dict[str, _Shape] = {}
    for record in kept:
        shape, values = _shape(record)
        shapes.setdefault(shape, _Shape()).add(record, values)
    noted = {id(s.records[0]): s for s in shapes.values() if s.count > _FEW}
    hidden = {id(one) for shape in noted.values() for one in shape.records[1:]}
    lines = [*_left_out(records[: len(records) - len(kept)])]
    for record in kept:
        if id(record) not in hidden:
            lines += [cut_lines(line, _LONGEST) for line in record.lines]
            if id(record) in noted:
                lines.append(_note(noted[id(record)]))
    return "\n".join(lines)


def is_note(line: str) -> bool:
    """Return whether a line was written here."""
    return line.startswith(("\t[×", "[… "))


def shape_of(message: str) -> str:
    """Return the shape of one message: without its numbers, literals and names with a digit."""
    return _VALUE.sub("#", message[:_SHAPED].partition("\n")[0])


# ------------------------------------------------------------------ a large log

_NUMBERS = re.compile(rb"[0-9]+")
_THIN = 30  # records of one shape that stay at each end of a large log


def thin(data: bytes) -> bytes:
    """Return the lines of a large log without most of those that are frequent, for `collapse` to count them.

    It is fast, and rough: lines that are equal but for their numbers, at their beginnings, have one shape. Lines
    that begin with a tab stay with the one before.
    """
    lines = data.split(b"\n")
    shapes: list[bytes] = []
    shape = b""
    for line in lines:
        if line[:1] != b"\t":
            shape = _NUMBERS.sub(b"#", line[:200])
        shapes.append(shape)
    left = Counter(shapes)
    seen: Counter[bytes] = Counter()
    kept: list[bytes] = []
    dropped: dict[bytes, int] = {}
    for line, shape in zip(lines, shapes, strict=True):
        seen[shape] += 1
        left[shape] -= 1
        if seen[shape] > _THIN and left[shape] >= _THIN:
            dropped[shape] = dropped.get(shape, 0) + 1
            continue
        kept.append(line)
        if shape in dropped and line[:1] != b"\t":
            kept.append(b"\t[\xc3\x97 %d more]" % dropped.pop(shape))
    return b"\n".join(kept)


# ------------------------------------------------------------------ records


def _records(lines: Iterable[str], onset: datetime | None) -> Iterator[_Record]:
    record: _Record | None = None
    for line in lines:
        if not line.strip():
            continue
        if record is not None and (more := _MORE.fullmatch(line)):
            if len(record.lines) == 1:  # not that of its DETAIL
                record.count += int(more[1])
            continue
        title = _TITLE.search(line, 0, _SHAPED)
        further = line[0].isspace() or (title is not None and title["more"])
        if record is not None and further:
            record.lines.append(line)
            continue
        if record is not None:
            yield record
        at, stamp = time_of(line, onset)
        record = _Record([line], at, stamp)
    if record is not None:
        yield record


def time_of(line: str, onset: datetime | None) -> tuple[datetime | None, str]:
    """Return the time of a line, None where its zone is not known, and how the line writes it.

    A syslog line has no year: that which is nearest to `onset` counts.
    """
    found = _STAMP.search(line, 0, _STAMP_WITHIN + 40)
    if found and found.start() < _STAMP_WITHIN:
        zone = (found["zone"] or "").replace("UTC", "Z").replace("GMT", "Z")
        try:
            at = datetime.fromisoformat(f"{found['day']}T{found['time']}{zone}")
        except ValueError:
            return None, found[0]
        return (at if at.tzinfo else None), found[0]
    found = _SYSLOG.match(line)
    if not found:
        return None, ""
    if onset is None:
        return None, found[0]
    try:  # the time of this machine, and of the year that brings it nearest
        plain = datetime.fromisoformat(
            f"{onset.year}-{_MONTHS.index(found['month']) + 1:02}-{int(found['day']):02}T{found['time']}"
        )
        if plain.replace(tzinfo=UTC) - onset > timedelta(days=180):
            plain = plain.replace(year=plain.year - 1)
    except ValueError:  # a 29th of February
        return None, found[0]
    return plain.astimezone(UTC), found[0]


def _window(records: list[_Record], onset: datetime | None) -> list[_Record]:
    """Return the records from `BEFORE` the onset on; all, where their times or others are missing."""
    if onset is None:
        return records
    start = onset - BEFORE
    for place, record in enumerate(records):
        if record.at is not None and record.at >= start:
            return records[place:]
    return records


def _left_out(records: Sequence[_Record]) -> Iterator[str]:
    if records:
        first = next((one.stamp for one in records if one.stamp), "an unknown time")
        yield f"[… {len(records):,} records from {first} on, long before the onset, left out …]"


# ------------------------------------------------------------------ shapes


def _shape(record: _Record) -> tuple[str, list[str]]:
    """Return the shape of a record, and the values in it."""
    text = "\n".join(line[:_SHAPED] for line in record.lines[:6])
    if record.stamp:
        text = text.replace(record.stamp, "\0")
    text = _STAMP.sub("\0", text)
    return _VALUE.sub("#", text), _VALUE.findall(text)


def _note(shape: _Shape) -> str:
    """Return the line under the first record of a shape: count, last time, and what differs."""
    last = shape.records[-1].stamp
    parts = [f"×{shape.count}" + (f" until {last}" if last else "")]
    shown: set[tuple[str, ...]] = set()
    for counter in shape.values:
        key = tuple(sorted(counter))
        if len(counter) > 1 and key not in shown and len(shown) < 5:
            shown.add(key)
            parts.append(_distinct(counter))
    return f"\t[{'; '.join(parts)}]"


def _distinct(counter: Counter[str]) -> str:
    if len(counter) <= 4:
        return ", ".join(f"{one_line(v, 60)} ×{n}" for v, n in counter.most_common())
    some = ", ".join(one_line(value, 40) for value in [*counter][:3])
    count = f"{len(counter)}" if len(counter) < _DISTINCT else f"at least {_DISTINCT}"
    return f"{count} values such as {some}"
