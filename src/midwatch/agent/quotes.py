"""Quotes: where a quote stands in a piece of evidence, who wrote it, and whether it says anything (pure).

Before the comparison both texts are put into NFKC with plain quotes and dashes, backslashes go (the
prompt inserts some, so that no tag in evidence is live) and any white space becomes one space; letter
case counts. A quote begins and ends where a word or number does: "12" is not found in "3123", "12.5"
or "1,012". An ellipsis in a quote stands for up to `NEARBY` characters of one line, without a negation
or a note of what was cut; and a quote does not begin right behind a negation that it leaves out.

A quote says something when more is left of it than dates, times, notes of what was cut, marks of what
was redacted, and the name of a field without its value.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice

from midwatch.model import Evidence, Origin
from midwatch.text import put_marks, take_marks

NEARBY = 600
"""Characters that an ellipsis in a quote may stand for."""
SHORTEST = 4
"""Least letters and digits of a quote that is compared."""
LONGEST = 8000
"""Most characters of a quote that is compared; a longer one does not check."""
UNVERIFIED = "not verified: "
"""Begins a line of an earlier diagnosis whose claims did not check: quoting it proves nothing."""
_TRIES = 2000  # places compared per part: a bound for hostile repetition

TOO_SHORT = "the quote is too short to be checked"
TOO_LONG = "the quote is too long"
NOT_FOUND = "the quote is not in that evidence"
EMPTY = "the quote says nothing"
TURNED = "the quote leaves out a negation"
UNPROVEN = "an earlier diagnosis that was not verified proves nothing"

# ------------------------------------------------------------------ the form that is compared

_PLAIN = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′‹›", "'"),
        **dict.fromkeys("“”„‟«»", '"'),
        **dict.fromkeys("‐‑‒–—―−", "-"),
    }
)
_ESCAPES = re.compile(r"\\[nrt](?![^\W_])|<[\s\\]+|\\")
_ELLIPSIS = re.compile(r"\s?(?:\[\.{3}\]|\(\.{3}\)|\.{3,})\s?")
_AROUND = " \t\n'\"`*|>"


def normalise(text: str) -> str:
    """Return the form in which quotes are compared."""
    plain = unicodedata.normalize("NFKC", text).translate(_PLAIN)
    return " ".join(_ESCAPES.sub(_unescaped, plain).split())


def _unescaped(match: re.Match[str]) -> str:
    return "<" if match[0].startswith("<") else " " if len(match[0]) > 1 else ""


# ------------------------------------------------------------------ what says nothing

_CUT = re.compile(
    r"\[\.{3} [\d,]{1,20} \w+ cut \.{3}\]|\.{3} and [\d,]{1,20} more\b|\[\.{3}\]"
)
_MUTE = re.compile(
    rf"{_CUT.pattern}|\[redacted:[\w-]{{1,40}}\]|<U\+[0-9A-F]{{4,6}}(?: ×\d+)?>"
)
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}\.?"
_TIMES = re.compile(
    # What begins with a digit, with a letter, with white space: most places are none of these.
    r"(?i)\b(?:(?=\d)(?:\d{4}-\d\d?-\d\d?(?:t(?=\d))?|\d{1,4}/(?:\d{1,2}|[a-z]{3})/\d{2,4}(?::(?=\d))?"
    r"|\d{1,2}\.\d{1,2}\.\d{4}\b|\d{8}t\d{4,6}z?"
    r"|\d{1,2}:\d\d(?::\d\d(?:[.,]\d{1,9})?)?z?(?:\s?[+-]\d\d:?(?:\d\d)?\b)?"
    rf"|\d{{1,2}}(?:st|nd|rd|th)?\.?[ -]{_MONTH}(?:[ -]\d{{4}})?\b"
    r"|(?:19|20)\d\d\b|1[5-9]\d{8}(?:\.\d+|\d{3})?\b)"
    rf"|(?=[a-z])(?:{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?\b(?:,? (?:19|20)\d\d\b)?"
    r"|(?:utc|gmt|ce?s?t|z|am|pm|(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?)\b\.?))"
    r"|(?<=:\d\d)\s[+-]\d{4}\b"
)
_IDLE = re.compile(
    r"(?i)\b(?:at|on|in|since|from|to|until|till|by|between|before|after|and|or|the|a|an|is|was|of)\b"
)
_FIELD_START = re.compile(r"(?:^|[,;|{(\[\t]|\b\w+=\S*)[\s'\"*#>|-]*$")
_FIELD_WORDS = 5
_COLUMNS = re.compile(r"\S(?: {2,}|\t| ?[|+] ?)\S")
_DENIES = re.compile(r"(?i)\b(?:not|cannot|\w+n't|unable)\b")

# ------------------------------------------------------------------ what turns a sentence round

_NEGATION = re.compile(
    r"(?i)\b(?:not|no|never|none|nothing|no ?body|nor|neither|without|cannot|\w+n't|unless|except|hardly|barely"
    r"|instead|former(?:ly)?|non|false|off|zero|disabled|in(?:valid|active|complete)|den(?:y|ied|ies)"
    r"|imposs\w*|untrue|rather|far from|un(?:able|available|reachable|likely|known|changed|healthy)|dis(?:connected|appeared)"
    r"|(?:refus|reject|fail|stop|ceas|exclud|prevent|avoid|lack|miss|absen)\w*"
    r"|nicht|kein\w*|nie|ohne|pas|jamais|sans|nunca|sin|non|niet|geen)\b|[不没沒未无無非]|\b0$"
)
_BEFORE = re.compile(
    r"(?i)(?:\b(?:not|no|never|cannot|\w+n't|without|no longer|not yet|neither|none of|hardly|barely"
    r"|instead of|rather than|far from|(?:absence|lack|free) of|unable to|fail(?:s|ed)? to|refus(?:es|ed) to"
    r"|(?:stop|ceas)(?:s|es|ped|ed)?(?: to)?|(?:no (?:evidence|sign|indication|proof)|no ?(?:one|body) \w+)(?: that| of| for)?"
    r"|(?:false|untrue|impossible|wrong|unlikely|denies|denied) that|nicht|kein\w*|nie|pas)(?: (?:any|an?|the))?"
    r"|[不没沒未无無非])[\s'\"(]*$"
)
_OF_NONE = re.compile(r"(?<![\d.,])0 of $")
_AFTER = re.compile(
    r"(?i)[\"'`)]*(?:\s?[:=]\s?[\"']?(?:not|(?:no|none|never|false|off|0)\b(?![.,:/-]?\w|%|\s[a-z]))\b|\s(?:not|never|no longer)\b)"
)

Span = tuple[int, int]


class QuotableText:
    """The text of a piece of evidence, normalised, with its lines and what in it others wrote."""

    def __init__(self, evidence: Evidence) -> None:
        self._origin = evidence.origin
        self._starts: list[int] = []
        self._lines: list[int] = []
        self._reported: list[Span] = []
        self._unproven: list[Span] = []
        self._mute: list[Span] = []
        self._text = self._read(evidence)
        self._mute += [match.span() for match in _MUTE.finditer(self._text)]
        self._mute.sort()
        self._times = [match.span() for match in _TIMES.finditer(self._text)]

    def _read(self, evidence: Evidence) -> str:
        rows: list[str] = []
        at = 0
        lines = put_marks(evidence.text, evidence.reported).split("\n")
        for number, (above, row, following) in enumerate(
            zip(["", *lines], lines, [*lines[1:], ""], strict=False)
        ):
            plain, reported = take_marks(normalise(row))
            if not plain:
                continue
            if _is_header(above, row, following):
                self._mute.append((at, at + len(plain)))
            self._starts.append(at)
            self._lines.append(number)
            self._reported += [(at + start, at + end) for start, end in reported]
            if self._origin is Origin.EARLIER and plain.startswith(UNVERIFIED):
                self._unproven.append((at, at + len(plain)))
            rows.append(plain)
            at += len(plain) + 1
        return " ".join(rows)

    @property
    def text(self) -> str:
        return self._text

    def check(self, quote: str) -> tuple[str, Origin]:
        """Return why a quote does not check, or "", and who wrote what it quotes."""
        reason, origin, _ = self._best(quote)
        return reason, origin

    def place(self, quote: str) -> list[tuple[int, str]]:
        """Return where a quote stands: numbers of lines of the evidence, from 0, and what each has of it, normalised.

        It is the place that `check` judges; empty without one.
        """
        _, _, spans = self._best(quote)
        return [part for span in spans for part in self._by_line(span)]

    def _best(self, quote: str) -> tuple[str, Origin, Sequence[Span]]:
        """Return why a quote does not check, or "", who wrote what it quotes, and where that stands."""
        if len(quote) > LONGEST:
            return TOO_LONG, self._origin, ()
        forms = list(_forms(normalise(quote)))
        if not forms or _letters(forms[0]) < SHORTEST:
            return TOO_SHORT, self._origin, ()
        reason, origin, place = NOT_FOUND, self._origin, list[Span]()
        for form in forms:
            for spans in islice(self._places_of(form), _TRIES // 20):
                why, wrote = self._judged(spans)
                if not why and wrote is self._origin:
                    return "", wrote, spans
                if not why or reason == NOT_FOUND:
                    reason, origin, place = why, wrote, spans
            if reason != NOT_FOUND:
                break
        return reason, origin, place

    def _by_line(self, span: Span) -> Iterator[tuple[int, str]]:
        start, end = span
        while start < end:
            row = bisect_right(self._starts, start) - 1
            _, row_end = self._row(start)
            yield self._lines[row], self._text[start : min(end, row_end)]
            start = row_end + 1

    # ------------------------------------------------------------------ what a place says

    def _judged(self, spans: Sequence[Span]) -> tuple[str, Origin]:
        """Return what is wrong with a place of a quote, or "", and who wrote it."""
        if not self._says(spans, []):
            return EMPTY, self._origin
        if self._unproven and not self._says(spans, self._unproven):
            return UNPROVEN, self._origin
        if self._is_turned(spans):
            return TURNED, self._origin
        if self._reported and self._origin is Origin.SYSTEM:
            if not self._says(spans, self._reported):
                return "", Origin.REPORTED
        return "", self._origin

    def _says(self, spans: Sequence[Span], without: Sequence[Span]) -> bool:
        """Return whether the place says something besides what stands in `without`, times and field names."""
        muted = (self._mute, without)
        timed = "".join(self._kept(one, *muted, self._times) for one in spans)
        rest = _IDLE.sub(" ", timed)
        if _letters(rest) < SHORTEST - 1 and not any(map(str.isdigit, rest)):
            return False
        return not all(self._is_name(self._kept(one, *muted), one) for one in spans)

    def _kept(self, span: Span, *without: Sequence[Span]) -> str:
        """Return the text of a span without those in `without`, lists in the order of the text."""
        start, end = span
        parts: list[str] = []
        for skipped, until in sorted(
            one for spans in without for one in _overlapping(spans, span)
        ):
            parts.append(self._text[start : max(skipped, start)])
            start = min(max(until, start), end)
        return "\n".join([*parts, self._text[start:end]])

    def _is_name(self, kept: str, span: Span) -> bool:
        """Return whether what is kept is only names of fields, whose values follow or are left out."""
        *before, last = re.split(r"[,;]", kept.strip(_AROUND))
        if any(map(str.isdigit, kept)) or _DENIES.search(kept):
            return False
        return all(map(_is_label, before)) and (
            _is_label(last) or (not before and self._is_followed(last, span))
        )

    def _is_followed(self, name: str, span: Span) -> bool:
        """Return whether ":" or "=" and so a value follows what can be the name of a field."""
        if len(name.split()) > _FIELD_WORDS or re.search("[:=]", name):
            return False
        after = self._text[span[1] : span[1] + 4].lstrip("'\"` )")
        row = self._text[self._row(span[0])[0] : span[0]]
        return after.startswith("=") or (
            after.startswith(":") and bool(_FIELD_START.search(row))
        )

    def _is_turned(self, spans: Sequence[Span]) -> bool:
        start, _ = self._row(spans[0][0])
        before = self._text[max(start, spans[0][0] - 40) : spans[0][0]]
        of_none = _OF_NONE.search(before) and self._text[spans[0][0]].isdigit()
        denied = is_denied(before) or of_none
        if not denied and not self._is_denied_after(spans[-1][1]):
            return False
        return not any(_NEGATION.search(self._text[a:b]) for a, b in spans)

    def _is_denied_after(self, at: int) -> bool:
        """Return whether the line goes on with a negation, as in "waits for a lock: no"."""
        return at < self._row(at)[1] and bool(_AFTER.match(self._text, at))

    # ------------------------------------------------------------------ where a quote stands

    def _places_of(self, quote: str) -> Iterator[list[Span]]:
        """Yield each place of a normalised quote, which may have ellipses."""
        for span in self._positions(quote, 0, len(self._text)):
            yield [span]
        parts = [part for part in _ELLIPSIS.split(quote) if part]
        if not parts or parts == [quote]:
            return
        if any(_letters(part) < SHORTEST - 1 for part in parts):
            return
        for first in self._positions(parts[0], 0, len(self._text)):
            if (spans := self._follow(first, parts[1:])) is not None:
                yield spans

    def _follow(self, first: Span, parts: Sequence[str]) -> list[Span] | None:
        """Return where the parts follow the first one, each in the same line and near the one before."""
        spans = [first]
        for part in parts:
            end = spans[-1][1]
            _, row_end = self._row(max(end - 1, 0))
            after = next(self._positions(part, end, end + NEARBY + len(part)), None)
            if after is None or after[0] > row_end:
                return None
            skipped = self._text[end : after[0]].strip()
            if _NEGATION.search(skipped) or _CUT.search(skipped):
                return None
            spans.append(after)
        return spans

    def _row(self, at: int) -> Span:
        """Return the line that this position is in."""
        index = bisect_right(self._starts, at)
        start = self._starts[index - 1] if index else 0
        end = self._starts[index] - 1 if index < len(self._starts) else len(self._text)
        return start, end

    def _positions(self, part: str, start: int, stop: int) -> Iterator[Span]:
        """Yield where `part` stands between word and number boundaries."""
        for _ in range(_TRIES):
            at = self._text.find(part, start, stop)
            if at < 0:
                return
            end = at + len(part)
            if _is_boundary(self._text, at) and _is_boundary(self._text, end):
                yield at, end
            start = at + 1


def _overlapping(spans: Sequence[Span], span: Span) -> Iterator[Span]:
    """Yield those of the spans, which are in order, that overlap one."""
    at = max(bisect_right(spans, span) - 1, 0)
    while at < len(spans) and spans[at][0] < span[1]:
        if spans[at][1] > span[0]:
            yield spans[at]
        at += 1


def _is_header(above: str, row: str, following: str) -> bool:
    """Return whether a line has the names of the columns below it: the first one that is apart in columns."""
    if _COLUMNS.search(above) or re.search(r"[\d:=]", row):
        return False
    if not _COLUMNS.search(row) or not _COLUMNS.search(following):
        return False
    return re.search(r"\d", following) is not None or not _letters(following)


def _is_label(part: str) -> bool:
    """Return whether a part of a line is empty, or a name whose value is missing or was left out."""
    name, sign, value = re.sub("[:=]", ":", part, count=1).partition(":")
    if sign:
        return not _letters(value)
    return not _letters(part) or ("\n" in part and len(part.split()) <= 2)


def is_denied(before: str) -> bool:
    """Return whether a text ends with a negation, which turns what follows it round."""
    return _BEFORE.search(before[-40:]) is not None


def _letters(text: str) -> int:
    """Return how many letters and digits a text has."""
    return sum(map(str.isalnum, text))


def _forms(quote: str) -> Iterator[str]:
    """Yield a normalised quote as it is, then without what is often put around one."""
    yield quote
    bare = quote.strip(_AROUND)
    if bare != quote:
        yield bare
    if (short := bare.rstrip(".,;")) != bare:
        yield short.rstrip(_AROUND)


def _is_boundary(text: str, at: int) -> bool:
    """Return whether neither a word nor a number continues across this position."""
    if at <= 0 or at >= len(text):
        return True
    left, right = text[at - 1], text[at]
    if _in_word(left) and _in_word(right):
        return False
    if right.isdigit() and left in ".,":
        return not _one_number(text, at - 1)
    if left.isdigit() and right in ".,":
        return not _one_number(text, at)
    if (
        right.isdigit() and left == "-"
    ):  # a sign; but in a range or a date it only joins
        before = text[at - 2 : at - 1]
        return not (before in ("", " ") or before in "(=:[")
    return True


def _one_number(text: str, at: int) -> bool:
    """Return whether the point or comma at this position is within a number.

    A comma does between thousands; between numbers of other lengths it separates them.
    """
    before = re.search(r"\d*$", text[max(at - 20, 0) : at])
    after = re.match(r"\d*", text[at + 1 : at + 21])
    digits = (len(before[0]) if before else 0, len(after[0]) if after else 0)
    if text[at] == ".":
        return min(digits) > 0
    return 1 <= digits[0] <= 3 and digits[1] == 3


def _in_word(character: str) -> bool:
    """Return whether it is a digit, an underscore or a letter with a case; other scripts have no word bounds."""
    cased = character.lower() != character.upper()
    return cased or character == "_" or character.isdigit()
