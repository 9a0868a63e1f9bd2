"""Read single objects, lists, logs and events for evidence and tools. Secrets are not among what can be read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from midwatch.cluster.errors import ClusterRefused, ResourceGone
from midwatch.model import Json
from midwatch.subjects.kubernetes.cluster_watch import METADATA

if TYPE_CHECKING:  # it needs the extra `kubernetes`
    from midwatch.cluster.connection import Connection

READABLE: Mapping[str, tuple[str, str]] = {
    "Pod": ("api/v1", "pods"),
    "Deployment": ("apis/apps/v1", "deployments"),
    "ReplicaSet": ("apis/apps/v1", "replicasets"),
    "StatefulSet": ("apis/apps/v1", "statefulsets"),
    "DaemonSet": ("apis/apps/v1", "daemonsets"),
    "ControllerRevision": ("apis/apps/v1", "controllerrevisions"),
    "Job": ("apis/batch/v1", "jobs"),
    "CronJob": ("apis/batch/v1", "cronjobs"),
    "PersistentVolumeClaim": ("api/v1", "persistentvolumeclaims"),
    "HorizontalPodAutoscaler": ("apis/autoscaling/v2", "horizontalpodautoscalers"),
    "Service": ("api/v1", "services"),
    "EndpointSlice": ("apis/discovery.k8s.io/v1", "endpointslices"),
    "Ingress": ("apis/networking.k8s.io/v1", "ingresses"),
    "NetworkPolicy": ("apis/networking.k8s.io/v1", "networkpolicies"),
    "PodDisruptionBudget": ("apis/policy/v1", "poddisruptionbudgets"),
    "Gateway": ("apis/gateway.networking.k8s.io/v1", "gateways"),
    "HTTPRoute": ("apis/gateway.networking.k8s.io/v1", "httproutes"),
    "GatewayClass": ("apis/gateway.networking.k8s.io/v1", "gatewayclasses"),
    "ResourceQuota": ("api/v1", "resourcequotas"),
    "ConfigMap": ("api/v1", "configmaps"),
    "Event": ("api/v1", "events"),
    "Node": ("api/v1", "nodes"),
    "StorageClass": ("apis/storage.k8s.io/v1", "storageclasses"),
    "ValidatingWebhookConfiguration": (
        "apis/admissionregistration.k8s.io/v1",
        "validatingwebhookconfigurations",
    ),
    "MutatingWebhookConfiguration": (
        "apis/admissionregistration.k8s.io/v1",
        "mutatingwebhookconfigurations",
    ),
}
OF_CLUSTER = (
    "Node",
    "GatewayClass",
    "StorageClass",
    "ValidatingWebhookConfiguration",
    "MutatingWebhookConfiguration",
)
"""Kinds without a namespace."""
_LOG_BYTES = 200_000


class ClusterReader:
    """Reads one cluster.

    Args:
        connection: Returns the connection. May raise ObservationFailed.
    """

    def __init__(self, connection: Callable[[], Connection]) -> None:
        self._connection = connection

    @property
    def server(self) -> str:
        return self._connection().server

    async def get(self, kind: str, namespace: str, name: str) -> Json:
        """Return an object. Raises MidwatchError."""
        path = f"{path_of(kind, namespace)}/{checked(name)}"
        return await self._connection().get(path, f"read the {kind} {name}")

    async def find(self, kind: str, namespace: str, name: str) -> Json | None:
        """Return an object; None if it does not exist."""
        try:
            return await self.get(kind, namespace, name)
        except ResourceGone:
            return None

    async def version(self, kind: str, namespace: str, name: str) -> str | None:
        """Return the resource version of an object, of which nothing but metadata is sent; None if it does not exist."""
        path = f"{path_of(kind, namespace)}/{checked(name)}"
        doing = f"read the metadata of the {kind} {name}"
        try:
            found = await self._connection().get(path, doing, accept=METADATA)
        except ResourceGone:
            return None
        return str((found.get("metadata") or {}).get("resourceVersion"))

    async def list_objects(
        self, kind: str, namespace: str, most: int = 200, **selectors: str
    ) -> list[Json]:
        """Return the objects of a namespace, `most` of them; `selectors` are labelSelector and fieldSelector."""
        found: list[Json] = []
        pages = self._connection().pages(
            path_of(kind, namespace), f"list {kind}s", selectors, min(most, 200)
        )
        async for page in pages:
            found += page.get("items") or ()
            if len(found) >= most:
                break
        await pages.aclose()
        return found[:most]

    async def log(
        self,
        namespace: str,
        pod: str,
        container: str,
        *,
        previous: bool = False,
        lines: int = 200,
    ) -> str:
        """Return the last lines of a container's log, or of its run before."""
        asked = {
            "container": container,
            "tailLines": str(lines),
            "limitBytes": str(_LOG_BYTES),
            "timestamps": "true",
        }
        if previous:
            asked["previous"] = "true"
        path = f"{path_of('Pod', namespace)}/{checked(pod)}/log"
        doing = f"read the log of {container} in {pod}"
        found = await self._connection().text(path, doing, asked)
        return found.decode("utf-8", "replace")

    async def events(self, namespace: str, names: Sequence[str]) -> list[Json]:
        """Return the events about objects with these names."""
        found: list[Json] = []
        for name in names:
            asked = {"fieldSelector": f"involvedObject.name={name}"}
            found += await self.list_objects("Event", namespace, 100, **asked)
        return found

    async def usage(self, namespace: str, pod: str) -> Json | None:
        """Return what a pod uses, as the metrics API says; None where that is not served or does not know it."""
        path = f"apis/metrics.k8s.io/v1beta1/namespaces/{checked(namespace)}/pods/{checked(pod)}"
        try:
            return await self._connection().get(path, f"read the use of {pod}")
        except ResourceGone:
            return None


_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


def checked(name: str) -> str:
    """Return a name that may become part of a path. Raises ClusterRefused for anything else."""
    if not _NAME.fullmatch(name):
        raise ClusterRefused(f"{name[:60]!r} is not a Kubernetes name")
    return name


def path_of(kind: str, namespace: str) -> str:
    """Return the path of the objects of a kind in a namespace."""
    root, plural = READABLE[kind]
    within = "" if kind in OF_CLUSTER else f"namespaces/{checked(namespace)}/"
    return f"{root}/{within}{plural}"


def label_selector(selector: object) -> str:
    """Return a LabelSelector of an object's spec as the text of a query; empty if it selects nothing or cannot be read."""
    if not isinstance(selector, dict):
        return ""
    parts = [
        f"{key}={value}" for key, value in (selector.get("matchLabels") or {}).items()
    ]
    for one in selector.get("matchExpressions") or ():
        values = ",".join(one.get("values") or ())
        operator = {
            "In": f"{one.get('key')} in ({values})",
            "NotIn": f"{one.get('key')} notin ({values})",
            "Exists": str(one.get("key")),
            "DoesNotExist": f"!{one.get('key')}",
        }
        parts.append(operator.get(str(one.get("operator")), ""))
    return ",".join(filter(None, parts))
