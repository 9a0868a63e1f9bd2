"""Context to diagnosis: the steps that one try may take, and what a reply becomes.

All of it is pure; the calls themselves are `midwatch.claude`'s, the writes the runner's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from midwatch.answer import DiagnosisOutput
from midwatch.evidence_budget import halve
from midwatch.grounding import ground
from midwatch.model import Context, DiagnosisOutcome, Grounded, Ticket, Usage
from midwatch.prices import cost_usd
from midwatch.prompt import Prompt, compose
from midwatch.redaction import Redactor
from midwatch.render import diagnosis_markdown
from midwatch.reply import Kind, Reply
from midwatch.store.protocol import Finish
from midwatch.text import clean, estimate_tokens

LONGEST_ANSWER = 32_000
"""Tokens; a second try after a cut answer never asks for more."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a try: what is sent, and which remedies were used on the way here."""

    context: Context
    max_tokens: int
    correction: str | None = None
    used: frozenset[Kind] = frozenset()

    @property
    def prompt(self) -> Prompt:
        return compose(self.context, self.correction)

    def worst_case_usd(self, model: str) -> float:
        """What the call costs at most: every token of the prompt, and the longest answer."""
        prompt = self.prompt
        tokens = estimate_tokens(prompt.system) + estimate_tokens(prompt.user)
        return cost_usd(
            model, Usage(input_tokens=tokens, output_tokens=self.max_tokens)
        )


def next_step(step: Step, reply: Reply) -> Step | None:
    """The remedy for a reply that cannot be used, each once per try; None where there is none."""
    if reply.kind in step.used:
        return None
    used = step.used | {reply.kind}
    if reply.kind is Kind.REJECTED:
        return replace(step, context=halve(step.context), used=used)
    if reply.kind is Kind.CUT and step.max_tokens < LONGEST_ANSWER:
        longer = min(step.max_tokens * 2, LONGEST_ANSWER)
        return replace(step, max_tokens=longer, used=used)
    if reply.kind is Kind.INVALID:
        return replace(step, correction=reply.error, used=used)
    return None


_OUTCOMES: dict[Kind, DiagnosisOutcome] = {
    Kind.ANSWERED: "answered",
    Kind.REFUSED: "refused",
    Kind.CUT: "cut",
    Kind.INVALID: "error",
    Kind.REJECTED: "error",
}


def conclude(reply: Reply, step: Step, redactor: Redactor) -> Finish:
    """A reply that ends the try, as it is stored."""
    finish = paid(reply, _OUTCOMES.get(reply.kind, "error"), step.context)
    if reply.output is None:
        return finish
    output = _taken_in(reply.output, redactor)
    grounding = ground(output, step.context.evidence)
    # What is stored is what held: `markdown` says what the answer claimed beyond that.
    held = {"verdict": grounding.verdict, "confidence": grounding.confidence}
    return replace(
        finish,
        answer={**output.model_dump(mode="json"), **held},
        markdown=diagnosis_markdown(output, grounding, step.context.evidence),
        confidence=grounding.confidence,
        grounded=Grounded(grounding.verified, grounding.total),
        explains=explained(output, step.context.tickets),
    )


def _taken_in(output: DiagnosisOutput, redactor: Redactor) -> DiagnosisOutput:
    """A model's words are as hostile as what it read, and get what evidence gets: no secrets, and
    nothing that acts on a terminal. Quotes of such evidence stay as they are."""
    harmless = redactor.value(_cleaned(output.model_dump()))
    return DiagnosisOutput.model_validate(harmless)


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value, longest=None)
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    if isinstance(value, dict):
        return {name: _cleaned(item) for name, item in value.items()}
    return value


def paid(reply: Reply, outcome: DiagnosisOutcome, context: Context) -> Finish:
    """What every call leaves behind, whatever its outcome: usage, cost, error, evidence."""
    return Finish(
        outcome,
        usage=reply.usage,
        cost_usd=cost_usd(reply.model, reply.usage) if reply.model else 0.0,
        error=reply.error or None,
        request_id=reply.request_id,
        evidence=context.evidence,
    )


def explained(output: DiagnosisOutput, tickets: Sequence[Ticket]) -> tuple[int, ...]:
    """The tickets that an answer settles.

    An answer without a cause settles all of them, and so does one that names none of them:
    asking again with the same evidence would only cost again.
    """
    ids = tuple(ticket.id for ticket in tickets)
    if output.verdict not in ("identified", "suspected"):
        return ids
    return tuple(id_ for id_ in ids if id_ in output.explained_tickets) or ids
