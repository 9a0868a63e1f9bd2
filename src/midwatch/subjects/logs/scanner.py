"""Count the lines of a log, its errors by shape, and its heartbeats. Pure, but for the clock of its caller.

Most lines have no word that an error has: RE2 finds those that do in whole blocks, and only these are read. Lines that
differ in digits alone are read once, and lines of JSON are reduced to what they say before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from midwatch.subjects.logs.error_shapes import Shape, Shapes
from midwatch.subjects.logs.framing import Entry, Format, unwrap, whole_texts
from midwatch.subjects.logs.json_lines import HEAD, LEVELS, MARK, JsonLines, has_json
from midwatch.subjects.logs.levels import (
    LONGEST,
    LONGEST_JSON,
    Level,
    Said,
    is_further,
    readable,
    said,
    suspect,
)
from midwatch.subjects.logs.line_templates import Templates
from midwatch.subjects.logs.line_times import Moment, Span, Written, pieces
from midwatch.text import clean

_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_KEY = 400  # bytes of a line from which on its digest is remembered
_MOST_CACHED = 20_000  # lines
_JOINED = LONGEST_JSON  # bytes of a text in parts that are read
_CONTEXT = 65_536  # bytes before lines that show what these belong to
_CHUNK = 65_536  # bytes that are reduced at a time
_ERROR = Level.ERROR
_TRACEBACK = "Traceback ("
_TRACE_LINES = 200  # lines of a stack trace before its exception
_DENSE, _NEAR, _NEAR_COSTLY = 200, 300, 2000
"""After so many lines that may be errors, so many bytes apart, each line is looked at: the search for the next one would take longer. Lines of
JSON, and those of containers, take longer by themselves. This is so as long as errors are no farther apart."""
_JUDGED = 100_000  # bytes by which that is judged
_HEAD, _MOST_HEADS, _MOST_LENGTHS = (
    120,
    2000,
    8,
)  # bytes before a message; such beginnings; their lengths
_BEAT_TAIL = 65_536  # bytes at the end of a block in which the last heartbeat is looked for first


@dataclass(slots=True)
class Scanner:
    """What was found in the new lines of one source.

    Attributes:
        shapes: Those of the source. `Shape.found` counts the lines of this observation.
        beats: The expressions (RE2) of heartbeats by name.
        lines: How many lines there were.
        errors: How many of them were records of level error or worse.
        width: Seconds of a moment, to which it is known when lines were written.
        written: The counts by when they were written.
        beaten: The last line of each heartbeat that was found, and its file.
    """

    shapes: Shapes
    beats: Mapping[str, Any] = field(default_factory=dict)
    lines: int = 0
    errors: int = 0
    width: float = 15.0
    written: Written = field(init=False)
    beaten: dict[str, tuple[str, str]] = field(default_factory=dict)
    _cache: dict[bytes, Shape | None] = field(default_factory=dict)
    _heads: dict[bytes, Level] = field(default_factory=dict)
    _lengths: list[int] = field(default_factory=list)
    _before: dict[str, str] = field(default_factory=dict)
    _templates: Templates = field(init=False)
    _json: JsonLines = field(init=False)
    _messages: dict[bytes, Shape] = field(default_factory=dict)
    _of_messages: Templates = field(init=False)
    _widened: int = 0
    _dense: bool = False
    _finds: int = 0
    _since: int = 0
    _near_errors: int = 0
    _near_bytes: int = 0

    def __post_init__(self) -> None:
        self.written = Written(self.width)
        self._templates = Templates(self.shapes)
        self._of_messages = Templates(self.shapes)
        self._json = JsonLines(suspect().search, LONGEST)

    def feed(
        self, data: bytes, file: str, form: Format = "plain", before: int = 0
    ) -> None:
        """Read complete lines.

        Args:
            data: The lines, each with its line feed.
            file: Where they stand.
            form: The format of the file.
            before: The bytes at the beginning of `data` that were read before: they show what a stack trace belongs to.
        """
        self._find_beats(data, before, file)
        spans = [*pieces(data, before, form, self.width, self.shapes.now)][::-1]
        self._finds = self._since = 0
        is_wrapped = form != "plain"
        while spans:
            if self._dense and is_wrapped:
                data, form, spans = _unwrapped(data, form, spans)
                is_wrapped = False  # or not the same for all lines
            start, end, at = spans.pop()
            errors = self.errors
            stop = self._piece(data, start, end, file, form)
            lines = data.count(b"\n", start, stop)
            self.lines += lines
            self._written(file, at, Moment(lines, self.errors - errors))
            if stop < end:
                spans.append((stop, end, at))

    def _piece(
        self, data: bytes, before: int, size: int, file: str, form: Format
    ) -> int:
        """Find the errors from one place of a block to another; return to where that was done."""
        if self._dense and form == "plain":
            self._every_line(data, before, size, file)
            return size
        at = before
        for found in suspect().finditer(data, before, size):
            if (place := found.start()) < at:
                continue
            start = data.rfind(b"\n", 0, place) + 1
            end = data.find(b"\n", place)
            at = (end if end >= 0 else len(data)) + 1
            if start >= before:
                self._line(data, start, at - 1, file, form)
            self._finds += 1
            if self._finds == _DENSE:
                costly = form != "plain" or has_json(data, self._since, at)
                near = _NEAR_COSTLY if costly else _NEAR
                self._dense = at - self._since < near * _DENSE
                self._finds, self._since = 0, at
                if self._dense:
                    return min(at, size)
        return size

    def _written(self, file: str, at: float | None, what: Moment) -> None:
        """Record when lines were written, with the shapes that were counted since the last record."""
        if what.errors:
            for shape in (*self.shapes, self.shapes.others):
                if count := shape.found - shape.counted:
                    what.shapes[shape] = count
                    shape.counted = shape.found
                    shape.add_file(file, self.shapes.now)
        self.written.add(file, at, what)

    def record(
        self,
        text: str,
        hint: Level | None,
        file: str,
        stream: str = "",
        at: float | None = None,
    ) -> None:
        """Read one record of a source that has records.

        Args:
            text: The record.
            hint: The level that the source knows.
            file: Where it stands.
            stream: That of the record before it.
            at: When it was written, in epoch seconds, if the source knows.
        """
        self.lines += 1
        shape = self._record(text, hint, file, stream)
        what = Moment(1, 1, {shape: 1}) if shape is not None else Moment(1)
        if shape is not None:
            shape.counted = shape.found
            shape.add_file(file, self.shapes.now)
        self.written.add("", at, what)

    def _record(
        self, text: str, hint: Level | None, file: str, stream: str
    ) -> Shape | None:
        """Return the shape of a record, None if it is no error."""
        for name, pattern in self.beats.items():
            if pattern.search(text.encode("utf-8", "replace")):
                self.beaten[name] = text, file
        first = text.partition("\n")[0]
        before = self._before.get(stream, "")
        self._before[stream] = first[:LONGEST] or before
        if is_further(first):
            return None
        told = said(first, hint)
        if told.level is None or told.level < Level.ERROR:
            return None
        if told.trace and (is_further(before) and before or _owns_trace(before, hint)):
            return None
        message = _exception(text.split("\n")) if "\n" in text and told.trace else ""
        shape = self.shapes.find(told.level, message or told.message)
        self._count(shape, first, file)
        return shape

    def _find_beats(self, data: bytes, before: int, file: str) -> None:
        for name, pattern in self.beats.items():
            tail = max(before, data.rfind(b"\n", 0, max(0, len(data) - _BEAT_TAIL)) + 1)
            last = None
            for last in pattern.finditer(data, tail):
                pass
            last = last or pattern.search(data, before, tail)
            if last is not None:
                start = data.rfind(b"\n", 0, last.start()) + 1
                line = readable(data, start, data.find(b"\n", last.start()))
                self.beaten[name] = line.decode("utf-8", "replace"), file

    def _count(self, shape: Shape, line: str, file: str) -> None:
        self.errors += 1
        if not shape.found:  # the first is nearest to the cause
            self.shapes.seen(shape, clean(line[:LONGEST]), file)
        shape.found += 1

    # ------------------------------------------------------------------ one line of a block

    def _line(self, data: bytes, start: int, end: int, file: str, form: Format) -> None:
        if form == "plain":
            if data[start] in b" \t":
                return
            text = readable(data, start, end)
        else:
            entry = unwrap(data[start:end], form)
            begin = _begin(data, start, form, entry.stream)
            if begin is None:
                return
            if begin < start:
                start, end = begin, data.find(b"\n", begin)
                entry = unwrap(data[start:end], form)
            text = entry.text
            if entry.goes_on:
                text += b"".join(_rest(data, end, form, entry.stream))
            if is_further(text[:1].decode("latin-1")):
                return
            text = readable(text, 0, len(text))
        key = text.translate(_DIGITS)
        if len(key) > _KEY and self._heads.get(self._head(key), _ERROR) < _ERROR:
            return
        shape = self._cache.get(_short(key), self)
        if shape is None:
            return
        if isinstance(shape, Shape):
            while shape.wider is not None:
                shape = shape.wider
            self.errors += 1
            if shape.found:
                shape.found += 1
                return
            self.errors -= 1
            self._count(shape, text.decode("utf-8", "replace"), file)
            return
        if form == "plain" and end - start < _KEY:
            known = self._templates.match(key + b"\n", 0, len(key) + 1)
            if known is not None:
                known[0].found += 1
                self.errors += 1
                return
        self._unknown(key, text, data, start, end, file, form)

    def _every_line(self, data: bytes, start: int, size: int, file: str) -> None:
        """Read the lines from one place to another, of which most may be errors."""
        errors, is_json = self.errors, has_json(data, start, size)
        if is_json:
            for low, high in _chunks(data, start, size):
                reduced = self._json.reduced(data, low, high)
                self._lines_of(reduced, data, low, high, file)
        else:
            self._lines_of(None, data, start, size, file)
        self._near_errors += self.errors - errors
        self._near_bytes += size - start
        if self._near_bytes > _JUDGED:
            near = _NEAR_COSTLY if is_json else 3 * _NEAR
            self._dense = self._near_errors > self._near_bytes // near
            self._near_errors = self._near_bytes = 0

    def _lines_of(
        self, reduced: bytes | None, data: bytes, low: int, high: int, file: str
    ) -> None:
        """Read each line from one place to another.

        Args:
            reduced: As many lines, which may be reduced to what they say.
            data: The lines as they are.
            low: Where the first one begins.
            high: Where the last one ends.
            file: Where they stand.
        """
        text = data[low:high] if reduced is None else reduced
        keys = text.translate(_DIGITS)
        at, most, passed = 0, len(keys), 0
        found: Shape | Scanner | None
        while at < most:
            is_message = reduced is not None and keys.startswith(MARK, at)
            templates = self._of_messages if is_message else self._templates
            if (known := templates.match(keys, at, most)) is not None:
                shape, end = known
                count = keys.count(b"\n", at, end)
                shape.found += count
                self.errors += count
                at = end
                continue
            end = keys.find(b"\n", at)
            end = most if end < 0 else end
            if is_message:
                found = self._of_message(keys[at:end], text[at:end])
            else:
                long = end - at > _KEY
                key = _short(readable(keys, at, end)) if long else keys[at:end]
                found = self._cache.get(key, self)
            if isinstance(found, Shape) and found.found:
                while found.wider is not None:
                    found = found.wider
                self.errors += 1
                found.found += 1
            elif found is not None and end > at:
                start, stop = low + at, low + end
                if reduced is not None:
                    for _ in range(text.count(b"\n", passed, at)):
                        low = data.find(b"\n", low) + 1
                    passed, start = at, low
                    stop = data.find(b"\n", low, high)
                    stop = high if stop < 0 else stop
                if suspect().search(data, start, stop):
                    self._line(data, start, stop, file, "plain")
            at = end + 1

    def _of_message(self, key: bytes, text: bytes) -> Shape | Scanner:
        """Return the shape of a reduced line; this scanner if the line has to be read."""
        if self._widened != self.shapes.widened:  # others may have other shapes now
            self._messages.clear()
            self._widened = self.shapes.widened
        if (found := self._messages.get(key)) is not None:
            return found
        level = LEVELS.get(text[:HEAD])
        message = text[HEAD:].decode("utf-8", "replace")
        if level is None or message.startswith(_TRACEBACK):
            return self
        shape = self.shapes.look_up(level, message)
        if shape is None or not shape.found:
            return self
        if len(key) <= _KEY:
            if len(self._messages) >= _MOST_CACHED:
                self._messages.clear()
            self._messages[key] = shape
        if self._of_messages.wants(shape):
            self._of_messages.learn(key[:HEAD], key[HEAD:], shape)
        return shape

    def _unknown(
        self,
        key: bytes,
        text: bytes,
        data: bytes,
        start: int,
        end: int,
        file: str,
        form: Format,
    ) -> None:
        """Read a line of which no other one tells what it says."""
        line = text.decode("utf-8", "replace").rstrip("\r")
        told = self._said(key, line)
        error = told.level is not None and told.level >= Level.ERROR
        shape = None
        if error:
            if told.trace and self._belongs(data, start, form):
                return
            message = told.message
            if message.startswith(_TRACEBACK):
                message = _exception(_after(data, end, form)) or message
                told = told._replace(by_digits=True)  # the lines after it tell
            assert told.level is not None
            shape = self.shapes.find(told.level, message)
            self._count(shape, line, file)
            if form == "plain" and self._templates.wants(shape):
                self._learn(key, len(line), shape)
        if not told.by_digits and not told.trace:
            if len(self._cache) >= _MOST_CACHED:
                self._cache.clear()
            if shape is not self.shapes.others:
                self._cache[_short(key)] = shape

    def _said(self, key: bytes, line: str) -> Said:
        """Return what a line says: of those that begin alike up to their message, with their levels, one is read."""
        if head := self._head(key):
            return Said(self._heads[head], line[len(head) :])
        told = said(line)
        length = len(line) - len(told.message)
        plain = told.level is not None and not told.by_digits and not told.trace
        if plain and 8 < length < _HEAD and line.isascii() and told.level is not None:
            if (
                line.endswith(told.message)
                and "{" not in line[: length + 1]  # an object tells its level itself
                and "=" not in line[:length]
            ):
                self._remember_head(key[:length], told.level)
        return told

    def _learn(self, key: bytes, size: int, shape: Shape) -> None:
        """Let lines as this one be counted in one step, if its head tells their level, and alone that they may be errors."""
        head = self._head(key)
        if head and size == len(key) <= _KEY and suspect().search(head):
            self._templates.learn(head, key[len(head) :], shape)

    def _head(self, key: bytes) -> bytes:
        """Return what a line begins with, if that is known to tell its level; else nothing."""
        for length in self._lengths:
            if key[:length] in self._heads:
                return key[:length]
        return b""

    def _remember_head(self, head: bytes, level: Level) -> None:
        if len(self._heads) < _MOST_HEADS and len(self._lengths) < _MOST_LENGTHS:
            self._heads[head] = level
            if len(head) not in self._lengths:
                self._lengths.append(len(head))

    def _belongs(self, data: bytes, start: int, form: Format) -> bool:
        """Return whether what may be a part of a stack trace has a record before it that it belongs to."""
        for number, line in enumerate(_lines_before(data, start, form)):
            if not line.strip():
                if number > 2:
                    return False
                continue
            return is_further(line) or _owns_trace(line, None)
        return False


def _short(key: bytes) -> bytes:
    """Return what stands for a line, without its digits, where lines are remembered: all that is read of it counts."""
    if len(key) <= _KEY:
        return key
    return hashlib.blake2b(key, digest_size=16).digest()


def _chunks(data: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield parts of some size, in complete lines."""
    while start < end:
        stop = data.rfind(b"\n", start, min(end, start + _CHUNK)) + 1
        stop = stop or data.find(b"\n", start, end) + 1 or end
        yield start, stop
        start = stop


