"""Print lines, tables, Markdown and JSON.

Text from outside is escaped here, just before the terminal.
"""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, Any

from midwatch.json_shapes import iso, plain
from midwatch.markdown import QUOTES, blocks, list_items
from midwatch.text import clean, one_line
from midwatch.units import format_duration

_LEAST = (20, 12)
"""Widths that the cells of a table keep, one after the other, while it is made to fit a terminal."""
_GAP = "  "
_MAX_CELL = 500
_NO_GAP = {("heading", "text"), ("heading", "code"), ("text", "code"), ("fold", "fold")}
"""Parts of a page that follow each other without a blank line."""

RED, YELLOW, GREEN, CYAN, BOLD, DIM = "31", "33", "32", "36", "1", "2"
SEVERITY_STYLES = {"critical": RED, "warning": YELLOW, "info": ""}


@dataclass(frozen=True, slots=True)
class Cell:
    """The text of a table cell, and its ANSI style on a terminal."""

    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Output:
    """The stream that a command prints to, and what it can show. Ages are relative to `now`."""

    stream: IO[str]
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

    def json_line(self, value: Any) -> None:
        """Print a value as JSON in one line, escaped as in `json`."""
        print(json.dumps(value, default=plain), file=self.stream)

    def json_of(self, values: Sequence[Any], asked: int) -> None:
        """Print one JSON document about what a command was asked for: a value for one name, a list for several."""
        if asked > 1:
            self.json(values)
        elif values:
            self.json(values[0])

    def when(self, at: datetime | None) -> str:
        """Return the age of an instant on a terminal, such as `5m ago`; elsewhere the instant."""
        if at is None:
            return ""
        return relative(at, self.now) if self.terminal else iso(at)

    def age(self, at: datetime | None) -> str:
        """Return the same as `when` for a table: `5m ago`."""
        if at is None or not self.terminal:
            return self.when(at)
        return relative(at, self.now, parts=1)

    def table(
        self,
        headings: Sequence[str],
        rows: Sequence[Sequence[Cell]],
        shrink: Sequence[str],
        drop: Sequence[str] = (),
    ) -> None:
        """Print columns under their headings, on a terminal in lines that fit.

        Args:
            headings: One a column.
            rows: The cells of each row, one a column; their text is escaped here.
            shrink: Headings of the columns whose texts are cut to fit a terminal, the first ones first.
            drop: Headings of the columns that are left out where the terminal is too narrow, the first ones first.
        """
        shown = [[_escaped(cell) for cell in row] for row in rows]
        widths = {
            heading: max([width(heading), *(width(row[at].text) for row in shown)])
            for at, heading in enumerate(headings)
        }
        if self.terminal:
            widths = _fitted(widths, self.width, shrink, drop)
        self._row([Cell(heading.upper(), DIM) for heading in widths], widths)
        for row in shown:
            cells = dict(zip(headings, row, strict=True))
            self._row([cells[heading] for heading in widths], widths)

    def pairs(self, pairs: Sequence[tuple[str, str]], indent: int) -> None:
        """Print names and values; a value that is too long for a terminal goes on below, after `indent` columns."""
        for name, value in pairs:
            room = max(self.width - indent, 20) if self.terminal else None
            first, *more = [value] if room is None else folded(value, room)
            self.line(f"  {name + ':':<{indent - 2}}{first}")
            for line in more:
                self.line(" " * indent + line)

    def _row(self, row: Sequence[Cell], widths: Mapping[str, int]) -> None:
        last = len(row) - 1
        cells = []
        for column, (cell, room) in enumerate(zip(row, widths.values(), strict=True)):
            text = cut(cell.text, room)
            padding = "" if column == last else " " * (room - width(text))
            cells.append(self._styled(text, cell.style) + padding)
        print(_GAP.join(cells).rstrip(), file=self.stream)

    def _styled(self, text: str, style: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if style and text and self.colour else text

    def markdown(self, text: str, unfold: bool = True) -> None:
        """Print Markdown, rendered on a terminal. Links and control characters in it do nothing.

        Code stays as it is, in lines that are never wrapped, so that it can be copied. Without `unfold` a terminal
        shows only the titles of folds, and of quotes a line each.
        """
        # Code may have longer lines than `clean` leaves; what writes pages has cleaned it.
        cleaned = clean(text, longest=None).rstrip("\n")
        if self.terminal:
            self._blocks(cleaned, unfold)
        else:
            print(cleaned, file=self.stream)

    def _blocks(self, page: str, unfold: bool) -> None:
        before = ""
        for block in blocks(page):
            short = block.title == QUOTES and not unfold
            if before and not short and (before, block.kind) not in _NO_GAP:
                self.line()
            before = block.kind
            if short:
                for item in list_items(block.text):
                    self.line(cut(f"  {item}", self.width), DIM)
            elif block.kind == "code":
                for line in block.text.split("\n"):
                    self.line(line, CYAN)
            elif block.kind != "fold":
                self._rich(block.text)
            elif unfold:
                self.line(block.title, BOLD)
                self._blocks(block.text, unfold)
            else:
                for line in folded(f"▸ {block.title}", self.width):
                    self.line(line, DIM)

    def _rich(self, text: str) -> None:
        from rich.console import Console
        from rich.markdown import Markdown

        console = Console(
            width=min(self.width, 110),
            no_color=not self.colour,
            force_terminal=self.colour,
            markup=False,
            emoji=False,
        )
        with console.capture() as captured:
            console.print(Markdown(text, hyperlinks=False, code_theme="bw"))
        # Without the spaces that fill its lines, and the blank lines around it.
        for line in captured.get().strip("\n").split("\n"):
            self.line(line.rstrip())


def _escaped(cell: Cell) -> Cell:
    return Cell(one_line(cell.text, _MAX_CELL), cell.style)


def _fitted(
    widths: Mapping[str, int], room: int, shrink: Sequence[str], drop: Sequence[str]
) -> dict[str, int]:
    """Return the widths of the columns that are shown in `room`: cut first, then left out, then cut to the bone.

    The first column is what commands take; it is never cut.
    """
    for left_out in range(len(drop) + 1):
        fitted = {name: w for name, w in widths.items() if name not in drop[:left_out]}
        for least in _LEAST:
            if _cut_to(fitted, room, [one for one in shrink if one in fitted], least):
                return fitted
    for least in (8, 4, 1):
        _cut_to(fitted, room, list(fitted)[:0:-1], least)
    return fitted


def _cut_to(
    widths: dict[str, int], room: int, columns: Sequence[str], least: int
) -> bool:
    """Shorten columns in this order, none below `least`, until the line has at most `room`. Return whether it has."""
    for name in columns:
        excess = sum(widths.values()) + len(_GAP) * (len(widths) - 1) - room
        widths[name] = max(widths[name] - max(excess, 0), min(widths[name], least))
    return sum(widths.values()) + len(_GAP) * (len(widths) - 1) <= room


def folded(text: str, room: int) -> list[str]:
    """Return a text in lines of at most `room` columns, broken at spaces and within longer words."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if width(longer) <= room:
            lines[-1] = longer
            continue
        lines += wrapped(word, room)
    return lines if lines[0] or len(lines) == 1 else lines[1:]


def wrapped(line: str, room: int) -> Iterator[str]:
    """Yield a line in pieces of at most `room` columns; no character is left out."""
    piece, taken = "", 0
    for character in line:
        columns = _columns(character)
        if taken + columns > room:
            yield piece
            piece, taken = "", 0
        piece += character
        taken += columns
    yield piece


def width(text: str) -> int:
    """Return the columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if character == "\ufe0f":  # makes the character before it as wide as an emoji
        return 1
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
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


def relative(at: datetime, now: datetime, parts: int = 2) -> str:
    """Return the distance of an instant from now: `5m 3s ago`, `in 12s`; in one part, `5m ago`."""
    seconds = (now - at).total_seconds()
    if abs(seconds) < 1:
        return "now"
    distance = " ".join(format_duration(round(abs(seconds))).split()[:parts])
    return f"{distance} ago" if seconds > 0 else f"in {distance}"
