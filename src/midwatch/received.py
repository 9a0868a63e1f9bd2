"""Alerts as other systems report them: what a sender wrote, and what is kept of it (values only)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

from midwatch.model import Facts, Severity, Violation


@dataclass(frozen=True, slots=True)
class ReceivedAlert:
    """One alert as its sender describes it, before anything is cleaned.

    Attributes:
        name: The name of its rule.
        firing: Whether it fires; else it is resolved.
        labels: What distinguishes it from other alerts of the rule, the name included.
        fingerprint: The sender's identity of the alert; empty where it has none.
        starts_at: When it began; None where the sender does not say.
        ends_at: When it ended.
        changed_at: When the sender gave it this state, where the sender says so: it orders two reports.
        annotations: Texts for people, such as `summary` and `runbook_url`.
        facts: Further facts for a ticket, such as links and values.
        severity: The sender's word for its urgency, where that is no label.
        silenced_by: What silences it at the sender; empty if nothing does.
    """

    name: str
    firing: bool
    labels: Mapping[str, str]
    fingerprint: str = ""
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    changed_at: datetime | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    facts: Facts = field(default_factory=dict)
    severity: str | None = None
    silenced_by: str = ""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One request of a sender. `truncated` alerts of the group `group` were left out of it."""

    alerts: tuple[ReceivedAlert, ...]
    group: str = ""
    truncated: int = 0


@dataclass(frozen=True, slots=True)
class KeptAlert:
    """An alert as the store keeps it: clean, with the key of its ticket.

    One with `opens` false is kept and opens no ticket at once: the monitor opens it when it has lasted.
    """

    fingerprint: str
    firing: bool
    invariant: str
    component: str
    severity: Severity
    message: str
    facts: Facts
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    changed_at: datetime | None = None
    silenced_by: str = ""
    opens: bool = True


@dataclass(frozen=True, slots=True)
class PushedAlerts:
    """What was pushed to a subject: its firing alerts, and how long ago it was heard of.

    Attributes:
        alerts: The firing ones, the most urgent first.
        now: The time by the store's clock.
        ticketed: Invariant and component of each unresolved ticket of the subject.
        recent: Fingerprints of the alerts that were received in the last minute.
        doubted: Alerts with an unresolved ticket that were reported as resolved while the heartbeat was overdue.
        doubted_for: Seconds since the last such report.
        silent_for: Seconds since the last request of its sender; None before the first.
        heartbeat_age: Seconds since its heartbeat alert was last pushed; None before the first.
        truncated: How many alerts were left out of the last request of each group, by group, and the seconds
            since that request.
    """

    alerts: tuple[KeptAlert, ...]
    now: datetime
    ticketed: frozenset[tuple[str, str]] = frozenset()
    recent: frozenset[str] = frozenset()
    doubted: tuple[KeptAlert, ...] = ()
    doubted_for: float = 0.0
    silent_for: float | None = None
    heartbeat_age: float | None = None
    truncated: Mapping[str, tuple[int, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Push:
    """What one request brought for a subject.

    Attributes:
        subject: Name of the subject.
        kind: Its kind.
        sender: What pushed it, such as "alertmanager"; the history of a ticket names it.
        alerts: The alerts, in the order in which the sender has them.
        group: The sender's name for the group of alerts.
        truncated: How many alerts of the group were left out.
        heartbeat: Whether the sender's heartbeat alert is among what it reports as firing.
        heartbeat_within: Seconds after which a heartbeat is overdue; None without one. While it is overdue,
            what is reported as resolved resolves no ticket.
        resolves: Whether what is reported as resolved resolves tickets; else the monitor does, when it sees so.
        most_tickets: Unresolved tickets of the subject from which on a push opens no more.
        linked: Names of the subjects whose tickets may be of one incident with those of this one.
    """

    subject: str
    kind: str
    sender: str
    alerts: tuple[KeptAlert, ...]
    group: str = ""
    truncated: int = 0
    heartbeat: bool = False
    heartbeat_within: float | None = None
    resolves: bool = True
    most_tickets: int = 500
    linked: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PushRules:
    """How tickets of pushed alerts open; all in seconds but `flapping_openings`, as in `MonitorSettings`."""

    group_wait: float = 0.0
    flapping_window: float = 3600.0
    flapping_openings: int = 3


@dataclass(frozen=True, slots=True)
class Accepted:
    """What pushes changed: the tickets that opened, by their ids, and the ids of those that were resolved."""

    opened: Mapping[int, Violation] = field(default_factory=dict)
    resolved: tuple[int, ...] = ()


class PushedAlertsReader(Protocol):
    """The part of a store that a subject with pushed alerts needs."""

    async def pushed_alerts(self, subject: str) -> PushedAlerts:
        """Return what was pushed to a subject and fires."""
        ...


@runtime_checkable
class TakesAlerts(Protocol):
    """A subject to which alerts can be pushed. The composition root hands it the store's rows.

    `settings` has `heartbeat` and `most_tickets`, as `midwatch.subjects.alert_settings.AlertSettings`.
    """

    name: str
    kind: str
    sender: str
    settings: Any
    alerts: Any

    def read_pushed_from(self, reader: PushedAlertsReader) -> None:
        """Take the pushed alerts from `reader`; the composition root calls this once."""
        ...
