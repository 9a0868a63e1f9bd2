"""Render a diagnosis as Markdown (pure), in the order in which it is needed at night.

What broke, the root cause with its quotes, what to do now and what it explains come first, then
the doubts. Below the fold are timeline and evidence.

Every string of the answer is hostile: it is escaped, or stands in a code fence that it cannot
end. No image, link, HTML or control character of it is rendered.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TypeVar

from midwatch.agent.grounding import CitationCheck, ClaimCheck, Grounding
from midwatch.diagnosis_schema import Action, Alternative, DiagnosisOutput, Verdict
from midwatch.markdown import QUOTES, fenced, fold
from midwatch.model import Evidence, Origin, Ticket
from midwatch.text import code_span, markdown_escape, one_line
from midwatch.units import format_count

LONGEST_TEXT = 4000
"""Characters shown of one string of an answer."""
MOST_ITEMS = 200
"""Entries shown of one list of an answer."""
MOST_DOUBTS = 6
"""Doubts before the fold; the rest is below it."""
MOST_TICKETS = 5
"""Tickets that are named with their message; of more there are only the numbers. Also components."""
_LONGEST_QUOTE = 500

_WORDS = re.compile(r"\w{4,}|\d+")

_Item = TypeVar("_Item")

VERDICTS: dict[Verdict, str] = {
    "identified": "Cause identified",
    "suspected": "Cause suspected",
    "insufficient_data": "Not enough data",
    "no_fault": "No fault found",
}
_ORIGINS = {
    Origin.REPORTED: "written by clients or into logs",
    Origin.EARLIER: "an earlier diagnosis or note",
    Origin.NOTE: "a runbook",
}
QUOTED = {
    Origin.SYSTEM: "quoted",
    Origin.REPORTED: "quoted from what clients or logs say",
    Origin.EARLIER: "quoted from an earlier diagnosis or note, which proves nothing",
    Origin.NOTE: "quoted from a runbook, which does not say what is",
}
_HEDGE = re.compile(
    r"(?i:\b(?:probabl[ye]|presumabl[ye]|possibl[ye]|perhaps|maybe|(?:un)?likely|seems?|seemingly|apparently"
    r"|appears? (?:to|that)|suspected|suspect(?:s|ing)? (?:that|an?|the)|might|may (?:be|have)"
    r"|(?<!no )(?<!not )could (?:also |well )?(?:be|have) (?!found|read|seen)|would (?:explain|have been)"
    r"|plausibl[ye]|potentially|assum(?:e[ds]?|ing|ption)|guess|hypothes[ie]s|must have|consistent with"
    r"|suggests?|looks? like|(?:think|believe)s?|unclear|cannot be ruled out)\b)|\bmay\b(?! \d)"
)
"""Words of a sentence that states less than a fact."""
_IN_CODE = re.compile(
    r"(?s)(?P<ticks>`{3,}|~{3,})[\w-]*\n(?P<fenced>(?:(?!(?P=ticks)).)+?)\n(?P=ticks)|`(?P<inline>[^`\n]+)`"
)
_QUOTATION = re.compile(r"`[^`]*`|\"[^\"]*\"|“[^”]*”")
_NO_RISK = re.compile(
    r"(?i)\W*|(?:(?:it )?only reads|reads only|read[- ]only|none|no(?: known| expected)? risks?|n/?a|nil|nothing)(?: known| expected| at all)?"
    r"(?:\s*[-–—:;,.(](?P<reason>.*))?"
)
_HARMLESS = re.compile(
    r"(?i)\b(?:reads?|reading|looks?|selects?|quer(?:y|ies)|shows?|lists?|prints?|harmless|safe|information)\b"
    r"|\b(?:changes?|writes?|locks?|touches|affects?) (?:nothing|no)\b|\b(?:nothing|no \w+) is (?:changed|written|locked|touched)\b|\W*$"
)
_HARM = re.compile(
    r"(?i)\b(?:but|however|unless|except|if|may|might|could|until|though|although|los[et]s?|lost|ends?|drops?|cancels?|kills?"
    r"|restarts?|stops?|blocks?|waits?|slows?|(?<!no )(?<!nothing is )(?:locks?|writes?|changes?|deletes?)(?! (?:nothing|no)\b))\b"
)
"""What a reason for "no risk" may say, and what makes it a risk."""


def diagnosis_markdown(
    output: DiagnosisOutput,
    grounding: Grounding,
    evidence: Sequence[Evidence],
    *,
    tickets: Sequence[Ticket] = (),
    settled: Sequence[int] | None = None,
    heading: str = "Diagnosis",
) -> str:
    """Return the whole answer; of each claim it says what is quoted for it.

    Args:
        output: The answer.
        grounding: The checks of its claims.
        evidence: What it was made from.
        tickets: The tickets of its incident; without them only their numbers are shown.
        settled: Ids of the tickets that the answer settles; by default those that it names.
        heading: The heading of the page.
    """
    named = output.explained_tickets if settled is None else settled
    page = _Page(output, grounding, evidence, tickets, named)
    parts = [f"## {_text(heading)}", *page.parts()]
    return "\n\n".join(part for part in parts if part) + "\n"


def first_aid_markdown(
    output: DiagnosisOutput, grounding: Grounding, evidence: Sequence[Evidence]
) -> str:
    """Return a playbook's preliminary diagnosis in the same form."""
    return diagnosis_markdown(output, grounding, evidence, heading="First aid")


