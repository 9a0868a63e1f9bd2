"""Turn what a sender reports into what is kept: named, redacted and with the key of its ticket."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from midwatch.agent.links import Links
from midwatch.model import Key, Observation, Severity, Signal, Violation
from midwatch.received import Delivery, KeptAlert, Push, ReceivedAlert, TakesAlerts
from midwatch.redaction import Sanitizer
from midwatch.subjects.alert_signals import fingerprint_of

_AT_ONCE = 200
"""Alerts between which other requests get their turn."""
_LEARNT_FROM = 20  # alerts of one request that may name other subjects


class AlertIntake:
    """Makes pushes of deliveries.

    Args:
        sanitizer: Cleans and redacts, as for what subjects observe: a key has to be the same both ways.
        links: The links between subjects, which learn from what opens; None where there is one subject alone.
    """

    def __init__(self, sanitizer: Sanitizer, links: Links | None) -> None:
        self._sanitizer = sanitizer
        self._links = links

    async def push(self, subject: TakesAlerts, delivery: Delivery) -> Push:
        """Return what to save for a subject."""
        kept: list[KeptAlert] = []
        for start in range(0, len(delivery.alerts), _AT_ONCE):
            if start:
                await asyncio.sleep(0)
            kept += self._kept(subject, delivery.alerts[start : start + _AT_ONCE])
        heartbeat = subject.settings.heartbeat
        return Push(
            subject=subject.name,
            kind=subject.kind,
            sender=subject.sender,
            alerts=tuple(kept),
            group=delivery.group,
            truncated=delivery.truncated,
            heartbeat=any(
                one.firing and subject.alerts.is_heartbeat(one)
                for one in delivery.alerts
            ),
            heartbeat_within=None if heartbeat is None else heartbeat.within,
            most_tickets=subject.settings.most_tickets,
            linked=self._linked(subject, kept),
        )

    def _kept(
        self, subject: TakesAlerts, alerts: tuple[ReceivedAlert, ...]
    ) -> list[KeptAlert]:
        found = [
            (alert, signal)
            for alert in alerts
            if (signal := subject.alerts.signal(alert)) is not None
        ]
        clean = self._sanitizer.observation(
            Observation(tuple(signal for _, signal in found), frozenset())
        )
        kept = []
        for (alert, _), signal in zip(found, clean.signals, strict=True):
            violation = self._sanitizer.violation(_violation(subject.name, signal))
            kept.append(_kept(alert, signal, violation))
        return kept

    def _linked(
        self, subject: TakesAlerts, kept: Sequence[KeptAlert]
    ) -> frozenset[str]:
        """Return the subjects whose tickets may be of one incident with what fires."""
        firing = [one for one in kept if one.firing]
        if self._links is None or not firing:
            return frozenset()
        for one in firing[:_LEARNT_FROM]:
            text = f"{one.message}\n{one.component}"
            self._links.learn_opening(subject.name, text, one.facts)
        return self._links.related(subject.name)


def _violation(subject: str, signal: Signal) -> Violation:
    return Violation(
        Key(subject, signal.invariant, signal.component),
        signal.severity if signal.severity is not None else Severity.WARNING,
        signal.message,
        facts=signal.facts,
        silenced_by=signal.silenced_by,
    )


def _kept(alert: ReceivedAlert, signal: Signal, violation: Violation) -> KeptAlert:
    return KeptAlert(
        fingerprint=fingerprint_of(alert),
        firing=alert.firing,
        invariant=violation.key.invariant,
        component=violation.key.component,
        severity=violation.severity,
        message=violation.message,
        facts=violation.facts,
        starts_at=alert.starts_at,
        ends_at=alert.ends_at,
        changed_at=alert.changed_at,
        silenced_by=violation.silenced_by,
        opens=not signal.hold_for,
    )
