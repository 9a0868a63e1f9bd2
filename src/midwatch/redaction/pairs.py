"""Hide what stands beside a name: `password=…`, `"token": "…"`, `- name: DB_PASSWORD\\n  value: …`.

A search finds the words that name secrets; where the name begins, what separates it from its value and where
the value ends (see `values`) is then read from there. Each character is read a bounded number of times: what was hidden is not
read again, and what is left alone was looked at for some hundred characters at most.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence, Set
from operator import itemgetter
from typing import NamedTuple

from midwatch.redaction.hints import windows
from midwatch.redaction.markers import IS_MARKER, MARKER, marker
from midwatch.redaction.names import (
    begins_sentence,
    is_ordinary,
    is_placeholder,
    is_sentence,
    is_word,
    label_of,
    looks_random,
)
from midwatch.redaction.values import line_end, value_at


class Span(NamedTuple):
    """A secret in a text: what is hidden, and under which label."""

    start: int
    end: int
    label: str


def hide(text: str, spans: Iterator[Span]) -> str:
    """Return the text with a marker for each span; they are in order and do not overlap."""
    pieces: list[str] = []
    at = 0
    for start, end, label in spans:
        pieces += text[at:start], marker(label)
        at = end
    return "".join([*pieces, text[at:]]) if pieces else text


def without_overlaps(spans: Iterable[Span]) -> Iterator[Span]:
    """Yield the spans in order, without those that begin in an earlier one."""
    at = 0
    longest_first = sorted(spans, key=itemgetter(1), reverse=True)
    for span in sorted(longest_first, key=itemgetter(0)):
        if span.start >= at:
            yield span
            at = span.end


def lowered(text: str) -> str:
    """Return the text in lower case, each character in its place."""
    lower = text.lower()
    if len(lower) == len(text):
        return lower
    return "".join(one if len(one.lower()) > 1 else one.lower() for one in text)


# Letters and signs from rare to frequent, in the text of logs.
_RARITY = "`{<>$~|^%@#&*+!?;jqzx_kvywb=gpfhmucdlrsintaoe()'\",/-.:0123456789 "


def rarest(text: str) -> int:
    """Return where the rarest character of a text stands."""
    return min(range(len(text)), key=lambda at: _RARITY.find(text[at].lower()))


def _either(patterns: Iterable[str]) -> str:
    return f"(?:{'|'.join(patterns)})"


def any_of(hints: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of some texts. Each is looked for by its rarest character, which skips ahead."""
    branches: dict[str, dict[str, list[str]]] = {}
    for hint in hints:
        at = rarest(hint)
        before, after = re.escape(hint[: at + 1]), re.escape(hint[at + 1 :])
        last_two = rf"(?<={re.escape(hint[at - 1 : at + 1])})" if at else ""
        branches.setdefault(hint[at], {}).setdefault(last_two, []).append(
            f"(?<={before}){after}" if at > 1 else after
        )
    return re.compile(
        "|".join(
            f"{re.escape(one)}(?:{'|'.join(look + _either(found) for look, found in looks.items())})"
            for one, looks in branches.items()
        )
    )


