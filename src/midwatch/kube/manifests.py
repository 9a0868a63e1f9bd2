"""The objects of a session in the cluster. Pure: of the same resource and settings, the same manifests.

Their names follow from the session's, so that a repeated create finds its own.
"""

from __future__ import annotations

import base64

from midwatch.kube.job import job
from midwatch.kube.names import GROUP, PLURAL, account_name, claim_name, secret_name
from midwatch.kube.owned import metadata
from midwatch.kube.resource import SessionResource
from midwatch.model import Json
from midwatch.settings import OperatorSettings

__all__ = [
    "content_secret",
    "job",
    "objects",
    "role",
    "role_binding",
    "service_account",
    "workspace_claim",
]

_RBAC = "rbac.authorization.k8s.io"


def objects(
    resource: SessionResource, settings: OperatorSettings, token: str | None
) -> list[Json]:
    """All but the Job, in the order to create them. `token` is for the content proxy; None without one."""
    made = [
        service_account(resource, settings),
        role(resource),
        role_binding(resource),
    ]
    if token is not None:
        made.append(content_secret(resource, token))
    if settings.storage == "claim":
        made.append(workspace_claim(resource, settings))
    return made


def service_account(resource: SessionResource, settings: OperatorSettings) -> Json:
    """The account of the runner. Its token is mounted only where a pod asks for it."""
    about = metadata(resource, account_name(resource.name))
    if settings.service_account_annotations:
        about["annotations"] = dict(settings.service_account_annotations)
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": about,
        "automountServiceAccountToken": False,
    }


def role(resource: SessionResource) -> Json:
    """Its own resource to read, the status of it to write, and nothing else."""
    own = {"apiGroups": [GROUP], "resourceNames": [resource.name]}
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "Role",
        "metadata": metadata(resource, account_name(resource.name)),
        "rules": [
            {**own, "resources": [PLURAL], "verbs": ["get"]},
            {
                **own,
                "resources": [f"{PLURAL}/status"],
                "verbs": ["get", "patch", "update"],
            },
        ],
    }


def role_binding(resource: SessionResource) -> Json:
    name = account_name(resource.name)
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "RoleBinding",
        "metadata": metadata(resource, name),
        "roleRef": {"apiGroup": _RBAC, "kind": "Role", "name": name},
        "subjects": [
            {"kind": "ServiceAccount", "name": name, "namespace": resource.namespace}
        ],
    }


def content_secret(resource: SessionResource, token: str) -> Json:
    """The token for the session's folder behind the content proxy, key `token`."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(resource, secret_name(resource.name)),
        "type": "Opaque",
        "immutable": True,
        "data": {"token": base64.b64encode(token.encode()).decode("ascii")},
    }


def workspace_claim(resource: SessionResource, settings: OperatorSettings) -> Json:
    """The volume that outlives the pods, not the resource. One node at a time mounts it."""
    spec: Json = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": settings.claim_size}},
    }
    if settings.storage_class is not None:
        spec["storageClassName"] = settings.storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(resource, claim_name(resource.name)),
        "spec": spec,
    }
