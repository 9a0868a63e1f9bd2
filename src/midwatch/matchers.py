"""Matchers: conditions on labels, in the syntax of Alertmanager.

`parse_matchers` reads what Alertmanager reads in its default mode: its UTF-8 grammar (names and values may be quoted,
with the escapes of a Go string), and where the two differ the older, classic one, so that a matcher
means the same in both programs (https://prometheus.io/docs/alerting/latest/configuration/#matcher).

Regular expressions are those of RE2, anchored at both ends, and they run in RE2 itself: it takes linear time on any
pattern and text, and Python's engine does not.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from midwatch.errors import PermanentError
from midwatch.model import keepable

Operator = Literal["=", "!=", "=~", "!~"]
LONGEST_INPUT = 10_000
"""Characters of a text with matchers."""
MOST_MATCHERS = 100
_OPERATORS = ("=~", "!=", "!~", "=")
_CLASSIC_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_SPACE = " \t\n\r\f\v"


class InvalidMatcher(PermanentError):
    """A matcher is wrong."""

    command_exit_code = 2
    hint = 'write NAME=VALUE, NAME!=VALUE, NAME=~"REGEX" or NAME!~"REGEX", with "," between'


@dataclass(frozen=True, slots=True)
class Matcher:
    """A condition on one label. A label that is missing is the empty text.

    Attributes:
        name: The label's name.
        op: "=" and "!=" compare with `value`; "=~" and "!~" search it as a regular expression that must match the
            whole text.
        value: The text or the regular expression.
    """

    name: str
    op: Operator
    value: str

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether the labels meet the condition.

        Raises:
            InvalidMatcher: The regular expression is wrong.
        """
        text = labels.get(self.name, "")
        if self.op in ("=", "!="):
            return (text == self.value) is (self.op == "=")
        return _fits(self.value, text) is (self.op == "=~")

    def __str__(self) -> str:
        """Return the matcher in a form that both grammars of Alertmanager read alike."""
        plain = _CLASSIC_NAME.fullmatch(self.name)
        name = self.name if plain else _quoted(self.name)
        return f"{name}{self.op}{_quoted(self.value)}"


def match_all(matchers: Iterable[Matcher], labels: Mapping[str, str]) -> bool:
    """Return whether the labels meet every condition. Raises as `Matcher.matches` does."""
    return all(one.matches(labels) for one in matchers)


def check_matchers(matchers: Iterable[Matcher]) -> None:
    """Refuse wrong regular expressions and names, and too many matchers.

    Raises:
        InvalidMatcher: One of them is wrong.
    """
    found = list(matchers)
    if len(found) > MOST_MATCHERS:
        raise InvalidMatcher(
            f"{len(found):,} matchers are too many; {MOST_MATCHERS} are the limit"
        )
    for one in found:
        if one.op not in _OPERATORS:
            raise InvalidMatcher(f"the operator {one.op!r} is none of = != =~ !~")
        if not one.name:
            raise InvalidMatcher("a matcher has no label name")
        if len(one.name) + len(one.value) > LONGEST_INPUT:
            raise InvalidMatcher(
                f"a matcher is longer than {LONGEST_INPUT:,} characters"
            )
        if keepable(one.name + one.value) != one.name + one.value:
            raise InvalidMatcher(
                "a matcher has a character that no database keeps (NUL)"
            )
        if one.op in ("=~", "!~"):
            _expression(one.value)


def parse_matchers(text: str) -> tuple[Matcher, ...]:
    """Return the matchers of a text such as `{subject="db", severity!=info}`; the braces may be left out.

    Raises:
        InvalidMatcher: The text is wrong; the error says where.
    """
    if len(text) > LONGEST_INPUT:
        raise InvalidMatcher(f"matchers are longer than {LONGEST_INPUT:,} characters")
    try:
        found = _parse_utf8(text)
    except InvalidMatcher as wrong:
        try:
            found = _parse_classic(text)
        except InvalidMatcher:
            raise wrong from None
    else:
        try:
            found = _parse_classic(text)  # where both read it, this one counts
        except InvalidMatcher:
            pass
    check_matchers(found)
    return found


def parse_matcher_groups(texts: Iterable[str]) -> tuple[Matcher, ...]:
    """Return the matchers of several texts, such as the arguments of a command."""
    return tuple(one for text in texts for one in parse_matchers(text))


# ------------------------------------------------------------------ regular expressions


def _fits(pattern: str, text: str) -> bool:
    return _expression(pattern)(keepable(text)) is not None


@functools.lru_cache(maxsize=1024)
def _expression(pattern: str) -> Callable[[str], object]:
    """Return the match of whole texts with a pattern. Raises InvalidMatcher."""
    import re2  # of commands, many need none

    options = re2.Options()
    options.log_errors = False
    try:
        found: Any = re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else error
        why = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else reason
        raise InvalidMatcher(
            f"the regular expression {_shown(pattern)} is wrong: {why}"
        ) from None
    return cast("Callable[[str], object]", found.fullmatch)


# ------------------------------------------------------------------ the UTF-8 grammar

_TOKEN = re.compile(
    r'(?P<quoted>"[^"\\]*(?:\\.[^"\\]*)*")|(?P<op>=~|!=|!~|=)|(?P<mark>[{},])'
    r"""|(?P<plain>[^\s{}!=~,\\"'`]+)""",
    re.DOTALL,
)
_BLANK = re.compile(r"\s*")
_GO_ESCAPE = re.compile(
    rb'\\(?:([abfnrtv\\"])|x([0-9a-fA-F]{2})|([0-3][0-7]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))|(\\)'
)
_GO_LETTERS = {
    b"a": b"\a",
    b"b": b"\b",
    b"f": b"\f",
    b"n": b"\n",
    b"r": b"\r",
    b"t": b"\t",
    b"v": b"\v",
    b"\\": b"\\",
    b'"': b'"',
}

