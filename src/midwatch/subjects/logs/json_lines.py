"""JSON lines, reduced to what they say: their level and their message, for many lines in one step.

A line of a structured logger has members that determine what it says, and others, such as identifiers, that differ in each line. One
expression skips those and finds the first ones, in any order. It matches only what `json` reads as well, so a line that it does not match
is read by itself.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from midwatch.subjects.logs.levels import (
    CAUSE_NAMES,
    LEVEL_NAMES,
    MESSAGE_NAMES,
    NUMBER_NAMES,
    Level,
    json_level,
    shown_text,
)

MARK = b"\x01"
"""What a reduced line begins with, before the first letter of its level and a space."""
ALONE = MARK + b"?"
"""Stands for a line that has to be read by itself."""
_HEADS = {level: b"%b%b " % (MARK, level.name[:1].encode()) for level in Level}
LEVELS = {head: level for level, head in _HEADS.items() if level >= Level.ERROR}
"""The levels of what reduced lines begin with."""
HEAD = 3
"""Bytes of that."""
_MOST_KNOWN = 2000  # levels and texts that are remembered
_SAMPLE = 2048  # bytes by which it is decided whether lines are JSON, and which names are looked for
_MOST_RENEWED = 6  # expressions of one observation: making one takes some 50 ms
_SHAPED = 600  # bytes of a message that are all in its shape
_DECODE = json.JSONDecoder().raw_decode
_DEEPEST = 5  # objects in objects
_QUOTE = ord('"')
_SHOWN = frozenset((*MESSAGE_NAMES, *CAUSE_NAMES))
_CAUSES = frozenset(CAUSE_NAMES)
_TEXTS = tuple(name for name in MESSAGE_NAMES if name not in _CAUSES)
_NAMES = (*_TEXTS, *CAUSE_NAMES, *NUMBER_NAMES, *LEVEL_NAMES)
_ANY_NAME = b"|".join(re.escape(name.encode()) for name in _NAMES)
_NAMED = re.compile(rb'"(%b)" ?:' % _ANY_NAME)

# ------------------------------------------------------------------ the expression

_KEY = rb'"[^"\\\x00-\x1f]*": ?'
_NEXT = rb'(?:, ?(?=")|(?=\}))'  # after a member
_SCALAR = (  # branches are faster than parts that may be there
    rb'"[^"\\\x00-\x1f]*(?:"|(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)+")'
    rb"|-?(?:[1-9][0-9]*|0)(?:\.[0-9]+|)(?:[eE][-+]?[0-9]+|)|true|false|null"
)


def _value(depth: int) -> bytes:
    """Return an expression for values, with objects and arrays that are nested so deeply. No text matches it in two ways."""
    if not depth:
        return rb"(?:%b)" % _SCALAR
    inner = _value(depth - 1)
    return rb"(?:%b|\{(?:\}|(?:%b%b%b)+\})|\[(?:\]|(?:%b(?:, ?(?!\])|(?=\])))+\]))" % (
        *(_SCALAR, _KEY, inner, _NEXT, inner),
    )


@functools.lru_cache(32)
def _expression(names: tuple[str, ...], longest: int) -> re.Pattern[bytes]:
    """Return an expression for one line: a group for the value of each of these names, the last one if it has several, and one for other lines."""
    found = [
        rb'%b": ?(%b)' % (re.escape(name.encode()), _value(2 if name in _SHOWN else 0))
        for name in names
    ]
    other = rb'(?!(?:%b)")%b%b' % (_ANY_NAME, _KEY[1:], _value(_DEEPEST))
    member = rb'"(?:%b)%b' % (b"|".join([*found, other]), _NEXT)
    return re.compile(
        rb"(?=[^\n]{0,%d}\n)\{(?:%b)+\}\r?\n|([^\n]*\n|[^\n]+)" % (longest, member)
    )


# ------------------------------------------------------------------ lines


def has_json(data: bytes, start: int, end: int) -> bool:
    """Return whether of complete lines a quarter or more may be objects of JSON, by the first ones."""
    end = min(end, start + _SAMPLE)
    objects = data.count(b'\n{"', start, end) + data.startswith(b'{"', start, end)
    return 4 * objects >= max(1, data.count(b"\n", start, end))


@dataclass(slots=True)
class JsonLines:
    """Reduces the lines of one source.

    Args:
        is_suspect: Tells whether a text has what a line of level error or worse has.
        longest: Bytes of a line that are read.
    """

    is_suspect: Callable[[bytes], object]
    longest: int
    _names: tuple[str, ...] = ()
    _wanted: set[str] = field(default_factory=set)
    _renewed: int = 0
    _heads: dict[tuple[bytes, ...], bytes] = field(default_factory=dict)
    _shown: dict[bytes, bytes | None] = field(default_factory=dict)

    def reduced(self, data: bytes, start: int, end: int) -> bytes | None:
        """Return a line for each complete line from one place to another; None where no member is known that determines what a line says.

        Returns:
            For a line of level error or worse what `LEVELS` has for it, and the first line of its message, as `levels.said` tells it, in which
            what is in quotes may be left out, as in shapes; nothing for an object of another level; `ALONE` for one that has to be
            read; other lines as they are.
        """
        self._look_for_names(data[start : min(end, start + _SAMPLE)])
        if len(self._wanted) > len(self._names) and self._renewed < _MOST_RENEWED:
            self._names = tuple(name for name in _NAMES if name in self._wanted)
            self._heads.clear()
            self._renewed += 1
        if not self._names:
            return None
        rows = _expression(self._names, self.longest).findall(data, start, end)
        return b"\n".join([*self._lines(rows), b""])

    def _look_for_names(self, text: bytes) -> None:
        if self._renewed < _MOST_RENEWED:
            self._wanted.update(map(bytes.decode, _NAMED.findall(text)))

    def _lines(self, rows: Iterable[tuple[bytes, ...]]) -> list[bytes]:
        texts = sum(name in _TEXTS for name in self._names)
        levels = texts + sum(name in _CAUSES for name in self._names)
        heads, found = self._heads, []
        for row in rows:
            head = heads.get(row[levels:])
            if head is None:
                head = self._head(row, levels)
            if head not in LEVELS:
                found.append(head)
                continue
            raw = row[0] if texts else b""
            if raw[:1] == b'"' != raw[1:2] and b"\\" not in raw and raw.isascii():
                text: bytes | None = raw[1:-1]  # most are so
            else:
                text = self._first(row[:texts])
            why = self._first(causes) if any(causes := row[texts:levels]) else b""
            if not text or why is None:
                found.append(ALONE)
                continue
            if why and why not in text:
                text = b"%b: %b" % (text, why)
            if b"\n" in text:
                text = text.partition(b"\n")[0]
            if b'"' in text:
                text = _without_quoted(text)
            found.append(head + text)
        return found

    def _first(self, values: tuple[bytes, ...]) -> bytes | None:
        """Return the first text that one of these values shows, as UTF-8; None if that cannot be UTF-8."""
        text: bytes | None
        for raw in values:
            if not raw:
                continue
            simple = raw[1:-1].replace(rb"\"", b'"') if raw[0] == _QUOTE else b"\\"
            if b"\\" not in simple and raw.isascii():
                text = simple
            elif raw in self._shown:
                text = self._shown[raw]
            else:
                text = _shown_bytes(raw)
                if len(self._shown) >= _MOST_KNOWN:
                    self._shown.clear()
                self._shown[raw] = text
            if text != b"":
                return text
        return b""

    def _head(self, row: tuple[bytes, ...], levels: int) -> bytes:
        """Return what a reduced line begins with; all of it if that is no message of an error."""
        if line := row[-1]:
            if line[:1] == b"{":
                self._look_for_names(line[: self.longest])
            return ALONE if line[:1] == MARK else line.removesuffix(b"\n")
        key, members = row[levels:], dict(zip(self._names[levels:], row[levels:]))
        if not any(key) and "log" in self._names:  # the Elastic Common Schema
            members = {"log": row[self._names.index("log")]}
            key = b"log", members["log"]
        if (head := self._heads.get(key)) is None:
            if len(self._heads) >= _MOST_KNOWN:
                self._heads.clear()
            self._heads[key] = head = self._head_of(members)
        return head

    def _head_of(self, members: Mapping[str, bytes]) -> bytes:
        read = {name: _read(raw) for name, raw in members.items() if raw}
        level, _ = json_level(read)
        if level is None and isinstance(nested := read.get("log"), dict):
            level, _ = json_level(nested)
        if level is None:
            return ALONE
        if level < Level.ERROR:
            return b""
        text = b",".join(b'"%b":%b' % (n.encode(), v) for n, v in members.items() if v)
        return _HEADS[level] if self.is_suspect(text + b",") else ALONE


def _without_quoted(text: bytes) -> bytes:
    """Return a message without what is in quotes, if that is left out of its shape as a whole."""
    parts = text.split(b'"')
    if len(parts) % 2 == 0 or len(text) > _SHAPED or b"=" in text or b"\\" in text:
        return text
    return b'""'.join(parts[::2])


def _read(raw: bytes) -> Any:
    return _DECODE(raw.decode("utf-8", "replace"))[0]


def _shown_bytes(raw: bytes) -> bytes | None:
    try:
        return shown_text(_read(raw)).encode()
    except UnicodeEncodeError:  # a half of a character that has two parts
        return None
