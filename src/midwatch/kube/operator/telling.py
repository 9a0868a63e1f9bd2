"""Kubernetes events, for `kubectl describe`."""

from __future__ import annotations

import hashlib
from datetime import datetime

from midwatch.kube.actions import Event
from midwatch.kube.names import API_VERSION, KIND, MANAGED_BY
from midwatch.kube.resource import SessionResource
from midwatch.kube.statuses import bounded, timestamp
from midwatch.model import Json

_COMPONENT = "midwatch-operator"
_MAX_MESSAGE = 1024
"""Bytes; what the API server takes."""


def event_manifest(resource: SessionResource, event: Event, now: datetime) -> Json:
    """The event as an object. Its name follows from what it tells, so that telling it twice is one event."""
    told = f"{resource.uid}/{event.attempt}/{event.reason}"
    mark = hashlib.sha256(told.encode()).hexdigest()[:16]
    at = timestamp(now)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{resource.name}.{mark}",
            "namespace": resource.namespace,
            "labels": dict(MANAGED_BY),
        },
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": resource.name,
            "namespace": resource.namespace,
            "uid": resource.uid,
        },
        "type": event.type,
        "reason": event.reason,
        "message": bounded(event.message, _MAX_MESSAGE),
        "source": {"component": _COMPONENT},
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }
