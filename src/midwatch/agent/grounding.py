"""Grounding: every claim of a diagnosis is checked against the evidence that it cites (pure).

A claim is the root cause, one moment of the timeline, one metric reading or one supporting
finding. It is verified when it cites something and every one of its citations checks: an
invented quote beside a true one is a reason to doubt, not a detail. A metric reading's
numbers must also stand in its quote.

A citation checks when its evidence exists, was available and contains the quote. Before the
comparison both are put into NFKC with plain quotes and dashes, and any white space becomes
one space; letter case counts. A quote begins and ends where a word or number does: "12" is
not found in "3123", "12.5" or "1,012". An ellipsis in a quote stands for up to `NEARBY`
characters.

What does not check lowers the confidence: by one step when some claims fail, to low when the
root cause fails, when fewer than half of the claims check, or when "no fault" is claimed
without any. A root cause that fails also turns the verdict "identified" into "suspected".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from midwatch.diagnosis_schema import (
    Citation,
    Confidence,
    DiagnosisOutput,
    MetricReading,
    Verdict,
)
from midwatch.model import Evidence, Grounded, Origin

NEARBY = 600
"""Characters that an ellipsis in a quote may stand for."""
SHORTEST = 4
"""Least letters and digits of a quote that is compared."""
LONGEST = 8000
"""Most characters of a quote that is compared; a longer one does not check."""
_TRIES = 2000  # places compared per part: a bound for hostile repetition

NO_CITATION = "no citation given"
UNKNOWN = "there is no such evidence"
UNAVAILABLE = "that evidence was unavailable"
TOO_SHORT = "the quote is too short to be checked"
TOO_LONG = "the quote is too long"
NOT_FOUND = "the quote is not in that evidence"
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
    stands = (verdict, confidence) == (output.verdict, output.confidence)
    return Grounding(claims, verdict, confidence, "" if stands else why)


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
    failed = next((check.reason for check in checks if not check.verified), "")
    return ClaimCheck(path, checks, failed)


def _reading(sources: _EvidenceIndex, path: str, reading: MetricReading) -> ClaimCheck:
    check = sources.check(reading.citation, f"{path}.citation")
    reason = check.reason
    if not reason and not _numbers(reading.value) <= _numbers(reading.citation.quote):
        reason = OTHER_VALUE
    return ClaimCheck(path, (check,), reason)


def _numbers(text: str) -> set[str]:
    """Return the numbers in a text, without thousands separators."""
    found = re.findall(r"\d+(?:[.,]\d+)*", unicodedata.normalize("NFKC", text))
    return {re.sub(r",(?=\d{3}(?!\d))", "", number) for number in found}


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


# ------------------------------------------------------------------ quotes in evidence

_PLAIN = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′‹›", "'"),
        **dict.fromkeys("“”„‟«»", '"'),
        **dict.fromkeys("‐‑‒–—―−", "-"),
    }
)
_ELLIPSIS = re.compile(r"\s?(?:\[\.{3}\]|\.{3,})\s?")


def normalise(text: str) -> str:
    """Return the form in which quotes are compared."""
    return " ".join(unicodedata.normalize("NFKC", text).translate(_PLAIN).split())


class _EvidenceIndex:
    """The evidence by number, normalised when it is first cited."""

    def __init__(self, evidence: Sequence[Evidence]) -> None:
        self._evidence = {item.id: item for item in evidence}
        self._texts: dict[str, str] = {}

    def check(self, citation: Citation, path: str) -> CitationCheck:
        number = citation.evidence_id.strip().strip("[]()").upper()
        reason = self._reason(number, citation.quote)
        item = self._evidence.get(number)
        origin = item.origin if item else Origin.SYSTEM
        return CitationCheck(path, number, citation.quote, reason, origin)

    def _reason(self, number: str, quote: str) -> str:
        item = self._evidence.get(number)
        if item is None:
            return UNKNOWN
        if not item.available:
            return UNAVAILABLE
        if len(quote) > LONGEST:
            return TOO_LONG
        quote = normalise(quote)
        if sum(map(str.isalnum, quote)) < SHORTEST:
            return TOO_SHORT
        if number not in self._texts:
            self._texts[number] = normalise(item.text)
        return "" if found(quote, self._texts[number]) else NOT_FOUND


def found(quote: str, text: str) -> bool:
    """Return whether a normalised text contains a normalised quote, which may have ellipses."""
    if any(True for _ in _positions(quote, text, 0, len(text))):
        return True
    parts = [part for part in _ELLIPSIS.split(quote) if part]
    if len(parts) < 2 and parts == [quote]:
        return False
    if not parts or any(sum(map(str.isalnum, part)) < SHORTEST - 1 for part in parts):
        return False
    return any(_follow(parts[1:], text, end) for end in _first(parts[0], text))


def _first(part: str, text: str) -> Iterator[int]:
    for tried, end in enumerate(_positions(part, text, 0, len(text))):
        if tried >= _TRIES // 20:
            return
        yield end


def _follow(parts: Sequence[str], text: str, end: int) -> bool:
    """Return whether the text contains the parts in order, each near the one before."""
    for part in parts:
        after = next(_positions(part, text, end, end + NEARBY + len(part)), None)
        if after is None:
            return False
        end = after
    return True


def _positions(part: str, text: str, start: int, stop: int) -> Iterator[int]:
    """Yield where `part` ends in `text`, for each place between word and number boundaries."""
    stop = min(stop, len(text))
    for _ in range(_TRIES):
        at = text.find(part, start, stop)
        if at < 0:
            return
        end = at + len(part)
        if _is_boundary(text, at) and _is_boundary(text, end):
            yield end
        start = at + 1


def _is_boundary(text: str, at: int) -> bool:
    """Return whether neither a word nor a number continues across this position."""
    if at <= 0 or at >= len(text):
        return True
    left, right = text[at - 1], text[at]
    if _in_word(left) and _in_word(right):
        return False
    if right.isdigit() and left in ".,":
        return not _one_number(text, at - 1)
    if left.isdigit() and right in ".,":
        return not _one_number(text, at)
    if (
        right.isdigit() and left == "-"
    ):  # a sign; but in a range or a date it only joins
        before = text[at - 2 : at - 1]
        return not (before in ("", " ") or before in "(=:[")
    return True


def _one_number(text: str, at: int) -> bool:
    """Return whether the point or comma at this position is within a number.

    A comma does between thousands; between numbers of other lengths it separates them.
    """
    before = re.search(r"\d*$", text[max(at - 20, 0) : at])
    after = re.match(r"\d*", text[at + 1 : at + 21])
    digits = (len(before[0]) if before else 0, len(after[0]) if after else 0)
    if text[at] == ".":
        return min(digits) > 0
    return 1 <= digits[0] <= 3 and digits[1] == 3


def _in_word(character: str) -> bool:
    """Return whether it is a digit, an underscore or a letter with a case; other scripts have no word bounds."""
    cased = character.lower() != character.upper()
    return cased or character == "_" or character.isdigit()
