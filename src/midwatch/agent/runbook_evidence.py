"""Runbooks as evidence: R1, R2, … within their part of the token budget, and their first steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from midwatch.agent.token_shares import LEAST_SHARE, OVERHEAD, fair_shares
from midwatch.diagnosis_schema import Citation, Finding
from midwatch.model import Context, Evidence, Origin, Ticket
from midwatch.runbooks.excerpt import excerpt, first_steps, words_of
from midwatch.silences import labels_of_ticket
from midwatch.text import estimate_tokens, one_line

if TYPE_CHECKING:
    from midwatch.runbooks.library import Found

SHARE = 0.25
"""The share of the evidence that runbooks may have at most."""
_LONGEST_WHY = 300
_LONGEST_STEP = 300
_MOST_NAMED = 5  # tickets


@dataclass(frozen=True, slots=True)
class Noted:
    """Runbooks as evidence, what they were made from, and the titles of those for which no tokens were left."""

    evidence: tuple[Evidence, ...] = ()
    found: tuple[Found, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Return the tokens that they need in a prompt, at most."""
        return sum(
            _head(one.title, one.source) + estimate_tokens(one.text)
            for one in self.evidence
        )


def noted(
    found: Sequence[Found],
    tickets: Sequence[Ticket],
    kinds: Mapping[str, str],
    tokens: int,
    now: datetime,
) -> Noted:
    """Return runbooks as numbered evidence within a budget: the last ones are left out first.

    Args:
        found: The runbooks, the most important first.
        tickets: The tickets of the incident.
        kinds: The kinds of their subjects, by name.
        tokens: The budget.
        now: When they were matched.
    """
    kept = list(found)
    heads = [_why(one) for one in kept]

    def least(index: int) -> int:
        one, text = kept[index].runbook, heads[index]
        body = min(estimate_tokens(one.text), LEAST_SHARE)
        return _head(one.title, one.place) + estimate_tokens(text) + body

    while kept and sum(map(least, range(len(kept)))) > tokens:
        kept.pop()
    fixed = [
        _head(one.runbook.title, one.runbook.place) + estimate_tokens(why) + 2
        for one, why in zip(kept, heads, strict=False)
    ]
    needs = [estimate_tokens(one.runbook.text) for one in kept]
    shares = fair_shares(needs, max(tokens - sum(fixed), 0))
    words = _words(tickets, kinds)
    evidence = tuple(
        _evidence(number, one, why, excerpt(one.runbook.text, share, words), now)
        for number, (one, why, share) in enumerate(
            zip(kept, heads, shares, strict=False), 1
        )
    )
    left_out = tuple(one.runbook.title for one in found[len(kept) :])
    return Noted(evidence, tuple(kept), left_out)


def _evidence(
    number: int, found: Found, why: str, text: str, now: datetime
) -> Evidence:
    runbook = found.runbook
    failure = one_line(found.failure, _LONGEST_WHY)
    if not text:
        whole = f"{why}\nUnavailable: {failure}"
    elif failure:
        whole = f"{why}\nThis is an earlier copy: {failure}\n\n{text}"
    else:
        whole = f"{why}\n\n{text}"
    return Evidence(
        id=f"R{number}",
        title=runbook.title,
        source=one_line(runbook.place, 200),
        at=now,
        text=whole,
        available=bool(text),
        origin=Origin.NOTE,
        tickets=tuple(found.hits),
    )


def _head(title: str, source: str) -> int:
    return OVERHEAD + estimate_tokens(title + source)


def _why(found: Found) -> str:
    """Return for which tickets a runbook is, and why."""
    by_reason: dict[str, list[str]] = {}
    for ticket, hit in found.hits.items():
        by_reason.setdefault(hit.reason, []).append(str(ticket))
    parts = []
    for reason, ids in by_reason.items():
        more = f" and {len(ids) - _MOST_NAMED} more" if len(ids) > _MOST_NAMED else ""
        noun = "ticket" if len(ids) == 1 else "tickets"
        named = ", ".join(ids[:_MOST_NAMED])
        parts.append(f"{noun} {named}{more} by {one_line(reason, _LONGEST_WHY)}")
    return f"A runbook for {'; '.join(parts[:_MOST_NAMED])}"


def _words(tickets: Sequence[Ticket], kinds: Mapping[str, str]) -> frozenset[str]:
    """Return the words of tickets that the headings of a runbook are compared with."""
    texts = []
    for one in tickets[:20]:
        labels = labels_of_ticket(one, kinds.get(one.key.subject, ""))
        texts += [one.message, one.key.invariant.replace("_", " "), *labels.values()]
    return words_of(*texts)


# ------------------------------------------------------------------ first aid


def runbook_findings(ids: Sequence[int], context: Context) -> list[Finding]:
    """Return the first steps of the best runbook for tickets, each with the quote of its line."""
    for one in context.evidence:
        if one.origin is not Origin.NOTE or not one.available:
            continue
        if one.tickets and not set(one.tickets) & set(ids):
            continue
        if steps := first_steps(one.text):
            return [
                Finding(
                    statement=f"The runbook “{one.title}” says, step {number}: {_cut(step)}",
                    citations=[Citation(evidence_id=one.id, quote=_cut(step))],
                )
                for number, step in enumerate(steps, 1)
            ]
    return []


def _cut(step: str) -> str:
    """Return a step, cut between two words."""
    return (
        step if len(step) <= _LONGEST_STEP else step[:_LONGEST_STEP].rsplit(None, 1)[0]
    )
