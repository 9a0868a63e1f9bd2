"""Telling that a session is not run: as things are, or ever. Pure."""

from __future__ import annotations

from midwatch.kube.actions import Action, Event, WriteStatus
from midwatch.kube.seen import Seen
from midwatch.kube.statuses import Condition, phase_changes, phase_conditions
from midwatch.session.events import Phase


def refusal(seen: Seen, reason: str, message: str) -> tuple[Action, ...]:
    """Tell that the session cannot be started as things are; nothing, where that is told already."""
    condition = Condition("Accepted", "False", reason, message)
    if seen.phase.terminal or seen.told("Accepted", "False", reason, message):
        return ()
    changes = {} if seen.attempt else phase_changes(Phase.PENDING, reason, message)
    return (
        WriteStatus(seen.attempt, changes, (condition,)),
        Event("Warning", "Refused", message, seen.attempt),
    )


def impossible(seen: Seen, reason: str, message: str) -> tuple[Action, ...]:
    """Tell that the session can never be started: what is wrong with its spec cannot be changed any more."""
    if seen.phase.terminal:
        return ()
    changes = phase_changes(Phase.FAILED, reason, message)
    conditions = phase_conditions(Phase.FAILED, reason, message)
    refused = Condition("Accepted", "False", reason, message)
    return (WriteStatus(seen.attempt, changes, (refused, *conditions)),)
