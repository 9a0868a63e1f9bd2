"""What is left to say to a session, after what its outbox tells of earlier pods. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from midwatch.kube.pod.ending import SIGNALS
from midwatch.session.agentic_session import GO_ON
from midwatch.session.events import Event, PhaseChanged, Prompt, TurnResult, TurnStarted
from midwatch.session.status import SessionStatus, fold


def left_to_say(events: Iterable[Event], prompt: str | None) -> str | None:
    """The prompt, unless the session has it; None goes on with what is unanswered.

    A pod that was taken away gently interrupted its turn. That turn counts as answered though nobody
    wanted its end: the session is told to go on.
    """
    told = list(events)
    if not any(isinstance(e, Prompt) and e.source == "call" for e in told):
        return prompt
    if fold(SessionStatus(), told).unfinished:
        return None
    return GO_ON if _cut_by_a_signal(told) else None


def _cut_by_a_signal(events: Iterable[Event]) -> bool:
    """Whether the last turn was interrupted by the end of its pod."""
    outcome, cut = "", False
    for event in events:
        match event:
            case TurnStarted():
                outcome, cut = "", False
            case TurnResult():
                outcome = event.outcome
            case PhaseChanged() if event.phase.terminal:
                cut = cut or (outcome == "interrupted" and event.reason in SIGNALS)
    return cut
