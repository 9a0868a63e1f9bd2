"""What Claude is asked to answer, and what a playbook writes as first aid: one shape.

Lists stand where a mapping would seem natural: the Anthropic SDK's schema transform turns
``dict[...]`` into an object that can only be empty.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

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
        description="Ids of the tickets in this batch that the root cause explains."
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
