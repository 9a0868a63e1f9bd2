"""The token budget of evidence: fair shares, and what is left out first (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from midwatch.model import Context, Evidence
from midwatch.text import estimate_tokens, one_line, shorten

OVERHEAD = 40
"""Tokens set aside per evidence for its number, time and delimiters in the prompt."""
LEAST_SHARE = 120
"""Tokens under which a shortened text tells too little: then a source is left out instead."""
VIOLATIONS_SHARE = 0.4
"""The part of the budget that the violations get before anything else, if they need it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Evidence before it has its number and its share."""

    title: str
    source: str
    at: datetime
    text: str
    available: bool = True
    rank: int = 0

    @property
    def head(self) -> int:
        """Tokens that it costs without its text."""
        return OVERHEAD + estimate_tokens(self.title + self.source)

    def numbered(self, number: int, tokens: int) -> Evidence:
        return Evidence(
            id=f"E{number}",
            title=self.title,
            source=self.source,
            at=self.at,
            text=shorten(self.text, tokens),
            available=self.available,
        )


def context_tokens(context: Context) -> int:
    """What a context's evidence costs in a prompt, estimated from above."""
    return sum(
        _piece_of(item).head + estimate_tokens(item.text) for item in context.evidence
    )


def shrink(context: Context, tokens: int) -> Context:
    """The context within a smaller budget. What stays keeps its number."""
    kept = list(context.evidence)
    pieces = [_piece_of(item, rank) for rank, item in enumerate(kept)]
    while len(pieces) > 1 and not _bearable(pieces, tokens):
        pieces.pop()
    shares = _shares(pieces, tokens)
    evidence = tuple(
        replace(item, text=shorten(item.text, share))
        for item, share in zip(kept, shares, strict=False)
    )
    return replace(context, evidence=evidence)


def halve(context: Context) -> Context:
    """Half the context, for the second try after one was too long."""
    return shrink(context, context_tokens(context) // 2)


def _piece_of(item: Evidence, rank: int = 0) -> Piece:
    return Piece(item.title, item.source, item.at, item.text, item.available, rank)


def within(pieces: Sequence[Piece], tokens: int, now: datetime) -> tuple[Evidence, ...]:
    """The pieces as evidence within the budget: the highest ranks are left out first."""
    kept = list(pieces)
    dropped: list[Piece] = []
    note: list[Piece] = []
    while len(kept) > 1 and not _bearable([*kept, *note], tokens):
        last = max(range(1, len(kept)), key=lambda index: (kept[index].rank, index))
        dropped.append(kept.pop(last))
        note = [_left_out(dropped, now)]
    if not _bearable([*kept, *note], tokens):
        note = []
    together = [*kept, *note]
    shares = _shares(together, tokens)
    return tuple(
        piece.numbered(number, share)
        for number, (piece, share) in enumerate(zip(together, shares, strict=True), 1)
    )


def _left_out(dropped: Iterable[Piece], now: datetime) -> Piece:
    titles = ", ".join(sorted(piece.title for piece in dropped))
    text = one_line(f"To stay within the token budget: {titles}", 400)
    return Piece("Left out", "midwatch", now, text, available=False)


def _bearable(pieces: Sequence[Piece], tokens: int) -> bool:
    """Whether everybody's share is large enough to tell something."""
    least = (min(estimate_tokens(piece.text), LEAST_SHARE) for piece in pieces)
    return sum(least) + sum(piece.head for piece in pieces) <= tokens


def _shares(pieces: Sequence[Piece], tokens: int) -> list[int]:
    """Tokens for each text. The first, the violations, is served first; of the others the
    small keep all and the large share what is left alike."""
    left = max(tokens - sum(piece.head for piece in pieces), 0)
    needs = [estimate_tokens(piece.text) for piece in pieces]
    shares = _fair(needs, left)
    first = min(needs[0], int(left * VIOLATIONS_SHARE))
    if shares[0] < first:
        shares = [first, *_fair(needs[1:], left - first)]
    return shares


def _fair(needs: Sequence[int], budget: int) -> list[int]:
    shares = [0] * len(needs)
    left = budget
    for position, index in enumerate(sorted(range(len(needs)), key=needs.__getitem__)):
        shares[index] = min(needs[index], left // (len(needs) - position))
        left -= shares[index]
    return shares