Token = tuple[str, str, int]
"""The kind of a token ("quoted", "op", "mark", "plain", "end"), its text, and where it begins."""


def _tokens(text: str) -> Iterator[Token]:
    at = 0
    while True:
        blank = _BLANK.match(text, at)
        at = blank.end() if blank else at
        if at == len(text):
            break
        match = _TOKEN.match(text, at)
        if match is None:
            raise _wrong(text, at, "this character must stand in double quotes")
        yield str(match.lastgroup), match[0], at
        at = match.end()
    while True:
        yield "end", "", at


def _parse_utf8(text: str) -> tuple[Matcher, ...]:
    tokens = _tokens(text)
    found: list[Matcher] = []
    kind, word, at = next(tokens)
    opened = word == "{" and kind == "mark"
    if opened:
        kind, word, at = next(tokens)
    while kind in ("quoted", "plain"):
        name = _unquoted(text, (kind, word, at))
        kind, operator, at = next(tokens)
        if kind != "op":
            raise _wrong(text, at, "= != =~ or !~ is expected")
        kind, word, at = next(tokens)
        if kind not in ("quoted", "plain"):
            raise _wrong(text, at, "a value is expected")
        value = _unquoted(text, (kind, word, at))
        found.append(Matcher(name, cast(Operator, operator), value))
        kind, word, at = next(tokens)
        if word != ",":
            break
        kind, word, at = next(tokens)
    if opened:
        if word != "}":
            raise _wrong(text, at, 'a "," or the closing brace is expected')
        kind, word, at = next(tokens)
    if kind != "end":
        raise _wrong(text, at, "a label name or the end is expected")
    return tuple(found)


def _unquoted(text: str, token: Token) -> str:
    """Return the text of a token; of a quoted one, as Go reads an interpreted string."""
    kind, word, at = token
    if kind == "plain":
        return word
    inner = word[1:-1].encode("utf-8", "surrogatepass")
    try:
        if b"\n" in inner:
            raise ValueError("a line ends within quotes")
        return _GO_ESCAPE.sub(_go_character, inner).decode()
    except ValueError:
        raise _wrong(
            text, at, "the quoted text has a line end or a wrong escape"
        ) from None


def _go_character(match: re.Match[bytes]) -> bytes:
    letter, byte, octal, short, long, stray = match.groups()
    if stray:
        raise ValueError("unknown escape")
    if letter:
        return _GO_LETTERS[letter]
    if byte or octal:
        return bytes([int(byte, 16) if byte else int(octal, 8)])
    return chr(int(short or long, 16)).encode()  # refuses surrogates


# ------------------------------------------------------------------ the classic grammar


def _parse_classic(text: str) -> tuple[Matcher, ...]:
    # Alertmanager drops a single brace at either end too, and so the end of a pattern such as a.{2}.
    inner = text.strip(_SPACE)
    if inner.startswith("{") and inner.endswith("}") and len(inner) > 1:
        inner = inner[1:-1]
    elif inner.startswith("{") or inner.endswith("}"):
        raise InvalidMatcher("a brace has no counterpart")
    parts = list(_classic_parts(inner))
    if not parts[-1].strip():
        parts.pop()
    return tuple(_classic_matcher(part) for part in parts)


def _classic_parts(text: str) -> Iterator[str]:
    """Yield the parts between commas that do not stand in double quotes."""
    quoted = escaped = False
    begin = 0
    for at, character in enumerate(text):
        if character == "," and not quoted:
            yield text[begin:at]
            begin, escaped = at + 1, False
            continue
        if character == '"' and not escaped:
            quoted = not quoted
        escaped = character == "\\" and not escaped
    yield text[begin:]


def _classic_matcher(part: str) -> Matcher:
    rest = part.strip(_SPACE)
    name = _CLASSIC_NAME.match(rest)
    if name is None:
        raise InvalidMatcher(f"{_shown(part)} is not a matcher")
    rest = rest[name.end() :].lstrip(_SPACE)
    operator = next((one for one in _OPERATORS if rest.startswith(one)), None)
    if operator is None:
        raise InvalidMatcher(f"{_shown(part)} has none of = != =~ !~")
    value = rest[len(operator) :].lstrip(_SPACE)
    if value.startswith('"'):
        if len(value) < 2 or not value.endswith('"'):
            raise InvalidMatcher(f"{_shown(part)} lacks a double quote at its end")
        value = value[1:-1]
    unescaped = re.sub(r'\\([n"\\])|(")', _classic_character, value)
    return Matcher(name[0], cast(Operator, operator), unescaped)


def _classic_character(match: re.Match[str]) -> str:
    if match[2]:
        raise InvalidMatcher("a value has a double quote without a backslash before it")
    return "\n" if match[1] == "n" else match[1]


# ------------------------------------------------------------------ text


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}…")


def _wrong(text: str, at: int, why: str) -> InvalidMatcher:
    near = text[at : at + 20]
    where = f"at character {at + 1}, before {near!r}" if near else "at the end"
    return InvalidMatcher(f"the matchers {_shown(text)} are wrong {where}: {why}")
