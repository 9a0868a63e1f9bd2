"""The status of a session, computed from its events; the command line and the custom resource share it.

`fold(fold(empty, first), rest)` equals `fold(empty, first + rest)`, so a reader may stop and
continue at any sequence number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from midwatch.errors import MidwatchError
from midwatch.model import Usage
from midwatch.session.events import (
    Event,
    Failure,
    Message,
    ModelUsage,
    PermissionAnswer,
    PermissionRequest,
    Phase,
    PhaseChanged,
    Prompt,
    Retry,
    Started,
    TurnResult,
    TurnStarted,
    failure,
)


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """The status of a session after the event `last_seq`.

    Attributes:
        run: How often it was started.
        turns: Calls of the API; like `spend`, `retries` and `active_seconds` a sum over the whole session.
        active_seconds: Seconds spent in turns.
        result: The text of the last turn that ended.
        error: What ended the last run.
        pending_permissions: The permission requests that wait for an answer.
        unfinished: The ids of the prompts that are not answered yet, in order; a resume continues with them.
    """

    phase: Phase = Phase.PENDING
    reason: str = ""
    run: int = 0
    last_seq: int = 0
    conversation: str = ""
    model: str = ""
    sandbox: bool = False
    started_at: datetime | None = None
    ended_at: datetime | None = None
    last_activity_at: datetime | None = None
    turns: int = 0
    prompts: int = 0
    retries: int = 0
    active_seconds: float = 0.0
    spend: Mapping[str, ModelUsage] = field(default_factory=dict)
    result: str = ""
    outcome: str = ""
    last_message: str = ""
    error: Failure | None = None
    pending_permissions: tuple[PermissionRequest, ...] = ()
    unfinished: tuple[str, ...] = ()

    @property
    def cost_usd(self) -> float:
        """The cost of all models in US dollars."""
        return sum(spend.cost_usd for spend in self.spend.values())

    @property
    def usage(self) -> Usage:
        """The tokens of all models."""
        return sum((spend.usage for spend in self.spend.values()), Usage())


def fold(status: SessionStatus, events: Iterable[Event]) -> SessionStatus:
    """Return the status after these events."""
    for event in events:
        status = _step(status, event)
    return status


def failed(status: SessionStatus, error: MidwatchError, at: datetime) -> SessionStatus:
    """Return `status` after one more run, which failed and could not be logged."""
    kind = type(error).__name__
    end = PhaseChanged(phase=Phase.FAILED, run=status.run + 1, reason=kind)
    events: tuple[Event, ...] = (failure(error), end)
    numbered = enumerate(events, start=status.last_seq + 1)
    return fold(status, (replace(event, seq=seq, at=at) for seq, event in numbered))


def _step(status: SessionStatus, event: Event) -> SessionStatus:
    status = replace(
        status,
        last_seq=event.seq,
        last_activity_at=event.at,
        started_at=status.started_at or event.at,
    )
    match event:
        case PhaseChanged():
            return _phase(status, event)
        case Started():
            return replace(
                status,
                conversation=event.conversation,
                model=event.model,
                sandbox=event.sandbox,
            )
        case Prompt():
            waiting = (*status.unfinished, event.id)
            return replace(status, prompts=status.prompts + 1, unfinished=waiting)
        case TurnStarted():
            return replace(status, outcome="")
        case Message() if event.parent_id is None:
            return replace(status, last_message=event.text)
        case Retry():
            return replace(status, retries=status.retries + 1)
        case Failure():
            return replace(status, error=event)
        case TurnResult():
            return _result(status, event)
        case PermissionRequest():
            pending = (*status.pending_permissions, event)
            return replace(status, pending_permissions=pending)
        case PermissionAnswer():
            pending = tuple(
                asked
                for asked in status.pending_permissions
                if asked.request_id != event.request_id
            )
            return replace(status, pending_permissions=pending)
        case _:
            return status


def _phase(status: SessionStatus, event: PhaseChanged) -> SessionStatus:
    changed = replace(
        status, phase=event.phase, run=event.run, reason=event.reason, ended_at=None
    )
    if event.phase.terminal:
        return replace(changed, ended_at=event.at, pending_permissions=())
    if event.phase is Phase.CREATING:  # a new run: the error belongs to the last one
        return replace(changed, error=None)
    return changed


def _result(status: SessionStatus, event: TurnResult) -> SessionStatus:
    spend = dict(status.spend)
    for model, cost in event.models.items():
        spend[model] = spend.get(model, ModelUsage()) + cost
    return replace(
        status,
        turns=status.turns + event.turns,
        spend=spend,
        # The text of a failed turn is the error, not an answer.
        result=status.result if event.outcome == "failed" else event.text,
        outcome=event.outcome,
        active_seconds=status.active_seconds + event.duration,
        unfinished=tuple(
            id
            for id in status.unfinished
            if id != event.prompt_id or event.outcome == "failed"
        ),
        pending_permissions=(),
    )
