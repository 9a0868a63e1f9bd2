"""One observation in progress: its context, its findings, lock waits and series (pure but for queries)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from midwatch.errors import ObservationFailed, Unsupported
from midwatch.model import Fact, Invariant, Json, Observation, Signal
from midwatch.subjects.postgres import sql
from midwatch.subjects.postgres.connection import (
    Connection,
    QueryFailed,
    Row,
    number,
    text,
)
from midwatch.subjects.postgres.settings import PostgresSettings

# ------------------------------------------------------------------ lock waits

PREPARED = 0
"""The pid that pg_blocking_pids returns for a prepared transaction, which has no process."""


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


# ------------------------------------------------------------------ the observation


class NotObservable(QueryFailed):
    """There is nothing to observe, or nothing to compare with yet: unknown, but not a failure."""


class PartlyUnsupported(Unsupported):
    """An invariant can be seen in part only. `signals` are those of what is seen."""

    def __init__(self, message: str, *, hint: str, signals: Sequence[Signal]) -> None:
        super().__init__(message, hint=hint)
        self.signals = signals


@dataclass(slots=True)
class ObservationContext:
    """What the checks of one observation share.

    `at` is the time in epoch seconds. `previous` is the state of the last observation, `state` the one
    that this observation leaves for the next. `invariants` are the enabled ones by id. `ignored` counts
    what their `ignore` left out, by id and text.
    """

    connection: Connection
    settings: PostgresSettings
    at: float
    previous: Json
    state: Json
    invariants: Mapping[str, Invariant] = field(default_factory=dict)
    ignored: dict[str, Counter[str]] = field(default_factory=dict)
    _activity: list[Row] | QueryFailed | None = None

    def limit(self, invariant: str) -> float:
        """Return the limit of an enabled invariant; infinity without one."""
        found = self.invariants.get(invariant)
        return float("inf") if found is None or found.limit is None else found.limit

    def softened(self, signal: Signal) -> Signal:
        """Return the signal with the severity of its invariant where that is lower than its own."""
        found = self.invariants.get(signal.invariant)
        if found is None or signal.severity is None:
            return signal
        return replace(signal, severity=max(signal.severity, found.severity))

    def ignores(self, invariant: str, attributes: Mapping[str, object]) -> bool:
        """Return whether the settings leave out what has these attributes, and remember that they did."""
        found = self.invariants.get(invariant)
        forms = [attributes]
        if "." in str(attributes.get("table") or ""):  # with its schema, and without
            forms.append(
                {**attributes, "table": str(attributes["table"]).partition(".")[2]}
            )
        if found is None or not any(map(found.ignores, forms)):
            return False
        named = {name for entry in found.ignore for name in entry}
        left_out = ", ".join(
            f"{name} {text(value, 64)}"
            for name, value in attributes.items()
            if name in named and value
        )
        self.ignored.setdefault(invariant, Counter())[left_out or "without a name"] += 1
        return True

    def counted(
        self,
        invariant: str,
        rows: Iterable[Row],
        about: Callable[[Row], Mapping[str, object]],
    ) -> list[Row]:
        """Return the rows that the settings do not leave out."""
        return [row for row in rows if not self.ignores(invariant, about(row))]

    async def activity(self) -> list[Row]:
        """Return sessions that are active or hold a transaction; queried once. Raises QueryFailed."""
        if self._activity is None:
            try:
                self._activity = await self.connection.rows(sql.ACTIVITY)
            except QueryFailed as error:
                self._activity = error
        if isinstance(self._activity, QueryFailed):
            raise self._activity
        return self._activity


@dataclass(frozen=True, slots=True)
class LockWaits:
    """The lock waits of one moment with the sessions that take part, by pid."""

    blocking: Blocking
    sessions: Mapping[int, Row] = field(default_factory=dict)


async def load_lock_waits(connection: Connection) -> LockWaits:
    """Return the current lock waits. Raises QueryFailed."""
    blocking = Blocking.of(await connection.rows(sql.WAITS))
    if not blocking.waits:
        return LockWaits(blocking)
    rows = await connection.rows(sql.SESSIONS, {"pids": blocking.pids})
    return LockWaits(blocking, {int(row["pid"]): row for row in rows})


_IGNORED = 10  # texts of one invariant that tell what was left out


class Findings:
    """What an observation has found so far, of the enabled invariants only."""

    def __init__(self, invariants: Sequence[Invariant], state: Json) -> None:
        self.enabled = {invariant.id for invariant in invariants}
        self.state = state
        self._signals: dict[str, Sequence[Signal]] = {}
        self._partial: list[Signal] = []
        self._unavailable: dict[str, str] = {}
        self._unsupported: dict[str, str] = {}
        self.ignored: dict[str, tuple[str, ...]] = {}
        self.background: dict[str, Fact] = {}
        self.configuration: dict[str, Fact] = {}

    def observed(self, invariant: str, signals: Sequence[Signal]) -> None:
        """Record the signals of an invariant that was observed completely."""
        if invariant in self.enabled:
            self._signals[invariant] = signals

    def mark_unavailable(self, invariant: str, why: str) -> None:
        """Record that an invariant could not be observed, and why."""
        if invariant in self.enabled:
            self._unavailable[invariant] = why

    def mark_unsupported(self, invariant: str, why: str) -> None:
        """Record that a setting or a permission makes an invariant impossible to see, with the remedy."""
        if invariant in self.enabled:
            self._unsupported[invariant] = why

    def add_ignored(self, ignored: Mapping[str, Counter[str]]) -> None:
        """Record what the settings left out, the most frequent first."""
        for invariant, counts in ignored.items():
            shown = counts.most_common(_IGNORED)
            parts = [name if n == 1 else f"{name} ({n} times)" for name, n in shown]
            if more := len(counts) - len(shown):
                parts.append(f"and {more} more")
            self.ignored[invariant] = tuple(parts)

    def partial(self, invariant: str, signal: Signal) -> None:
        """Record a violation on one component, while the other components stay unknown."""
        if invariant in self.enabled:
            self._partial.append(signal)

    async def check(
        self, invariant: str, run: Callable[[], Awaitable[Sequence[Signal]]]
    ) -> None:
        """Run a check and record its signals, or why it failed."""
        if invariant in self.enabled:
            try:
                self.observed(invariant, await run())
            except NotObservable:
                pass
            except Unsupported as error:
                self.mark_unsupported(invariant, error.one_line())
                if isinstance(error, PartlyUnsupported):
                    self._partial += error.signals
            except ObservationFailed as error:
                self.mark_unavailable(invariant, error.one_line())

    def mark_unobserved(self, why: str) -> None:
        """Record for all invariants without a result that they are unknown, and why."""
        known = {*self._signals, *self._unavailable, *self._unsupported}
        for invariant in self.enabled - known:
            self._unavailable[invariant] = why

    def observation(self) -> Observation:
        """Return the observation. Raises ObservationFailed when nothing at all was observed."""
        signals = [one for found in self._signals.values() for one in found]
        signals += self._partial
        if not signals and not self._signals:
            why = next(iter(self._unavailable.values()), "the server does not answer")
            raise ObservationFailed(why)
        return Observation(
            tuple(signals),
            frozenset(self._signals),
            self._unavailable,
            self.state,
            self.background,
            self._unsupported,
            self.ignored,
            self.configuration,
        )


# ------------------------------------------------------------------ series

Series = list[list[float]]
"""A small series of [epoch seconds, value], kept in an observation's state."""
POINTS = 8


