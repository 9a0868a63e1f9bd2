"""The history of a workload's rollouts: its revisions, and what changed in the pod template from one to the next."""

from __future__ import annotations

from collections.abc import Mapping

from midwatch.model import Json
from midwatch.subjects.kubernetes.cluster_reader import ClusterReader, label_selector
from midwatch.subjects.kubernetes.describe import differences
from midwatch.subjects.kubernetes.object_fields import Ref, controller_of

CONTROLLERS: Mapping[str, str] = {
    "Deployment": "ReplicaSet",
    "StatefulSet": "ControllerRevision",
    "DaemonSet": "ControllerRevision",
}
"""What holds the revisions of each kind."""
_REVISION = "deployment.kubernetes.io/revision"
_MOST = 5


async def history(reader: ClusterReader, ref: Ref) -> str:
    """Return what identifies a workload, its latest revisions, one a line, and the differences between the last two.

    `midwatch.subjects.kubernetes.workload_proposals` reads these lines again. Raises MidwatchError.
    """
    body = await reader.get(ref.kind, ref.namespace, ref.name)
    own = await revisions(reader, ref, body)
    lines = [_identity(ref, body), *(_line(one) for one in own[:_MOST])]
    if not own:
        return "\n".join([*lines, "no revision of it is kept"])
    if len(own) > 1:
        lines.append(f"from revision {number_of(own[1])} to {number_of(own[0])}:")
        changed = differences(template_of(own[1]), template_of(own[0]))
        lines += changed or ["the pod templates are equal"]
    return "\n".join(lines)


async def revisions(reader: ClusterReader, ref: Ref, body: Json) -> list[Json]:
    """Return what holds the revisions of a workload, the latest first. Raises MidwatchError."""
    selector = label_selector((body.get("spec") or {}).get("selector"))
    kind = CONTROLLERS[ref.kind]
    found = await reader.list_objects(kind, ref.namespace, 200, labelSelector=selector)
    uid = body["metadata"].get("uid")
    own = [
        one
        for one in found
        if (owner := controller_of(one)) is not None and owner.uid == uid
    ]
    return sorted(own, key=number_of, reverse=True)


def _identity(ref: Ref, body: Json) -> str:
    meta, spec = body["metadata"], body.get("spec") or {}
    paused = ", paused" if spec.get("paused") else ""
    return f"{ref.kind} {ref.name}: uid {meta.get('uid')}, created {meta.get('creationTimestamp')}, generation {meta.get('generation')}{paused}"


def number_of(body: Json) -> int:
    """Return the number of a revision; 0 if it has none."""
    if "revision" in body:
        return int(body["revision"])
    annotations = (body.get("metadata") or {}).get("annotations") or {}
    text = str(annotations.get(_REVISION, "0"))
    return int(text) if text.isdecimal() else 0


def _line(body: Json) -> str:
    meta = body["metadata"]
    text = f"revision {number_of(body)}: {meta['name']}, created {meta.get('creationTimestamp')}"
    if "revision" not in body:  # a ReplicaSet
        wanted = (body.get("spec") or {}).get("replicas", 0)
        ready = (body.get("status") or {}).get("readyReplicas", 0)
        text += f", {ready} of {wanted} pods ready"
    containers = (template_of(body).get("spec") or {}).get("containers") or ()
    images = ", ".join(str(one.get("image")) for one in containers)
    return f"{text}, image {images}" if images else text


def template_of(body: Json) -> Json:
    """Return the pod template of a workload or of a revision of it."""
    spec = body.get("spec") or (body.get("data") or {}).get("spec") or {}
    template = spec.get("template")
    return template if isinstance(template, dict) else {}
