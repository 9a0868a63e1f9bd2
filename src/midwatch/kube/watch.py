"""Lists and watches, which keep the operator's index as the API server has it."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from midwatch.errors import MidwatchError
from midwatch.kube.cache import Index, Key, Kind
from midwatch.kube.client import Cluster
from midwatch.kube.errors import ClusterUnavailable, ResourceGone
from midwatch.kube.rules import PLURAL
from midwatch.lifecycle import Clock, Liveness
from midwatch.logs import Log
from midwatch.model import Json
from midwatch.settings import OperatorSettings

RESOURCES: dict[str, Kind] = {PLURAL: "session", "jobs": "job", "pods": "pod"}
"""What is watched, in each namespace that is served, by plural."""
RESYNC = 300.0
"""Seconds between two lists of everything: what a broken watch did not tell is found then."""
_LONGEST_PAUSE = 15.0
"""Seconds between two tries of a watch: for so long a server may be back without our noticing."""
_SLACK = 60.0
"""Seconds beyond its own time until a watch counts as stuck."""
_INSTALL = "install the resource definition: midwatch kube crd | kubectl apply -f -"


@dataclass
class WatchStats:
    """Since when each watch is down. It is from the moment it is tried until the server takes it."""

    clock: Clock
    _down: dict[str, float | None] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)

    def opening(self, watch: str) -> None:
        """It is tried now. Its name ends with the plural of its resource, after a slash."""
        if self._down.get(watch) is None:
            self._down[watch] = self.clock.monotonic()

    def opened(self, watch: str) -> None:
        self._down[watch] = None
        self._taken.add(watch)

    def down(self) -> dict[str, float]:
        """By resource, for how many seconds the worst of its watches is down; those that were tried."""
        now, worst = self.clock.monotonic(), dict[str, float]()
        for watch, since in self._down.items():
            resource = watch.rpartition("/")[2]
            seconds = 0.0 if since is None else now - since
            worst[resource] = max(worst.get(resource, 0.0), seconds)
        return worst

    def watches(self) -> int:
        """How many there are that were ever open."""
        return len(self._taken)


class Reflector:
    """Keeps the index up to date on one resource, in one namespace or (None) in all.

    Lists, then watches from there. An interrupted watch goes on where it was; what was deleted while the server
    does not know the history any more is found by the next list, and there is one every `resync` seconds.
    `changed` is called with each session that something may have happened to; `listed` is set once the first
    list is in the index.
    """

    def __init__(
        self,
        cluster: Cluster,
        resource: str,
        namespace: str | None,
        *,
        index: Index,
        changed: Callable[[Key], None],
        settings: OperatorSettings,
        stats: WatchStats,
        progress: Liveness,
        clock: Clock,
        log: Log,
        resync: float = RESYNC,
    ) -> None:
        self._cluster = cluster
        self._resource, self._namespace = resource, namespace
        self._kind = RESOURCES[resource]
        self._index = index
        self._changed = changed
        self._settings = settings
        self._stats = stats
        self._progress = progress
        self._clock = clock
        self._log = log
        self._resync = resync
        self.name = f"{namespace or '*'}/{resource}"
        self.listed = asyncio.Event()
        self._version: str | None = None
        self._list_at = 0.0
        self._failures = 0
        self._logged: str | None = None

    async def run(self) -> None:
        """List and watch, for ever."""
        while True:
            pause = min(1.0, self._settings.backoff)
            try:
                await self._list_and_watch()
                self._failures = 0
            except MidwatchError as error:
                pause = self._failed(error)
            except Exception:  # the outermost guard: no object ends the watch of others
                self._log.exception("a watch failed", watch=self.name)
                self._version, pause = None, _LONGEST_PAUSE
            await self._clock.sleep(pause)

    async def _list_and_watch(self) -> None:
        self._expect()
        if self._version is None or self._clock.monotonic() >= self._list_at:
            await self._list()
            self._expect()
        assert self._version is not None
        left = self._list_at - self._clock.monotonic()
        seconds = max(1, math.ceil(min(self._settings.watch_timeout, left)))
        # The server ends it in time, if it is there.
        with contextlib.suppress(TimeoutError):
            async with (
                asyncio.timeout(seconds + self._settings.request_timeout),
                self._cluster.watch(
                    self._resource,
                    self._namespace,
                    self._version,
                    seconds=seconds,
                    silence=self._settings.watch_silence,
                ) as events,
            ):
                self._opened()
                async for type_, body in events:
                    self._take(type_, body)

    async def _list(self) -> None:
        before = self._index.before_list(self._kind, self._namespace)
        bodies, self._version = await self._cluster.list_for_watch(
            self._resource, self._namespace
        )
        self._list_at = self._clock.monotonic() + self._resync
        concerned = self._index.after(before, {self._kind: bodies})
        self.listed.set()
        for key in concerned:
            self._changed(key)

    def _take(self, type_: str, body: Json) -> None:
        self._failures = 0
        if type_ != "BOOKMARK":
            key = self._index.put(self._kind, body)
            if type_ == "DELETED":
                self._index.drop(key, self._kind, body["metadata"]["name"])
            self._changed(key)
        self._version = body["metadata"]["resourceVersion"]

    # -------------------------------------------------------------- what is known of it

    def _expect(self) -> None:
        """It is opened again when its time is over, or tried again and again."""
        ours = self._settings
        within = ours.watch_timeout + ours.request_timeout + ours.backoff_max
        self._progress.expect(f"watch {self.name}", within + _SLACK)
        self._stats.opening(self.name)

    def _opened(self) -> None:
        self._stats.opened(self.name)
        if self._logged is not None:
            self._log.info("watching again", watch=self.name)
            self._logged = None

    def _failed(self, error: MidwatchError) -> float:
        """Return the seconds until the next try. The same failure is logged once."""
        ours, asked = self._settings, 0.0
        if isinstance(error, ClusterUnavailable):
            asked = error.retry_after or 0.0
        if not isinstance(error, ClusterUnavailable) or error.status == 410:
            self._version = None
        wait = max(asked, ours.backoff * 2.0 ** min(self._failures, 20))
        wait = min(wait, ours.backoff_max, _LONGEST_PAUSE)
        self._failures += 1
        if error.message != self._logged:
            hint = _INSTALL if isinstance(error, ResourceGone) else error.hint
            self._log.warning(
                "cannot watch", watch=self.name, error=error.message, hint=hint
            )
            self._logged = error.message
        return wait
