"""What a container's environment resolves to, as the kubelet does it."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from midwatch.model import Json

from .objects import Objects

_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.][-A-Za-z0-9_.]*)\)")


class ConfigError(Exception):
    """`CreateContainerConfigError`: the container cannot be made until something is there."""


def environment(objects: Objects, pod: Json, container: Json) -> dict[str, str]:
    """All variables of the container. Raises ConfigError."""
    namespace = pod["metadata"]["namespace"]
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        found.update(_all_of(objects, namespace, source))
    for variable in container.get("env", ()):
        if "valueFrom" in variable:
            value = _one_from(objects, pod, variable["valueFrom"])
        else:
            value = expanded(variable.get("value", ""), found)
        if value is not None:
            found[variable["name"]] = value
    return found


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """`$(NAME)` is replaced where the name is known, and `$$` is one dollar: so does Kubernetes."""

    def replaced(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return _REFERENCE.sub(replaced, text)


def relocated(value: str, folders: Mapping[str, str]) -> str:
    """A path below a mount, as the local folder that stands for it; all else stays.

    Only a value that is such a path as a whole, without white space, is rewritten. `/tmp` is left alone: paths that tests hand in
    are below it.
    """
    if not value or len(value.split()) != 1:
        return value
    path = PurePosixPath(value)
    for mount in sorted(folders, key=len, reverse=True):
        if mount != "/tmp" and path.is_relative_to(mount):
            rest = value[len(mount.rstrip("/")) :]
            return folders[mount] + rest
    return value


def secret_data(secret: Json) -> dict[str, bytes]:
    return {k: base64.b64decode(v) for k, v in (secret.get("data") or {}).items()}


def _all_of(
    objects: Objects, namespace: str, source: Json
) -> Iterator[tuple[str, str]]:
    prefix = source.get("prefix", "")
    for name, plural in (("secretRef", "secrets"), ("configMapRef", "configmaps")):
        reference = source.get(name)
        if reference:
            data = _data(objects, plural, namespace, reference) or {}
            yield from ((prefix + key, value) for key, value in data.items())


def _data(
    objects: Objects, plural: str, namespace: str, reference: Json
) -> dict[str, str] | None:
    """Keys and values as text; None if it is missing and may be. Raises ConfigError."""
    found = objects.find(plural, namespace, reference["name"])
    if found is None:
        if reference.get("optional"):
            return None
        kind = plural.removesuffix("s")
        raise ConfigError(f'{kind} "{reference["name"]}" not found')
    if plural == "configmaps":
        return dict(found.get("data") or {})
    return {k: v.decode("utf-8", "replace") for k, v in secret_data(found).items()}


def _one_from(objects: Objects, pod: Json, source: Json) -> str | None:
    namespace = pod["metadata"]["namespace"]
    for name, plural, kind in (
        ("secretKeyRef", "secrets", "Secret"),
        ("configMapKeyRef", "configmaps", "ConfigMap"),
    ):
        reference = source.get(name)
        if reference:
            data = _data(objects, plural, namespace, reference)
            if data is not None and reference["key"] in data:
                return data[reference["key"]]
            if reference.get("optional"):
                return None
            full = f"{namespace}/{reference['name']}"
            raise ConfigError(f"couldn't find key {reference['key']} in {kind} {full}")
    if "fieldRef" in source:
        return field(pod, source["fieldRef"]["fieldPath"])
    raise ConfigError(f"{next(iter(source), 'nothing')} is not understood here")


def field(pod: Json, path: str) -> str:
    """A field of the pod as the downward API gives it. Raises ConfigError."""
    meta, spec, status = pod["metadata"], pod["spec"], pod.get("status", {})
    match = re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", path)
    if match:
        return str((meta.get(match[1]) or {}).get(match[2], ""))
    known = {
        "metadata.name": meta["name"],
        "metadata.namespace": meta["namespace"],
        "metadata.uid": meta["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
        "status.podIP": status.get("podIP", ""),
        "status.hostIP": status.get("hostIP", ""),
    }
    if path not in known:
        raise ConfigError(f"unsupported fieldPath: {path}")
    return str(known[path])