# The search begins at rare letters, so that it skips ahead quickly.
_WORD = (
    r"(?i:(?<=sec)ret|(?<=c)red(?:ential)?s?|(?<=tok)en|(?<=k)ey|(?<=wac)htwoord|(?<=c)ontrase.a|(?<=k)ennwort"
    r"|(?<=p)(?:ass(?:word|wd|phrase|wort|code|e(?![a-z]))?|arola|wd?(?![a-z])|sk(?![a-z])))"
)
WORD = rf"(?:[cCkKpP]{_WORD})"
FOREIGN_WORD = r"[hHпПшШ密パ비](?i:(?<=senh)a|(?<=h)(?:eslo|aslo)|(?<=п)арол[ья]|(?<=密)[码碼]|(?<=パ)スワード|(?<=비)밀번호)"
_FOREIGN = ("senha", "heslo", "haslo", "парол", "密", "パスワード", "비밀번호")
_AFTER = r"(?P<after>[\w-]{0,40})"
_QUOTE = r"(?:\\{0,8}[\"'`]|&quot;|&\#3[49];|%22|%27|\\u002[27])"
_EQUALS = r"(?:=>|:=|={1,2}|::?|：|%3[dDaA]|%253[dDaA]|\\u003[dD]|&\#61;)"
_SEPARATOR = rf"""(?x:
    (?P<close>{_QUOTE}|\\?\])?
    (?:
      (?P<below>:[ \t]{{0,20}}\r?\n[ ]{{1,80}}(?![\s"'-]))
    | [ \t]{{0,60}}(?P<equals>{_EQUALS})[ \t]{{0,80}}(?:\r?\n[ \t]{{0,80}}(?=\\{{0,8}}["']))?
    | [ \t]{{1,60}}(?P<bar>\|)[ ]
    | (?P<part>\r?\n\r?\n)
    | (?P<argument>,[ ]?(?=\\{{0,8}}["']))
    | [ \t](?P<verb>(?:(?:is|was|has[ ]been|is[ ]now)[ ])?(?:is|was|to|(?:re)?set[ ]to|changed[ ]to|updated[ ]to)\b:?[ \t])
    | (?P<space>[ \t]{{1,80}})
    )(?=\S)(?!{MARKER}(?:[\s"'`,;&)}}\]]|\Z))
)"""
_BEHIND_NAME = re.compile(_AFTER + _SEPARATOR)
LONGEST_READ_NAME = 200
"""Characters of a name beside its value that are read: a longer one is cut there."""
_NAME = rf"(?P<name>[\w./-]{{1,{LONGEST_READ_NAME}}})"
_NAME_FIRST = re.compile(
    rf"[mkK](?:(?<=[nN]am)e|(?<=[kK])ey)\\{{0,8}}[\"']?\s{{0,3}}[:=]\s{{0,3}}(?:\\{{0,8}}[\"'])?{_NAME}(?=\\{{0,8}}[\"']?[\s,;])"
)
_ITS_VALUE = re.compile(
    r"\\{0,8}[\"']?[\s,;]{1,40}(?:(?![nN]ame|[vV]alueFrom)[^{}\n]){0,120}?\s{0,40}\b(?:[pP]arameter)?[vV]alue(?:\\{0,8}[\"'])?\s{0,3}[:=]\s{0,3}"
)
_TAG = re.compile(
    r"<key>(?P<key>[\w.-]{1,100})</key>\s{0,40}<string>"
    r"|<(?P<name>[\w:.-]{1,80})(?:\s[^<>\n]{0,200})?(?<!/)>(?:<!\[CDATA\[|\s{0,40}<value>)?(?=[^\s<>])"
)
_ATTRIBUTE = re.compile(r"\b(?:name|key)=[\"'](?P<name>[\w.-]{1,100})[\"']")
_BEGINS_LINE = re.compile(
    r"[\s\"'#>*{(\[,|:-]*(?:(?:export|set|setx|ENV|ARG|define|CONFIG SET|SET GLOBAL|global)\s+)?(?:\$env:)?\Z"
)


class Word(NamedTuple):
    """A word of a text that names a secret: where it stands, the whole name around it, and its label."""

    at: int
    name: str
    begin: int
    end: int
    label: str


# With the rest of the name, so that a name with two such words is found once.
_REST = r"(?:(?=[A-Za-z0-9_-])[\w-]{1,40}(?![\w-]))?"
_FOREIGN_WORDS = re.compile(FOREIGN_WORD + _REST)
_WORDS = re.compile(rf"[cCkKpP]{_WORD}{_REST}")
# In a text with markers: a group matches a marker, or what a name stands before if it is hidden.
_HIDDEN = rf"((?:\\{{0,8}}[\"'])?[=:] ?(?:(?P<quote>\\{{0,8}}(?:\"|(?<!=)(?<!= )'))?{MARKER}(?(quote)(?P=quote)|(?=[\s\"'`,;&)}}\]]|\Z))))?"
_WORDS_AND_MARKERS = re.compile(
    rf"[cCkKpP[](?:(?<=\[)(redacted:[a-z-]{{1,20}}\])|{_WORD}{_REST}{_HIDDEN})"
)
_IN_NAME = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
_AFTER_NAME = re.compile(r"(?=[A-Za-z0-9_-])[\w-]{1,40}")
_BARE = frozenset(
    "password passwd passphrase token secret credentials Password Token Secret Credentials".split()
)
_PROSE = re.compile(
    r" (?!(?:i?like|in|is|was|to|not|as|between|similar|set|reset|changed|updated|has|values?|select|from)\b)[a-z]{2,30}(?:[ \t]\w|[.,;:)])"
)


