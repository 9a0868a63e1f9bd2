"""Clean, shorten and delimit text from outside, so that it cannot act on a terminal, page or prompt.

`clean` treats all text that enters. `shorten` keeps text of a prompt within a budget, and `fence` delimits
it. `markdown_escape` is for text that is shown as Markdown; `ticket_line` and `component_name` are for the
fields of a ticket.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

LONGEST_LINE = 4000
"""Default length, in characters, of the longest line that `clean` returns."""

# ------------------------------------------------------------------ harmless

_TERMINAL = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*+[ -/]*+[@-~]?"  # CSI: colours, cursor
    # OSC, DCS, SOS, PM, APC with their payload; an open one, or one with another in it, loses only its beginning
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])(?:[^\x07\x1b\x9c\x9d\x90\x98\x9e\x9f\n]*+(?:\x07|\x1b\\|\x9c))?"
    r"|\x1b[ -/]*+[0-~]?"
)
_RETURNS = re.compile(r"\r\n?")
_SURROGATES = re.compile("[\ud800-\udfff]")
_CONTROLS = re.compile("[\x01-\x08\x0b-\x1f\x7f]")
# C1, line separators, and everything that is there without being seen: directions (bidi),
# zero widths, fillers, tags, and variation selectors beyond the two that emoji need.
_IS_UNSEEN = (
    "\x80-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_UNSEEN = re.compile(f"([{_IS_UNSEEN}])\\1*+")
_PIECE = 50_000  # characters that are cleaned at a time, so that other threads run in between
_SHORT = 1000  # characters that are cleaned without a look at whether they need it


def clean(text: str | bytes, *, longest: int | None = LONGEST_LINE) -> str:
    """Return foreign text without anything that acts on a terminal or a page, or that misleads a reader.

    Invalid UTF-8 and lone surrogates become U+FFFD, terminal escapes and NUL go, other
    control characters become their pictures (␇), what cannot be seen becomes ``<U+202E>``.
    Line feeds and tabs stay; other line ends become line feeds. Lines of more than `longest` characters lose
    their middle, with a note of how much; None leaves them whole, for what is yet to be
    redacted.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    if not (text.isascii() and text.isprintable()):  # else there is nothing to do
        text = "".join(map(_cleaned, _pieces(text)))
    return text if longest is None else cut_lines(text, longest)


def _pieces(text: str) -> Iterator[str]:
    """Yield the lines of a text, some at a time."""
    at = 0
    while len(text) - at > _PIECE and (end := text.find("\n", at + _PIECE)) >= 0:
        yield text[at : end + 1]
        at = end + 1
    yield text[at:] if at else text


def _cleaned(text: str) -> str:
    if len(text) > _SHORT and not _is_odd(text):
        return text
    text = _RETURNS.sub("\n", text)
    text = _TERMINAL.sub("", text).replace("\0", "")
    text = _SURROGATES.sub("\ufffd", text)
    return show_unseen(_CONTROLS.sub(_picture, text))


def _is_odd(text: str) -> bool:
    """Return whether a text has anything that `clean` takes out or replaces."""
    try:
        return _odd()(text.encode()) is not None
    except UnicodeEncodeError:  # a surrogate
        return True


@functools.cache
def _odd() -> Callable[[bytes], object]:
    import re2  # faster than Python's engine by far

    found: Callable[[bytes], object] = re2.compile(
        rf"[\x00-\x08\x0b-\x1f\x7f{_IS_UNSEEN}]"
    ).search
    return found


def show_unseen(text: str) -> str:
    """Return text in which every character that cannot be seen is shown by its number: ``<U+202E>``.

    These are the directions of bidirectional text, zero-width characters, fillers and tags: with them
    source code can look like other code (CVE-2021-42574).
    """
    return _UNSEEN.sub(_code_point, text)


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    return "\u2421" if code == 0x7F else chr(0x2400 + code)


