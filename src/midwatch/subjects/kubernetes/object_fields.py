"""What is kept of each object of a cluster: the few fields that the checks need, as small values (pure).

The fields are those of the Kubernetes API reference (https://kubernetes.io/docs/reference/kubernetes-api/). A missing
or misshapen field is read as absent. Nothing of a Secret, of an environment or of a message that a workload wrote is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from sys import intern

from midwatch.model import Json

Labels = dict[str, str]
LONGEST = 500
"""Characters kept of a message."""
REVISION = "deployment.kubernetes.io/revision"
_TEMPLATE_GENERATION = "deprecated.daemonset.template.generation"
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


@dataclass(frozen=True, slots=True)
class Changed:
    """The last write of a part of an object, by its `managedFields`: seconds since 1970 (0: not known), and the program."""

    at: float
    by: str


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
    revision: str
    """What its controller calls its latest pod template; empty while it has not seen it."""
    changed: Changed
    """When its pod template was written last."""
    config_maps: tuple[str, ...]
    """Those that its pods use."""
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
    labels: Labels
    """The labels of its pods."""


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
class ConfigMap(Object):
    """A ConfigMap, of which only metadata is requested."""

    version: str
    changed: Changed


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
    spec, status = map_of(body, "spec"), map_of(body, "status")
    conditions = conditions_of(status)
    ready = conditions.get("Ready")
    labels = labels_of(map_of(body, "metadata").get("labels"))
    claims = tuple(
        claim
        for volume in maps_of(spec, "volumes")
        if (claim := text_of(map_of(volume, "persistentVolumeClaim"), "claimName"))
    )
    found = [
        _container(one)
        for group in ("initContainerStatuses", "containerStatuses")
        for one in maps_of(status, group)
    ]
    return Pod(
        *head_of(body),
        node=intern(text_of(spec, "nodeName")),
        phase=intern(text_of(status, "phase")),
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
    state = map_of(body, "state")
    waiting, running = map_of(state, "waiting"), map_of(state, "running")
    ended = map_of(state, "terminated") or map_of(
        map_of(body, "lastState"), "terminated"
    )
    return Container(
        name=intern(text_of(body, "name")),
        restarts=count_of(body, "restartCount"),
        waiting=intern(text_of(waiting, "reason")),
        message=text_of(waiting, "message")[:LONGEST],
        since=time_of(running, "startedAt"),
        ended=_ended(ended) if ended else None,
    )


def _ended(body: Json) -> Ended:
    return Ended(
        intern(text_of(body, "reason")),
        count_of(body, "exitCode"),
        time_of(body, "startedAt"),
        time_of(body, "finishedAt"),
    )


def read_deployment(body: Json) -> Workload:
    found = _workload(body, "Deployment", "replicas", "updatedReplicas")
    found.revision = _annotation(body, REVISION)
    conditions = conditions_of(map_of(body, "status"))
    found.progressing = conditions.get("Progressing")
    failure = conditions.get("ReplicaFailure")
    found.failure = failure if failure and failure.status == "True" else None
    return found


def read_stateful_set(body: Json) -> Workload:
    found = _workload(body, "StatefulSet", "replicas", "updatedReplicas")
    status = map_of(body, "status")
    found.revision = text_of(status, "updateRevision")
    if status.get("updateRevision") == status.get("currentRevision"):
        found.updated = max(found.updated, found.desired)
    strategy = map_of(map_of(body, "spec"), "updateStrategy")
    partition = count_of(map_of(strategy, "rollingUpdate"), "partition")
    if strategy.get("type") == "OnDelete" or partition:
        found.updated = found.desired  # the person decides when the rest follows
    return found


def read_daemon_set(body: Json) -> Workload:
    found = _workload(
        body, "DaemonSet", "currentNumberScheduled", "updatedNumberScheduled"
    )
    status = map_of(body, "status")
    found.desired = count_of(status, "desiredNumberScheduled")
    found.ready = count_of(status, "numberReady")
    if found.observed:
        found.revision = _annotation(body, _TEMPLATE_GENERATION)
    if map_of(map_of(body, "spec"), "updateStrategy").get("type") == "OnDelete":
        found.updated = found.desired
    return found


def _workload(body: Json, kind: str, existing: str, updated: str) -> Workload:
    spec, status, meta = (
        map_of(body, "spec"),
        map_of(body, "status"),
        map_of(body, "metadata"),
    )
    template = map_of(map_of(spec, "template"), "metadata")
    return Workload(
        *head_of(body),
        kind=kind,
        desired=count_of(spec, "replicas", 1),
        existing=count_of(status, existing),
        updated=count_of(status, updated),
        ready=count_of(status, "readyReplicas"),
        observed=count_of(status, "observedGeneration") >= count_of(meta, "generation"),
        labels=labels_of(template.get("labels")),
        images=images_of(map_of(spec, "template")),
        revision="",
        changed=changed(meta, ("f:spec", "f:template")),
        config_maps=_config_maps(map_of(map_of(spec, "template"), "spec")),
    )


def _annotation(body: Json, name: str) -> str:
    return text_of(map_of(map_of(body, "metadata"), "annotations"), name)


def _config_maps(pod: Json) -> tuple[str, ...]:
    names = [name for kind, name in named_in(pod) if kind == "ConfigMap"]
    return tuple(map(intern, dict.fromkeys(names)))


def read_job(body: Json) -> Job:
    spec, status = map_of(body, "spec"), map_of(body, "status")
    conditions = conditions_of(status)
    failed = conditions.get("Failed")
    complete = conditions.get("Complete")
    is_complete = complete is not None and complete.status == "True"
    return Job(
        *head_of(body),
        suspended=spec.get("suspend") is True,
        active=count_of(status, "active"),
        started=time_of(status, "startTime"),
        failed=failed if failed and failed.status == "True" else None,
        completed=complete.since if complete and is_complete else 0.0,
    )


def read_cron_job(body: Json) -> CronJob:
    spec, status = map_of(body, "spec"), map_of(body, "status")
    template = map_of(map_of(map_of(spec, "jobTemplate"), "spec"), "template")
    return CronJob(
        *head_of(body),
        schedule=text_of(spec, "schedule"),
        zone=text_of(spec, "timeZone"),
        suspended=spec.get("suspend") is True,
        forbids=spec.get("concurrencyPolicy") == "Forbid",
        active=len(maps_of(status, "active")),
        last=time_of(status, "lastScheduleTime"),
        labels=labels_of(map_of(template, "metadata").get("labels")),
    )


def read_claim(body: Json) -> Claim:
    spec = map_of(body, "spec")
    requests = map_of(map_of(spec, "resources"), "requests")
    return Claim(
        *head_of(body),
        phase=intern(text_of(map_of(body, "status"), "phase")),
        storage_class=intern(text_of(spec, "storageClassName")),
        size=text_of(requests, "storage"),
    )


def read_autoscaler(body: Json) -> Autoscaler:
    spec, status = map_of(body, "spec"), map_of(body, "status")
    conditions = conditions_of(status)
    target = map_of(spec, "scaleTargetRef")
    return Autoscaler(
        *head_of(body),
        target=f"{text_of(target, 'kind')}/{text_of(target, 'name')}",
        most=count_of(spec, "maxReplicas"),
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
    spec = map_of(body, "spec")
    conditions = conditions_of(map_of(body, "status"))
    taints = {text_of(one, "key") for one in maps_of(spec, "taints")}
    return Node(
        *head_of(body),
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
    spec = map_of(body, "spec")
    external = spec.get("type") == "ExternalName"
    return Service(
        *head_of(body), selector={} if external else labels_of(spec.get("selector"))
    )


def read_endpoint_slice(body: Json) -> EndpointSlice:
    labels = map_of(map_of(body, "metadata"), "labels")
    endpoints = maps_of(body, "endpoints")
    # Without the condition an endpoint counts as ready (discovery.k8s.io/v1).
    ready = sum(
        map_of(one, "conditions").get("ready") is not False for one in endpoints
    )
    return EndpointSlice(
        *head_of(body),
        service=text_of(labels, SERVICE_LABEL),
        ready=ready,
        unready=len(endpoints) - ready,
    )


def read_config_map(body: Json) -> ConfigMap:
    meta = map_of(body, "metadata")
    written = changed(meta, ("f:data",), ("f:binaryData",))
    version = text_of(meta, "resourceVersion")
    return ConfigMap(*head_of(body), version=version, changed=written)


def read_refusal(body: Json) -> Refusal:
    about = map_of(body, "involvedObject")
    series = map_of(body, "series")
    times = (
        time_of(series, "lastObservedTime"),
        time_of(body, "lastTimestamp"),
        time_of(body, "eventTime"),
    )
    found = head_of(body)
    return Refusal(
        *found,
        about=Ref(
            intern(text_of(about, "kind")),
            intern(text_of(about, "namespace") or found[0]),
            intern(text_of(about, "name")),
            text_of(about, "uid"),
            _group(text_of(about, "apiVersion")),
        ),
        message=text_of(body, "message")[:LONGEST],
        last=max(times) or found[3],
    )


def read_webhooks(body: Json) -> Webhooks:
    hooks = []
    for one in maps_of(body, "webhooks"):
        service = map_of(map_of(one, "clientConfig"), "service")
        if service:
            place = text_of(service, "namespace"), text_of(service, "name")
            fails = one.get("failurePolicy", "Fail") == "Fail"
            hooks.append(Hook(text_of(one, "name"), place, fails))
    return Webhooks(*head_of(body), hooks=tuple(hooks))


# ------------------------------------------------------------------ parts


def controller_of(body: Json) -> Ref | None:
    """Return the owner that controls an object; None without one."""
    meta = map_of(body, "metadata")
    for one in maps_of(meta, "ownerReferences"):
        if one.get("controller") is True:
            return Ref(
                intern(text_of(one, "kind")),
                intern(text_of(meta, "namespace")),
                intern(text_of(one, "name")),
                intern(text_of(one, "uid")),
                intern(_group(text_of(one, "apiVersion"))),
            )
    return None


def head_of(body: Json) -> tuple[str, str, str, float, Ref | None, bool]:
    meta = map_of(body, "metadata")
    return (
        intern(text_of(meta, "namespace")),
        text_of(meta, "name"),
        text_of(meta, "uid"),
        time_of(meta, "creationTimestamp"),
        controller_of(body),
        "deletionTimestamp" in meta,
    )


def conditions_of(status: Json) -> dict[str, Condition]:
    return {
        text_of(one, "type"): Condition(
            intern(text_of(one, "status")),
            intern(text_of(one, "reason")),
            text_of(one, "message")[:LONGEST],
            time_of(one, "lastTransitionTime"),
        )
        for one in maps_of(status, "conditions")
    }


def labels_of(found: object) -> Labels:
    if not isinstance(found, dict):
        return {}
    return {
        intern(key): intern(value)
        for key, value in found.items()
        if isinstance(value, str)
    }


def changed(meta: Json, *paths: tuple[str, ...]) -> Changed:
    """Return who wrote one of the fields at `paths` last, and when; `meta` is an object's metadata.

    An entry of `managedFields` has the time of its program's last write of any of its fields.
    """
    found = Changed(0.0, "")
    for entry in maps_of(meta, "managedFields"):
        for path in paths:
            fields = map_of(entry, "fieldsV1")
            for name in path[:-1]:
                fields = map_of(fields, name)
            at = time_of(entry, "time")
            if path[-1] in fields and at > found.at:
                found = Changed(at, intern(text_of(entry, "manager")))
    return found


def named_in(pod: Json) -> Iterator[tuple[str, str]]:
    """Yield kind and name of the claims, ConfigMaps and Secrets that the spec of a pod refers to."""
    for volume in maps_of(pod, "volumes"):
        yield from _named(
            volume,
            ("persistentVolumeClaim", "PersistentVolumeClaim", "claimName"),
            ("configMap", "ConfigMap", "name"),
            ("secret", "Secret", "secretName"),
        )
        for part in maps_of(map_of(volume, "projected"), "sources"):
            yield from _named(
                part, ("configMap", "ConfigMap", "name"), ("secret", "Secret", "name")
            )
    for one in (*maps_of(pod, "initContainers"), *maps_of(pod, "containers")):
        for source in maps_of(one, "envFrom"):
            yield from _named(
                source,
                ("configMapRef", "ConfigMap", "name"),
                ("secretRef", "Secret", "name"),
            )
        for variable in maps_of(one, "env"):
            yield from _named(
                map_of(variable, "valueFrom"),
                ("configMapKeyRef", "ConfigMap", "name"),
                ("secretKeyRef", "Secret", "name"),
            )


def _named(body: Json, *fields: tuple[str, str, str]) -> Iterator[tuple[str, str]]:
    for key, kind, field in fields:
        if name := text_of(map_of(body, key), field):
            yield kind, name


def images_of(template: Json) -> str:
    """Return the images of a pod template, by container."""
    containers = maps_of(map_of(template, "spec"), "containers")
    named = (f"{text_of(one, 'name')} {text_of(one, 'image')}" for one in containers)
    return intern(", ".join(named)[:LONGEST])


def _group(version: str) -> str:
    return version.rpartition("/")[0]


def map_of(body: Json, key: str) -> Json:
    found = body.get(key)
    return found if isinstance(found, dict) else {}


def maps_of(body: Json, key: str) -> list[Json]:
    found = body.get(key)
    if not isinstance(found, list):
        return []
    return [one for one in found if isinstance(one, dict)]


def text_of(body: Json, key: str) -> str:
    found = body.get(key)
    return found if isinstance(found, str) else ""


def count_of(body: Json, key: str, otherwise: int = 0) -> int:
    found = body.get(key)
    return found if isinstance(found, int) else otherwise


def time_of(body: Json, key: str) -> float:
    found = body.get(key)
    if not isinstance(found, str):
        return 0.0
    try:
        return datetime.fromisoformat(found).timestamp()
    except ValueError:
        return 0.0
