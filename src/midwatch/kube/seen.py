"""Everything a plan is made from: a resource, its Jobs and its pods, at one moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from midwatch.kube.errors import SpecRefused
from midwatch.kube.names import FINALIZER
from midwatch.kube.observed import SeenJob, SeenPod
from midwatch.kube.resource import SessionResource, Spec, read_resource, resource_with
from midwatch.kube.rules import MAX_SECONDS
from midwatch.kube.statuses import phase_of
from midwatch.model import Json
from midwatch.session.events import Phase


@dataclass(frozen=True)
class Seen:
    """`fresh`: read for this plan, not taken from what the watches told. `refused`: the spec cannot be
    read; `resource` has a harmless one in its place, so that a Job that runs is still followed.
    """

    resource: SessionResource
    held: bool
    deleted_at: datetime | None = None
    refused: SpecRefused | None = None
    jobs: tuple[SeenJob, ...] = ()
    pods: tuple[SeenPod, ...] = ()
    fresh: bool = False
    current: bool = False

    @property
    def status(self) -> Json:
        return self.resource.status

    @property
    def phase(self) -> Phase:
        return phase_of({"status": self.status})

    @cached_property
    def attempt(self) -> int:
        """The latest; 0 before the first. A Job is made before the status tells of it."""
        told = self.status.get("attempt")
        attempts = [job.attempt for job in self.jobs]
        return max([told if isinstance(told, int) else 0, *attempts])

    @property
    def job(self) -> SeenJob | None:
        """The Job of the latest attempt."""
        return next((job for job in self.jobs if job.attempt == self.attempt), None)

    @property
    def current_pods(self) -> tuple[SeenPod, ...]:
        return tuple(pod for pod in self.pods if pod.attempt == self.attempt)

    @property
    def live_pods(self) -> tuple[SeenPod, ...]:
        return tuple(pod for pod in self.pods if not pod.over)

    def time(self, name: str) -> datetime | None:
        """A time in the status."""
        text = self.status.get(name)
        return datetime.fromisoformat(text) if isinstance(text, str) and text else None

    def since(self, type_: str, reason: str) -> datetime | None:
        """Since when the resource has a condition with this reason; None if it has not."""
        for one in self.status.get("conditions") or ():
            if (one.get("type"), one.get("reason")) == (type_, reason):
                return datetime.fromisoformat(one["lastTransitionTime"])
        return None

    def told(self, type_: str, status: str, reason: str, message: str) -> bool:
        """Whether the resource has this very condition."""
        return any(
            (one.get("type"), one.get("status"), one.get("reason"), one.get("message"))
            == (type_, status, reason, message)
            for one in self.status.get("conditions") or ()
        )


def seen_of(
    body: Mapping[str, Any],
    jobs: Iterable[SeenJob] = (),
    pods: Iterable[SeenPod] = (),
    *,
    fresh: bool = False,
    current: bool = False,
) -> Seen:
    """What is seen of a resource. Jobs and pods of another resource of its name are left out."""
    meta = body.get("metadata") or {}
    refused: SpecRefused | None = None
    try:
        resource = read_resource(body)
    except SpecRefused as error:
        refused, resource = error, _unread(body)
    deleted = meta.get("deletionTimestamp")
    return Seen(
        resource=resource,
        held=FINALIZER in (meta.get("finalizers") or ()),
        deleted_at=datetime.fromisoformat(deleted) if deleted else None,
        refused=refused,
        jobs=tuple(job for job in jobs if job.uid == resource.uid),
        pods=tuple(pod for pod in pods if pod.uid == resource.uid),
        fresh=fresh,
        current=fresh or current,
    )


def _unread(body: Mapping[str, Any]) -> SessionResource:
    """A resource whose spec is refused, with as much of it as is needed to follow and to stop it."""
    stop = (body.get("spec") or {}).get("stop") is True
    # No limit, as its limits cannot be read.
    spec = Spec.model_construct(
        repos=(), timeout=MAX_SECONDS, idle_timeout=MAX_SECONDS, stop=stop
    )
    return resource_with(spec, body)
