"""The operator as a daemon: its parts, started and stopped together."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass

from midwatch.kube.cache import Index, Key, Queue
from midwatch.kube.client import Cluster
from midwatch.kube.controller import FAILURES, ActionExecutor, ReconcileWorker, Tally
from midwatch.kube.watch import RESOURCES, Reflector, WatchStats
from midwatch.lifecycle import Clock, Liveness, StopEvent, SystemClock
from midwatch.logs import Log, quiet_log
from midwatch.metrics import (
    Answer,
    Exposition,
    Family,
    Page,
    Sample,
    health,
    metrics_page,
    serving,
)
from midwatch.session.events import Phase
from midwatch.settings import OperatorSettings

# ------------------------------------------------------------ figures
# What the operator tells probes and Prometheus. A scrape asks the API server for nothing.

_SESSIONS = Family(
    "midwatch_operator_sessions",
    "gauge",
    "Sessions that are not over and done with, by phase.",
    ("phase",),
)
_STARTS = Family("midwatch_operator_starts_total", "counter", "First Jobs of sessions.")
_RESTARTS = Family(
    "midwatch_operator_restarts_total",
    "counter",
    "Jobs for sessions whose pod was lost.",
)
_ENDS = Family(
    "midwatch_operator_ends_total",
    "counter",
    "Sessions that ended, by phase and the status's reason; `other` is a reason that is not in the table.",
    ("phase", "reason"),
)
_REQUESTS = Family(
    "midwatch_operator_api_requests_total",
    "counter",
    "Calls of the API server; a list in pages is one. Codes: 2xx, a status, timeout, error.",
    ("verb", "code"),
)
_FAILURES = Family(
    "midwatch_operator_reconcile_errors_total",
    "counter",
    "Turns of a session that failed: outdated, temporary, permanent, unexpected.",
    ("kind",),
)
_DEPTH = Family(
    "midwatch_operator_queue_depth", "gauge", "Sessions that wait for their turn."
)
_OLDEST = Family(
    "midwatch_operator_queue_oldest_seconds",
    "gauge",
    "How long the first of them has waited.",
)
_WORKING = Family(
    "midwatch_operator_queue_working", "gauge", "Sessions that are worked on now."
)
_DOWN = Family(
    "midwatch_operator_watch_down_seconds",
    "gauge",
    "How long a watch has not been open; 0 while all of the resource are.",
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

TAKEN = frozenset(
    ("Evicted", "Preempting", "NodeShutdown", "Terminated", "NodeAffinity")
    + ("PreemptionByScheduler", "DeletionByTaintManager", "EvictionByEvictionAPI")
    + ("DeletionByPodGC", "TerminationByKubelet")
)
"""Why Kubernetes takes a pod away: `status.reason` of a pod, and the reasons of its DisruptionTarget."""
REASONS = TAKEN | frozenset(
    ("Completed", "Stopped", "Idle", "Interrupted", "InvalidSpec", "NameTooLong")
    + ("ImagePull", "InvalidImageName", "CreateContainerConfigError")
    + ("Unschedulable", "NoPod", "OutOfMemory", "DeadlineExceeded", "TimedOut")
    + ("SessionTimedOut", "SessionIdle", "TurnLimit", "BudgetSpent", "KeyRefused")
    + ("ModelNotFound", "RateLimited", "Overloaded", "ApiUnreachable", "ApiFailed")
    + ("RepositoryNotFound", "NotAuthorised", "RepositoryUnreachable", "PushFailed")
    + ("ContentUnavailable", "TokenRefused", "BadEnvironment", "ExitCode")
    + ("OutcomeUnknown", "NodeLost", "Killed", "PodDeleted", "PodFailed", "PodGone")
    + ("JobDeleted",)
)
"""What a session can end with, as docs/kubernetes.md has it. A status can be written by others: what is
not among these is no label."""


@dataclass(frozen=True)
class Figures:
    """What is counted, where it is counted."""

    index: Index
    queue: Queue
    tally: Tally
    failures: Mapping[str, int]
    watches: WatchStats
    requests: Counter[tuple[str, str]]

    def samples(self) -> Iterator[Sample]:
        phases = self.index.phases()
        for phase in Phase:
            yield _SESSIONS(phases[phase], phase.value)
        yield _STARTS(self.tally.starts)
        yield _RESTARTS(self.tally.restarts)
        for (ended, reason), count in self._ends().items():
            yield _ENDS(count, ended, reason)
        for (verb, code), count in self.requests.items():
            yield _REQUESTS(count, verb, code)
        for kind in FAILURES:
            yield _FAILURES(self.failures.get(kind, 0), kind)
        yield _DEPTH(len(self.queue))
        yield _OLDEST(self.queue.oldest())
        yield _WORKING(self.queue.working())
        for resource, seconds in self.watches.down().items():
            if resource in RESOURCES:
                yield _DOWN(seconds, resource)

    def _ends(self) -> Counter[tuple[str, str]]:
        known = Counter[tuple[str, str]]()
        for (phase, reason), count in self.tally.ends.items():
            known[phase, reason if reason in REASONS else "other"] += count
        return known


def readiness(watches: WatchStats, needed: int, silence: float) -> Page:
    """200 while all of so many watches are open, or were within `silence` seconds; else 503 says which."""

    def page() -> Answer:
        if watches.watches() < needed:
            return Answer(503, b"the watches are not open yet\n")
        down = {name: s for name, s in watches.down().items() if s > silence}
        said = [f"watch of {name}: down for {s:.0f} s\n" for name, s in down.items()]
        return Answer(503 if down else 200, "".join(said or ["ok\n"]).encode())

    return page


_TURN = 10
"""Requests, each as slow as it may be, after which somebody should have taken the next session: with one
worker, what a turn of a new session takes."""


class Operator:
    """Runs the sessions of a cluster until it is stopped."""

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
            stuck_after=_TURN * settings.request_timeout,
        )
        self._hands = ActionExecutor(cluster, self.index, settings, clock, self._log)
        self._follower = ReconcileWorker(self._hands, self._queue)
        self._started = False
        namespaces: list[str | None] = [*settings.namespaces]
        self._reflectors = [
            Reflector(
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
        """Follow all sessions until the stop. Raises SettingsError where `operator.port` is taken."""
        async with self.served():
            tasks = [
                asyncio.create_task(one.run(), name=f"watch {one.name}")
                for one in self._reflectors
            ]
            tasks.append(asyncio.create_task(self._follow(), name="followers"))
            try:
                await stop.wait()
            finally:
                # What is cut off here is taken up at the next start: every step may be repeated.
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self._queue.close()

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[str | None]:
        """While inside, probes and Prometheus are answered, if the settings name a port; the address."""
        ours = self._settings
        if ours.port is None:
            yield None
            return
        figures = Figures(
            self.index,
            self._queue,
            self._hands.tally,
            self._follower.failures,
            self.watches,
            self._cluster.requests,
        )
        needed = len(self._reflectors)
        pages = {
            "/healthz": health(self.progress),
            "/readyz": readiness(self.watches, needed, ours.watch_silence),
            "/metrics": metrics_page(Exposition(OPERATOR, figures.samples)),
        }
        async with serving(
            ours.host, ours.port, pages, self._log, setting="operator.port"
        ) as address:
            yield address

    async def _follow(self) -> None:
        """Know the cluster before anything is judged; then follow every session."""
        for reflector in self._reflectors:
            await reflector.listed.wait()
        self._log.info("operator started", sessions=len(self.index))
        self._started = True
        for key in self.index:
            self._queue.add(key)
        workers = range(self._settings.concurrency)
        await asyncio.gather(*(self._follower.run() for _ in workers))

    def _changed(self, key: Key) -> None:
        if self._started:
            self._queue.add(key)


# ------------------------------------------------------------ init
# The operator: keeps an index of what is in the cluster, and brings every session one step on whenever
# something happened to it.
#
# `kube.watch` lists and watches; it feeds the `index` and names what changed to the `queue`. Workers take names
# from that and `follow` them: make a plan (`kube.plan`, pure) and `carry` it out, until nothing is left.
