"""The subject kind `alertmanager`: polls the alerts of an Alertmanager, and takes those that it pushes.

The poll knows what is silenced and inhibited; the push is there at once. Both have the labels of an alert, so it is one
ticket whichever way it came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import ClassVar

from pydantic import Field

from midwatch.errors import ObservationFailed
from midwatch.lifecycle import Clock, SystemClock
from midwatch.model import Invariant, Json, Observation, Signal, Ticket
from midwatch.received import PushedAlerts, PushedAlertsReader, ReceivedAlert
from midwatch.setting_group import Seconds, Url
from midwatch.subjects.alert_settings import (
    INVARIANTS,
    AlertSettings,
    HeartbeatSettings,
)
from midwatch.subjects.alert_signals import AlertReader
from midwatch.subjects.alertmanager_api import AlertmanagerApi, ManagedAlert
from midwatch.subjects.alertmanager_silences import silence_reasons, silenced_by
from midwatch.subjects.base import EvidenceSource, configure
from midwatch.subjects.http import Target
from midwatch.subjects.prometheus_evidence import LABELS
from midwatch.subjects.pushed import unavailable_of
from midwatch.subjects.web_login import LoginSettings, WebLogin
from midwatch.text import ticket_line
from midwatch.units import format_duration

_SHARE_OF_TIMEOUT = 0.8  # the rest is for the report
_MOST_READ = 20_000
"""Alerts of one answer: more are not kept, and what has none of them is unknown then."""
_MOST_LINES = 80


class PolledHeartbeatSettings(HeartbeatSettings):
    """An alert that always fires, and shows that alerts are still sent to Alertmanager."""

    within: Seconds = Field(
        180.0,
        gt=0,
        description="How long it may not be sent to Alertmanager; then the state of all alerts is unknown. Less than "
        "the 4 minutes after which alerts that Prometheus does not send any more are taken for resolved.",
    )


class AlertmanagerSettings(AlertSettings, LoginSettings):
    """An Alertmanager, polled; it may push to /hooks/alertmanager/NAME of the server as well."""

    kind: str = "alertmanager"
    url: Url = Field(
        description="Its address, with the path prefix if it has one: http://HOST:9093."
    )
    settle: Seconds = Field(
        180.0,
        ge=0,
        description="How long after the start of Alertmanager what it does not have is unknown: Prometheus sends each alert "
        "again every minute by default.",
    )
    heartbeat: PolledHeartbeatSettings | None = Field(
        None,
        description="The alert that always fires. Without one, a Prometheus that is down is taken for a quiet one.",
    )


class AlertmanagerSubject:
    """An Alertmanager: the alerts that fire there, and which of them it keeps silent."""

    kind: ClassVar[str] = "alertmanager"
    settings_model: ClassVar[type[AlertmanagerSettings]] = AlertmanagerSettings
    default_invariants: ClassVar[Sequence[Invariant]] = INVARIANTS
    sender: str = "alertmanager"

    def __init__(
        self, settings: AlertmanagerSettings, clock: Clock | None = None
    ) -> None:
        self.settings = settings
        self.name, self.timeout = settings.name, settings.timeout
        self.target = Target.of(settings.url)
        self.addresses = settings.addresses
        self.clock = clock or SystemClock()
        path = f"subjects.{settings.name}"
        self.invariants = configure(INVARIANTS, settings.invariants, path)
        self.alerts = AlertReader(settings, next(iter(self.invariants), None))
        self._login = WebLogin(settings, self.target, path)
        self._web = settings.web_client(path, self.clock, keep_alive=True)
        self.api = AlertmanagerApi(self._web, self.target.url, self._login.headers)
        self._reader: PushedAlertsReader | None = None

    @property
    def secrets(self) -> Sequence[str]:
        return self._login.secrets

    def read_pushed_from(self, reader: PushedAlertsReader) -> None:
        self._reader = reader

    async def observe(self, previous: Json) -> Observation:
        """Return what fires there. Raises ObservationFailed when it does not answer, or its heartbeat alert is overdue."""
        self._login.refresh()
        deadline = self.clock.monotonic() + self.timeout * _SHARE_OF_TIMEOUT
        found = await self._poll(deadline)
        pushed = PushedAlerts((), found.now)
        if self._reader is not None:
            pushed = await self._reader.pushed_alerts(self.name)
        self._check_heartbeat(found)
        reasons = await self._reasons(found, deadline)
        signals = [
            signal
            for one in found.alerts
            if (signal := self._signal(one, reasons)) is not None
        ]
        signals += self._only_pushed(pushed, found)
        unavailable = unavailable_of(pushed)
        if found.left_out:
            unavailable["alert"] = (
                f"the server has {found.left_out:,} more alerts than are read"
            )
        known = found.settled and not found.left_out
        return Observation(
            signals=self.alerts.within_storm(signals, pushed.ticketed),
            covered=frozenset({"*"} if known else ()),
            unavailable=unavailable,
        )

    def sources(self, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
        async def firing() -> str:
            deadline = self.clock.monotonic() + self.timeout * _SHARE_OF_TIMEOUT
            found = await self._poll(deadline)
            return _text(found.alerts, await self._reasons(found, deadline))

        return [
            EvidenceSource(
                "Firing and pending alerts",
                self.target.shown,
                firing,
                15,
                self.timeout,
                reported=LABELS,
            )
        ]

    async def close(self) -> None:
        await self._web.close()

    # ------------------------------------------------------------------ the poll

    async def _poll(self, deadline: float) -> _Found:
        found = _Found(self.clock.now())

        def left() -> float:
            return max(0.01, deadline - self.clock.monotonic())

        started = await self.api.started_at(left())
        now = await self.api.alerts(left(), found.take)
        found.now = now or found.now
        settle = timedelta(seconds=self.settings.settle)
        found.settled = started is None or found.now - started >= settle
        return found

    async def _reasons(self, found: _Found, deadline: float) -> Mapping[str, str]:
        left = deadline - self.clock.monotonic()
        return await silence_reasons(self.api, found.alerts, left)

    def _check_heartbeat(self, found: _Found) -> None:
        heartbeat = self.settings.heartbeat
        if heartbeat is None:
            return
        last = max(
            (
                one.updated_at
                for one in found.alerts
                if one.labels.get("alertname") == heartbeat.alert
                and one.updated_at is not None
            ),
            default=None,
        )
        hint = "check that Prometheus runs and sends its alerts to this Alertmanager"
        if last is None:
            raise ObservationFailed(
                f"the heartbeat alert {heartbeat.alert} does not fire: nothing is known of the others",
                hint=hint,
            )
        age = (found.now - last).total_seconds()
        if age > heartbeat.within:
            raise ObservationFailed(
                f"the heartbeat alert {heartbeat.alert} was last sent to Alertmanager {format_duration(age)} ago, "
                f"and is due every {format_duration(heartbeat.within)}",
                hint=hint,
            )

    def _signal(self, one: ManagedAlert, reasons: Mapping[str, str]) -> Signal | None:
        signal = self.alerts.signal(_received(one, reasons))
        if signal is not None and one.state == "unprocessed":
            # It is not known yet whether it is silenced: it opens nothing, and its ticket stays.
            return replace(signal, holds=None)
        return signal

    def _only_pushed(self, pushed: PushedAlerts, found: _Found) -> list[Signal]:
        """Return the signals of what was pushed in the last minute and is not in the poll.

        The members of a cluster get an alert one after the other.
        """
        polled = {one.fingerprint for one in found.alerts}
        return [
            self.alerts.kept_signal(one)
            for one in pushed.alerts
            if one.fingerprint in pushed.recent
            and one.fingerprint not in polled
            and self.alerts.counts(one)
        ]


class _Found:
    """What one poll found. `now` is the time by the server's clock."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.alerts: list[ManagedAlert] = []
        self.left_out = 0
        self.settled = True

    def take(self, alert: ManagedAlert) -> None:
        if len(self.alerts) < _MOST_READ:
            self.alerts.append(alert)
        else:
            self.left_out += 1