def _unwrapped(
    data: bytes, form: Format, spans: list[Span]
) -> tuple[bytes, Format, list[Span]]:
    """Return a block, and parts of it, last first, without what its container put around each line; as it is where that is not the same for all."""
    before = spans[-1][0]
    begin = data.find(b"\n", max(0, before - _CONTEXT), before) + 1
    parts, found = [whole_texts(data[begin:before], form)], []
    at = len(parts[0] or b"")
    for start, end, when in reversed(spans):
        parts.append(part := whole_texts(data[start:end], form))
        found.append((at, at + len(part or b""), when))
        at += len(part or b"")
    if None in parts:
        return data, form, spans
    return b"".join(filter(None, parts)), "plain", found[::-1]


def _owns_trace(line: str, hint: Level | None) -> bool:
    """Return whether a stack trace after this line is its own: the line warns, or is of a trace itself."""
    if not line:
        return False
    told = said(line, hint)
    return told.trace or (told.level is not None and told.level >= Level.WARNING)


def _exception(lines: Iterable[str]) -> str:
    """Return the line that ends a traceback of Python: the first one that is not indented."""
    for number, line in enumerate(lines):
        if number > _TRACE_LINES:
            break
        if line.startswith(_TRACEBACK) or is_further(line):
            continue
        found: Said = said(line)
        return found.message if found.trace else ""
    return ""


