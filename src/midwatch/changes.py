"""What changed on a subject since it was last well: pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from midwatch.model import Fact, Invariant, Observation, Unit
from midwatch.units import format_value

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


class CalmLooks:
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
