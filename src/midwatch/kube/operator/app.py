"""The operator as a daemon: its parts, started and stopped together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from midwatch.errors import MidwatchError
from midwatch.kube.api import Cluster
from midwatch.kube.errors import ResourceGone
from midwatch.kube.operator.carry import Hands
from midwatch.kube.operator.figures import OPERATOR, Figures, readiness
from midwatch.kube.operator.follow import Follower
from midwatch.kube.operator.hearing import RESOURCES, Hearing
from midwatch.kube.operator.index import Index
from midwatch.kube.operator.queue import Queue
from midwatch.kube.operator.watching import Watches
from midwatch.lifecycle import Clock, Progress, Stop, SystemClock
from midwatch.logs import Log, quiet_log
from midwatch.metrics import Exposition, health, metrics_page, serving
from midwatch.model import Json
from midwatch.settings import OperatorSettings

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
        self.progress = Progress(clock)
        self.hearing = Hearing(clock)
        self._queue = Queue(
            settings.backoff,
            settings.backoff_max,
            clock=clock,
            progress=self.progress,
            stuck_after=_TURN * settings.request_timeout,
        )
        self._hands = Hands(cluster, self.index, settings, clock, self._log)
        self._follower = Follower(self._hands, self._queue)

    async def run(self, stop: Stop) -> None:
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

    async def _follow(self, stop: Stop) -> None:
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

    async def _first_look(self, stop: Stop) -> bool:
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
                self._log.error("cannot start yet", error=error.line(), wait=wait)
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

    async def _resync(self, stop: Stop) -> None:
        while not await stop.pause(RESYNC):
            try:
                await self.look()
            except MidwatchError as error:
                self._log.warning("cannot list", error=error.line())

    async def _watch(self, stop: Stop) -> None:
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
