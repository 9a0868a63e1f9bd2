"""The history of a workload's rollouts: its revisions, and what changed in the pod template from one to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from midwatch.model import Json
from midwatch.subjects.kubernetes.cluster_reader import ClusterReader, label_selector
from midwatch.subjects.kubernetes.describe import differences
from midwatch.subjects.kubernetes.object_fields import (
    REVISION,
    Ref,
    controller_of,
    time_of,
)

CONTROLLERS: Mapping[str, str] = {
    "Deployment": "ReplicaSet",
    "StatefulSet": "ControllerRevision",
    "DaemonSet": "ControllerRevision",
}
"""What holds the revisions of each kind."""
_MOST = 5


@dataclass(frozen=True, slots=True)
class Revision:
    """A revision of a workload: `created` is in seconds since 1970; of one that is used again it is the first time."""

    number: int
    name: str
    created: float
    images: str
    template: Json
    line: str


async def revisions(reader: ClusterReader, ref: Ref) -> list[Revision]:
    """Return the revisions of a workload that the cluster keeps, the latest first. Raises MidwatchError."""
    body = await reader.get(ref.kind, ref.namespace, ref.name)
    selector = label_selector((body.get("spec") or {}).get("selector"))
    kind = CONTROLLERS[ref.kind]
    found = await reader.list_objects(kind, ref.namespace, 200, labelSelector=selector)
    uid = body["metadata"].get("uid")
    own = [
        _revision(one, kind)
        for one in found
        if (owner := controller_of(one)) is not None and owner.uid == uid
    ]
    return sorted(own, key=lambda one: one.number, reverse=True)


async def history(reader: ClusterReader, ref: Ref) -> str:
    """Return the latest revisions of a workload, one a line, and the differences between the last two. Raises MidwatchError."""
    own = await revisions(reader, ref)
    lines = [one.line for one in own[:_MOST]]
    if not lines:
        return "no revision of it is kept"
    if len(own) > 1:
        lines.append(f"from revision {own[1].number} to {own[0].number}:")
        changed = differences(own[1].template, own[0].template)
        lines += changed or ["the pod templates are equal"]
    return "\n".join(lines)


def _revision(body: Json, kind: str) -> Revision:
    meta, template = body["metadata"], _template(body)
    number = _number(body)
    text = f"revision {number}: {meta['name']}, created {meta.get('creationTimestamp')}"
    if kind == "ReplicaSet":
        wanted = (body.get("spec") or {}).get("replicas", 0)
        ready = (body.get("status") or {}).get("readyReplicas", 0)
        text += f", {ready} of {wanted} pods ready"
    containers = (template.get("spec") or {}).get("containers") or ()
    images = ", ".join(str(one.get("image")) for one in containers)
    return Revision(
        number,
        str(meta["name"]),
        time_of(meta, "creationTimestamp"),
        images,
        template,
        f"{text}, image {images}" if images else text,
    )


def _number(body: Json) -> int:
    if "revision" in body:
        return int(body["revision"])
    annotations = (body.get("metadata") or {}).get("annotations") or {}
    text = str(annotations.get(REVISION, "0"))
    return int(text) if text.isdecimal() else 0


def _template(body: Json) -> Json:
    spec = body.get("spec") or (body.get("data") or {}).get("spec") or {}
    template = spec.get("template")
    return template if isinstance(template, dict) else {}