def _code_point(match: re.Match[str]) -> str:
    run = len(match[0])
    return f"<U+{ord(match[1]):04X}{f' ×{run}' if run > 1 else ''}>"


def cut_lines(text: str, longest: int = LONGEST_LINE) -> str:
    """Return `text` with every line cut to at most `longest` characters (60 at least)."""
    if len(text) <= longest:
        return text
    return "\n".join(_cut_line(line, longest) for line in text.split("\n"))


def _cut_line(line: str, longest: int) -> str:
    """Return the beginning of a line, three quarters of what stays, and its end."""
    if len(line) <= longest:
        return line
    kept = max(longest, 60) - 40
    head = kept * 3 // 4
    tail = kept - head
    return f"{line[:head]} [… {len(line) - kept:,} characters cut …] {line[-tail:]}"


def one_line(text: str | bytes, limit: int = 200) -> str:
    """Return cleaned text on one line of at most `limit` characters."""
    flat = " ".join(clean(text, longest=None).split())
    return flat if len(flat) <= limit else flat[: max(limit - 1, 0)].rstrip() + "…"


# ------------------------------------------------------------------ short enough

_LOWER = b"abcdefghijklmnopqrstuvwxyz "
_UPPER = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BEYOND_ASCII = bytes(range(128, 256))


def estimate_tokens(text: str) -> int:
    """Return how many tokens Claude counts in `text`, rather too many than too few.

    No tokenizer is needed. Anthropic's glossary gives 3.5 characters of English a token, and
    newer tokenizers take up to 35% more tokens (the notes on Opus 4.7): 2.6 characters, for
    lower-case letters and spaces. Digits, punctuation and line ends, of which logs and code
    are full, mostly stand alone or in pairs: 1.3. Capitals are half identifiers, half
    base64: 1.5. Beyond ASCII two bytes of UTF-8 are a token: 1.5 for a CJK character, 2 for
    an emoji. No tokenizer on bytes can need more than one token a byte.
    """
    return math.ceil(_weight(text))


def _weight(text: str) -> float:
    """Return the estimate before rounding: the weight of joined texts is the sum of their weights."""
    data = text.encode("utf-8", "surrogatepass")
    size = len(data)
    lower = size - len(data.translate(None, _LOWER))
    upper = size - len(data.translate(None, _UPPER))
    beyond = 0 if size == len(text) else size - len(data.translate(None, _BEYOND_ASCII))
    rest = size - lower - upper - beyond
    return lower / 2.6 + upper / 1.5 + beyond / 2 + rest / 1.3


_COMPARED = 1_000_000  # characters at each end that `shorten` compares line by line
_SHAPED = 300  # characters of a line that determine its shape
_VARYING = re.compile(r"\s+|0x[0-9a-fA-F]+|[0-9a-fA-F-]{8,}|\d+")
_TROUBLE = re.compile(
    r"(?i)\b(?:error|fatal|panic|crit|critical|fail|failed|failure|exception|traceback"
    r"|denied|refused|timeout|timed out|deadlock|killed|oom|out of memory|corrupt\w*"
    r"|abort\w*|cannot|unable|terminat\w*|crash\w*|no space)\b"
)
_CUT_NOTE = re.compile(r"\[… ([\d,]{1,20}) lines? cut …\]")


def shorten(text: str, tokens: int) -> str:
    """Return `text` within a budget of tokens: its head, its tail, and its most unusual lines.

    A line is unusual when few lines have its shape (digits, hex and ids do not count), more so if it
    has a word such as "error". The order stays. Where lines are left out, a line says how many.
    """
    budget = float(tokens)
    if _weight(text) <= budget:
        return text
    lines = _compared_lines(text)
    share = budget * 0.9 / min(len(lines), 6)
    lines = [_fitted(line, share) for line in lines]
    kept = _select_lines(lines, budget)
    shortened = "\n".join(_with_notes(lines, kept))
    return shortened if _weight(shortened) <= budget else _fitted(text, budget)