def words_in(text: str, foreign: bool = False) -> list[Word]:
    """Return the words that name a secret; those of markers, and those followed by a word of a sentence, do not count."""
    words = []
    marked = "[redacted:" in text
    pattern = _WORDS_AND_MARKERS if marked else _WORDS
    if foreign:
        pattern = _FOREIGN_WORDS
    for found in (
        one for part in windows(text) for one in pattern.finditer(text, *part)
    ):
        if found.lastindex:
            continue
        at, end = found.span()
        begin = max(at - 80, 0)
        begin += len(text[begin:at].rstrip(_IN_NAME))
        while begin and at - begin < 80 and text[begin - 1].isalnum():  # not of ASCII
            before = text[max(at - 80, 0) : begin - 1]
            begin -= 1 + len(before) - len(before.rstrip(_IN_NAME))
        if text[end : end + 1] in _IN_NAME and (after := _AFTER_NAME.match(text, end)):
            end = after.end()
        name = text[begin:end]
        label = label_of(name)
        if label is None:
            continue
        if name in _BARE and _PROSE.match(text, end):
            continue
        if marked and text.endswith("[redacted:", 0, begin):
            continue
        if begin and text[begin - 1] == "\\" and name[0] in "nrt":
            begin, name = begin + 1, name[1:]
            label = label_of(name) or label
        words.append(Word(at, name, begin, end, label))
    return words


_VALUE = re.compile(r"alue(?:[\"'=:\\]| [=:])")


def pair_spans(
    text: str, lower: str, words: Sequence[Word], hints: Set[str]
) -> Iterator[Span]:
    """Yield the values of names that hold secrets. They may overlap."""
    yield from _spans(text, words)
    if "abroad" in hints and any(word in lower for word in _FOREIGN):
        yield from _spans(text, words_in(text, foreign=True))
    if "value" in hints and _VALUE.search(text):
        yield from _name_first(text)
        yield from _value_first(text)
    if "</" in text:
        yield from _tags(text)


# Values that nothing but `is_ordinary` decides on. A placeholder can begin with "s" or "v".
_BARE_VALUE = re.compile(r"=([a-rtuw-zA-Z0-9][a-zA-Z0-9]{0,200})(?=\s|\Z)")
_SIMPLE = re.compile(
    r"(?:=|\":\s?(\"))(?=[a-zA-Z0-9]*[0-9])([a-zA-Z][a-zA-Z0-9]{5,200})(?=([\s\"])|\Z)"
)


def _spans(text: str, words: Iterable[Word]) -> Iterator[Span]:
    at = 0
    for word in words:
        if word.at < at:
            continue
        close = text[word.end : word.end + 1]
        if close == "=" and (bare := _BARE_VALUE.match(text, word.end)):
            if not is_ordinary(bare[1], word.name):
                at = bare.end()
                yield Span(*bare.span(1), word.label)
            continue
        simple = _SIMPLE.match(text, word.end) if close in ("=", '"') else None
        if simple and not is_ordinary(simple[2], word.name):
            start, at = simple.span(2)
            end = at
            if simple[1] and simple[3] != '"':  # a value of several words
                _, end, _ = value_at(text, start - 1)
            yield Span(start, end, word.label)
            continue
        found = _BEHIND_NAME.match(text, word.end)
        if found is None:
            continue
        at = found.end("after")
        span = _secret(text, found, word)
        if span is not None and span.start >= at:
            at = span.end
            if span.start < span.end:
                yield span


