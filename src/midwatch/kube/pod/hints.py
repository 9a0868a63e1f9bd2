"""What to do about a failure, for somebody who looks at a resource and not at a command line."""

from __future__ import annotations

_RESUME = "create a session with spec.resumeFrom that goes on with this one"
_SECRET = "check the secret of spec.apiKeySecret, or the operator's own"
_SPACE = "free the volume, or give the workspace more in the operator's settings"

HINTS: dict[str, str] = {
    "ApiFailed": f"{_RESUME}, later",
    "ApiUnreachable": "check the cluster's network policies and the way to the Claude API",
    "BudgetSpent": f"raise spec.llmSettings.maxBudgetUsd; {_RESUME}",
    "ContentUnavailable": "check that the content proxy runs and that the pod may reach it",
    "DiskFull": _SPACE,
    "GitTimedOut": "try again, or raise spec.timeout",
    "KeyRefused": _SECRET,
    "LineTooLong": _RESUME,
    "ModelNotFound": "choose another spec.llmSettings.model",
    "NotFound": (
        "check spec.resumeFrom: that session must have kept its conversation, with a main "
        "repository of the same name"
    ),
    "NotAuthorised": "put a GIT_TOKEN for this host into a secret of spec.environment.secrets",
    "Overloaded": f"{_RESUME}, later",
    "ProgramCrashed": _RESUME,
    "ProgramMissing": "check the image; it needs midwatch with its extra `sessions`",
    "PushFailed": "see status.repos; the work is kept in the workspace",
    "RateLimited": f"{_RESUME}, later, or raise the limit of the key",
    "RepositoryNotFound": (
        "check the URL in spec.repos; a private repository needs a GIT_TOKEN in a secret "
        "of spec.environment.secrets"
    ),
    "RepositoryUnreachable": "check the URL in spec.repos, network policies and the proxy",
    "RequestTooLarge": "create a new session with a shorter prompt",
    "RunnerCrashed": "see `kubectl logs` of the pod",
    "SandboxUnavailable": "pods have no sandbox of their own: set sessions.sandbox to auto or off",
    "SessionIdle": f"a call or a tool hung; {_RESUME}, or raise spec.idleTimeout",
    "SessionTimedOut": f"raise spec.timeout; {_RESUME}",
    "TokenRefused": "the operator and the content proxy must share their key",
    "TurnFailed": f"read what it says; {_RESUME}",
    "TurnLimit": f"raise spec.llmSettings.maxTurns; {_RESUME}",
    "WorkspaceDiskFull": _SPACE,
    "WorkspaceExists": "name the same repositories as the session that this one resumes",
    "WorkspaceNotWritable": "check the volume and the pod's fsGroup",
}
"""By the kind of the error; where there is none, the error's own hint stands."""


def hint_for(kind: str, own: str) -> str:
    return HINTS.get(kind, own)
