"""Objects of a cluster as plain text, one fact a line, without the values of secrets (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime

from midwatch.model import Json
from midwatch.text import one_line, reported

MOST_LINES = 150
_LONGEST = 400
_DROPPED = {
    "apiVersion",
    "kind",
    "metadata.managedFields",
    "metadata.annotations",
    "metadata.selfLink",
    "metadata.uid",
    "metadata.generateName",
}
_KEPT_ANNOTATIONS = ("deployment.kubernetes.io/revision", "kubernetes.io/change-cause")
_SECRET_NAME = re.compile(
    r"(?i)pass|secret|token|credential|api_?key|private|auth|dsn|conn(ection)?_?str"
)
_KEYS = ("name", "type", "containerPort", "key", "ip", "topologyKey")
"""What tells the items of a list apart."""
REVISION_LABEL = "controller-revision-hash"
"""The label of pods of StatefulSets and DaemonSets that names their revision."""
_VALUES = {"ConfigMap", "Secret"}
"""Kinds of which only the names of the values are shown."""


def describe(body: Json, kind: str, most: int = MOST_LINES) -> str:
    """Return the fields of an object, one a line, such as `spec.containers[app].image: shop:2`."""
    lines = [f"{path}: {value}" for path, value in flat(body, kind)]
    if len(lines) > most:
        lines = [*lines[:most], f"… and {len(lines) - most} more fields"]
    return "\n".join(lines)


def flat(body: Json, kind: str = "") -> Iterator[tuple[str, str]]:
    """Yield the fields of an object with their values as text; what a workload wrote is marked as reported."""
    annotations = (body.get("metadata") or {}).get("annotations")
    for name in _KEPT_ANNOTATIONS:
        if isinstance(annotations, dict) and name in annotations:
            yield f"metadata.annotations.{name}", reported(_line(annotations[name]))
    shown = body
    if kind in _VALUES:
        shown = {
            key: value
            for key, value in body.items()
            if key not in ("data", "stringData", "binaryData")
        }
        for part in ("data", "binaryData"):
            for name, value in sorted((body.get(part) or {}).items()):
                if kind == "ConfigMap":
                    yield f"{part}.{name}", f"({len(str(value))} characters)"
    yield from _fields("", shown)


def _fields(path: str, value: object) -> Iterator[tuple[str, str]]:
    if path in _DROPPED:
        return
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _fields(f"{path}.{key}" if path else str(key), item)
    elif isinstance(value, list):
        if path.rpartition(".")[2] == "env":
            yield from _environment(path, value)
            return
        for index, item in enumerate(value):
            yield from _fields(f"{path}[{_name(item, index)}]", item)
    elif value is not None:
        text = _line(value)
        is_written = path.endswith(".terminated.message")
        yield path, reported(text) if is_written else text


def _environment(path: str, variables: Sequence[object]) -> Iterator[tuple[str, str]]:
    for one in variables:
        if not isinstance(one, dict):
            continue
        name = str(one.get("name"))
        where = f"{path}[{name}]"
        source = one.get("valueFrom")
        if isinstance(source, dict):
            yield where, _source(source)
        elif _SECRET_NAME.search(name) and one.get("value"):
            yield where, "(a value that is not shown)"
        else:
            yield where, _line(one.get("value") or "")


def _source(source: Json) -> str:
    for kind, what in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
        found = source.get(kind)
        if isinstance(found, dict):
            return f"from the {what} {found.get('name')}, key {found.get('key')}"
    return f"from {', '.join(source)}"


def _name(item: object, index: int) -> str:
    if isinstance(item, dict):
        for key in _KEYS:
            if isinstance(item.get(key), str | int):
                return str(item[key])
    return str(index)


def _line(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return one_line(str(value), _LONGEST)


def differences(old: Json, new: Json, most: int = 40) -> list[str]:
    """Return what differs between two pod templates, one field a line."""
    before, after = dict(flat(old)), dict(flat(new))
    lines = []
    for path in sorted(before.keys() | after.keys()):
        was, now = before.get(path), after.get(path)
        if was == now or "pod-template-hash" in path:
            continue
        if was is None:
            lines.append(f"added {path}: {now}")
        elif now is None:
            lines.append(f"removed {path}, before: {was}")
        else:
            lines.append(f"changed {path}: {was} -> {now}")
    if len(lines) > most:
        lines = [*lines[:most], f"… and {len(lines) - most} more differences"]
    return lines


# ------------------------------------------------------------------ pods and events


def pod_lines(body: Json) -> list[str]:
    """Return a pod and its containers, one line each."""
    meta, status = body.get("metadata") or {}, body.get("status") or {}
    node = (body.get("spec") or {}).get("nodeName") or "no node"
    ready = next(
        (
            one.get("status")
            for one in status.get("conditions") or ()
            if one.get("type") == "Ready"
        ),
        "unknown",
    )
    why = f", {status['reason']}" if status.get("reason") else ""
    deleted = ", is being deleted" if meta.get("deletionTimestamp") else ""
    labels = meta.get("labels") or {}
    revision = labels.get(REVISION_LABEL)
    of = f", revision {_line(revision)}" if revision else ""
    lines = [
        f"pod {meta.get('name')}: {status.get('phase')}{why} on {node}, ready {ready}, created {meta.get('creationTimestamp')}{of}{deleted}"
    ]
    for one in status.get("conditions") or ():
        if one.get("status") != "True" and one.get("message"):
            lines.append(
                f"  condition {one.get('type')} {one.get('status')}: {one.get('reason')}: {_line(one['message'])}"
            )
    for group in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(group) or ():
            lines.append(f"  {_container_line(container)}")
            lines += [f"    {text}" for text in _ends(container)]
    return lines


def _container_line(one: Json) -> str:
    state = one.get("state") or {}
    word = next(iter(state), "unknown")
    about: Json = state.get(word) or {}
    detail = {
        "waiting": f"{about.get('reason')}: {_line(about.get('message') or '')}".rstrip(
            ": "
        ),
        "running": f"since {about.get('startedAt')}",
        "terminated": f"exit code {about.get('exitCode')} ({about.get('reason')}) at {about.get('finishedAt')}",
    }.get(word, "")
    return f"container {one.get('name')} ({one.get('image')}): {word} {detail}, {one.get('restartCount', 0)} restarts"


def _ends(one: Json) -> list[str]:
    """Return how the run before ended, and what the container wrote about its end."""
    lines = []
    last = (one.get("lastState") or {}).get("terminated")
    if last:
        lines.append(
            f"the run before: {last.get('startedAt')} to {last.get('finishedAt')}, exit code {last.get('exitCode')} ({last.get('reason')})"
        )
    for end in (last, (one.get("state") or {}).get("terminated")):
        if end and end.get("message"):
            lines.append(f"its termination message: {reported(_line(end['message']))}")
    return lines


def event_lines(events: Sequence[Json], most: int = 60) -> str:
    """Return events, oldest first. Their messages may quote what a workload wrote, and any client with the permission may write events."""
    found = sorted(events, key=event_time)[-most:]
    lines = []
    for one in found:
        about = one.get("involvedObject") or {}
        count = (one.get("series") or {}).get("count") or one.get("count") or 1
        times = f" ×{count}" if count > 1 else ""
        message = reported(_line(one.get("message") or ""))
        lines.append(
            f"{event_time(one)} {one.get('type')} {one.get('reason')} {about.get('kind')}/{about.get('name')}{times}: {message}"
        )
    return "\n".join(lines)


def event_time(event: Json) -> str:
    """Return when an event was last seen, in RFC 3339; empty if it does not say."""
    series = event.get("series") or {}
    for found in (
        series.get("lastObservedTime"),
        event.get("lastTimestamp"),
        event.get("eventTime"),
        (event.get("metadata") or {}).get("creationTimestamp"),
    ):
        if isinstance(found, str):
            try:
                return f"{datetime.fromisoformat(found):%Y-%m-%dT%H:%M:%SZ}"
            except ValueError:
                continue
    return ""
