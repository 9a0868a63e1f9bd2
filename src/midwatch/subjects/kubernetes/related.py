"""What a pod depends on and uses: its node, claims, ConfigMaps and the names of Secrets, and its resources."""

from __future__ import annotations

from midwatch.cluster.errors import ClusterRefused
from midwatch.subjects.kubernetes.cluster_reader import ClusterReader
from midwatch.subjects.kubernetes.object_fields import named_in

_MOST = 12


async def related_lines(reader: ClusterReader, namespace: str, pod: str) -> str:
    """Return the objects that a pod names, one a line. Of a Secret only the name is known. Raises MidwatchError."""
    body = await reader.find("Pod", namespace, pod)
    if body is None:
        return f"{pod} does not exist any more"
    spec = body.get("spec") or {}
    lines = [f"service account: {spec.get('serviceAccountName', 'default')}"]
    named = list(dict.fromkeys(named_in(spec)))
    for kind, name in named[:_MOST]:
        if kind == "Secret":
            lines.append(f"Secret {name}: named by the pod; Secrets are not read")
        elif kind == "ConfigMap":
            lines.append(await _config_map(reader, namespace, name))
        else:
            lines.append(await _claim(reader, namespace, name))
    if node := spec.get("nodeName"):
        lines.append(await _node(reader, node))
    return "\n".join(lines)


async def _config_map(reader: ClusterReader, namespace: str, name: str) -> str:
    try:
        version = await reader.version("ConfigMap", namespace, name)
    except ClusterRefused as error:
        return f"ConfigMap {name}: not read: {error.message}"
    if version is None:
        return f"ConfigMap {name}: does not exist"
    return f"ConfigMap {name}: resource version {version}"


async def _claim(reader: ClusterReader, namespace: str, name: str) -> str:
    found = await reader.find("PersistentVolumeClaim", namespace, name)
    if found is None:
        return f"PersistentVolumeClaim {name}: does not exist"
    spec, status = found.get("spec") or {}, found.get("status") or {}
    volume = spec.get("volumeName") or "no volume"
    return f"PersistentVolumeClaim {name}: {status.get('phase')}, {volume}, storage class {spec.get('storageClassName')}"


async def _node(reader: ClusterReader, name: str) -> str:
    try:
        found = await reader.find("Node", "", name)
    except ClusterRefused as error:
        return f"Node {name}: not read: {error.message}"
    if found is None:
        return f"Node {name}: does not exist"
    said = ", ".join(
        f"{one.get('type')}={one.get('status')}"
        for one in (found.get("status") or {}).get("conditions") or ()
    )
    cordoned = ", cordoned" if (found.get("spec") or {}).get("unschedulable") else ""
    return f"Node {name}: {said}{cordoned}"


async def usage_lines(reader: ClusterReader, namespace: str, pod: str) -> str:
    """Return what each container of a pod uses beside its requests and limits. Raises MidwatchError."""
    body = await reader.find("Pod", namespace, pod)
    if body is None:
        return f"{pod} does not exist any more"
    used = await reader.usage(namespace, pod)
    uses = {
        one.get("name"): one.get("usage") or {}
        for one in (used or {}).get("containers") or ()
    }
    lines = []
    for one in (body.get("spec") or {}).get("containers") or ():
        name = one.get("name")
        resources = one.get("resources") or {}
        for what in ("cpu", "memory"):
            asked = (resources.get("requests") or {}).get(what, "none")
            limit = (resources.get("limits") or {}).get(what, "none")
            now = (uses.get(name) or {}).get(what, "not known")
            lines.append(f"{name} {what}: uses {now}, request {asked}, limit {limit}")
    if used is None:
        lines.append("the cluster serves no metrics of this pod (metrics.k8s.io)")
    return "\n".join(lines)
