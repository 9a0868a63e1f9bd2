"""The monitor daemon: poll its share of the subjects, check their invariants, reconcile their tickets, save."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from midwatch.agent.first_aid import FirstAidWriter
from midwatch.agent.links import Links
from midwatch.errors import MidwatchError, TemporaryError
from midwatch.lifecycle import (
    Clock,
    Liveness,
    StopEvent,
    SystemClock,
    background,
    collect_from_now_on,
)
from midwatch.logs import Log, quiet_log
from midwatch.model import Json, Ticket
from midwatch.monitor.change_reader import ChangeReader
from midwatch.monitor.membership import Membership
from midwatch.monitor.result import Cycle
from midwatch.monitor.saving import GroupSaver
from midwatch.monitor.standstill import Standstill
from midwatch.monitor.subject import SubjectMonitor
from midwatch.monitor.watching import Watching
from midwatch.redaction import Redactor, Sanitizer
from midwatch.settings import MonitorSettings
from midwatch.store.protocol import Store, with_notice
from midwatch.subjects.base import Subject
from midwatch.telemetry.spans import Attributes, NoTelemetry, Telemetry

_SLACK = 180.0
"""Seconds beyond the interval and the slowest poll until a cycle counts as stuck: more than the
transactions of a cycle take on a store that can hardly be reached, or polls that are made again."""


class MonitorLoop:
    """Polls its share of the subjects, each once in its interval, until it is stopped.

    All monitors on one store share the subjects. `cycle` and `once` poll all of them, also those of other monitors.

    Args:
        store: Where tickets and heartbeats are saved.
        subjects: The systems to watch.
        settings: The group `monitor` of the settings.
        first_aid: Writes preliminary diagnoses on tickets that open; None writes none.
        redactor: Removes secrets from everything that subjects report.
        clock: The source of time; tests inject one.
        log: Where events are logged; the default drops them.
        name: Name of this daemon in its heartbeats.
        progress: The liveness that a health probe asks.
        links: The links between subjects; by default those that the subjects show themselves.
        standstill: Measures for how long this process stood still; by default only with the machine's own clock.
        telemetry: Records each cycle as a trace.
        changes: Reads the repositories of subjects; None reads none.
        intervals: Seconds between two observations of a subject, where not those of the settings, by name.
    """

    def __init__(
        self,
        store: Store,
        subjects: Sequence[Subject],
        settings: MonitorSettings = MonitorSettings(),
        *,
        first_aid: FirstAidWriter | None = None,
        redactor: Redactor | None = None,
        clock: Clock | None = None,
        log: Log | None = None,
        name: str = "monitor",
        progress: Liveness | None = None,
        links: Links | None = None,
        standstill: Standstill | None = None,
        telemetry: Telemetry | None = None,
        changes: ChangeReader | None = None,
        intervals: Mapping[str, float] = {},
    ) -> None:
        self._intervals = intervals
        self.store = store
        self.changes = changes
        self.telemetry = telemetry or NoTelemetry()
        self.settings = settings
        self.first_aid = first_aid
        self.clock = clock or SystemClock()
        self.log = log or quiet_log()
        self.name = name
        self.progress = progress or Liveness(self.clock)
        self.links = links or Links(subjects)
        self._longest = max((subject.timeout for subject in subjects), default=0.0)
        sanitizer = Sanitizer(redactor or Redactor())
        if standstill is None and isinstance(self.clock, SystemClock):
            standstill = Standstill()
        self.standstill = standstill
        self.membership: Membership | None = None
        self._seen_all = False
        self._saver = GroupSaver(store, self.clock)
        self.monitors = [
            SubjectMonitor(
                subject,
                store,
                settings,
                sanitizer,
                self.clock,
                self.log,
                self.links,
                self._saver,
                standstill,
            )
            for subject in subjects
        ]

    async def run(self, stop: StopEvent) -> None:
        """Watch this monitor's share of the subjects until `stop` is set.

        Each is observed at its own time in the interval. Errors of subjects and of the store are logged, never raised.
        """
        if self.standstill is not None:
            self.standstill.start()
        by_name = {monitor.subject.name: monitor for monitor in self.monitors}
        self.membership = membership = Membership(
            self.store,
            self.name,
            list(by_name),
            self.settings.lease,
            self.clock,
            self.standstill,
        )
        for monitor in self.monitors:
            monitor.watcher = membership.member.id
        watching = Watching(
            by_name,
            membership,
            self._saver,
            self.settings.interval,
            self._intervals,
            self._traced,
            self._ended_round,
            self.clock,
            self.log,
        )
        self._begin_round()
        if self.changes is None:
            await watching.run(stop)
            return
        async with background(self.changes.run(stop, self._watched_names)):
            await watching.run(stop)

    def _watched_names(self) -> list[str]:
        return [monitor.subject.name for monitor in self.watched]

    @property
    def watched(self) -> list[SubjectMonitor]:
        """The monitors of the subjects that this process watches: all of them, unless others have a share."""
        if self.membership is None:
            return self.monitors
        own = self.membership.subjects
        return [one for one in self.monitors if one.subject.name in own]

    async def once(self) -> Cycle:
        """Run one cycle of all subjects, log it and save its heartbeat. Errors are logged, never raised.

        It is what a person asked for, so subjects that another monitor watches are observed too.
        """
        if self.changes is not None:
            await self.changes.read(self._watched_names())
        cycle = await self.cycle()
        facts = self._report(cycle)
        try:
            await self.store.beat(self.name, "monitor", facts)
        except MidwatchError as error:
            self.log.warning("heartbeat not saved", error=error.one_line())
        return cycle

    async def cycle(self) -> Cycle:
        """Poll every subject once, save what changed, and write first aid on tickets that opened."""
        if self.standstill is not None:
            self.standstill.start()
        self.links.refresh()
        began = self.clock.monotonic()
        with self.telemetry.span("monitor cycle") as span:
            parts = await asyncio.gather(*map(self._traced, self.monitors))
            span.set(_attributes(*parts))
        return _together(parts, self.clock.monotonic() - began)

    async def close(self) -> None:
        """Close all subjects."""
        if self.standstill is not None:
            self.standstill.stop()
        if self.changes is not None:
            await self.changes.close()
        await self._saver.close()
        await asyncio.gather(*(monitor.close() for monitor in self.monitors))

    async def _traced(self, monitor: SubjectMonitor) -> Cycle:
        subject = monitor.subject
        attributes = {
            "midwatch.subject": subject.name,
            "midwatch.subject.kind": subject.kind,
        }
        with self.telemetry.span("check subject", attributes) as span:
            cycle = await self._cycle_of(monitor)
            span.set(_attributes(cycle))
            if cycle.unsaved or cycle.unobservable:
                span.fail("unsaved" if cycle.unsaved else "unobservable")
            return cycle

    async def _cycle_of(self, monitor: SubjectMonitor) -> Cycle:
        """Run the cycle of one subject; an error in it does not reach the others."""
        cycle, began = Cycle(1, unsaved=1), self.clock.monotonic()
        try:
            cycle = await monitor.cycle()
            if monitor.unaided and not cycle.unsaved:
                await self._aid(monitor, cycle.changed)
        except MidwatchError as error:
            self.log.warning("first aid not saved", error=error.one_line())
        except Exception:  # a bug here or in a playbook must not end the daemon
            self.log.exception("cycle failed", subject=monitor.subject.name)
        if cycle.subjects:
            seconds = self.clock.monotonic() - began
            monitor.stats.add(cycle, seconds, self.clock.now())
        return cycle

    async def _aid(self, monitor: SubjectMonitor, changed: str) -> None:
        """Give first aid on new tickets; it is tried again in the next cycle if the store was busy or away."""
        ids, monitor.unaided = monitor.unaided, []
        if self.first_aid is None:
            return
        try:
            found = (await self.store.tickets_by_id(ids)).values()
            if new := [ticket for ticket in found if not ticket.resolved]:
                await self._give_first_aid(self.first_aid, new, changed)
                await monitor.join_linked()
        except TemporaryError:
            monitor.unaided = ids
            raise

    async def _give_first_aid(
        self, first_aid: FirstAidWriter, new: Sequence[Ticket], changed: str
    ) -> None:
        with self.telemetry.span("give first aid"):
            if self.changes is not None:
                own = {ticket.key.subject for ticket in new}
                needed = {one for name in own for one in self.links.reached(name)}
                await self.changes.before_first_aid(own | needed)
            await first_aid.give(new, changed)

    def _begin_round(self) -> None:
        self.links.refresh()
        within = self.settings.interval + self._longest + _SLACK
        self.progress.expect("cycle", within)

    def _ended_round(self, parts: Sequence[Cycle], seconds: float) -> Json:
        """Log what was done since the last report. Return what the heartbeat says of it."""
        if not self._seen_all:
            self._seen_all = True
            collect_from_now_on()
        self._begin_round()
        return self._report(_together(parts, seconds))

    def _report(self, cycle: Cycle) -> Json:
        """Log a cycle. Return what the heartbeat says of it."""
        facts: Json = {
            "subjects": cycle.subjects,
            "unobservable": cycle.unobservable,
            "unsaved": cycle.unsaved,
            "open": cycle.open,
            "opened": cycle.opened,
            "resolved": cycle.resolved,
            "silenced": cycle.silenced,
            "seconds": round(cycle.seconds, 3),
        }
        self.log.info("cycle", **facts)
        return with_notice(self.store, facts)


def _together(parts: Sequence[Cycle], seconds: float) -> Cycle:
    """Return what the cycles of several subjects did."""
    return Cycle(
        subjects=sum(part.subjects for part in parts),
        unobservable=sum(part.unobservable for part in parts),
        unsaved=sum(part.unsaved for part in parts),
        open=sum(part.open for part in parts),
        opened=sum(part.opened for part in parts),
        resolved=sum(part.resolved for part in parts),
        silenced=sum(part.silenced for part in parts),
        seconds=seconds,
    )


def _attributes(*cycles: Cycle) -> Attributes:
    """Return what a span says of cycles."""
    return {
        "midwatch.subjects": len(cycles),
        "midwatch.tickets.open": sum(cycle.open for cycle in cycles),
        "midwatch.tickets.opened": sum(cycle.opened for cycle in cycles),
        "midwatch.tickets.resolved": sum(cycle.resolved for cycle in cycles),
    }