def read_series(raw: Any) -> Series:
    """Return a series from stored state; empty for anything else."""
    if not isinstance(raw, list):
        return []
    return [
        [float(point[0]), float(point[1])]
        for point in raw
        if isinstance(point, list)
        and len(point) == 2
        and all(isinstance(part, (int, float)) for part in point)
    ]


def series_until(series: Series, at: float) -> Series:
    """Return the series up to `at`. If all of it is later (the clock was set back), it restarts there."""
    points = [point for point in series if point[0] <= at]
    return points or [[at, point[1]] for point in series[-1:]]


def add_step(series: Series, at: float, value: float, window: float) -> Series:
    """Return a counter's steps within the window (seconds), after its last value before the window.

    Steps closer than a sixtieth of the window are one. The count within the window is the
    last value less the first.
    """
    points = series_until(series, at)
    if not points or points[-1][1] != value:
        if len(points) > 1 and at - points[-1][0] < window / 60:
            points[-1] = [points[-1][0], value]
        else:
            points.append([at, value])
    while len(points) > 1 and points[1][0] < at - window:
        points.pop(0)
    return points


def point_spacing(window: float) -> float:
    """Return the seconds between two points, so that `POINTS` of them reach beyond the window."""
    return window / (POINTS - 3)


def add_point(series: Series, at: float, value: float, window: float) -> Series:
    """Return the series with one point more, thinned so that `POINTS` of them span the window.

    The point before the window stays: the value at the window's start is known by it.
    """
    points = series_until(series, at)
    if len(points) >= 2 and points[-1][0] - points[-2][0] < point_spacing(window):
        points.pop()
    points.append([at, value])
    while len(points) > 2 and points[1][0] <= at - window:
        points.pop(0)
    return points[-POINTS:]


def series_growth(series: Series, window: float) -> float | None:
    """Return what the value grew by within the window; None with fewer than two points.

    Over a longer time than the window (after a pause of the monitor), it is the window's share.
    """
    if len(series) < 2:
        return None
    (start, before), (end, now) = series[0], series[-1]
    elapsed = end - start
    if elapsed <= 0:
        return None
    return (now - before) * min(1.0, window / elapsed)


# ------------------------------------------------------------------ statistics that are off


async def untracked(connection: Connection, setting: str) -> list[Row]:
    """Return where a setting keeps statistics from being collected. Raises QueryFailed.

    Rows have `database` and `role`: both None for the whole server, both empty for each role.
    """
    return await connection.rows(sql.NOT_TRACKED, {"setting": setting})


def tracking_off(setting: str, where: Sequence[Row]) -> tuple[str, str]:
    """Return what is wrong and the remedy for a setting that is off at these places."""
    row = where[0]
    name = text(row["role"], 64) or "ALL"
    scope = f" IN DATABASE {text(row['database'], 64)}" if row["database"] else ""
    if row["role"] is None:
        place, remedy = "", f"ALTER SYSTEM SET {setting} = on; SELECT pg_reload_conf()"
    elif row["database"] and not row["role"]:
        place = f" for database {text(row['database'], 64)}"
        remedy = f"ALTER DATABASE {text(row['database'], 64)} RESET {setting}"
    else:
        place = f" for role {name}"
        remedy = f"ALTER ROLE {name}{scope} RESET {setting}"
    more = f" and {len(where) - 1} more" if len(where) > 1 else ""
    return f"{setting} is off{place}{more}", f"turn it on: {remedy}"


def at_least(signal: Signal, limit: float) -> Signal:
    """Return the signal of a value that may be higher in truth: below the limit it is unknown."""
    if signal.holds is False or (signal.value is not None and signal.value > limit):
        return signal
    return replace(signal, value=None, holds=None)
