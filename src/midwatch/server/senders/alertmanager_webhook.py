"""Webhooks of Alertmanager, and of Grafana's alerting, which has more fields in the same form.

https://prometheus.io/docs/alerting/latest/configuration/#webhook_config and
https://grafana.com/docs/grafana/latest/alerting/configure-notifications/manage-contact-points/integrations/webhook-notifier/
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from midwatch.model import Fact
from midwatch.received import Delivery, ReceivedAlert
from midwatch.server.senders.reading import (
    Unreadable,
    fact_of,
    list_of,
    object_of,
    read_json,
    text_of,
    texts_of,
    time_of,
)

_LINKS = ("generatorURL", "silenceURL", "dashboardURL", "panelURL", "valueString")
_TEXT = json.JSONEncoder(ensure_ascii=False)


def read_alertmanager(body: bytes) -> Delivery:
    """Return what a webhook of Alertmanager says. Raises Unreadable."""
    document = object_of(read_json(body), "the body")
    return _delivery(document, text_of(document.get("externalURL"), "externalURL"))


def read_grafana(body: bytes) -> Delivery:
    """Return what a webhook of Grafana says. Raises Unreadable."""
    return _delivery(object_of(read_json(body), "the body"), "")


def _delivery(document: Mapping[str, Any], manager: str) -> Delivery:
    truncated = document.get("truncatedAlerts") or 0
    if isinstance(truncated, bool) or not isinstance(truncated, int) or truncated < 0:
        raise Unreadable("truncatedAlerts: expected a number of alerts")
    return Delivery(
        alerts=tuple(
            _alert(one, f"alerts[{at}]", manager)
            for at, one in enumerate(list_of(document.get("alerts"), "alerts"))
        ),
        group=text_of(document.get("groupKey"), "groupKey")[:500],
        truncated=truncated,
    )


def _alert(value: Any, where: str, manager: str) -> ReceivedAlert:
    alert = object_of(value, where)
    status = text_of(alert.get("status"), f"{where}.status")
    if status not in ("firing", "resolved"):
        raise Unreadable(f"{where}.status: expected firing or resolved")
    labels = texts_of(alert.get("labels"), f"{where}.labels")
    # Alertmanager takes alerts without a name. To refuse one would lose the others of its group.
    name = labels.get("alertname", "").strip() or "alert"
    ends_at = time_of(alert.get("endsAt"), f"{where}.endsAt")
    resolved = status == "resolved"
    return ReceivedAlert(
        name=name,
        firing=not resolved,
        labels=labels,
        fingerprint=text_of(alert.get("fingerprint"), f"{where}.fingerprint"),
        starts_at=time_of(alert.get("startsAt"), f"{where}.startsAt"),
        # While it fires, Alertmanager has here when it would be resolved without another report.
        ends_at=ends_at if resolved else None,
        annotations=texts_of(alert.get("annotations"), f"{where}.annotations"),
        facts=_facts(alert, labels, where, manager),
    )


def _facts(
    alert: Mapping[str, Any], labels: Mapping[str, str], where: str, manager: str
) -> dict[str, Fact]:
    found: dict[str, Fact] = {}
    for name in _LINKS:
        if text := text_of(alert.get(name), f"{where}.{name}"):
            found[name] = text
    if manager and "silenceURL" not in found:
        found["silenceURL"] = silence_url(manager, labels)
    values = alert.get("values")
    if isinstance(values, dict):
        found |= {f"value_{name}": fact_of(one) for name, one in values.items()}
    return found


def silence_url(manager: str, labels: Mapping[str, str]) -> str:
    """Return the page of an Alertmanager on which an alert with these labels can be silenced."""
    matchers = ",".join(
        f"{name}={_TEXT.encode(value)}" for name, value in sorted(labels.items())[:20]
    )
    return f"{manager.rstrip('/')}/#/silences/new?filter={quote(f'{{{matchers}}}')}"
