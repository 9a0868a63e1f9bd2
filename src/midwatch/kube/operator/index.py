"""What the operator knows of the cluster: few fields of each Job and pod, and the resources that live."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from midwatch.kube.observed import SeenJob, SeenPod, later, read_job, read_pod
from midwatch.kube.seen import Seen, seen_of
from midwatch.kube.statuses import phase_of
from midwatch.model import Json
from midwatch.session.events import Phase

T = TypeVar("T", SeenJob, SeenPod)
Key = tuple[str, str]
"""Namespace and name of a session."""
Kind = Literal["session", "job", "pod"]
Versions = dict[Key, dict[tuple[Kind, str], str]]
"""Resource versions of a session's objects, by kind and name."""


@dataclass
class Known:
    """Of one session. `body` is its resource; None: not seen, or over and done with."""

    body: Json | None = None
    jobs: dict[str, SeenJob] = field(default_factory=dict)
    pods: dict[str, SeenPod] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.body is not None or bool(self.jobs or self.pods)

    def versions(self) -> dict[tuple[Kind, str], str]:
        """By kind and name."""
        found: dict[tuple[Kind, str], str] = {}
        found |= {("job", name): job.version for name, job in self.jobs.items()}
        found |= {("pod", name): pod.version for name, pod in self.pods.items()}
        if self.body is not None:
            version = self.body["metadata"].get("resourceVersion")
            found["session", ""] = str(version)
        return found

    def drop(self, kind: Kind, name: str) -> None:
        match kind:
            case "session":
                self.body = None
            case "job":
                self.jobs.pop(name, None)
            case "pod":
                self.pods.pop(name, None)

    def seen(self, *, fresh: bool, current: bool) -> Seen | None:
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

    def drop(self, key: Key, kind: Kind, name: str = "") -> None:
        """It is gone; a session also when it needs nothing any more."""
        if known := self._known.get(key):
            known.drop(kind, name)
        self._tidy(key)

    def before(self, key: Key | None = None) -> Versions:
        """What is known now of one session's objects, or of everything; to give to `after`."""
        keys = list(self._known) if key is None else [key]
        return {one: known.versions() for one in keys if (known := self.get(one))}

    def after(
        self,
        before: Versions,
        sessions: Iterable[Json],
        jobs: Iterable[Json],
        pods: Iterable[Json],
    ) -> None:
        """All of this was read since `before`: what was known then and is not among it is gone.

        What watches told meanwhile is newer than what was read, and stays.
        """
        there: set[tuple[Kind, Key, str]] = set()
        there |= {("session", self.put_session(body), "") for body in sessions}
        there |= {("job", self.put_job(body), _name(body)[1]) for body in jobs}
        there |= {("pod", self.put_pod(body), _name(body)[1]) for body in pods}
        for key, versions in before.items():
            known = self._known.get(key) or Known()
            now = known.versions()
            for (kind, name), version in versions.items():
                if (kind, key, name) not in there and now.get((kind, name)) == version:
                    known.drop(kind, name)
            self._tidy(key)

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
