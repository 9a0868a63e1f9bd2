"""What playbooks share: reading facts, quoting evidence, writing it down (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from midwatch.answer import (
    Action,
    Citation,
    Confidence,
    DiagnosisOutput,
    Finding,
    MetricReading,
    Verdict,
)
from midwatch.model import Context, Ticket
from midwatch.playbooks.base import bounded, find

SEVERITIES = "LOG|WARNING|ERROR|FATAL|PANIC"
# The first on a line is the server's own; what follows may quote a client.
_SEVERITY = re.compile(
    rf"\b({SEVERITIES}|DEBUG\d?|INFO|NOTICE|STATEMENT|DETAIL|HINT|CONTEXT|QUERY): +"
)


def of(tickets: Sequence[Ticket], *invariants: str) -> list[Ticket]:
    """The tickets of these invariants, most urgent first."""
    return sorted(
        (ticket for ticket in tickets if ticket.key.invariant in invariants),
        key=lambda ticket: (invariants.index(ticket.key.invariant), ticket.id),
    )


def integer(ticket: Ticket, fact: str) -> int | None:
    value = ticket.facts.get(fact)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def word(ticket: Ticket, fact: str, otherwise: str = "") -> str:
    value = ticket.facts.get(fact)
    return str(value) if value not in (None, "") else otherwise


def literal(name: str) -> str:
    """A name as a string in SQL."""
    return "'" + name.replace("'", "''") + "'"


def session_line(context: Context, pid: int) -> Citation | None:
    """The line of evidence that tells what this session is and does."""
    return find(context, f"pid {pid}:")


def log_lines(
    context: Context, pattern: str, severities: str = SEVERITIES
) -> list[Citation]:
    """Log lines whose message, after the severity, begins with the pattern; the latest first.

    Lines that only contain the words, such as a logged statement, are not taken.
    """
    wanted, among = re.compile(pattern), severities.split("|")
    found = []
    for evidence in context.evidence:
        for line in evidence.text.splitlines() if evidence.available else ():
            head = None if line[:1].isspace() else _SEVERITY.search(line[:2000])
            if head and head[1] in among and wanted.match(line[head.end() : 4000]):
                found.append(
                    Citation(evidence_id=evidence.id, quote=bounded(line.strip()))
                )
    return found[::-1]


def finding(statement: str, *citations: Citation | None) -> Finding | None:
    """A claim with those of its citations that were found; none without any."""
    cited = [citation for citation in citations if citation is not None]
    return Finding(statement=statement, citations=cited) if cited else None


def reading(name: str, value: str, citation: Citation | None) -> MetricReading | None:
    return (
        MetricReading(name=name, value=value, citation=citation) if citation else None
    )


def step(
    what: str, *commands: str, risk: str = "none: it only reads", undo: bool = True
) -> Action:
    return Action(what=what, commands=list(commands), risk=risk, reversible=undo)


def write(
    tickets: Sequence[Ticket],
    *,
    summary: str,
    cause: str,
    cited: Iterable[Citation | None],
    actions: Sequence[Action],
    reason: str,
    verdict: Verdict = "identified",
    confidence: Confidence = "high",
    findings: Iterable[Finding | None] = (),
    readings: Iterable[MetricReading | None] = (),
    risks: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> DiagnosisOutput | None:
    """The note about these tickets; none when no evidence carries the cause."""
    citations = [citation for citation in cited if citation is not None]
    if not citations:
        return None
    return DiagnosisOutput(
        summary=summary,
        verdict=verdict,
        root_cause=cause,
        root_cause_citations=citations,
        confidence=confidence,
        confidence_reason=reason,
        explained_tickets=[ticket.id for ticket in tickets],
        timeline=[],
        affected_components=list(
            dict.fromkeys(f"{one.key.subject}/{one.key.component}" for one in tickets)
        ),
        metric_readings=[one for one in readings if one is not None],
        supporting_evidence=[one for one in findings if one is not None],
        alternatives_considered=[],
        recommended_actions=list(actions),
        severity=min(ticket.severity for ticket in tickets).label,
        risks=list(risks),
        missing=list(missing),
    )