class _Name(NamedTuple):
    text: str
    start: int
    line: int
    begins_line: bool


def line_of(text: str, whole: str, start: int) -> _Name:
    line = text.rfind("\n", max(start - 200, 0), start) + 1
    begins = start == line or bool(_BEGINS_LINE.match(text, line, start))
    return _Name(whole, start, line, begins)


def _secret(text: str, found: re.Match[str], word: Word) -> Span | None:
    label = word.label
    if found["equals"] == "=":  # by far the most
        return _beside(text, found.end(), _Name(word.name, word.begin, 0, False), label)
    name = line_of(text, word.name, word.begin)
    at = found.end()
    before = text[max(name.start - 1, 0) : name.start]
    if found["equals"]:
        colon = found["equals"] in (":", "：")
        tight = at == found.end("equals")
        if before == "/" and colon or before == ":" and colon and tight:
            return None  # a path before a message; a part of an ARN
        if name.text == "PASS" and colon:
            return None  # of a test
        if text.startswith(("|", ">"), at):
            block = _block(text, at, name)
            if block:
                return Span(*block, label)
        return _beside(text, at, name, label, prose=colon and not tight)
    if found["below"]:
        return _below(text, at, name, label)
    if found["bar"]:
        if not name.begins_line:
            return None
        ends = text.find("\n", at)
        line = text[at : ends if ends >= 0 else len(text)]
        if "|" in line or text.startswith(("\n-", "\n+"), ends):
            return None
        return _beside(text, at, name, label)
    if found["part"]:
        if "form-data" not in text[name.line : name.start]:
            return None
        return Span(at, line_end(text, at), label)
    if found["argument"]:
        pair = before in ("'", '"') and text[name.start - 2 : name.start - 1] in (
            "(",
            "[",
        )
        span = _beside(text, at, name, label)
        setting = text.endswith("set_config(", 0, name.start - 1)
        if span is None or not (
            name.text.startswith("-")
            or setting
            or pair
            and re.match(r"\\?[\"'][)\]]", text[span.end : span.end + 3])
        ):
            return None
        return span
    return _spaced(text, found, name, label)


def _span(text: str, start: int, end: int, label: str) -> Span:
    """Return the span; an empty one for what is hidden already."""
    return (
        Span(end, end, label)
        if IS_MARKER.fullmatch(text, start, end)
        else Span(start, end, label)
    )


# ------------------------------------------------------------------ beside a name

_EMPTY = re.compile(r"[,;&|)}\]](?:[\s\"']|\Z|[\w. -]{1,40}=)|[)}\]|,]")
_SETTING_BEHIND = re.compile(r"\s+[\w.-]+=")
_IN_LIST = re.compile(r"[\"'][^\"']*[\"']")
_NAMED_OBJECT = re.compile(
    r"\\?[\"'`]?,?\s+(?:not|already|is|was|does|in|has|cannot|could|must|exists?|found|referenced|for|of)\b"
)
_DNS_NAME = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+)+|[a-z0-9.-]+/[a-z0-9.-]+")


