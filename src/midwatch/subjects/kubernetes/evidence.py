"""Evidence from a cluster, read when a ticket is diagnosed: nothing of it comes from the watches, so an agent anywhere can read it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

from midwatch.errors import MidwatchError
from midwatch.model import Json, Origin, Ticket
from midwatch.subjects.base import EvidenceSource
from midwatch.subjects.kubernetes import settings as the
from midwatch.subjects.kubernetes.cluster_reader import (
    READABLE,
    ClusterReader,
    label_selector,
)
from midwatch.subjects.kubernetes.describe import (
    describe,
    event_lines,
    pod_lines,
)
from midwatch.subjects.kubernetes.object_fields import Ref, controller_of
from midwatch.subjects.kubernetes.related import related_lines, usage_lines
from midwatch.subjects.kubernetes.rollouts import CONTROLLERS, history
from midwatch.subjects.kubernetes.workloads import component

_JOB_LABEL = "batch.kubernetes.io/job-name"
_MOST_TICKETS = 4
_MOST_PODS = 12
_MOST_NODES = 40
_CRASHED = {the.CRASH_LOOP.id, the.OOM_KILLED.id}
_PLACED = {the.UNSCHEDULABLE.id, the.NODE_READY.id, the.NODE_PRESSURE.id}
Fetch = Callable[[], Awaitable[str]]


class EvidenceReader:
    """The evidence about some tickets of one cluster.

    Args:
        reader: Reads the cluster.
        tickets: What is broken; of the first few of them there is evidence.
        timeout: Seconds for each source.
    """

    def __init__(
        self, reader: ClusterReader, tickets: Sequence[Ticket], timeout: float
    ) -> None:
        self._reader = reader
        self._timeout = timeout
        self._tickets = [one for one in tickets if ref_of(one) is not None]

    def sources(self, server: str) -> list[EvidenceSource]:
        """Return the sources; `server` is where they come from."""
        found: dict[tuple[str, str], EvidenceSource] = {}
        for ticket in self._tickets[:_MOST_TICKETS]:
            ref = ref_of(ticket)
            assert ref is not None
            for one in self._about(ref, ticket, server):
                found.setdefault((one.title, one.source), one)
        if not self._tickets or any(
            one.key.invariant in _PLACED for one in self._tickets
        ):
            one = self._source("Nodes", server, self._nodes, 25)
            found.setdefault((one.title, one.source), one)
        return list(found.values())

    def _about(self, ref: Ref, ticket: Ticket, server: str) -> Iterable[EvidenceSource]:
        name = component(ref)
        pod = str(ticket.facts.get("pod") or "")
        container = str(ticket.facts.get("container") or "")
        job = str(ticket.facts.get("job") or "")
        if ref.kind in READABLE:
            describing = partial(self._describe, ref)
            yield self._source(f"Status of {name}", server, describing, 20)
        if ref.namespace:
            yield self._source(
                f"Pods of {name}", server, partial(self._pods, ref, pod, job), 8
            )
            yield self._source(
                f"Events about {name}", server, partial(self._events, ref, pod, job), 10
            )
        if ref.kind in CONTROLLERS:
            rollout = partial(history, self._reader, ref)
            yield self._source(f"Rollout history of {name}", server, rollout, 12)
        if pod and container:
            for previous in (True, False):
                yield self._log(ref, pod, container, ticket, server, previous)
            using = partial(usage_lines, self._reader, ref.namespace, pod)
            yield self._source(f"Resource use of {pod}", server, using, 22)
        elif job:
            yield EvidenceSource(
                f"Log of the last pod of {job}, the run before",
                server,
                partial(self._job_log, ref.namespace, job),
                6,
                self._timeout,
                origin=Origin.REPORTED,
                log=True,
            )
        if pod:
            beside = partial(related_lines, self._reader, ref.namespace, pod)
            yield self._source(f"Objects that {pod} uses", server, beside, 18)
        if ticket.key.invariant == the.POD_QUOTA.id:
            quotas = partial(self._quotas, ref.namespace)
            yield self._source(f"Quotas of {ref.namespace}", server, quotas, 9)

    def _source(
        self, title: str, server: str, fetch: Fetch, rank: int
    ) -> EvidenceSource:
        return EvidenceSource(title, server, fetch, rank, self._timeout)

    def _log(
        self,
        ref: Ref,
        pod: str,
        container: str,
        ticket: Ticket,
        server: str,
        previous: bool,
    ) -> EvidenceSource:
        crashed = ticket.key.invariant in _CRASHED
        run = "the run before" if previous else "this run"

        async def read() -> str:
            found = await self._reader.log(
                ref.namespace, pod, container, previous=previous
            )
            return found or "(it has written nothing)"

        return EvidenceSource(
            f"Log of {container} in {pod}, {run}",
            server,
            read,
            6 if crashed and previous else 14,
            self._timeout,
            origin=Origin.REPORTED,
            log=True,
        )

    # ------------------------------------------------------------------ what they read

    async def _describe(self, ref: Ref) -> str:
        found = await self._reader.find(ref.kind, ref.namespace, ref.name)
        if found is None:
            return f"{component(ref)} does not exist any more"
        return describe(found, ref.kind)

    async def _job_log(self, namespace: str, job: str) -> str:
        pods = await self._reader.list_objects(
            "Pod", namespace, 50, labelSelector=f"{_JOB_LABEL}={job}"
        )
        if not pods:
            return "(there is no pod of it any more)"
        last = max(pods, key=lambda one: str(one["metadata"].get("creationTimestamp")))
        container = last["spec"]["containers"][0]["name"]
        name = last["metadata"]["name"]
        text = await self._reader.log(namespace, name, container)
        return text or "(it has written nothing)"

    async def _pods(self, ref: Ref, pod: str, job: str) -> str:
        found = await self._pods_of(ref, pod, job)
        lines = [line for one in found[:_MOST_PODS] for line in pod_lines(one)]
        if len(found) > _MOST_PODS:
            lines.append(f"… and {len(found) - _MOST_PODS} more pods")
        return "\n".join(lines) or "there is no pod of it"

    async def _pods_of(self, ref: Ref, pod: str, job: str) -> list[Json]:
        """Return the pods of a workload, that of the ticket first, then those that are not ready."""
        found: list[Json] = []
        if ref.kind == "Pod":
            one = await self._reader.find("Pod", ref.namespace, ref.name)
            return [one] if one else []
        selector = f"{_JOB_LABEL}={job}" if job else await self._selector(ref)
        if selector:
            asked = {"labelSelector": selector}
            found = await self._reader.list_objects("Pod", ref.namespace, 200, **asked)
        if pod and all(one["metadata"]["name"] != pod for one in found):
            one = await self._reader.find("Pod", ref.namespace, pod)
            found += [one] if one else []
        return sorted(found, key=lambda one: _urgency(one, pod))

    async def _selector(self, ref: Ref) -> str:
        if ref.kind == "Service":
            body = await self._reader.find(ref.kind, ref.namespace, ref.name) or {}
            chosen = (body.get("spec") or {}).get("selector") or {}
            return label_selector({"matchLabels": chosen})
        if ref.kind in CONTROLLERS or ref.kind in ("ReplicaSet", "Job"):
            body = await self._reader.find(ref.kind, ref.namespace, ref.name) or {}
            return label_selector((body.get("spec") or {}).get("selector"))
        return ""

    async def _events(self, ref: Ref, pod: str, job: str) -> str:
        names = [ref.name, *([job] if job else [])]
        try:
            for one in (await self._pods_of(ref, pod, job))[:3]:
                names.append(one["metadata"]["name"])
                owner = controller_of(one)
                if owner is not None and owner.kind != "Node":
                    names.append(owner.name)
        except MidwatchError:
            names += [pod] if pod else []
        found = await self._reader.events(ref.namespace, list(dict.fromkeys(names)))
        return event_lines(found) or "there is no event (they are kept for an hour)"

    async def _quotas(self, namespace: str) -> str:
        lines = []
        for quota in await self._reader.list_objects("ResourceQuota", namespace):
            status = quota.get("status") or {}
            used = status.get("used") or {}
            lines += [
                f"quota {quota['metadata']['name']}: {name}: {used.get(name, '0')} of {hard} used"
                for name, hard in (status.get("hard") or {}).items()
            ]
        return "\n".join(lines) or "there is no quota"

    async def _nodes(self) -> str:
        found = await self._reader.list_objects("Node", "")
        lines = [_node_line(one) for one in found[:_MOST_NODES]]
        if len(found) > _MOST_NODES:
            lines.append(f"… and {len(found) - _MOST_NODES} more nodes")
        return "\n".join(lines) or "there is no node"


def ref_of(ticket: Ticket) -> Ref | None:
    """Return the object that a ticket is about; None if it does not say."""
    kind, name = ticket.facts.get("kind"), ticket.facts.get("name")
    namespace = ticket.facts.get("namespace") or ""
    if isinstance(kind, str) and isinstance(name, str) and isinstance(namespace, str):
        return Ref(kind, namespace, name)
    return None


def _urgency(pod: Json, first: str) -> tuple[bool, bool, str]:
    meta, status = pod["metadata"], pod.get("status") or {}
    ready = any(
        one.get("type") == "Ready" and one.get("status") == "True"
        for one in status.get("conditions") or ()
    )
    return meta["name"] != first, ready, meta["name"]


def _node_line(node: Json) -> str:
    spec, status = node.get("spec") or {}, node.get("status") or {}
    said = [
        f"{one.get('type')}={one.get('status')}"
        for one in status.get("conditions") or ()
        if (one.get("status") == "True") != (one.get("type") == "Ready")
    ]
    free = status.get("allocatable") or {}
    taints = [
        f"{one.get('key')}={one.get('value', '')}:{one.get('effect')}"
        for one in spec.get("taints") or ()
    ]
    cordoned = ", cordoned" if spec.get("unschedulable") else ""
    return (
        f"node {node['metadata']['name']}: {', '.join(said) or 'Ready'}{cordoned}, allocatable cpu {free.get('cpu')}, "
        f"memory {free.get('memory')}, pods {free.get('pods')}, taints {', '.join(taints) or 'none'}"
    )
