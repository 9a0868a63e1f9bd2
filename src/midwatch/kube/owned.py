"""What all objects of a session have in common."""

from __future__ import annotations

from midwatch.kube.names import API_VERSION, KIND, MANAGED_BY, SESSION_LABEL, UID_LABEL
from midwatch.kube.resource import SessionResource
from midwatch.model import Json


def labels(resource: SessionResource) -> dict[str, str]:
    return {**MANAGED_BY, SESSION_LABEL: resource.name, UID_LABEL: resource.uid}


def metadata(resource: SessionResource, name: str) -> Json:
    """Name, labels, and the owner: without the resource the object is collected."""
    return {
        "name": name,
        "namespace": resource.namespace,
        "labels": labels(resource),
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": resource.name,
                "uid": resource.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
