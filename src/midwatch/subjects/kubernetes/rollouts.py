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
CHANGE_CAUSE = "kubernetes.io/change-cause"
"""The annotation in which an author says why a revision is."""
_MOST = 5


@dataclass(frozen=True, slots=True)
class Revision:
    """A revision of a workload: `created` is in seconds since 1970; of one that is used again it is the first time.

    `cause` is what its author wrote of it (`kubernetes.io/change-cause`).
    """

    number: int
    name: str
    created: float
    images: str
    template: Json
    line: str
    cause: str = ""


async def history(reader: ClusterReader, ref: Ref) -> str:
    """Return what identifies a workload, its latest revisions, one a line, and the differences between the last two.

    `midwatch.subjects.kubernetes.workload_proposals` reads these lines again. Raises MidwatchError.
    """
    body = await reader.get(ref.kind, ref.namespace, ref.name)
    own = await revisions(reader, ref, body)
    lines = [_identity(ref, body), *(one.line for one in own[:_MOST])]
    if not own:
        return "\n".join([*lines, "no revision of it is kept"])
    if len(own) > 1:
        lines.append(f"from revision {own[1].number} to {own[0].number}:")
        changed = differences(own[1].template, own[0].template)
        lines += changed or ["the pod templates are equal"]
    return "\n".join(lines)


async def revisions(
    reader: ClusterReader, ref: Ref, body: Json | None = None
) -> list[Revision]:
    """Return the revisions of a workload that the cluster keeps, the latest first.

    Args:
        reader: Asks the cluster.
        ref: The workload.
        body: The workload as it is known; None to read it.

    Raises:
        MidwatchError: The cluster does not give them.
    """
    body = body or await reader.get(ref.kind, ref.namespace, ref.name)
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


def _identity(ref: Ref, body: Json) -> str:
    meta, spec = body["metadata"], body.get("spec") or {}
    paused = ", paused" if spec.get("paused") else ""
    return f"{ref.kind} {ref.name}: uid {meta.get('uid')}, created {meta.get('creationTimestamp')}, generation {meta.get('generation')}{paused}"


def _revision(body: Json, kind: str) -> Revision:
    meta, template = body["metadata"], template_of(body)
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
        str((meta.get("annotations") or {}).get(CHANGE_CAUSE) or ""),
    )


def _number(body: Json) -> int:
    if "revision" in body:
        return int(body["revision"])
    annotations = (body.get("metadata") or {}).get("annotations") or {}
    text = str(annotations.get(REVISION, "0"))
    return int(text) if text.isdecimal() else 0


def template_of(body: Json) -> Json:
    """Return the pod template of a workload or of a revision of it."""
    spec = body.get("spec") or (body.get("data") or {}).get("spec") or {}
    template = spec.get("template")
    return template if isinstance(template, dict) else {}
