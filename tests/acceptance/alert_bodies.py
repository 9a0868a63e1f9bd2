"""What senders of alerts write, for tests."""

from __future__ import annotations

from typing import Any

START = "2026-03-01T10:00:00Z"
LATER = "2026-03-01T11:00:00Z"
ZERO = "0001-01-01T00:00:00Z"


def alertmanager_alert(
    instance: str = "db-1:9100",
    *,
    status: str = "firing",
    starts: str = START,
    ends: str = "",
    name: str = "HostDown",
    fingerprint: str = "",
    **labels: str,
) -> dict[str, Any]:
    """Return one alert as Alertmanager and Grafana write it."""
    found = {"alertname": name, "instance": instance, "severity": "critical", **labels}
    return {
        "status": status,
        "labels": found,
        "annotations": {
            "summary": f"{instance} does not answer",
            "runbook_url": "https://runbooks.example/host-down",
        },
        "startsAt": starts,
        "endsAt": ends or (LATER if status == "resolved" else ZERO),
        "generatorURL": "http://prometheus.example/graph?g0.expr=up",
        "fingerprint": fingerprint or f"fp-{name}-{instance}",
    }


def alertmanager_body(*alerts: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a webhook of Alertmanager with these alerts."""
    firing = any(one["status"] == "firing" for one in alerts)
    return {
        "version": "4",
        "groupKey": '{}:{alertname="HostDown"}',
        "truncatedAlerts": 0,
        "status": "firing" if firing else "resolved",
        "receiver": "midwatch",
        "groupLabels": {"alertname": "HostDown"},
        "commonLabels": {},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager.example",
        "alerts": list(alerts),
        **more,
    }


def incident(event_type: str, occurred_at: str, **more: Any) -> dict[str, Any]:
    """Return a webhook of PagerDuty about an incident."""
    data = {
        "id": "Q1",
        "type": "incident",
        "title": "The shop is slow",
        "number": 12,
        "status": "triggered",
        "html_url": "https://team.pagerduty.example/incidents/Q1",
        "created_at": "2026-03-01T10:00:00Z",
        "urgency": "high",
        "service": {"id": "P1", "summary": "Shop", "type": "service_reference"},
        "priority": None,
        **more,
    }
    return {
        "event": {
            "id": "01",
            "event_type": event_type,
            "resource_type": "incident",
            "occurred_at": occurred_at,
            "data": data,
        }
    }
