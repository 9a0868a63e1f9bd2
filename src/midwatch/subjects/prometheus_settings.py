"""The settings and invariants of the kind `prometheus`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from midwatch.model import Invariant, Severity, Unit
from midwatch.setting_group import Seconds, Url
from midwatch.settings import Group, Name
from midwatch.subjects.web_login import LoginSettings
from midwatch.units import format_value, parse_limit

MOST_ALERTMANAGERS = 10
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
        0.0,
        alias="for",
        description="How long it must be broken before a ticket opens.",
    )
    severity: SeverityName = "warning"
    component: str | list[str] | None = Field(
        None,
        description="Labels that name the component, or a template such as {instance}/{service.name}; by default "
        "the metric's name and all labels.",
    )
    message: str | None = Field(
        None,
        description="A template such as {instance} has {value}; by default generated.",
    )
    absent: Literal["unknown", "clear"] = Field(
        "unknown",
        description="The state of a series that is gone or not a number; with above or below only.",
    )
    ignore: list[Annotated[dict[str, str], Field(min_length=1)]] = Field(
        default=[],
        description="Series to leave out: each entry maps labels to shell patterns, which must all match.",
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
        """The limit in `unit`; None for an expression whose every series is a violation."""
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
            about=("*",),
            ignore=tuple(self.ignore),
        )


class PrometheusSettings(LoginSettings):
    """A Prometheus server, or one that speaks its API."""

    kind: str = "prometheus"
    url: Url = Field(
        description="Its address, with the path prefix if it has one: http://HOST:9090, "
        "https://MIMIR/prometheus, https://GRAFANA/api/prometheus/grafana."
    )
    alerts: bool = Field(True, description="Whether its own firing alerts count.")
    ignore: list[str] = Field(
        default_factory=lambda: ["Watchdog", "InfoInhibitor", "DeadMansSwitch"],
        description="Names of alerts that do not count: these fire to show that alerting works, or to silence others. "
        "`invariants: {alert: {ignore: […]}}` leaves out alerts by their labels.",
    )
    severity_label: str = Field(
        "severity", description="The label that has the severity."
    )
    severities: dict[str, SeverityName] = Field(
        default={},
        description="Severities by value of that label, besides the usual ones.",
    )
    alertmanagers: Annotated[
        Annotated[list[Url], Field(max_length=MOST_ALERTMANAGERS)] | None,
        BeforeValidator(lambda given: None if given == "discover" else given),
    ] = Field(
        None,
        description="The URLs of the Alertmanagers that are asked which of the firing alerts are silenced, inhibited or muted; by "
        "default (`discover`) those that the server names. With [] none is asked, and a silenced alert has a ticket.",
    )
    rules: list[RuleSettings] = Field(default=[])

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
            raise ValueError("nothing to check: turn alerts on or give rules")
        return self

    def severity(self, label: str | None) -> Severity | None:
        """Return the severity for a value of the severity label; None without that label."""
        if label is None:
            return None
        given = {name.lower(): severity for name, severity in self.severities.items()}
        meanings: dict[str, Any] = {**DEFAULT_SEVERITIES, **given}
        return Severity.parse(meanings.get(label.lower(), "warning"))


ALERT = Invariant(
    "alert",
    "No alert of the server fires",
    "Stands for all alerting rules of the server; a firing one has the id alert:NAME. Their severity "
    "comes from the label `severity`, else from here. A rule that fails, or is gone, is unknown. In a storm "
    "the most urgent alerts have tickets, and one ticket counts the rest.",
    about=("*",),
)
INVARIANTS = (ALERT,)
