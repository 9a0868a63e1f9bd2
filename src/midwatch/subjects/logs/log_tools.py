"""The tools of logs: search lines by a regular expression, and count them over time. Both only read."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from pydantic import Field

from midwatch.model import Origin
from midwatch.subjects.logs.search import expression
from midwatch.subjects.logs.settings import SourceSettings
from midwatch.subjects.logs.window import Window, WindowReader, noted, shown, utc
from midwatch.subjects.tools import Answer, Arguments, Refused, Tool
from midwatch.units import parse_time

_LONGEST_SPAN = 7 * 86_400.0  # seconds
_BUCKETS = 60


class Range(Arguments):
    """A source, a regular expression and a time."""

    source: str = Field(description="The name of the log.", max_length=63)
    pattern: str = Field(
        description="RE2, as in grep -E; (?i) for any case.",
        min_length=1,
        max_length=500,
    )
    minutes: int = Field(30, ge=1, le=10_080, description="How far back from `until`.")
    until: str | None = Field(
        None, description="A time in ISO 8601; by default now.", max_length=40
    )


class Search(Range):
    lines: int = Field(50, ge=1, le=200, description="The last so many.")


class LogTools:
    """The tools of a subject's logs.

    Args:
        sources: The settings of the sources by name.
        readers: Their readers by name.
        timeout: Seconds of one call.
    """

    def __init__(
        self,
        sources: Mapping[str, SourceSettings],
        readers: Mapping[str, WindowReader],
        timeout: float,
    ) -> None:
        self._sources, self._readers, self._timeout = sources, readers, timeout

    def tools(self) -> Sequence[Tool]:
        """Return the tools."""
        names = ", ".join(self._sources)[:200]
        limit = self._timeout + 1
        return (
            Tool(
                "search_lines",
                f"The last lines of a log that match. Logs: {names}.",
                Search,
                self._search,
                limit,
            ),
            Tool(
                "count_lines",
                "How many lines match, over time; a zero may be a time without lines.",
                Range,
                self._count,
                limit,
            ),
        )

    async def _search(self, asked: Search) -> Answer:
        window, _, _ = await self._window(asked, asked.lines)
        lines = [*shown(window)]
        if window.count > len(lines):
            lines.insert(0, f"({window.count - len(lines):,} earlier lines match)")
        text = noted(window, lines) if lines else "\n".join(window.notes)
        return Answer(self._command(asked), text, Origin.REPORTED)

    async def _count(self, asked: Range) -> Answer:
        window, start, end = await self._window(asked, 1)
        step = max(1, -(-int((end - start) // 60 + 1) // _BUCKETS))
        counts: dict[int, int] = {}
        for minute, count in window.minutes.items():
            place = minute // step * step if minute else 0
            counts[place] = counts.get(place, 0) + count
        lines = [f"{window.count:,} lines; those of {step} min each:"]
        lines += [
            f"{utc(place * 60) if place else 'without a time'}: {count:,}"
            for place, count in sorted(counts.items())
        ]
        return Answer(self._command(asked), noted(window, lines))

    async def _window(self, asked: Range, keep: int) -> tuple[Window, float, float]:
        reader = self._readers.get(asked.source)
        if reader is None:
            raise Refused(
                f"there is no log {asked.source!r:.80}: {', '.join(self._sources)}"
            )
        end = time.time()
        if asked.until is not None:
            until = parse_time(asked.until)
            if until is None:
                raise Refused(
                    f"{asked.until!r:.60} is not a time such as 2026-05-03T12:00:00Z"
                )
            end = min(end, until.timestamp())
        start = end - min(asked.minutes * 60.0, _LONGEST_SPAN)
        try:
            search = expression(asked.pattern).search
        except ValueError as error:
            raise Refused(str(error)) from None
        window = await reader.read(
            start, end, lambda line: search(line) is not None, keep, self._timeout
        )
        return window, start, end

    def _command(self, asked: Range) -> str:
        until = asked.until or "now"
        return f"lines of {asked.source} that match {asked.pattern!r}, {asked.minutes} min before {until}"
