"""The subject kind `prometheus`: a server's own firing alerts, and invariants in PromQL from the settings.

An alerting rule of the server is the invariant ``alert:NAME``, so that a rule whose evaluation fails
makes only that alert unknown: all alerts are covered ("*") but those named in `unavailable`. The
alerts are read from ``/api/v1/rules``, which returns them together with the health of their rules;
``/api/v1/alerts`` does not distinguish an inactive rule from a failing one.

A PromQL invariant is known for a series that exists. A series that was broken and is gone is kept in
the state and stays unknown until it returns, unless its rule has ``absent: clear``.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import ClassVar

from midwatch.errors import ObservationFailed, SettingsError
from midwatch.lifecycle import Clock, SystemClock
from midwatch.model import Facts, Invariant, Json, Observation, Severity, Signal, Ticket
from midwatch.subjects.base import EvidenceSource, configure
from midwatch.subjects.http import Target, basic_login
from midwatch.subjects.http_client import WebClient
from midwatch.subjects.prometheus_api import (
    INVARIANTS,
    Alert,
    AlertRule,
    Line,
    PrometheusApi,
    PrometheusSettings,
    QueryRefused,
    Result,
    RuleSettings,
    Sample,
)
from midwatch.text import component_name, ticket_line
from midwatch.units import format_value

MAX_ALERTS = 500
MAX_SERIES = 1000  # of one rule
MAX_REMEMBERED = 200  # broken series of one rule
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Findings:
    """Signals, why an invariant was not observed completely, and what the next observation needs."""

    signals: tuple[Signal, ...]
    unavailable: Mapping[str, str] = field(default_factory=dict)
    remembered: tuple[str, ...] = ()


# ------------------------------------------------------------------ the server's own alerts


def check_alerts(
    rules: Sequence[AlertRule],
    settings: PrometheusSettings,
    invariant: Invariant,
    before: Collection[str],
) -> Findings:
    """Return a signal for each alert that fires. `before` are the marks of those that fired last time.

    An alert that fired before and is pending now is still broken: its expression is true, only its
    duration restarted, as after a restart of the server.
    """
    wanted = [rule for rule in rules if rule.name not in settings.ignore]
    found: dict[tuple[str, str], Signal] = {}
    for alert in (alert for rule in wanted for alert in rule.alerts):
        signal = _alert_signal(alert, settings, invariant)
        key = (signal.invariant, signal.component)
        fires = alert.state == "firing" or (
            alert.state == "pending" and _mark(signal) in before
        )
        # Two rules of one name may differ in severity only: the worse one counts.
        if fires and (key not in found or _urgency(signal) < _urgency(found[key])):
            found[key] = signal
    ordered = sorted(
        found.values(), key=lambda s: (_urgency(s), s.invariant, s.component)
    )
    unavailable = {
        alert_id(rule.name): _unhealthy(rule) for rule in wanted if rule.health != "ok"
    }
    if len(ordered) > MAX_ALERTS:
        unavailable["alert"] = f"{len(ordered)} alerts fire; {MAX_ALERTS} of them count"
    kept = tuple(ordered[:MAX_ALERTS])
    return Findings(kept, unavailable, tuple(sorted(_mark(signal) for signal in kept)))


def alert_id(name: str) -> str:
    """Return the id of the invariant for an alerting rule of the server."""
    return f"alert:{component_name(name)}"


def _alert_signal(
    alert: Alert, settings: PrometheusSettings, invariant: Invariant
) -> Signal:
    labels = {
        name: value
        for name, value in alert.labels.items()
        if name not in ("alertname", settings.severity_label)
    }
    texts = (alert.annotations.get(name, "") for name in ("summary", "description"))
    text = ": ".join(text for text in texts if text)
    severity = settings.severity(alert.labels.get(settings.severity_label))
    return Signal(
        invariant=alert_id(alert.name),
        component=component_name(label_text(labels) or alert.name),
        message=ticket_line(f"{alert.name}: {text or label_text(labels) or 'fires'}"),
        holds=False,
        facts={
            "alertname": ticket_line(alert.name, 200),
            "active_at": ticket_line(alert.active_at, 40),
            **label_facts(labels),
        },
        severity=invariant.severity if severity is None else severity,
        hold_for=invariant.hold_for,
    )


def _mark(signal: Signal) -> str:
    text = f"{signal.invariant}\0{signal.component}"
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:12]


def _urgency(signal: Signal) -> int:
    return int(Severity.WARNING if signal.severity is None else signal.severity)


def _unhealthy(rule: AlertRule) -> str:
    if rule.health == "err":
        return f"the server cannot evaluate the rule {rule.name}: {rule.error}"
    return f"the server has not evaluated the rule {rule.name} yet"


# ------------------------------------------------------------------ rules of the settings


def check_rule(
    rule: RuleSettings, invariant: Invariant, result: Result, before: Collection[str]
) -> Findings:
    """Return a signal for each series. `before` are the components that were broken when last observed.

    A signal with neither `value` nor `holds` means that its component is unknown.
    """
    readings = _readings(rule, result.samples)
    reason = "; ".join(f"partial answer: {text}" for text in result.warnings)
    if len(readings) > MAX_SERIES:
        reason = f"more than {MAX_SERIES} series; narrow the expression"
        worst = sorted(readings.items(), key=lambda item: _badness(rule, item[1].value))
        readings = dict(worst[-MAX_SERIES:])
    if invariant.limit is None:
        signals = tuple(
            _reading(rule, invariant, name, sample, holds=False)
            for name, sample in readings.items()
        )
        return Findings(signals, {rule.name: reason} if reason else {})
    if not readings and rule.absent == "unknown" and not reason:
        reason = f"the expression of {rule.name} returns no series"
    return _limited(rule, invariant, readings, before, reason)


def _limited(
    rule: RuleSettings,
    invariant: Invariant,
    readings: Mapping[str, Sample],
    before: Collection[str],
    reason: str,
) -> Findings:
    signals: list[Signal] = []
    broken: set[str] = set()
    for name, sample in readings.items():
        holds = _holds(invariant, sample.value)
        if holds is None and rule.absent == "clear":
            continue
        if holds is False or (holds is None and name in before):
            broken.add(name)
        signals.append(_reading(rule, invariant, name, sample, holds))
    gone = sorted(set(before) - set(readings)) if rule.absent == "unknown" else []
    signals += [
        Signal(rule.name, name, f"{rule.name}: {name} was broken and is gone")
        for name in gone
    ]
    remembered = sorted(broken) + gone
    if len(remembered) > MAX_REMEMBERED and not reason:
        reason = f"more than {MAX_REMEMBERED} series are broken or gone; narrow the expression"
    return Findings(
        tuple(signals),
        {rule.name: reason} if reason else {},
        tuple(sorted(remembered[:MAX_REMEMBERED])),
    )


def _holds(invariant: Invariant, value: float) -> bool | None:
    """Return whether a value is within the limit; None where they cannot be compared."""
    if math.isnan(value) or invariant.limit is None:
        return None
    return value <= invariant.limit if invariant.above else value >= invariant.limit


def _reading(
    rule: RuleSettings,
    invariant: Invariant,
    component: str,
    sample: Sample,
    holds: bool | None,
) -> Signal:
    # JSON and databases have no infinity: such a value is in the message only.
    finite = math.isfinite(sample.value)
    shown = (
        format_value(sample.value, invariant.unit)
        if finite
        else f"{sample.value:+f}".upper()
    )
    if rule.message:
        message = fill(rule.message, {**sample.labels, "value": shown})
    else:
        limit = invariant.limit
        past = (
            "" if limit is None else f" (limit {format_value(limit, invariant.unit)})"
        )
        message = f"{rule.name}: {component} is {shown}{past}"
    facts: Facts = {
        "expr": ticket_line(rule.expr, 1000),
        "value": shown,
        **label_facts(sample.labels),
    }
    return Signal(
        invariant=rule.name,
        component=component,
        message=ticket_line(message),
        value=sample.value if finite else None,
        holds=holds,
        facts=facts,
    )


def _readings(rule: RuleSettings, samples: Iterable[Sample]) -> dict[str, Sample]:
    """Return the series by component; where several have one component, the worst."""
    found: dict[str, Sample] = {}
    for sample in samples:
        name = _component(rule, sample.labels)
        if name not in found or _badness(rule, sample.value) > _badness(
            rule, found[name].value
        ):
            found[name] = sample
    return found


def _badness(rule: RuleSettings, value: float) -> float:
    if math.isnan(value):
        return -math.inf
    return -value if rule.below is not None else value


def _component(rule: RuleSettings, labels: Mapping[str, str]) -> str:
    match rule.component:
        case str() as template:
            text = fill(template, labels)
        case list() as names:
            text = label_text({name: labels.get(name, "") for name in names})
        case _:
            text = label_text(labels)
    return component_name(text) or rule.name


def fill(template: str, values: Mapping[str, str]) -> str:
    """Return `template` with its {names} replaced; a name without a value becomes ""."""
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], ""), template)


def label_text(labels: Mapping[str, str]) -> str:
    """Return `instance=a, job=b`, in the order of the names, without the name of the metric."""
    return ", ".join(
        f"{name}={value}"
        for name, value in sorted(labels.items())
        if name != "__name__"
    )


def label_facts(labels: Mapping[str, str]) -> dict[str, str]:
    return {
        f"label_{ticket_line(name, 60)}": ticket_line(value, 200)
        for name, value in sorted(labels.items())[:20]
    }


# ------------------------------------------------------------------ the subject

_SHARE_OF_TIMEOUT = 0.8  # the rest is for the report
_AT_ONCE = 4  # requests to the server
Query = Callable[[float], Awaitable[Findings]]


class PrometheusSubject:
    """A Prometheus server: its alerts, and rules over its series."""

    kind: ClassVar[str] = "prometheus"
    settings_model: ClassVar[type[PrometheusSettings]] = PrometheusSettings
    default_invariants: ClassVar[Sequence[Invariant]] = INVARIANTS

    def __init__(
        self, settings: PrometheusSettings, clock: Clock | None = None
    ) -> None:
        self.settings = settings
        self.name, self.timeout = settings.name, settings.timeout
        self.target = Target.of(settings.url)
        self.clock = clock or SystemClock()
        path = f"subjects.{settings.name}"
        own = INVARIANTS if settings.alerts else ()
        self.invariants = configure(
            (*own, *(rule.invariant() for rule in settings.rules)),
            settings.invariants,
            path,
        )
        self._token = ""
        if settings.bearer_token_file is not None:
            try:
                self._read_token(settings.bearer_token_file)
            except ObservationFailed as error:
                raise SettingsError(
                    error.message, path=f"{path}.bearer_token_file"
                ) from None
        self._web = WebClient(
            verify=settings.verify,
            ca_file=settings.ca_file,
            path=f"{path}.ca_file",
            keep_alive=True,
            clock=self.clock,
        )
        self.api = PrometheusApi(self._web, self.target.url, self._login)

    @property
    def secrets(self) -> Sequence[str]:
        auth = self.settings.basic_auth
        values = [
            self._token,
            self.target.login[1] if self.target.login else "",
            auth.password.get_secret_value() if auth else "",
            *(value.partition(" ")[2] for value in self._static_login().values()),
        ]
        return [value for value in values if value]

    async def observe(self, previous: Json) -> Observation:
        """Observe the server. Raises ObservationFailed when it answered none of the requests."""
        if self.settings.bearer_token_file is not None:
            self._read_token(self.settings.bearer_token_file)
        deadline = self.clock.monotonic() + self.settings.timeout * _SHARE_OF_TIMEOUT
        turns = asyncio.Semaphore(_AT_ONCE)

        async def ask(query: Query) -> Findings | ObservationFailed:
            async with turns:
                try:
                    return await query(max(0.01, deadline - self.clock.monotonic()))
                except ObservationFailed as failure:
                    return failure

        queries = self._queries(previous)
        answers = await asyncio.gather(*(ask(query) for query in queries.values()))
        return _observation(dict(zip(queries, answers, strict=True)), previous)

    def sources(self, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
        return _sources(self, tickets)

    async def close(self) -> None:
        await self._web.close()

    def _queries(self, previous: Json) -> dict[str, Query]:
        """Return the queries to the server, by invariant."""
        enabled = {invariant.id: invariant for invariant in self.invariants}
        queries = {
            rule.name: self._rule_query(rule, enabled[rule.name], previous)
            for rule in self.settings.rules
            if rule.name in enabled
        }
        if "alert" in enabled:
            queries["alert"] = self._alerts_query(enabled["alert"], previous)
        return queries

    def _alerts_query(self, invariant: Invariant, previous: Json) -> Query:
        async def query(timeout: float) -> Findings:
            found = await self.api.alert_rules(timeout)
            before = _strings(previous.get("alerts"))
            return check_alerts(found, self.settings, invariant, before)

        return query

    def _rule_query(
        self, rule: RuleSettings, invariant: Invariant, previous: Json
    ) -> Query:
        async def query(timeout: float) -> Findings:
            result = await self.api.query(rule.expr, timeout)
            return check_rule(rule, invariant, result, _remembered(previous, rule.name))

        return query

    # ------------------------------------------------------------------ login

    def _login(self) -> Mapping[str, str]:
        if self._token:
            return {"authorization": f"Bearer {self._token}"}
        return self._static_login()

    def _static_login(self) -> Mapping[str, str]:
        auth = self.settings.basic_auth
        if auth is not None:
            return basic_login(auth.username, auth.password.get_secret_value())
        return self.target.login_header()

    def _read_token(self, path: Path) -> None:
        try:
            token = path.read_bytes()[:65536].decode("ascii").strip()
        except OSError as error:
            raise ObservationFailed(
                f"the token file {path} cannot be read: {error.strerror}"
            ) from None
        except UnicodeDecodeError:
            token = ""
        if not token or not token.isprintable():
            raise ObservationFailed(f"the token file {path} does not hold a token")
        self._token = token


def _observation(
    answers: Mapping[str, Findings | ObservationFailed], previous: Json
) -> Observation:
    failures = [
        answer for answer in answers.values() if isinstance(answer, ObservationFailed)
    ]
    silent = [item for item in failures if not isinstance(item, QueryRefused)]
    if silent and len(silent) == len(answers):
        raise ObservationFailed(
            f"Prometheus did not answer: {silent[0].message}", hint=silent[0].hint
        )
    unavailable: dict[str, str] = {}
    covered: set[str] = set()
    state: Json = {"alerts": _strings(previous.get("alerts")), "rules": {}}
    for name, answer in answers.items():
        if isinstance(answer, ObservationFailed):
            unavailable[name] = ticket_line(f"{name}: {answer.one_line()}")
            remembered: Sequence[str] = _remembered(previous, name)
        else:
            unavailable.update(answer.unavailable)
            remembered = answer.remembered
            if name not in answer.unavailable:
                covered.add("*" if name == "alert" else name)
        if name == "alert":
            if not isinstance(answer, ObservationFailed):
                state["alerts"] = list(remembered)
        elif remembered:
            state["rules"][name] = list(remembered)
    signals = tuple(
        signal
        for answer in answers.values()
        if isinstance(answer, Findings)
        for signal in answer.signals
    )
    return Observation(signals, frozenset(covered), unavailable, state)


def _remembered(previous: Json, rule: str) -> list[str]:
    rules = previous.get("rules")
    return _strings(rules.get(rule)) if isinstance(rules, dict) else []


def _strings(value: object) -> list[str]:
    """Return the strings of a list, else nothing: an older version may have stored something else."""
    return (
        [item for item in value if isinstance(item, str)]
        if isinstance(value, list)
        else []
    )


# ------------------------------------------------------------------ evidence

_MOST_INVARIANTS = 5
_MOST_SERIES = 20
_SPARSE_POINTS = 12
_HOUR, _STEP = 3600.0, 60.0


def _sources(
    subject: PrometheusSubject, tickets: Sequence[Ticket]
) -> Sequence[EvidenceSource]:
    limit = subject.settings.timeout
    shown = subject.target.shown
    reader = _EvidenceReader(subject, limit * 0.45)

    def source(
        title: str, fetch: Callable[[], Awaitable[str]], rank: int
    ) -> EvidenceSource:
        return EvidenceSource(title, shown, fetch, rank, limit)

    named = dict.fromkeys(ticket.key.invariant for ticket in tickets)
    found = []
    for name in islice(named, _MOST_INVARIANTS):
        found += [
            source(f"Definition of {name}", reader.about(name, reader.definition), 10),
            source(f"{name}: values now", reader.about(name, reader.current), 12),
            source(f"{name}: the last hour", reader.about(name, reader.history), 20),
        ]
    return [
        *found,
        source("Firing and pending alerts", reader.alerts, 15),
        source("Scrape targets that are down", reader.down, 25),
        source("Build of the server", reader.build, 80),
    ]


class _EvidenceReader:
    """Fetches evidence as text. `limit` is the timeout of one request in seconds; a source makes two at most."""

    def __init__(self, subject: PrometheusSubject, limit: float) -> None:
        self._api: PrometheusApi = subject.api
        self._rules = {rule.name: rule for rule in subject.settings.rules}
        self.invariants = {item.id: item for item in subject.invariants}
        self._clock = subject.clock
        self._limit = limit

    def about(
        self, name: str, fetch: Callable[[str], Awaitable[str]]
    ) -> Callable[[], Awaitable[str]]:
        return lambda: fetch(name)

    async def definition(self, name: str) -> str:
        if name in self._rules:
            invariant = self.invariants.get(name) or self._rules[name].invariant()
            side = "above" if invariant.above else "below"
            bound = "" if invariant.limit is None else f"\n{side}: {invariant.limit:g}"
            return f"rule: {name}\nexpr: {self._rules[name].expr}{bound}\nfor: {invariant.hold_for:g} s"
        return "\n\n".join(_rule_text(rule) for rule in await self._named(name))

    async def current(self, name: str) -> str:
        result = await self._api.query(await self._expression(name), self._limit)
        lines = [f"warning: {text}" for text in result.warnings]
        for sample in result.samples[:_MOST_SERIES]:
            lines.append(
                f"{ticket_line(label_text(sample.labels)) or '(no labels)'}: {sample.value:g}"
            )
        lines.append(f"{len(result.samples)} series")
        return "\n".join(lines)

    async def history(self, name: str) -> str:
        end = self._clock.now().timestamp()
        found = await self._api.query_range(
            await self._expression(name), end - _HOUR, end, _STEP, self._limit
        )
        lines = [compact(line) for line in found[:_MOST_SERIES] if line.points]
        return "\n".join([*lines, f"{len(found)} series in the last hour"])

    async def alerts(self) -> str:
        rules = await self._api.alert_rules(self._limit)
        lines = [
            f"{alert.state} {ticket_line(alert.name, 100)} since {ticket_line(alert.active_at, 40)}: "
            f"{ticket_line(label_text(alert.labels))}"
            for rule in rules
            for alert in rule.alerts
        ]
        lines += [
            f"health {rule.health} {ticket_line(rule.name, 100)}: {rule.error}"
            for rule in rules
            if rule.health != "ok"
        ]
        return "\n".join(lines[:100]) or "no alert fires, and every rule is evaluated"

    async def down(self) -> str:
        targets = await self._api.targets(self._limit)
        lines = [
            f"{target.health} {ticket_line(label_text(target.labels))}: {target.error}"
            for target in targets
            if target.health != "up"
        ]
        return "\n".join(
            [*lines[:50], f"{len(lines)} of {len(targets)} targets not up"]
        )

    async def build(self) -> str:
        found = await self._api.build(self._limit)
        return _pairs(sorted(found.items()))

    async def _expression(self, name: str) -> str:
        if name in self._rules:
            return self._rules[name].expr
        return (await self._named(name))[0].query

    async def _named(self, name: str) -> list[AlertRule]:
        rules = await self._api.alert_rules(self._limit)
        found = [rule for rule in rules if alert_id(rule.name) == name]
        if not found:
            raise ObservationFailed(f"the server has no rule for {name} any more")
        return found


def compact(line: Line) -> str:
    """Return one line: least, greatest and last value, and some points between."""
    values = [value for _, value in line.points]
    every = -(-len(line.points) // _SPARSE_POINTS)
    points = " ".join(f"{_clock(at)}={value:g}" for at, value in line.points[::every])
    name = ticket_line(label_text(line.labels)) or "(no labels)"
    return (
        f"{name}: min {min(values):g}, max {max(values):g}, last {values[-1]:g} at "
        f"{_clock(line.points[-1][0])} UTC; {points}"
    )


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M")


def _rule_text(rule: AlertRule) -> str:
    return _pairs(
        (
            ("alert", rule.name),
            ("group", rule.group),
            ("expr", rule.query),
            ("for", f"{rule.duration:g} s"),
            ("health", rule.health),
            ("last error", rule.error or "none"),
        )
    )


def _pairs(items: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"{name}: {ticket_line(value, 2000)}" for name, value in items)