def _beside(
    text: str, at: int, name: _Name, label: str, *, prose: bool = False
) -> Span | None:
    """Return the secret behind a separator, or None if there is none.

    Args:
        prose: Whether a colon and a space precede it, as in a sentence too.
    """
    first = text[at : at + 1]
    if (
        not first
        or is_placeholder(text, at)
        or first in ",;&|)}]"
        and _EMPTY.match(text, at)
    ):
        return None
    is_path = first in ("/", "~") and name.text.lower().endswith("pwd")
    is_code = first in ("{", "[", "(") and text[at - 1] != "="
    farthest = at + 500 if is_path or is_code else None  # no secret without quotes
    start, end, quoted = value_at(text, at, farthest)
    if text.startswith("[redacted:", start) and IS_MARKER.fullmatch(text, start, end):
        return Span(end, end, label)
    value = text[start : min(end, start + 400)]
    if not value or is_ordinary(value, name.text) or is_placeholder(text, start):
        return None
    if name.text.lower().endswith("pwd") and value.startswith(("/", "~")):
        return None
    if text[start - 1] == "[" and quoted:
        return Span(start, end, label) if _IN_LIST.search(value) or not prose else None
    if quoted:
        if is_sentence(value) or _SETTING_BEHIND.match(value):
            return None
        if label in ("secret", "token") and _DNS_NAME.fullmatch(value):
            named = prose and _NAMED_OBJECT.match(text, end)
            if (
                named
                or name.text == "secret"
                and (
                    text[max(name.start - 1, 0) : name.start] in ("{", ",")
                    or "/" in value
                )
            ):
                return None
        return Span(start, end, label)
    if value[0] in "{[(" and text[at - 1] != "=":
        return None
    rest = text[end : line_end(text, end, end + 100)] if prose else ""
    if prose and begins_sentence(value, rest, name.begins_line):
        return None
    if prose and re.match(r"\s+bytes\b", rest) and value.isdigit():
        return None
    if prose and name.begins_line and is_word(value):
        words = rest.split()
        if words and all(re.fullmatch(r"\w+", word) for word in words):
            end = line_end(text, end)  # a passphrase
    return Span(start, end, label)


# ------------------------------------------------------------------ YAML

_BLOCK = re.compile(r"[|>][0-9+-]{0,2}[ \t]*(?:#[^\n]*)?\r?\n")
_INDENT = re.compile(r"[ \t]*")


def _indent(text: str, name: _Name) -> int:
    """Return the column of a name in YAML."""
    return name.start - name.line - (text[name.start - 1 : name.start] in ("'", '"'))


def _leading(text: str, line: int) -> int:
    found = _INDENT.match(text, line)
    return found.end() - line if found else 0


def _block(text: str, at: int, name: _Name) -> tuple[int, int] | None:
    """Return where the lines of a block scalar begin and end: those that are indented deeper than its name."""
    opening = _BLOCK.match(text, at)
    if opening is None:
        return None
    indent = _indent(text, name) if name.begins_line else _leading(text, name.line)
    first = _INDENT.match(text, opening.end())
    assert first is not None
    start = end = first.end()
    line = opening.end()
    while line < len(text):
        stripped = _INDENT.match(text, line)
        assert stripped is not None
        ends = line_end(text, line)
        if stripped.end() < ends:
            if stripped.end() - line <= indent:
                break
            end = ends
        line = text.find("\n", ends) + 1 or len(text)
    return (start, end) if end > start else None


def _below(text: str, at: int, name: _Name, label: str) -> Span | None:
    """Return the value that stands alone in the line below its name, indented deeper."""
    end = line_end(text, at)
    column = at - text.rfind("\n", 0, at) - 1
    value = text[at : min(end, at + 400)].rstrip()
    if (
        column <= _indent(text, name)
        or not name.begins_line
        or " " in value
        or value.endswith(":")
    ):
        return None
    if (
        is_ordinary(value, name.text)
        or is_placeholder(text, at)
        or re.match(r"[\w.-]+:", value)
    ):
        return None
    return _span(text, at, end, label)


# ------------------------------------------------------------------ name, space, value

_DIRECTIVE_ENDS = re.compile(
    r"[\"']?[ \t]*;?[ \t]*(?:#[^\n]*)?(?:\r?\n|\r?\Z)|[\"'][ \t]*;"
)
IN_NETRC = ("machine", "login", "default", "account")
_NETRC = re.compile(
    r"(?:\b(?:machine|login|default|account)\b[^\n]*|\b(?:machine|default)\s[^\n]*\n[^\n]*)\Z"
)


