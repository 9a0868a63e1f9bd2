"""What the operator knows of the cluster: few fields of each Job and pod, and the resources that live."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from midwatch.kube.observed import (
    JobView,
    ObservedState,
    PodView,
    later,
    read_job,
    read_pod,
    seen_of,
)
from midwatch.kube.status import phase_of
from midwatch.lifecycle import Clock, Liveness, SystemClock
from midwatch.model import Json
from midwatch.session.events import Phase

T = TypeVar("T", JobView, PodView)
Key = tuple[str, str]
"""Namespace and name of a session."""
Kind = Literal["session", "job", "pod"]
Versions = dict[Key, dict[tuple[Kind, str], str]]
"""Resource versions of a session's objects, by kind and name."""


@dataclass
class Known:
    """Of one session. `body` is its resource; None: not seen, or over and done with."""

    body: Json | None = None
    jobs: dict[str, JobView] = field(default_factory=dict)
    pods: dict[str, PodView] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.body is not None or bool(self.jobs or self.pods)

    def versions(self, kind: Kind | None = None) -> dict[tuple[Kind, str], str]:
        """By kind and name; of one kind, or of all."""
        found: dict[tuple[Kind, str], str] = {}
        found |= {("job", name): job.version for name, job in self.jobs.items()}
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

    def seen(self, *, fresh: bool, current: bool) -> ObservedState | None:
        if self.body is None:
            return None
        jobs, pods = self.jobs.values(), self.pods.values()
        return seen_of(self.body, jobs, pods, fresh=fresh, current=current)


class Index:
    """By session. Events may come late and in any order: an older state never replaces a newer one."""

    def __init__(self) -> None:
        self._known: dict[Key, Known] = {}

    def __len__(self) -> int:
        return sum(known.body is not None for known in self._known.values())

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._known))

    def phases(self) -> Counter[Phase]:
        """How many sessions are in each."""
        bodies = [known.body for known in self._known.values()]
        return Counter(phase_of(body) for body in bodies if body is not None)

    def get(self, key: Key) -> Known | None:
        return self._known.get(key)

    def put_session(self, body: Json) -> Key:
        key, known = self._at(*_name(body))
        if known.body is None or _newer(known.body, body):
            known.body = _slim(body)
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

    def put(self, kind: Kind, body: Json) -> Key:
        """The session that it belongs to."""
        match kind:
            case "session":
                return self.put_session(body)
            case "job":
                return self.put_job(body)
            case "pod":
                return self.put_pod(body)

    def drop(self, key: Key, kind: Kind, name: str = "") -> None:
        """It is gone; a session also when it needs nothing any more."""
        if known := self._known.get(key):
            known.drop(kind, name)
        self._tidy(key)

    def before(self, key: Key) -> Versions:
        """What is known now of one session's objects; to give to `after`."""
        known = self.get(key)
        return {key: known.versions()} if known else {}

    def before_list(self, kind: Kind, namespace: str | None) -> Versions:
        """What is known now of all objects of a kind, in one namespace or in all; to give to `after`."""
        return {
            key: versions
            for key, known in self._known.items()
            if namespace in (None, key[0]) and (versions := known.versions(kind))
        }

    def after(self, before: Versions, read: Mapping[Kind, Iterable[Json]]) -> set[Key]:
        """All of this was read since `before`: what was known then and is not among it is gone.

        What watches told meanwhile is newer than what was read, and stays. Return the sessions of both.
        """
        there: set[tuple[Kind, Key, str]] = set()
        for kind, bodies in read.items():
            there |= {
                (kind, self.put(kind, body), _item(kind, body)) for body in bodies
            }
        for key, versions in before.items():
            known = self._known.get(key) or Known()
            now = known.versions()
            for (kind, name), version in versions.items():
                if (kind, key, name) not in there and now.get((kind, name)) == version:
                    known.drop(kind, name)
            self._tidy(key)
        return {key for _, key, _ in there} | set(before)

    def _at(self, namespace: str, name: str) -> tuple[Key, Known]:
        key = (namespace, name)
        return key, self._known.setdefault(key, Known())

    def _tidy(self, key: Key) -> None:
        if not self._known.get(key):
            self._known.pop(key, None)


