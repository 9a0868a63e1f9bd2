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
    """Return the latest revisions of a workload, one a line, and the differences between the last two. Raises MidwatchError."""
    body = await reader.get(ref.kind, ref.namespace, ref.name)
    selector = label_selector((body.get("spec") or {}).get("selector"))
    kind = CONTROLLERS[ref.kind]
    found = await reader.list_objects(kind, ref.namespace, 200, labelSelector=selector)
    uid = body["metadata"].get("uid")
    own = [
        one
        for one in found
        if (owner := controller_of(one)) is not None and owner.uid == uid
    ]
    own.sort(key=_revision, reverse=True)
    lines = [_line(one, kind) for one in own[:_MOST]]
    if not lines:
        return "no revision of it is kept"
    if len(own) > 1:
        lines.append(f"from revision {_revision(own[1])} to {_revision(own[0])}:")
        changed = differences(_template(own[1]), _template(own[0]))
        lines += changed or ["the pod templates are equal"]
    return "\n".join(lines)


def _revision(body: Json) -> int:
    if "revision" in body:
        return int(body["revision"])
    annotations = (body.get("metadata") or {}).get("annotations") or {}
    text = str(annotations.get(_REVISION, "0"))
    return int(text) if text.isdecimal() else 0


def _line(body: Json, kind: str) -> str:
    meta = body["metadata"]
    text = f"revision {_revision(body)}: {meta['name']}, created {meta.get('creationTimestamp')}"
    if kind == "ReplicaSet":
        wanted = (body.get("spec") or {}).get("replicas", 0)
        ready = (body.get("status") or {}).get("readyReplicas", 0)
        text += f", {ready} of {wanted} pods ready"
    containers = (_template(body).get("spec") or {}).get("containers") or ()
    images = ", ".join(str(one.get("image")) for one in containers)
    return f"{text}, image {images}" if images else text


def _template(body: Json) -> Json:
    spec = body.get("spec") or (body.get("data") or {}).get("spec") or {}
    template = spec.get("template")
    return template if isinstance(template, dict) else {}
