"""Who waits for whom in a database server: queues behind the sessions that do not wait themselves. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from midwatch.subjects.rows import Row, number

PREPARED = 0
"""The pid of a prepared transaction among the blockers: it has no process."""


@dataclass(frozen=True, slots=True)
class LockQueue:
    """A root blocker and the sessions that wait for it, directly or through others."""

    root: int
    waiting: tuple[Row, ...]

    @property
    def longest(self) -> float:
        return max(number(row["waited"]) for row in self.waiting)

    def rank(self) -> tuple[float, int]:
        """Return the sort key: the longest wait first, then the most sessions."""
        return -self.longest, -len(self.waiting)

    def only(self, counts: Callable[[Row], bool]) -> LockQueue | None:
        """Return the queue with some of its sessions; None without any."""
        waiting = tuple(filter(counts, self.waiting))
        return LockQueue(self.root, waiting) if waiting else None


@dataclass(frozen=True, slots=True)
class Blocking:
    """The lock waits of one moment: rows with `pid`, `datname`, `blockers` and `waited` (seconds)."""

    waits: tuple[Row, ...] = ()
    behind: Mapping[int, tuple[Row, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Blocking:
        waits = tuple(row for row in rows if row["blockers"])
        behind: dict[int, list[Row]] = defaultdict(list)
        for row in waits:
            for blocker in sorted(set(row["blockers"])):
                behind[blocker].append(row)
        return cls(waits, {pid: tuple(rows) for pid, rows in behind.items()})

    @property
    def pids(self) -> list[int]:
        """All waiting and blocking pids, without prepared transactions."""
        waiting = {int(row["pid"]) for row in self.waits}
        return sorted((waiting | set(self.behind)) - {PREPARED})

    def roots(self) -> list[int]:
        """Return blockers that do not wait themselves; of a cycle (a deadlock that will be broken), its lowest pid."""
        waiting = {int(row["pid"]) for row in self.waits}
        roots = sorted(set(self.behind) - waiting)
        seen = set(roots).union(*(self._pids_behind(root) for root in roots))
        for pid in sorted(waiting):
            if pid not in seen:
                roots.append(pid)
                seen |= {pid} | self._pids_behind(pid)
        return roots

    def queues(self) -> list[LockQueue]:
        """Return the queues, the longest wait first."""
        found = [
            LockQueue(root, tuple(row for _, row in self.walk(root)))
            for root in self.roots()
        ]
        return sorted(found, key=LockQueue.rank)

    def walk(self, root: int) -> Iterator[tuple[int, Row]]:
        """Yield each session behind the root once, with its depth, in the order of a printed tree."""
        seen = {root}
        stack = [(1, row) for row in reversed(self.behind.get(root, ()))]
        while stack:
            depth, row = stack.pop()
            pid = int(row["pid"])
            if pid in seen:
                continue
            seen.add(pid)
            yield depth, row
            stack += [(depth + 1, one) for one in reversed(self.behind.get(pid, ()))]

    def _pids_behind(self, root: int) -> set[int]:
        return {int(row["pid"]) for _, row in self.walk(root)}
