"""A diagnosis or first aid as the page shows it: claims with links to what they quote (pure).

Nothing here is escaped: the templates do that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError

from midwatch.agent.contradictions import Contradiction, contradictions
from midwatch.agent.grounding import Grounding, ground
from midwatch.agent.report import (
    LONGEST_TEXT,
    MOST_ITEMS,
    QUOTED,
    VERDICTS,
    bare_command,
    doubts_of,
    failure_of,
    is_hypothesis,
    is_no_risk,
)
from midwatch.diagnosis_schema import DiagnosisOutput
from midwatch.model import Diagnosis, Evidence, Json, Ticket
from midwatch.server.page.evidence_view import EvidenceIndex, EvidenceView
from midwatch.store.schema import evidence_of
from midwatch.text import one_line

_LONGEST_QUOTE = 500


@dataclass(frozen=True, slots=True)
class QuoteView:
    """A quote. `href` is the link to its place; `reason` is why it does not check, else ""."""

    evidence_id: str
    text: str
    href: str
    reason: str


@dataclass(frozen=True, slots=True)
class ClaimView:
    """A claim with its quotes. `basis` says who wrote what is quoted, or why the claim is not verified."""

    text: str
    verified: bool
    hypothesis: bool
    basis: str
    quotes: tuple[QuoteView, ...] = ()


@dataclass(frozen=True, slots=True)
class StepView:
    """Something to do. `objection` is what a later diagnosis says against it, else ""."""

    what: str
    commands: tuple[str, ...]
    risk: str
    reversible: bool
    objection: str = ""


@dataclass(frozen=True, slots=True)
class AnswerView:
    """All that the page shows of an answer. `objection` is what a later diagnosis says against its cause."""

    prefix: str
    summary: str
    verdict: str
    confidence: str
    affected: tuple[str, ...]
    root_cause: ClaimView | None
    steps: tuple[StepView, ...]
    doubts: tuple[str, ...]
    timeline: tuple[ClaimView, ...]
    metrics: tuple[ClaimView, ...]
    findings: tuple[ClaimView, ...]
    contradictions: tuple[ClaimView, ...]
    evidence: tuple[EvidenceView, ...]
    verified: int
    total: int
    objection: str = ""


def diagnosis_view(
    diagnosis: Diagnosis, tickets: Sequence[int] = ()
) -> AnswerView | None:
    """Return a diagnosis with its answer; None for one without an answer, or with one of an older form.

    Args:
        diagnosis: The diagnosis.
        tickets: Ids of the tickets of its incident.
    """
    output = _output(diagnosis.answer)
    if output is None:
        return None
    return _Builder(output, diagnosis.evidence, "").view(tickets, diagnosis.explains)


def first_aid_view(ticket: Ticket, diagnosis: Diagnosis | None) -> AnswerView | None:
    """Return the first aid of a ticket, with what its diagnosis says against it; None without any."""
    first_aid = ticket.first_aid or {}
    output = _output(first_aid.get("answer"))
    if output is None:
        return None
    later = None if diagnosis is None else _output(diagnosis.answer)
    points = contradictions(output, later) if later else []
    evidence = tuple(map(evidence_of, first_aid.get("evidence") or ()))
    builder = _Builder(output, evidence, "aid-", points)
    return builder.view([ticket.id], [ticket.id])


def _output(answer: Json | None) -> DiagnosisOutput | None:
    try:
        return DiagnosisOutput.model_validate(answer)
    except ValidationError:
        return None


class _Builder:
    def __init__(
        self,
        output: DiagnosisOutput,
        evidence: Sequence[Evidence],
        prefix: str,
        objections: Sequence[Contradiction] = (),
    ) -> None:
        self._output = output
        self._prefix = prefix
        self._grounding: Grounding = ground(output, evidence)
        self._claims = {claim.path: claim for claim in self._grounding.claims}
        self._index = EvidenceIndex(evidence, self._grounding, prefix)
        self._objections = {point.step: point.text for point in objections}

    def view(self, tickets: Sequence[int], settled: Sequence[int]) -> AnswerView:
        output, grounding = self._output, self._grounding
        return AnswerView(
            prefix=self._prefix,
            summary=_text(output.summary),
            verdict=VERDICTS[grounding.verdict],
            confidence=grounding.confidence,
            affected=tuple(map(_text, output.affected_components[:MOST_ITEMS])),
            root_cause=self._root_cause(),
            steps=self._steps(),
            doubts=tuple(
                map(_text, doubts_of(output, grounding, tickets, settled)[:MOST_ITEMS])
            ),
            timeline=self._listed(
                "timeline", [f"{one.at}: {one.what}" for one in output.timeline]
            ),
            metrics=self._listed(
                "metric_readings",
                [f"{one.name}: {one.value}" for one in output.metric_readings],
            ),
            findings=self._listed(
                "supporting_evidence",
                [one.statement for one in output.supporting_evidence],
            ),
            contradictions=self._listed(
                "runbook_contradictions",
                [one.statement for one in output.runbook_contradictions],
            ),
            evidence=self._index.pieces,
            verified=grounding.verified,
            total=grounding.total,
            objection=self._objections.get(0, ""),
        )

    def _root_cause(self) -> ClaimView | None:
        text = self._output.root_cause
        if not text.strip() and "root_cause" not in self._claims:
            return None
        claim = self._claim("root_cause", text or "none stated")
        suspected = self._grounding.verdict == "suspected"
        return replace(claim, hypothesis=True) if suspected else claim

    def _steps(self) -> tuple[StepView, ...]:
        actions = self._output.recommended_actions[:MOST_ITEMS]
        return tuple(
            StepView(
                _text(action.what),
                tuple(
                    bare_command(one)
                    for one in action.commands[:MOST_ITEMS]
                    if one.strip()
                ),
                "" if is_no_risk(action.risk) else _text(action.risk),
                action.reversible,
                self._objections.get(number, ""),
            )
            for number, action in enumerate(actions, 1)
        )

    def _listed(self, name: str, texts: Sequence[str]) -> tuple[ClaimView, ...]:
        shown = enumerate(texts[:MOST_ITEMS])
        return tuple(self._claim(f"{name}[{index}]", text) for index, text in shown)

    def _claim(self, path: str, text: str) -> ClaimView:
        claim = self._claims.get(path)
        hypothesis = is_hypothesis(text)
        if claim is None:
            return ClaimView(_text(text), False, hypothesis, "not checked")
        quotes = tuple(
            QuoteView(
                check.evidence_id,
                one_line(check.quote, _LONGEST_QUOTE) or "nothing",
                self._index.href(check),
                check.reason,
            )
            for check in claim.citations[:MOST_ITEMS]
        )
        basis = QUOTED[claim.origin] if claim.verified else failure_of(claim)
        return ClaimView(_text(text), claim.verified, hypothesis, basis, quotes)


def _text(text: str) -> str:
    return one_line(text, LONGEST_TEXT)
