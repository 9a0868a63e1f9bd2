"""Watch this monitor's share of the subjects: each at its time, as long as the lease holds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

from midwatch.errors import MidwatchError
from midwatch.lifecycle import Clock, StopEvent, cancel, first
from midwatch.logs import Log
from midwatch.model import Json
from midwatch.monitor.membership import Membership
from midwatch.monitor.result import Cycle
from midwatch.monitor.saving import GroupSaver
from midwatch.monitor.schedule import Schedule
from midwatch.monitor.subject import SubjectMonitor

_GRACE = 1.0
"""Seconds that running cycles get after a stop: enough to save a poll that has ended."""
_LINGER = 1.0
"""Seconds that an observation without changes waits at most for others, to be saved with them."""


@dataclass(slots=True)
class _Round:
    """What was done since the last report: it is over when each subject was observed."""

    began: float
    left: set[str]
    parts: dict[str, Cycle] = field(default_factory=dict)

    def add(self, name: str, cycle: Cycle) -> None:
        self.left.discard(name)
        if (before := self.parts.get(name)) is not None:
            cycle = replace(
                cycle,
                opened=before.opened + cycle.opened,
                resolved=before.resolved + cycle.resolved,
            )
        self.parts[name] = cycle


class Watching:
    """Runs the cycles of the subjects that this monitor has, until it is stopped.

    Args:
        monitors: All subjects of the settings, by name.
        membership: Says which of them are its own.
        saver: Saves what does not change.
        interval: Seconds between two observations of a subject.
        own: Those of subjects that have an interval of their own, by name.
        check: Runs the cycle of a subject; it never raises.
        report: Logs what a round did, and returns what the heartbeat says of it.
        clock: The source of time.
        log: Where events are logged.
    """

    def __init__(
        self,
        monitors: Mapping[str, SubjectMonitor],
        membership: Membership,
        saver: GroupSaver,
        interval: float,
        own: Mapping[str, float],
        check: Callable[[SubjectMonitor], Awaitable[Cycle]],
        report: Callable[[list[Cycle], float], Json],
        clock: Clock,
        log: Log,
    ) -> None:
        self._monitors = monitors
        self._membership = membership
        self._saver = saver
        self._interval = interval
        self._check = check
        self._report = report
        self._clock = clock
        self._log = log
        self._schedule = Schedule(interval, own)
        self._shortest = min([interval, *own.values()])
        self._rare = {name for name, seconds in own.items() if seconds > interval}
        self._last: dict[str, Cycle] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._woken = asyncio.Event()
        self._round = self._new_round(clock.monotonic())
        self._facts: Json = {"subjects": 0}

    async def run(self, stop: StopEvent) -> None:
        """Watch until `stop` is set. Errors of subjects and of the store are logged, never raised."""
        self._saver.linger = min(_LINGER, self._shortest / 10)
        try:
            while not stop:
                if self._is_over() or not self._membership.renewal_in:
                    await first(self._keep_lease(), stop.wait())
                self._start_due()
                await first(
                    self._clock.sleep(self._seconds()), self._woken.wait(), stop.wait()
                )
                self._woken.clear()
        finally:
            await self._end()

    async def _keep_lease(self) -> None:
        """Report a round that is over, and renew the lease: the heartbeat is the same write."""
        if self._is_over():
            self._end_round()
        try:
            await self._membership.renew(self._facts, self._running.keys())
        except MidwatchError as error:
            self._log.warning("heartbeat not saved", error=error.one_line())
        own = self._membership.subjects & self._monitors.keys()
        for name in self._schedule.keep(own, self._clock.monotonic()):
            if name not in self._running:
                self._monitors[name].forget()
        self._round.left &= own
        self._round.left |= own - self._rare - self._round.parts.keys()

    def _start_due(self) -> None:
        """Start the cycle of a subject that is due, unless its last one still runs."""
        if not self._membership.holds:
            return
        name = self._schedule.take(self._clock.monotonic())
        if name is not None and name not in self._running:
            task = asyncio.create_task(self._cycle(name), name=f"watch {name}")
            self._running[name] = task

    async def _cycle(self, name: str) -> None:
        try:
            cycle = await self._check(self._monitors[name])
            self._round.add(name, cycle)
            if name in self._rare:
                self._last[name] = replace(cycle, opened=0, resolved=0)
        finally:
            del self._running[name]
            if name not in self._membership.subjects:
                self._monitors[name].forget()
            if self._is_over():
                self._woken.set()

    def _is_over(self) -> bool:
        if self._round.parts and not self._round.left:
            return True
        idle = not self._round.left or not self._membership.holds
        return idle and self._clock.monotonic() - self._round.began >= self._interval

    def _end_round(self) -> None:
        now, done = self._clock.monotonic(), self._round
        for name in done.left:  # without a lease nothing can be saved
            cycle = Cycle(1, unsaved=1, open=len(self._monitors[name].tickets))
            self._monitors[name].stats.add(cycle, 0.0, self._clock.now())
            done.parts[name] = cycle
        for name in (self._rare & self._membership.subjects) - done.parts.keys():
            if name in self._last:
                done.parts[name] = self._last[name]
        self._facts = self._report(list(done.parts.values()), now - done.began)
        self._round = self._new_round(now)

    def _new_round(self, now: float) -> _Round:
        """Begin a round. It does not wait for subjects with a longer interval of their own: their last cycle counts."""
        return _Round(now, set(self._membership.subjects) - self._rare)

    def _seconds(self) -> float:
        """Return the seconds until there is something to do."""
        now = self._clock.monotonic()
        waits = [
            self._membership.renewal_in,
            self._round.began + self._interval - now,
        ]
        if self._membership.holds:
            waits[1:] = [] if self._round.left else waits[1:]
            waits.append(self._schedule.wait(now))
        return max(0.0, min(waits))

    async def _end(self) -> None:
        """Let running cycles save what they saw, and leave."""
        self._saver.hurry()
        running = list(self._running.values())
        if running:
            await asyncio.wait(running, timeout=_GRACE)
        await cancel(*running)
        try:
            await self._membership.leave()
        except MidwatchError as error:
            self._log.warning("lease not ended", error=error.one_line())
