"""What is kept of each object of a cluster: the few fields that the checks need, as small values (pure).

The fields are those of the Kubernetes API reference (https://kubernetes.io/docs/reference/kubernetes-api/). A missing
or misshapen field is read as absent. Nothing of a Secret, of an environment or of a message that a workload wrote is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from sys import intern

from midwatch.model import Json

Labels = dict[str, str]
_LONGEST = 500
"""Characters kept of a message."""
SERVICE_LABEL = "kubernetes.io/service-name"


@dataclass(frozen=True, slots=True)
class Ref:
    """An object by its kind and name; `group` is that of its API, empty for the core."""

    kind: str
    namespace: str
    name: str
    uid: str = ""
    group: str = ""


@dataclass(slots=True)
class Object:
    """What is kept of every object. Times are seconds since 1970; 0 where there is none."""

    namespace: str
    name: str
    uid: str
    created: float
    owner: Ref | None
    deleting: bool

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.name


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition of a status: `status` is True, False or Unknown, `since` its last transition."""

    status: str
    reason: str
    message: str
    since: float


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a run of a container."""

    reason: str
    exit_code: int
    started: float
    finished: float


@dataclass(frozen=True, slots=True)
class Container:
    """A container's status: `since` is its start, or 0 while it does not run; `ended` is this end, or that of the run before."""

    name: str
    restarts: int
    waiting: str
    message: str
    since: float
    ended: Ended | None


@dataclass(slots=True)
class Pod(Object):
    node: str
    phase: str
    restarts_never: bool
    labels: Labels
    claims: tuple[str, ...]
    scheduled: Condition | None
    ready: bool
    ready_since: float
    containers: tuple[Container, ...]


@dataclass(slots=True)
class Workload(Object):
    """A Deployment, StatefulSet or DaemonSet. `observed` is whether its controller has seen its latest generation."""

    kind: str
    desired: int
    existing: int
    updated: int
    ready: int
    observed: bool
    labels: Labels
    """The labels of its pods."""
    images: str
    progressing: Condition | None = None
    failure: Condition | None = None


@dataclass(slots=True)
class Job(Object):
    suspended: bool
    active: int
    started: float
    failed: Condition | None
    completed: float


@dataclass(slots=True)
class CronJob(Object):
    schedule: str
    zone: str
    suspended: bool
    forbids: bool
    active: int
    last: float


@dataclass(slots=True)
class Claim(Object):
    phase: str
    storage_class: str
    size: str


@dataclass(slots=True)
class Autoscaler(Object):
    target: str
    most: int
    active: Condition | None
    able: Condition | None
    limited: Condition | None


@dataclass(slots=True)
class Node(Object):
    cordoned: bool
    leaving: bool
    ready: Condition | None
    pressure: dict[str, Condition]


@dataclass(slots=True)
class Service(Object):
    selector: Labels


@dataclass(slots=True)
class EndpointSlice(Object):
    service: str
    ready: int
    unready: int


@dataclass(slots=True)
class Ingress(Object):
    services: tuple[str, ...]


@dataclass(slots=True)
class Refusal(Object):
    """An event FailedCreate: a controller was not allowed to make a pod."""

    about: Ref
    message: str
    last: float


@dataclass(frozen=True, slots=True)
class Hook:
    name: str
    service: tuple[str, str]
    fails: bool


@dataclass(slots=True)
class Webhooks(Object):
    hooks: tuple[Hook, ...]


# ------------------------------------------------------------------ reading


def read_pod(body: Json) -> Pod:
    spec, status = _map(body, "spec"), _map(body, "status")
    conditions = _conditions(status)
    ready = conditions.get("Ready")
    labels = _labels(_map(body, "metadata").get("labels"))
    claims = tuple(
        claim
        for volume in _list(spec, "volumes")
        if (claim := _text(_map(volume, "persistentVolumeClaim"), "claimName"))
    )
    found = [
        _container(one)
        for group in ("initContainerStatuses", "containerStatuses")
        for one in _list(status, group)
    ]
    return Pod(
        *_object(body),
        node=intern(_text(spec, "nodeName")),
        phase=intern(_text(status, "phase")),
        restarts_never=spec.get("restartPolicy") == "Never",
        labels=labels,
        claims=claims,
        scheduled=_unless_true(conditions.get("PodScheduled")),
        ready=ready is not None and ready.status == "True",
        ready_since=ready.since if ready else 0.0,
        containers=tuple(found),
    )


def _unless_true(condition: Condition | None) -> Condition | None:
    """Return the condition; of one that is True only when that is."""
    if condition is None or condition.status != "True":
        return condition
    return Condition("True", "", "", condition.since)


def _container(body: Json) -> Container:
    state = _map(body, "state")
    waiting, running = _map(state, "waiting"), _map(state, "running")
    ended = _map(state, "terminated") or _map(_map(body, "lastState"), "terminated")
    return Container(
        name=intern(_text(body, "name")),
        restarts=_count(body, "restartCount"),
        waiting=intern(_text(waiting, "reason")),
        message=_text(waiting, "message")[:_LONGEST],
        since=_time(running, "startedAt"),
        ended=_ended(ended) if ended else None,
    )