def _received(one: ManagedAlert, reasons: Mapping[str, str]) -> ReceivedAlert:
    return ReceivedAlert(
        name=one.labels.get("alertname", "") or "alert",
        firing=True,
        labels=one.labels,
        fingerprint=one.fingerprint,
        starts_at=one.starts_at,
        annotations=one.annotations,
        facts={"generatorURL": one.generator} if one.generator else {},
        silenced_by=silenced_by(one, reasons),
    )


def _text(alerts: Sequence[ManagedAlert], reasons: Mapping[str, str]) -> str:
    """Return a line for each alert that fires, as for a Prometheus server."""
    lines = []
    for one in alerts[:_MOST_LINES]:
        name = ticket_line(one.labels.get("alertname", ""), 100)
        since = "?" if one.starts_at is None else one.starts_at.isoformat()
        labels = ", ".join(
            f"{label}={value}" for label, value in sorted(one.labels.items())
        )
        quiet = silenced_by(one, reasons)
        told = f" [{quiet}]" if quiet else ""
        summary = one.annotations.get("summary", "")
        lines.append(
            f"firing {name} since {since}: {ticket_line(f'{labels}; {summary}', 300)}{told}"
        )
    if len(alerts) > len(lines):
        lines.append(f"and {len(alerts) - len(lines):,} more")
    return "\n".join(lines) or "no alert fires"
