"""The sides of `kube_watch`, each a process of its own: the subject kind `kubernetes`, a bare watch with lightkube, and one with kopf.

A side writes a line of JSON for each answer: its memory at rest, its memory once everything is listed, and when it has seen
the last event. It reads commands from its standard input.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

LAST = "last-event"
"""The label of the pod whose event is the last one."""
_REST = 1.0


def main(kubeconfig: str, side: str) -> None:
    asyncio.run({"ours": ours, "lightkube": bare, "kopf": peer}[side](Path(kubeconfig)))


async def ours(kubeconfig: Path) -> None:
    """The subject, as a monitor holds it; `observe` measures an observation."""
    from midwatch.subjects.kubernetes import KubernetesSubject
    from midwatch.subjects.kubernetes.cluster_watch import PODS
    from midwatch.subjects.kubernetes.settings import KubernetesSettings

    settings = KubernetesSettings(name="bench", kubeconfig=kubeconfig, timeout=600)
    subject = KubernetesSubject(settings)
    subject.connection()
    _say(idle=_memory())
    await subject.observe({})

    def is_last() -> bool:
        watch = subject._watch
        assert watch is not None
        return any(LAST in pod.labels for pod in watch.all(PODS))

    await asyncio.sleep(_REST)
    watch = subject._watch
    assert watch is not None
    _say(listed=_memory(), pods=len(list(watch.all(PODS))))
    await _until(is_last)
    _say(seen=True)
    begun = time.process_time()
    for _ in range(10):
        await subject.observe({})
    _say(observation=(time.process_time() - begun) / 10)
    await asyncio.to_thread(sys.stdin.readline)
    await subject.close()


async def bare(kubeconfig: Path) -> None:
    """List and watch pods, and keep each as the library returns it, as an informer does."""
    from lightkube import AsyncClient
    from lightkube.config.kubeconfig import KubeConfig
    from lightkube.generic_resource import create_namespaced_resource

    kind: Any = create_namespaced_resource("", "v1", "Pod", "pods")
    config = KubeConfig.from_file(kubeconfig).get()
    kept: dict[str, Any] = {}
    done = asyncio.Event()
    async with AsyncClient(config, trust_env=False) as client:
        _say(idle=_memory())
        listed = client.list(kind, namespace="*", chunk_size=100)
        async for one in listed:
            kept[one.metadata.name] = one

        async def follow() -> None:
            async for _, one in client.watch(
                kind, namespace="*", resource_version=listed.resourceVersion
            ):
                kept[one.metadata.name] = one
                if LAST in (one.metadata.labels or {}):
                    done.set()

        task = asyncio.create_task(follow())
        await asyncio.sleep(_REST)
        _say(listed=_memory(), pods=len(kept))
        await done.wait()
        _say(seen=True, observation=0.0)
        await asyncio.to_thread(sys.stdin.readline)
        task.cancel()


async def peer(kubeconfig: Path) -> None:
    """Watch pods with a handler of kopf, and keep each as it is given to that, as an informer does."""
    import kopf
    from lightkube.config.kubeconfig import KubeConfig

    single = KubeConfig.from_file(kubeconfig).get()
    assert single is not None and single.user is not None
    user = single.user
    registry, settings = kopf.OperatorRegistry(), kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True
    kept: dict[str, Any] = {}
    done = asyncio.Event()

    async def login(**_: Any) -> Any:
        return kopf.ConnectionInfo(
            server=single.cluster.server,
            token=user.token,
            scheme="Bearer",
            insecure=True,
        )

    async def follow(body: Any, **_: Any) -> None:
        kept[body.metadata.name] = dict(body)
        if LAST in (body.metadata.labels or {}):
            done.set()

    kopf.on.login(registry=registry)(login)
    kopf.on.event("", "v1", "pods", registry=registry)(follow)
    _say(idle=_memory())
    ready = asyncio.Event()
    stop = asyncio.Event()
    task = asyncio.create_task(
        kopf.operator(
            registry=registry,
            settings=settings,
            clusterwide=True,
            standalone=True,
            ready_flag=ready,
            stop_flag=stop,
        )
    )
    await ready.wait()
    known = -1
    while known < len(kept) or not kept:
        known = len(kept)
        await asyncio.sleep(_REST)
    _say(listed=_memory(), pods=len(kept))
    await done.wait()
    _say(seen=True, observation=0.0)
    await asyncio.to_thread(sys.stdin.readline)
    stop.set()
    await task


def _memory() -> float:
    """Return the resident memory of this process in megabytes."""
    gc.collect()
    return float(psutil.Process().memory_info().rss) / 1e6


def _say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


async def _until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.1)