def _ended(body: Json) -> Ended:
    return Ended(
        intern(_text(body, "reason")),
        _count(body, "exitCode"),
        _time(body, "startedAt"),
        _time(body, "finishedAt"),
    )


def read_deployment(body: Json) -> Workload:
    found = _workload(body, "Deployment", "replicas", "updatedReplicas")
    conditions = _conditions(_map(body, "status"))
    found.progressing = conditions.get("Progressing")
    failure = conditions.get("ReplicaFailure")
    found.failure = failure if failure and failure.status == "True" else None
    return found


def read_stateful_set(body: Json) -> Workload:
    found = _workload(body, "StatefulSet", "replicas", "updatedReplicas")
    status = _map(body, "status")
    if status.get("updateRevision") == status.get("currentRevision"):
        found.updated = max(found.updated, found.desired)
    strategy = _map(_map(body, "spec"), "updateStrategy")
    partition = _count(_map(strategy, "rollingUpdate"), "partition")
    if strategy.get("type") == "OnDelete" or partition:
        found.updated = found.desired  # the person decides when the rest follows
    return found


def read_daemon_set(body: Json) -> Workload:
    found = _workload(
        body, "DaemonSet", "currentNumberScheduled", "updatedNumberScheduled"
    )
    status = _map(body, "status")
    found.desired = _count(status, "desiredNumberScheduled")
    found.ready = _count(status, "numberReady")
    if _map(_map(body, "spec"), "updateStrategy").get("type") == "OnDelete":
        found.updated = found.desired
    return found


def _workload(body: Json, kind: str, existing: str, updated: str) -> Workload:
    spec, status, meta = (
        _map(body, "spec"),
        _map(body, "status"),
        _map(body, "metadata"),
    )
    template = _map(_map(spec, "template"), "metadata")
    return Workload(
        *_object(body),
        kind=kind,
        desired=_count(spec, "replicas", 1),
        existing=_count(status, existing),
        updated=_count(status, updated),
        ready=_count(status, "readyReplicas"),
        observed=_count(status, "observedGeneration") >= _count(meta, "generation"),
        labels=_labels(template.get("labels")),
        images=_images(_map(spec, "template")),
    )


def read_job(body: Json) -> Job:
    spec, status = _map(body, "spec"), _map(body, "status")
    conditions = _conditions(status)
    failed = conditions.get("Failed")
    complete = conditions.get("Complete")
    is_complete = complete is not None and complete.status == "True"
    return Job(
        *_object(body),
        suspended=spec.get("suspend") is True,
        active=_count(status, "active"),
        started=_time(status, "startTime"),
        failed=failed if failed and failed.status == "True" else None,
        completed=complete.since if complete and is_complete else 0.0,
    )


def read_cron_job(body: Json) -> CronJob:
    spec, status = _map(body, "spec"), _map(body, "status")
    return CronJob(
        *_object(body),
        schedule=_text(spec, "schedule"),
        zone=_text(spec, "timeZone"),
        suspended=spec.get("suspend") is True,
        forbids=spec.get("concurrencyPolicy") == "Forbid",
        active=len(_list(status, "active")),
        last=_time(status, "lastScheduleTime"),
    )


def read_claim(body: Json) -> Claim:
    spec = _map(body, "spec")
    requests = _map(_map(spec, "resources"), "requests")
    return Claim(
        *_object(body),
        phase=intern(_text(_map(body, "status"), "phase")),
        storage_class=intern(_text(spec, "storageClassName")),
        size=_text(requests, "storage"),
    )


def read_autoscaler(body: Json) -> Autoscaler:
    spec, status = _map(body, "spec"), _map(body, "status")
    conditions = _conditions(status)
    target = _map(spec, "scaleTargetRef")
    return Autoscaler(
        *_object(body),
        target=f"{_text(target, 'kind')}/{_text(target, 'name')}",
        most=_count(spec, "maxReplicas"),
        active=conditions.get("ScalingActive"),
        able=conditions.get("AbleToScale"),
        limited=conditions.get("ScalingLimited"),
    )


_LEAVING = {
    "ToBeDeletedByClusterAutoscaler",
    "DeletionCandidateOfClusterAutoscaler",
    "karpenter.sh/disrupted",
    "node.cloudprovider.kubernetes.io/shutdown",
}
"""Taints of a node that is about to be removed on purpose."""
PRESSURES = ("MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable")


def read_node(body: Json) -> Node:
    spec = _map(body, "spec")
    conditions = _conditions(_map(body, "status"))
    taints = {_text(one, "key") for one in _list(spec, "taints")}
    return Node(
        *_object(body),
        cordoned=spec.get("unschedulable") is True,
        leaving=bool(taints & _LEAVING),
        ready=conditions.get("Ready"),
        pressure={
            name: conditions[name]
            for name in PRESSURES
            if name in conditions and conditions[name].status == "True"
        },
    )


