"""The operator: keep an index of the cluster, and reconcile every session that changed.

Reflectors (`kube.cache`) list and watch; they update the index and queue the keys of changed sessions. Workers
(`kube.controller`) take keys from the queue, make a plan (`kube.reconcile`, pure) and execute it until no action is left.
A scrape of the metrics sends no request to the API server.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass

from midwatch.cluster.reflector import WatchStats
from midwatch.exposition import Exposition
from midwatch.kube.cache import RESOURCES, Index, Key, Queue, session_reflector
from midwatch.kube.client import Cluster
from midwatch.kube.controller import (
    FAILURES,
    ActionExecutor,
    ReconcileWorker,
    SessionCounts,
)
from midwatch.lifecycle import Clock, Liveness, StopEvent, SystemClock, background
from midwatch.logs import Log, quiet_log
from midwatch.metrics import (
    Answer,
    Family,
    Page,
    Sample,
    health,
    serving,
)
from midwatch.session.events import Phase
from midwatch.settings import OperatorSettings

_SESSIONS = Family(
    "midwatch_operator_sessions",
    "gauge",
    "Sessions that the operator still manages, by phase.",
    ("phase",),
)
_STARTS = Family(
    "midwatch_operator_starts_total", "counter", "Sessions started: their first Jobs."
)
_RESTARTS = Family(
    "midwatch_operator_restarts_total",
    "counter",
    "Jobs created for sessions that lost their pod.",
)
_ENDS = Family(
    "midwatch_operator_ends_total",
    "counter",
    "Sessions that ended, by phase and reason of the status; `other` is any reason that is not documented.",
    ("phase", "reason"),
)
_REQUESTS = Family(
    "midwatch_operator_api_requests_total",
    "counter",
    "Requests to the API server; a paged list counts once. Codes: 2xx, an HTTP status, timeout, error.",
    ("verb", "code"),
)
_FAILURES = Family(
    "midwatch_operator_reconcile_errors_total",
    "counter",
    "Reconciliations that failed, by kind: outdated, temporary, permanent, unexpected.",
    ("kind",),
)
_DEPTH = Family(
    "midwatch_operator_queue_depth", "gauge", "Sessions that wait to be reconciled."
)
_OLDEST = Family(
    "midwatch_operator_queue_oldest_seconds",
    "gauge",
    "Seconds that the first session in the queue has waited.",
)
_WORKING = Family(
    "midwatch_operator_queue_working", "gauge", "Sessions that are being reconciled."
)
_DOWN = Family(
    "midwatch_operator_watch_down_seconds",
    "gauge",
    "Seconds that the worst watch of a resource has been down; 0 while all are open.",
    ("resource",),
)
OPERATOR = (
    _SESSIONS,
    _STARTS,
    _RESTARTS,
    _ENDS,
    _REQUESTS,
    _FAILURES,
    _DEPTH,
    _OLDEST,
    _WORKING,
    _DOWN,
)


@dataclass(frozen=True)
class OperatorMetrics:
    """The operator's metrics, read from the parts that count them."""

    index: Index
    queue: Queue
    counts: SessionCounts
    failures: Mapping[str, int]
    watches: WatchStats
    requests: Counter[tuple[str, str]]

    def samples(self) -> Iterator[Sample]:
        """Yield the current samples."""
        phases = self.index.phases()
        for phase in Phase:
            yield _SESSIONS(phases[phase], phase.value)
        yield _STARTS(self.counts.starts)
        yield _RESTARTS(self.counts.restarts)
        for (ended, reason), count in self.counts.ends.items():
            yield _ENDS(count, ended, reason)
        for (verb, code), count in self.requests.items():
            yield _REQUESTS(count, verb, code)
        for kind in FAILURES:
            yield _FAILURES(self.failures.get(kind, 0), kind)
        yield _DEPTH(len(self.queue))
        yield _OLDEST(self.queue.oldest())
        yield _WORKING(self.queue.in_progress())
        for resource, seconds in self.watches.down().items():
            if resource in RESOURCES:
                yield _DOWN(seconds, resource)


def readiness(watches: WatchStats, needed: int, silence: float) -> Page:
    """Return the page of the readiness probe.

    It answers 200 while `needed` watches are open, or were within `silence` seconds; else 503 with their names.
    """

    def page() -> Answer:
        if watches.watches() < needed:
            return Answer(503, b"the watches are not open yet\n")
        down = {name: s for name, s in watches.down().items() if s > silence}
        lines = [f"watch of {name}: down for {s:.0f} s\n" for name, s in down.items()]
        return Answer(503 if down else 200, "".join(lines or ["ok\n"]).encode())

    return page


_REQUESTS_PER_TURN = 10
"""Requests that reconciling a new session takes. After so many request timeouts a worker must have taken the next one."""


class Operator:
    """Runs the AgenticSession resources of a cluster."""

    def __init__(
        self,
        cluster: Cluster,
        settings: OperatorSettings,
        *,
        clock: Clock | None = None,
        log: Log | None = None,
    ) -> None:
        clock = clock or SystemClock()
        self._cluster = cluster
        self._settings = settings
        self._log = log or quiet_log()
        self.index = Index()
        self.progress = Liveness(clock)
        self.watches = WatchStats(clock)
        self._queue = Queue(
            settings.backoff,
            settings.backoff_max,
            clock=clock,
            progress=self.progress,
            stuck_after=_REQUESTS_PER_TURN * settings.request_timeout,
        )
        self._executor = ActionExecutor(cluster, self.index, settings, clock, self._log)
        self._worker = ReconcileWorker(self._executor, self._queue)
        self._started = False
        namespaces: list[str | None] = [*settings.namespaces]
        self._reflectors = [
            session_reflector(
                cluster,
                resource,
                namespace,
                index=self.index,
                changed=self._changed,
                settings=settings,
                stats=self.watches,
                progress=self.progress,
                clock=clock,
                log=self._log,
            )
            for namespace in namespaces or [None]
            for resource in RESOURCES
        ]

    async def run(self, stop: StopEvent) -> None:
        """Reconcile all sessions until the stop.

        Raises:
            SettingsError: `operator.port` is in use.
        """
        async with self.serve():
            # Cancelling is safe at any point: every step may be repeated after the next start.
            watches = [one.run() for one in self._reflectors]
            async with background(*watches, self._work()):
                try:
                    await stop.wait()
                finally:
                    self._queue.close()

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[str | None]:
        """Answer probes and Prometheus while the block runs, if the settings name a port; yield the address."""
        settings = self._settings
        if settings.port is None:
            yield None
            return
        figures = OperatorMetrics(
            self.index,
            self._queue,
            self._executor.counts,
            self._worker.failures,
            self.watches,
            self._cluster.requests,
        )
        needed = len(self._reflectors)
        pages = {
            "/healthz": health(self.progress),
            "/readyz": readiness(self.watches, needed, settings.watch_silence),
            "/metrics": Exposition(OPERATOR, figures.samples).page,
        }
        async with serving(
            settings.host, settings.port, pages, self._log, setting="operator.port"
        ) as address:
            yield address

    async def _work(self) -> None:
        """Wait for the first lists, then reconcile every session."""
        for reflector in self._reflectors:
            await reflector.listed.wait()
        self._log.info("operator started", sessions=len(self.index))
        self._started = True
        for key in self.index:
            self._queue.add(key)
        workers = range(self._settings.concurrency)
        await asyncio.gather(*(self._worker.run() for _ in workers))

    def _changed(self, key: Key) -> None:
        if self._started:
            self._queue.add(key)
