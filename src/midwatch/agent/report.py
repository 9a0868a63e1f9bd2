"""Render a diagnosis as Markdown (pure).

Every string of the answer is hostile: it is escaped, or stands in a code fence that it cannot
end. No image, link, HTML or control character of it is rendered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from midwatch.agent.grounding import ClaimCheck, Grounding
from midwatch.diagnosis_schema import Action, Alternative, DiagnosisOutput, Verdict
from midwatch.model import Evidence
from midwatch.text import clean, longest_run, markdown_escape, one_line

LONGEST_TEXT = 4000
"""Characters shown of one string of an answer."""
MOST_ITEMS = 200
"""Entries shown of one list of an answer."""

_Item = TypeVar("_Item")

_VERDICTS: dict[Verdict, str] = {
    "identified": "Cause identified",
    "suspected": "Cause suspected",
    "insufficient_data": "Not enough data",
    "no_fault": "No fault found",
}


def diagnosis_markdown(
    output: DiagnosisOutput,
    grounding: Grounding,
    evidence: Sequence[Evidence],
    *,
    heading: str = "Diagnosis",
) -> str:
    """Return the whole answer, its claims marked ✔ (found in the evidence) or ✘ (not found)."""
    page = _Page(output, grounding, evidence)
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
    ) -> None:
        self._output = output
        self._grounding = grounding
        self._claims = {claim.path: claim for claim in grounding.claims}
        self._evidence = evidence

    def parts(self) -> Iterator[str]:
        output = self._output
        yield _text(output.summary)
        yield self._verdict()
        yield _section("Root cause", [self._root_cause()])
        yield _section("Timeline", [_list(self._timeline())])
        yield _section("Metrics", [_list(self._metrics())])
        yield _section("Supporting evidence", [_list(self._findings())])
        yield _section("Recommended actions", list(self._actions()))
        alternatives = [
            _alternative(item) for item in _some(output.alternatives_considered)
        ]
        yield _section("Alternatives considered", [_list(alternatives)])
        yield _section("Risks", [_list(map(_text, _some(output.risks)))])
        yield _section("What is missing", [_list(map(_text, _some(output.missing)))])
        yield _section("Evidence", [_list(map(_source, self._listed_evidence()))])

    def _listed_evidence(self) -> list[Evidence]:
        """Return the evidence that is cited, and that which was unavailable."""
        cited = {citation.evidence_id for citation in self._grounding.citations}
        return [
            item for item in self._evidence if item.id in cited or not item.available
        ]

    def _verdict(self) -> str:
        """Return verdict, confidence and its reason, and what is affected: one line each."""
        output, grounding = self._output, self._grounding
        lines = [
            f"**{_VERDICTS[grounding.verdict]}**, confidence **{grounding.confidence}**"
            f", severity **{output.severity}**"
        ]
        if grounding.lowered:
            stated = f"{_VERDICTS[output.verdict].lower()}, {output.confidence}"
            lines.append(f"Lowered from “{stated}”: {_text(grounding.lowered)}.")
        if output.confidence_reason.strip():
            lines.append(f"Reason given: {_text(output.confidence_reason)}")
        if grounding.total:
            lines.append(
                f"Claims found in the evidence: {grounding.verified} of {grounding.total}"
            )
        if output.affected_components:
            affected = ", ".join(map(_text, _some(output.affected_components)))
            lines.append(f"Affected: {affected}")
        if output.explained_tickets:
            tickets = ", ".join(map(str, _some(output.explained_tickets)))
            lines.append(f"Explains tickets: {tickets}")
        return _list(lines)

    def _root_cause(self) -> str:
        text = _text(self._output.root_cause)
        if "root_cause" not in self._claims:
            return text
        return self._claim("root_cause", text or "none stated")

    def _timeline(self) -> Iterator[str]:
        for index, moment in enumerate(_some(self._output.timeline)):
            text = f"{_text(moment.at)}: {_text(moment.what)}"
            yield self._claim(f"timeline[{index}]", text)

    def _metrics(self) -> Iterator[str]:
        for index, reading in enumerate(_some(self._output.metric_readings)):
            text = f"{_text(reading.name)}: {_text(reading.value)}"
            yield self._claim(f"metric_readings[{index}]", text)

    def _findings(self) -> Iterator[str]:
        for index, finding in enumerate(_some(self._output.supporting_evidence)):
            yield self._claim(f"supporting_evidence[{index}]", _text(finding.statement))

    def _claim(self, path: str, text: str) -> str:
        return f"{_mark(self._claims.get(path))} {text}{_cited(self._claims.get(path))}"

    def _actions(self) -> Iterator[str]:
        for number, action in enumerate(_some(self._output.recommended_actions), 1):
            yield from _action(number, action)


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


def _mark(claim: ClaimCheck | None) -> str:
    return "✔" if claim is not None and claim.verified else "✘"


def _cited(claim: ClaimCheck | None) -> str:
    """Return the numbers of the evidence that a claim cites, and what is wrong with it."""
    if claim is None:
        return " (unverified)"
    numbers = dict.fromkeys(_text(check.evidence_id) for check in claim.citations)
    cited = ", ".join(list(numbers)[:MOST_ITEMS])
    if claim.verified:
        return f" ({cited})"
    failed = next((check for check in claim.citations if not check.verified), None)
    culprit = f"{_text(failed.evidence_id)}: " if failed else ""
    return f" (unverified; {culprit}{claim.reason})"


def _action(number: int, action: Action) -> Iterator[str]:
    back = "reversible" if action.reversible else "**not reversible**"
    risk = f"risk: {_text(action.risk)}" if action.risk.strip() else "no risk stated"
    yield f"**{number}.** {_text(action.what)} ({back}; {risk})"
    for command in _some(action.commands):
        yield _fenced(command)


def _fenced(command: str) -> str:
    """Return a command unchanged, in a fence longer than any run of backticks in it."""
    shown = clean(command, longest=LONGEST_TEXT).strip("\n")
    ticks = "`" * max(longest_run(shown, "`") + 1, 3)
    return f"{ticks}text\n{shown}\n{ticks}"


def _alternative(item: Alternative) -> str:
    reasons_given = (
        ("for", item.supporting),
        ("against", item.contradicting),
        ("conclusion", item.conclusion),
    )
    reasons = "; ".join(
        f"{name}: {_text(text)}" for name, text in reasons_given if text.strip()
    )
    return (
        f"{_text(item.hypothesis)} ({reasons})" if reasons else _text(item.hypothesis)
    )


def _source(item: Evidence) -> str:
    at = item.at.strftime("%Y-%m-%d %H:%M:%S %Z").strip()
    missing = "" if item.available else ", unavailable"
    return f"{_text(item.id)} {_text(item.title)} ({_text(item.source)}, {at}{missing})"
