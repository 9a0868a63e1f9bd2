"""Alerts of a sender as signals: their names, components, severities, messages and facts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from midwatch.model import Fact, Invariant, Severity, Signal
from midwatch.received import KeptAlert, ReceivedAlert
from midwatch.subjects.alert_settings import AlertSettings
from midwatch.subjects.prometheus_alerts import alert_id
from midwatch.subjects.prometheus_series import (
    MORE,
    component_of,
    fill,
    label_facts,
    label_text,
    runbook_fact,
)
from midwatch.text import component_name, ticket_line

_LONGEST_FACT = 1000
_TEXTS = ("summary", "description", "message")


def fingerprint_of(alert: ReceivedAlert) -> str:
    """Return the sender's fingerprint, or one of name and labels."""
    if alert.fingerprint:
        return ticket_line(alert.fingerprint, 200)
    text = f"{alert.name}\0{label_text(alert.labels)}"
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]


class AlertReader:
    """Reads alerts as the settings of a subject say.

    Args:
        settings: The settings of the subject.
        invariant: The invariant `alert` as the settings have it; None where it is not enabled.
    """

    def __init__(self, settings: AlertSettings, invariant: Invariant | None) -> None:
        self._settings = settings
        self._invariant = invariant

    def is_heartbeat(self, alert: ReceivedAlert) -> bool:
        """Return whether the alert shows that the sender works."""
        heartbeat = self._settings.heartbeat
        return heartbeat is not None and alert.name == heartbeat.alert

    def signal(self, alert: ReceivedAlert) -> Signal | None:
        """Return the signal of an alert; None for one that does not count.

        A resolution always counts: the alert may have fired before the settings left it out.
        """
        invariant, settings = self._invariant, self._settings
        if self.is_heartbeat(alert):
            return None
        if alert.firing and not self._counts(alert.name, alert.labels):
            return None
        labels = self._own_labels(alert.labels)
        severity = settings.severity(
            alert.labels.get(settings.severity_label) or alert.severity
        )
        texts = [text for name in _TEXTS if (text := alert.annotations.get(name))]
        text = ": ".join(texts[:2]) or label_text(labels) or "fires"
        return Signal(
            alert_id(alert.name),
            self._component(alert, labels),
            message=ticket_line(f"{alert.name}: {text}"),
            holds=not alert.firing,
            facts=self._facts(alert),
            severity=invariant.severity if severity is None and invariant else severity,
            hold_for=invariant.hold_for if invariant else 0.0,
            silenced_by=ticket_line(alert.silenced_by, 200),
        )

    def kept_signal(self, alert: KeptAlert) -> Signal:
        """Return the signal of an alert that was kept; of one that is not known to fire, it is unknown."""
        return Signal(
            alert.invariant,
            alert.component,
            message=alert.message,
            holds=False if alert.firing else None,
            facts=alert.facts,
            severity=alert.severity,
            hold_for=self._invariant.hold_for if self._invariant else 0.0,
            silenced_by=alert.silenced_by,
        )

    def counts(self, alert: KeptAlert) -> bool:
        """Return whether an alert that was kept counts by the settings of now."""
        name = str(alert.facts.get("alertname", ""))
        labels = {
            fact.removeprefix("label_"): str(value)
            for fact, value in alert.facts.items()
            if fact.startswith("label_")
        }
        return self._counts(name, labels)

    def _counts(self, name: str, labels: Mapping[str, str]) -> bool:
        invariant = self._invariant
        if invariant is None or name in self._settings.ignore:
            return False
        return not invariant.ignores({**labels, "alertname": name})

    def within_storm(
        self, signals: Sequence[Signal], ticketed: Collection[tuple[str, str]]
    ) -> tuple[Signal, ...]:
        """Return the signals, in a storm without the least urgent, for which one signal stands.

        What has a ticket keeps its signal, so that the ticket stays. What is silenced opens none.
        """
        broken = [one for one in signals if one.holds is False and not one.silenced_by]
        most = self._settings.most_tickets
        if len(broken) <= most:
            return tuple(signals)
        broken.sort(
            key=lambda one: (
                (one.invariant, one.component) not in ticketed,
                one.severity or 0,
            )
        )
        kept = [
            one
            for at, one in enumerate(broken)
            if at < most or (one.invariant, one.component) in ticketed
        ]
        others = [one for one in signals if one.holds is not False or one.silenced_by]
        rest = broken[len(kept) :]
        return (*kept, *others, *([_more(rest)] if rest else ()))

    def _own_labels(self, labels: Mapping[str, str]) -> dict[str, str]:
        left_out = ("alertname", self._settings.severity_label)
        return {name: value for name, value in labels.items() if name not in left_out}

    def _component(self, alert: ReceivedAlert, labels: Mapping[str, str]) -> str:
        match self._settings.component:
            case str() as template:
                return component_name(fill(template, alert.labels)) or alert.name
            case list() as names:
                found = {name: alert.labels.get(name, "") for name in names}
                text = label_text(found) if any(found.values()) else ""
            case _:
                text = label_text(labels)
        return component_of(text, component_name(alert.name) or "alert")

    def _facts(self, alert: ReceivedAlert) -> dict[str, Fact]:
        found: dict[str, Fact] = {"alertname": ticket_line(alert.name, 200)}
        if alert.starts_at is not None:
            found["active_at"] = alert.starts_at.isoformat()
        # All of them, the severity too: what silences and `ignore` match is read from here.
        found |= label_facts(
            {name: one for name, one in alert.labels.items() if name != "alertname"}
        )
        found |= runbook_fact(alert.annotations)
        for name, value in list(alert.facts.items())[:30]:
            short = ticket_line(name, 60)
            if isinstance(value, str):
                found[short] = ticket_line(value, _LONGEST_FACT)
            else:
                found[short] = value
        return found


def _more(rest: Sequence[Signal]) -> Signal:
    counts = Counter(one.invariant.partition(":")[2] for one in rest)
    names = ", ".join(f"{name} ×{count:,}" for name, count in counts.most_common(10))
    return Signal(
        "alert",
        MORE,
        ticket_line(f"and {len(rest):,} more alerts fire: {names}"),
        holds=False,
        facts={"alerts": len(rest), "names": ticket_line(names)},
        severity=min(
            (one.severity for one in rest if one.severity is not None),
            default=Severity.INFO,
        ),
    )
