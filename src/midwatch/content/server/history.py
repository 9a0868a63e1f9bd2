"""How folders came from one version to the next, so that who knows a recent one is told the difference only.

In memory, bounded, and of this process: where it does not know, the whole manifest is sent.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import NamedTuple

_ALL = 16 << 20
_OF_ONE = 1 << 20
"""Bytes, of all folders and of one: that holds its last some 5,000 changed paths."""
_EACH = 120
"""Bytes that a path or a step takes beyond its characters, about."""


class _Step(NamedTuple):
    before: str
    after: str
    paths: frozenset[str]
    cost: int


@dataclass(slots=True)
class _Steps:
    """Of one folder: each begins where the one before it ended."""

    held: deque[_Step] = field(default_factory=deque)
    cost: int = 0


class History:
    """Safe between threads."""

    def __init__(self, limit: int = _ALL, of_one: int = _OF_ONE) -> None:
        self._limit = limit
        self._of_one = of_one
        self._folders: OrderedDict[str, _Steps] = OrderedDict()
        self._cost = 0
        self._lock = threading.Lock()

    def add(self, folder: str, before: str, after: str, paths: frozenset[str]) -> None:
        """A commit that made `after` of `before` by changing these paths."""
        cost = _EACH + sum(map(len, paths)) + _EACH * len(paths)
        with self._lock:
            steps = self._folders.setdefault(folder, _Steps())
            if steps.held and steps.held[-1].after != before:
                self._shorten(steps, 0)  # another process was in between
            steps.held.append(_Step(before, after, paths, cost))
            steps.cost += cost
            self._cost += cost
            self._shorten(steps, self._of_one)
            self._folders.move_to_end(folder)
            while self._cost > self._limit:
                self._drop(next(iter(self._folders)))

    def since(self, folder: str, known: str, present: str) -> frozenset[str] | None:
        """The paths that changed on the way from `known` to `present`; None where the way is not known."""
        with self._lock:
            found = self._folders.get(folder)
            steps = list(found.held) if found else []
        if not steps or steps[-1].after != present:
            return None
        paths: set[str] = set()
        for step in reversed(steps):
            paths |= step.paths
            if step.before == known:
                return frozenset(paths)
        return None

    def drop(self, folder: str) -> None:
        with self._lock:
            self._drop(folder)

    def _drop(self, folder: str) -> None:
        if steps := self._folders.pop(folder, None):
            self._cost -= steps.cost

    def _shorten(self, steps: _Steps, limit: int) -> None:
        while steps.cost > limit:
            cost = steps.held.popleft().cost
            steps.cost -= cost
            self._cost -= cost
