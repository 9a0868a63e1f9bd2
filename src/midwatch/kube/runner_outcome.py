"""How the runner of a pod ends: what the resource is told, and the exit code."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from midwatch.errors import MidwatchError
from midwatch.kube.environment import POD_ENDED
from midwatch.kube.status import failure_story, phase_reason
from midwatch.session.agentic_session import SessionStopped
from midwatch.session.events import Phase, failure
from midwatch.session.status import SessionStatus

# ------------------------------------------------------------ hints
# What to do about a failure, for somebody who looks at a resource and not at a command line.

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


COMPLETED_OR_STOPPED = 0
FAILED = 1
SIGNALS = ("SIGTERM", "SIGINT")
"""Reasons of a stop that came from outside of the session."""
STOPPED = "Stopped"
"""The reason of an end that was asked for; one for idleness has another."""


@dataclass(frozen=True, slots=True)
class End:
    """The end of a session in this pod. Without a `phase` it has none: it goes on in another pod."""

    phase: Phase | None
    reason: str
    message: str = ""

    @property
    def exit_code(self) -> int:
        if self.phase is None:
            return POD_ENDED
        return FAILED if self.phase is Phase.FAILED else COMPLETED_OR_STOPPED


def ended_by(error: MidwatchError) -> End:
    """The end of a session that an error kept from its program."""
    if isinstance(error, SessionStopped):
        return End(Phase.STOPPED, *_stopped(error.message))
    return End(Phase.FAILED, *failure_story(failure(error), HINTS))


def ended_as(status: SessionStatus, error: MidwatchError | None) -> End:
    """The end of a session that ran. `error` counts where the log has no end: it could not be opened."""
    if error is not None and (status.phase is not Phase.FAILED or not status.error):
        return ended_by(error)
    if status.phase is Phase.STOPPED and status.reason in SIGNALS:
        return End(Phase.STOPPED, *_stopped(status.reason))
    return End(status.phase, *phase_reason(status, HINTS))


def in_another_pod(end: End) -> End:
    """The end of the pod alone: a drained node, an eviction, a preemption."""
    why = "its pod was told to end; another attempt may go on with it"
    return replace(end, phase=None, reason="PodEnding", message=why)


def said(end: End) -> str:
    """The end as the last line of the pod's log."""
    phase = end.phase.value if end.phase is not None else "not over"
    words = [phase, "" if end.reason == phase else end.reason, end.message]
    return ": ".join(word for word in words if word)


def _stopped(reason: str) -> tuple[str, str]:
    if reason in SIGNALS:
        return STOPPED, "it was stopped on request; resumeFrom goes on with it"
    return STOPPED, f"it was stopped: {reason}"


# ------------------------------------------------------------ graces
# What each of the last steps may take once the pod is ending: its grace, shared out.


@dataclass(frozen=True, slots=True)
class ShutdownBudget:
    """Seconds, of a pod that gets 60: all but `push` come one after the other, and leave some for the exit.

    `session` is what a turn gets to end, `wind_up` a push to the content proxy that is under way, `push` the
    one to the repositories: then the session is over already.
    """

    session: float = 10.0
    wind_up: float = 5.0
    push: float = 15.0
    look: float = 5.0
    save: float = 18.0
    ask: float = 4.0
    last_word: float = 15.0

    @classmethod
    def within(cls, seconds: float) -> ShutdownBudget:
        """Those of a pod that gets so many seconds; more than 60 changes nothing."""
        share = min(1.0, seconds / 60.0)
        whole = cls()
        return cls(**{f.name: getattr(whole, f.name) * share for f in fields(cls)})
