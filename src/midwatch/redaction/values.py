"""Where a value begins and ends that stands behind a name: with quotes of any kind, or without."""

from __future__ import annotations

import re

from midwatch.redaction.markers import IS_MARKER

_PLAIN = re.compile(
    # A quote or separator ends a value only where what follows fits that: a password may contain any of these.
    r"[^\s\0\"'`,;&)}\]|<\\%]*(?:(?!(?:[\"'`,;&)}\]|](?=[\s\0]|\Z|[\"'`,;&:>)}\]|]|[\w.-]{1,40}=)|,(?=[\w.-]{1,40}:)|</|\\{1,8}[\"'nrt]"
    r"|&amp;|&quot;|\\u0026|%26(?=[\w.-]{1,40}(?:%3[dD]|=))))[\"'`,;&)}\]|<\\%][^\s\0\"'`,;&)}\]|<\\%]*)*"
)
_OPENING = re.compile(
    r"(?P<deep>\\{1,8}[\"'])|(?P<triple>\"\"\"|''')|(?P<twice>''|\"\"|``)(?=[^\s'\"`,;)}\]&])"
    r"|(?:[bBeEfFnNrRuUL]|[uU]&|[rR][bB])?(?P<plain>[\"'`])|(?P<dollar>\$(?:[A-Za-z_]\w{0,20})?\$)"
    r"|(?P<entity>&quot;|&\#3[49];|%22|%27|\\u002[27])|(?P<brace>\{)(?=[^{}\n:\"']{1,200}\})"
    r"|(?P<list>\[)(?=[^\[\]\n]{0,500}\])"
    r"|\w{1,40}\(\s{0,3}(?P<call>(?:[eEnN])?['\"])"
)
_PREFIXED = re.compile(r"\w{0,40}(?:[\"'`]|&'|\()")
_CLOSING = {  # what ends a value, by how it begins
    '"': re.compile(r'[^"\\\r\n]*(?:\\.[^"\\\r\n]*)*'),
    "'": re.compile(r"[^'\\\r\n]*(?:(?:\\.|'')[^'\\\r\n]*)*"),
    "`": re.compile(r"[^`\r\n]*"),
}
_DEEP = re.compile(r"[^\"'\\\r\n]*(?:\\(?!\\{0,8}[\"'])[^\"'\\\r\n]*)*")


def value_at(text: str, at: int, farthest: int | None = None) -> tuple[int, int, bool]:
    """Return where the value at a place begins and ends, without its quotes, and whether it has quotes.

    Without quotes it is read up to `farthest`.
    """
    if text[at : at + 1].isalnum() and not _PREFIXED.match(text, at):
        return at, _plain_end(text, at, farthest), False
    if text.startswith(("{", "["), at) and (hidden := IS_MARKER.match(text, at + 1)):
        return *hidden.span(), True
    if hidden := IS_MARKER.match(text, at):
        end = hidden.end()
        if not text.startswith("@", end):
            end = _plain_end(text, end, farthest)
        return at, end, False
    opening = _OPENING.match(text, at)
    if opening is None or opening["brace"] and text[at - 1] != "=":
        return at, _plain_end(text, at, farthest), False
    start = opening.end()
    kind = opening.lastgroup
    mark = opening[kind or 0]
    if kind in ("plain", "call"):
        closing = _CLOSING[mark[-1]].match(text, start)
        assert closing is not None
        return start, closing.end(), True
    if kind == "deep":
        closing = _DEEP.match(text, start)
        assert closing is not None
        return start, closing.end(), True
    if kind == "list":
        return start, text.index("]", start), True
    if kind == "brace":
        return start, text.index("}", start), True
    end = text.find(mark, start)
    if end < 0:
        end = len(text) if kind in ("triple", "dollar") else _plain_end(text, start)
    elif kind in ("twice", "entity"):
        end = min(end, line_end(text, start))
    return start, end, True


def _plain_end(text: str, at: int, farthest: int | None = None) -> int:
    plain = _PLAIN.match(text, at, len(text) if farthest is None else farthest)
    assert plain is not None
    return plain.end()


def line_end(text: str, at: int, farthest: int | None = None) -> int:
    """Return where the line ends, or `farthest` if it is longer."""
    end = text.find("\n", at, farthest)
    if end < 0:
        end = len(text) if farthest is None else min(farthest, len(text))
    return end - (end > at and text[end - 1] == "\r")
