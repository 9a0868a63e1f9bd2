"""Which workload an object belongs to: a ticket is about a Deployment, not about each of its pods.

The owner that controls an object (`ownerReferences`) is followed from a Pod by its ReplicaSet to the Deployment, and from a Job to
the CronJob. It ends at the first other kind, such as a StatefulSet or a custom resource.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from midwatch.cluster.errors import ClusterRefused, ResourceGone
from midwatch.errors import MidwatchError
from midwatch.subjects.kubernetes.cluster_watch import DEPLOYMENTS, JOBS, ClusterWatch
from midwatch.subjects.kubernetes.object_fields import Object, Pod, Ref, controller_of
from midwatch.text import component_name

if TYPE_CHECKING:  # it needs the extra `kubernetes`
    from midwatch.cluster.connection import Connection

_MOST_KNOWN = 20_000
_AT_ONCE = 8
_MOST_LOOKED_UP = 200
HASH_LABEL = "pod-template-hash"
_BETWEEN = {
    ("ReplicaSet", "apps"): "apis/apps/v1/namespaces/{0}/replicasets/{1}",
    ("ReplicationController", ""): "api/v1/namespaces/{0}/replicationcontrollers/{1}",
    ("Job", "batch"): "apis/batch/v1/namespaces/{0}/jobs/{1}",
}
"""Kinds between a pod and its workload, and their paths."""


def component(ref: Ref) -> str:
    """Return the component of a ticket about an object: NAMESPACE/KIND/NAME."""
    parts = (
        (ref.namespace, ref.kind, ref.name) if ref.namespace else (ref.kind, ref.name)
    )
    return component_name("/".join(parts))


class WorkloadFinder:
    """Finds the workloads of objects, and remembers the owners that it had to ask for.

    Args:
        connection: To the API server, for the owners that are not watched.
        watch: What is watched.
    """

    def __init__(self, connection: Connection, watch: ClusterWatch | None) -> None:
        self._connection = connection
        self._watch = watch
        self._owners: OrderedDict[str, Ref | None] = OrderedDict()

    def known(self, found: Object, kind: str) -> Ref | None:
        """Return the workload of an object without a request; None if that needs one."""
        own = Ref(kind, found.namespace, found.name, found.uid)
        labels = found.labels if isinstance(found, Pod) else {}
        return self._above(own, found.owner, labels)

    def known_of(self, ref: Ref) -> Ref | None:
        """Do the same for an object that is not watched itself."""
        between = (ref.kind, ref.group) in _BETWEEN
        if not between:
            return ref
        if ref.uid in self._owners:
            return self._above(ref, self._owners[ref.uid], {})
        return self._watched_job(ref)

    async def look_up(self, wanted: Iterable[Object | Ref]) -> dict[str, str]:
        """Ask for the owners that `known` lacks; return the reasons by uid for those that could not be read."""
        missing = {ref.uid: ref for one in wanted if (ref := self._missing(one))}
        failed: dict[str, str] = {}
        turns = asyncio.Semaphore(_AT_ONCE)

        async def ask(ref: Ref) -> None:
            async with turns:
                try:
                    self._remember(ref.uid, await self.owner_of(ref))
                except MidwatchError as error:
                    failed[ref.uid] = error.one_line()

        some = list(missing.values())[:_MOST_LOOKED_UP]
        await asyncio.gather(*map(ask, some))
        return failed

    async def owner_of(self, ref: Ref) -> Ref | None:
        """Return the controller of an object by a request; None if it has none, is gone, or must not be read."""
        path = _BETWEEN[ref.kind, ref.group].format(ref.namespace, ref.name)
        try:
            body = await self._connection.get(path, f"read the {ref.kind} {ref.name}")
        except ResourceGone:
            return None
        except ClusterRefused as error:
            if error.status != 403:
                raise
            return None
        return controller_of(body)

    async def workload_of(self, found: Ref) -> Ref:
        """Return the workload of an object by requests. Raises MidwatchError."""
        for _ in range(3):
            if (found.kind, found.group) not in _BETWEEN:
                break
            owner = await self.owner_of(found)
            if owner is None:
                break
            found = owner
        return found

    def _above(self, own: Ref, owner: Ref | None, labels: dict[str, str]) -> Ref | None:
        """Climb from an object to its workload; None if an owner between them is not known."""
        if owner is None or owner.kind == "Node":  # a static pod belongs to its node
            return own
        if (owner.kind, owner.group) not in _BETWEEN:
            return owner
        return self._deployment(owner, labels) or self.known_of(owner)

    def _deployment(self, owner: Ref, labels: dict[str, str]) -> Ref | None:
        """Return the Deployment that has named its ReplicaSet, which is the rule of its controller: NAME-HASH."""
        digest = labels.get(HASH_LABEL)
        if not digest or owner.kind != "ReplicaSet" or self._watch is None:
            return None
        name = owner.name.removesuffix(f"-{digest}")
        if name == owner.name:
            return None
        found = self._watch.get(DEPLOYMENTS, owner.namespace, name)
        if found is None:
            return None
        return Ref("Deployment", owner.namespace, found.name, found.uid, "apps")

    def _watched_job(self, ref: Ref) -> Ref | None:
        if ref.kind != "Job" or self._watch is None:
            return None
        job = self._watch.get(JOBS, ref.namespace, ref.name)
        return (job.owner or ref) if job is not None and job.uid == ref.uid else None

    def _missing(self, one: Object | Ref) -> Ref | None:
        """Return the owner that has to be asked for, if any."""
        if isinstance(one, Ref):
            return one if self.known_of(one) is None else None
        owner = one.owner
        if owner is None or self.known(one, "") is not None:
            return None
        return owner

    def _remember(self, uid: str, owner: Ref | None) -> None:
        self._owners[uid] = owner
        while len(self._owners) > _MOST_KNOWN:
            self._owners.popitem(last=False)