def _lines_before(data: bytes, start: int, form: Format) -> Iterable[str]:
    for _ in range(5):
        if start <= 0:
            return
        begin = data.rfind(b"\n", 0, start - 1) + 1
        text = unwrap(data[begin : start - 1], form).text
        yield readable(text, 0, len(text)).decode("utf-8", "replace")
        start = begin


def _after(data: bytes, end: int, form: Format) -> Iterable[str]:
    while 0 <= end < len(data) - 1:
        stop = data.find(b"\n", end + 1)
        if stop < 0:
            return
        yield unwrap(data[end + 1 : stop], form).text.decode("utf-8", "replace")
        end = stop


def _begin(data: bytes, start: int, form: Format, stream: str) -> int | None:
    """Return where the text begins that a line is a part of; None if a part before may be an error, and so is where it is read."""
    at = start
    while (before := _part_before(data, at, form, stream)) is not None:
        end = data.find(b"\n", before)
        if start - before > _JOINED or suspect().search(data, before, end):
            return None
        at = before
    return at


def _part_before(data: bytes, start: int, form: Format, stream: str) -> int | None:
    """Return where the line of the stream before this one begins, if it goes on in it."""
    for _ in range(20):
        if start <= 0:
            return None
        begin = data.rfind(b"\n", 0, start - 1) + 1
        entry: Entry = unwrap(data[begin : start - 1], form)
        if entry.stream == stream:
            return begin if entry.goes_on else None
        start = begin
    return None


def _rest(data: bytes, end: int, form: Format, stream: str) -> Iterable[bytes]:
    """Yield the further parts of a text."""
    taken = 0
    while 0 <= end < len(data) - 1 and taken < _JOINED:
        stop = data.find(b"\n", end + 1)
        if stop < 0:
            return
        entry = unwrap(data[end + 1 : stop], form)
        end = stop
        if entry.stream != stream:
            continue
        yield entry.text
        taken += len(entry.text)
        if not entry.goes_on:
            return
