"""What the tests of the kind `kubernetes` share: a cluster with processes, its objects, and the verdicts of observations."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import hashlib
import json
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from midwatch.agent.evidence import ContextGatherer
from midwatch.documents import read_yaml
from midwatch.errors import ObservationFailed
from midwatch.lifecycle import SystemClock
from midwatch.model import Context, Key, Observation, Ticket
from midwatch.monitor.rules import check
from midwatch.redaction import Redactor
from midwatch.subjects.kubernetes import KubernetesSubject
from midwatch.subjects.kubernetes.settings import KubernetesSettings
from tests.cluster import ApiServer

from ..waiting import PATIENCE
from .web import Issued, ok, serving

Json = dict[str, Any]
REVISION = "deployment.kubernetes.io/revision"
Broken = set[tuple[str, str]]


class Ahead(SystemClock):
    """The machine's clock, set ahead by `seconds`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.seconds)

    async def sleep(self, seconds: float) -> None:
        """Long waits, such as that after a refusal, take a moment."""
        await super().sleep(min(seconds, 0.1))


class Watched:
    """A subject on a server, and its last observation."""

    def __init__(self, server: ApiServer, folder: Path, **settings: Any) -> None:
        self.clock = Ahead()
        kubeconfig = settings.pop("kubeconfig", None)
        kubeconfig = kubeconfig or server.kubeconfig(folder / "kubeconfig")
        patient = {"timeout": PATIENCE}  # for handshakes on a busy machine
        given = {"name": "cluster", "kubeconfig": kubeconfig, **patient, **settings}
        self.subject = KubernetesSubject(KubernetesSettings(**given), self.clock)
        self.last = Observation((), frozenset())

    async def __aenter__(self) -> Watched:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.subject.close()

    async def observe(self) -> Observation:
        self.last = await self.subject.observe(self.last.state)
        return self.last

    async def until(self, met: Callable[[Broken], object]) -> Broken:
        """Observe until what is broken is as it should be."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                await self.observe()
            except ObservationFailed as failure:
                found, why = None, failure.one_line()
            else:
                found, why = self.broken(), str(self.last.unavailable)
                if met(found):
                    return found
            assert time.monotonic() < end, (found, why)
            await asyncio.sleep(0.05)

    def broken(self) -> Broken:
        return {(key.invariant, key.component) for key in self._checked().broken}

    def known(self, invariant: str, component: str) -> bool:
        """Whether the monitor takes this for known: broken, or resolved."""
        return self._checked().known(Key("cluster", invariant, component))

    def _checked(self) -> Any:
        invariants = {one.id: one for one in self.subject.invariants}
        return check("cluster", invariants, self.last, {}, 0.0)

    def tickets(self, *wanted: str) -> list[Ticket]:
        from midwatch.testing.subject_conformance import tickets_for

        broken = self.broken()
        signals = [
            one
            for one in self.last.signals
            if (one.invariant, one.component) in broken
            and (not wanted or one.invariant in wanted)
        ]
        last = replace(self.last, signals=tuple(signals))
        return tickets_for(self.subject, last) if signals else []

    async def gathered(self, tickets: list[Ticket], tokens: int = 12_000) -> Context:
        gatherer = ContextGatherer(
            {self.subject.name: self.subject}, Redactor(), SystemClock()
        )
        return await gatherer.gather(tickets, timeout=PATIENCE, tokens=tokens)


# ------------------------------------------------------------------ objects


def namespace(server: ApiServer, name: str) -> str:
    server.objects.create(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    )
    return name


def pod_spec(*command: str, **extra: Any) -> Json:
    container: Json = {"name": "app", "image": "registry.example/shop:2"}
    if command:
        container["command"] = [*command]
    container |= extra.pop("container", {})
    return {"containers": [container], **extra}


def owner(kind: str, body: Json) -> Json:
    return {
        "apiVersion": body["apiVersion"],
        "kind": kind,
        "name": body["metadata"]["name"],
        "uid": body["metadata"]["uid"],
        "controller": True,
    }


def deployment(
    server: ApiServer, space: str, name: str, replicas: int = 2, **spec: Any
) -> Json:
    """A Deployment with its ReplicaSet, as its controller would make it; return the ReplicaSet."""
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": spec or pod_spec()}
    wanted = {"replicas": replicas, "selector": {"matchLabels": labels}}
    made = server.objects.create(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name},
            "spec": {**wanted, "template": template},
        },
        space,
    )
    return revision(server, space, made, 1, template["spec"], replicas)


def revision(
    server: ApiServer, space: str, made: Json, number: int, spec: Json, replicas: int
) -> Json:
    """The ReplicaSet of a revision of a Deployment, which says that it is the latest."""
    name = made["metadata"]["name"]
    latest = {"metadata": {"annotations": {REVISION: str(number)}}}
    server.objects.merge("deployments", space, name, latest)
    digest = f"{number}d9f"
    labels = {"app": name, "pod-template-hash": digest}
    return server.objects.create(
        {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": f"{name}-{digest}",
                "labels": labels,
                "annotations": {REVISION: str(number)},
                "ownerReferences": [owner("Deployment", made)],
            },
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": spec},
            },
        },
        space,
    )


def roll_out(server: ApiServer, space: str, name: str) -> Json:
    """Do what the controllers do once a Deployment has changed, and return its present ReplicaSet.

    The ReplicaSet of its template gets the latest revision and all pods, and the others keep none.
    """
    made = server.objects.get("deployments", space, name)
    spec = made["spec"]
    text = json.dumps(spec["template"], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    owned = server.objects.owned("replicasets", made["metadata"]["uid"])
    numbers = {one["metadata"]["name"]: _number(one) for one in owned}
    named, latest = f"{name}-{digest}", max(numbers.values(), default=0)
    if named not in numbers:
        labels = {"app": name, "pod-template-hash": digest}
        template = copy.deepcopy(spec["template"])
        template["metadata"]["labels"] = labels
        document = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": named,
                "labels": labels,
                "ownerReferences": [owner("Deployment", made)],
            },
            "spec": {"selector": {"matchLabels": labels}, "template": template},
        }
        server.objects.create(document, space)
    if numbers.get(named, 0) < max(latest, 1):
        numbers[named] = latest + 1
    own = made["metadata"].get("annotations", {})
    annotations = {**own, _REVISION: str(numbers[named])}
    for one in numbers:
        wanted = spec["replicas"] if one == named else 0
        change: Json = {"spec": {"replicas": wanted}}
        if one == named:
            change["metadata"] = {"annotations": annotations}
        server.objects.merge("replicasets", space, one, change)
    for pod in server.objects.list("pods", space, f"app={name}"):
        if pod["metadata"]["labels"]["pod-template-hash"] != digest:
            server.objects.delete("pods", space, pod["metadata"]["name"], grace=0)
    present = server.objects.get("replicasets", space, named)
    if not server.objects.owned("pods", present["metadata"]["uid"]):
        pods(server, space, present, spec["replicas"])
    server.objects.merge(
        "deployments", space, name, {"metadata": {"annotations": annotations}}
    )
    seen = {"status": {"observedGeneration": made["metadata"]["generation"]}}
    server.objects.merge("deployments", space, name, seen, sub="status")
    return present


_REVISION = "deployment.kubernetes.io/revision"


def _number(replica_set: Json) -> int:
    return int(replica_set["metadata"].get("annotations", {}).get(_REVISION, 0))


def pods(server: ApiServer, space: str, replica_set: Json, count: int) -> list[str]:
    """The pods of a ReplicaSet, as its controller would make them."""
    template = replica_set["spec"]["template"]
    names = [f"{replica_set['metadata']['name']}-{one}" for one in range(count)]
    for name in names:
        meta = {
            "name": name,
            "labels": template["metadata"]["labels"],
            "ownerReferences": [owner("ReplicaSet", replica_set)],
        }
        server.objects.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": meta,
                "spec": template["spec"],
            },
            space,
        )
    return names


def job(server: ApiServer, space: str, name: str, *command: str, **meta: Any) -> Json:
    template = {"spec": {**pod_spec(*command), "restartPolicy": "Never"}}
    return server.objects.create(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, **meta},
            "spec": {"template": template, "backoffLimit": 0},
        },
        space,
    )


def ingress(server: ApiServer, space: str, name: str, host: str) -> None:
    """An Ingress with TLS for a host; `reached` says where."""
    server.objects.create(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "Ingress",
            "metadata": {"name": name},
            "spec": {
                "tls": [{"hosts": [host], "secretName": f"{name}-tls"}],
                "rules": [{"host": host}],
            },
        },
        space,
    )


def reached(server: ApiServer, space: str, name: str, port: int) -> None:
    """Let the status of an Ingress say that it is reached on loopback."""
    place = {"ip": "127.0.0.1", "ports": [{"port": port, "protocol": "TCP"}]}
    status = {"status": {"loadBalancer": {"ingress": [place]}}}
    server.objects.merge("ingresses", space, name, status, sub="status")


class TlsHosts:
    """A TLS server on loopback that shows each host its own certificate; `asked` has the names of the handshakes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._stack = contextlib.ExitStack()

    def show(self, host: str, issued: Issued) -> None:
        self._contexts[host] = issued.context(self.folder)

    def __enter__(self) -> TlsHosts:
        context = Issued.root().issue("default.example").context(self.folder)
        context.sni_callback = self._choose
        url = self._stack.enter_context(serving(ok, context))
        self.port = int(url.rpartition(":")[2])
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _choose(self, secured: ssl.SSLObject, host: str | None, _: object) -> None:
        self.asked.append(host or "")
        if host in self._contexts:
            secured.context = self._contexts[host]


