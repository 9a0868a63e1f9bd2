"""The operator's cache (`Index`), the reflectors that fill it, and its work queue (`Queue`).

The index holds the resources of live sessions and a few fields of each of their Jobs and pods. The queue holds the
names of sessions to reconcile: one worker at a time handles a session, and again if it changed meanwhile.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from midwatch.cluster.reflector import RESYNC, Reflector, WatchStats, WatchTimes
from midwatch.kube.client import Cluster
from midwatch.kube.observed import (
    JobView,
    ObservedState,
    PodView,
    is_not_older,
    observe,
    read_job,
    read_pod,
)
from midwatch.kube.rules import PLURAL
from midwatch.kube.status import phase_of
from midwatch.kube.views import EventWords
from midwatch.lifecycle import Backoff, Clock, Liveness, SystemClock
from midwatch.logs import Log
from midwatch.model import Json
from midwatch.session.events import Phase
from midwatch.settings import OperatorSettings

T = TypeVar("T", JobView, PodView)
Key = tuple[str, str]
"""Namespace and name of a session."""
Kind = Literal["session", "job", "pod"]
Versions = dict[Key, dict[tuple[Kind, str], str]]
"""Resource versions of a session's objects, by kind and name."""


@dataclass
class SessionObjects:
    """The objects of one session.

    Attributes:
        body: The session's resource; None if it was not observed yet, or if its session needs no more work.
        jobs: Its Jobs, by name.
        pods: Its pods, by name.
        words: What the events of one of its objects reported when they were last read.
    """

    body: Json | None = None
    jobs: dict[str, JobView] = field(default_factory=dict)
    pods: dict[str, PodView] = field(default_factory=dict)
    words: EventWords | None = None

    def __bool__(self) -> bool:
        return self.body is not None or bool(self.jobs or self.pods)

    def versions(self, kind: Kind | None = None) -> dict[tuple[Kind, str], str]:
        """Return resource versions by kind and name, of one kind or of all."""
        found: dict[tuple[Kind, str], str] = {
            ("job", name): job.version for name, job in self.jobs.items()
        }
        found |= {("pod", name): pod.version for name, pod in self.pods.items()}
        if self.body is not None:
            version = self.body["metadata"].get("resourceVersion")
            found["session", ""] = str(version)
        return {one: found[one] for one in found if kind in (None, one[0])}

    def drop(self, kind: Kind, name: str) -> None:
        match kind:
            case "session":
                self.body = None
            case "job":
                self.jobs.pop(name, None)
            case "pod":
                self.pods.pop(name, None)

    def observe(self, *, fresh: bool, current: bool) -> ObservedState | None:
        """Return the state to plan from; None without a resource."""
        if self.body is None:
            return None
        jobs, pods = self.jobs.values(), self.pods.values()
        return observe(
            self.body, jobs, pods, fresh=fresh, current=current, words=self.words
        )


