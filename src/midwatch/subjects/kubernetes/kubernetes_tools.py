"""The tools of a cluster: objects, logs and events, within the namespaces of the subject. Secrets are not among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from midwatch.model import Json, Origin
from midwatch.subjects.kubernetes.cluster_reader import OF_CLUSTER, ClusterReader
from midwatch.subjects.kubernetes.describe import describe, event_lines, pod_lines
from midwatch.subjects.kubernetes.settings import KubernetesSettings
from midwatch.subjects.tools import Answer, Arguments, Refused, Tool

_NAME = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
_MOST_LISTED = 60
Kind = Literal[
    "Pod",
    "Deployment",
    "ReplicaSet",
    "StatefulSet",
    "DaemonSet",
    "Job",
    "CronJob",
    "PersistentVolumeClaim",
    "HorizontalPodAutoscaler",
    "Service",
    "EndpointSlice",
    "Ingress",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "Gateway",
    "HTTPRoute",
    "GatewayClass",
    "ResourceQuota",
    "Node",
    "StorageClass",
]


class ListObjects(Arguments):
    kind: Kind = Field(description="Their kind.")
    namespace: str = Field("", description="Their namespace; empty for nodes.")
    labels: str = Field(
        "", max_length=300, description="A label selector such as app=shop."
    )


class DescribeObject(Arguments):
    kind: Kind = Field(description="Its kind.")
    namespace: str = Field("", description="Its namespace; empty for a node.")
    name: str = Field(pattern=_NAME, description="Its name.")


class PodLog(Arguments):
    namespace: str = Field(pattern=_NAME, description="Its namespace.")
    pod: str = Field(pattern=_NAME, description="Its name.")
    container: str = Field(pattern=_NAME, description="The container.")
    previous: bool = Field(False, description="Whether of the run before.")
    lines: int = Field(100, ge=1, le=500, description="The last lines.")


class Events(Arguments):
    namespace: str = Field(pattern=_NAME, description="The namespace.")
    name: str = Field(
        "", max_length=253, description="An object; empty for all of the namespace."
    )


class KubernetesTools:
    """The tools of one subject.

    Args:
        reader: Reads the cluster.
        settings: Which namespaces and labels may be read.
        limit: Seconds that a request may take.
    """

    def __init__(
        self, reader: ClusterReader, settings: KubernetesSettings, limit: float
    ) -> None:
        self._reader, self._settings, self._limit = reader, settings, limit

    def tools(self) -> Sequence[Tool]:
        """Return the tools."""
        limit = self._limit + 1
        return (
            Tool(
                "list_objects",
                "Objects of a kind, one a line.",
                ListObjects,
                self._list,
                limit,
            ),
            Tool(
                "describe_object",
                "All fields of an object; values of secrets are not shown.",
                DescribeObject,
                self._describe,
                limit,
            ),
            Tool("pod_log", "The end of a container's log.", PodLog, self._log, limit),
            Tool(
                "events",
                "Events of an object or a namespace.",
                Events,
                self._events,
                limit,
            ),
        )

    async def _list(self, asked: ListObjects) -> Answer:
        namespace = self._place(asked.kind, asked.namespace)
        labels = ",".join(filter(None, (self._labels(asked.kind), asked.labels)))
        selectors = {"labelSelector": labels} if labels else {}
        found = await self._reader.list_objects(asked.kind, namespace, 200, **selectors)
        lines = [_line(asked.kind, one) for one in found[:_MOST_LISTED]]
        if len(found) > _MOST_LISTED:
            lines.append(f"… and {len(found) - _MOST_LISTED} more, or yet more")
        where = f" -n {namespace}" if namespace else ""
        chosen = f" -l {labels}" if labels else ""
        return Answer(f"get {asked.kind}{where}{chosen}", "\n".join(lines))

    async def _describe(self, asked: DescribeObject) -> Answer:
        namespace = self._place(asked.kind, asked.namespace)
        found = await self._reader.get(asked.kind, namespace, asked.name)
        where = f" -n {namespace}" if namespace else ""
        command = f"get {asked.kind} {asked.name}{where}"
        return Answer(command, describe(found, asked.kind, 250))

    async def _log(self, asked: PodLog) -> Answer:
        namespace = self._place("Pod", asked.namespace)
        text = await self._reader.log(
            namespace,
            asked.pod,
            asked.container,
            previous=asked.previous,
            lines=asked.lines,
        )
        previous = " --previous" if asked.previous else ""
        command = f"logs {asked.pod} -c {asked.container} -n {namespace}{previous} --tail={asked.lines}"
        return Answer(command, text, origin=Origin.REPORTED)

    async def _events(self, asked: Events) -> Answer:
        namespace = self._place("Event", asked.namespace)
        if asked.name:
            found = await self._reader.events(namespace, [asked.name])
        else:
            found = await self._reader.list_objects("Event", namespace, 500)
        about = f" {asked.name}" if asked.name else ""
        return Answer(f"events{about} -n {namespace}", event_lines(found, 100))

    def _place(self, kind: str, namespace: str) -> str:
        """Return the namespace to read. Raises Refused for one that is not of the subject."""
        settings = self._settings
        if kind in OF_CLUSTER:
            if not settings.cluster_objects:
                raise Refused(f"{kind}s are not of this subject")
            return ""
        if not namespace:
            raise Refused(f"name the namespace of the {kind}")
        if settings.namespaces and namespace not in settings.namespaces:
            raise Refused(
                f"this subject has the namespaces {', '.join(settings.namespaces)}"
            )
        if namespace in settings.exclude_namespaces:
            raise Refused(f"{namespace} is not of this subject")
        return namespace

    def _labels(self, kind: str) -> str:
        return "" if kind in (*OF_CLUSTER, "ResourceQuota") else self._settings.selector


def _line(kind: str, body: Json) -> str:
    if kind == "Pod":
        return "; ".join(text.strip() for text in pod_lines(body)[:4])
    meta, spec, status = (
        body.get("metadata") or {},
        body.get("spec") or {},
        body.get("status") or {},
    )
    numbers = [
        f"{name}={value}"
        for part in (spec, status)
        for name, value in part.items()
        if isinstance(value, str | int | bool) and len(str(value)) < 60
    ]
    said = [
        f"{one.get('type')}={one.get('status')}"
        for one in status.get("conditions") or ()
    ]
    return f"{meta.get('name')}: {', '.join([*numbers[:14], *said])}"