def _compared_lines(text: str) -> list[str]:
    """Return the lines of a text; of a huge one, those of its two ends with a note between."""
    if len(text) <= 2 * _COMPARED:
        return text.split("\n")
    start = text.rfind("\n", 0, _COMPARED)
    end = text.find("\n", len(text) - _COMPARED)
    if start < 0 or end < 0 or start == end:
        return text.split("\n")
    note = _note(text.count("\n", start + 1, end) + 1)
    return [*text[:start].split("\n"), note, *text[end + 1 :].split("\n")]


def _note(lines: int) -> str:
    return f"[… {lines:,} line{'s' if lines != 1 else ''} cut …]"


def _fitted(line: str, budget: float) -> str:
    """Return a line within a budget, its middle cut if necessary; empty if not even a note fits."""
    if _weight(line) <= budget:
        return line
    longest = min(len(line) - 1, int(budget * 2.7))
    while longest >= 60:
        cut = _cut_line(line, longest)
        if _weight(cut) <= budget:
            return cut
        longest = longest * 3 // 4
    return "…" if budget >= 2 else ""


def _select_lines(lines: Sequence[str], budget: float) -> set[int]:
    """Return which lines stay: a quarter of the budget from the head, a third from the tail, then unusual ones."""
    gap = _weight(_note(10**9) + "\n")
    costs = [_weight(line) + 1 for line in lines]
    head, spent = _run(range(len(lines)), costs, budget * 0.25)
    tail, more = _run(range(len(lines) - 1, len(head) - 1, -1), costs, budget * 0.35)
    left = budget - spent - more - gap
    kept = {*head, *tail}
    middle = range(len(head), len(lines) - len(tail))
    for index in _by_rarity(lines, middle):
        price = costs[index] + gap
        if price <= left:
            kept.add(index)
            left -= price
        elif left < gap:
            break
    return kept


def _run(
    indexes: range, costs: Sequence[float], budget: float
) -> tuple[list[int], float]:
    """Return as many indexes, from the first one on, as the budget allows, and their cost."""
    taken: list[int] = []
    spent = 0.0
    for index in indexes:
        if spent + costs[index] > budget:
            break
        taken.append(index)
        spent += costs[index]
    return taken, spent


def _by_rarity(lines: Sequence[str], middle: range) -> list[int]:
    """Return the lines of the middle, the most unusual first: one of each shape before a second one."""
    shapes = Counter(_shape(line) for line in lines)
    seen: Counter[str] = Counter()
    ranked: list[tuple[int, float, int]] = []
    for index in middle:
        line = lines[index]
        if not line.strip() or _CUT_NOTE.fullmatch(line):
            continue
        shape = _shape(line)
        weight = 16 if _TROUBLE.search(line, 0, _SHAPED) else 1
        ranked.append((seen[shape], shapes[shape] / weight, index))
        seen[shape] += 1
    return [index for _, _, index in sorted(ranked)]


def _shape(line: str) -> str:
    """Return the shape of a line: digits, hex, ids and spacing do not count."""
    return _VARYING.sub("#", line[:_SHAPED])


def _with_notes(lines: Sequence[str], kept: set[int]) -> Iterator[str]:
    missing = 0
    for index, line in enumerate(lines):
        if index not in kept:
            earlier = _CUT_NOTE.fullmatch(line)
            missing += int(earlier[1].replace(",", "") or 0) if earlier else 1
            continue
        if missing:
            yield _note(missing)
            missing = 0
        yield line
    if missing:
        yield _note(missing)


# ------------------------------------------------------------------ who wrote it

_REPORTED, _END = "\ufdd0", "\ufdd1"  # noncharacters, "for internal use" (Unicode 23.7)
_CUTTABLE = 40  # characters of a foreign text that is looked for as a whole
_MARKS = re.compile(f"[{_REPORTED}{_END}]")


