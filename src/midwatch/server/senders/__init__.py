"""What each sender of alerts writes, read into one form (pure)."""

from __future__ import annotations

from collections.abc import Mapping

from midwatch.received import Delivery
from midwatch.server.senders.alertmanager_webhook import (
    read_alertmanager,
    read_grafana,
)
from midwatch.server.senders.generic_webhook import read_generic
from midwatch.server.senders.pagerduty_webhook import read_pagerduty
from midwatch.subjects.pushed import FieldSettings


def read_delivery(
    sender: str,
    body: bytes,
    headers: Mapping[str, str],
    fields: FieldSettings | None = None,
) -> Delivery:
    """Return what a request of a sender says.

    Args:
        sender: "alertmanager", "grafana", "pagerduty" or "generic".
        body: The body of the request.
        headers: Its headers, by their names in lower case.
        fields: Where a generic sender has its fields.

    Raises:
        Unreadable: The body is not what the sender writes.
    """
    match sender:
        case "alertmanager":
            return read_alertmanager(body)
        case "grafana":
            return read_grafana(body)
        case "pagerduty":
            return read_pagerduty(body)
    assert fields is not None, "the settings of a generic sender have its fields"
    return read_generic(body, headers, fields)
