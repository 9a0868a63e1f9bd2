"""What the API server itself does to built-in kinds: defaults, and rules beyond their schemas.

The defaults and rules that an operator and its pods meet; not all of Kubernetes'.
"""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable, Iterator
from typing import Any

from midwatch.model import Json

from .amounts import amount_faults
from .kinds import Kind
from .refusals import Cause

CONTROLLER_UID = "batch.kubernetes.io/controller-uid"
JOB_NAME = "batch.kubernetes.io/job-name"


def fill(kind: Kind, document: Json) -> None:
    """Defaults of a new object, in place; its metadata is complete already."""
    filler = _FILLERS.get(kind.resource)
    if filler:
        filler(document)


def faults(kind: Kind, new: Json, old: Json | None) -> list[Cause]:
    """What is refused in a new object, or in a change of an old one."""
    found: list[Cause] = []
    if old is None:
        found += _CHECKS.get(kind.resource, _nothing)(new)
    for path in _FIXED.get(kind.resource, ()):
        if old is not None and _at(old, path) != _at(new, path):
            found.append(Cause(path, "Invalid value: field is immutable"))
    return found


def _nothing(document: Json) -> Iterator[Cause]:
    return iter(())


_FIXED = {
    ("batch", "jobs"): ("spec.template", "spec.selector", "spec.completions"),
    ("", "pods"): (
        "spec.restartPolicy",
        "spec.volumes",
        "spec.serviceAccountName",
        "spec.initContainers",
    ),
    ("", "persistentvolumeclaims"): ("spec.accessModes", "spec.storageClassName"),
    ("", "secrets"): ("type",),
    ("rbac.authorization.k8s.io", "rolebindings"): ("roleRef",),
    ("rbac.authorization.k8s.io", "clusterrolebindings"): ("roleRef",),
    ("apiextensions.k8s.io", "customresourcedefinitions"): (
        "spec.group",
        "spec.scope",
        "spec.names.plural",
        "spec.names.kind",
    ),
}


def _at(document: Any, path: str) -> Any:
    for part in path.split("."):
        document = (document or {}).get(part)
    return document


def _namespace(document: Json) -> None:
    name = document["metadata"]["name"]
    labels = document["metadata"].setdefault("labels", {})
    labels["kubernetes.io/metadata.name"] = name
    document.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
    document["status"] = {"phase": "Active"}


def _secret(document: Json) -> None:
    document.setdefault("type", "Opaque")
    plain = document.pop("stringData", None) or {}
    encoded = {k: base64.b64encode(v.encode()).decode() for k, v in plain.items()}
    if encoded:
        document["data"] = {**document.get("data", {}), **encoded}


def _claim(document: Json) -> None:
    document["spec"].setdefault("volumeMode", "Filesystem")
    document["status"] = {"phase": "Pending"}


def _binding(document: Json) -> None:
    document["roleRef"].setdefault("apiGroup", "rbac.authorization.k8s.io")
    for subject in document.get("subjects", ()):
        if subject["kind"] != "ServiceAccount":
            subject.setdefault("apiGroup", "rbac.authorization.k8s.io")


def _pod(document: Json) -> None:
    pod_spec(document["spec"])
    document["spec"].setdefault("restartPolicy", "Always")
    document["status"] = {"phase": "Pending", "qosClass": "BestEffort"}


def pod_spec(spec: Json) -> None:
    """Defaults of a pod, and of a template."""
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("schedulerName", "default-scheduler")
    spec.setdefault("securityContext", {})
    spec.setdefault("terminationGracePeriodSeconds", 30)
    if "serviceAccountName" in spec:
        spec.setdefault("serviceAccount", spec["serviceAccountName"])
    for container in spec.get("containers", []) + spec.get("initContainers", []):
        container.setdefault("terminationMessagePath", "/dev/termination-log")
        container.setdefault("terminationMessagePolicy", "File")
        container.setdefault("resources", {})
        latest = ":" not in container.get("image", "").rpartition("/")[2]
        container.setdefault("imagePullPolicy", "Always" if latest else "IfNotPresent")
        for variable in container.get("env", ()):
            reference = variable.get("valueFrom", {}).get("fieldRef")
            if reference:
                reference.setdefault("apiVersion", "v1")


