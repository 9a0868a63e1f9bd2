"""Check only what can have changed: after a cycle that left all settled, a look at the same system costs a comparison.

Checking and reconciling decide each key on its own. So a key of which an observation says the same as the one before
needs neither, as long as its violation has its ticket and nothing depends on time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from midwatch.model import Invariant, Key, Observation, OpenTicket, Severity
from midwatch.monitor.rules import CheckResult, by_key, check, holds
from midwatch.redaction import Sanitizer


@dataclass(frozen=True, slots=True)
class Look:
    """What decides which keys of an observation are broken, in columns with a value for each signal.

    Two observations with equal looks differ at most in values that stay on their side of a limit, in messages and facts.
    """

    covered: frozenset[str]
    unsupported: frozenset[str]
    components: list[str]
    invariants: list[str]
    holds: list[bool | None]
    hold_for: list[float | None]
    severities: list[Severity | None]
    silenced_by: list[str]

    @classmethod
    def at(cls, observation: Observation, invariants: Mapping[str, Invariant]) -> Look:
        """Return the look of an observation in which nothing is unavailable: that would be counted."""
        signals = observation.signals
        return cls(
            observation.covered,
            frozenset(observation.unsupported),
            [one.component for one in signals],
            [one.invariant for one in signals],
            [
                (
                    one.holds
                    if one.holds is not None
                    else holds(one, invariants.get(one.invariant))
                )
                for one in signals
            ],
            [one.hold_for for one in signals],
            [one.severity for one in signals],
            [one.silenced_by for one in signals],
        )

    @property
    def broken(self) -> bool:
        """Whether any signal breaks its invariant."""
        return False in self.holds

    def covers_as(self, other: Look) -> bool:
        """Return whether the same invariants are known as in another look."""
        return (self.covered, self.unsupported) == (other.covered, other.unsupported)

    def changed(self, before: Look) -> set[tuple[str, str]]:
        """Return the invariants and components of which the two looks say something different, in whatever order."""
        names, known = self.components, before.components
        if self._same is not None and self._same == before._same:
            rest = set(names).symmetric_difference(known)
            return {(self.invariants[0], component) for component in rest}
        rows = set(self._rows()).symmetric_difference(before._rows())
        return {(invariant, component) for component, invariant, *_ in rows}

    @property
    def _same(self) -> tuple[object, ...] | None:
        """What all signals have in common if they differ in their components alone, as the pods of a cluster do."""
        columns = self._columns()
        first = tuple(column[0] for column in columns if column)
        same = all(
            column.count(one) == len(column)
            for column, one in zip(columns, first, strict=False)
        )
        return first if first and same else None

    def _rows(self) -> Iterable[tuple[Any, ...]]:
        return zip(self.components, *self._columns(), strict=True)

    def _columns(self) -> tuple[Sequence[Any], ...]:
        """Return all columns but the components."""
        return (
            self.invariants,
            self.holds,
            self.hold_for,
            self.severities,
            self.silenced_by,
        )


@dataclass(frozen=True, slots=True)
class Settled:
    """An observation after which only another look, a change of the tickets or what is `waiting` can change anything.

    Nothing is silent or can become so with time, and every violation but those of the keys `waiting` has its ticket.
    `raw` is the look as the subject reported it, `clean` the same with component names that are safe in a key.
    """

    raw: Look
    clean: Look
    waiting: frozenset[Key] = frozenset()

    @classmethod
    def at(cls, raw: Look, sanitizer: Sanitizer) -> Settled:
        """Return what is to be remembered of an observation; what waits is not known yet."""
        names = sanitizer.components(raw.components)
        clean = replace(raw, components=names)
        # Safe names are the same objects from look to look, so that comparing them is fast and the others can go.
        return cls(clean if names == raw.components else raw, clean)


@dataclass(frozen=True, slots=True)
class Step:
    """What follows from one poll for the keys that it can change: for all of them unless `of` names them."""

    checked: CheckResult
    tickets: Mapping[Key, OpenTicket]
    looks: Settled | None = None
    of: Collection[Key] | None = None


def check_changed(
    subject: str,
    invariants: Mapping[str, Invariant],
    observation: Observation,
    raw: Look,
    settled: Settled,
    sanitizer: Sanitizer,
    pending: Mapping[Key, float],
    now: float,
    tickets: Mapping[Key, OpenTicket],
) -> Step:
    """Check what an observation can change after `settled`, which covered the same invariants.

    Args:
        subject: The subject's name.
        invariants: The subject's enabled invariants by id.
        observation: What was observed, as the subject reported it.
        raw: Its look.
        settled: What was observed before.
        sanitizer: Makes component names safe.
        pending: When each violation began, in monotonic seconds.
        now: Monotonic seconds in which Midwatch ran.
        tickets: The unresolved tickets.
    """
    changed = {(key.invariant, key.component) for key in settled.waiting}
    if raw == settled.raw:
        looks = settled
    else:
        looks = Settled.at(raw, sanitizer)
        changed |= looks.clean.changed(settled.clean)
    if not changed:
        return Step(CheckResult(), {}, looks, ())
    keys = {Key(subject, *one) for one in changed}
    names = {component for _, component in changed}
    signals = tuple(
        sanitizer.signal(one, name)
        for one, name in zip(observation.signals, looks.clean.components, strict=True)
        if name in names and (one.invariant, name) in changed
    )
    checked = check(
        subject,
        invariants,
        replace(observation, signals=signals),
        {key: pending[key] for key in keys if key in pending},
        now,
        tickets,
    )
    found = sorted((tickets[key] for key in keys if key in tickets), key=_id)
    return Step(checked, by_key(found), looks, keys)


def _id(ticket: OpenTicket) -> int:
    return ticket.id