class Index:
    """Objects by session. Events may arrive late and in any order: an older version never replaces a newer one."""

    def __init__(self) -> None:
        self._known: dict[Key, SessionObjects] = {}

    def __len__(self) -> int:
        return sum(known.body is not None for known in self._known.values())

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._known))

    def phases(self) -> Counter[Phase]:
        """Return the number of sessions by phase."""
        bodies = [known.body for known in self._known.values()]
        return Counter(phase_of(body) for body in bodies if body is not None)

    def get(self, key: Key) -> SessionObjects | None:
        return self._known.get(key)

    def put_session(self, body: Json) -> Key:
        key, known = self._at(*_name(body))
        if known.body is None or _newer(known.body, body):
            known.body = _without_managed_fields(body)
        return key

    def put_job(self, body: Json) -> Key:
        job = read_job(body)
        key, known = self._at(job.namespace, job.session)
        _put(known.jobs, job)
        return key

    def put_pod(self, body: Json) -> Key:
        pod = read_pod(body)
        key, known = self._at(pod.namespace, pod.session)
        _put(known.pods, pod)
        return key

    def put_words(self, key: Key, words: EventWords) -> None:
        """Store what the events reported, if the session is known."""
        if known := self._known.get(key):
            known.words = words

    def put(self, kind: Kind, body: Json) -> Key:
        """Store an object and return the key of its session."""
        match kind:
            case "session":
                return self.put_session(body)
            case "job":
                return self.put_job(body)
            case "pod":
                return self.put_pod(body)

    def drop(self, key: Key, kind: Kind, name: str = "") -> None:
        """Remove an object that was deleted, or the resource of a session that needs no more work."""
        if known := self._known.get(key):
            known.drop(kind, name)
        self._drop_if_empty(key)

    def snapshot(self, key: Key) -> Versions:
        """Return the versions of one session's objects, for `apply_list`."""
        known = self.get(key)
        return {key: known.versions()} if known else {}

    def snapshot_kind(self, kind: Kind, namespace: str | None) -> Versions:
        """Return the versions of all objects of a kind, in one namespace or in all, for `apply_list`."""
        return {
            key: versions
            for key, known in self._known.items()
            if namespace in (None, key[0]) and (versions := known.versions(kind))
        }

    def apply_list(
        self, before: Versions, read: Mapping[Kind, Iterable[Json]]
    ) -> set[Key]:
        """Store a complete read, and drop the objects of `before` that it lacks.

        An object that a watch delivered since `before` is newer than the read, and stays.

        Args:
            before: The snapshot taken before the read.
            read: All objects, by kind.

        Returns:
            The keys of all sessions in the snapshot or in the read.
        """
        present: set[tuple[Kind, Key, str]] = set()
        for kind, bodies in read.items():
            present |= {
                (kind, self.put(kind, body), _object_name(kind, body))
                for body in bodies
            }
        for key, versions in before.items():
            known = self._known.get(key) or SessionObjects()
            now = known.versions()
            for (kind, name), version in versions.items():
                if (kind, key, name) not in present and now.get(
                    (kind, name)
                ) == version:
                    known.drop(kind, name)
            self._drop_if_empty(key)
        return {key for _, key, _ in present} | set(before)

    def _at(self, namespace: str, name: str) -> tuple[Key, SessionObjects]:
        key = (namespace, name)
        return key, self._known.setdefault(key, SessionObjects())

    def _drop_if_empty(self, key: Key) -> None:
        if not self._known.get(key):
            self._known.pop(key, None)


def _put(known: dict[str, T], one: T) -> None:
    had = known.get(one.name)
    if had is None or is_not_older(had.version, one.version):
        known[one.name] = one


def _object_name(kind: Kind, body: Json) -> str:
    """Return the key of an object among those of its kind and session."""
    return "" if kind == "session" else _name(body)[1]


def _name(body: Json) -> Key:
    meta = body["metadata"]
    return meta.get("namespace") or "default", meta["name"]


def _newer(old: Json, new: Json) -> bool:
    before, after = old["metadata"], new["metadata"]
    if before.get("uid") != after.get("uid"):
        return True
    return is_not_older(
        str(before.get("resourceVersion", "")), str(after.get("resourceVersion", ""))
    )


def _without_managed_fields(body: Json) -> Json:
    """Return the body without `managedFields`, which are unused and as long as the rest."""
    meta = {k: v for k, v in body["metadata"].items() if k != "managedFields"}
    return {**body, "metadata": meta}


_LOOP = "queue"


