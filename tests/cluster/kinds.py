"""The kinds that the server knows, and how they are discovered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from midwatch.model import Json

VERBS = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind in one version. `crd` is the name of the definition it comes from, if any.

    `counts` says that `metadata.generation` is kept.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    status: bool = False
    counts: bool = False
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    singular_name: str = ""
    crd: str = ""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> tuple[str, str]:
        """Group and plural: what objects are stored under."""
        return self.group, self.plural

    @property
    def singular(self) -> str:
        return self.singular_name or self.kind.lower()

    @property
    def list_kind(self) -> str:
        return f"{self.kind}List"


RBAC = "rbac.authorization.k8s.io"
CRDS = "apiextensions.k8s.io"

BUILTIN: tuple[Kind, ...] = (
    Kind("", "v1", "namespaces", "Namespace", False, True, short_names=("ns",)),
    Kind("", "v1", "pods", "Pod", True, True, True, ("po",), ("all",)),
    Kind("", "v1", "secrets", "Secret"),
    Kind("", "v1", "serviceaccounts", "ServiceAccount", short_names=("sa",)),
    Kind(
        "",
        "v1",
        "persistentvolumeclaims",
        "PersistentVolumeClaim",
        status=True,
        short_names=("pvc",),
    ),
    Kind("", "v1", "configmaps", "ConfigMap", short_names=("cm",)),
    Kind("", "v1", "events", "Event", short_names=("ev",)),
    Kind("", "v1", "resourcequotas", "ResourceQuota", status=True),
    Kind("", "v1", "nodes", "Node", False, True, short_names=("no",)),
    Kind("", "v1", "services", "Service", True, True, short_names=("svc",)),
    Kind("apps", "v1", "deployments", "Deployment", True, True, True, ("deploy",)),
    Kind("apps", "v1", "replicasets", "ReplicaSet", True, True, True, ("rs",)),
    Kind("apps", "v1", "statefulsets", "StatefulSet", True, True, True, ("sts",)),
    Kind("apps", "v1", "daemonsets", "DaemonSet", True, True, True, ("ds",)),
    Kind("apps", "v1", "controllerrevisions", "ControllerRevision"),
    Kind("batch", "v1", "jobs", "Job", True, True, True, categories=("all",)),
    Kind("batch", "v1", "cronjobs", "CronJob", True, True, True, ("cj",)),
    Kind(
        "autoscaling",
        "v2",
        "horizontalpodautoscalers",
        "HorizontalPodAutoscaler",
        status=True,
        short_names=("hpa",),
    ),
    Kind("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice"),
    Kind("networking.k8s.io", "v1", "ingresses", "Ingress", True, True, True, ("ing",)),
    Kind(
        "networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", True, False, True
    ),
    Kind(
        "policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", True, True, True
    ),
    Kind("storage.k8s.io", "v1", "storageclasses", "StorageClass", False),
    Kind(
        "admissionregistration.k8s.io",
        "v1",
        "validatingwebhookconfigurations",
        "ValidatingWebhookConfiguration",
        False,
        counts=True,
    ),
    Kind(
        "admissionregistration.k8s.io",
        "v1",
        "mutatingwebhookconfigurations",
        "MutatingWebhookConfiguration",
        False,
        counts=True,
    ),
    Kind(RBAC, "v1", "roles", "Role"),
    Kind(RBAC, "v1", "rolebindings", "RoleBinding"),
    Kind(RBAC, "v1", "clusterroles", "ClusterRole", False),
    Kind(RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", False),
    Kind("coordination.k8s.io", "v1", "leases", "Lease"),
    Kind(
        CRDS,
        "v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        False,
        True,
        True,
        ("crd", "crds"),
        ("api-extensions",),
    ),
)


class Kinds:
    """All kinds that are served now; the first of a resource is the one it is stored as."""

    def __init__(self, kinds: Iterable[Kind] = BUILTIN) -> None:
        self._kinds = {(k.group, k.version, k.plural): k for k in kinds}

    def __iter__(self) -> Iterator[Kind]:
        return iter(tuple(self._kinds.values()))

    def add(self, kind: Kind) -> None:
        self._kinds[kind.group, kind.version, kind.plural] = kind

    def drop(self, crd: str) -> None:
        """Forget the kinds of a definition."""
        self._kinds = {key: k for key, k in self._kinds.items() if k.crd != crd}

    def find(self, group: str, version: str, plural: str) -> Kind | None:
        return self._kinds.get((group, version, plural))

    def named(self, plural: str) -> Kind:
        """By plural alone, the built-in ones first. Raises KeyError."""
        for kind in tuple(self._kinds.values()):
            if plural == kind.plural:
                return kind
        raise KeyError(f"no kind is served as {plural!r}")

    def of(self, document: Json) -> Kind:
        """The kind that a document says it is of. Raises KeyError."""
        wanted = document.get("apiVersion"), document.get("kind")
        for kind in self._kinds.values():
            if (kind.api_version, kind.kind) == wanted:
                return kind
        raise KeyError(f"no kind is served as {wanted}")

    def groups(self) -> dict[str, list[str]]:
        """The named groups and their versions."""
        found: dict[str, list[str]] = {}
        for kind in self._kinds.values():
            versions = found.setdefault(kind.group, [])
            if kind.version not in versions:
                versions.append(kind.version)
        found.pop("", None)
        return found

    def in_version(self, group: str, version: str) -> list[Kind]:
        return [
            k for k in self._kinds.values() if (k.group, k.version) == (group, version)
        ]


def group_document(group: str, versions: list[str]) -> Json:
    entries = [{"groupVersion": f"{group}/{v}", "version": v} for v in versions]
    return {"name": group, "versions": entries, "preferredVersion": entries[0]}


def resource_list(group: str, version: str, kinds: list[Kind]) -> Json:
    """`APIResourceList`: what `/api/v1` and `/apis/GROUP/VERSION` answer."""
    entries: list[Json] = []
    for kind in kinds:
        entries.append(_entry(kind))
        subresources = [("status", ["get", "patch", "update"])] if kind.status else []
        if kind.resource == ("", "pods"):
            subresources.append(("log", ["get"]))
        entries += [
            _part(kind) | {"name": f"{kind.plural}/{name}", "verbs": verbs}
            for name, verbs in subresources
        ]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group}/{version}" if group else version,
        "resources": entries,
    }


def _part(kind: Kind) -> Json:
    """The fields of a subresource that its kind defines; it has no names of its own."""
    return {"singularName": "", "namespaced": kind.namespaced, "kind": kind.kind}


def _entry(kind: Kind) -> Json:
    entry = _part(kind) | {
        "name": kind.plural,
        "singularName": kind.singular,
        "verbs": VERBS,
    }
    if kind.short_names:
        entry["shortNames"] = list(kind.short_names)
    if kind.categories:
        entry["categories"] = list(kind.categories)
    return entry