def _put(known: dict[str, T], one: T) -> None:
    had = known.get(one.name)
    if had is None or later(had.version, one.version):
        known[one.name] = one


def _item(kind: Kind, body: Json) -> str:
    """What tells an object from others of its kind and session."""
    return "" if kind == "session" else _name(body)[1]


def _name(body: Json) -> Key:
    meta = body["metadata"]
    return meta.get("namespace") or "default", meta["name"]


def _newer(old: Json, new: Json) -> bool:
    before, after = old["metadata"], new["metadata"]
    if before.get("uid") != after.get("uid"):
        return True
    return later(
        str(before.get("resourceVersion", "")), str(after.get("resourceVersion", ""))
    )


def _slim(body: Json) -> Json:
    """Without what nobody reads: who wrote which field is as long as the rest."""
    meta = {k: v for k, v in body["metadata"].items() if k != "managedFields"}
    return {**body, "metadata": meta}


# ------------------------------------------------------------ queue
# Names of sessions that something happened to: each is worked on by one worker at a time, and again if
# something happened meanwhile.

_LOOP = "queue"


class Queue:
    """`backoff` is the first wait after a failure, in seconds; it doubles up to `longest`.

    While a session waits, one has to be taken within `stuck_after` seconds of the one before.
    """

    def __init__(
        self,
        backoff: float,
        longest: float,
        chance: random.Random | None = None,
        *,
        clock: Clock | None = None,
        progress: Liveness | None = None,
        stuck_after: float = 300.0,
    ) -> None:
        self._backoff, self._longest = backoff, longest
        self._chance = chance or random.Random()
        self._clock = clock or SystemClock()
        self._progress = progress or Liveness(self._clock)
        self._stuck_after = stuck_after
        self._ready: deque[tuple[Key, float]] = deque()
        self._waiting: set[Key] = set()
        self._at_work: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._something = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ready)

    def working(self) -> int:
        """Sessions that are worked on now."""
        return len(self._at_work)

    def oldest(self) -> float:
        """Seconds that the first in the queue has waited; 0 if there is none."""
        return self._clock.monotonic() - self._ready[0][1] if self._ready else 0.0

    def add(self, key: Key) -> None:
        """Work on it, as soon as nobody does."""
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()
        if key in self._waiting:
            return
        self._waiting.add(key)
        if key not in self._at_work:
            self._push(key)

    def later(self, key: Key, seconds: float) -> None:
        """Work on it after so long, if nothing happens to it before."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= due:
            return
        if timer is not None:
            timer.cancel()
        self._timers[key] = loop.call_at(due, self._due, key)

    def failed(self, key: Key, at_least: float = 0.0) -> float:
        """It did not work: try again later, each time later. The seconds until then."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        wait = min(self._backoff * 2.0 ** min(failures, 20), self._longest)
        wait = max(at_least, wait * self._chance.uniform(0.7, 1.0))
        self.later(key, wait)
        return wait

    def failures(self, key: Key) -> int:
        """In a row, up to now."""
        return self._failures.get(key, 0)

    def worked(self, key: Key) -> None:
        self._failures.pop(key, None)

    async def take(self) -> Key:
        """The next one. Call `done` with it afterwards."""
        while not self._ready:
            self._something.clear()
            await self._something.wait()
        key, _ = self._ready.popleft()
        if self._ready:
            self._progress.expect(_LOOP, self._stuck_after)
        else:
            self._progress.expect_nothing(_LOOP)
        self._waiting.discard(key)
        self._at_work.add(key)
        return key

    def done(self, key: Key) -> None:
        self._at_work.discard(key)
        if key in self._waiting:
            self._push(key)

    def close(self) -> None:
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
        self._something.set()
