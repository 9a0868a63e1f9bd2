"""What answers of Prometheus say of invariants: pure."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..model import Facts, Invariant, Severity, Signal
from ..units import format_value
from ._prometheus_api import Alert, AlertRule, Result, Sample
from ._prometheus_settings import PrometheusSettings, RuleSettings
from ._text import component_name, one_line

MAX_ALERTS = 500
MAX_SERIES = 1000  # of one rule
MAX_REMEMBERED = 200  # broken series of one rule
_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Seen:
    """Signals, why an invariant was not wholly seen, and what the next look needs."""

    signals: tuple[Signal, ...]
    unavailable: Mapping[str, str] = field(default_factory=dict)
    remembered: tuple[str, ...] = ()


# ------------------------------------------------------------------ the server's own alerts


def alerts_seen(
    rules: Sequence[AlertRule],
    settings: PrometheusSettings,
    invariant: Invariant,
    before: Collection[str],
) -> Seen:
    """A signal for each alert that fires. `before` are the marks of those that fired last time.

    An alert that fired before and is pending now still is broken: its expression is true, only
    its time began anew, as after a restart of the server.
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
    return Seen(kept, unavailable, tuple(sorted(_mark(signal) for signal in kept)))


def alert_id(name: str) -> str:
    """The invariant that an alerting rule of the server is."""
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
    said = ": ".join(text for text in texts if text)
    severity = settings.severity(alert.labels.get(settings.severity_label))
    return Signal(
        invariant=alert_id(alert.name),
        component=component_name(label_text(labels) or alert.name),
        message=one_line(f"{alert.name}: {said or label_text(labels) or 'fires'}"),
        holds=False,
        facts={
            "alertname": one_line(alert.name, 200),
            "active_at": one_line(alert.active_at, 40),
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


# ------------------------------------------------------------------ rules of ours


def rule_seen(
    rule: RuleSettings, invariant: Invariant, result: Result, before: Collection[str]
) -> Seen:
    """A signal for each series. `before` are the components that were broken and not seen well since.

    A signal with neither a value nor a verdict says that its component is unknown.
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
        return Seen(signals, {rule.name: reason} if reason else {})
    if not readings and rule.absent == "unknown" and not reason:
        reason = f"the expression of {rule.name} returns no series"
    return _limited(rule, invariant, readings, before, reason)


def _limited(
    rule: RuleSettings,
    invariant: Invariant,
    readings: Mapping[str, Sample],
    before: Collection[str],
    reason: str,
) -> Seen:
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
    return Seen(
        tuple(signals),
        {rule.name: reason} if reason else {},
        tuple(sorted(remembered[:MAX_REMEMBERED])),
    )


def _holds(invariant: Invariant, value: float) -> bool | None:
    """None where a value cannot be held against a limit."""
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
    # A database's JSON and numbers know no infinity: such a value is told in words only.
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
        "expr": one_line(rule.expr, 1000),
        "value": shown,
        **label_facts(sample.labels),
    }
    return Signal(
        invariant=rule.name,
        component=component,
        message=one_line(message),
        value=sample.value if finite else None,
        holds=holds,
        facts=facts,
    )


def _readings(rule: RuleSettings, samples: Iterable[Sample]) -> dict[str, Sample]:
    """The series by component; where several have one component, the worst."""
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
    """`template` with its {names} replaced; a name without a value becomes nothing."""
    return _PLACE.sub(lambda match: values.get(match[1], ""), template)


def label_text(labels: Mapping[str, str]) -> str:
    """`instance=a, job=b`, in the order of the names; without the name of the metric."""
    return ", ".join(
        f"{name}={value}"
        for name, value in sorted(labels.items())
        if name != "__name__"
    )


def label_facts(labels: Mapping[str, str]) -> dict[str, str]:
    return {
        f"label_{one_line(name, 60)}": one_line(value, 200)
        for name, value in sorted(labels.items())[:20]
    }
