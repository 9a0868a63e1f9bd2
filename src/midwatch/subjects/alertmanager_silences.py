"""What Alertmanagers keep silent: of their own alerts, and of those that a Prometheus server says fire.

An alert of Prometheus is found in Alertmanager by its labels. Prometheus adds its external labels when it sends an alert, and
`alert_relabel_configs` may add others, so the alert there has all labels of the one here, and perhaps more
(https://prometheus.io/docs/prometheus/latest/configuration/configuration/#alert_relabel_configs).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from midwatch.errors import ObservationFailed
from midwatch.subjects.alertmanager_api import AlertmanagerApi, ManagedAlert

_MOST_READ = 20_000
"""Alerts of one Alertmanager with the names of those that fire: with more, it keeps none of them silent here."""
_MOST_SHAPES = 50
"""Sets of label names for which the alerts of one name are looked up; beyond, an alert is taken for a firing one."""
Labels = Mapping[str, str]


def silenced_by(one: ManagedAlert, reasons: Mapping[str, str]) -> str:
    """Return what keeps an alert silent; empty if nothing does.

    Args:
        one: The alert.
        reasons: Who made each silence, and why, by its id.
    """
    if one.state != "suppressed":
        return ""
    if one.silenced_by:
        first = one.silenced_by[0]
        reason = reasons.get(first)
        return f"Alertmanager silence {first}{f' ({reason})' if reason else ''}"
    if one.inhibited_by:
        return f"Alertmanager: inhibited by the alert {one.inhibited_by[0]}"
    if one.muted_by:
        return f"Alertmanager: muted by the time interval {one.muted_by[0]}"
    return "Alertmanager"


async def silence_reasons(
    api: AlertmanagerApi, alerts: Collection[ManagedAlert], timeout: float
) -> Mapping[str, str]:
    """Return what is known of the silences, if any is needed: without it their ids are shown alone."""
    if not any(one.silenced_by for one in alerts):
        return {}
    try:
        return await api.silences(max(0.01, timeout))
    except ObservationFailed:
        return {}


# ------------------------------------------------------------------ one Alertmanager


class ManagedAlerts:
    """The alerts of one Alertmanager that have the name of one that fires, and which of them it keeps silent.

    Args:
        names: The names of the alerts that fire.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._alerts: dict[str, list[ManagedAlert]] = {name: [] for name in names}
        self._count = 0
        self.reasons: Mapping[str, str] = {}
        self.suppresses = False  # any of them
        self.cut = False  # it has more of them than are read
        self._found: dict[str, dict[tuple[str, ...], dict[tuple[str, ...], str]]] = {}

    def take(self, alert: ManagedAlert) -> None:
        """Take one alert, without its texts."""
        kept = self._alerts.get(alert.labels.get("alertname", ""))
        if kept is None:
            return
        if self._count == _MOST_READ:
            self.cut = True
            return
        kept.append(replace(alert, annotations={}, generator=""))
        self._count += 1
        self.suppresses = self.suppresses or alert.state == "suppressed"

    @property
    def alerts(self) -> Sequence[ManagedAlert]:
        return [one for kept in self._alerts.values() for one in kept]

    def look(self, labels: Labels, external: Labels) -> str | None:
        """Return what keeps an alert silent; empty if nothing does, None if the alert is not there.

        Where several have all its labels, all of them must be silent.

        Args:
            labels: The labels of the alert at Prometheus, with its name; none is empty.
            external: The external labels of that Prometheus: an alert with another value is one of another Prometheus.
        """
        shape = tuple(sorted(labels))
        shapes = self._found.setdefault(labels["alertname"], {})
        if shape not in shapes:
            if len(shapes) >= _MOST_SHAPES:
                return None
            shapes[shape] = self._index(labels["alertname"], shape, external)
        return shapes[shape].get(tuple(labels[name] for name in shape))

    def _index(
        self, alert: str, shape: tuple[str, ...], external: Labels
    ) -> dict[tuple[str, ...], str]:
        found: dict[tuple[str, ...], str] = {}
        added = {name: value for name, value in external.items() if name not in shape}
        for one in self._alerts.get(alert, ()):
            labels = one.labels
            if not labels.keys() >= {*shape}:
                continue
            if any(labels.get(name, value) != value for name, value in added.items()):
                continue
            values = tuple(labels[name] for name in shape)
            by = silenced_by(one, self.reasons)
            found[values] = by if found.get(values, by) else ""
        return found
