"""From the tickets of a batch to the context of their diagnosis.

The evidence is, in this order: the violations themselves, what the subject's sources tell now
(lowest rank first), and past tickets that teach something. Each text is cleaned, redacted
whole, then shortened to its share of the token budget. A source that fails or takes too long
becomes evidence that says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from midwatch.errors import MidwatchError
from midwatch.lifecycle import Clock
from midwatch.model import Context, Evidence, Invariant, Ticket
from midwatch.redaction import Redactor
from midwatch.store.protocol import Past
from midwatch.subjects.base import EvidenceSource, Subject
from midwatch.text import clean, estimate_tokens, one_line, shorten
from midwatch.units import format_duration, format_value

# ------------------------------------------------------------ evidence_budget
# The token budget of evidence: fair shares, and what is left out first (pure).

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


VIOLATIONS = "The violations"
CHANGED = "What changed since all was well"
OPENING_RANK = 15
"""Where evidence from a ticket's opening stands among the ranks of a subject's sources."""
MOST_FROM_OPENING = 5
PAST_RANK = 70
"""Where past tickets stand among the ranks of a subject's sources."""
_STOPPING = 0.2  # seconds that a cancelled source gets to let go

_Answer = tuple[str, datetime]
PastTickets = Callable[[Sequence[Ticket]], Awaitable[Sequence[Past]]]


