"""Observation to violations: pure. Limits, durations, and what is unknown."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from midwatch.model import (
    Fact,
    Facts,
    Invariant,
    Key,
    Observation,
    Severity,
    Signal,
    Ticket,
    Unit,
    Violation,
)
from midwatch.units import format_value

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
class Firing:
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

    ripe: tuple[Firing, ...] = ()
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
    ripe: list[Firing] = []
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
                ripe.append(Firing(_violation(key, signal, invariant), lasted))

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


def unobservable(subject: str, component: str, failures: int, error: str) -> Firing:
    """The violation that a subject's own silence is."""
    what = (
        "cannot be observed" if component == WHOLE_SUBJECT else f"{component}: unknown"
    )
    message = f"{subject} {what}, {failures} times in a row: {error}"
    key = Key(subject, UNOBSERVABLE.id, component)
    facts: Facts = {"failures": failures, "error": error}
    return Firing(
        Violation(key, UNOBSERVABLE.severity, message, float(failures), None, facts),
        0.0,
    )


# ------------------------------------------------------------ tickets
# Violations and open tickets to changes: pure.
#
# A key that is broken has a ticket; one that is known to hold has none, unless a person holds
# it; one that is unknown keeps what it has.


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What is to change; the openings still lack what the store knows of their past."""

    openings: tuple[Firing, ...] = ()
    missing: tuple[Ticket, ...] = ()
    returned: tuple[Ticket, ...] = ()
    resolved: tuple[Ticket, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.openings or self.missing or self.returned or self.resolved)


def reconcile(tickets: Mapping[Key, Ticket], checked: Checked) -> Reconciled:
    """Compare the unresolved tickets of a subject with one look at it."""
    missing: list[Ticket] = []
    returned: list[Ticket] = []
    resolved: list[Ticket] = []
    for key, ticket in tickets.items():
        if key in checked.broken:
            if not ticket.seen:
                returned.append(ticket)
        elif checked.known(key) and not ticket.held:
            resolved.append(ticket)
        elif ticket.seen:
            missing.append(ticket)
    openings = tuple(ripe for ripe in checked.ripe if ripe.violation.key not in tickets)
    return Reconciled(openings, tuple(missing), tuple(returned), tuple(resolved))


def by_key(tickets: Iterable[Ticket]) -> dict[Key, Ticket]:
    return {ticket.key: ticket for ticket in tickets}


# ------------------------------------------------------------ changes
# What changed on a subject since it was last well: pure.

MOST_LINES = 40
KEPT = 5
APART = 60.0
"""Seconds between two calm looks that are kept: the comparison reaches back some minutes."""
MOST_SIGNALS = 2000
_NOTICEABLE = 0.05
"""A value that moved by a smaller share than this has not changed."""


@dataclass(frozen=True, slots=True)
class Calm:
    """An observation in which everything was seen and everything held."""

    at: datetime
    observation: Observation


class Baselines:
    """Some calm looks of the last minutes. The oldest is the one to compare with: in the
    latest, what was about to break was already on its way."""

    def __init__(self) -> None:
        self._kept: deque[Calm] = deque(maxlen=KEPT)

    def add(self, at: datetime, observation: Observation) -> None:
        """Keep it, if the latest one kept is a while ago. Huge ones keep their background only."""
        if self._kept and abs((at - self._kept[-1].at).total_seconds()) < APART:
            return
        if len(observation.signals) > MOST_SIGNALS:
            observation = replace(observation, signals=())
        self._kept.append(Calm(at, observation))

    @property
    def oldest(self) -> Calm | None:
        return self._kept[0] if self._kept else None


def changes_since(
    calm: Calm, now: Observation, invariants: Mapping[str, Invariant]
) -> str:
    """One line for each difference, settings and the like first; at most `MOST_LINES`."""
    lines = [
        *_background(calm.observation.background, now.background),
        *_values(calm.observation, now, invariants),
    ]
    head = (
        f"compared with a look in which all was well, {calm.at:%Y-%m-%d %H:%M:%S} UTC"
    )
    if not lines:
        return f"{head}: nothing but the violations"
    left_out = len(lines) - MOST_LINES
    more = [f"and {left_out} more"] if left_out > 0 else []
    return "\n".join([f"{head}:", *lines[:MOST_LINES], *more])


def _background(before: Mapping[str, Fact], now: Mapping[str, Fact]) -> Iterable[str]:
    if not before or not now:  # one of the looks did not get to see it
        return
    for name in sorted(before.keys() | now.keys()):
        was, is_ = before.get(name), now.get(name)
        if was != is_:
            yield f"{name}: {_said(was)} → {_said(is_)}"


def _values(
    before: Observation, now: Observation, invariants: Mapping[str, Invariant]
) -> Iterable[str]:
    was = _by_component(before)
    if len(now.signals) > MOST_SIGNALS:
        return
    for key, value in sorted(_by_component(now).items()):
        invariant, component = key
        unit = invariants[invariant].unit if invariant in invariants else Unit.NONE
        old = was.get(key)
        earlier, today = format_value(old or 0.0, unit), format_value(value, unit)
        if old is None and value:
            yield f"{invariant} on {component}: not seen → {today}"
        elif (
            old is not None
            and earlier != today
            and abs(value - old) > _NOTICEABLE * max(abs(value), abs(old))
        ):
            yield f"{invariant} on {component}: {earlier} → {today}"


def _by_component(observation: Observation) -> dict[tuple[str, str], float]:
    return {
        (signal.invariant, signal.component): signal.value
        for signal in observation.signals
        if signal.value is not None and signal.value == signal.value
    }


def _said(fact: Fact) -> str:
    return "none" if fact is None else str(fact)
