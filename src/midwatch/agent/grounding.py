"""Grounding: every claim of a diagnosis is checked against the evidence that it cites (pure).

A claim is the root cause, one moment of the timeline, one metric reading or one supporting
finding. It is verified when it cites something and every one of its citations checks: an
invented quote beside a true one is a reason to doubt, not a detail. A citation checks when its
evidence exists, was available and contains the quote (`midwatch.agent.quotes`); a metric
reading's value must also be given by its quote (`midwatch.agent.readings`).

What does not check lowers the confidence: by one step when some claims fail, to low when the
root cause fails, when fewer than half of the claims check, or when "no fault" is claimed
without any. A root cause that fails also turns the verdict "identified" into "suspected".

What is quoted has an origin. A cause that rests only on what clients or logs reported is not
identified with high confidence, and one that rests only on an earlier diagnosis or a note is
suspected with medium confidence at most, as is one that rests on a runbook: that says what people do and believe, not what
is. A diagnosis that was not verified itself proves nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from midwatch.agent.quotes import UNPROVEN, QuotableText, normalise
from midwatch.agent.readings import gives_value
from midwatch.diagnosis_schema import (
    Citation,
    Confidence,
    DiagnosisOutput,
    MetricReading,
    Verdict,
)
from midwatch.model import Evidence, Grounded, Origin

NO_CITATION = "no citation given"
UNKNOWN = "there is no such evidence"
UNAVAILABLE = "that evidence was unavailable"
ONE_SIDED = "it needs a quote of the runbook and one of other evidence"
OTHER_VALUE = "the quote does not give this value"


@dataclass(frozen=True, slots=True)
class CitationCheck:
    """One citation's result. `path` is like "supporting_evidence[0].citations[1]".

    `origin` says who wrote what is quoted.
    """

    path: str
    evidence_id: str
    quote: str
    reason: str = ""
    origin: Origin = Origin.SYSTEM

    @property
    def verified(self) -> bool:
        return not self.reason


@dataclass(frozen=True, slots=True)
class ClaimCheck:
    """One claim's result, with those of its citations. `path` is like "timeline[2]"."""

    path: str
    citations: tuple[CitationCheck, ...]
    reason: str = ""

    @property
    def origin(self) -> Origin:
        """The best that it rests on: measured before reported, reported before earlier."""
        found = {check.origin for check in self.citations if check.verified}
        return next((one for one in Origin if one in found), Origin.SYSTEM)

    @property
    def verified(self) -> bool:
        return not self.reason


@dataclass(frozen=True, slots=True)
class Grounding:
    """The claims of an answer with their checks, and the verdict and confidence that remain.

    `lowered` says why `confidence` or `verdict` is less than what the answer stated; it is
    empty when they stand.
    """

    claims: tuple[ClaimCheck, ...]
    verdict: Verdict
    confidence: Confidence
    lowered: str = ""

    @property
    def verified(self) -> int:
        return sum(claim.verified for claim in self.claims)

    @property
    def total(self) -> int:
        return len(self.claims)

    @property
    def grounded(self) -> Grounded:
        return Grounded(self.verified, self.total)

    @property
    def citations(self) -> tuple[CitationCheck, ...]:
        """Every citation of every claim, in the order of the answer."""
        return tuple(check for claim in self.claims for check in claim.citations)

    def claim(self, path: str) -> ClaimCheck | None:
        return next((claim for claim in self.claims if claim.path == path), None)


def ground(output: DiagnosisOutput, evidence: Sequence[Evidence]) -> Grounding:
    """Check every claim of an answer against the evidence it was made from."""
    sources = _EvidenceIndex(evidence)
    claims = tuple(_checked(output, sources))
    root = next((claim for claim in claims if claim.path == "root_cause"), None)
    root_fails = root is not None and not root.verified
    verdict: Verdict = output.verdict
    if root_fails and verdict == "identified":
        verdict = "suspected"
    confidence, why = _confidence(output, claims, root_fails)
    origin = _origin(claims)
    limited = {**_OPINIONS, Origin.REPORTED: verdict == "identified"}
    if limited.get(origin) and confidence == "high":
        confidence, why = "medium", _RESTS_ON[origin]
    if origin in _OPINIONS and verdict == "identified":
        verdict = "suspected"
    why = why or _RESTS_ON.get(origin, "")
    stands = (verdict, confidence) == (output.verdict, output.confidence)
    return Grounding(claims, verdict, confidence, "" if stands else why)


_OPINIONS = {Origin.EARLIER: True, Origin.NOTE: True}
_RESTS_ON = {
    Origin.REPORTED: "it rests only on what clients or logs reported",
    Origin.EARLIER: "it rests only on an earlier diagnosis or a note",
    Origin.NOTE: "it rests only on a runbook, which does not say what is",
}


