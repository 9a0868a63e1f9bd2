"""Print lines, tables, Markdown and JSON.

Text from outside is escaped here, just before the terminal.
"""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

from midwatch.text import clean, one_line
from midwatch.units import format_duration

_MIN_COLUMN = 20  # columns that a shortened cell keeps
_GAP = "  "
_MAX_CELL = 500

RED, YELLOW, GREEN, BOLD, DIM = "31", "33", "32", "1", "2"
SEVERITY_STYLES = {"critical": RED, "warning": YELLOW, "info": ""}


@dataclass(frozen=True, slots=True)
class Cell:
    """The text of a table cell, and its ANSI style on a terminal."""

    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Output:
    """The stream that a command prints to, and what it can show. Ages are relative to `now`."""

    stream: TextIO
    terminal: bool
    colour: bool
    width: int
    now: datetime

    @classmethod
    def standard(cls, environ: Mapping[str, str]) -> Output:
        """Return standard output. NO_COLOR and TERM=dumb turn colours off."""
        terminal = sys.stdout.isatty()
        plain = environ.get("NO_COLOR") or environ.get("TERM") == "dumb"
        return cls(
            sys.stdout,
            terminal,
            terminal and not plain,
            shutil.get_terminal_size().columns,
            datetime.now(UTC),
        )

    def line(self, text: str = "", style: str = "") -> None:
        """Print one line. `text` is trusted or has been escaped."""
        print(self._styled(text, style), file=self.stream)

    def json(self, value: Any) -> None:
        """Print a value as JSON: mappings, sequences, dataclasses and instants within it included.

        It is escaped to ASCII, so that no control character of a hostile text reaches a terminal.
        """
        print(json.dumps(value, indent=2, default=plain), file=self.stream)

    def when(self, at: datetime | None) -> str:
        """Return the age of an instant on a terminal, such as `5m ago`; elsewhere the instant."""
        if at is None:
            return ""
        return relative(at, self.now) if self.terminal else iso(at)

    def table(
        self, headings: Sequence[str], rows: Sequence[Sequence[Cell]], shrink: int = -1
    ) -> None:
        """Print columns under their headings.

        Args:
            headings: One a column.
            rows: The cells of each row, one a column; their text is escaped here.
            shrink: Index of the column that is shortened to fit a terminal; -1 for none.
        """
        shown = [[_escaped(cell) for cell in row] for row in rows]
        widths = [
            max([width(heading), *(width(row[column].text) for row in shown)])
            for column, heading in enumerate(headings)
        ]
        if self.terminal and shrink >= 0:
            others = sum(widths) - widths[shrink] + len(_GAP) * (len(widths) - 1)
            room = max(self.width - others, _MIN_COLUMN)
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

    def markdown(self, text: str) -> None:
        """Print Markdown, rendered on a terminal. Links and control characters in it do nothing."""
        cleaned = clean(text).rstrip("\n")
        if not self.terminal:
            print(cleaned, file=self.stream)
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
        console.print(Markdown(cleaned, hyperlinks=False, code_theme="bw"))


def _escaped(cell: Cell) -> Cell:
    return Cell(one_line(cell.text, _MAX_CELL), cell.style)


def width(text: str) -> int:
    """Return the columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, room: int) -> str:
    """Return `text` in at most `room` columns; an ellipsis replaces the rest."""
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
    """Return the distance of an instant from now: `5m 3s ago`, `in 12s`."""
    seconds = (now - at).total_seconds()
    if abs(seconds) < 1:
        return "now"
    distance = format_duration(round(abs(seconds)))
    return f"{distance} ago" if seconds > 0 else f"in {distance}"


def iso(at: datetime) -> str:
    """Return an instant in UTC, to the millisecond: 2026-11-21T22:40:01.250Z."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain(value: Any) -> Any:
    """Return what JSON has for a value that it does not know: the `default` of `json.dumps`."""
    if isinstance(value, datetime):
        return iso(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: getattr(value, one.name) for one in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be printed as JSON")
