"""How the runner of a pod ends: what the resource is told, and the exit code."""

from __future__ import annotations

from dataclasses import dataclass, replace

from midwatch.errors import MidwatchError
from midwatch.kube.environment import POD_ENDED
from midwatch.kube.pod.hints import HINTS
from midwatch.kube.statuses import failure_story, story_of
from midwatch.session.agentic_session import SessionStopped
from midwatch.session.events import Phase, failure
from midwatch.session.status import SessionStatus

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
    return End(status.phase, *story_of(status, HINTS))


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
