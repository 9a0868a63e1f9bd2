"""The schema of a diagnosis, which Claude and playbooks fill in, and the outcome of a call to Claude.

Lists are used where a mapping would be natural: the Anthropic SDK's schema transform turns
``dict[...]`` into an object that can only be empty.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any, Final, Literal, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from midwatch.model import Json, Usage

Verdict = Literal["identified", "suspected", "insufficient_data", "no_fault"]
Confidence = Literal["high", "medium", "low"]
SeverityLabel = Literal["critical", "warning", "info"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Citation(_Part):
    """A place in the evidence that supports a claim."""

    evidence_id: str = Field(description="The number of the evidence, such as E3.")
    quote: str = Field(
        description="Text copied letter by letter from that evidence; one line or a part of one."
    )


class Moment(_Part):
    at: str = Field(description="The time as the evidence gives it.")
    what: str
    citations: list[Citation]


class MetricReading(_Part):
    name: str
    value: str = Field(description="The value with its unit, as the evidence gives it.")
    citation: Citation


class Finding(_Part):
    statement: str
    citations: list[Citation]


class Alternative(_Part):
    hypothesis: str
    supporting: str
    contradicting: str
    conclusion: str


class Action(_Part):
    what: str
    commands: list[str] = Field(
        description="Commands or statements, each one complete."
    )
    risk: str
    reversible: bool


class DiagnosisOutput(_Part):
    """A diagnosis whose every claim cites evidence by number and quotes it."""

    summary: str = Field(description="One or two sentences for the engineer on call.")
    verdict: Verdict
    root_cause: str = Field(
        description="The cause, naming the culprit; empty if not known."
    )
    root_cause_citations: list[Citation]
    confidence: Confidence
    confidence_reason: str
    explained_tickets: list[int] = Field(
        description="Ids of the tickets in this incident that the root cause explains; without a cause, those that the verdict is about."
    )
    timeline: list[Moment]
    affected_components: list[str]
    metric_readings: list[MetricReading]
    supporting_evidence: list[Finding]
    alternatives_considered: list[Alternative]
    recommended_actions: list[Action]
    severity: SeverityLabel
    risks: list[str]
    missing: list[str] = Field(description="What would have to be known to be surer.")
    runbook_contradictions: list[Finding] = Field(
        default_factory=list,
        description="Where a runbook (R1, R2, …) does not fit the other evidence, each with a quote of both; else empty.",
    )


# ------------------------------------------------------------------ the reply


class Kind(StrEnum):
    """The outcome of a call to Claude: one kind for every row of the outcome table (docs/architecture.md)."""

    ANSWERED = "answered"
    ASKED = "asked"  # for tools, before an answer
    REFUSED = "refused"
    CUT = "cut"  # by max_tokens
    INVALID = "invalid"  # does not fit the schema
    REJECTED = "rejected"  # 400, 413: the same request would be rejected again
    # Connection error, timeout, 408, 409, 5xx, 529, or an answer that the Messages API did not write.
    UNREACHABLE = "unreachable"
    RATE_LIMITED = "rate_limited"
    SPEND_LIMIT = "spend_limit"
    UNAUTHORISED = "unauthorised"  # 401, 403, unknown model


class NotSent(asyncio.CancelledError):
    """A call was cancelled before any part of it was sent, so it costs nothing."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that Claude asks for; the API answers by its `id`."""

    id: str
    name: str
    arguments: Json


@dataclass(frozen=True, slots=True)
class Reply:
    """The result of a call to Claude.

    `output` may be partial for CUT. `usage` is filled whenever a message was received. `retry_after` is
    in seconds, where the API named a time. `model` is as the API names it. `text` is what the model wrote.
    `message_id` and `stop_reason` are those of the message.
    For ASKED, `calls` are the tools to run and `content` is the whole message, to be sent back unchanged.
    `lost` is true where the call was cut off from outside, so that the API may have billed it.
    """

    kind: Kind
    output: DiagnosisOutput | None = None
    text: str = ""
    error: str = ""
    usage: Usage = Usage()
    model: str = ""
    asked_model: str = ""
    request_id: str | None = None
    message_id: str = ""
    stop_reason: str = ""
    retry_after: float | None = None
    calls: tuple[ToolCall, ...] = ()
    content: tuple[Json, ...] = ()
    lost: bool = False

    def show(self) -> str:
        """Return the answer as a person reads it."""
        calls = (f"{one.name} {json.dumps(one.arguments)}" for one in self.calls)
        parts = [f"--- {self.kind} ---", self.error, self.text, *calls]
        return "\n".join(filter(None, parts))


