"""Observation to violations: pure. Limits, durations, and what is unknown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from midwatch.model import (
    Facts,
    Invariant,
    Key,
    Observation,
    Severity,
    Signal,
    Violation,
)

UNOBSERVABLE = Invariant(
    id="subject_unobservable",
    title="The subject cannot be observed",
    description=(
        "Several looks in a row failed, wholly or for one invariant (then that is the component)."
        " Nothing is known of the subject meanwhile: no ticket of it opens or resolves."
    ),
    severity=Severity.CRITICAL,
)
WHOLE_SUBJECT = "observation"


@dataclass(frozen=True, slots=True)
class Ripe:
    """A violation that has lasted as long as its invariant asks; `seen_for` seconds so far."""

    violation: Violation
    seen_for: float


@dataclass(frozen=True, slots=True)
class Checked:
    """What one look says of every key.

    A key in `broken` is violated now, though it may not be ripe yet. A key that is not in
    `broken` holds if `known` says that its state was seen; otherwise it is unknown.
    `pending` is to be handed to the next check: monotonic seconds at which a break began.
    """

    ripe: tuple[Ripe, ...] = ()
    broken: frozenset[Key] = frozenset()
    known: Callable[[Key], bool] = field(default=lambda key: False)
    pending: Mapping[Key, float] = field(default_factory=dict)


def check(
    subject: str,
    invariants: Mapping[str, Invariant],
    observation: Observation,
    pending: Mapping[Key, float],
    now: float,
) -> Checked:
    """Hold every signal against its invariant. `now` is monotonic, in seconds."""
    ripe: list[Ripe] = []
    since: dict[Key, float] = {}
    undecided: set[Key] = set()
    holding: set[Key] = set()
    for signal in _worst_first(observation.signals):
        key = Key(subject, signal.invariant, signal.component)
        if key in since:
            continue
        invariant = invariants.get(signal.invariant)
        holds = _holds(signal, invariant)
        if holds is None:
            undecided.add(key)
        elif holds:
            holding.add(key)
        else:
            since[key] = pending.get(key, now)
            lasted = now - since[key]
            if lasted >= _hold_for(signal, invariant):
                ripe.append(Ripe(_violation(key, signal, invariant), lasted))

    def known(key: Key) -> bool:
        # What was seen to hold is known, even where the rest of its invariant was hidden.
        if key in holding or key in undecided:
            return key not in undecided
        return observation.covers(key.invariant)

    # A break that is out of sight goes on counting: unknown is never clear.
    carried = {
        key: began
        for key, began in pending.items()
        if key not in since and not known(key)
    }
    return Checked(tuple(ripe), frozenset(since), known, {**carried, **since})


def _worst_first(signals: Iterable[Signal]) -> list[Signal]:
    """Of two signals for one key the one that is known to break it counts."""
    return sorted(signals, key=lambda signal: signal.holds is not False)


def _holds(signal: Signal, invariant: Invariant | None) -> bool | None:
    if signal.holds is not None:
        return signal.holds
    limit = invariant.limit if invariant else None
    if signal.value is None or limit is None or math.isnan(signal.value):
        return None
    assert invariant is not None
    return signal.value <= limit if invariant.above else signal.value >= limit


def _hold_for(signal: Signal, invariant: Invariant | None) -> float:
    if signal.hold_for is not None:
        return signal.hold_for
    return invariant.hold_for if invariant else 0.0


def _violation(key: Key, signal: Signal, invariant: Invariant | None) -> Violation:
    severity = signal.severity
    if severity is None:
        severity = invariant.severity if invariant else Severity.WARNING
    return Violation(
        key,
        severity,
        signal.message,
        signal.value,
        invariant.limit if invariant else None,
        signal.facts,
    )


def unobservable(subject: str, component: str, failures: int, error: str) -> Ripe:
    """The violation that a subject's own silence is."""
    what = (
        "cannot be observed" if component == WHOLE_SUBJECT else f"{component}: unknown"
    )
    message = f"{subject} {what}, {failures} times in a row: {error}"
    key = Key(subject, UNOBSERVABLE.id, component)
    facts: Facts = {"failures": failures, "error": error}
    return Ripe(
        Violation(key, UNOBSERVABLE.severity, message, float(failures), None, facts),
        0.0,
    )
