"""What a command prints: lines, tables, Markdown, JSON.

Text that came from outside is made harmless here, at the last place before the terminal.
"""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

from midwatch.text import clean, one_line
from midwatch.units import format_duration

_NARROWEST = 20  # columns that are left to a shortened cell at least
_GAP = "  "
_LONGEST_CELL = 500

RED, YELLOW, GREEN, BOLD, DIM = "31", "33", "32", "1", "2"
SEVERITY_STYLES = {"critical": RED, "warning": YELLOW, "info": ""}


@dataclass(frozen=True, slots=True)
class Cell:
    """A piece of text in a table, with the ANSI style that it has on a terminal."""

    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Output:
    """Where a command prints to, and what that can show. `now` is what ages are counted from."""

    stream: TextIO
    terminal: bool
    colour: bool
    width: int
    now: datetime

    @classmethod
    def standard(cls, environ: Mapping[str, str]) -> Output:
        terminal = sys.stdout.isatty()
        plain = environ.get("NO_COLOR") or environ.get("TERM") == "dumb"
        return cls(
            sys.stdout,
            terminal,
            terminal and not plain,
            shutil.get_terminal_size().columns,
            datetime.now(UTC),
        )

    # -------------------------------------------------- plain lines

    def line(self, text: str = "", style: str = "") -> None:
        """One line; `text` is ours, or was made harmless before."""
        print(self._styled(text, style), file=self.stream)

    def json(self, document: Any) -> None:
        # Escaped to ASCII, so that no control character of a hostile text reaches a terminal.
        print(json.dumps(document, indent=2), file=self.stream)

    def when(self, at: datetime | None) -> str:
        """How long ago (or until then) on a terminal; the instant elsewhere."""
        if at is None:
            return ""
        return relative(at, self.now) if self.terminal else iso(at)

    # -------------------------------------------------- tables

    def table(
        self, headings: Sequence[str], rows: Sequence[Sequence[Cell]], shrink: int = -1
    ) -> None:
        """Columns under their headings. On a terminal the column `shrink` is shortened to fit."""
        shown = [[_harmless(cell) for cell in row] for row in rows]
        widths = [
            max([width(heading), *(width(row[column].text) for row in shown)])
            for column, heading in enumerate(headings)
        ]
        if self.terminal and shrink >= 0:
            others = sum(widths) - widths[shrink] + len(_GAP) * (len(widths) - 1)
            room = max(self.width - others, _NARROWEST)
            widths[shrink] = min(widths[shrink], room)
        self._row([Cell(heading.upper(), DIM) for heading in headings], widths)
        for row in shown:
            self._row(row, widths)

    def _row(self, row: Sequence[Cell], widths: Sequence[int]) -> None:
        last = len(row) - 1
        cells = []
        for column, (cell, room) in enumerate(zip(row, widths, strict=True)):
            text = cut(cell.text, room)
            padding = "" if column == last else " " * (room - width(text))
            cells.append(self._styled(text, cell.style) + padding)
        print(_GAP.join(cells).rstrip(), file=self.stream)

    def _styled(self, text: str, style: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if style and text and self.colour else text

    # -------------------------------------------------- Markdown

    def markdown(self, text: str) -> None:
        """Markdown rendered on a terminal, as it is elsewhere. Nothing in it becomes live."""
        harmless = clean(text).rstrip("\n")
        if not self.terminal:
            print(harmless, file=self.stream)
            return
        from rich.console import Console
        from rich.markdown import Markdown

        console = Console(
            file=self.stream,
            width=min(self.width, 110),
            no_color=not self.colour,
            force_terminal=self.colour,
            markup=False,
            emoji=False,
        )
        console.print(Markdown(harmless, hyperlinks=False, code_theme="bw"))


def _harmless(cell: Cell) -> Cell:
    return Cell(one_line(cell.text, _LONGEST_CELL), cell.style)


def width(text: str) -> int:
    """Columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, room: int) -> str:
    """`text` in at most `room` columns; an ellipsis stands for what is missing."""
    if width(text) <= room:
        return text
    kept, taken = [], 1
    for character in text:
        taken += _columns(character)
        if taken > room:
            break
        kept.append(character)
    return "".join(kept).rstrip() + "…"


def relative(at: datetime, now: datetime) -> str:
    """`5m 3s ago`, `in 12s`."""
    seconds = (now - at).total_seconds()
    if abs(seconds) < 1:
        return "now"
    told = format_duration(round(abs(seconds)))
    return f"{told} ago" if seconds > 0 else f"in {told}"


def iso(at: datetime) -> str:
    """An instant in UTC, to the millisecond: 2026-11-21T22:40:01.250Z."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
