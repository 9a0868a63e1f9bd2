"""Evidence from a database server: pieces by name, the most relevant first, and its checks again at this moment."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from midwatch.errors import ObservationFailed
from midwatch.model import Invariant, Origin, Signal, Ticket
from midwatch.subjects.base import EvidenceSource
from midwatch.subjects.findings import PartlyUnsupported
from midwatch.subjects.rows import text
from midwatch.units import format_value

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Piece(Generic[C]):
    """One kind of evidence. `fetch` raises MidwatchError.

    `log` marks lines of a log, `reported` text with statements of clients between its lines.
    """

    title: str
    source: str
    fetch: Callable[[C], Awaitable[str]]
    log: bool = False
    reported: bool = False


def piece_sources(
    subject: str,
    pieces: Mapping[str, Piece[C]],
    wanted: Iterable[str],
    concern: C,
    timeout: float,
    client_text: Sequence[re.Pattern[str]],
) -> list[EvidenceSource]:
    """Return the evidence that tickets want, what one of them wants first at the top.

    Args:
        subject: Its name.
        pieces: All evidence of this kind of server, by name.
        wanted: Names for each ticket, in one string, the most relevant first.
        concern: What the pieces are about, and their shared connection.
        timeout: Seconds for each piece.
        client_text: What clients wrote in a piece that the server measured.
    """
    ranks: dict[str, int] = {}
    for names in wanted:
        for position, name in enumerate(names.split()):
            ranks[name] = min(ranks.get(name, 99), 10 * (position + 1))

    def source(name: str) -> EvidenceSource:
        piece = pieces[name]
        return EvidenceSource(
            piece.title,
            f"{subject}: {piece.source}",
            partial(piece.fetch, concern),
            rank=ranks[name],
            timeout=timeout,
            log=piece.log,
            origin=Origin.REPORTED if piece.log or piece.reported else Origin.SYSTEM,
            reported=client_text,
        )

    return [source(name) for name in sorted(ranks, key=lambda name: ranks[name])]


# ------------------------------------------------------------------ now

Again = Callable[[Invariant, Collection[str]], Awaitable[Sequence[Signal] | str]]
"""Runs the check of an invariant for some components; returns signals, or a text where these tell nothing.

Raises ObservationFailed."""


async def state_now(
    invariants: Sequence[Invariant], tickets: Sequence[Ticket], again: Again
) -> str:
    """Return the state of the tickets' invariants at this moment, one component a line."""
    known = {one.id: one for one in invariants}
    broken: dict[str, set[str]] = {}
    for ticket in tickets:
        broken.setdefault(ticket.key.invariant, set()).add(ticket.key.component)
    lines: list[str] = []
    for name, components in broken.items():
        if name in known:
            lines += await _state_of(known[name], components, again)
    return "\n".join(lines)


async def _state_of(
    invariant: Invariant, components: set[str], again: Again
) -> list[str]:
    unseen = "nothing like it any more: it holds now"
    try:
        found = await again(invariant, components)
    except PartlyUnsupported as error:
        found, unseen = error.signals, f"not known now: {error.message}"
    except ObservationFailed as error:
        return [f"{invariant.id}: not known now: {error.message}"]
    if isinstance(found, str):
        return found.splitlines()
    lines = [_line(one, invariant) for one in found if one.component in components]
    gone = components - {one.component for one in found}
    return lines + [
        f"{invariant.id} on {text(one, 120)}: {unseen}" for one in sorted(gone)
    ]


def _line(signal: Signal, invariant: Invariant) -> str:
    parts = [f"{invariant.id} on {text(signal.component, 120)}"]
    holds = signal.holds
    if signal.value is not None and invariant.limit is not None:
        value = format_value(signal.value, invariant.unit)
        limit = format_value(invariant.limit, invariant.unit)
        holds = holds is not False and signal.value <= invariant.limit
        parts.append(f"{value} (limit {limit})")
    state = "not known now" if holds is None else "still broken"
    parts.append("it holds now" if holds else state)
    return ": ".join([*parts, signal.message])
