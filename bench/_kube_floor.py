"""The floors under the operator, each a process of its own and plainly with lightkube: `watch` what the operator
watches and keep nothing of it, `create` the objects of every session.

Only what a floor needs is imported, when it needs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightkube import AsyncClient
from lightkube.config.kubeconfig import KubeConfig
from lightkube.generic_resource import create_namespaced_resource
from lightkube.operators import exists

from midwatch.kube.rules import GROUP, KIND, PLURAL, SESSION_LABEL, VERSION

_RBAC = "rbac.authorization.k8s.io"
_KINDS: dict[str, type[Any]] = {
    kind: create_namespaced_resource(group, version, kind, plural)
    for group, version, kind, plural in (
        ("", "v1", "ServiceAccount", "serviceaccounts"),
        ("", "v1", "Secret", "secrets"),
        ("", "v1", "Event", "events"),
        (_RBAC, "v1", "Role", "roles"),
        (_RBAC, "v1", "RoleBinding", "rolebindings"),
        ("batch", "v1", "Job", "jobs"),
        ("", "v1", "Pod", "pods"),
    )
}
_SESSIONS = create_namespaced_resource(GROUP, VERSION, KIND, PLURAL)
_TOKEN = "x" * 200  # about as long as a real one


def main(kubeconfig: str, what: str, number: str) -> None:
    work = watch if what == "watch" else create
    asyncio.run(work(Path(kubeconfig), int(number)))


async def watch(kubeconfig: Path, sessions: int) -> None:
    """List and watch sessions, Jobs and pods. Print "seen all" after the given number of sessions."""
    config = KubeConfig.from_file(kubeconfig).get()
    seen = set[str]()

    async def follow(client: AsyncClient, kind: type[Any]) -> None:
        labels: Any = None if kind is _SESSIONS else {SESSION_LABEL: exists()}
        listed = client.list(kind, namespace="*", labels=labels, chunk_size=500)
        async for one in listed:
            note(kind, one)
        version = listed.resourceVersion
        async for _, one in client.watch(
            kind, namespace="*", labels=labels, resource_version=version
        ):
            note(kind, one)

    def note(kind: type[Any], one: Any) -> None:
        if kind is _SESSIONS and one.metadata.name not in seen:
            seen.add(one.metadata.name)
            if len(seen) == sessions:
                print("seen all", flush=True)

    async with AsyncClient(config, trust_env=False) as client:
        kinds = (_SESSIONS, _KINDS["Job"], _KINDS["Pod"])
        await asyncio.gather(*(follow(client, kind) for kind in kinds))


async def create(kubeconfig: Path, concurrency: int) -> None:
    """Create what the operator creates for each session, with bounded concurrency."""
    manifests_of = _manifests()
    config = KubeConfig.from_file(kubeconfig).get()
    async with AsyncClient(config, trust_env=False) as client:
        bodies = [dict(one) async for one in client.list(_SESSIONS, namespace="*")]
        waiting = iter([manifests_of(body) for body in bodies])

        async def work() -> None:
            for manifests in waiting:
                for one in manifests:
                    await client.create(_KINDS[one["kind"]](one))

        await asyncio.gather(*(work() for _ in range(concurrency)))


def _manifests() -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    from datetime import UTC, datetime

    from midwatch.kube.controller import event_manifest
    from midwatch.kube.manifests import job, objects
    from midwatch.kube.reconcile import Event
    from midwatch.kube.resource import read_resource
    from midwatch.settings import OperatorSettings

    settings = OperatorSettings(image="midwatch:testing")
    event = Event("Normal", "JobCreated", "waiting for its pod", 1)

    def manifests_of(body: dict[str, Any]) -> list[dict[str, Any]]:
        resource = read_resource(body)
        return [
            *objects(resource, settings, _TOKEN),
            job(resource, settings, attempt=1, timeout=3600, resume_from=None),
            event_manifest(resource, event, datetime.now(UTC)),
        ]

    return manifests_of
