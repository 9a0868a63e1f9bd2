"""The lines of a source within a time, for evidence and for the tools of an investigation."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from midwatch.errors import ObservationFailed
from midwatch.subjects.host_mounts import OffLoop
from midwatch.subjects.logs.file_reader import BLOCK, UNREADABLE, Found, opened
from midwatch.subjects.logs.framing import Format, format_of, unwrap
from midwatch.subjects.logs.journal import (
    ENVIRONMENT,
    arguments,
    check_result,
    entries,
    run_journal,
)
from midwatch.subjects.logs.levels import Level
from midwatch.subjects.logs.loki import LokiReader
from midwatch.subjects.logs.rotation import line_time, named_files, place_of, siblings
from midwatch.subjects.logs.settings import SourceSettings
from midwatch.subjects.logs.source_reading import Reading
from midwatch.text import clean, ticket_line

MOST_BYTES = 64_000_000  # bytes of files that are read for one answer
_TAIL = 1_000_000  # bytes at the end of a file whose lines have no times
_LONGEST = 4000  # bytes of a line that are shown
_MOST_ENTRIES = 5000  # of a journal or of Loki

Want = Callable[[bytes], bool]
"""Tells whether a line counts, by its text."""


@dataclass(slots=True)
class Window:
    """Lines that were found.

    Attributes:
        keep: How many lines are kept, the last ones.
        lines: Time (epoch seconds, or None), text, and where it stands.
        count: How many there were.
        minutes: How many there were in each minute; in 0 those without a time.
        notes: What was not read.
        first: The time of the first line of all, wanted or not; None where no line has one.
    """

    keep: int
    lines: deque[tuple[float | None, str, str]] = field(default_factory=deque)
    count: int = 0
    minutes: Counter[int] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    first: float | None = None

    def begins(self, at: float | None) -> None:
        """Record the time of a line that is the first of its file."""
        if at is not None:
            self.first = at if self.first is None else min(self.first, at)

    def add(self, at: float | None, text: str, file: str) -> None:
        self.count += 1
        self.minutes[0 if at is None else int(at // 60)] += 1
        self.lines.append((at, text, file))
        if len(self.lines) > self.keep:
            self.lines.popleft()


class WindowReader:
    """Reads lines of a source within a time.

    Args:
        source: The settings of the source.
        loki: Its reader, for one of Loki.
    """

    def __init__(self, source: SourceSettings, loki: LokiReader | None) -> None:
        self._source, self._loki = source, loki
        self._thread = OffLoop()

    async def read(
        self, start: float, end: float, want: Want, keep: int, timeout: float
    ) -> Window:
        """Return the lines from `start` to `end`, in epoch seconds, that are wanted; the last `keep` of them.

        Raises ObservationFailed.
        """
        window = Window(keep)
        if self._source.journal is not None:
            await self._journal(window, start, end, want, timeout)
        elif self._loki is not None:
            await self._of_loki(self._loki, window, start, end, want, timeout)
        else:
            until = time.monotonic() + timeout * 0.8

            def call() -> None:
                _read_files(self._source, window, start, end, want, until)

            await self._thread.run(call, timeout, f"the log {self._source.name}")
        return window

    async def _journal(
        self, window: Window, start: float, end: float, want: Want, timeout: float
    ) -> None:
        settings = self._source.journal
        assert settings is not None
        command = arguments(
            settings,
            f"--since=@{start:.3f}",
            f"--until=@{end:.3f}",
            f"--lines={_MOST_ENTRIES}",
        )
        result = await run_journal(command, timeout, ENVIRONMENT)
        check_result(result, Reading(end))
        if result.failure and (result.too_large or result.code is None):
            window.notes.append("the journal has more entries than were read")
        for one in entries(result.stdout):
            window.begins(one.at)
            if want(one.text.encode("utf-8", "replace")):
                window.add(one.at, _marked(one.text, one.level), one.unit)

    async def _of_loki(
        self,
        loki: LokiReader,
        window: Window,
        start: float,
        end: float,
        want: Want,
        timeout: float,
    ) -> None:
        span = int(start * 1e9), int(end * 1e9)
        found = await loki.lines(*span, timeout, backward=True)
        if len(found) >= loki.limit:
            window.notes.append(f"only the last {len(found):,} lines were read")
        for one in found:
            window.begins(one.at / 1e9)
            if want(one.text.encode("utf-8", "replace")):
                window.add(one.at / 1e9, _marked(one.text, one.level), one.file)


def _marked(text: str, level: Level | None) -> str:
    """Return the text of an entry on one line, with the level that only its source knows before it."""
    flat = clean(text).replace("\n", " ⏎ ")[:_LONGEST]
    return flat if level is None else f"[{level.name}] {flat}"


# ------------------------------------------------------------------ files (blocking)


def _read_files(
    source: SourceSettings,
    window: Window,
    start: float,
    end: float,
    want: Want,
    until: float,
) -> None:
    reading = Reading(end)
    named = named_files(source.files, reading)
    others = siblings((one.path for one in named), {one.file for one in named})
    files = [one for one in (*others, *named) if one.changed >= start and one.readable]
    if not named:
        raise ObservationFailed("; ".join(reading.problems[:3]) or "no file is there")
    window.notes += reading.problems[:3]
    left = MOST_BYTES
    for one in sorted(files, key=lambda one: one.changed):
        try:
            left -= _read_file(one, source, window, start, end, want, left, until)
        except UNREADABLE as error:
            why = getattr(error, "strerror", None) or error
            window.notes.append(f"{ticket_line(one.path, 100)}: {why}")
        if left <= 0 or time.monotonic() > until:
            window.notes.append("not all lines of this time could be read")
            break


def _read_file(
    found: Found,
    source: SourceSettings,
    window: Window,
    start: float,
    end: float,
    want: Want,
    most: int,
    until: float,
) -> int:
    """Read one file; return how many bytes that were."""
    begin, taken = 0, 0
    if not found.compressed:
        begin = place_of(found.path, found.size, start)
        if begin >= found.size:
            begin = max(0, found.size - _TAIL)
    form: Format | None = None
    at: float | None = None
    with opened(found.path) as file:
        file.seek(begin)
        left = b""
        while taken < most and time.monotonic() <= until:
            block = file.read(BLOCK)
            if not block:
                break
            taken += len(block)
            data = left + block
            cut = data.rfind(b"\n") + 1
            left = data[cut:][-BLOCK:]
            for line in data[:cut].split(b"\n")[:-1]:
                first, form = form is None, form or _format(source, line)
                entry = unwrap(line, form)
                if first:
                    text = entry.text[:300].decode("utf-8", "replace")
                    window.begins(line_time(entry.time or text, end))
                if not want(entry.text):
                    continue
                text = entry.text[:_LONGEST].decode("utf-8", "replace")
                known = line_time(entry.time or text, end)
                at = known if known is not None else at
                if at is not None and at > end:
                    return taken
                if at is None or at >= start:
                    window.add(at, clean(text), found.path)
    return taken


def _format(source: SourceSettings, line: bytes) -> Format:
    return format_of(line) if source.format == "auto" else source.format


# ------------------------------------------------------------------ text


def shown(window: Window) -> Iterator[str]:
    """Yield the lines of a window, oldest first, with the time of those that do not show it."""
    for at, text, _ in window.lines:
        known = line_time(text, at or 0.0) if at is not None else None
        yield text if known is not None or at is None else f"{utc(at)} {text}"


def utc(at: float) -> str:
    """Return a time as log lines have it."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def noted(window: Window, lines: Iterable[str]) -> str:
    """Return lines with what was not read before them."""
    return "\n".join([*(f"({note})" for note in window.notes), *lines])