class _Page:
    def __init__(
        self,
        output: DiagnosisOutput,
        grounding: Grounding,
        evidence: Sequence[Evidence],
        tickets: Sequence[Ticket],
        settled: Sequence[int],
    ) -> None:
        self._output = output
        self._grounding = grounding
        self._claims = {claim.path: claim for claim in grounding.claims}
        self._evidence = evidence
        self._tickets = {ticket.id: ticket for ticket in tickets}
        self._settled = settled

    def parts(self) -> Iterator[str]:
        output = self._output
        doubts = doubts_of(output, self._grounding, self._tickets, self._settled)
        summary = _text(output.summary)
        yield f"**{summary}**" if summary else ""
        yield self._verdict()
        yield _section("Root cause", self._root_cause())
        yield _section("What to do now", list(self._actions()))
        yield _section("Where a runbook does not fit", [_list(self._contradictions())])
        yield _section("What it explains", [_list(self._explained())])
        yield _section("Doubts", [_list(map(_text, doubts[:MOST_DOUBTS]))])
        yield fold(self._fold_title(), self._below(doubts[MOST_DOUBTS:]))

    def _verdict(self) -> str:
        grounding, output = self._grounding, self._output
        components = output.affected_components
        affected = ", ".join(map(_text, components[:MOST_TICKETS]))
        if len(components) > MOST_TICKETS:
            affected += f" and {len(components) - MOST_TICKETS} more"
        return (
            f"**{VERDICTS[grounding.verdict]}**, confidence **{grounding.confidence}**"
            f", severity **{output.severity}**{f'; affected: {affected}' if affected else ''}"
        )

    def _root_cause(self) -> Iterator[str]:
        text, claim = self._output.root_cause, self._claims.get("root_cause")
        if claim is None:
            yield _text(text)
            return
        hypothesis = is_hypothesis(text) or self._grounding.verdict == "suspected"
        mark = "Hypothesis: " if hypothesis and text.strip() else ""
        # The doubts have the reason.
        basis = _basis(claim) if claim.verified else "**unverified**"
        yield f"{mark}{_text(text) or 'none stated'} ({basis})"
        yield fold(QUOTES, _list(map(_quote, _some(claim.citations))))

    def _actions(self) -> Iterator[str]:
        for number, action in enumerate(_some(self._output.recommended_actions), 1):
            yield _action(number, action)

    def _explained(self) -> Iterator[str]:
        """Yield what the settle rule makes of each ticket of the incident (docs/architecture.md)."""
        yield from self._named("", _some(self._settled))
        left_out = [id_ for id_ in self._tickets if id_ not in self._settled]
        yield from self._named("left out: ", left_out)

    def _named(self, mark: str, ids: Sequence[int]) -> Iterator[str]:
        if len(ids) > MOST_TICKETS or not self._tickets:
            if ids:
                noun = "ticket" if len(ids) == 1 else "tickets"
                yield f"{mark}{noun} {', '.join(map(str, _some(ids)))}"
            return
        for id_ in ids:
            ticket = self._tickets[id_]
            key = f"{_text(ticket.key.subject)}, {_text(ticket.key.invariant)}"
            yield f"{mark}ticket {id_} ({key}): {_text(ticket.message)}"

    # ------------------------------------------------------------------ below the fold

    def _fold_title(self) -> str:
        grounding, moments = self._grounding, len(self._output.timeline)
        timeline = f"timeline ({format_count(moments, 'moment')}), " if moments else ""
        sources = format_count(len(self._listed_evidence()), "source")
        claims = f"{grounding.verified} of {grounding.total} claims quoted"
        title = f"{timeline}evidence ({sources}; {claims})"
        return title[0].upper() + title[1:]

    def _below(self, doubts: Sequence[str]) -> str:
        output = self._output
        reason = (
            output.confidence_reason if self._grounding.confidence == "high" else ""
        )
        alternatives = [
            _alternative(item)
            for item in _some(output.alternatives_considered)
            if item.supporting.strip() or item.contradicting.strip()
        ]
        parts = [
            _list(map(_text, doubts)),
            f"Confidence: {_text(reason)}" if reason.strip() else "",
            _section("Timeline", [_list(self._timeline())]),
            _section("Metrics", [_list(self._metrics())]),
            _section("Findings", [_list(self._findings())]),
            _section("Alternatives considered", [_list(alternatives)]),
            _section("Evidence", [_list(map(_source, self._listed_evidence()))]),
        ]
        return "\n\n".join(part for part in parts if part)

    def _listed_evidence(self) -> list[Evidence]:
        """Return the evidence that is cited, and that which was unavailable."""
        cited = {citation.evidence_id for citation in self._grounding.citations}
        return [
            item for item in self._evidence if item.id in cited or not item.available
        ]

    def _timeline(self) -> Iterator[str]:
        for index, moment in enumerate(_some(self._output.timeline)):
            yield self._claim(f"timeline[{index}]", f"{moment.at}: {moment.what}")

    def _metrics(self) -> Iterator[str]:
        for index, reading in enumerate(_some(self._output.metric_readings)):
            text = f"{reading.name}: {reading.value}"
            yield self._claim(f"metric_readings[{index}]", text)

    def _findings(self) -> Iterator[str]:
        for index, finding in enumerate(_some(self._output.supporting_evidence)):
            yield self._claim(f"supporting_evidence[{index}]", finding.statement)

    def _contradictions(self) -> Iterator[str]:
        for index, point in enumerate(_some(self._output.runbook_contradictions)):
            yield self._claim(f"runbook_contradictions[{index}]", point.statement)

    def _claim(self, path: str, text: str) -> str:
        claim = self._claims.get(path)
        mark = "Hypothesis: " if is_hypothesis(text) else ""
        if claim is None or not claim.verified:
            why = f": {_text(failure_of(claim))}" if claim else ""
            return f"{mark}{_text(text)} (**unverified**{why})"
        quotes = "; ".join(map(_quote, _some(claim.citations)))
        return f"{mark}{_text(text)} ({QUOTED[claim.origin]}: {quotes})"