class ContextGatherer:
    """Gathers what a diagnosis is made from. `past` finds tickets that teach something."""

    def __init__(
        self,
        subjects: Mapping[str, Subject],
        redactor: Redactor,
        clock: Clock,
        past: PastTickets | None = None,
    ) -> None:
        self._subjects = subjects
        self._redactor = redactor
        self._clock = clock
        self._past = past

    async def gather(
        self,
        tickets: Sequence[Ticket],
        *,
        timeout: float,
        tokens: int,
        changed: str = "",
    ) -> Context:
        """The context of a batch, whose tickets are all of one subject. `changed` is a piece of
        evidence that the watch itself brings: what is different from when all was well.

        Takes `timeout` seconds at most, and `tokens` at most by `context_tokens`. Fails only
        by being cancelled.
        """
        sources = self._sources(tickets)
        violations = self._piece(VIOLATIONS, "midwatch", self._violations(tickets))
        fetched = await self._fetch_all(sources, timeout)
        opening = self._as_they_opened(tickets)
        if changed:
            opening.append(self._piece(CHANGED, "midwatch", changed, rank=OPENING_RANK))
        pieces = [violations, *self._absent(tickets), *opening, *fetched]
        return Context(
            tickets=tuple(tickets),
            evidence=within(pieces, tokens, self._clock.now()),
            gathered_at=self._clock.now(),
        )

    def _piece(
        self,
        title: str,
        source: str,
        text: str | bytes,
        *,
        available: bool = True,
        rank: int = 0,
    ) -> Piece:
        """Harmless and without secrets, but not yet shortened: a cut secret has no shape."""
        return Piece(
            title=one_line(self._redactor.text(clean(title, longest=None)), 120),
            source=one_line(self._redactor.text(clean(source, longest=None)), 120),
            at=self._clock.now(),
            text=self._redactor.text(clean(text, longest=None)).strip("\n"),
            available=available,
            rank=rank,
        )

    # -------------------------------------------------- what to ask

    def _sources(self, tickets: Sequence[Ticket]) -> list[EvidenceSource]:
        subject = self._subjects.get(tickets[0].key.subject) if tickets else None
        sources = list(subject.sources(tickets)) if subject else []
        if self._past is not None and tickets:
            sources.append(
                EvidenceSource(
                    title="Past tickets of the same kind",
                    source="midwatch",
                    fetch=lambda: self._remember(tickets),
                    rank=PAST_RANK,
                )
            )
        return sorted(sources, key=lambda source: source.rank)

    def _absent(self, tickets: Sequence[Ticket]) -> list[Piece]:
        if not tickets or tickets[0].key.subject in self._subjects:
            return []
        name = tickets[0].key.subject
        text = f"The subject {name} is not configured any more: nothing could be asked of it."
        return [self._piece(f"Subject {name}", "midwatch", text, available=False)]

    def _as_they_opened(self, tickets: Sequence[Ticket]) -> list[Piece]:
        """The evidence that first aid was given on: how it looked when the tickets opened."""
        seen: dict[str, Piece] = {}
        for ticket in tickets:
            for kept in (ticket.first_aid or {}).get("evidence", ()):
                if kept["title"] == VIOLATIONS or kept["text"] in seen:
                    continue
                title = f"When ticket {ticket.id} opened: {kept['title']}"
                piece = self._piece(
                    title, kept["source"], kept["text"], rank=OPENING_RANK
                )
                seen[kept["text"]] = replace(
                    piece, at=datetime.fromisoformat(kept["at"])
                )
        return list(seen.values())[:MOST_FROM_OPENING]

    async def _remember(self, tickets: Sequence[Ticket]) -> str:
        assert self._past is not None
        past = await self._past(tickets)
        return "\n\n".join(map(self._lesson, past)) or "There is none."

    def _lesson(self, past: Past) -> str:
        ticket = past.ticket
        same = "same component" if past.same_key else "another component"
        lines = [
            f"Past ticket {ticket.id}: {self._say(ticket.key.invariant)}"
            f" on {self._say(ticket.key.component)} ({same})",
            f"opened {_time(ticket.opened_at)}, resolved {_time(ticket.resolved_at)}",
            f"message: {self._say(ticket.message)}",
            f"what was found: {self._say(past.summary or 'nothing was noted')}",
        ]
        if past.root_cause:
            lines.append(f"root cause: {self._say(past.root_cause)}")
        lines.append(f"what resolved it: {self._say(ticket.resolution or 'not noted')}")
        return "\n".join(lines)

    # -------------------------------------------------- asking

    async def _fetch_all(
        self, sources: Sequence[EvidenceSource], timeout: float
    ) -> list[Piece]:
        """Every source's piece, in order; those not done in time say so."""
        if not sources:
            return []
        tasks = [
            asyncio.create_task(
                self._fetch(source, timeout), name=f"evidence {source.title}"
            )
            for source in sources
        ]
        for task in tasks:  # asked for here, in case nobody lives to read it
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.wait(tasks, timeout=timeout)
        finally:
            unfinished = [task for task in tasks if not task.done()]
            for task in unfinished:
                task.cancel()
            if unfinished:
                await asyncio.wait(unfinished, timeout=_STOPPING)
        return [
            self._told(source, task, min(source.timeout, timeout))
            for source, task in zip(sources, tasks, strict=True)
        ]

    async def _fetch(self, source: EvidenceSource, timeout: float) -> _Answer:
        async with asyncio.timeout(min(source.timeout, timeout)):
            text = await source.fetch()
        return text, self._clock.now()

    def _told(
        self, source: EvidenceSource, task: asyncio.Task[_Answer], limit: float
    ) -> Piece:
        failure = _failure(task, limit)
        text, at = task.result() if not failure else (f"Unavailable: {failure}", None)
        piece = self._piece(
            source.title,
            source.source,
            text or "The source answered, with nothing in it.",
            available=not failure,
            rank=source.rank,
        )
        return replace(piece, at=at) if at else piece

    # -------------------------------------------------- the violations

    def _say(self, text: object, limit: int = 1000) -> str:
        """One line of somebody's text, so that it cannot pass for a line of ours."""
        return one_line(self._redactor.text(clean(str(text), longest=None)), limit)

    def _violations(self, tickets: Sequence[Ticket]) -> str:
        return "\n\n".join(map(self._violation, tickets))

    def _violation(self, ticket: Ticket) -> str:
        lines = [
            f"Ticket {ticket.id}: {ticket.severity.label}, {self._say(ticket.key.invariant)}"
            f" on {self._say(ticket.key.component)} of {self._say(ticket.key.subject)}",
            f"message: {self._say(ticket.message)}",
            *self._rule(ticket),
            f"first seen: {_time(ticket.first_seen_at)}",
            f"ticket opened: {_time(ticket.opened_at)}",
            f"last seen: {_time(ticket.last_seen_at)}, seen {ticket.occurrence_count} times",
            f"status: {ticket.status}{', held' if ticket.held else ''}",
        ]
        if ticket.facts:
            facts = self._redactor.value(dict(ticket.facts))
            lines.append("facts:")
            lines += [
                f"  {self._say(name, 80)}: {self._say(fact)}"
                for name, fact in facts.items()
            ]
        if ticket.flapping:
            lines.append("flapping: it opened and cleared several times in short order")
        if ticket.previous_id is not None:
            lines.append(f"earlier opening: ticket {ticket.previous_id}")
        return "\n".join(lines)

    def _rule(self, ticket: Ticket) -> list[str]:
        invariant = self._invariant(ticket)
        if invariant is None:
            return []
        lines = [f"invariant: {invariant.title}. {invariant.description}".strip()]
        if invariant.limit is not None:
            bound = "at most" if invariant.above else "at least"
            limit = format_value(invariant.limit, invariant.unit)
            lines.append(f"limit: {bound} {limit} ({invariant.unit or 'no unit'})")
        return [self._say(line) for line in lines]

    def _invariant(self, ticket: Ticket) -> Invariant | None:
        subject = self._subjects.get(ticket.key.subject)
        known = subject.invariants if subject else ()
        return next((item for item in known if item.id == ticket.key.invariant), None)


def _failure(task: asyncio.Task[_Answer], limit: float) -> str:
    """How a source failed; empty if it did not. It may be anybody's plug-in: whatever it
    raised becomes evidence, for one bad source must not cost the diagnosis."""
    error = task.exception() if task.done() and not task.cancelled() else None
    if not task.done() or task.cancelled() or isinstance(error, TimeoutError):
        return f"no answer within {format_duration(limit)}"
    if isinstance(error, MidwatchError):
        return error.one_line()
    return f"{type(error).__name__}: {error}" if error else ""


def _time(at: datetime | None) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S UTC") if at else "unknown"
