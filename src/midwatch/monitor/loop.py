"""MonitorLoop: observe, check, reconcile, save."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from midwatch.agent.first_aid import FirstAidDesk
from midwatch.errors import MidwatchError
from midwatch.lifecycle import Clock, Liveness, StopEvent, SystemClock
from midwatch.logs import Log, quiet_log
from midwatch.monitor.subject import Cycle, SubjectMonitor
from midwatch.redaction import Redactor, Sanitizer
from midwatch.settings import MonitorSettings
from midwatch.store.protocol import Store
from midwatch.subjects.base import Subject

_SLACK = 180.0
"""Seconds beyond the wait and the slowest look until a cycle counts as stuck: more than the store
takes for a cycle's few transactions when it can hardly be reached."""
_GRACE = 1.0
"""Seconds that a cycle gets at a stop: enough to save what was seen. A look may take longer
than a stop may; what it would have seen, the next monitor sees."""


class MonitorLoop:
    """Watches all subjects at once, every `settings.interval` seconds, until the stop."""

    def __init__(
        self,
        store: Store,
        subjects: Sequence[Subject],
        settings: MonitorSettings = MonitorSettings(),
        *,
        first_aid: FirstAidDesk | None = None,
        redactor: Redactor | None = None,
        clock: Clock | None = None,
        log: Log | None = None,
        name: str = "monitor",
        progress: Liveness | None = None,
    ) -> None:
        self.store = store
        self.settings = settings
        self.first_aid = first_aid
        self.clock = clock or SystemClock()
        self.log = log or quiet_log()
        self.name = name
        self.progress = progress or Liveness(self.clock)
        self._longest = max((subject.timeout for subject in subjects), default=0.0)
        intake = Sanitizer(redactor or Redactor())
        self.watches = [
            SubjectMonitor(subject, store, settings, intake, self.clock, self.log)
            for subject in subjects
        ]

    async def run(self, stop: StopEvent) -> None:
        """Cycle until `stop`. Errors of subjects and of the store are logged, never raised."""
        within = self.settings.interval + self._longest + _SLACK
        while not stop:
            self.progress.expect("cycle", within)
            cycle = await self._cycle_or_stop(stop)
            if cycle is None:
                return
            await self._beat(cycle)
            await stop.pause(max(0.0, self.settings.interval - cycle.seconds))

    async def once(self) -> Cycle:
        """One cycle, with the line and the heartbeat that tell of it."""
        cycle = await self.cycle()
        await self._beat(cycle)
        return cycle

    async def cycle(self) -> Cycle:
        """Look at every subject once, save what changed, and give first aid to what opened."""
        began = self.clock.monotonic()
        parts = await asyncio.gather(*map(self._watch, self.watches))
        return Cycle(
            subjects=len(parts),
            unobservable=sum(part.unobservable for part in parts),
            unsaved=sum(part.unsaved for part in parts),
            open=sum(part.open for part in parts),
            opened=tuple(ticket for part in parts for ticket in part.opened),
            resolved=sum(part.resolved for part in parts),
            seconds=self.clock.monotonic() - began,
        )

    async def close(self) -> None:
        await asyncio.gather(*(watch.close() for watch in self.watches))

    async def _cycle_or_stop(self, stop: StopEvent) -> Cycle | None:
        """One cycle; None when the stop came in the middle of one that does not end soon."""
        cycle = asyncio.create_task(self.cycle(), name="cycle")
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({cycle, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not cycle.done():
                await asyncio.wait({cycle}, timeout=_GRACE)
            return cycle.result() if cycle.done() else None
        finally:
            for task in (cycle, stopping):
                task.cancel()
            await asyncio.gather(cycle, stopping, return_exceptions=True)

    async def _watch(self, watch: SubjectMonitor) -> Cycle:
        """One subject's part; whatever goes wrong in it stays in it."""
        cycle, began = Cycle(1, unsaved=1), self.clock.monotonic()
        try:
            cycle = await watch.cycle()
            if cycle.opened and self.first_aid is not None:
                await self.first_aid.give(cycle.opened, cycle.changed)
        except MidwatchError as error:
            self.log.warning("first aid not saved", error=error.one_line())
        except Exception:  # a fault of ours or of a playbook must not end the watch
            self.log.exception("cycle failed", subject=watch.subject.name)
        watch.tally.add(cycle, self.clock.monotonic() - began, self.clock.now())
        return cycle

    async def _beat(self, cycle: Cycle) -> None:
        facts = {
            "subjects": cycle.subjects,
            "unobservable": cycle.unobservable,
            "unsaved": cycle.unsaved,
            "open": cycle.open,
            "opened": len(cycle.opened),
            "resolved": cycle.resolved,
            "seconds": round(cycle.seconds, 3),
        }
        self.log.info("cycle", **facts)
        try:
            await self.store.beat(self.name, "monitor", facts)
        except MidwatchError as error:
            self.log.warning("heartbeat not saved", error=error.one_line())
