"""What an observation has seen so far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from midwatch.errors import ObservationFailed
from midwatch.model import Fact, Invariant, Json, Observation, Signal
from midwatch.subjects.postgres import sql as queries
from midwatch.subjects.postgres.connection import Connection, QueryFailed, Row, number
from midwatch.subjects.postgres.settings import PostgresSettings

# ------------------------------------------------------------ tree
# Who blocks whom (pure).

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


# ------------------------------------------------------------ round
# One observation in progress: what its single looks share.


class NothingToSee(QueryFailed):
    """There is nothing to look at, or nothing to compare with yet: unknown, and no failure."""


@dataclass(slots=True)
class ObservationContext:
    """`previous` is the state of the last look, `state` what this one leaves for the next.

    `at` is epoch seconds.
    """

    connection: Connection
    settings: PostgresSettings
    at: float
    previous: Json
    state: Json
    _activity: list[Row] | QueryFailed | None = None

    async def activity(self) -> list[Row]:
        """Sessions that do something or hold a transaction; asked for once."""
        if self._activity is None:
            try:
                self._activity = await self.connection.rows(queries.ACTIVITY)
            except QueryFailed as error:
                self._activity = error
        if isinstance(self._activity, QueryFailed):
            raise self._activity
        return self._activity


@dataclass(frozen=True, slots=True)
class Scene:
    """The waits of one moment with the sessions that take part."""

    blocking: Blocking
    sessions: Mapping[int, Row] = field(default_factory=dict)


async def scene(connection: Connection) -> Scene:
    """Raises QueryFailed."""
    blocking = Blocking.of(await connection.rows(queries.WAITS))
    if not blocking.waits:
        return Scene(blocking)
    rows = await connection.rows(queries.SESSIONS, {"pids": blocking.pids})
    return Scene(blocking, {int(row["pid"]): row for row in rows})


class Findings:
    """What an observation has seen so far, of the enabled invariants only."""

    def __init__(self, invariants: Sequence[Invariant], state: Json) -> None:
        self.enabled = {invariant.id for invariant in invariants}
        self.state = state
        self._signals: dict[str, Sequence[Signal]] = {}
        self._glimpses: list[Signal] = []
        self._unavailable: dict[str, str] = {}
        self.background: dict[str, Fact] = {}

    def saw(self, invariant: str, signals: Sequence[Signal]) -> None:
        if invariant in self.enabled:
            self._signals[invariant] = signals

    def failed(self, invariant: str, why: str) -> None:
        if invariant in self.enabled:
            self._unavailable[invariant] = why

    def glimpsed(self, invariant: str, signal: Signal) -> None:
        """Seen to be broken, while its other components stay unknown."""
        if invariant in self.enabled:
            self._glimpses.append(signal)

    async def look(
        self, invariant: str, see: Callable[[], Awaitable[Sequence[Signal]]]
    ) -> None:
        if invariant in self.enabled:
            try:
                self.saw(invariant, await see())
            except NothingToSee:
                pass
            except ObservationFailed as error:
                self.failed(invariant, error.one_line())

    def rest(self, why: str) -> None:
        """Of everything not yet seen: it is unknown, and why."""
        for invariant in self.enabled - set(self._signals) - set(self._unavailable):
            self._unavailable[invariant] = why

    def observation(self) -> Observation:
        """Raises ObservationFailed when nothing at all was seen."""
        signals = [one for found in self._signals.values() for one in found]
        signals += self._glimpses
        if not signals and not self._signals:
            why = next(iter(self._unavailable.values()), "the server does not answer")
            raise ObservationFailed(why)
        return Observation(
            tuple(signals),
            frozenset(self._signals),
            self._unavailable,
            self.state,
            self.background,
        )


# ------------------------------------------------------------ series
# Small series of [time, value] kept in an observation's state (pure). Times are epoch seconds.

Series = list[list[float]]
POINTS = 8


def read(raw: Any) -> Series:
    """A series out of stored state; whatever is not one is an empty series."""
    if not isinstance(raw, list):
        return []
    return [
        [float(point[0]), float(point[1])]
        for point in raw
        if isinstance(point, list)
        and len(point) == 2
        and all(isinstance(part, (int, float)) for part in point)
    ]


def since(series: Series, at: float) -> Series:
    """The series up to `at`. If all of it is later (the clock was set back), it starts anew there."""
    points = [point for point in series if point[0] <= at]
    return points or [[at, point[1]] for point in series[-1:]]


def stepped(series: Series, at: float, value: float, window: float) -> Series:
    """A counter's steps within the window, after its last value before it.

    Steps closer than a sixtieth of the window are one. The count within the window is the
    last value less the first.
    """
    points = since(series, at)
    if not points or points[-1][1] != value:
        if len(points) > 1 and at - points[-1][0] < window / 60:
            points[-1] = [points[-1][0], value]
        else:
            points.append([at, value])
    while len(points) > 1 and points[1][0] < at - window:
        points.pop(0)
    return points


def spacing(window: float) -> float:
    """Seconds between two points, so that `POINTS` of them reach beyond the window."""
    return window / (POINTS - 3)


def extended(series: Series, at: float, value: float, window: float) -> Series:
    """With one point more, thinned so that `POINTS` of them span the window.

    The point before the window stays: the value at the window's start is known by it.
    """
    points = since(series, at)
    if len(points) >= 2 and points[-1][0] - points[-2][0] < spacing(window):
        points.pop()
    points.append([at, value])
    while len(points) > 2 and points[1][0] <= at - window:
        points.pop(0)
    return points[-POINTS:]


def growth(series: Series, window: float) -> float | None:
    """What the value grew by within the window; None with fewer than two points.

    Over a longer time than the window (nobody looked meanwhile), it is the window's share.
    """
    if len(series) < 2:
        return None
    (start, before), (end, now) = series[0], series[-1]
    elapsed = end - start
    if elapsed <= 0:
        return None
    return (now - before) * min(1.0, window / elapsed)
