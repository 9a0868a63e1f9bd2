"""Gather the context of a diagnosis: the evidence for the tickets of a batch.

The evidence is, in this order: the violations, then by rank what the sources of the subjects return now, other open
tickets, the state of linked subjects, and past incidents. Each text is cleaned, redacted whole, then shortened to its
share of the token budget. A source that fails or exceeds its timeout becomes evidence that says so.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from midwatch.agent.links import Links
from midwatch.agent.recent_changes import RecentChanges
from midwatch.agent.runbook_evidence import SHARE, Noted, noted
from midwatch.agent.surroundings import (
    LINKS,
    LINKS_RANK,
    OpenTickets,
    PastTickets,
    Surroundings,
)
from midwatch.agent.token_shares import LEAST_SHARE, OVERHEAD, fair_shares
from midwatch.errors import MidwatchError
from midwatch.lifecycle import Clock, cancel, off_loop
from midwatch.log_shapes import collapse, is_note
from midwatch.model import Context, Evidence, Invariant, Origin, Ticket
from midwatch.redaction import Redactor
from midwatch.runbooks.excerpt import excerpt
from midwatch.store.protocol import Past
from midwatch.subjects.base import EvidenceSource, Subject
from midwatch.subjects.tools import Answer
from midwatch.text import (
    clean,
    estimate_tokens,
    mark_matches,
    mark_reported,
    one_line,
    put_marks,
    reported,
    shorten,
    take_marks,
)
from midwatch.units import format_duration, format_value

if TYPE_CHECKING:
    from midwatch.runbooks.library import RunbookLibrary

# ------------------------------------------------------------------ the token budget (pure)

LOG_TOKENS = 3000
"""Most tokens of one log, after its lines of one shape have become one."""
VIOLATIONS_SHARE = 0.4
"""The share of the budget that is reserved for the violations."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of evidence before it has its number and its share of the budget.

    Its text has the marks of `midwatch.text.reported`.
    """

    title: str
    source: str
    at: datetime
    text: str
    available: bool = True
    rank: int = 0
    origin: Origin = Origin.SYSTEM
    command: str = ""
    tickets: tuple[int, ...] = ()

    @property
    def head(self) -> int:
        """Tokens that it needs besides its text."""
        return OVERHEAD + estimate_tokens(self.title + self.source + self.command)

    def numbered(self, number: int, tokens: int) -> Evidence:
        shorter = excerpt if self.origin is Origin.NOTE else shorten
        text, reported = take_marks(shorter(self.text, tokens))
        return Evidence(
            id=f"E{number}",
            title=self.title,
            source=self.source,
            at=self.at,
            text=text,
            available=self.available,
            origin=self.origin,
            reported=reported,
            command=self.command,
            tickets=self.tickets,
        )


def context_tokens(context: Context) -> int:
    """Return the tokens that the evidence of a context needs in a prompt, at most."""
    return sum(
        _piece_of(item).head + estimate_tokens(item.text) for item in context.evidence
    )


def shrink(context: Context, tokens: int) -> Context:
    """Return the context within a smaller budget, in tokens. Evidence that stays keeps its number."""
    kept = list(context.evidence)
    pieces = [_piece_of(item, rank) for rank, item in enumerate(kept)]
    while len(pieces) > 1 and not _all_useful(pieces, tokens):
        pieces.pop()
    shares = _shares(pieces, tokens)
    evidence = tuple(
        replace(piece.numbered(0, share), id=item.id)
        for item, piece, share in zip(kept, pieces, shares, strict=False)
    )
    return replace(context, evidence=evidence)


def halve(context: Context) -> Context:
    """Return half the context, for the second call after one was too long."""
    return shrink(context, context_tokens(context) // 2)


def _piece_of(item: Evidence, rank: int = 0) -> Piece:
    return Piece(
        item.title,
        item.source,
        item.at,
        put_marks(item.text, item.reported),
        item.available,
        rank,
        item.origin,
        item.command,
        item.tickets,
    )


def within(pieces: Sequence[Piece], tokens: int, now: datetime) -> tuple[Evidence, ...]:
    """Return the pieces as evidence within a budget of tokens: the highest ranks are left out first."""
    kept = list(pieces)
    dropped: list[Piece] = []
    note: list[Piece] = []
    while len(kept) > 1 and not _all_useful([*kept, *note], tokens):
        last = max(range(1, len(kept)), key=lambda index: (kept[index].rank, index))
        dropped.append(kept.pop(last))
        note = [_left_out(dropped, now)]
    if not _all_useful([*kept, *note], tokens):
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


def _all_useful(pieces: Sequence[Piece], tokens: int) -> bool:
    """Return whether the share of every piece is large enough to be useful."""
    least = (min(estimate_tokens(piece.text), LEAST_SHARE) for piece in pieces)
    return sum(least) + sum(piece.head for piece in pieces) <= tokens


def _shares(pieces: Sequence[Piece], tokens: int) -> list[int]:
    """Return the tokens for each text.

    The first, the violations, is served first. Of the others, short ones keep all of their text and long
    ones get equal shares of the rest.
    """
    left = max(tokens - sum(piece.head for piece in pieces), 0)
    needs = [estimate_tokens(piece.text) for piece in pieces]
    shares = fair_shares(needs, left)
    first = min(needs[0], int(left * VIOLATIONS_SHARE))
    if shares[0] < first:
        shares = [first, *fair_shares(needs[1:], left - first)]
    return shares


# ------------------------------------------------------------------ gathering

VIOLATIONS = "The violations"
CHANGED = "What changed since every invariant held"
SAME = "As when the tickets opened, but for ages and times"
OPENING_RANK = 15
"""The rank of evidence from a ticket's opening among those of a subject's sources."""
MOST_FROM_OPENING = 5
FOREIGN_WORDS = frozenset({"prometheus"})
"""The kinds whose messages come from outside, as annotations do; those of others are of the subject itself."""
_MEASURED = re.compile(
    r"(?:^|_)(?:state|cause|kind|fstype|mount|error|names|issuer|subject|not_after)$"
)
"""The names of facts, in the other kinds, whose text is one of a few words of the system itself."""
_OWN_SHARE = 0.6
"""The share of the time for the sources of the tickets' own subjects where linked ones may follow."""
_STOPPING = 0.2  # seconds that a cancelled source gets to end

