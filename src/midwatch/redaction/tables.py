"""Hide the columns of tables that hold secrets: rows of INSERT, CSV, the output of psql and mysql."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from midwatch.redaction.markers import IS_MARKER
from midwatch.redaction.names import is_algorithm, is_ordinary, label_of
from midwatch.redaction.pairs import WORD, Span, Word, line_of

# ------------------------------------------------------------------ rows of SQL

_COLUMNS = re.compile(
    r"[\w-]{0,40}[\"`\]]?\s{0,20}(?:,[^()';]{0,2000})?\)\s{0,20}"
    r"(?P<rows>(?i:overriding\s+\w+\s+value\s+)?(?i:values?|=|in|select|as)\b\s{0,20}|=|(?i:from\s+stdin)[^\n]{0,200}\n)"
)
_TABLE = re.compile(
    r"(?i:into\s+)[\w.\"`]{0,60}"
    + WORD
    + r"[\w-]{0,40}[\"`]?\s{1,20}(?P<rows>(?i:values)\s{0,20})"
)
_TOKEN = re.compile(
    r"(?P<literal>(?:[eEnNbBxX]|[uU]&)?'[^'\\]*(?:(?:\\.|'')[^'\\]*)*'?)|(?P<tag>\$[A-Za-z_]{0,20}\$)|(?P<name>\"[^\"\n]*\"?)"
    r"|(?P<sign>[(),;])|(?P<from>(?i:\bfrom\b|\bon\s+(?:conflict|duplicate)\b|\breturning\b|\bwhere\b))|(?P<end>\n(?!\s)|\Z)|(?P<other>[^'\"$(),;\n]+?(?=\b)|.|\n)",
    re.DOTALL,
)


class _Item(NamedTuple):
    """A value in a row: its column, where it stands, its literals, and where the next one begins."""

    column: int | None
    start: int
    stop: int
    literals: list[tuple[int, int]]
    next: int


def row_spans(text: str, lower: str, words: Iterable[Word]) -> Iterator[Span]:
    """Yield the values of columns that hold secrets: INSERT INTO users (name, password) VALUES (…, '…')."""
    at = 0
    for word in words:
        if word.at < at or not (found := _COLUMNS.match(text, word.end)):
            continue
        at = found.end()
        opening = text.rfind("(", max(found.start() - 2000, 0), found.start())
        names = text[opening + 1 : text.index(")", found.start())].split(",")
        labels = [label_of(name.strip(' "`[]\n\t')) for name in names]
        if opening < 0 or not any(labels):
            continue
        rows = found["rows"].lower()
        if rows.startswith("from"):
            cells, at = _cells(text, at, "\t", labels)
            yield from cells
            continue
        bare = text.endswith(
            "Key ", 0, opening
        )  # of an error: Key (token)=(…) already exists
        for item in _items(text, at, 0 if rows.startswith("select") else 1):
            at = item.next
            label = None
            if item.column is not None:
                label = (
                    labels[0]
                    if len(labels) == 1
                    else dict(enumerate(labels)).get(item.column)
                )
            if label:
                yield from _secrets(text, item, label, bare=bare)
    at = 0
    while (at := lower.find("into", at)) >= 0:
        if not (found := _TABLE.match(text, at)):
            at += 1
            continue
        at = found.end()
        for item in _items(text, at, 1):
            at = item.next
            if item.column is not None:
                yield from _secrets(text, item, "secret", bare=False)


def _items(text: str, at: int, level: int) -> Iterator[_Item]:
    """Yield the values of rows up to the end of the statement; `level` is how deep in brackets they stand."""
    depth, column, start = 0, 0, at
    literals: list[tuple[int, int]] = []
    ended = False
    while not ended:
        token = _TOKEN.match(text, at)
        assert token is not None
        at = token.end()
        sign = token["sign"]
        if token["literal"]:
            first = text.index("'", token.start()) + 1
            literals.append((first, at - (at > first and text[at - 1] == "'")))
        elif token["tag"]:
            close = text.find(token[0], at)
            close = len(text) if close < 0 else close
            literals.append((at, close))
            at = min(close + len(token[0]), len(text))
        closed = sign == ")" and depth == 0
        ended = (
            sign == ";"
            or token["end"] is not None
            or bool(token["from"] and not depth)
            or closed
            or at >= len(text)
        )
        inside = depth == level
        if ended or inside and sign in (",", ")"):
            stop = (
                at
                if token["literal"] or token["tag"] or token["other"]
                else token.start()
            )
            yield _Item(column if inside else None, start, stop, literals, at)
            column, start, literals = column + 1, at, []
        depth += (sign == "(") - (sign == ")")
        if sign == "(" and depth == level:
            column, start, literals = 0, at, []


def _secrets(text: str, item: _Item, label: str, *, bare: bool) -> Iterator[Span]:
    """Yield the literals of a value; without literals the whole value if it is `bare`, that is, without quotes."""
    for first, last in item.literals:
        algorithm = len(item.literals) > 1 and is_algorithm(text[first:last])
        if (
            first < last
            and not algorithm
            and not IS_MARKER.fullmatch(text, first, last)
        ):
            yield Span(first, last, label)
    value = text[item.start : item.stop].strip()
    if bare and value and not is_ordinary(value, "") and not IS_MARKER.fullmatch(value):
        start = text.index(value, item.start)
        yield Span(start, start + len(value), label)


# ------------------------------------------------------------------ lines of a table

_HEADER = re.compile(r"[\w-]{0,40}[\"'`]?[ ]{0,80}(?:[,;|\t]|\r?\n)")
_CELL = re.compile(r"\s*[\"'`]?[A-Za-z_][\w .-]{0,60}[\"'`]?\s*")
_RULE = re.compile(r"[\s|+:=-]*")


def table_spans(text: str, words: Iterable[Word]) -> Iterator[Span]:
    """Yield the cells below the headers of columns that hold secrets."""
    at = 0
    read: dict[tuple[str | None, ...], int] = {}  # headers, and where their rows end
    for word in words:
        if word.at < at or not (found := _HEADER.match(text, word.end)):
            continue
        start = text.rfind("\n", max(found.start() - 1000, 0), found.start()) + 1
        end = text.find("\n", found.start())
        at = end + 1 if end >= 0 else len(text)
        line = text[start:end] if 0 <= end - start < 2000 else ""
        delimiter = next((one for one in "|\t;," if one in line), None)
        if delimiter is None:
            continue
        cells = line.split(delimiter)
        spaced = delimiter == "|"
        if not all(
            _CELL.fullmatch(cell)
            and (spaced or " " not in cell.strip())
            or spaced
            and not cell.strip()
            for cell in cells
        ):
            continue
        labels = [label_of(cell.strip(" \t\"'`\r")) for cell in cells]
        if not any(labels) or spaced and not _RULE.match(text, at):
            continue
        header = (delimiter, *labels)
        read = {one: where for one, where in read.items() if where > at}
        if header in read or len(read) >= _MOST_HEADERS:
            continue  # a row, which looks like a header
        cells_below, read[header] = _cells(text, at, delimiter, labels)
        for cell in cells_below:
            yield cell
            at = cell.end


_MOST_HEADERS = 32
"""Headers for which the same lines are read, where none of them is found to have a secret below it."""


def _cells(
    text: str, at: int, delimiter: str, labels: list[str | None]
) -> tuple[list[Span], int]:
    """Return the cells of columns that hold secrets, in all lines with as many cells, and where those lines end."""
    found: list[Span] = []
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        line = text[at:end]
        cells = line.split(delimiter)
        if len(cells) != len(labels):
            if _RULE.fullmatch(line) and line:
                at = end + 1
                continue
            break
        start = at
        for cell, label in zip(cells, labels, strict=True):
            value = cell.strip(" \t\r")
            bare = value.strip("\"'")
            if (
                label
                and bare
                and not _RULE.fullmatch(cell)
                and not is_ordinary(bare, "")
                and not IS_MARKER.fullmatch(bare)
            ):
                first = start + cell.index(bare)
                found.append(Span(first, first + len(bare), label))
            start += len(cell) + 1
        at = end + 1
    return found, min(at, len(text))


# ------------------------------------------------------------------ literals of SQL

_SQL = re.compile(
    r"""(?x:(?P<after>[\w-]{0,40})["`\])]{0,4}[ \t\n]{0,20}(?:::\w{1,30}[ \t]{0,5})?
    (?:(?i:as[ ]\w{1,40}[ ])|(?i:(?:not[ ])?(?:i?like|in|similar[ ]to)|is[ ](?:not[ ])?distinct[ ]from|to|between)\b
      |(?<=[iI][nN])|=[ ]?(?i:any|all)\b|<>|!=|[<>=~]=?|!?~~?\*?|\|\|)
    [ \t\n]{0,10}(?:\([ ]?)?(?i:array\[)?(?=(?:[eEnN]|[uU]&)?'|\$\w{0,20}\$))"""
)
_LITERAL = re.compile(
    r"(?:[eEnN]|[uU]&)?'[^'\\\r\n]*(?:(?:\\.|'')[^'\\\r\n]*)*'?|(\$\w{0,20}\$)"
)
_NEXT_LITERAL = re.compile(
    r"[ ]?(?:::\w{1,30}(?:\[\])?)?\s{0,10}(?:,|\|\||(?i:and|to|escape)\b)\s{0,10}(?=(?:[eEnN]|[uU]&)?')"
)


def _literal_at(text: str, at: int) -> tuple[int, int, int] | None:
    """Return where the text of an SQL literal begins and ends, and where the literal ends."""
    found = _LITERAL.match(text, at)
    if found is None:
        return None
    if found[1]:
        end = text.find(found[1], found.end())
        end = len(text) if end < 0 else end
        return found.end(), end, min(end + len(found[1]), len(text))
    start = text.index("'", at) + 1
    closed = found.end() > start and text[found.end() - 1] == "'"
    return start, found.end() - closed, found.end()


_LITERAL_FIRST = re.compile(
    r"'\)?\s{0,3}(?:::\w{1,30}\s?)?(?:(?i:as)\s|=|<>|~)\s{0,3}(?P<name>[\w.\"]{0,60}?"
    + WORD
    + r"(?P<after>\w{0,40}))(?!\w|\()"
)


def literals_before(text: str) -> Iterator[Span]:
    """Yield the literals before the name of a secret: `'…' AS password`, `md5('…') = password`."""
    done = 0
    for found in _LITERAL_FIRST.finditer(text):
        label = label_of(found["name"])
        opening = text.rfind("'", max(found.start() - 500, done), found.start())
        if label and opening >= 0 and opening + 1 < found.start():
            if not IS_MARKER.fullmatch(text, opening + 1, found.start()):
                yield Span(opening + 1, found.start(), label)
            done = found.end()


def literals_beside(text: str, words: Iterable[Word]) -> Iterator[Span]:
    """Yield the literals beside the name of a secret: `token IN ('…', '…')`, `password LIKE '…'`."""
    at = 0
    for word in words:
        if word.at < at or not (found := _SQL.match(text, word.end)):
            continue
        at = found.end("after")
        name = line_of(text, word.name, word.begin)
        label = word.label
        if (
            ")" in found[0]
            and "," in text[text.rfind("(", name.line, name.start) : name.start]
        ):
            continue
        where = found.end()
        while literal := _literal_at(text, where):
            start, end, at = literal
            if start < end and not IS_MARKER.fullmatch(text, start, end):
                yield Span(start, end, label)
            following = _NEXT_LITERAL.match(text, at)
            if following is None:
                break
            where = following.end()
