"""The operator as a daemon: its parts, started and stopped together."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass

from midwatch.errors import MidwatchError
from midwatch.kube.cache import Index, Queue
from midwatch.kube.client import Cluster
from midwatch.kube.controller import FAILURES, ActionExecutor, ReconcileWorker, Tally
from midwatch.kube.errors import ResourceGone
from midwatch.kube.watch import RESOURCES, Hearing, Watches
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
from midwatch.model import Json
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
    hearing: Hearing
    requests: Counter[tuple[str, str]]

    def samples(self) -> Iterator[Sample]:
        phases = self.index.phases()
        for phase in Phase:
            yield _SESSIONS(phases[phase], phase.value)
        yield _STARTS(self.tally.starts)
        yield _RESTARTS(self.tally.restarts)
        for (ended, reason), count in self._ends().items():
            yield _ENDS(count, ended, reason)
        for (verb, code), count in (self.requests + self.hearing.requests).items():
            yield _REQUESTS(count, verb, code)
        for kind in FAILURES:
            yield _FAILURES(self.failures.get(kind, 0), kind)
        yield _DEPTH(len(self.queue))
        yield _OLDEST(self.queue.oldest())
        yield _WORKING(self.queue.working())
        for resource, seconds in self.hearing.down().items():
            if resource in RESOURCES:
                yield _DOWN(seconds, resource)

    def _ends(self) -> Counter[tuple[str, str]]:
        known = Counter[tuple[str, str]]()
        for (phase, reason), count in self.tally.ends.items():
            known[phase, reason if reason in REASONS else "other"] += count
        return known


def readiness(hearing: Hearing, watches: int, silence: float) -> Page:
    """200 while all of so many watches are open, or were within `silence` seconds; else 503 says which."""

    def page() -> Answer:
        if hearing.watches() < watches:
            return Answer(503, b"the watches are not open yet\n")
        down = {name: s for name, s in hearing.down().items() if s > silence}
        said = [f"watch of {name}: down for {s:.0f} s\n" for name, s in down.items()]
        return Answer(503 if down else 200, "".join(said or ["ok\n"]).encode())

    return page


_TURN = 10
"""Requests, each as slow as it may be, after which somebody should have taken the next session: with one
worker, what a turn of a new session takes."""
RESYNC = 300.0
"""Seconds between two lists of everything: what a broken watch did not tell is found then."""


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
        self.hearing = Hearing(clock)
        self._queue = Queue(
            settings.backoff,
            settings.backoff_max,
            clock=clock,
            progress=self.progress,
            stuck_after=_TURN * settings.request_timeout,
        )
        self._hands = ActionExecutor(cluster, self.index, settings, clock, self._log)
        self._follower = ReconcileWorker(self._hands, self._queue)

    async def run(self, stop: StopEvent) -> None:
        """Follow all sessions until the stop. Raises SettingsError where `operator.port` is taken."""
        async with self.served():
            if await self._first_look(stop):
                await self._follow(stop)

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
            self.hearing,
            self._cluster.requests,
        )
        watches = len(RESOURCES) * max(1, len(ours.namespaces))
        pages = {
            "/healthz": health(self.progress),
            "/readyz": readiness(self.hearing, watches, ours.watch_silence),
            "/metrics": metrics_page(Exposition(OPERATOR, figures.samples)),
        }
        async with serving(
            ours.host, ours.port, pages, self._log, setting="operator.port"
        ) as address:
            yield address

    async def _follow(self, stop: StopEvent) -> None:
        workers = [
            asyncio.create_task(self._follower.run(), name=f"follower {number}")
            for number in range(self._settings.concurrency)
        ]
        workers.append(asyncio.create_task(self._resync(stop), name="resync"))
        try:
            await self._watch(stop)
        finally:
            # What is cut off here is taken up at the next start: every step may be repeated.
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            self._queue.close()

    async def _first_look(self, stop: StopEvent) -> bool:
        """Know the cluster before anything is judged; true once it is known."""
        wait = self._settings.backoff
        while not stop:
            try:
                await self.look()
                self._log.info("operator started", sessions=len(self.index))
                return True
            except ResourceGone as error:
                hint = "install them: midwatch kube crd | kubectl apply -f -"
                self._log.error("no AgenticSessions", error=error.message, hint=hint)
            except MidwatchError as error:
                self._log.error("cannot start yet", error=error.one_line(), wait=wait)
            await stop.pause(wait)
            wait = min(wait * 2, self._settings.backoff_max)
        return False

    async def look(self) -> None:
        """List everything, and have a look at every session."""
        before = self.index.before()
        pods: list[Json] = []
        jobs: list[Json] = []
        sessions: list[Json] = []
        namespaces: list[str | None] = [*self._settings.namespaces]
        for namespace in namespaces or [None]:
            pods += await self._cluster.list_pods(namespace)
            jobs += await self._cluster.list_jobs(namespace)
            sessions += await self._cluster.list_sessions(namespace)
        self.index.after(before, sessions, jobs, pods)
        for key in self.index:
            self._queue.add(key)

    async def _resync(self, stop: StopEvent) -> None:
        while not await stop.pause(RESYNC):
            try:
                await self.look()
            except MidwatchError as error:
                self._log.warning("cannot list", error=error.one_line())

    async def _watch(self, stop: StopEvent) -> None:
        """kopf gives up on what it does not know; it is started again then."""
        watches = Watches(
            self.index,
            self._queue,
            self._settings,
            self._log,
            self.hearing,
            self.progress,
        )
        while not stop:
            try:
                await watches.run(stop)
            except Exception as error:  # the outermost guard of the daemon
                self._log.error("the watches ended", error=repr(error))
            if not stop:
                await stop.pause(self._settings.backoff)


# ------------------------------------------------------------ init
# The operator: keeps an index of what is in the cluster, and brings every session one step on whenever
# something happened to it.
#
# `watching` runs kopf, whose thin handlers feed the `index` and name what changed to the `queue`; workers take
# names from it and `follow` them: make a plan (`kube.plan`, pure) and `carry` it out, until nothing is left.
# kopf's daemons are not used: they are not started for a resource that is being deleted already, so that an
# operator that was restarted would let it go before it is saved; and their end is noticed only by annotations.
