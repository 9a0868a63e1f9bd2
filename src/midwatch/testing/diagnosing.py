"""Ready-made incidents and answers for tests of what diagnoses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..model import Json, Key, Severity, Ticket, Violation
from ..store.protocol import Changes, Opening, Store


async def open_tickets(
    store: Store,
    *components: str,
    subject: str = "fake",
    invariant: str = "alive",
    severity: Severity = Severity.WARNING,
) -> list[Ticket]:
    """Open one ticket per component, all in one batch that can be claimed at once."""
    watch = await store.watch(subject)
    openings = tuple(
        Opening(
            Violation(
                Key(subject, invariant, component), severity, f"{component} is broken"
            )
        )
        for component in components
    )
    saved = await store.save_cycle(subject, watch.revision, Changes(openings=openings))
    return list(saved.opened)


def answer(
    root_cause: str = "process 4711 holds the lock",
    *,
    quote: str = "",
    evidence_id: str = "E1",
    explains: Sequence[int] = (),
    **changes: Any,
) -> Json:
    """A whole `DiagnosisOutput` as JSON; `quote` is cited for the root cause if it is given."""
    cited = [{"evidence_id": evidence_id, "quote": quote}] if quote else []
    return {
        "summary": f"Summary: {root_cause}.",
        "verdict": "identified",
        "root_cause": root_cause,
        "root_cause_citations": cited,
        "confidence": "high",
        "confidence_reason": "the evidence shows it",
        "explained_tickets": list(explains),
        "timeline": [],
        "affected_components": [],
        "metric_readings": [],
        "supporting_evidence": [],
        "alternatives_considered": [],
        "recommended_actions": [],
        "severity": "critical",
        "risks": [],
        "missing": [],
        **changes,
    }