def _origin(claims: Sequence[ClaimCheck]) -> Origin:
    """Return the origin of what the verdict rests on: the root cause, or without one all claims."""
    root = [claim for claim in claims if claim.path == "root_cause"]
    resting = [claim for claim in root or claims if claim.verified]
    found = {claim.origin for claim in resting}
    return next((one for one in Origin if one in found), Origin.SYSTEM)


def _checked(output: DiagnosisOutput, sources: _EvidenceIndex) -> Iterator[ClaimCheck]:
    asserted = output.verdict in ("identified", "suspected")
    if asserted or output.root_cause.strip():
        yield _claim(sources, "root_cause", output.root_cause_citations, "_citations")
    for index, moment in enumerate(output.timeline):
        yield _claim(sources, f"timeline[{index}]", moment.citations)
    for index, reading in enumerate(output.metric_readings):
        yield _reading(sources, f"metric_readings[{index}]", reading)
    for index, finding in enumerate(output.supporting_evidence):
        yield _claim(sources, f"supporting_evidence[{index}]", finding.citations)
    for index, finding in enumerate(output.runbook_contradictions):
        claim = _claim(sources, f"runbook_contradictions[{index}]", finding.citations)
        sides = {one.origin is Origin.NOTE for one in claim.citations if one.verified}
        one_sided = claim.verified and len(sides) < 2
        yield replace(claim, reason=ONE_SIDED) if one_sided else claim


def _claim(
    sources: _EvidenceIndex,
    path: str,
    citations: Sequence[Citation],
    suffix: str = ".citations",
) -> ClaimCheck:
    checks = tuple(
        sources.check(citation, f"{path}{suffix}[{index}]")
        for index, citation in enumerate(citations)
    )
    if not checks:
        return ClaimCheck(path, (), NO_CITATION)
    # What proves nothing does not harm beside a proof.
    proved = any(check.verified for check in checks)
    failed = (
        check.reason
        for check in checks
        if not check.verified and not (proved and check.reason == UNPROVEN)
    )
    return ClaimCheck(path, checks, next(failed, ""))


def _reading(sources: _EvidenceIndex, path: str, reading: MetricReading) -> ClaimCheck:
    check = sources.check(reading.citation, f"{path}.citation")
    reason = check.reason
    if not reason:
        whole = sources.text(check.evidence_id).text
        if not gives_value(reading.value, normalise(check.quote), whole):
            reason = OTHER_VALUE
    return ClaimCheck(path, (check,), reason)


def _confidence(
    output: DiagnosisOutput, claims: Sequence[ClaimCheck], root_fails: bool
) -> tuple[Confidence, str]:
    failed = sum(not claim.verified for claim in claims)
    total = len(claims)
    of_claims = f"{failed} of {total} claims could not be found in the evidence cited"
    if root_fails:
        return "low", "the root cause could not be found in the evidence cited"
    if not claims and output.verdict == "no_fault":
        return "low", "nothing was cited"
    if not failed:
        return output.confidence, ""
    if (total - failed) * 2 < total:
        return "low", of_claims
    return ("medium" if output.confidence == "high" else "low"), of_claims


class _EvidenceIndex:
    """The evidence by number, normalised when it is first cited."""

    def __init__(self, evidence: Sequence[Evidence]) -> None:
        self._evidence = {item.id: item for item in evidence}
        self._texts: dict[str, QuotableText] = {}

    def check(self, citation: Citation, path: str) -> CitationCheck:
        number = self._number(citation.evidence_id)
        item = self._evidence.get(number)
        reason, origin = "", Origin.SYSTEM
        if item is None:
            reason = UNKNOWN
        elif not item.available:
            reason, origin = UNAVAILABLE, item.origin
        else:
            reason, origin = self.text(number).check(citation.quote)
        return CitationCheck(path, number, citation.quote, reason, origin)

    def _number(self, named: str) -> str:
        """Return the number that a citation names, as in "[e3]", "E3 (the log)", "Evidence #3" or "runbook R1"."""
        found = re.match(
            r"(?i)\W*(?:(?:evidence|(runbook))\W*)?([ER]?)\s?0*(\d{1,6})\b",
            named.strip(),
        )
        if found:
            letter = found[2].upper() or ("R" if found[1] else "E")
            return f"{letter}{found[3]}"
        return named.strip().strip("[]()").upper()

    def text(self, number: str) -> QuotableText:
        if number not in self._texts:
            self._texts[number] = QuotableText(self._evidence[number])
        return self._texts[number]
