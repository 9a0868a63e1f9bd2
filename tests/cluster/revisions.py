"""The controllers of DaemonSets and StatefulSets, as far as a rollout goes: ControllerRevisions, pods and the status.

For a node and for a StatefulSet of one pod: `reconcile` is one look of the controller, to be called after each change, and again once a
pod is ready. What is written, and what a StatefulSet with ordered pods waits for, follows Kubernetes 1.36
(`pkg/controller/daemon/update.go`, `pkg/controller/statefulset`).
"""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

from midwatch.model import Json

from .apiserver import Objects
from .builtin import TEMPLATE_GENERATION

HASH = "controller-revision-hash"
"""The label of a pod with its revision: the name for a StatefulSet, the hash for a DaemonSet."""


def reconcile(objects: Objects, plural: str, namespace: str, name: str) -> Json:
    """Do what the controller of a DaemonSet or StatefulSet does next, and return its present ControllerRevision.

    Args:
        objects: Of the API server.
        plural: `daemonsets` or `statefulsets`.
        namespace: Of the workload.
        name: Of the workload.
    """
    workload = objects.get(plural, namespace, name)
    revision = _present_revision(objects, workload)
    of_daemon_set = workload["kind"] == "DaemonSet"
    label = revision["metadata"]["name"]
    if of_daemon_set:
        label = revision["metadata"]["labels"][HASH]
    uid = workload["metadata"]["uid"]
    present = []
    for pod in objects.owned("pods", uid):
        if pod["metadata"]["labels"][HASH] == label:
            present.append(pod)
        elif of_daemon_set or _is_ready(pod):
            # A StatefulSet does not touch a pod that is not ready: a person has to.
            objects.delete("pods", namespace, pod["metadata"]["name"], grace=0)
    if not objects.owned("pods", uid):
        pod = _pod(workload, label)
        present.append(objects.create(pod, namespace))
    status = _status(workload, revision["metadata"]["name"], present)
    objects.merge(plural, namespace, name, {"status": status}, sub="status")
    return revision


def _present_revision(objects: Objects, workload: Json) -> Json:
    """Return the ControllerRevision of the template: one that was used before gets the next number, else it is made."""
    meta = workload["metadata"]
    owned = objects.owned("controllerrevisions", meta["uid"])
    data = {"spec": {"template": _replacing(workload["spec"]["template"])}}
    same = [one for one in owned if one["data"] == data]
    number = 1 + max((one["revision"] for one in owned if one not in same), default=0)
    if not same:
        return objects.create(_revision(workload, data, number), meta["namespace"])
    [found] = same
    if found["revision"] >= number:
        return found
    place = "controllerrevisions", meta["namespace"], found["metadata"]["name"]
    return objects.merge(*place, {"revision": number})


def _replacing(template: Json) -> Json:
    """Return a template as a strategic merge patch that replaces another one."""
    about = {"creationTimestamp": None, **template["metadata"]}
    return {**copy.deepcopy(template), "metadata": about, "$patch": "replace"}


def _revision(workload: Json, data: Json, number: int) -> Json:
    meta, text = workload["metadata"], json.dumps(data, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    label = HASH
    if workload["kind"] == "StatefulSet":
        label = "controller.kubernetes.io/hash"
    labels = workload["spec"]["template"]["metadata"]["labels"]
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            "name": f"{meta['name']}-{digest}",
            "labels": {**labels, label: digest},
            "annotations": meta.get("annotations", {}),
            "ownerReferences": [_owner(workload)],
        },
        "data": data,
        "revision": number,
    }


def _owner(workload: Json) -> Json:
    meta = workload["metadata"]
    named = {"apiVersion": "apps/v1", "kind": workload["kind"], "name": meta["name"]}
    return {
        **named,
        "uid": meta["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _pod(workload: Json, label: str) -> Json:
    meta, template = workload["metadata"], copy.deepcopy(workload["spec"]["template"])
    labels = {**template["metadata"]["labels"], HASH: label}
    about: dict[str, Any] = {"ownerReferences": [_owner(workload)], "labels": labels}
    if workload["kind"] == "DaemonSet":
        labels["pod-template-generation"] = meta["annotations"][TEMPLATE_GENERATION]
        about["generateName"] = f"{meta['name']}-"
    else:
        about["name"] = f"{meta['name']}-0"
        labels["statefulset.kubernetes.io/pod-name"] = about["name"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": about,
        "spec": template["spec"],
    }


def _status(workload: Json, revision: str, present: list[Json]) -> Json:
    """Return the status; `present` are the pods of the present revision."""
    ready, updated = sum(map(_is_ready, present)), len(present)
    seen = {"observedGeneration": workload["metadata"]["generation"]}
    if workload["kind"] == "DaemonSet":
        counts = {"currentNumberScheduled": 1, "desiredNumberScheduled": 1}
        updates = {"updatedNumberScheduled": updated, "numberMisscheduled": 0}
        return {**seen, **counts, **updates, "numberReady": ready}
    before = (workload.get("status") or {}).get("currentRevision", revision)
    return {
        **seen,
        "replicas": 1,
        "readyReplicas": ready,
        "updatedReplicas": updated,
        "updateRevision": revision,
        "currentRevision": revision if ready else before,
    }


def _is_ready(pod: Json) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