# ------------------------------------------------------------------ recorded objects

RECORDED = Path(__file__).parent / "kubernetes_objects"
_AGO = re.compile(r"@-(\d+)")


def recorded(server: ApiServer, name: str) -> list[Json]:
    """Create the objects of a file, with their statuses, and return them; the server has the Gateway API then."""
    gateway_api(server)
    documents = read_yaml((RECORDED / f"{name}.yaml").read_bytes())
    made: dict[tuple[str, str], Json] = {}
    for document in _timed(documents, datetime.now(UTC)):
        status = document.pop("status", None)
        above = document.pop("owner", None)
        meta = document["metadata"] = {**document["metadata"]}
        if isinstance(above, str):
            kind, _, above_name = above.partition("/")
            meta["ownerReferences"] = [owner(kind, made[kind, above_name])]
        elif above:
            keeper = {"apiVersion": "v1", "kind": "ConfigMap"}
            kept = server.objects.apply(
                {**keeper, "metadata": {"name": "kept"}}, "shop"
            )
            custom = {**above, "uid": kept["metadata"]["uid"], "controller": True}
            meta["ownerReferences"] = [custom]
        one = server.objects.create(document, "shop")
        made[one["kind"], meta["name"]] = one
        if status is not None:
            space = one["metadata"].get("namespace", "")
            place = plural_of(one["kind"]), space, meta["name"]
            server.objects.merge(*place, {"status": status}, sub="status")
    return list(made.values())


