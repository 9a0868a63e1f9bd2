"""First aid: the preliminary diagnosis that a playbook writes on a ticket when it opens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from midwatch.agent.evidence import CHANGED, ContextGatherer
from midwatch.agent.grounding import ground
from midwatch.agent.recent_changes import leads
from midwatch.agent.report import first_aid_markdown
from midwatch.agent.runbook_evidence import runbook_findings
from midwatch.diagnosis_schema import Citation, DiagnosisOutput, Finding
from midwatch.lifecycle import Clock
from midwatch.model import Context, Evidence, Json, Origin, Ticket
from midwatch.playbooks.base import Playbook, bounded
from midwatch.store.protocol import Store
from midwatch.store.schema import evidence_document

_TOKENS = 6000
_CITED_CHARACTERS = 4000
_NOTES = 20
"""Notes of one playbook for one opening."""
_MOST_LEADS = 3
"""Changes before the onset that a note names."""
_WITH_EVIDENCE = 20
"""Tickets of one opening that keep the evidence itself; more copies would only take space."""


class FirstAidWriter:
    """Writes first aid on tickets that just opened.

    `kinds` has the kind of each subject by its name. `timeout` is in seconds, for the evidence of one
    subject.
    """

    def __init__(
        self,
        store: Store,
        gatherer: ContextGatherer,
        playbooks: Sequence[Playbook],
        kinds: Mapping[str, str],
        clock: Clock,
        timeout: float,
    ) -> None:
        self._store = store
        self._gatherer = gatherer
        self._playbooks = playbooks
        self._kinds = kinds
        self._clock = clock
        self._timeout = timeout

    async def give(self, opened: Sequence[Ticket], changed: str = "") -> None:
        """Gather evidence, apply the playbooks and store what they return.

        Args:
            opened: Tickets that just opened.
            changed: What differs from when every invariant held, as evidence.

        Raises:
            MidwatchError: The store cannot be used.
        """
        ordered = sorted(opened, key=lambda ticket: (ticket.key.subject, ticket.id))
        for subject, group in groupby(ordered, key=lambda ticket: ticket.key.subject):
            await self._give(self._kinds.get(subject, ""), list(group), changed)

    async def _give(self, kind: str, tickets: list[Ticket], changed: str) -> None:
        context = await self._gatherer.gather(
            tickets,
            timeout=self._timeout,
            tokens=_TOKENS,
            changed=changed,
            linked=False,
        )
        for ids, note in preliminary(self._playbooks, kind, tickets, context):
            output = with_runbook(note, ids, context)
            document = self._document(output, context)
            await self._store.save_first_aid(ids[:_WITH_EVIDENCE], document)
            if rest := ids[_WITH_EVIDENCE:]:
                await self._store.save_first_aid(rest, {**document, "evidence": []})

    def _document(self, output: DiagnosisOutput, context: Context) -> Json:
        grounding = ground(output, context.evidence)
        return {
            "summary": output.summary,
            "root_cause": output.root_cause,
            "verdict": grounding.verdict,
            "confidence": grounding.confidence,
            "grounded": {"verified": grounding.verified, "total": grounding.total},
            "written_at": self._clock.now().isoformat(),
            "markdown": first_aid_markdown(output, grounding, context.evidence),
            "answer": output.model_dump(mode="json"),
            "evidence": evidence_document(tuple(_cited(output, context.evidence))),
        }


def preliminary(
    playbooks: Iterable[Playbook],
    kind: str,
    tickets: Sequence[Ticket],
    context: Context,
) -> list[tuple[list[int], DiagnosisOutput]]:
    """Return the first aid of the playbooks with the tickets it is for; the rest get a general note.

    A note is for the tickets that it explains. A playbook is asked again for those that it leaves.
    """
    waiting = {ticket.id: ticket for ticket in tickets}
    notes: list[tuple[list[int], DiagnosisOutput]] = []
    for playbook in playbooks:
        if playbook.kind != kind:
            continue
        for _ in range(_NOTES):
            known = [
                ticket
                for ticket in waiting.values()
                if ticket.key.invariant in playbook.invariants
            ]
            output = playbook.first_aid(known, context) if known else None
            if output is None:
                break
            ids = [one.id for one in known if one.id in output.explained_tickets]
            if not ids:
                break
            notes.append((ids, output))
            for ticket_id in ids:
                del waiting[ticket_id]
    notes += [
        ([ticket.id], general_note(ticket, context)) for ticket in waiting.values()
    ]
    return [(ids, led_by_changes(output, context)) for ids, output in notes]


def led_by_changes(output: DiagnosisOutput, context: Context) -> DiagnosisOutput:
    """Return first aid that begins with what changed shortly before the onset; it never calls that the cause."""
    found = leads(context, _MOST_LEADS)
    if not found:
        return output
    named = "; ".join(f"{one.what} ({one.when})" for one in found)
    findings = [
        Finding(
            statement=f"Changed {one.when}: {one.what}",
            citations=[
                Citation(evidence_id=one.evidence_id, quote=bounded(one.line.strip()))
            ],
        )
        for one in found
    ]
    return output.model_copy(
        update={
            "summary": f"Changed shortly before: {named}. {output.summary}",
            "supporting_evidence": [*findings, *output.supporting_evidence],
        }
    )


def with_runbook(
    note: DiagnosisOutput, ids: Sequence[int], context: Context
) -> DiagnosisOutput:
    """Return a note with the first steps of the best runbook for its tickets, each quoted."""
    steps = runbook_findings(ids, context)
    if not steps:
        return note
    return note.model_copy(
        update={"supporting_evidence": [*note.supporting_evidence, *steps]}
    )


def general_note(ticket: Ticket, context: Context) -> DiagnosisOutput:
    """Return the first aid of a ticket that no playbook knows: what is broken, and what to read."""
    first = context.evidence[0] if context.evidence else None
    quote = _line_with(first, ticket.message) if first else None
    cited = [Citation(evidence_id=first.id, quote=quote)] if first and quote else []
    measured = [one for one in context.evidence if one.origin is not Origin.NOTE]
    available = [piece.title for piece in measured[1:] if piece.available]
    missing = [
        f"{piece.title}: {piece.text}" for piece in measured if not piece.available
    ]
    return DiagnosisOutput(
        summary=f"{ticket.message}. No playbook knows more.",
        verdict="insufficient_data",
        root_cause="",
        root_cause_citations=[],
        confidence="low",
        confidence_reason="no playbook matched",
        explained_tickets=[ticket.id],
        timeline=[],
        affected_components=[ticket.key.component],
        metric_readings=[],
        supporting_evidence=[Finding(statement=ticket.message, citations=cited)],
        alternatives_considered=[],
        recommended_actions=[],
        severity=ticket.severity.label,
        risks=[],
        missing=missing or [f"Look at: {title}" for title in available[:5]],
    )


def _line_with(evidence: Evidence, text: str) -> str | None:
    for line in evidence.text.splitlines():
        if text in line:
            return text
    return None


def _cited(output: DiagnosisOutput, evidence: Sequence[Evidence]) -> Iterable[Evidence]:
    """Return the pieces that the output cites, what changed, and runbooks, each bounded."""
    dumped = output.model_dump_json()
    for piece in evidence:
        kept = piece.title == CHANGED or piece.origin is Origin.NOTE
        if kept or f'"{piece.id}"' in dumped:
            yield replace(piece, text=piece.text[:_CITED_CHARACTERS])
