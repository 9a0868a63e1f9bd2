"""The rules of the monitor, all of them pure.

- `check` turns an observation into violations: limits, durations, and what is unknown.
- `reconcile` turns violations and open tickets into changes. A key that is broken has a ticket. One that is
  known to hold has none, unless a person holds its ticket. One that is unknown keeps what it has.
- `changes_since` compares an observation with one in which every invariant held.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from datetime import datetime

from midwatch.model import (
    INVESTIGATION,
    Fact,
    Facts,
    Invariant,
    Key,
    Observation,
    OpenTicket,
    Severity,
    Signal,
    Unit,
    Violation,
)
from midwatch.store.protocol import Opening
from midwatch.units import format_value

UNOBSERVABLE = Invariant(
    id="subject_unobservable",
    title="The subject cannot be observed",
    description=(
        "Several observations in a row failed, wholly or for one invariant: then that is the component,"
        " and its severity that of the ticket."
        " Until one succeeds, no ticket of what cannot be observed opens or resolves."
    ),
    severity=Severity.CRITICAL,
)
WHOLE_SUBJECT = "observation"
_MOST_UNSEEN = 10_000
"""Violations of a subject that cannot be observed now and whose start is kept, the ones seen last first."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The state of every key in one observation.

    A key in `broken` is violated now; it is also in `firing` once it has been for its invariant's `hold_for`.
    A key that is not in `broken` holds if `known` returns true for it; else it is unknown.
    `pending` has the monotonic seconds at which each violation began; pass it to the next check.
    """

    firing: tuple[Opening, ...] = ()
    broken: Set[Key] = frozenset()
    known: Callable[[Key], bool] = field(default=lambda key: False)
    pending: dict[Key, float] = field(default_factory=dict)


def check(
    subject: str,
    invariants: Mapping[str, Invariant],
    observation: Observation,
    pending: Mapping[Key, float],
    now: float,
    reported: Container[Key] = (),
) -> CheckResult:
    """Compare every signal with its invariant.

    Args:
        subject: The subject's name.
        invariants: The subject's enabled invariants by id.
        observation: What was observed.
        pending: `CheckResult.pending` of the check before.
        now: Monotonic seconds in which Midwatch ran.
        reported: Keys that are left out of `CheckResult.firing` unless their sender silences them, such as those with a ticket.
    """
    undecided: set[Key] = set()
    holding: set[Key] = set()
    breaks: list[Signal] = []
    others: list[tuple[Signal, bool | None]] = []
    for signal in observation.signals:
        well = signal.holds
        if well is None:
            well = holds(signal, invariants.get(signal.invariant))
        if well is False:
            breaks.append(signal)
        else:
            others.append((signal, well))
    # Keys are kept and the rest is not: made one after the other, what is not kept leaves whole pages.
    worst: dict[Key, Signal] = {}
    for signal in _worst_first(breaks, invariants):
        worst.setdefault(Key(subject, signal.invariant, signal.component), signal)
    since = {key: pending.get(key, now) for key in worst}
    firing: list[Opening] = []
    for key, signal in worst.items():
        if key in reported and not signal.silenced_by:
            continue
        invariant = invariants.get(signal.invariant)
        seen_for = now - since[key]
        if seen_for >= _hold_for(signal, invariant):
            firing.append(Opening(_violation(key, signal, invariant), seen_for))
    for signal, well in others:
        key = Key(subject, signal.invariant, signal.component)
        if key not in since:
            (holding if well else undecided).add(key)

    def known(key: Key) -> bool:
        # A key observed to hold is known, even where the rest of its invariant was unavailable.
        if key in holding or key in undecided:
            return key not in undecided
        return observation.covers(key.invariant)

    # A violation that cannot be observed now keeps its start: unknown is never clear.
    unseen = [key for key in pending if key not in since and not known(key)]
    del unseen[_MOST_UNSEEN:]  # of components that are replaced again and again
    broken = frozenset(since) if unseen else since.keys()
    since |= {key: pending[key] for key in unseen}
    return CheckResult(tuple(firing), broken, known, since)


def _worst_first(
    broken: Iterable[Signal], invariants: Mapping[str, Invariant]
) -> list[Signal]:
    """Return violations, the most severe and furthest from its limit at the top.

    Of two signals for one key the first counts.
    """

    def rank(signal: Signal) -> tuple[int, float]:
        invariant = invariants.get(signal.invariant)
        severity = signal.severity
        if severity is None and invariant:
            severity = invariant.severity
        distance = 0.0
        if invariant and invariant.limit is not None and signal.value is not None:
            distance = abs(signal.value - invariant.limit)
        return severity or 0, -distance

    return sorted(broken, key=rank)


def holds(signal: Signal, invariant: Invariant | None) -> bool | None:
    """Return whether a signal says that its invariant holds; None where that is unknown."""
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
        signal.silenced_by,
    )


def unobservable(
    subject: str,
    component: str,
    failures: int,
    error: str,
    severity: Severity = UNOBSERVABLE.severity,
) -> Opening:
    """Return the violation of a subject that cannot be observed.

    Args:
        subject: The subject's name.
        component: `WHOLE_SUBJECT`, or the id of the invariant that is unavailable.
        failures: Failed observations in a row.
        error: Why the last one failed.
        severity: That of the invariant that is unavailable.
    """
    what = (
        "cannot be observed" if component == WHOLE_SUBJECT else f"{component}: unknown"
    )
    message = f"{subject} {what}, {failures} times in a row: {error}"
    key = Key(subject, UNOBSERVABLE.id, component)
    facts: Facts = {"failures": failures, "error": error}
    return Opening(Violation(key, severity, message, float(failures), None, facts))


# ------------------------------------------------------------------ tickets


@dataclass(frozen=True, slots=True)
class Reconciled:
    """The changes to save; the openings still lack the history that the store has of their keys."""

    openings: tuple[Opening, ...] = ()
    missing: tuple[OpenTicket, ...] = ()
    returned: tuple[OpenTicket, ...] = ()
    resolved: tuple[OpenTicket, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.openings or self.missing or self.returned or self.resolved)


def reconcile(tickets: Mapping[Key, OpenTicket], checked: CheckResult) -> Reconciled:
    """Compare the unresolved tickets of a subject with one check of it."""
    missing: list[OpenTicket] = []
    returned: list[OpenTicket] = []
    resolved: list[OpenTicket] = []
    for key, ticket in tickets.items():
        if key.invariant == INVESTIGATION:
            continue
        if key in checked.broken:
            if not ticket.seen:
                returned.append(ticket)
        elif checked.known(key) and not ticket.held:
            resolved.append(ticket)
        elif ticket.seen:
            missing.append(ticket)
    openings = tuple(one for one in checked.firing if one.violation.key not in tickets)
    return Reconciled(openings, tuple(missing), tuple(returned), tuple(resolved))


def by_key(tickets: Iterable[OpenTicket]) -> dict[Key, OpenTicket]:
    return {ticket.key: ticket for ticket in tickets}


# ------------------------------------------------------------------ changes

MOST_LINES = 40
MOST_BASELINES = 5
BASELINE_INTERVAL = 60.0
"""Least seconds between two baselines: the comparison reaches back some minutes."""
MOST_SIGNALS = 2000
_NOTICEABLE = 0.05
"""A value that moved by a smaller share than this has not changed."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """An observation in which nothing was unavailable and every invariant held."""

    at: datetime
    observation: Observation


class Baselines:
    """Baselines of the last minutes. The oldest is the one to compare with: in the latest,
    the fault may already have begun."""

    def __init__(self) -> None:
        self._kept: deque[Baseline] = deque(maxlen=MOST_BASELINES)

    def add(self, at: datetime, observation: Observation) -> None:
        """Keep an observation, unless the latest one kept is more recent than `BASELINE_INTERVAL`.

        One with more than `MOST_SIGNALS` signals keeps its background only.
        """
        if (
            self._kept
            and abs((at - self._kept[-1].at).total_seconds()) < BASELINE_INTERVAL
        ):
            return
        if len(observation.signals) > MOST_SIGNALS:
            observation = replace(observation, signals=())
        self._kept.append(Baseline(at, observation))

    @property
    def oldest(self) -> Baseline | None:
        return self._kept[0] if self._kept else None


def changes_since(
    baseline: Baseline, now: Observation, invariants: Mapping[str, Invariant]
) -> str:
    """Return one line for each difference, the background first; at most `MOST_LINES`."""
    lines = [
        *_background(baseline.observation.configuration, now.configuration),
        *_background(baseline.observation.background, now.background),
        *_values(baseline.observation, now, invariants),
    ]
    head = (
        f"compared with {baseline.at:%Y-%m-%d %H:%M:%S} UTC, when every invariant held"
    )
    if not lines:
        return f"{head}: nothing but the violations"
    left_out = len(lines) - MOST_LINES
    more = [f"and {left_out} more"] if left_out > 0 else []
    return "\n".join([f"{head}:", *lines[:MOST_LINES], *more])


def _background(before: Mapping[str, Fact], now: Mapping[str, Fact]) -> Iterable[str]:
    if not before or not now:  # one of the two could not be observed
        return
    for name in sorted(before.keys() | now.keys()):
        was, is_ = before.get(name), now.get(name)
        if was != is_:
            yield f"{name}: {_shown(was)} → {_shown(is_)}"


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


def _shown(fact: Fact) -> str:
    return "none" if fact is None else str(fact)
