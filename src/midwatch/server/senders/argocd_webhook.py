"""Webhooks of Argo CD notifications, with the body of the template in docs/changes.md.

Argo CD has no body of its own: its webhook service sends what a template says.
"""

from __future__ import annotations

from midwatch.agent.reported_changes import ReportedChange
from midwatch.server.senders.change_reading import (
    ReportedDelivery,
    labels,
    short,
    when,
)
from midwatch.server.senders.reading import (
    object_of,
    read_json,
    required_text,
    text_of,
)

_PHASES = {
    "Running": "began",
    "Succeeded": "succeeded",
    "Failed": "failed",
    "Error": "failed",
}
"""The phases of an operation in which something was changed."""


def read_argocd(body: bytes) -> ReportedDelivery:
    """Return what a notification of Argo CD reports. Raises Unreadable."""
    document = object_of(read_json(body), "the body")
    app = required_text(document.get("app"), "app")
    phase = required_text(document.get("phase"), "phase")
    if phase not in _PHASES:
        return ReportedDelivery()
    revision = text_of(document.get("revision"), "revision")
    message = text_of(document.get("message"), "message")
    began = when(document.get("started_at"), "started_at")
    at = when(document.get("finished_at"), "finished_at") or began
    title = f"sync of {app} {_PHASES[phase]}"
    change = ReportedChange(
        f"argocd {app} {revision} {phase} {at.isoformat() if at else ''}",
        f"{title}: {message}" if message else title,
        "argocd",
        at=at,
        labels=labels(
            app=app,
            project=text_of(document.get("project"), "project"),
            namespace=text_of(document.get("namespace"), "namespace"),
        ),
        version_from=short(
            text_of(document.get("previous_revision"), "previous_revision")
        ),
        version_to=short(revision),
        link=text_of(document.get("url"), "url"),
        author=text_of(document.get("author"), "author"),
    )
    repository = text_of(document.get("repository"), "repository")
    environment = text_of(document.get("environment"), "environment")
    return ReportedDelivery(
        (change,), (repository,) if repository else (), environment=environment
    )