PLURALS = {
    "Ingress": "ingresses",
    "StorageClass": "storageclasses",
    "NetworkPolicy": "networkpolicies",
    "GatewayClass": "gatewayclasses",
}


def plural_of(kind: str) -> str:
    return PLURALS.get(kind, f"{kind.lower()}s")


def gateway_api(server: ApiServer) -> None:
    """Install the Gateway API. Its own schemas are long; what the API server does with any of them is the same."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    parts = {"spec": anything, "status": anything}
    schema = {"openAPIV3Schema": {"type": "object", "properties": parts}}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema}
    for kind in ("GatewayClass", "Gateway", "HTTPRoute"):
        plural = plural_of(kind)
        group = "gateway.networking.k8s.io"
        server.objects.create(
            {
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {"name": f"{plural}.{group}"},
                "spec": {
                    "group": group,
                    "scope": "Cluster" if kind == "GatewayClass" else "Namespaced",
                    "names": {"plural": plural, "kind": kind},
                    "versions": [{**version, "subresources": {"status": {}}}],
                },
            }
        )


def _timed(value: Any, now: datetime) -> Any:
    if isinstance(value, dict):
        return {key: _timed(item, now) for key, item in value.items()}
    if isinstance(value, list):
        return [_timed(item, now) for item in value]
    if isinstance(value, str) and (found := _AGO.fullmatch(value)):
        at = now - timedelta(seconds=int(found[1]))
        return f"{at:%Y-%m-%dT%H:%M:%SZ}"
    return value
