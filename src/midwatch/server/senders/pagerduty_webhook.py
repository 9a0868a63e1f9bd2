"""Webhooks of PagerDuty, version 3: an incident is an alert of its service.

https://developer.pagerduty.com/docs/webhooks-overview
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from midwatch.model import Fact
from midwatch.received import Delivery, ReceivedAlert
from midwatch.server.senders.reading import (
    object_of,
    read_json,
    required_text,
    text_of,
    time_of,
)


def read_pagerduty(body: bytes) -> Delivery:
    """Return what a webhook of PagerDuty says. Events that are not about an incident have no alert. Raises Unreadable."""
    event = object_of(object_of(read_json(body), "the body").get("event"), "event")
    kind = required_text(event.get("event_type"), "event.event_type")
    data = event.get("data")
    if not kind.startswith("incident.") or not isinstance(data, dict):
        return Delivery(())
    if data.get("type") != "incident":  # a note, a responder, a status update
        return Delivery(())
    return Delivery((_alert(event, kind, data),))


def _alert(
    event: Mapping[str, Any], kind: str, incident: Mapping[str, Any]
) -> ReceivedAlert:
    where = "event.data"
    service = _summary(incident.get("service"), f"{where}.service") or "PagerDuty"
    title = text_of(incident.get("title"), f"{where}.title")
    resolved = kind == "incident.resolved" or incident.get("status") == "resolved"
    happened = time_of(event.get("occurred_at"), "event.occurred_at")
    labels = {"incident": required_text(incident.get("id"), f"{where}.id")}
    for name in ("title", "urgency"):
        if text := text_of(incident.get(name), f"{where}.{name}"):
            labels[name] = text
    priority = _summary(incident.get("priority"), f"{where}.priority")
    if priority:
        labels["priority"] = priority
    facts: dict[str, Fact] = {"event_type": kind}
    for name in ("html_url", "number", "incident_key"):
        value = incident.get(name)
        if isinstance(value, (str, int)) and value != "":
            facts[name] = value
    return ReceivedAlert(
        name=service,
        firing=not resolved,
        labels=labels,
        fingerprint=labels["incident"],
        starts_at=time_of(incident.get("created_at"), f"{where}.created_at"),
        ends_at=happened if resolved else None,
        changed_at=happened,
        annotations={"summary": title},
        facts=facts,
        severity=priority or labels.get("urgency"),
    )


def _summary(value: Any, where: str) -> str:
    """Return how PagerDuty calls what a reference points to; empty without one."""
    if not isinstance(value, dict):
        return ""
    return text_of(value.get("summary"), f"{where}.summary").strip()
