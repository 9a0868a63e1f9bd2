"""The part of Prometheus' HTTP API that is used here, as values, and the settings of the kind `prometheus`.

The formats are those of https://prometheus.io/docs/prometheus/latest/querying/api/. Anything else is an
error, not an empty answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, SecretStr, field_validator, model_validator

from midwatch.errors import ObservationFailed
from midwatch.model import Invariant, Severity, Unit
from midwatch.settings import Group, Name, SubjectSettings
from midwatch.subjects.http_client import Answer, WebClient
from midwatch.text import ticket_line
from midwatch.units import Seconds, Url, format_value, parse_limit

ANSWER_LIMIT = 8_000_000  # bytes
T = TypeVar("T")


class QueryRefused(ObservationFailed):
    """The server answered this request with an error, or with an unusable result."""


class NotPrometheus(ObservationFailed):
    """The server does not speak Prometheus' API."""

    hint = "check that `url` is that of a Prometheus server, and the login"


@dataclass(frozen=True, slots=True)
class Sample:
    """One series at one time."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Line:
    """One series over time: pairs of Unix seconds and value."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a query; with `warnings` it may be incomplete."""

    samples: tuple[Sample, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Alert:
    """One instance of an alert, with the labels and annotations that the server filled in."""

    name: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    state: str  # firing, pending or inactive
    active_at: str


@dataclass(frozen=True, slots=True)
class AlertRule:
    """An alerting rule and how its last evaluation went."""

    name: str
    group: str
    query: str
    duration: float
    health: str  # ok, err or unknown
    error: str
    alerts: tuple[Alert, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Target:
    """A scrape target."""

    labels: Mapping[str, str]
    health: str
    error: str
    last_scrape: str


class PrometheusApi:
    """Each method is one request. All raise WebFailure, QueryRefused or NotPrometheus."""

    def __init__(
        self, web: WebClient, url: str, headers: Callable[[], Mapping[str, str]]
    ) -> None:
        self._web = web
        self._base = url.rstrip("/") + "/api/v1/"
        self._headers = headers

    async def query(self, expr: str, timeout: float) -> Result:
        data, warnings = await self._get("query", {"query": expr}, timeout)
        return _shaped(lambda: Result(tuple(_samples(data)), warnings))

    async def query_range(
        self, expr: str, start: float, end: float, step: float, timeout: float
    ) -> tuple[Line, ...]:
        """Return the series from `start` to `end` (Unix seconds), a point every `step` seconds."""
        params = {
            "query": expr,
            "start": f"{start:.3f}",
            "end": f"{end:.3f}",
            "step": f"{step:.0f}",
        }
        data, _ = await self._get("query_range", params, timeout)
        return _shaped(lambda: tuple(_line(item) for item in data["result"]))

    async def alert_rules(self, timeout: float) -> tuple[AlertRule, ...]:
        """Return the alerting rules with their alerts, in one request so that both have the same time."""
        data, _ = await self._get("rules", {"type": "alert"}, timeout)
        return _shaped(lambda: tuple(_rules(data)))

    async def targets(self, timeout: float) -> tuple[Target, ...]:
        data, _ = await self._get("targets", {"state": "active"}, timeout)
        return _shaped(lambda: tuple(_target(item) for item in data["activeTargets"]))

    async def build(self, timeout: float) -> Mapping[str, str]:
        data, _ = await self._get("status/buildinfo", {}, timeout)
        return _shaped(lambda: _labels(data))

    async def _get(
        self, path: str, params: Mapping[str, str], timeout: float
    ) -> tuple[Any, tuple[str, ...]]:
        answer = await self._web.fetch(
            "GET",
            self._base + path,
            params=params,
            headers=self._headers(),
            timeout=timeout,
            limit=ANSWER_LIMIT,
        )
        envelope = _envelope(answer)
        if envelope.get("status") != "success":
            raise _refusal(answer, envelope)
        warnings = envelope.get("warnings") or []
        if not isinstance(warnings, list):
            raise NotPrometheus("the answer does not have Prometheus' form")
        return envelope.get("data"), tuple(
            ticket_line(str(w), 200) for w in warnings[:10]
        )


def _envelope(answer: Answer) -> Mapping[str, Any]:
    if answer.cut:
        raise QueryRefused(
            f"the answer is larger than {ANSWER_LIMIT // 1_000_000} MB",
            hint="narrow the expression",
        )
    try:
        value = json.loads(answer.body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        kind = answer.header("content-type") or "nothing known"
        raise NotPrometheus(
            f"status {answer.status} and {ticket_line(kind, 60)} instead of Prometheus' JSON"
        )
    return value


def _refusal(answer: Answer, envelope: Mapping[str, Any]) -> QueryRefused:
    kind = ticket_line(str(envelope.get("errorType", "")), 40)
    message = ticket_line(str(envelope.get("error", "")), 300)
    text = f"the server refused with status {answer.status}"
    return QueryRefused(
        ": ".join(part for part in (text, kind, message) if part),
        hint="correct the expression" if kind == "bad_data" else None,
    )


def _shaped(build: Callable[[], T]) -> T:
    try:
        return build()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise NotPrometheus("the answer does not have Prometheus' form") from None


def _samples(data: Any) -> Iterator[Sample]:
    kind, result = data["resultType"], data["result"]
    if kind == "scalar":
        yield Sample({}, float(result[1]))
    elif kind == "vector":
        for item in result:
            if "histogram" in item and "value" not in item:
                raise QueryRefused("the expression returns histograms, not numbers")
            yield Sample(_labels(item["metric"]), float(item["value"][1]))
    else:
        raise QueryRefused(
            f"the expression returns a {ticket_line(str(kind), 20)}, not one number a series",
            hint="it must be an instant vector or a scalar",
        )


def _line(item: Any) -> Line:
    points = tuple((float(at), float(value)) for at, value in item["values"])
    return Line(_labels(item["metric"]), points)


def _rules(data: Any) -> Iterator[AlertRule]:
    for group in data["groups"]:
        for rule in group["rules"]:
            name = str(rule["name"])
            yield AlertRule(
                name=name,
                group=str(group["name"]),
                query=str(rule["query"]),
                duration=float(rule.get("duration") or 0),
                health=str(rule["health"]),
                error=ticket_line(str(rule.get("lastError") or "")),
                alerts=tuple(_alert(name, item) for item in rule.get("alerts") or ()),
            )


def _alert(name: str, item: Any) -> Alert:
    return Alert(
        name=name,
        labels=_labels(item["labels"]),
        annotations=_labels(item.get("annotations") or {}),
        state=str(item["state"]),
        active_at=str(item.get("activeAt") or ""),
    )


def _target(item: Any) -> Target:
    return Target(
        labels=_labels(item["labels"]),
        health=str(item["health"]),
        error=ticket_line(str(item.get("lastError") or "")),
        last_scrape=str(item.get("lastScrape") or ""),
    )


def _labels(item: Any) -> dict[str, str]:
    return {str(name): str(value) for name, value in item.items()}


# ------------------------------------------------------------------ settings and invariants

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
        description="Labels that name the component, or a template such as {instance}/{job}; by default all labels.",
    )
    message: str | None = Field(
        None,
        description="A template such as {instance} has {value}; by default generated.",
    )
    absent: Literal["unknown", "clear"] = Field(
        "unknown",
        description="The state of a series that is gone or not a number; with above or below only.",
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
        )


class BasicAuth(Group):
    username: str
    password: SecretStr


class PrometheusSettings(SubjectSettings):
    """A Prometheus server, or one that speaks its API."""

    kind: str = "prometheus"
    url: Url = Field(description="Its address, with the path prefix if it has one.")
    bearer_token_file: Path | None = Field(
        None, description="A file with the token; read for each observation."
    )
    basic_auth: BasicAuth | None = None
    verify: bool = Field(True, description="Whether the certificate must be valid.")
    ca_file: Path | None = Field(
        None, description="Certificate authorities to trust besides the system's."
    )
    alerts: bool = Field(True, description="Whether its own firing alerts count.")
    ignore: list[str] = Field(
        default_factory=lambda: ["Watchdog"],
        description="Names of alerts that do not count; Watchdog always fires.",
    )
    severity_label: str = Field(
        "severity", description="The label that has the severity."
    )
    severities: dict[str, SeverityName] = Field(
        default_factory=dict,
        description="Severities by value of that label, besides the usual ones.",
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
            raise ValueError("nothing to check: turn alerts on or give rules")
        if self.bearer_token_file and self.basic_auth:
            raise ValueError("give bearer_token_file or basic_auth, not both")
        return self

    def severity(self, label: str | None) -> Severity | None:
        """Return the severity for a value of the severity label; None without that label."""
        if label is None:
            return None
        meanings: dict[str, Any] = {**DEFAULT_SEVERITIES, **self.severities}
        return Severity.parse(meanings.get(label.lower(), "warning"))


ALERT = Invariant(
    "alert",
    "No alert of the server fires",
    "Stands for all alerting rules of the server; a firing one has the id alert:NAME. Their severity "
    "comes from the label `severity`, else from here. A rule whose evaluation fails is unknown.",
)
INVARIANTS = (ALERT,)
