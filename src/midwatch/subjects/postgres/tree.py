"""Who blocks whom (pure)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .wording import Row, number

PREPARED = (
    0  # pg_blocking_pids gives 0 for a prepared transaction, which has no process
)


@dataclass(frozen=True, slots=True)
class Queue:
    """A root blocker and the sessions behind it, directly or through others."""

    root: int
    waiting: tuple[Row, ...]

    @property
    def longest(self) -> float:
        return max(number(row["waited"]) for row in self.waiting)


@dataclass(frozen=True, slots=True)
class Blocking:
    """The waits of one moment: rows with `pid`, `datname`, `blockers` and `waited` seconds."""

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
        """Everybody in it, prepared transactions aside."""
        waiting = {int(row["pid"]) for row in self.waits}
        return sorted((waiting | set(self.behind)) - {PREPARED})

    def roots(self) -> list[int]:
        """Blockers that wait for nobody; of a circle (a deadlock about to be broken), its lowest pid."""
        waiting = {int(row["pid"]) for row in self.waits}
        roots = sorted(set(self.behind) - waiting)
        seen = set(roots).union(*(self._pids_behind(root) for root in roots))
        for pid in sorted(waiting):
            if pid not in seen:
                roots.append(pid)
                seen |= {pid} | self._pids_behind(pid)
        return roots

    def queues(self, database: object) -> list[Queue]:
        """The queues that hold sessions of a database, the worst (longest wait) first."""
        found = []
        for root in self.roots():
            waiting = [row for _, row in self.walk(root) if row["datname"] == database]
            if waiting:
                found.append(Queue(root, tuple(waiting)))
        return sorted(found, key=lambda queue: (-queue.longest, -len(queue.waiting)))

    def walk(self, root: int) -> Iterator[tuple[int, Row]]:
        """Everybody behind the root once, with the depth, in the order of a printed tree."""
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
