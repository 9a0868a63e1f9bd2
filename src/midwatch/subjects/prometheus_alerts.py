"""The alerts of a Prometheus server as signals: the most urgent of them, and the rest as one.

An alerting rule is the invariant ``alert:NAME``. It is observed completely where the server evaluates it and
its answer is complete; that of a rule which fails, waits for its first evaluation, has no data or is gone
is unknown.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from midwatch.model import Invariant, Json, Severity, Signal
from midwatch.subjects.prometheus_api import Alert, AlertRule, Remarks
from midwatch.subjects.prometheus_series import (
    MORE,
    Findings,
    component_of,
    label_facts,
    label_text,
    runbook_fact,
)
from midwatch.subjects.prometheus_settings import PrometheusSettings
from midwatch.subjects.prometheus_silences import Silences
from midwatch.text import component_name, ticket_line

MAX_ALERTS = 40
"""Alerts that have a ticket each. More of them are a storm: a person would read no more."""
MAX_OF_A_RULE = 10  # in a storm
_IN_MEMORY = 2000  # alerts
_MOST_SILENCED = 1000  # alerts, besides those that fired before
_MOST_REMEMBERED = 500  # rules, the firing ones first
_MOST_REASONS = 20
_MOST_FAILING = 10  # rules that are named one by one
Marks = Mapping[str, Sequence[str]]


def alert_id(name: str) -> str:
    """Return the id of the invariant for an alerting rule of the server."""
    return f"alert:{component_name(name)}"


def alert_labels(alert: Alert, severity_label: str) -> dict[str, str]:
    """Return the labels that name the component of an alert."""
    own = ("alertname", severity_label)
    return {name: value for name, value in alert.labels.items() if name not in own}


def alert_key(alert: Alert, severity_label: str) -> tuple[str, str]:
    """Return the invariant and the component of an alert."""
    text = label_text(alert_labels(alert, severity_label))
    return alert_id(alert.name), component_of(text, alert.name)


@dataclass(frozen=True, slots=True)
class _Fired:
    alert: Alert
    labels: str  # as text, without those that are no part of the component
    severity: Severity
    mark: str
    pinned: bool  # it fired before
    silenced_by: str = ""


class AlertTally:
    """Takes the alerts of a server one by one, in bounded memory, and concludes with signals.

    An alert that fired before and is pending now is still broken: its expression is true, only its duration restarted, as
    after a restart of the server. If it was silenced then, it is unknown: Alertmanager hears nothing of what is pending. One
    that fired before keeps its signal as long as it fires, so that its ticket stays.

    Args:
        settings: The settings of the subject.
        invariant: The invariant `alert` as the settings have it.
        before: The marks of the alerts that fired last time, by invariant.
        silenced: The marks of those that were silenced last time.
        silences: What is silenced now.
    """

    def __init__(
        self,
        settings: PrometheusSettings,
        invariant: Invariant,
        before: Marks,
        silenced: Collection[str] = (),
        silences: Silences = Silences(),
    ) -> None:
        self._settings, self._invariant = settings, invariant
        self._before = before
        self._marks = {mark for marks in before.values() for mark in marks}
        self._were_silenced = frozenset(silenced)
        self._silences = silences
        self._silenced: dict[tuple[str, str], _Fired] = {}
        self._waiting: dict[tuple[str, str], _Fired] = {}  # pending, and fired before
        self._left_out = False
        self.names: set[str] = set()
        """The names of the alerts that fire."""
        self._fired: dict[tuple[str, str], _Fired] = {}
        self._rest: Counter[str] = Counter()
        self._rest_severity = Severity.INFO
        self._holding: list[Signal] = []
        self._unsure: set[str] = set()
        self._ignored: Counter[str] = Counter()
        self._severities: dict[str | None, Severity] = {}

    def add(self, alert: Alert) -> None:
        """Take one alert."""
        if self._ignores(alert.name, alert.labels):
            self._ignored[alert.name] += alert.state == "firing"
            return
        if alert.state == "unknown":
            self._unsure.add(alert_id(alert.name))
            return
        if alert.state != "firing" and not self._marks:
            return
        text = label_text(alert_labels(alert, self._settings.severity_label))
        mark = _mark(alert.name, text)
        before = mark in self._marks
        if alert.state == "firing":
            self.names.add(alert.name)
            by = self._silences.by(alert)
            self._add(_Fired(alert, text, self._severity(alert), mark, before, by))
        elif alert.state == "pending" and before:
            waiting = _Fired(alert, text, self._severity(alert), mark, before)
            self._waiting.setdefault((alert.name, text), waiting)
        elif before:
            key = alert_key(alert, self._settings.severity_label)
            severity = self._invariant.severity
            self._holding.append(Signal(*key, "", holds=True, severity=severity))

    def _add(self, fired: _Fired) -> None:
        """Keep an alert. Two rules of one name may differ in severity only: the worse one that is not silenced counts."""
        kept = self._silenced if fired.silenced_by else self._fired
        key = fired.alert.name, fired.labels
        known = kept.get(key)
        self._left_out = self._left_out or known is not None
        if kept is self._silenced and len(kept) >= _MOST_SILENCED and not fired.pinned:
            return
        if known is None or fired.severity < known.severity:
            kept[key] = fired
        if len(self._fired) > _IN_MEMORY:
            self._prune()

    def awaited(self, silences: Silences) -> bool:
        """Return whether an alert that did not fire before has not reached its Alertmanagers yet."""
        fired = self._fired.values()
        return any(silences.lacks(one.alert) for one in fired if not one.pinned)

    def silence(self, silences: Silences) -> bool:
        """Silence the alerts that were taken. Return whether all are still known, so that none must be taken again."""
        self._silences = silences
        fired, self._fired = self._fired, {}
        for one in fired.values():
            self._add(replace(one, silenced_by=silences.by(one.alert)))
        return not self._left_out

    def _prune(self) -> None:
        """Count those that are not among the most urgent. One that is not now would not be later either."""
        if len(self._fired) <= MAX_ALERTS and not self._rest:
            return
        kept = _most_urgent(self._fired.values())
        names = {(one.alert.name, one.labels) for one in kept}
        self._left_out = True
        for key in self._fired.keys() - names:
            fired = self._fired.pop(key)
            self._rest[fired.alert.name] += 1
            self._rest_severity = min(self._rest_severity, fired.severity)

    def conclude(self, rules: Sequence[AlertRule], remarks: Remarks) -> Findings:
        """Return the findings, given the rules, of which some may have no alert."""
        unknown = self._take_waiting()
        for key in self._fired.keys() & self._silenced.keys():
            del self._silenced[key]
        self._prune()
        signals = [
            self._signal(one)
            for kept in (self._fired, self._silenced)
            for one in sorted(kept.values(), key=_urgency)
        ]
        if self._rest:
            signals.append(self._more())
        covered, unavailable, unsupported = self._coverage(rules, remarks)
        return Findings(
            signals=(*signals, *unknown, *self._holding),
            covered=covered,
            unavailable=unavailable,
            unsupported=unsupported,
            ignored=tuple(
                f"{ticket_line(name, 100)} ({count} alert{'s' if count != 1 else ''})"
                for name, count in sorted(self._ignored.items())
                if count
            ),
            background={
                "alerting rules": len(rules),
                "alerting rules not evaluated": sum(
                    rule.health != "ok" for rule in rules
                ),
            },
            remembered=self._remembered(covered),
            silenced=self._remembered_silenced(),
        )

    def _take_waiting(self) -> list[Signal]:
        """Count what is pending and fired before as firing. Return signals for those that were silenced: they are unknown."""
        unknown: list[Signal] = []
        for key, one in list(self._waiting.items()):
            if key in self._fired or key in self._silenced:
                del self._waiting[key]
            elif one.mark in self._were_silenced:
                unknown.append(replace(self._signal(one), holds=None))
            else:
                self._fired[key] = self._waiting.pop(key)
        return unknown

    def _coverage(
        self, rules: Sequence[AlertRule], remarks: Remarks
    ) -> tuple[frozenset[str], dict[str, str], dict[str, str]]:
        """Return what was observed completely, and why the rest was not: `unavailable` and `unsupported`."""
        ignored = {alert_id(name) for name in self._settings.ignore}
        if remarks.incomplete:
            reason = f"partial answer: {'; '.join(remarks.incomplete)}"
            return frozenset(ignored), {"alert": ticket_line(reason)}, {}
        if not rules:
            reason = (
                "the server has no alerting rules; give it some, or set `alerts: false`"
            )
            return frozenset(ignored), {}, {"alert": reason}
        failing: dict[str, str] = {}
        unknown: dict[str, str] = {}
        for rule in rules:
            name = alert_id(rule.name)
            if name in ignored or self._ignores(rule.name, rule.labels):
                continue
            if rule.health == "failing":
                failing[name] = _unknown_because(rule)
            elif rule.health != "ok":
                unknown[name] = _unknown_because(rule)
            elif name in self._unsure:
                unknown[name] = f"the server has no data for an alert of {rule.name}"
        present = {alert_id(rule.name) for rule in rules}
        for name in self._before.keys() - present - ignored - {""}:
            rule_name = name.partition(":")[2]
            unknown[name] = (
                f"the server has no rule {rule_name} any more; restore it, or resolve its tickets by hand"
            )
        covered = (present | ignored | {"alert"}) - failing.keys() - unknown.keys()
        if len(failing) > _MOST_FAILING:
            first = next(iter(failing.values()))
            covered.discard("alert")
            failing = {"alert": ticket_line(f"{len(failing)} rules fail: {first}")}
        reasons = islice(unknown.items(), _MOST_REASONS)
        return frozenset(covered), failing, dict(reasons)

    def _remembered(self, covered: frozenset[str]) -> Json:
        """Return the marks for the next time: also those of rules that are unknown now."""
        found: dict[str, set[str]] = {}
        for one in (*self._fired.values(), *self._with_ticket()):
            found.setdefault(alert_id(one.alert.name), set()).add(one.mark)
        for name, marks in self._before.items():
            if name and name not in covered:
                found.setdefault(name, set()).update(marks)
        kept = islice(found.items(), _MOST_REMEMBERED)
        return {name: sorted(marks)[: 2 * MAX_ALERTS] for name, marks in kept}

    def _with_ticket(self) -> Iterator[_Fired]:
        """Yield what is silenced, or was when it fired last, and may have a ticket: it fired before."""
        yield from (one for one in self._silenced.values() if one.pinned)
        yield from self._waiting.values()

    def _remembered_silenced(self) -> tuple[str, ...]:
        marks = sorted(one.mark for one in self._with_ticket())
        return tuple(marks[:_MOST_REMEMBERED])

    def _ignores(self, name: str, labels: Mapping[str, str]) -> bool:
        return name in self._settings.ignore or self._invariant.ignores(
            {**labels, "alertname": name}
        )

    def _severity(self, alert: Alert) -> Severity:
        label = alert.labels.get(self._settings.severity_label)
        if label not in self._severities:
            severity = self._settings.severity(label)
            own = self._invariant.severity
            self._severities[label] = own if severity is None else severity
        return self._severities[label]

    def _signal(self, one: _Fired) -> Signal:
        texts = (
            one.alert.annotations.get(name, "") for name in ("summary", "description")
        )
        text = ": ".join(text for text in texts if text)
        name = one.alert.name
        return Signal(
            *alert_key(one.alert, self._settings.severity_label),
            message=ticket_line(f"{name}: {text or one.labels or 'fires'}"),
            holds=False,
            facts={
                "alertname": ticket_line(name, 200),
                "active_at": ticket_line(one.alert.active_at, 40),
                **label_facts(alert_labels(one.alert, self._settings.severity_label)),
                **runbook_fact(one.alert.annotations),
            },
            severity=one.severity,
            hold_for=self._invariant.hold_for,
            silenced_by=ticket_line(one.silenced_by, 200),
        )

    def _more(self) -> Signal:
        names = ", ".join(
            f"{name} ×{count:,}" for name, count in self._rest.most_common(10)
        )
        count = self._rest.total()
        return Signal(
            "alert",
            MORE,
            ticket_line(f"and {count:,} more alerts fire: {names}"),
            holds=False,
            facts={"alerts": count, "names": ticket_line(names)},
            severity=self._rest_severity,
        )


def _most_urgent(fired: Collection[_Fired]) -> list[_Fired]:
    """Return those that have a ticket in a storm: those that fired before, and others up to `MAX_ALERTS`.

    Critical ones come first, and then each rule in turn.
    """
    pinned = [one for one in fired if one.pinned]
    of_a_rule = Counter(one.alert.name for one in pinned)
    turns: list[tuple[Severity, int, str, _Fired]] = []
    for one in sorted((one for one in fired if not one.pinned), key=_urgency):
        name = one.alert.name
        if (turn := of_a_rule[name]) < MAX_OF_A_RULE:
            turns.append((one.severity, turn, name, one))
            of_a_rule[name] += 1
    ranked = [one for *_, one in sorted(turns, key=lambda turn: turn[:3])]
    critical = [one for one in ranked if one.severity is Severity.CRITICAL]
    before = sum(one.severity is Severity.CRITICAL for one in pinned)
    chosen = critical[: max(MAX_ALERTS - before, 0)]
    room = max(MAX_ALERTS - len(pinned) - len(chosen), 0)
    return [*pinned, *chosen, *ranked[len(critical) :][:room]]


def _urgency(one: _Fired) -> tuple[Severity, str, str]:
    return one.severity, one.alert.name, one.labels


def _mark(name: str, labels: str) -> str:
    text = f"{name}\0{labels}"
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:12]


def _unknown_because(rule: AlertRule) -> str:
    name = ticket_line(rule.name, 100)
    match rule.health:
        case "failing":
            return f"the server cannot evaluate the rule {name}: {rule.error}"
        case "nodata":
            return f"the rule {name} finds no data"
        case "paused":
            return f"the rule {name} is paused"
        case "unevaluated":
            return f"the server has not evaluated the rule {name} yet"
        case _:
            return f"the rule {name} is in a state that is not known here"
