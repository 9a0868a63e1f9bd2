"""Shorten a runbook by its sections, and find its first steps (pure)."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from midwatch.text import estimate_tokens, one_line

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

STEPS = re.compile(
    r"(?i)\b(?:steps?|procedure|actions?|what to do|how to|first aid|first response|respon(?:se|d\w*)|mitigat\w+|remed\w+|fix\w*"
    r"|resol(?:ve|ving|ution)|recover\w*|repair\w*|triage|diagnos\w+|debug\w*|troubleshoot\w*|investigat\w+|checks?|playbook|runbook"
    r"|instructions?|do this|do first)\b"
)
"""A heading that has steps below it."""
MOST_STEPS = 5
_NO_STEPS = re.compile(
    r"(?i)\b(?:post-?mortem|afterwards|history|references?|links?)\b"
)
_MARKER = re.compile(r"\s*(?:[-*+]|\d{1,9}[.)])\s+(?:\[[ xX]\]\s+)?")
_WORD = re.compile(r"[^\W\d_]{4,}")
_OUTLINED = 40_000
"""Characters whose sections are looked at; the parser takes a second for as many of a hostile text."""
_LEAST = 25  # tokens of a part of a section that is still useful
_GAP = 10  # tokens of a note of what was left out
_LONGEST_LIST = 300  # characters of the headings that were left out


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a text from one heading to the next: its heading, and its lines from `start` to `end`."""

    heading: str
    level: int
    start: int
    end: int


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt  # takes 30 ms, which few commands need

    # Blocks alone: no text within them is looked at, and no reference is resolved.
    parser = MarkdownIt("commonmark")
    parser.disable(["reference"])
    parser.core.ruler.enableOnly(["normalize", "block"])
    return parser


@dataclass(frozen=True, slots=True)
class _Outline:
    """The sections of a text, the lists of each by its index, and the lines that are inside of a code fence."""

    sections: tuple[Section, ...]
    lists: dict[int, list[tuple[bool, list[int]]]]
    fences: list[tuple[int, int]]


@lru_cache(maxsize=64)
def _outline(text: str) -> _Outline:
    """Return the outline of the beginning of a text."""
    if len(text) > _OUTLINED:
        text = text[: text.rfind("\n", 0, _OUTLINED) + 1]
    tokens = _parser().parse(text)
    starts = [(0, "", 0)]
    fences: list[tuple[int, int]] = []
    lists: list[tuple[int, bool, list[int]]] = []
    depth = 0
    for at, token in enumerate(tokens):
        if token.type == "heading_open" and token.map and token.level == 0:
            heading = one_line(tokens[at + 1].content, 200)
            starts.append((token.map[0], heading, int(token.tag[1:])))
        elif token.type == "fence" and token.map:
            fences.append((token.map[0], token.map[1]))
        elif token.type in ("ordered_list_open", "bullet_list_open"):
            if depth == 0 and token.map:
                lists.append((token.map[0], token.type.startswith("ordered"), []))
            depth += 1
        elif token.type in ("ordered_list_close", "bullet_list_close"):
            depth -= 1
        elif token.type == "list_item_open" and depth == 1 and token.map and lists:
            lists[-1][2].append(token.map[0])
    ends = [start for start, _, _ in starts[1:]] + [text.count("\n") + 1]
    found = [
        Section(heading, level, start, end)
        for (start, heading, level), end in zip(starts, ends, strict=True)
        if end > start
    ]
    by_section: dict[int, list[tuple[bool, list[int]]]] = {}
    begins = [one.start for one in found]
    for start, ordered, items in lists:
        index = bisect_right(begins, start) - 1
        by_section.setdefault(index, []).append((ordered, items))
    return _Outline(tuple(found), by_section, fences)


# ------------------------------------------------------------------ first steps


def first_steps(text: str, most: int = MOST_STEPS) -> tuple[str, ...]:
    """Return the first steps of a runbook, each as it stands in its line, without the mark of the list.

    They are the entries of the first list below the first heading that reads as one of steps (`STEPS`), or below
    a heading under that; without one, those of the first numbered list.
    """
    lines = text.split("\n")
    items = _steps(_outline(text))
    if items is None:
        return ()
    found = (_MARKER.sub("", lines[at], count=1).strip() for at in items[1][:most])
    return tuple(one for one in found if sum(map(str.isalnum, one)) >= 4)