def _job(document: Json) -> None:
    meta, spec = document["metadata"], document["spec"]
    spec.setdefault("backoffLimit", 6)
    spec.setdefault("completionMode", "NonIndexed")
    spec.setdefault("suspend", False)
    spec.setdefault("manualSelector", False)
    spec.setdefault("podReplacementPolicy", "TerminatingOrFailed")
    spec.setdefault("parallelism", 1)
    spec.setdefault("completions", 1)
    template = spec["template"]
    labels = template.setdefault("metadata", {}).setdefault("labels", {})
    uid, name = meta["uid"], meta["name"]
    owned = {
        CONTROLLER_UID: uid,
        "controller-uid": uid,
        JOB_NAME: name,
        "job-name": name,
    }
    labels.update(owned)
    spec["selector"] = {"matchLabels": {CONTROLLER_UID: uid}}
    pod_spec(template.get("spec", {}))
    document["status"] = {}


_FILLERS: dict[tuple[str, str], Callable[[Json], None]] = {
    ("", "namespaces"): _namespace,
    ("", "secrets"): _secret,
    ("", "persistentvolumeclaims"): _claim,
    ("", "pods"): _pod,
    ("batch", "jobs"): _job,
    ("rbac.authorization.k8s.io", "rolebindings"): _binding,
    ("rbac.authorization.k8s.io", "clusterrolebindings"): _binding,
}


def _job_faults(document: Json) -> Iterator[Cause]:
    spec = document["spec"]
    path = "spec.template.spec"
    pod = copy.copy(spec["template"].get("spec", {}))
    policy = pod.get("restartPolicy", "Always")
    if policy not in ("Never", "OnFailure"):
        said = f'Required value: valid values: "OnFailure", "Never" (it is "{policy}")'
        yield Cause(f"{path}.restartPolicy", said, "FieldValueRequired")
    if len(document["metadata"]["name"]) > 63:
        said = "Invalid value: must be no more than 63 characters"
        yield Cause("spec.template.labels", said)
    for name in (
        "backoffLimit",
        "parallelism",
        "activeDeadlineSeconds",
        "ttlSecondsAfterFinished",
    ):
        if (spec.get(name) or 0) < 0:
            yield Cause(
                f"spec.{name}", "Invalid value: must be greater than or equal to 0"
            )
    yield from pod_faults(pod, path)


def _pod_faults(document: Json) -> Iterator[Cause]:
    return pod_faults(document["spec"], "spec")


def pod_faults(spec: Json, path: str) -> Iterator[Cause]:
    """Names that are twice, volumes that are not there, containers without an image, requests above limits."""
    volumes = [volume.get("name") for volume in spec.get("volumes", ())]
    yield from _twice(volumes, f"{path}.volumes", "name")
    if not spec.get("containers"):
        yield Cause(f"{path}.containers", "Required value", "FieldValueRequired")
    everything = spec.get("initContainers", []) + spec.get("containers", [])
    yield from _twice([c.get("name") for c in everything], f"{path}.containers", "name")
    for place, container in enumerate(spec.get("containers", ())):
        at = f"{path}.containers[{place}]"
        if not container.get("image"):
            yield Cause(f"{at}.image", "Required value", "FieldValueRequired")
        mounts = container.get("volumeMounts", ())
        yield from _twice(
            [m["mountPath"] for m in mounts], f"{at}.volumeMounts", "mountPath"
        )
        for number, mount in enumerate(mounts):
            if mount["name"] not in volumes:
                said = f'Not found: "{mount["name"]}"'
                yield Cause(
                    f"{at}.volumeMounts[{number}].name", said, "FieldValueNotFound"
                )
        yield from _variables(container, at)
        yield from amount_faults(container.get("resources") or {}, f"{at}.resources")


def _variables(container: Json, path: str) -> Iterator[Cause]:
    for place, variable in enumerate(container.get("env", ())):
        if not variable["name"] or "=" in variable["name"]:
            said = f'Invalid value: "{variable["name"]}": must not be empty or contain \'=\''
            yield Cause(f"{path}.env[{place}].name", said)
        if variable.get("value") and variable.get("valueFrom"):
            said = 'Invalid value: "": may not be specified when `value` is not empty'
            yield Cause(f"{path}.env[{place}].valueFrom", said)


def _twice(values: list[Any], path: str, name: str) -> Iterator[Cause]:
    for place, value in enumerate(values):
        if value in values[:place]:
            said = f'Duplicate value: "{value}"'
            yield Cause(f"{path}[{place}].{name}", said, "FieldValueDuplicate")


def _secret_faults(document: Json) -> Iterator[Cause]:
    for name, value in (document.get("data") or {}).items():
        try:
            base64.b64decode(value, validate=True)
        except ValueError:
            yield Cause(f"data[{name}]", "Invalid value: illegal base64 data")


_CHECKS: dict[tuple[str, str], Callable[[Json], Iterator[Cause]]] = {
    ("batch", "jobs"): _job_faults,
    ("", "pods"): _pod_faults,
    ("", "secrets"): _secret_faults,
}