# What differs between two readings of the same: ages and times.
_AGES = re.compile(
    r"\d{4}-\d\d-\d\d[T ][\d:.,]+|(?<![\w.])\d+(?:\.\d+)?(?:ms|s|m|h|d|min|days?)\b(?: (?=\d))?"
)


def gone_since(before: str, now: str) -> str:
    """Return the lines of an earlier text that the one of now has not, apart from ages and times."""
    known = {_AGES.sub("", line).strip() for line in now.split("\n")}
    left = [
        line
        for line in before.split("\n")
        if _AGES.sub("", line).strip() not in known and not is_note(line)
    ]
    # The end of an earlier text may be cut.
    if left and before.endswith(left[-1]) and left[-1].strip():
        start = _AGES.sub("", left[-1].rstrip("… ")[:-20]).strip()
        if any(line.startswith(start) for line in known):
            left.pop()
    return "\n".join(left).strip("\n")


_Answer = tuple[str, datetime]


class ContextGatherer:
    """Gathers the evidence of a diagnosis.

    Args:
        subjects: The watched systems by name.
        redactor: Removes secrets from all evidence.
        clock: The source of time.
        past: Finds past incidents with what was found; None skips them.
        links: The links between the subjects; None for none.
        unresolved: Returns all unresolved tickets; None skips other open tickets.
        runbooks: The runbooks; None for none.
    """

    def __init__(
        self,
        subjects: Mapping[str, Subject],
        redactor: Redactor,
        clock: Clock,
        past: PastTickets | None = None,
        *,
        links: Links | None = None,
        unresolved: OpenTickets | None = None,
        runbooks: RunbookLibrary | None = None,
        changes: RecentChanges | None = None,
    ) -> None:
        self._subjects = subjects
        self._redactor = redactor
        self._clock = clock
        self._runbooks = runbooks
        self._around = Surroundings(
            subjects, redactor, self._message, links, unresolved, past, changes
        )

    async def gather(
        self,
        tickets: Sequence[Ticket],
        *,
        timeout: float,
        tokens: int,
        changed: str = "",
        linked: bool = True,
    ) -> Context:
        """Return the context of a batch. Never raises: what cannot be gathered is evidence that says so.

        Args:
            tickets: The tickets of the batch.
            timeout: Seconds that all of it may take.
            tokens: Size of the evidence at most, as `context_tokens` counts.
            changed: The monitor's own evidence: what differs from when every invariant held.
            linked: Whether the subjects that those of the tickets depend on are asked for their state.
        """
        tickets = self._around.deepest_first(tickets)
        violations = self._piece(VIOLATIONS, "midwatch", self._violations(tickets))
        onset = min((ticket.first_seen_at for ticket in tickets), default=None)
        noting = asyncio.create_task(
            self.noted(tickets, timeout, tokens), name="runbooks"
        )
        try:
            fetched = await self._fetched(tickets, timeout, linked, onset)
            notes = await noting
        finally:
            await cancel(noting)
        size = sum(len(one.text) for one in fetched)
        opening = await off_loop(size, self._as_they_opened, tickets, fetched)
        if changed:
            opening.append(self._piece(CHANGED, "midwatch", changed, rank=OPENING_RANK))
        pieces = [violations, *self._absent(tickets), *opening, *fetched]
        left, now = tokens - notes.tokens, self._clock.now()
        evidence = await off_loop(size, within, pieces, left, now)
        return Context(tuple(tickets), (*evidence, *notes.evidence), now)

    async def noted(
        self, tickets: Sequence[Ticket], timeout: float, tokens: int
    ) -> Noted:
        """Return the runbooks of a batch as evidence, R1, R2, ….

        Args:
            tickets: The tickets of the batch.
            timeout: Seconds to wait for runbooks that were not read yet.
            tokens: Size of all evidence of the batch.
        """
        if self._runbooks is None:
            return Noted()
        kinds = {name: one.kind for name, one in self._subjects.items()}
        found = await self._runbooks.for_tickets(tickets, kinds, timeout)
        most = min(self._runbooks.settings.tokens, int(tokens * SHARE))
        # Its Markdown is parsed, which takes ten times as long as reading it.
        size = 10 * sum(len(one.runbook.text) for one in found)
        now = self._clock.now()
        return await off_loop(size, noted, found, tickets, kinds, most, now)

    @property
    def past_incident(self) -> Callable[[Past], str]:
        """Returns a past incident as text."""
        return self._around.past_incident

    async def answered(
        self, tool: str, subject: str, answer: Answer, *, ok: bool
    ) -> Piece:
        """Return what a call of a tool returned as a piece of evidence. A text that is empty says so."""
        return await off_loop(
            len(answer.text), self._answered, tool, subject, answer, ok
        )

    def _answered(self, tool: str, subject: str, answer: Answer, ok: bool) -> Piece:
        shown = self._redactor.text(clean(answer.command, longest=None))
        piece = self._piece(
            f"{tool} on {subject}",
            f"{subject}: {tool}",
            answer.text if answer.text.strip() else "It returned nothing.",
            available=ok,
        )
        text = mark_matches(piece.text, answer.reported)
        return replace(piece, text=text, command=shown, origin=answer.origin)

    async def _fetched(
        self,
        tickets: Sequence[Ticket],
        timeout: float,
        linked: bool,
        onset: datetime | None,
    ) -> list[Piece]:
        """Return what all sources say, by rank. What it says may show further links, whose subjects come second."""
        loop = asyncio.get_running_loop()
        until, linked = loop.time() + timeout, linked and self._around.linkable
        own, around = self._sources(tickets), self._around.sources(tickets)
        first = [source for _, source in own]
        if linked:
            fetched = await self._fetch_all(first, timeout * _OWN_SHARE, onset)
        else:
            fetched = await self._fetch_all([*first, *around], timeout, onset)
        for (name, _), piece in zip(own, fetched, strict=False):
            self._around.learn(name, piece.text, piece.title)
        if linked:
            second = [*around, *await self._around.linked(tickets)]
            fetched += await self._fetch_all(
                second, max(until - loop.time(), 0.1), onset
            )
        if links := self._around.links(tickets):
            fetched.append(self._piece(LINKS, "midwatch", links, rank=LINKS_RANK))
        return sorted(fetched, key=lambda piece: piece.rank)

    def _piece(
        self,
        title: str,
        source: str,
        text: str | bytes,
        *,
        available: bool = True,
        rank: int = 0,
        origin: Origin = Origin.SYSTEM,
    ) -> Piece:
        """Return a piece that is cleaned and redacted, but not yet shortened: a cut secret has no shape."""
        return Piece(
            title=one_line(self._redactor.text(clean(title, longest=None)), 120),
            source=one_line(self._redactor.text(clean(source, longest=None)), 120),
            at=self._clock.now(),
            text=self._redactor.text(clean(text, longest=None)).strip("\n"),
            available=available,
            rank=rank,
            origin=origin,
        )

    # ------------------------------------------------------------------ what to ask

    def _sources(self, tickets: Sequence[Ticket]) -> list[tuple[str, EvidenceSource]]:
        """Return the sources of the tickets' subjects, each with its subject."""
        by_subject = _by_subject(tickets)
        return [
            (name, _named(name, source) if len(by_subject) > 1 else source)
            for name, own in by_subject.items()
            if name in self._subjects
            for source in self._subjects[name].sources(own)
        ]

    def _absent(self, tickets: Sequence[Ticket]) -> list[Piece]:
        return [
            self._piece(
                f"Subject {name}",
                "midwatch",
                f"The subject {name} is not in the settings any more: no evidence could be fetched from it.",
                available=False,
            )
            for name in _by_subject(tickets)
            if name not in self._subjects
        ]

    def _as_they_opened(
        self, tickets: Sequence[Ticket], now: Sequence[Piece]
    ) -> list[Piece]:
        """Return what first aid cited when the tickets opened, without what is still the same."""
        current = {(one.title, one.source): one.text for one in now if one.available}
        seen: dict[str, Piece] = {}
        same: list[str] = []
        for ticket in tickets:
            for kept in (ticket.first_aid or {}).get("evidence", ()):
                if kept["title"] == VIOLATIONS or kept["text"] in seen:
                    continue
                title = f"When ticket {ticket.id} opened: {kept['title']}"
                piece = self._piece(
                    title,
                    kept["source"],
                    put_marks(kept["text"], kept.get("reported", ())),
                    rank=OPENING_RANK,
                    origin=Origin(kept.get("origin", Origin.SYSTEM)),
                )
                text = current.get((kept["title"], piece.source))
                left = piece.text if text is None else gone_since(piece.text, text)
                if not left:
                    same.append(kept["title"])
                    continue
                seen[kept["text"]] = replace(
                    piece, text=left, at=datetime.fromisoformat(kept["at"])
                )
        pieces = list(seen.values())[:MOST_FROM_OPENING]
        if same:
            titles = "; ".join(dict.fromkeys(same))
            pieces.append(self._piece(SAME, "midwatch", titles, rank=OPENING_RANK))
        return pieces

    # ------------------------------------------------------------------ asking

    async def _fetch_all(
        self,
        sources: Sequence[EvidenceSource],
        timeout: float,
        onset: datetime | None,
    ) -> list[Piece]:
        """Return the piece of every source, in order; a source that is late says so."""
        if not sources:
            return []
        tasks = [
            asyncio.create_task(
                self._fetch(source, timeout), name=f"evidence {source.title}"
            )
            for source in sources
        ]
        for (
            task
        ) in tasks:  # read every exception: a cancelled gatherer does not get to it
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
            await self._result(source, task, min(source.timeout, timeout), onset)
            for source, task in zip(sources, tasks, strict=True)
        ]

    async def _fetch(self, source: EvidenceSource, timeout: float) -> _Answer:
        async with asyncio.timeout(min(source.timeout, timeout)):
            text = await source.fetch()
        return text, self._clock.now()

    async def _result(
        self,
        source: EvidenceSource,
        task: asyncio.Task[_Answer],
        limit: float,
        onset: datetime | None,
    ) -> Piece:
        failure = failure_of(task, limit)
        text, at = task.result() if not failure else (f"Unavailable: {failure}", None)
        piece = await off_loop(
            len(text), self._fetched_piece, source, text, failure, onset
        )
        return replace(piece, at=at or piece.at)

    def _fetched_piece(
        self, source: EvidenceSource, text: str, failure: str, onset: datetime | None
    ) -> Piece:
        piece = self._piece(
            source.title,
            source.source,
            text or "The source returned nothing.",
            available=not failure,
            rank=source.rank,
            origin=source.origin,
        )
        text = piece.text
        if source.log and not failure:
            text = shorten(collapse(text, onset), LOG_TOKENS)
        return replace(piece, text=mark_matches(text, source.reported))

    # ------------------------------------------------------------------ the violations

    def _line(self, text: object, limit: int = 1000) -> str:
        """Return foreign text as one line, so that it cannot imitate a line written here."""
        return one_line(self._redactor.text(clean(str(text), longest=None)), limit)

    def _violations(self, tickets: Sequence[Ticket]) -> str:
        return "\n\n".join(map(self._violation, tickets))

    def _violation(self, ticket: Ticket) -> str:
        """Return what is known of a ticket: measured, with marks on what clients wrote or named."""
        written = self._written(ticket)
        component = self._line(ticket.key.component)
        lines = [
            f"Ticket {ticket.id}: {ticket.severity.label}, {self._line(ticket.key.invariant)}"
            f" on {reported(component)} of {self._line(ticket.key.subject)}",
            f"message: {self._message(ticket)}",
            *self._rule(ticket),
            f"first seen: {_time(ticket.first_seen_at)}",
            f"ticket opened: {_time(ticket.opened_at)}",
            f"last seen: {_time(ticket.last_seen_at)}, seen {ticket.occurrence_count} times",
            f"status: {ticket.status}{', held' if ticket.held else ''}",
        ]
        if written:
            foreign = self._foreign(ticket, written)
            lines.append("facts:")
            lines += [
                f"  {self._line(name, 80)}: {reported(fact) if fact in foreign else fact}"
                for name, fact in written.items()
            ]
        if ticket.flapping:
            lines.append(
                "flapping: it opened and cleared several times within a short time"
            )
        if ticket.previous_id is not None:
            lines.append(f"earlier opening: ticket {ticket.previous_id}")
        return "\n".join(lines)

    def _message(self, ticket: Ticket) -> str:
        """Return the message, marked: as a whole unless the subject words it, else what in it is foreign."""
        message = self._line(ticket.message)
        if not self._is_own(ticket):
            return reported(message)
        foreign = self._foreign(ticket, self._written(ticket))
        return mark_reported(message, [self._line(ticket.key.component), *foreign])

    def _written(self, ticket: Ticket) -> dict[str, str]:
        facts = self._redactor.value(dict(ticket.facts))
        return {name: self._line(fact) for name, fact in facts.items()}

    def _is_own(self, ticket: Ticket) -> bool:
        subject = self._subjects.get(ticket.key.subject)
        return subject is None or subject.kind not in FOREIGN_WORDS

    def _foreign(self, ticket: Ticket, written: Mapping[str, str]) -> list[str]:
        """Return the facts that clients wrote: all text but that of names by which subjects tell a state."""
        return [
            fact
            for name, fact in written.items()
            if isinstance(ticket.facts.get(name), str)
            and any(map(str.isalpha, fact))
            and not (self._is_own(ticket) and _MEASURED.search(name))
        ]

    def _rule(self, ticket: Ticket) -> list[str]:
        invariant = self._invariant(ticket)
        if invariant is None:
            return []
        lines = [f"invariant: {invariant.title}. {invariant.description}".strip()]
        if invariant.limit is not None:
            bound = "at most" if invariant.above else "at least"
            limit = format_value(invariant.limit, invariant.unit)
            lines.append(f"limit: {bound} {limit} ({invariant.unit or 'no unit'})")
        return [self._line(line) for line in lines]

    def _invariant(self, ticket: Ticket) -> Invariant | None:
        subject = self._subjects.get(ticket.key.subject)
        known = subject.invariants if subject else ()
        return next((item for item in known if item.id == ticket.key.invariant), None)


def _by_subject(tickets: Sequence[Ticket]) -> dict[str, list[Ticket]]:
    found: dict[str, list[Ticket]] = {}
    for ticket in tickets:
        found.setdefault(ticket.key.subject, []).append(ticket)
    return found


def _named(name: str, source: EvidenceSource) -> EvidenceSource:
    return replace(source, title=f"{name}: {source.title}")


def failure_of(task: asyncio.Task[Any], limit: float) -> str:
    """Return how a source failed, or "". A source may be a plug-in: any error that it raises becomes
    evidence, so that one bad source does not prevent the diagnosis."""
    error = task.exception() if task.done() and not task.cancelled() else None
    if not task.done() or task.cancelled() or isinstance(error, TimeoutError):
        return f"no answer within {format_duration(limit)}"
    if isinstance(error, MidwatchError):
        return error.one_line()
    return f"{type(error).__name__}: {error}" if error else ""


def _time(at: datetime | None) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S UTC") if at else "unknown"