def reported(text: str) -> str:
    """Return text with marks that say: a client wrote this (a query, a name, a message).

    For the text of evidence sources only. The gatherer turns the marks into spans of the evidence. The
    text cannot end its own mark.
    """
    inner = _MARKS.sub("", text).strip().replace("\n", f"{_END}\n{_REPORTED}")
    return f"{_REPORTED}{inner}{_END}" if inner else ""


def mark_reported(text: str, foreign: Iterable[str]) -> str:
    """Return one line of text with marks on each part of it that is one of these foreign texts.

    Of a long one, which may have been cut, the beginning marks the rest of the line.
    """
    known = sorted({one for one in foreign if len(one) > 1}, key=len, reverse=True)
    if not known:
        return text
    parts = (
        re.escape(one) if len(one) <= _CUTTABLE else f"{re.escape(one[:_CUTTABLE])}.*"
        for one in known
    )
    return re.sub(
        rf"(?<!\w)(?:{'|'.join(parts)})(?!\w)", lambda match: reported(match[0]), text
    )


def mark_matches(text: str, patterns: Iterable[re.Pattern[str]]) -> str:
    """Return text with marks of `reported` on what matches a pattern: on its group, if it has one."""
    spans = [
        match.span(min(pattern.groups, 1))
        for pattern in patterns
        for match in pattern.finditer(text)
    ]
    return put_marks(text, spans)