def read_service(body: Json) -> Service:
    spec = _map(body, "spec")
    external = spec.get("type") == "ExternalName"
    return Service(
        *_object(body), selector={} if external else _labels(spec.get("selector"))
    )


def read_endpoint_slice(body: Json) -> EndpointSlice:
    labels = _map(_map(body, "metadata"), "labels")
    endpoints = _list(body, "endpoints")
    # Without the condition an endpoint counts as ready (discovery.k8s.io/v1).
    ready = sum(_map(one, "conditions").get("ready") is not False for one in endpoints)
    return EndpointSlice(
        *_object(body),
        service=_text(labels, SERVICE_LABEL),
        ready=ready,
        unready=len(endpoints) - ready,
    )


def read_ingress(body: Json) -> Ingress:
    spec = _map(body, "spec")
    backends = [_map(spec, "defaultBackend")]
    for rule in _list(spec, "rules"):
        backends += [
            _map(path, "backend") for path in _list(_map(rule, "http"), "paths")
        ]
    names = [_text(_map(one, "service"), "name") for one in backends]
    return Ingress(*_object(body), services=tuple(dict.fromkeys(filter(None, names))))


def read_refusal(body: Json) -> Refusal:
    about = _map(body, "involvedObject")
    series = _map(body, "series")
    times = (
        _time(series, "lastObservedTime"),
        _time(body, "lastTimestamp"),
        _time(body, "eventTime"),
    )
    found = _object(body)
    return Refusal(
        *found,
        about=Ref(
            intern(_text(about, "kind")),
            intern(_text(about, "namespace") or found[0]),
            intern(_text(about, "name")),
            _text(about, "uid"),
            _group(_text(about, "apiVersion")),
        ),
        message=_text(body, "message")[:_LONGEST],
        last=max(times) or found[3],
    )


def read_webhooks(body: Json) -> Webhooks:
    hooks = []
    for one in _list(body, "webhooks"):
        service = _map(_map(one, "clientConfig"), "service")
        if service:
            place = _text(service, "namespace"), _text(service, "name")
            fails = one.get("failurePolicy", "Fail") == "Fail"
            hooks.append(Hook(_text(one, "name"), place, fails))
    return Webhooks(*_object(body), hooks=tuple(hooks))


# ------------------------------------------------------------------ parts


def controller_of(body: Json) -> Ref | None:
    """Return the owner that controls an object; None without one."""
    meta = _map(body, "metadata")
    for one in _list(meta, "ownerReferences"):
        if one.get("controller") is True:
            return Ref(
                intern(_text(one, "kind")),
                intern(_text(meta, "namespace")),
                intern(_text(one, "name")),
                intern(_text(one, "uid")),
                intern(_group(_text(one, "apiVersion"))),
            )
    return None


def _object(body: Json) -> tuple[str, str, str, float, Ref | None, bool]:
    meta = _map(body, "metadata")
    return (
        intern(_text(meta, "namespace")),
        _text(meta, "name"),
        _text(meta, "uid"),
        _time(meta, "creationTimestamp"),
        controller_of(body),
        "deletionTimestamp" in meta,
    )


def _conditions(status: Json) -> dict[str, Condition]:
    return {
        _text(one, "type"): Condition(
            intern(_text(one, "status")),
            intern(_text(one, "reason")),
            _text(one, "message")[:_LONGEST],
            _time(one, "lastTransitionTime"),
        )
        for one in _list(status, "conditions")
    }


def _labels(found: object) -> Labels:
    if not isinstance(found, dict):
        return {}
    return {
        intern(key): intern(value)
        for key, value in found.items()
        if isinstance(value, str)
    }


def _images(template: Json) -> str:
    """Return the images of a pod template, by container."""
    containers = _list(_map(template, "spec"), "containers")
    named = (f"{_text(one, 'name')} {_text(one, 'image')}" for one in containers)
    return intern(", ".join(named)[:_LONGEST])


def _group(version: str) -> str:
    return version.rpartition("/")[0]


def _map(body: Json, key: str) -> Json:
    found = body.get(key)
    return found if isinstance(found, dict) else {}


def _list(body: Json, key: str) -> list[Json]:
    found = body.get(key)
    if not isinstance(found, list):
        return []
    return [one for one in found if isinstance(one, dict)]


def _text(body: Json, key: str) -> str:
    found = body.get(key)
    return found if isinstance(found, str) else ""


def _count(body: Json, key: str, otherwise: int = 0) -> int:
    found = body.get(key)
    return found if isinstance(found, int) else otherwise


def _time(body: Json, key: str) -> float:
    found = body.get(key)
    if not isinstance(found, str):
        return 0.0
    try:
        return datetime.fromisoformat(found).timestamp()
    except ValueError:
        return 0.0
