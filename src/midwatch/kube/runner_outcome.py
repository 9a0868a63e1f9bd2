"""How a session ends in its pod: the phase, the reason and the message in the resource, and the exit code."""

from __future__ import annotations

from dataclasses import dataclass, replace

from midwatch.errors import MidwatchError
from midwatch.kube.environment import POD_ENDED
from midwatch.kube.status import failure_reason, phase_reason
from midwatch.session.events import Phase, failure
from midwatch.session.runner import SIGNALS, RunEnd, SessionStopped
from midwatch.session.status import SessionStatus

_RESUME = "create a session with spec.resumeFrom that continues this one"
_SECRET = "check the secret of spec.apiKeySecret, or the operator's own"
_SPACE = "free the volume, or give the workspace more in the operator's settings"

HINTS: dict[str, str] = {
    "ApiFailed": f"{_RESUME}, later",
    "ApiUnreachable": "check the cluster's network policies and the connection to the Claude API",
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
    "TurnFailed": f"read the message; {_RESUME}",
    "TurnLimit": f"raise spec.llmSettings.maxTurns; {_RESUME}",
    "WorkspaceDiskFull": _SPACE,
    "WorkspaceExists": "name the same repositories as the session that this one resumes",
    "WorkspaceNotWritable": "check the volume and the pod's fsGroup",
}
"""What to do about a failure, for readers of the resource, by kind of error. An error that is not
listed keeps its own hint."""


COMPLETED_OR_STOPPED = 0
FAILED = 1
STOPPED = "Stopped"
"""The reason of an end that was requested; one for idleness has another."""


@dataclass(frozen=True, slots=True)
class End:
    """The end of a session in this pod. Without a `phase` the session continues in another pod."""

    phase: Phase | None
    reason: str
    message: str = ""

    @property
    def exit_code(self) -> int:
        if self.phase is None:
            return POD_ENDED
        return FAILED if self.phase is Phase.FAILED else COMPLETED_OR_STOPPED

    def __str__(self) -> str:
        """Return the end as the last line of the pod's log."""
        phase = self.phase.value if self.phase is not None else "not finished"
        words = [phase, "" if self.reason == phase else self.reason, self.message]
        return ": ".join(word for word in words if word)


def pod_end(end: RunEnd) -> End:
    """Return the end of a run as it is written to the resource."""
    found = _end(end.status, end.error, end.began)
    if end.drained and found.reason == STOPPED:
        return in_another_pod(found)
    if end.unpushed is not None:
        why = (
            f"the session completed, but {end.unpushed.message} ({HINTS['PushFailed']})"
        )
        return replace(found, phase=Phase.FAILED, reason="PushFailed", message=why)
    return found


def in_another_pod(end: End) -> End:
    """Return the end of the pod only, as after a drained node, an eviction or a preemption."""
    why = "its pod was terminated; another attempt may continue it"
    return replace(end, phase=None, reason="PodEnding", message=why)


def _end(status: SessionStatus, error: MidwatchError | None, began: bool) -> End:
    unlogged = status.phase is not Phase.FAILED or not status.error
    if error is not None and (unlogged or not began):
        if isinstance(error, SessionStopped):
            return End(Phase.STOPPED, STOPPED, _stopped(error.message))
        return End(Phase.FAILED, *failure_reason(failure(error), HINTS))
    if status.phase is Phase.STOPPED and status.reason in SIGNALS:
        return End(Phase.STOPPED, STOPPED, _stopped(status.reason))
    return End(status.phase, *phase_reason(status, HINTS))


def _stopped(reason: str) -> str:
    if reason in SIGNALS:
        return "it was stopped on request; continue it with resumeFrom"
    return f"it was stopped: {reason}"
