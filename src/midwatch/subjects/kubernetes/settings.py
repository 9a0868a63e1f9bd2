"""The settings and invariants of the kind `kubernetes`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from midwatch.model import Invariant, Severity, Unit
from midwatch.setting_group import Seconds
from midwatch.settings import SubjectSettings
from midwatch.subjects.actionable import ActionSettings

_NAMESPACE = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
_WORKLOADS = Annotated[
    str,
    Field(
        max_length=400,
        pattern=r"^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?|\*)/(Deployment|StatefulSet|DaemonSet|\*)/[-a-z0-9.*]+$",
    ),
]


class KubernetesActionSettings(ActionSettings):
    """What Midwatch may do to workloads once a person has approved it; nothing by default."""

    allow: list[Literal["restart_workload", "roll_back_workload"]] = Field(
        default=[],
        description="The actions that a person may approve: restart_workload, roll_back_workload.",
    )
    workloads: list[_WORKLOADS] = Field(
        default=[],
        max_length=100,
        description="The workloads that it may change, as NAMESPACE/KIND/NAME such as shop/Deployment/*; no others. "
        "The namespace and the kind are given, or are `*`.",
    )
    kubeconfig: Path | None = Field(
        None,
        description="The kubeconfig of a user that may change them; null for the login of the subject, which in a pod is "
        "the service account of the process that approves. The role of the monitor only reads.",
    )
    context: str | None = Field(
        None, description="The context in that kubeconfig; null for the current one."
    )
    since_rollout: Seconds = Field(
        3600.0,
        gt=0,
        description="A roll-back is offered only for a violation that began within this time after the rollout.",
    )

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.allow and not self.workloads:
            raise ValueError("name the workloads to change: set actions.workloads")
        if self.context is not None and self.kubeconfig is None:
            raise ValueError("the context is one of actions.kubeconfig: set that too")
        return self

    def covers(self, name: str) -> bool:
        """Return whether a workload, as NAMESPACE/KIND/NAME, may be changed."""
        return any(
            re.fullmatch(re.escape(one).replace(r"\*", "[^/]*"), name)
            for one in self.workloads
        )


class KubernetesSettings(SubjectSettings):
    """The workloads of a Kubernetes cluster, by watches of its API server."""

    kind: str = "kubernetes"
    kubeconfig: Path | None = Field(
        None, description="The kubeconfig file; null for the pod's service account."
    )
    context: str | None = Field(
        None, description="The context in the kubeconfig; null for the current one."
    )
    namespaces: list[_NAMESPACE] = Field(
        default=[],
        max_length=50,
        description="Namespaces to watch, each with watches of its own; empty for all, with one watch of each kind.",
    )
    exclude_namespaces: list[_NAMESPACE] = Field(
        default=[],
        description="Namespaces that do not count where all are watched.",
    )
    selector: str = Field(
        "",
        max_length=500,
        pattern=r"^[^\n]*$",
        description="A label selector, such as team=shop: only what has these labels counts. Pods need them as well as their workload.",
    )
    cluster_objects: bool = Field(
        True,
        description="Whether nodes, webhook configurations and GatewayClasses are watched, which belong to no namespace: this needs a ClusterRole.",
    )
    ca_file: Path | None = Field(
        None,
        description="Certificate authorities to trust besides the system's, for the certificates of ingresses.",
    )
    settle: Seconds = Field(
        600.0,
        gt=0,
        description="How long a container must have run before its crash loop is over. Kubernetes forgets its back-off after 10 minutes.",
    )
    oom_window: Seconds = Field(
        3600.0, gt=0, description="How long after it an out-of-memory kill counts."
    )
    stale_after: Seconds = Field(
        60.0,
        gt=0,
        description="How long a watch may be lost before what it knows is unknown.",
    )
    actions: KubernetesActionSettings = Field(
        KubernetesActionSettings(),
        description="What Midwatch may do to its workloads once a person has approved it.",
    )

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if self.namespaces and self.exclude_namespaces:
            raise ValueError("give namespaces or exclude_namespaces, not both")
        return self

    @property
    def shown(self) -> str:
        """Where the cluster is, as evidence names it."""
        where = str(self.kubeconfig) if self.kubeconfig else "the cluster of this pod"
        return f"{where}, context {self.context}" if self.context else where


_ABOUT = ("namespace", "kind", "name")

CRASH_LOOP = Invariant(
    "crash_loop",
    "Containers do not crash again and again",
    "Restarts of a container whose last run was shorter than `settle`, and which waits for the next one or has not yet run that long.",
    unit=Unit.COUNT,
    limit=2,
    about=(*_ABOUT, "container"),
)
OOM_KILLED = Invariant(
    "oom_killed",
    "No container runs out of memory",
    "The kernel killed a container at its memory limit within `oom_window`.",
    about=(*_ABOUT, "container"),
)
IMAGE_PULL = Invariant(
    "image_pull",
    "Images can be pulled",
    "A container waits for an image that does not come: not found, refused, or with a name that is none.",
    hold_for=30,
    about=(*_ABOUT, "container"),
)
CONTAINER_CONFIG = Invariant(
    "container_config",
    "Containers can be created",
    "A container cannot be created: a ConfigMap, a Secret or a key of it is missing, or the runtime refuses it.",
    hold_for=30,
    about=(*_ABOUT, "container"),
)
UNSCHEDULABLE = Invariant(
    "unschedulable",
    "Pods find a node",
    "How long no node has taken a pod, with the scheduler's reasons. A pod behind a scheduling gate waits on purpose.",
    unit=Unit.SECONDS,
    limit=300,
    about=_ABOUT,
)
POD_PENDING = Invariant(
    "pod_pending",
    "Pods start on their node",
    "How long a pod has been on its node without having started: volumes, the network, or an init container hold it up.",
    unit=Unit.SECONDS,
    limit=600,
    about=_ABOUT,
)
PODS_UNREADY = Invariant(
    "pods_unready",
    "Running pods become ready",
    "How long a pod whose containers run has not been ready, its node being lost included. Not for pods of Jobs.",
    unit=Unit.SECONDS,
    limit=600,
    about=_ABOUT,
)
ROLLOUT_STUCK = Invariant(
    "rollout_stuck",
    "Rollouts end",
    "A Deployment has exceeded its progress deadline, or a StatefulSet or DaemonSet is updated in part and a pod of it has not been "
    "ready for 10 minutes.",
    about=_ABOUT,
)
POD_QUOTA = Invariant(
    "pod_quota",
    "Quotas admit the pods of workloads",
    "A controller cannot create pods, as a ResourceQuota is exceeded.",
    hold_for=30,
    about=_ABOUT,
)
POD_ADMISSION = Invariant(
    "pod_admission",
    "Webhooks and policies admit the pods of workloads",
    "A controller cannot create pods, as a webhook, Pod Security, a LimitRange or another check refuses them.",
    hold_for=30,
    about=_ABOUT,
)
WEBHOOK_ENDPOINTS = Invariant(
    "webhook_endpoints",
    "Services of admission webhooks have endpoints",
    "A webhook with the failure policy Fail refuses every request while no endpoint of its service is ready.",
    severity=Severity.CRITICAL,
    hold_for=60,
    about=("name",),
)
JOB_FAILED = Invariant(
    "job_failed",
    "Jobs end well",
    "A Job has failed, or of those of a CronJob or another owner the latest one that ended. It is over once a later one ends well, or it is deleted.",
    about=_ABOUT,
)
JOB_OVERDUE = Invariant(
    "job_overdue",
    "Jobs end in time",
    "How long a Job that is not suspended has been running.",
    unit=Unit.SECONDS,
    limit=12 * 3600,
    about=_ABOUT,
)
CRON_JOB_OVERDUE = Invariant(
    "cronjob_overdue",
    "CronJobs start on schedule",
    "How long ago a CronJob that is not suspended should have started a Job. Of one that forbids a second Job at a time, not while the first one runs.",
    unit=Unit.SECONDS,
    limit=300,
    about=_ABOUT,
)
CLAIM_UNBOUND = Invariant(
    "claim_unbound",
    "Volume claims are bound",
    "How long a claim has had no volume, or it has lost it. A claim whose storage class waits for the first consumer may wait while no pod uses it.",
    unit=Unit.SECONDS,
    limit=300,
    about=_ABOUT,
)
HPA_AT_MAXIMUM = Invariant(
    "hpa_at_maximum",
    "Autoscalers have room",
    "A HorizontalPodAutoscaler wants more pods than its maximum.",
    hold_for=900,
    about=_ABOUT,
)
HPA_METRICS = Invariant(
    "hpa_metrics",
    "Autoscalers have metrics",
    "A HorizontalPodAutoscaler cannot scale: it has no metrics, or cannot read its target.",
    hold_for=300,
    about=_ABOUT,
)
NODE_READY = Invariant(
    "node_ready",
    "Nodes are ready",
    "How long a node has not been ready. One that is cordoned, or about to be removed, is in maintenance.",
    severity=Severity.CRITICAL,
    unit=Unit.SECONDS,
    limit=120,
    about=("name",),
)
NODE_PRESSURE = Invariant(
    "node_pressure",
    "Nodes have memory, disk and process ids",
    "A node reports MemoryPressure, DiskPressure, PIDPressure or NetworkUnavailable: pods are evicted, or none are placed there.",
    hold_for=60,
    about=("name", "pressure"),
)
SERVICE_ENDPOINTS = Invariant(
    "service_endpoints",
    "Services have endpoints",
    "No endpoint of a service with a selector is ready. A service whose workload is scaled to zero may have none.",
    hold_for=120,
    about=_ABOUT,
)
INGRESS_BACKEND = Invariant(
    "ingress_backend",
    "Services of ingresses exist",
    "An Ingress names a service that does not exist.",
    hold_for=120,
    about=_ABOUT,
)
INGRESS_CERTIFICATE = Invariant(
    "ingress_certificate",
    "Certificates of ingresses are accepted, and none ends soon",
    "Seconds until the first certificate ends that a TLS host of an Ingress shows; critical once it has ended, or clients refuse it: "
    "it is not trusted, or for another name. A host that cannot be reached is unknown.",
    unit=Unit.SECONDS,
    limit=14 * 86400.0,
    above=False,
    about=(*_ABOUT, "host"),
)
DISRUPTION_BUDGET_BLOCKS = Invariant(
    "disruption_budget_blocks",
    "Disruption budgets let nodes be drained",
    "How long a PodDisruptionBudget with pods has allowed no disruption: no node with such a pod can be drained.",
    unit=Unit.SECONDS,
    limit=86400,
    about=_ABOUT,
)
DISRUPTION_BUDGET_UNUSED = Invariant(
    "disruption_budget_unused",
    "Disruption budgets protect something",
    "A PodDisruptionBudget selects no pod, and no workload makes pods that it would select.",
    severity=Severity.INFO,
    hold_for=3600,
    about=_ABOUT,
)
NETWORK_POLICY_UNUSED = Invariant(
    "network_policy_unused",
    "Network policies concern something",
    "A NetworkPolicy selects no pod, and no workload makes pods that it would select. One for all pods of its namespace may have none.",
    severity=Severity.INFO,
    hold_for=3600,
    about=_ABOUT,
)
GATEWAY_PROGRAMMED = Invariant(
    "gateway_programmed",
    "Gateways are accepted and programmed",
    "The controller of a Gateway has not accepted it, or has not programmed it: nothing listens for it.",
    hold_for=300,
    about=_ABOUT,
)
HTTP_ROUTE_ACCEPTED = Invariant(
    "http_route_accepted",
    "HTTPRoutes are accepted and lead somewhere",
    "No parent has accepted an HTTPRoute, a parent has not, or a service that it sends requests to does not exist or must not be used.",
    hold_for=300,
    about=_ABOUT,
)
GATEWAY_CLASS_ACCEPTED = Invariant(
    "gateway_class_accepted",
    "GatewayClasses have a controller",
    "No controller has accepted a GatewayClass.",
    hold_for=300,
    about=("name",),
)
INVARIANTS = (
    CRASH_LOOP,
    OOM_KILLED,
    IMAGE_PULL,
    CONTAINER_CONFIG,
    UNSCHEDULABLE,
    POD_PENDING,
    PODS_UNREADY,
    ROLLOUT_STUCK,
    POD_QUOTA,
    POD_ADMISSION,
    JOB_FAILED,
    JOB_OVERDUE,
    CRON_JOB_OVERDUE,
    CLAIM_UNBOUND,
    HPA_AT_MAXIMUM,
    HPA_METRICS,
    SERVICE_ENDPOINTS,
    INGRESS_BACKEND,
    INGRESS_CERTIFICATE,
    DISRUPTION_BUDGET_BLOCKS,
    DISRUPTION_BUDGET_UNUSED,
    NETWORK_POLICY_UNUSED,
    GATEWAY_PROGRAMMED,
    HTTP_ROUTE_ACCEPTED,
)
CLUSTER_INVARIANTS = (
    NODE_READY,
    NODE_PRESSURE,
    WEBHOOK_ENDPOINTS,
    GATEWAY_CLASS_ACCEPTED,
)
NEED_ALL_LABELS = (
    INGRESS_BACKEND,
    HTTP_ROUTE_ACCEPTED,
    DISRUPTION_BUDGET_UNUSED,
    NETWORK_POLICY_UNUSED,
)
"""Those that a `selector` leaves out: whether something exists at all is not seen then."""
