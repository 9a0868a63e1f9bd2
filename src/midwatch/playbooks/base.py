"""Playbooks turn facts and evidence into first aid, a preliminary diagnosis.

Playbooks are pure: no input, no output, no clock. They are named in the entry-point group
``midwatch.playbooks``. This module has their protocol, the helpers that they share, and the registry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol

from midwatch.diagnosis_schema import (
    Action,
    Citation,
    Confidence,
    DiagnosisOutput,
    Finding,
    MetricReading,
    Verdict,
)
from midwatch.errors import SettingsError
from midwatch.model import Context, Evidence, Ticket
from midwatch.text import one_line

Tickets = Sequence[Ticket]
Note = DiagnosisOutput | None
"""A preliminary diagnosis, or None when the evidence does not support one."""


ALIKE = 0.8
"""Two are alike where the smaller has this share of the larger: neither is called the first."""


class Playbook(Protocol):
    """First aid for some invariants of one kind of subject.

    `kind` is the kind of subject; `invariants` are the ids that it knows, the most relevant first.
    """

    kind: str
    invariants: Sequence[str]

    def first_aid(self, tickets: Tickets, context: Context) -> Note:
        """Return a preliminary diagnosis of the batch, or None when the evidence does not support one.

        Every claim cites the evidence of the context: its citations are checked like Claude's.

        Args:
            tickets: The tickets of the batch with one of `invariants`; at least one.
            context: The evidence.
        """
        ...


def find(context: Context, *needles: str) -> Citation | None:
    """Return a citation of the first line of evidence that contains all needles, in any letter case."""
    wanted = [needle.casefold() for needle in needles]
    for evidence in context.evidence:
        line = find_line(evidence, wanted) if evidence.available else None
        if line is not None:
            return Citation(evidence_id=evidence.id, quote=line)
    return None


def find_start(context: Context, start: str) -> Citation | None:
    """Return a citation of the first line of evidence that begins with `start`, not one that quotes it."""
    for evidence in context.evidence:
        for line in evidence.text.splitlines() if evidence.available else ():
            if line.startswith(start):
                return Citation(evidence_id=evidence.id, quote=bounded(line.strip()))
    return None


def find_line(evidence: Evidence, wanted: Sequence[str]) -> str | None:
    for line in evidence.text.splitlines():
        folded = line.casefold()
        if all(needle in folded for needle in wanted):
            return bounded(line.strip())
    return None


def bounded(line: str, limit: int = 300) -> str:
    """Return the line, cut between two words so that no number is cut."""
    return line if len(line) <= limit else line[:limit].rsplit(None, 1)[0]


# ------------------------------------------------------------------ facts and citations

SEVERITIES = "LOG|WARNING|ERROR|FATAL|PANIC"
# The first severity on a line is the server's own; the text behind it may quote a client.
_SEVERITY = re.compile(
    rf"\b({SEVERITIES}|DEBUG\d?|INFO|NOTICE|STATEMENT|DETAIL|HINT|CONTEXT|QUERY): +"
)


# The client of a line, which the evidence of the log has at the end.
_CLIENT = re.compile(r"  \(client: (.*)\)$")


def tickets_of(tickets: Tickets, *invariants: str) -> list[Ticket]:
    """Return the tickets of these invariants, in the order of the invariants."""
    return sorted(
        (ticket for ticket in tickets if ticket.key.invariant in invariants),
        key=lambda ticket: (invariants.index(ticket.key.invariant), ticket.id),
    )


@dataclass(slots=True)
class NotePlaybook:
    """A playbook that writes one note about all tickets of its invariants, in their order."""

    kind: str
    invariants: Sequence[str]
    write: Callable[[Tickets, Context], Note]

    def first_aid(self, tickets: Tickets, context: Context) -> Note:
        known = [
            ticket for ticket in tickets if ticket.key.invariant in self.invariants
        ]
        if not isinstance(self.invariants, AnyInvariant):
            known = tickets_of(known, *self.invariants)
        return self.write(known, context) if known else None


class AnyInvariant(tuple[str, ...]):
    """All invariants of a kind whose subjects name them themselves."""

    def __contains__(self, invariant: object) -> bool:
        return isinstance(invariant, str)


def playbook(
    kind: str, *invariants: str
) -> Callable[[Callable[[Tickets, Context], Note]], NotePlaybook]:
    """Make a playbook of a function that gets the tickets of `invariants`, at least one.

    Without `invariants` it gets all tickets of the kind.
    """
    return lambda write: NotePlaybook(kind, invariants or AnyInvariant(), write)


def integer_fact(ticket: Ticket, fact: str) -> int | None:
    value = ticket.facts.get(fact)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def text_fact(ticket: Ticket, fact: str, otherwise: str = "") -> str:
    value = ticket.facts.get(fact)
    return str(value) if value not in (None, "") else otherwise


def sql_literal(name: str) -> str:
    """Return a name as a string literal in SQL."""
    return "'" + name.replace("'", "''") + "'"


def session_line(context: Context, pid: int) -> Citation | None:
    """Return a citation of the line of evidence about this session."""
    return find(context, f"pid {pid}:")


def log_lines(
    context: Context, pattern: str, severities: str = SEVERITIES
) -> list[Citation]:
    """Return log lines whose message, after the severity, begins with the pattern; the latest first.

    A line that only contains the pattern, such as a logged statement, does not count, nor does one of other evidence:
    a client can write what looks like it into its statement or the name of its application.
    """
    wanted, among = re.compile(pattern), severities.split("|")
    found = []
    for evidence in context.evidence:
        log = evidence.available and "log" in evidence.title.casefold()
        for line in evidence.text.splitlines() if log else ():
            head = None if line[:1].isspace() else _SEVERITY.search(line[:2000])
            if head and head[1] in among and wanted.match(line[head.end() : 4000]):
                found.append(
                    Citation(evidence_id=evidence.id, quote=bounded(line.strip()))
                )
    return found[::-1]


def message_of(line: Citation) -> str:
    """Return what a log line says after its severity, without its client."""
    head = _SEVERITY.search(line.quote)
    said = line.quote[head.end() :] if head else line.quote
    return bounded(_CLIENT.sub("", said), 200)


def client_of(line: str) -> str:
    """Return role, database and application of a log line; empty where it does not have them."""
    found = _CLIENT.search(line)
    return bounded(found[1], 120) if found else ""


def finding(statement: str, *citations: Citation | None) -> Finding | None:
    """Return a claim with those of its citations that were found; None without any."""
    cited = [citation for citation in citations if citation is not None]
    return Finding(statement=statement, citations=cited) if cited else None


def reading(name: str, value: str, citation: Citation | None) -> MetricReading | None:
    return (
        MetricReading(name=name, value=value, citation=citation) if citation else None
    )


def action(
    what: str, *commands: str, risk: str = "none: it only reads", undo: bool = True
) -> Action:
    """Return an action; without a command in which a name was redacted: it would not be about what it names."""
    whole = [one for one in commands if "[redacted" not in one]
    return Action(what=what, commands=whole, risk=risk, reversible=undo)


def write_note(
    tickets: Tickets,
    *,
    summary: str,
    cause: str,
    cited: Iterable[Citation | None],
    actions: Sequence[Action],
    reason: str,
    verdict: Verdict = "suspected",
    confidence: Confidence = "medium",
    findings: Iterable[Finding | None] = (),
    readings: Iterable[MetricReading | None] = (),
    risks: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> Note:
    """Return the note about these tickets; None when no evidence supports the cause."""
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


def evidence_lines(context: Context, title: str) -> Iterator[tuple[str, str]]:
    """Yield evidence id and text of each line of the evidence whose title contains `title`.

    Other evidence is left out: the text of a page or a log must not pass for a measurement.
    """
    for evidence in context.evidence:
        if evidence.available and title in evidence.title:
            for line in evidence.text.splitlines():
                yield evidence.id, line.strip()


def matching_line(
    context: Context, title: str, matches: Callable[[str], bool]
) -> Citation | None:
    """Return a citation of the first such line that matches, or None."""
    for evidence_id, text in evidence_lines(context, title):
        if matches(text):
            return Citation(evidence_id=evidence_id, quote=bounded(text))
    return None


def line_starting(context: Context, title: str, start: str) -> Citation | None:
    return matching_line(context, title, lambda text: text.startswith(start))


def titled_lines(context: Context, title: str) -> Iterator[tuple[str, str]]:
    """Yield evidence id and text of each line of the evidence with exactly this title."""
    for evidence in context.evidence:
        if evidence.available and evidence.title == one_line(title, 120):
            for line in evidence.text.splitlines():
                yield evidence.id, line.strip()


def own_lines(context: Context, ticket: Ticket) -> Iterator[tuple[str, str]]:
    """Yield evidence id and text of each line about this ticket in the evidence about the violations."""
    for evidence in context.evidence:
        if evidence.title != "The violations":
            continue
        own = False
        for line in evidence.text.splitlines():
            if line.startswith("Ticket "):
                own = line.startswith(f"Ticket {ticket.id}:")
            if own and line.strip():
                yield evidence.id, line.strip()


def own_line(context: Context, ticket: Ticket, start: str) -> Citation | None:
    """Return a citation of the line about this ticket that starts so: "message: ", or a fact such as "mount: "."""
    for evidence_id, text in own_lines(context, ticket):
        if text.startswith(start):
            return Citation(evidence_id=evidence_id, quote=bounded(text))
    return None


def number_fact(ticket: Ticket, fact: str) -> float | None:
    value = ticket.facts.get(fact)
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if usable and value is not None else None


def measured(context: Context, title: str, name: str) -> MetricReading | None:
    """Return the value after `name:` in the evidence with this title."""
    found = line_starting(context, title, f"{name}: ")
    return reading(name, found.quote.partition(": ")[2] if found else "", found)


# ------------------------------------------------------------------ the registry

GROUP = "midwatch.playbooks"


def playbooks() -> list[Playbook]:
    """Return all playbooks. Each entry point names a sequence of them.

    Raises SettingsError for one that cannot be imported.
    """
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    return [playbook for point in points for playbook in _load(point)]


def _load(point: EntryPoint) -> Sequence[Playbook]:
    try:
        found: Sequence[Playbook] = point.load()
    except (ImportError, AttributeError) as error:
        raise SettingsError(
            f"the playbooks {point.name} cannot be loaded: {error}",
            hint=f"reinstall the package that provides {point.value}",
        ) from error
    return found