def _text(text: str) -> str:
    return markdown_escape(one_line(text, LONGEST_TEXT))


def _some(items: Sequence[_Item]) -> Sequence[_Item]:
    return items[:MOST_ITEMS]


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _section(title: str, parts: Iterable[str]) -> str:
    """Return a heading and its parts, or "" if all parts are empty."""
    filled = [part for part in parts if part.strip()]
    return "\n\n".join([f"### {title}", *filled]) if filled else ""


# ------------------------------------------------------------------ doubts


def doubts_of(
    output: DiagnosisOutput,
    grounding: Grounding,
    tickets: Collection[int],
    settled: Collection[int],
) -> list[str]:
    """Return what speaks against an answer, the most important first. Nothing in it is escaped.

    Args:
        output: The answer.
        grounding: The checks of its claims.
        tickets: Ids of the tickets of its incident; may be empty.
        settled: Ids of the tickets that the answer settles.
    """
    return list(_different(_doubts(output, grounding, tickets or settled)))


def _doubts(
    output: DiagnosisOutput, grounding: Grounding, tickets: Collection[int]
) -> Iterator[str]:
    root = grounding.claim("root_cause")
    failed = "" if root is None or root.verified else failure_of(root)
    if grounding.lowered:
        stated = f"{VERDICTS[output.verdict].lower()}, {output.confidence}"
        why = f" ({failed})" if failed else ""
        yield f"Lowered from “{stated}”: {grounding.lowered}{why}."
    elif failed:
        yield f"The root cause is unverified ({failed})."
    elif grounding.verified < grounding.total:
        missed = grounding.total - grounding.verified
        yield f"{missed} of {grounding.total} claims are unverified."
    if grounding.confidence != "high" and output.confidence_reason.strip():
        yield f"Confidence: {output.confidence_reason}"
    foreign = set(output.explained_tickets) - set(tickets)
    if foreign:
        shown = sorted(foreign)[:MOST_TICKETS]
        ids = ", ".join(one_line(str(one), 20) for one in shown)
        yield f"It names tickets that are not of this incident; they are ignored: {ids}"
    for item in _some(output.missing):
        yield f"Missing: {item}"
    for risk in _some(output.risks):
        if not is_no_risk(risk):
            yield f"Risk: {risk}"
    for other in _some(output.alternatives_considered):
        judged = other.conclusion.strip() or other.contradicting.strip()
        yield f"Alternative: {other.hypothesis}{f' ({judged})' if judged else ''}"


