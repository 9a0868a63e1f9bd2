"""What the API server checks and fills in: metadata of every object, and schemas, defaults and rules of the built-in kinds.

Kubernetes' own schemas are applied as with `fieldValidation=Strict`: what is unknown or of a wrong type is refused. A
real server without that parameter drops unknown fields with a warning. Of defaults and rules there are those that an
operator and its pods meet, not all of Kubernetes'.
"""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from referencing import Registry, Resource

from midwatch.kube.rules import QUANTITY, fits, quantity
from midwatch.model import Json

from .errors import Cause, Refused, invalid
from .kinds import RBAC, Kind

# ------------------------------------------------------------------ Kubernetes' own schemas

VERSION = "1.37"
"""The release whose schemas are used; `/version` says the same."""


def validate(kind: Kind, document: Json) -> None:
    """Raises Refused: 400 for what cannot be decoded, 422 for what is missing."""
    missing: list[Cause] = []
    for error in _errors(kind, document):
        path = dotted(error.absolute_path)
        if error.validator == "required":
            missing += _required(error, path)
        else:
            raise Refused(400, _undecodable(kind, path, error))
    if missing:
        name = document["metadata"].get("name", "")
        raise invalid(kind.kind, kind.group, name, list(dict.fromkeys(missing)))


def dotted(path: Iterable[str | int]) -> str:
    """`spec.containers[0].name`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _errors(kind: Kind, document: Json) -> Iterable[Any]:
    found: Iterable[Any] = _validator(kind.kind, kind.group, kind.version).iter_errors(
        document
    )
    return found


def _required(error: Any, path: str) -> list[Cause]:
    absent = [name for name in error.validator_value if name not in error.instance]
    return [
        Cause(
            f"{path}.{name}" if path else name, "Required value", "FieldValueRequired"
        )
        for name in absent
    ]


def _undecodable(kind: Kind, path: str, error: Any) -> str:
    begin = (
        f"{kind.kind} in version {kind.version!r} cannot be handled as a {kind.kind}: "
    )
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        fields = [name for name in error.instance if name not in known]
        where = f"{path}.{fields[0]}" if path else fields[0]
        return f'{begin}strict decoding error: unknown field "{where}"'
    return f"{begin}{path}: {error.message[:300]}"


@cache
def _folder() -> Any:
    """Of the newest schemas of the wanted release."""
    schemas = files("kubernetes_validate") / "kubernetes-json-schema"
    return next(
        entry
        for entry in schemas.iterdir()
        if entry.name.startswith(f"v{VERSION}.") and entry.name.endswith("-strict")
    )


@cache
def _definitions() -> Resource[Any]:
    return Resource.from_contents(
        json.loads((_folder() / "_definitions.json").read_text("utf-8"))
    )


@cache
def _validator(kind: str, group: str, version: str) -> Any:
    """Compiled once per kind: reading the definitions costs 20 ms, a validation 2."""
    short = f"{group.partition('.')[0]}-" if group else ""
    name = f"{kind.lower()}-{short}{version}.json"
    schema = json.loads((_folder() / name).read_text("utf-8"))
    registry = _definitions() @ (Resource.from_contents(schema) @ Registry())
    return Draft202012Validator(schema, registry=registry)


def required(kind: Kind) -> frozenset[str]:
    """The fields without which no object of this kind is valid."""
    return frozenset(
        _validator(kind.kind, kind.group, kind.version).schema.get("required", ())
    )


# ------------------------------------------------------------------ metadata

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(
    r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
)
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_ANNOTATIONS = 256 * 1024
"""Bytes of all annotations of an object together."""


def metadata_faults(kind: Kind, document: Json) -> Iterator[Cause]:
    """What is wrong with the metadata of an object that is to be stored."""
    meta = document["metadata"]
    yield from _name(kind, meta["name"])
    for key, value in (meta.get("labels") or {}).items():
        yield from _qualified(key, "metadata.labels")
        if not _VALUE.fullmatch(value):
            said = f"Invalid value: \"{value}\": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', at most 63 characters"
            yield Cause("metadata.labels", said)
    annotations = meta.get("annotations") or {}
    for key in annotations:
        yield from _qualified(key.lower(), "metadata.annotations")
    if sum(len(k) + len(v.encode()) for k, v in annotations.items()) > _ANNOTATIONS:
        said = "Too long: may not be more than 262144 bytes"
        yield Cause("metadata.annotations", said, "FieldValueTooLong")
    yield from _finalizers(meta)
    yield from _owners(meta)


def _name(kind: Kind, name: str) -> Iterator[Cause]:
    if kind.group == RBAC:
        if name in (".", "..") or "/" in name or "%" in name:
            yield Cause("metadata.name", f'Invalid value: "{name}": may not be a path')
    elif kind.plural == "namespaces":
        if not _LABEL.fullmatch(name):
            said = f"Invalid value: \"{name}\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-'"
            yield Cause("metadata.name", said)
    elif len(name) > 253 or not _SUBDOMAIN.fullmatch(name):
        said = f"Invalid value: \"{name}\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character"
        yield Cause("metadata.name", said)


def _qualified(key: str, field: str) -> Iterator[Cause]:
    prefix, slash, name = key.rpartition("/")
    fine = _QUALIFIED.fullmatch(name) and (
        not slash or (len(prefix) <= 253 and _SUBDOMAIN.fullmatch(prefix))
    )
    if not fine:
        said = f'Invalid value: "{key}": must be a qualified name, at most 63 characters after the prefix'
        yield Cause(field, said)


def _finalizers(meta: Json) -> Iterator[Cause]:
    for finalizer in meta.get("finalizers") or ():
        if "/" not in finalizer and finalizer not in (
            "orphan",
            "foregroundDeletion",
            CRD_FINALIZER,
        ):
            said = f'Invalid value: "{finalizer}": name is neither a standard finalizer name nor is it fully qualified'
            yield Cause("metadata.finalizers", said)


CRD_FINALIZER = "customresourcecleanup.apiextensions.k8s.io"


def _owners(meta: Json) -> Iterator[Cause]:
    owners = meta.get("ownerReferences") or ()
    for place, owner in enumerate(owners):
        for name in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(name):
                field = f"metadata.ownerReferences[{place}].{name}"
                yield Cause(field, 'Invalid value: "": must not be empty')
    if sum(bool(owner.get("controller")) for owner in owners) > 1:
        said = "Invalid value: Only one reference can have Controller set to true"
        yield Cause("metadata.ownerReferences", said)


# ------------------------------------------------------------------ requests and limits


def amount_faults(resources: Json, path: str) -> Iterator[Cause]:
    """Requests above their limits; of what cannot be overcommitted, also below. Unusual forms of amounts pass."""
    limits = resources.get("limits") or {}
    for name, wanted in (resources.get("requests") or {}).items():
        most = limits.get(name, "")
        if not all(fits(QUANTITY, str(one)) for one in (wanted, most)):
            continue
        asked, allowed = quantity(wanted), quantity(most)
        must = ""
        if asked != allowed and not _is_overcommitted(name):
            must = "equal to"
        elif asked > allowed:
            must = "less than or equal to"
        if must:
            said = f'Invalid value: "{wanted}": must be {must} {name} limit of {most}'
            yield Cause(f"{path}.requests", said)


def _is_overcommitted(name: str) -> bool:
    """Whether more of it may be promised than there is."""
    native = "/" not in name or "kubernetes.io/" in name
    return native and not name.startswith("hugepages-")


# ------------------------------------------------------------------ defaults and rules

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


TEMPLATE_GENERATION = "deprecated.daemonset.template.generation"
"""The annotation with how often the template of a DaemonSet was written; the API server keeps it."""


def _daemon_set(document: Json) -> None:
    annotations = document["metadata"].setdefault("annotations", {})
    annotations[TEMPLATE_GENERATION] = "1"


def count_template(kind: Kind, old: Json, new: Json) -> None:
    """Keep what the API server counts in an annotation, whatever a request says of it."""
    if kind.resource != ("apps", "daemonsets"):
        return
    count = int(old["metadata"]["annotations"][TEMPLATE_GENERATION])
    count += old["spec"]["template"] != new["spec"]["template"]
    meta = new["metadata"]
    annotations = {**meta.get("annotations", {}), TEMPLATE_GENERATION: str(count)}
    new["metadata"] = {**meta, "annotations": annotations}


_FILLERS: dict[tuple[str, str], Callable[[Json], None]] = {
    ("", "namespaces"): _namespace,
    ("", "secrets"): _secret,
    ("", "persistentvolumeclaims"): _claim,
    ("", "pods"): _pod,
    ("apps", "daemonsets"): _daemon_set,
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