def _spaced(text: str, found: re.Match[str], name: _Name, label: str) -> Span | None:
    """Return the secret behind a name and a space: `PASSWORD 'x'`, `requirepass x`, `password is x`."""
    at = found.end()
    if is_placeholder(text, at):
        return None
    start, end, quoted = value_at(text, at)
    if text.startswith("[", start) and IS_MARKER.fullmatch(text, start, end):
        return Span(end, end, label)
    value = text[start : min(end, start + 400)]
    if cipher := _CIPHER.match(text, at):  # of a router: password 7 0822455D0A16
        return Span(*cipher.span(1), label)
    if not value or is_ordinary(value, name.text):
        return None
    if name.text.startswith("-"):  # an option
        return None if value.startswith("-") else Span(start, end, label)
    before = text[max(name.start - 1, 0) : name.start]
    if before in ("/", "'") or before == "`":
        return None
    if quoted:
        if found["close"] and name.text.lower() not in ("requirepass", "masterauth"):
            return None
        if text[start - 1] in "'$" and label == "password" and not found["verb"]:
            return Span(start, end, label)
        if text.startswith('";', end) and not is_sentence(value):
            return Span(start, end, label)
        if label == "password" or found["verb"]:
            return Span(start, end, label) if looks_random(value) else None
        return None
    if found["close"] and before not in ("'", '"'):
        return None
    if found["verb"]:
        return Span(start, end, label) if looks_random(value) else None
    compound = len(name.text) > 8 and name.text.lower() not in (
        "passphrase",
        "credential",
        "credentials",
    )
    if (
        name.begins_line
        and (compound or "\t" in found["space"])
        and not value.endswith(("|", ","))
        and _DIRECTIVE_ENDS.match(text, end)
    ):
        return Span(start, end, label)
    if (label == "password" or compound) and looks_random(value):
        return Span(start, end, label)
    line = text[max(name.start - 200, 0) : name.start]
    if label == "password" and any(word in line for word in IN_NETRC):
        return Span(start, end, label) if _NETRC.search(line) else None
    return None


_CIPHER = re.compile(r"\d ((?=\S*\d)(?=\S*[A-Za-z$])\S{6,})")

# ------------------------------------------------------------------ the name in an element or member of its own


def _name_first(text: str) -> Iterator[Span]:
    at = 0
    while found := _NAME_FIRST.search(text, at):
        at = found.start() + 1
        label = label_of(found["name"])
        value = _ITS_VALUE.match(text, found.end()) if label else None
        if label is None or value is None:
            continue
        at = found.end("name")
        name = _Name(found["name"], found.start("name"), 0, False)
        span = _beside(text, value.end(), name, label)
        if span is not None:
            at = span.end
            if span.start < span.end:
                yield span


def _tags(text: str) -> Iterator[Span]:
    """Yield what stands in elements of XML that are named so."""
    for found in _TAG.finditer(text):
        attribute = _ATTRIBUTE.search(found[0])
        name = attribute["name"] if attribute else found[found.lastgroup or 0]
        label = label_of(name.rpartition(":")[2])
        end = text.find("<", found.end(), found.end() + 4000)
        value = (
            text[found.end() : end].removesuffix("]]>").rstrip()
            if label and end > 0
            else ""
        )
        if (
            label
            and value
            and not is_ordinary(value, name)
            and not is_placeholder(text, found.end())
        ):
            if not IS_MARKER.fullmatch(value):
                yield Span(found.end(), found.end() + len(value), label)


_VALUE_FIRST = re.compile(
    r"[vV]alue\\{0,8}[\"']?\s{0,3}[:=]\s{0,3}(?:(?P<quote>\\{0,8}[\"'])(?P<quoted>[^\"'\n]{1,500}?)(?P=quote)|(?P<plain>[^\s\"',\\]{1,500}))"
    rf"[\s,;]{{1,40}}\\{{0,8}}[\"']?(?:[nN]ame|[kK]ey)\\{{0,8}}[\"']?\s{{0,3}}[:=]\s{{0,3}}\\{{0,8}}[\"']?{_NAME}"
)


def _value_first(text: str) -> Iterator[Span]:
    for found in _VALUE_FIRST.finditer(text):
        label = label_of(found["name"])
        kind = "quoted" if found["quote"] else "plain"
        if (
            label
            and not IS_MARKER.fullmatch(found[kind])
            and not is_ordinary(found[kind], found["name"])
        ):
            yield Span(*found.span(kind), label)
