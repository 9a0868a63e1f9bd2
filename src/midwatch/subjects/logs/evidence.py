"""Evidence from logs: the lines around the onset, and how often each shape of error was logged before and since."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from midwatch.model import Origin, Ticket
from midwatch.subjects.base import EvidenceSource
from midwatch.subjects.logs.error_shapes import Shape, Shapes
from midwatch.subjects.logs.levels import Level, is_further, said, suspect
from midwatch.subjects.logs.settings import BEAT, SourceSettings
from midwatch.subjects.logs.window import Window, WindowReader, noted, shown, utc
from midwatch.text import one_line, reported

BEFORE = 900.0  # seconds before the onset whose lines are shown
_HOUR = 3600.0  # seconds before the onset that are compared with
_AFTER = 600.0  # seconds after the onset whose lines are shown
_LINES = 4000
_ERRORS = 20_000  # lines of errors that are counted
_MOST_SHAPES = 25
_MOST_SOURCES = 4


@dataclass(frozen=True, slots=True)
class LogEvidence:
    """The evidence of a subject's logs.

    Attributes:
        sources: The settings of the sources by name.
        readers: Their readers by name.
        redact: Removes secrets from a line.
        timeout: Seconds of one piece.
    """

    sources: Mapping[str, SourceSettings]
    readers: Mapping[str, WindowReader]
    redact: Callable[[str], str]
    timeout: float

    def pieces(self, tickets: Sequence[Ticket]) -> Iterator[EvidenceSource]:
        """Yield the evidence for tickets; without any, that of the state of the logs."""
        onset = min((one.first_seen_at.timestamp() for one in tickets), default=0.0)
        named = dict.fromkeys(_source_of(one) for one in tickets)
        names = [name for name in named if name in self.sources]
        for name in (names or [*self.sources])[:_MOST_SOURCES]:
            yield self._piece(
                f"Errors of {name} by shape",
                name,
                partial(self._shapes, name, onset),
                12,
            )
            yield self._piece(
                f"Log of {name} around the onset",
                name,
                partial(self._lines, name, onset),
                14,
                log=True,
            )
        for ticket in tickets:
            if ticket.key.invariant == BEAT.id and _source_of(ticket) in self.sources:
                beat = str(ticket.facts.get("heartbeat") or "")
                yield self._piece(
                    f"Last lines of the heartbeat {beat}",
                    _source_of(ticket),
                    partial(self._beats, _source_of(ticket), beat),
                    13,
                    log=True,
                )

    def _piece(
        self,
        title: str,
        name: str,
        fetch: Callable[[], Awaitable[str]],
        rank: int,
        *,
        log: bool = False,
    ) -> EvidenceSource:
        origin = Origin.REPORTED if log else Origin.SYSTEM
        return EvidenceSource(
            title,
            _where(self.sources[name]),
            fetch,
            rank,
            self.timeout,
            origin,
            log=log,
        )

    async def _lines(self, name: str, onset: float) -> str:
        now = time.time()
        start = (onset or now) - BEFORE
        end = min(now, (onset or now) + _AFTER)
        window = await self.readers[name].read(
            start, end, bool, _LINES, self.timeout * 0.8
        )
        return noted(window, [*shown(window)] or ["no lines in this time"])

    async def _beats(self, name: str, beat: str) -> str:
        from midwatch.subjects.logs.search import expression

        one = next((b for b in self.sources[name].heartbeats if b.name == beat), None)
        if one is None:
            return ""
        search = expression(one.pattern).search
        now = time.time()
        window = await self.readers[name].read(
            now - 86_400,
            now,
            lambda line: search(line) is not None,
            5,
            self.timeout * 0.8,
        )
        lines = [*shown(window)]
        return noted(window, lines or ["no such line within a day"])

    async def _shapes(self, name: str, onset: float) -> str:
        now = time.time()
        since = onset or now
        find = suspect().search
        window = await self.readers[name].read(
            since - _HOUR,
            now,
            lambda line: find(line) is not None,
            _ERRORS,
            self.timeout * 0.8,
        )
        return noted(window, self._table(window, since - 60, now))

    def _table(self, window: Window, since: float, now: float) -> Iterator[str]:
        """Yield a line for each shape: how often it was logged since the onset, and in the hour before."""
        shapes = Shapes([], "", 200, self.redact, now)
        rows: dict[str, _Row] = {}
        for at, text, file in window.lines:
            told = said(text)
            if is_further(text) or told.level is None or told.level < Level.ERROR:
                continue
            shape = shapes.find(told.level, told.message)
            row = rows.setdefault(shape.text, _Row(shape))
            row.add(at, since, file)
        merged = _widest(rows.values())
        if window.first is None or window.first > since:
            yield f"since {utc(since)}; of the time before no lines are there:"
        else:
            yield f"since {utc(since)}, and in the hour before it:"
        ranked = sorted(merged, key=lambda one: (-one.since, -one.before))
        for row in ranked[:_MOST_SHAPES]:
            yield row.text()
        if len(ranked) > _MOST_SHAPES:
            yield f"and {len(ranked) - _MOST_SHAPES:,} more shapes"
        if not ranked:
            yield "no line of level error or worse"
        if window.count > len(window.lines):
            yield f"(only the last {len(window.lines):,} of {window.count:,} such lines are counted)"


@dataclass(slots=True)
class _Row:
    """How often a shape was logged."""

    shape: Shape
    since: int = 0
    before: int = 0
    first: float = 0.0
    last: float = 0.0
    file: str = ""

    def add(self, at: float | None, since: float, file: str) -> None:
        if at is None or at >= since:
            self.since += 1
            if at is not None:
                self.first = min(self.first or at, at)
        else:
            self.before += 1
        self.last = max(self.last, at or 0.0)
        self.file = file

    def text(self) -> str:
        times = f", from {utc(self.first)} to {utc(self.last)}" if self.first else ""
        level = self.shape.level.name
        return (
            f"since={self.since} before={self.before}{times}, {level}: {reported(one_line(self.shape.text, 300))}"
            f" in {reported(one_line(self.file, 150))}"
        )


def _widest(rows: Iterable[_Row]) -> list[_Row]:
    """Return one row for each shape, with those of shapes that became one added up."""
    found: dict[int, _Row] = {}
    for row in rows:
        shape = row.shape
        while shape.wider is not None:
            shape = shape.wider
        if (known := found.get(id(shape))) is None:
            row.shape = shape
            found[id(shape)] = row
            continue
        known.since += row.since
        known.before += row.before
        known.first = min(filter(None, (known.first, row.first)), default=0.0)
        known.last = max(known.last, row.last)
    return [*found.values()]


def _source_of(ticket: Ticket) -> str:
    return str(ticket.facts.get("source") or ticket.key.component.partition(":")[0])


def _where(source: SourceSettings) -> str:
    if source.journal is not None:
        return "journalctl"
    return source.loki.url if source.loki is not None else source.files[0]
