"""Names in the cluster. Every one follows from the session's, so that a repeated create finds its own."""

from __future__ import annotations

GROUP = "midwatch.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "AgenticSession"
PLURAL = "agenticsessions"
SINGULAR = "agenticsession"
SHORT_NAME = "as"

FINALIZER = f"{GROUP}/save-workspace"
"""Held until the runner has had its time to save."""
SESSION_LABEL = f"{GROUP}/session"
"""On all that belongs to a session: its name."""
UID_LABEL = f"{GROUP}/session-uid"
ATTEMPT_LABEL = f"{GROUP}/attempt"
"""On a Job and its pods: which attempt they are, from 1."""
MANAGED_BY = {"app.kubernetes.io/managed-by": "midwatch-operator"}

MAX_NAME = 50
"""Characters of a session's name: a Job's name is a label of its pods, and so has 63."""
CONTAINER = "session"
"""The runner's container in its pod."""


def job_name(session: str, attempt: int) -> str:
    return f"{session}-run-{attempt}"


def account_name(session: str) -> str:
    """Of the service account, its role and the binding of the two."""
    return f"{session}-session"


def secret_name(session: str) -> str:
    """Of the secret with the token for the content proxy."""
    return f"{session}-content"


def claim_name(session: str) -> str:
    """Of the volume claim of the workspace."""
    return f"{session}-workspace"


def content_folder(namespace: str, session: str, uid: str) -> str:
    """The session's folder behind the content proxy.

    It has the resource's uid, so that a new resource of an old name begins with nothing.
    """
    return f"{namespace}/{session}.{uid[:8]}"