def _steps(outline: _Outline) -> tuple[int, list[int]] | None:
    """Return the section with the first steps, and the lines on which they begin."""
    sections = outline.sections
    for index, one in enumerate(sections):
        if not STEPS.search(one.heading) or _NO_STEPS.search(one.heading):
            continue
        inner = (
            index  # of a title, which everything is below, only its own section counts
        )
        while inner < len(sections) and (
            inner == index or sections[inner].level > one.level > 1
        ):
            if lists := outline.lists.get(inner):
                return inner, lists[0][1]
            inner += 1
    for index, lists in sorted(outline.lists.items()):
        for ordered, items in lists:
            if ordered:
                return index, items
    return None


# ------------------------------------------------------------------ shorter


def words_of(*texts: str) -> frozenset[str]:
    """Return the words of some texts that a heading can be compared with."""
    return frozenset(
        word.casefold() for text in texts for word in _WORD.findall(text[:2000])
    )


def excerpt(text: str, tokens: int, words: Collection[str] = ()) -> str:
    """Return a runbook within a budget of tokens, by its sections; whole if it fits.

    What stays: the section with the first steps, those whose headings have most of `words`, then the others in
    their order. A section that does not fit whole loses its end, between two lines, and no code fence is cut. Notes
    say how many lines are missing, and which sections.
    """
    if estimate_tokens(text) <= tokens:
        return text
    lines = text.split("\n")
    outline = _outline(text)
    kept: dict[int, int] = {}
    left = float(tokens - _GAP)
    for index in _by_relevance(outline, words):
        one = outline.sections[index]
        end, cost = _fitting(lines, one, outline.fences, left - _GAP)
        if end > one.start + (1 if one.level else 0) or end == one.end:
            kept[index] = end
            left -= cost + (_GAP if end < one.end else 0)
        if left < _LEAST:
            break
    while kept:
        short = "\n".join(_composed(lines, outline.sections, kept, left))
        if estimate_tokens(short) <= tokens:
            return short
        kept.popitem()  # the notes were longer than expected
    return _first_words(lines, tokens)


def _by_relevance(outline: _Outline, words: Collection[str]) -> list[int]:
    steps = _steps(outline)
    first = -1 if steps is None else steps[0]

    def rank(index: int) -> tuple[bool, int, bool, int]:
        heading = outline.sections[index].heading
        shared = len(words_of(heading).intersection(words))
        return index != first, -shared, bool(_NO_STEPS.search(heading)), index

    return sorted(range(len(outline.sections)), key=rank)


def _fitting(
    lines: Sequence[str],
    section: Section,
    fences: Sequence[tuple[int, int]],
    budget: float,
) -> tuple[int, float]:
    """Return the end of the part of a section that fits into a budget, and its tokens."""
    at, spent = section.start, 0.0
    while at < section.end:
        cost = estimate_tokens(lines[at]) + 1
        if spent + cost > budget:
            break
        spent += cost
        at += 1
    for start, end in fences:
        if start < at < end:
            at = start
    spent = sum(estimate_tokens(line) + 1 for line in lines[section.start : at])
    return at, spent


def _composed(
    lines: Sequence[str],
    sections: Sequence[Section],
    kept: dict[int, int],
    left: float,
) -> Iterator[str]:
    missing, headings = 0, []
    for index, one in enumerate(sections):
        end = kept.get(index, one.start)
        if index in kept:
            if missing:
                yield _note(missing)
                missing = 0
            yield from lines[one.start : end]
        elif one.heading:
            headings.append(one.heading)
        missing += one.end - end
    missing += len(lines) - sections[-1].end
    if missing:
        yield _note(missing)
    named = one_line("; ".join(headings), _LONGEST_LIST)
    if named and estimate_tokens(named) + _GAP <= left:
        yield f"Sections left out: {named}"


def _note(lines: int) -> str:
    """Return the note for lines that were left out, in the form that no quote may consist of."""
    return f"[… {lines:,} line{'s' if lines != 1 else ''} cut …]"


def _first_words(lines: Sequence[str], tokens: int) -> str:
    """Return the beginning of a text without a line that fits, cut between two words."""
    text = next((line for line in lines if line.strip()), "")
    words, kept = text.split(" "), ""
    for word in words:
        longer = f"{kept} {word}".strip()
        if estimate_tokens(longer) + 2 * _GAP > tokens:
            break
        kept = longer
    note = _note(max(len(lines) - 1, 1))
    if estimate_tokens(note) > tokens:
        return ""
    return f"{kept} …\n{note}" if kept else note