class Queue:
    """A work queue of session keys, with the semantics of client-go's rate-limited workqueue.

    Args:
        backoff: Seconds to wait after the first failure of a session; the wait doubles with each failure.
        longest: The longest such wait, in seconds.
        rng: Source of jitter.
        progress: Learns whether workers still take sessions.
        stuck_after: Seconds within which a worker must take the next session while one is ready.
    """

    def __init__(
        self,
        backoff: float,
        longest: float,
        rng: random.Random | None = None,
        *,
        clock: Clock | None = None,
        progress: Liveness | None = None,
        stuck_after: float = 300.0,
    ) -> None:
        self._backoff, self._longest = backoff, longest
        self._random = rng or random.Random()
        self._clock = clock or SystemClock()
        self._progress = progress or Liveness(self._clock)
        self._stuck_after = stuck_after
        self._ready: deque[tuple[Key, float]] = deque()
        self._waiting: set[Key] = set()
        self._in_progress: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures = Counter[Key]()
        self._backoffs: dict[Key, Backoff] = {}
        self._not_empty = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ready)

    def in_progress(self) -> int:
        """Return the number of sessions that workers are handling."""
        return len(self._in_progress)

    def oldest(self) -> float:
        """Return the seconds that the first session in the queue has waited; 0 if the queue is empty."""
        return self._clock.monotonic() - self._ready[0][1] if self._ready else 0.0

    def add(self, key: Key) -> None:
        """Queue a session, or queue it again after the worker that is handling it."""
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()
        if key in self._waiting:
            return
        self._waiting.add(key)
        if key not in self._in_progress:
            self._push(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Queue a session after `seconds`, unless it is queued earlier."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= due:
            return
        if timer is not None:
            timer.cancel()
        self._timers[key] = loop.call_at(due, self._due, key)

    def add_around(self, key: Key, seconds: float) -> None:
        """Queue a session after `seconds` or up to a tenth later, 5 seconds at most.

        Two operators that wait for the same moment then rarely act at once: the second one sees what the first one did.
        """
        self.add_after(key, seconds + self._random.uniform(0, min(5.0, seconds / 10)))

    def retry(self, key: Key, at_least: float = 0.0) -> float:
        """Queue a session again after a back-off, and return the seconds until then (at least `at_least`)."""
        self._failures[key] += 1
        if key not in self._backoffs:
            self._backoffs[key] = Backoff(self._backoff, self._longest)
        wait = self._backoffs[key].next() * self._random.uniform(0.7, 1.0)
        wait = max(at_least, wait)
        self.add_after(key, wait)
        return wait

    def failures(self, key: Key) -> int:
        """Return the number of failures of a session since its last success."""
        return self._failures[key]

    def forget(self, key: Key) -> None:
        """Reset a session's failures and back-off, after a success."""
        self._failures.pop(key, None)
        self._backoffs.pop(key, None)

    async def take(self) -> Key:
        """Wait for the next session and return its key. Call `done` with it afterwards."""
        while not self._ready:
            self._not_empty.clear()
            await self._not_empty.wait()
        key, _ = self._ready.popleft()
        if self._ready:
            self._progress.expect(_LOOP, self._stuck_after)
        else:
            self._progress.expect_nothing(_LOOP)
        self._waiting.discard(key)
        self._in_progress.add(key)
        return key

    def done(self, key: Key) -> None:
        """Record that a worker has finished with a session."""
        self._in_progress.discard(key)
        if key in self._waiting:
            self._push(key)

    def close(self) -> None:
        """Cancel all timers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _due(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)

    def _push(self, key: Key) -> None:
        if not self._ready:
            self._progress.expect(_LOOP, self._stuck_after)
        self._ready.append((key, self._clock.monotonic()))
        self._not_empty.set()


# ------------------------------------------------------------------ lists and watches

RESOURCES: dict[str, Kind] = {PLURAL: "session", "jobs": "job", "pods": "pod"}
"""Watched kinds, by plural."""
_MAX_PAUSE = 15.0
"""Longest wait in seconds between two attempts to watch."""
_INSTALL_HINT = (
    "install the resource definition: midwatch kube crd | kubectl apply -f -"
)


class SessionResource:
    """One resource of the operator, in one namespace or (None) in all, as a `Reflector` follows it.

    Args:
        changed: Is called with the key of each session that may have changed.
    """

    def __init__(
        self,
        cluster: Cluster,
        resource: str,
        namespace: str | None,
        index: Index,
        changed: Callable[[Key], None],
    ) -> None:
        self._cluster = cluster
        self._resource, self._namespace = resource, namespace
        self._kind = RESOURCES[resource]
        self._index = index
        self._changed = changed

    async def read_list(self) -> str:
        before = self._index.snapshot_kind(self._kind, self._namespace)
        bodies, version = await self._cluster.list_for_watch(
            self._resource, self._namespace
        )
        concerned = self._index.apply_list(before, {self._kind: bodies})
        for key in concerned:
            self._changed(key)
        return version

    def watch(
        self, version: str, *, seconds: int, silence: float
    ) -> AbstractAsyncContextManager[AsyncIterator[tuple[str, Json]]]:
        return self._cluster.watch(
            self._resource, self._namespace, version, seconds=seconds, silence=silence
        )

    def apply(self, type_: str, body: Json) -> None:
        key = self._index.put(self._kind, body)
        if type_ == "DELETED":
            self._index.drop(key, self._kind, body["metadata"]["name"])
        self._changed(key)


def session_reflector(
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
) -> Reflector:
    """Return what keeps the index up to date on one resource, in one namespace or (None) in all."""
    return Reflector(
        SessionResource(cluster, resource, namespace, index, changed),
        f"{namespace or '*'}/{resource}",
        WatchTimes(
            settings.backoff,
            min(settings.backoff_max, _MAX_PAUSE),
            settings.request_timeout,
            settings.watch_timeout,
            settings.watch_silence,
            resync,
        ),
        stats=stats,
        progress=progress,
        clock=clock,
        log=log,
        missing_hint=_INSTALL_HINT,
    )
