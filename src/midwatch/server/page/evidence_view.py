"""Evidence as the page shows it: its lines, with a mark and an anchor at each place that is quoted (pure)."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from midwatch.agent.grounding import CitationCheck, Grounding
from midwatch.agent.quotes import QuotableText, normalise
from midwatch.model import Evidence, Origin

ORIGINS: Mapping[Origin, str] = {
    Origin.SYSTEM: "measured",
    Origin.REPORTED: "written by clients or into logs",
    Origin.EARLIER: "an earlier diagnosis or note",
    Origin.NOTE: "a runbook",
}
MOST_LINES = 2000
"""Lines that are shown of one piece."""

_WIDEST_TABLE = 160

_Quote = tuple[str, str]
"""The number of the evidence and the quote."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a line. `anchor` is an id of the page where a quote begins."""

    text: str
    quoted: bool = False
    anchor: str = ""


@dataclass(frozen=True, slots=True)
class EvidenceView:
    """A piece of evidence, its lines in segments. `cut` is how many lines are not shown."""

    id: str
    anchor: str
    title: str
    source: str
    origin: str
    piece: Evidence
    cited: bool
    lines: tuple[tuple[Segment, ...], ...]
    cut: int = 0

    @property
    def is_prose(self) -> bool:
        """Whether its lines are too long to be a table, so that they are better wrapped than scrolled."""
        return any(
            sum(len(part.text) for part in line) > _WIDEST_TABLE for line in self.lines
        )


class EvidenceIndex:
    """All evidence of one answer, and where each of its quotes is on the page."""

    def __init__(
        self, evidence: Sequence[Evidence], grounding: Grounding, prefix: str = ""
    ) -> None:
        """Find the places of all quotes that check.

        Args:
            evidence: The evidence of the answer.
            grounding: The checks of its claims.
            prefix: Begins each id of the page, where a page has several answers.
        """
        self._hrefs: dict[_Quote, str] = {}
        by_piece: dict[str, list[CitationCheck]] = {}
        for check in grounding.citations:
            if check.verified:
                by_piece.setdefault(check.evidence_id, []).append(check)
        self.pieces = tuple(
            self._view(piece, by_piece.get(piece.id, ()), prefix, number)
            for number, piece in enumerate(evidence, 1)
        )

    def href(self, check: CitationCheck) -> str:
        """Return the link to the place of a quote; "" without one."""
        return self._hrefs.get((check.evidence_id, check.quote), "")

    def _view(
        self,
        piece: Evidence,
        checks: Iterable[CitationCheck],
        prefix: str,
        number: int,
    ) -> EvidenceView:
        anchor = prefix + (piece.id if _NUMBER.fullmatch(piece.id) else f"X{number}")
        lines = piece.text.split("\n")
        shown = lines[:MOST_LINES]
        places = self._places(piece, shown, checks, anchor)
        return EvidenceView(
            piece.id,
            anchor,
            piece.title,
            piece.source,
            ORIGINS[piece.origin],
            piece,
            bool(places),
            tuple(_segments(line, places.get(at, [])) for at, line in enumerate(shown)),
            len(lines) - len(shown),
        )

    def _places(
        self,
        piece: Evidence,
        lines: Sequence[str],
        checks: Iterable[CitationCheck],
        anchor: str,
    ) -> dict[int, list[_Span]]:
        """Return the quoted spans of each line, and remember the link of each quote."""
        text = QuotableText(piece)
        found: dict[int, list[_Span]] = {}
        anchors: dict[tuple[int, int, int], str] = {}
        for check in checks:
            parts = [part for part in text.place(check.quote) if part[0] < len(lines)]
            for number, (at, part) in enumerate(parts):
                start, end = span_of(lines[at], part)
                key = (at, start, end)
                if key not in anchors:
                    anchors[key] = f"{anchor}-{len(anchors) + 1}"
                    found.setdefault(at, []).append(_Span(start, end, anchors[key]))
                if not number:
                    self._hrefs[check.evidence_id, check.quote] = f"#{anchors[key]}"
            if not parts:
                self._hrefs[check.evidence_id, check.quote] = f"#{anchor}"
        return found


_NUMBER = re.compile(r"[ER]\d{1,6}")


@dataclass(frozen=True, slots=True)
class _Span:
    start: int
    end: int
    anchor: str


def span_of(line: str, part: str) -> tuple[int, int]:
    """Return where a normalised part stands in a line; the whole line where that is not known."""
    at = line.find(part)
    if at >= 0:
        return at, at + len(part)
    start = normalise(line).find(part)
    if start < 0:
        return 0, len(line)
    # The longer the beginning of a line, the longer is its normalised form.
    ends = range(len(line) + 1)
    first = bisect_left(ends, start + 1, key=lambda end: len(normalise(line[:end])))
    last = bisect_left(
        ends, start + len(part), key=lambda end: len(normalise(line[:end]))
    )
    return max(first - 1, 0), min(max(last, first), len(line))


def _segments(line: str, spans: Sequence[_Span]) -> tuple[Segment, ...]:
    return tuple(_cut(line, spans)) if spans else (Segment(line),)


def _cut(line: str, spans: Sequence[_Span]) -> Iterator[Segment]:
    """Yield the parts of a line between all beginnings and ends of its spans, which may overlap."""
    edges = sorted(
        {0, len(line), *(edge for one in spans for edge in (one.start, one.end))}
    )
    named = {one.start: one.anchor for one in reversed(spans)}
    for start, end in zip(edges, edges[1:], strict=False):
        quoted = any(one.start <= start and end <= one.end for one in spans)
        yield Segment(line[start:end], quoted, named.get(start, "") if quoted else "")