def take_marks(text: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Return a text without its marks of `reported`, and the spans that they marked.

    A mark holds within its line only. Of one whose other end was cut away the line's rest is marked.
    """
    if not _MARKS.search(text):
        return text, ()
    spans: list[tuple[int, int]] = []
    rows: list[str] = []
    at = 0
    for row in text.split("\n"):
        plain = _MARKS.sub("", row)
        spans += [(at + start, at + end) for start, end in _marked(row)]
        rows.append(plain)
        at += len(plain) + 1
    return "\n".join(rows), tuple(spans)


def _marked(row: str) -> Iterator[tuple[int, int]]:
    """Yield the marked spans of a line, as positions in the line without marks."""
    at, begun = 0, -1
    if row.find(_END) >= 0 and not 0 <= row.find(_REPORTED) < row.find(_END):
        begun = 0
    for character in row:
        if character == _REPORTED:
            begun = at if begun < 0 else begun
        elif character == _END:
            if begun >= 0:
                yield begun, at
            begun = -1
        else:
            at += 1
    if begun >= 0:
        yield begun, at


def put_marks(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """Return a text with marks of `reported` around the spans, which may overlap."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if merged and start <= merged[-1][1]:
            start, end = merged[-1][0], max(end, merged.pop()[1])
        merged.append((start, end))
    parts: list[str] = []
    at = 0
    for start, end in merged:
        inner = text[start:end].replace("\n", f"{_END}\n{_REPORTED}")
        parts += [text[at:start], f"{_REPORTED}{inner}{_END}"]
        at = end
    return "".join([*parts, text[at:]])


# ------------------------------------------------------------------ in its place


_TAG = re.compile(
    r"[<＜﹤](?!U\+[0-9A-F]{4})(?:\s*(?=[\\/／∕⁄⧸!?|])|(?=[^\W\d])"
    r"|\s+(?=[^\W\d][\w:.-]{0,99}(?:\s*[/>＞]|\s+[\w:-]{1,99}\s*=)))"
)
# These look like a "<", but the check of quotes tells them from it.
_LIKE_TAG = re.compile(r"[‹〈⟨〈❮❰≺⟪](?=\s*[\\/／∕⁄⧸!?|]|[^\W\d]\w)")


def fence(text: str, tag: str, **attributes: str) -> str:
    """Return `text` between ``<tag …>`` and ``</tag>`` for a prompt, without any live tag in it.

    What could open or close a tag of any name gets a backslash in place of the white space behind its "<".
    The check of quotes leaves that out again. Attribute values become one line without markup.
    """
    written = "".join(
        f' {name}="{_attribute(value)}"' for name, value in attributes.items()
    )
    inner = text
    if "<" in text or not text.isascii():  # else there is nothing to do
        inner = _LIKE_TAG.sub(r"\g<0>\\", _TAG.sub(r"<\\", text))
        inner = re.sub(rf"(?i)<\s+(?={re.escape(tag)})", r"<\\", inner)
    return f"<{tag}{written}>\n{inner}\n</{tag}>"


def _attribute(value: str) -> str:
    return (
        one_line(value, 300)
        .replace("&", "&amp;")
        .replace('"', "&quot;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
    )


# It begins where a word does, or a long word would be searched from each of its characters.
_ADDRESS = re.compile(r"(?<!\S)\S*(?:://|@|(?i:www)\.|(?i:mailto|xmpp):)\S*")
_SPECIAL = (
    r"\\(?=[!-/:-@\[-`{-~]|$)"  # what a backslash would escape, and a hard break
    r"|`|(?<!\s)\*|\*(?!\s)|(?<![^\W_])_|_(?![^\W_])"
    r"|\](?=[(\[]|\Z)|\[(?=\^|[ xX]\])"  # links, footnotes, boxes
    r"|<(?=[a-zA-Z/!?])|&(?=#?\w+;)"
)
_LINE_START = re.compile(
    r"(?m)^[^\S\n]*(#{1,6}(?=\s|$)|[-+*](?=\s|$)|>|\[(?=[^\0]*\]:)|[-=:](?=[-=:\s]*$)|\d{1,9}(?=[.)](?:\s|$)))?"
)


def markdown_escape(text: str) -> str:
    """Return text that Markdown (CommonMark or GitHub's) shows unchanged, without anything live.

    It becomes no image, link, HTML, heading, list, quote, table or formula. What a renderer would link by
    itself (addresses with "://", "@" or "www.") becomes code, which is not linked.
    Indentation is lost.
    """
    text = _unindented(clean(text))
    # Alone they are nothing, nor without one that can close: ~12 s to ~15 s, $5; and a table has two lines.
    paired = "".join(
        one for one in "~$" if text.count(one) > 1 and re.search(rf"\S\{one}", text)
    )
    also = paired + ("|" if "\n" in text else "")
    special = re.compile(f"{_SPECIAL}|[{also}]" if also else _SPECIAL, re.MULTILINE)
    parts: list[str] = []
    position = 0
    for match in _ADDRESS.finditer(text):
        parts.append(special.sub(r"\\\g<0>", text[position : match.start()]))
        parts.append(code_span(match[0]))
        position = match.end()
    parts.append(special.sub(r"\\\g<0>", text[position:]))
    return _LINE_START.sub(_escape_start, "".join(parts))


def _unindented(text: str) -> str:
    return "\n".join(line.strip() for line in text.split("\n"))


def _escape_start(match: re.Match[str]) -> str:
    start = match[1] or ""
    return f"{start}\\" if start.isdigit() else f"\\{start}" if start else ""


def code_span(text: str) -> str:
    """Return `text`, one line, as inline code that it cannot end."""
    ticks = "`" * (longest_run(text, "`") + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def longest_run(text: str, character: str) -> int:
    """Return the length of the longest run of `character`."""
    runs = re.findall(f"{re.escape(character)}+", text)
    return max(map(len, runs), default=0)


# ------------------------------------------------------------------ fields of a ticket

COMPONENT_LENGTH = 200


def ticket_line(text: str, limit: int = 300) -> str:
    """Return `text` on one line, without control characters, of at most `limit` characters."""
    return one_line(text[: limit * 4], limit)


def component_name(text: str) -> str:
    """Return `text` as the name of a component; two long names stay different when they are cut."""
    clean = ticket_line(text, len(text) + 1)
    if len(clean) <= COMPONENT_LENGTH:
        return clean
    import hashlib  # loads OpenSSL

    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:12]
    return f"{clean[: COMPONENT_LENGTH - 14]}…~{digest}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return the rows as lines with aligned columns."""
    cells = [list(header)] + [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in cells
    )