# ------------------------------------------------------------------ answers of gateways without the schema

_LISTS: Final = tuple(
    name
    for name, field in DiagnosisOutput.model_fields.items()
    if get_origin(field.annotation) is list
)
_DECODER: Final = json.JSONDecoder(strict=False)
_MOST_BRACES: Final = 200
_FENCE: Final = re.compile(r"```[\w-]*[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


def parse_answer(text: str) -> DiagnosisOutput:
    """Return the diagnosis in what a model wrote: bare, in a Markdown fence, or with text around it.

    A gateway may drop the schema from a request. A list or a reason that is missing is empty then. Of several
    diagnoses in a text the last counts.

    Raises:
        ValidationError: None of it fits the schema; the errors are those of the likeliest part.
    """
    errors: list[ValidationError] = []
    for part in _candidates(text):
        try:
            return DiagnosisOutput.model_validate(_completed(part))
        except ValidationError as error:
            errors.append(error)
    if errors:
        raise min(errors, key=lambda error: error.error_count())
    return DiagnosisOutput.model_validate_json(text)


def _completed(answer: Any) -> Any:
    """Return an answer out of the object around it, with the lists that it leaves out, empty."""
    if not isinstance(answer, dict):
        return answer
    inner = [value for value in answer.values() if isinstance(value, dict)]
    if len(inner) == 1 and "summary" not in answer and "summary" in inner[0]:
        answer = inner[0]
    given = {
        name: value
        for name, value in answer.items()
        if value is not None or name not in _LISTS
    }
    return {**{name: [] for name in _LISTS}, "confidence_reason": "", **given}


def _candidates(text: str) -> Iterator[Any]:
    """Yield what may be the answer: the whole text, what is fenced, and objects within the text, the last first."""
    fences = (match[1] for match in _FENCE.finditer(text))
    for part in (text, *reversed(list(fences))):
        with suppress(ValueError):  # not JSON
            yield from_json(part)
    yield from reversed(list(_objects(text)))


def _objects(text: str) -> Iterator[Any]:
    """Yield the JSON objects in a text that have a summary, not those within them."""
    start = 0
    for _ in range(_MOST_BRACES):
        start = text.find("{", start)
        if start < 0:
            return
        try:
            found, start = _DECODER.raw_decode(text, start)
            if "summary" in _completed(found):
                yield found
        except (ValueError, RecursionError):
            start += 1


# ------------------------------------------------------------------ truncated answers

_FALLBACK: Final[dict[str, Any]] = {
    "verdict": "insufficient_data",
    "confidence": "low",
    "confidence_reason": "the answer was cut off",
    "severity": "warning",
}

_FIELDS: Final[dict[str, TypeAdapter[Any]]] = {
    name: TypeAdapter(field.rebuild_annotation())
    for name, field in DiagnosisOutput.model_fields.items()
}


def parse_truncated(text: str) -> DiagnosisOutput | None:
    """Return the complete parts of a truncated answer, the rest empty; None if it has no summary."""
    parsed = _begun(text)
    if parsed is None:
        return None
    fields = {
        name: _valid_part(name, parsed.get(name))
        for name in DiagnosisOutput.model_fields
    }
    try:
        return DiagnosisOutput.model_validate(fields)
    except ValidationError:
        return None


def _begun(text: str) -> Json | None:
    """Return the first object of a text that has a summary, as far as it goes."""
    for match in islice(re.finditer("{", text), _MOST_BRACES):
        with suppress(ValueError):
            parsed = from_json(text[match.start() :], allow_partial=True)
            if isinstance(parsed, dict) and parsed.get("summary"):
                return parsed
    return None


def _valid_part(name: str, value: Any) -> Any:
    """Return the value if it fits its field, else the items of a list that fit, else an empty value."""
    if _fits(name, value):
        return value
    if isinstance(value, list):
        return [item for item in value if _fits(name, [item])]
    empty: Any = [] if _fits(name, []) else ""
    return _FALLBACK.get(name, empty)


def _fits(name: str, value: Any) -> bool:
    try:
        _FIELDS[name].validate_python(value)
    except ValidationError:
        return False
    return True
