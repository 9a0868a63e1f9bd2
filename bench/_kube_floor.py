"""The floors under the operator, each a process of its own: `watch` what kopf is told and do nothing with it,
`create` the objects of every session plainly with lightkube."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kopf
from lightkube import AsyncClient
from lightkube.config.kubeconfig import KubeConfig
from lightkube.generic_resource import create_namespaced_resource

from midwatch.kube.client import read_access
from midwatch.kube.controller import event_manifest
from midwatch.kube.manifests import job, objects
from midwatch.kube.reconcile import Event
from midwatch.kube.resource import read_resource
from midwatch.kube.rules import GROUP, KIND, PLURAL, VERSION
from midwatch.model import Json
from midwatch.settings import OperatorSettings
from tests.cluster.local import Daemon

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
    )
}
_SESSIONS = create_namespaced_resource(GROUP, VERSION, KIND, PLURAL)
_TOKEN = "x" * 200  # about as long as a real one


def daemon(folder: Path, kubeconfig: Path, *words: str) -> Daemon:
    """A floor as a process, not yet started."""
    code = "import sys; from bench._kube_floor import main; main(*sys.argv[1:])"
    root = Path(__file__).parents[1]
    return Daemon(
        folder,
        f"floor-{words[0]}",
        (str(kubeconfig), *words),
        {"PYTHONPATH": str(root)},
        code=code,
    )


def main(kubeconfig: str, what: str, number: str) -> None:
    if what == "watch":
        watch(Path(kubeconfig), int(number))
    else:
        asyncio.run(create(Path(kubeconfig), int(number)))


# ------------------------------------------------------------------ kopf alone


def watch(kubeconfig: Path, sessions: int) -> None:
    """Say so once that many were seen."""
    registry, seen = kopf.OperatorRegistry(), set[str]()

    async def login(**_: Any) -> kopf.ConnectionInfo:
        access = read_access(kubeconfig)
        return kopf.ConnectionInfo(
            server=access.server, ca_data=access.ca_data, token=access.token
        )

    async def nothing(name: str, **_: Any) -> None:
        seen.add(name)
        if len(seen) == sessions:
            print("seen all", flush=True)

    kopf.on.login(registry=registry)(login)
    kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)(nothing)
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    kopf.run(registry=registry, settings=settings, clusterwide=True, standalone=True)


# ------------------------------------------------------------------ lightkube alone


async def create(kubeconfig: Path, concurrency: int) -> None:
    """What the operator creates for each session, so many sessions at a time."""
    config = KubeConfig.from_file(kubeconfig).get()
    async with AsyncClient(config, trust_env=False) as client:
        bodies = [dict(one) async for one in client.list(_SESSIONS, namespace="*")]
        waiting = iter([_manifests(body) for body in bodies])

        async def work() -> None:
            for manifests in waiting:
                for one in manifests:
                    await client.create(_KINDS[one["kind"]](one))

        await asyncio.gather(*(work() for _ in range(concurrency)))


def _manifests(body: Json) -> list[Json]:
    resource, settings = read_resource(body), OperatorSettings(image="midwatch:testing")
    told = Event("Normal", "JobCreated", "waiting for its pod", 1)
    return [
        *objects(resource, settings, _TOKEN),
        job(resource, settings, attempt=1, timeout=3600, resume_from=None),
        event_manifest(resource, told, datetime.now(UTC)),
    ]
