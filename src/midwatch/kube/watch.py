"""Reflectors: lists and watches that keep the operator's index in step with the API server."""

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
from midwatch.lifecycle import Backoff, Clock, Liveness
from midwatch.logs import Log
from midwatch.model import Json
from midwatch.settings import OperatorSettings

RESOURCES: dict[str, Kind] = {PLURAL: "session", "jobs": "job", "pods": "pod"}
"""Watched kinds, by plural."""
RESYNC = 300.0
"""Seconds between two full lists, which find what a broken watch did not deliver."""
_MAX_PAUSE = 15.0
"""Longest wait in seconds between two attempts to watch."""
_SLACK = 60.0
"""Seconds beyond its own timeout after which a watch counts as stuck."""
_INSTALL_HINT = (
    "install the resource definition: midwatch kube crd | kubectl apply -f -"
)


@dataclass
class WatchStats:
    """How long each watch has been down: from the attempt to open it until the server accepts it."""

    clock: Clock
    _down: dict[str, float | None] = field(default_factory=dict)
    _ever_open: set[str] = field(default_factory=set)

    def opening(self, watch: str) -> None:
        """Record an attempt to open a watch, named `NAMESPACE/PLURAL`."""
        if self._down.get(watch) is None:
            self._down[watch] = self.clock.monotonic()

    def opened(self, watch: str) -> None:
        """Record that the server accepted a watch."""
        self._down[watch] = None
        self._ever_open.add(watch)

    def down(self) -> dict[str, float]:
        """Return the seconds that the worst watch of each resource has been down; 0 while all are open."""
        now, worst = self.clock.monotonic(), dict[str, float]()
        for watch, since in self._down.items():
            resource = watch.rpartition("/")[2]
            seconds = 0.0 if since is None else now - since
            worst[resource] = max(worst.get(resource, 0.0), seconds)
        return worst

    def watches(self) -> int:
        """Return the number of watches that were open at least once."""
        return len(self._ever_open)


class Reflector:
    """Keeps the index up to date on one resource, in one namespace or (None) in all.

    It lists, then watches from there. An interrupted watch resumes where it stopped. When the server has dropped
    that history (410), the next list finds deletions; a list also runs every `resync` seconds.

    Args:
        changed: Is called with the key of each session that may have changed.
        resync: Seconds between two lists.

    Attributes:
        listed: Is set once the first list is in the index.
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
        self._first_wait = min(1.0, settings.backoff)
        longest = min(settings.backoff_max, _MAX_PAUSE)
        self._max_wait = longest
        self._backoff = Backoff(settings.backoff, longest)
        self._logged: str | None = None

    async def run(self) -> None:
        """List and watch until cancelled."""
        while True:
            pause = self._first_wait
            try:
                await self._list_and_watch()
                self._backoff.reset()
            except MidwatchError as error:
                pause = self._failed(error)
            except (
                Exception
            ):  # the outermost guard: one bad object must not end the watch
                self._log.exception("a watch failed", watch=self.name)
                self._version, pause = None, _MAX_PAUSE
            await self._clock.sleep(pause)

    async def _list_and_watch(self) -> None:
        self._report_alive()
        if self._version is None or self._clock.monotonic() >= self._list_at:
            await self._list()
            self._report_alive()
        assert self._version is not None
        left = self._list_at - self._clock.monotonic()
        seconds = max(1, math.ceil(min(self._settings.watch_timeout, left)))
        # The server ends the watch in time unless it is down.
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
                    self._apply(type_, body)

    async def _list(self) -> None:
        before = self._index.snapshot_kind(self._kind, self._namespace)
        bodies, self._version = await self._cluster.list_for_watch(
            self._resource, self._namespace
        )
        self._list_at = self._clock.monotonic() + self._resync
        concerned = self._index.apply_list(before, {self._kind: bodies})
        self.listed.set()
        for key in concerned:
            self._changed(key)

    def _apply(self, type_: str, body: Json) -> None:
        self._backoff.reset()
        if type_ != "BOOKMARK":
            key = self._index.put(self._kind, body)
            if type_ == "DELETED":
                self._index.drop(key, self._kind, body["metadata"]["name"])
            self._changed(key)
        self._version = body["metadata"]["resourceVersion"]

    def _report_alive(self) -> None:
        """Report to the liveness probe, and until when the next report is due."""
        settings = self._settings
        within = (
            settings.watch_timeout + settings.request_timeout + settings.backoff_max
        )
        self._progress.expect(f"watch {self.name}", within + _SLACK)
        self._stats.opening(self.name)

    def _opened(self) -> None:
        self._stats.opened(self.name)
        if self._logged is not None:
            self._log.info("watching again", watch=self.name)
            self._logged = None

    def _failed(self, error: MidwatchError) -> float:
        """Return the seconds until the next attempt. A repeated failure is logged once."""
        retry_after = 0.0
        if isinstance(error, ClusterUnavailable):
            retry_after = error.retry_after or 0.0
        if not isinstance(error, ClusterUnavailable) or error.status == 410:
            self._version = None
        wait = min(max(retry_after, self._backoff.next()), self._max_wait)
        if error.message != self._logged:
            hint = _INSTALL_HINT if isinstance(error, ResourceGone) else error.hint
            self._log.warning(
                "cannot watch", watch=self.name, error=error.message, hint=hint
            )
            self._logged = error.message
        return wait