# ------------------------------------------------------------------ claims


def is_hypothesis(text: str) -> bool:
    """Return whether a sentence hedges; what it quotes does not count."""
    return _HEDGE.search(_QUOTATION.sub("", text)) is not None


def _basis(claim: ClaimCheck) -> str:
    """Return that a claim is quoted, who wrote what is quoted, and where it stands."""
    numbers = dict.fromkeys(
        _text(check.evidence_id) for check in claim.citations if check.verified
    )
    return f"{QUOTED[claim.origin]}: {', '.join(list(numbers)[:MOST_ITEMS])}"


def failure_of(claim: ClaimCheck) -> str:
    """Return why a claim is unverified, with the number of the evidence."""
    failed = next((check for check in claim.citations if not check.verified), None)
    culprit = f"{failed.evidence_id}: " if failed else ""
    return f"{culprit}{claim.reason}"


def _quote(check: CitationCheck) -> str:
    """Return a quote as code behind its number."""
    shown = code_span(one_line(check.quote, _LONGEST_QUOTE) or "nothing")
    failed = "" if check.verified else f", unverified ({check.reason})"
    return f"{_text(check.evidence_id)}{failed}: {shown}"


def _different(doubts: Iterable[str]) -> Iterator[str]:
    """Yield each doubt once: one whose words nearly all stand in an earlier one is left out."""
    earlier: list[set[str]] = []
    for doubt in doubts:
        words = set(_WORDS.findall(doubt.partition(": ")[2].casefold()))
        if words and any(len(words & one) >= 0.8 * len(words) for one in earlier):
            continue
        earlier.append(words)
        yield doubt


# ------------------------------------------------------------------ actions and sources


def _action(number: int, action: Action) -> str:
    notes = [] if action.reversible else ["**cannot be undone**"]
    if not is_no_risk(action.risk):
        notes.append(f"risk: {_text(action.risk)}")
    noted = f" ({'; '.join(notes)})" if notes else ""
    commands = (command for command in _some(action.commands) if command.strip())
    shown = [fenced(bare_command(command)) for command in commands]
    return "\n".join([f"**{number}.** {_text(action.what)}{noted}", *shown])


def bare_command(command: str) -> str:
    """Return a command without a fence or marks of code around it, which a shell does not take."""
    found = _IN_CODE.fullmatch(command.strip())
    return command if found is None else found["fenced"] or found["inline"]


def is_no_risk(risk: str) -> bool:
    """Return whether a text only says that there is no risk, and perhaps why not: "none: it only reads"."""
    found = _NO_RISK.fullmatch(" ".join(risk.split()))
    reason = (found["reason"] or "") if found else ""
    harmless = _HARMLESS.search(reason) if reason else found
    return harmless is not None and not _HARM.search(reason)


def _alternative(item: Alternative) -> str:
    reasons_given = (("for", item.supporting), ("against", item.contradicting))
    reasons = "; ".join(
        f"{name}: {_text(text)}" for name, text in reasons_given if text.strip()
    )
    return f"{_text(item.hypothesis)} ({reasons})"


def _source(item: Evidence) -> str:
    at = item.at.strftime("%Y-%m-%d %H:%M:%S %Z").strip()
    missing = "" if item.available else ", unavailable"
    origin = "" if item.origin is Origin.SYSTEM else f", {_ORIGINS[item.origin]}"
    asked = f": {_text(item.command)}" if item.command else ""
    return f"{_text(item.id)} {_text(item.title)} ({_text(item.source)}, {at}{origin}{missing}){asked}"
