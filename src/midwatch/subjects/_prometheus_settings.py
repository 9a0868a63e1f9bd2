"""Settings and invariants of the subject kind `prometheus`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from ..model import Invariant, Severity, Unit
from ..settings import Group, Name, SubjectSettings
from ..units import Seconds, format_value, parse_limit
from ._http_settings import Url

SeverityName = Literal["critical", "warning", "info"]
DEFAULT_SEVERITIES: dict[str, SeverityName] = {
    "critical": "critical",
    "page": "critical",
    "error": "critical",
    "warning": "warning",
    "info": "info",
    "none": "info",
}


class RuleSettings(Group):
    """An invariant in PromQL."""

    name: Name = Field(description="The id of the invariant.")
    expr: Annotated[str, Field(min_length=1, max_length=20000)] = Field(
        description="PromQL that returns an instant vector or a scalar."
    )
    above: str | float | None = Field(
        None, description="Broken for each series whose value is above it."
    )
    below: str | float | None = Field(
        None, description="Broken for each series whose value is below it."
    )
    unit: Literal["seconds", "bytes", "ratio", "count"] = "count"
    hold_for: Seconds = Field(
        0.0, alias="for", description="Broken for so long before a ticket opens."
    )
    severity: SeverityName = "warning"
    component: str | list[str] | None = Field(
        None,
        description="Labels that name the component, or a text like {instance}/{job}; all labels when not given.",
    )
    message: str | None = Field(
        None, description="A text like {instance} has {value}; made up when not given."
    )
    absent: Literal["unknown", "clear"] = Field(
        "unknown",
        description="What a series means that is gone or not a number; with above or below only.",
    )

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.above is not None and self.below is not None:
            raise ValueError("give above or below, not both")
        if self.name == "alert":
            raise ValueError("the name alert stands for the server's own alerts")
        _ = self.limit  # raises ValueError itself
        return self

    @property
    def limit(self) -> float | None:
        """In `unit`; None for an expression whose every series is a violation."""
        written = self.above if self.above is not None else self.below
        return None if written is None else parse_limit(written, Unit(self.unit))

    def invariant(self) -> Invariant:
        limit = self.limit
        text = "any series at all"
        if limit is not None:
            side = "below" if self.below is not None else "above"
            text = f"a series {side} {format_value(limit, Unit(self.unit))}"
        return Invariant(
            id=self.name,
            title=self.name,
            description=f"Broken by {text} in: {self.expr}",
            severity=Severity.parse(self.severity),
            unit=Unit.NONE if limit is None else Unit(self.unit),
            limit=limit,
            above=self.below is None,
            hold_for=self.hold_for,
        )


class BasicAuth(Group):
    username: str
    password: SecretStr


class PrometheusSettings(SubjectSettings):
    """A Prometheus server, or one that speaks its API."""

    kind: str = "prometheus"
    url: Url = Field(description="Its address, with the path prefix if it has one.")
    bearer_token_file: Path | None = Field(
        None, description="A file with the token; read anew for each look."
    )
    basic_auth: BasicAuth | None = None
    verify: bool = Field(True, description="Whether the certificate must be valid.")
    ca_file: Path | None = Field(
        None, description="Certificate authorities to accept besides the system's."
    )
    alerts: bool = Field(True, description="Whether its own firing alerts count.")
    ignore: list[str] = Field(
        default_factory=lambda: ["Watchdog"],
        description="Names of alerts that do not count; Watchdog always fires.",
    )
    severity_label: str = Field("severity", description="The label that tells it.")
    severities: dict[str, SeverityName] = Field(
        default_factory=dict,
        description="What values of that label mean, besides the usual ones.",
    )
    rules: list[RuleSettings] = Field(default_factory=list)

    @field_validator("rules")
    @classmethod
    def _distinct(cls, value: list[RuleSettings]) -> list[RuleSettings]:
        names = [rule.name for rule in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two rules have the name {twice[0]}")
        return value

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.alerts and not self.rules:
            raise ValueError("nothing to look at: turn alerts on or give rules")
        if self.bearer_token_file and self.basic_auth:
            raise ValueError("give bearer_token_file or basic_auth, not both")
        return self

    def severity(self, label: str | None) -> Severity | None:
        """What a value of the severity label means; None where there is no label."""
        if label is None:
            return None
        meanings: dict[str, Any] = {**DEFAULT_SEVERITIES, **self.severities}
        return Severity.parse(meanings.get(label.lower(), "warning"))


ALERT = Invariant(
    "alert",
    "No alert of the server's own fires",
    "Stands for all alerting rules of the server; a firing one has the id alert:NAME. Their severity "
    "comes from the label `severity`, else from here. A rule whose evaluation fails is unknown.",
)
INVARIANTS = (ALERT,)
