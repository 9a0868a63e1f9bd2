"""Check only what can have changed: after a cycle that left all settled, a look at the same system costs a comparison.

Checking and reconciling decide each key on its own. So a key of which an observation says the same as the one before
needs neither, as long as its violation has its ticket and nothing depends on time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress, islice
from typing import Any, NamedTuple

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

    def changed(self, before: Look, parts: Iterable[Part]) -> Iterator[tuple[str, str]]:
        """Yield the invariants and components of which two looks may say something different.

        Args:
            before: The other look.
            parts: The components of both, as `aligned` returns them.
        """
        columns = list(zip(self._columns(), before._columns(), strict=True))
        now: set[tuple[Any, ...]] = set()
        then: set[tuple[Any, ...]] = set()
        for new, old, is_same in parts:
            if not is_same or any(mine[new] != its[old] for mine, its in columns):
                now.update(self._rows(new))
                then.update(before._rows(old))
        for component, invariant, *_ in now ^ then:
            yield invariant, component

    def _rows(self, part: slice) -> Iterable[tuple[Any, ...]]:
        columns = (column[part] for column in self._columns())
        return zip(self.components[part], *columns, strict=True)

    def _columns(self) -> tuple[Sequence[Any], ...]:
        """Return all columns but the components."""
        return (
            self.invariants,
            self.holds,
            self.hold_for,
            self.severities,
            self.silenced_by,
        )


class Part(NamedTuple):
    """A part of each of two lists, and whether both parts are equal."""

    after: slice
    before: slice
    is_same: bool


_RUN = 1024  # values that are compared in one step
_REACH = 1000  # values behind a difference in which the lists are equal again, or another difference is assumed
_MOST_PARTS = 1000


def aligned(after: list[str], before: list[str]) -> list[Part]:
    """Return two lists in parts, in order, which are equal by turns: quickly for long lists that differ in few places."""
    parts: list[Part] = []
    at, was = 0, 0
    while len(parts) < _MOST_PARTS:
        same = _same_run(after, at, before, was)
        parts.append(Part(slice(at, at + same), slice(was, was + same), True))
        at, was = at + same, was + same
        if at == len(after) or was == len(before):
            break
        removed = _place(before, after[at], was)
        added = _place(after, before[was], at)
        one = removed == added == _REACH  # replaced
        new = 1 if one else added if added < removed else 0
        old = 1 if one else removed if removed <= added else 0
        parts.append(Part(slice(at, at + new), slice(was, was + old), False))
        at, was = at + new, was + old
    parts.append(Part(slice(at, None), slice(was, None), False))
    return parts


def _same_run(after: list[str], at: int, before: list[str], was: int) -> int:
    """Return how many values from two places on are equal."""
    most, same, step = min(len(after) - at, len(before) - was), 0, _RUN
    while step:
        end = min(same + step, most)
        if after[at + same : at + end] == before[was + same : was + end]:
            if end == most:
                return most
            same = end
        else:
            step //= 2
    return same


def _place(values: list[str], value: str, start: int) -> int:
    """Return how far behind a place a value stands, and `_REACH` if it is not near."""
    try:
        return values.index(value, start, start + _REACH) - start
    except ValueError:
        return _REACH


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
        return cls._of(raw, sanitizer.components(raw.components))

    def then(self, raw: Look, parts: Iterable[Part], sanitizer: Sanitizer) -> Settled:
        """Return the same of the next observation, whose names are mostly known; `parts` are the raw names of both."""
        others = [raw.components[new] for new, _, is_same in parts if not is_same]
        new_names = list(chain.from_iterable(others))
        safe = iter(sanitizer.components(new_names, among=len(raw.components)))
        names: list[str] = []
        for new, old, is_same in parts:
            if is_same:
                names += self.clean.components[old]
            else:
                names += islice(safe, len(raw.components[new]))
        return self._of(raw, names)

    @classmethod
    def _of(cls, raw: Look, names: list[str]) -> Settled:
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
        parts = aligned(raw.components, settled.raw.components)
        looks = settled.then(raw, parts, sanitizer)
        changed.update(looks.clean.changed(settled.clean, parts))
    if not changed:
        return Step(CheckResult(), {}, looks, ())
    keys = {Key(subject, *one) for one in changed}
    names = {component for _, component in changed}
    components = looks.clean.components
    pairs = zip(observation.signals, components, strict=True)
    signals = tuple(
        sanitizer.signal(one, name)
        for one, name in compress(pairs, map(names.__contains__, components))
        if (one.invariant, name) in changed
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
