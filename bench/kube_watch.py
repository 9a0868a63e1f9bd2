"""The subject kind `kubernetes`: memory with 5,000 pods, processor time of an event and of an observation, and requests at rest.

The API server is ours, in this process, and each side is a process of its own. Beside ours runs a bare list and watch of pods with
lightkube, and a handler of kopf, the framework for operators: each keeps each pod as it gets it, as an informer does, and looks at nothing. Ours watches all its kinds.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from midwatch.model import Json
from tests.cluster import ApiServer

from ._kube_watch_sides import LAST
from .report import Row, against_bound, against_floor, sized

PODS = sized(5_000, 200)
EVENTS = sized(2_000, 100)
PEERS = {"lightkube": "bare lightkube watch", "kopf": "a handler of kopf"}
MEMORY_AIM = 60.0
"""Megabytes above a process at rest."""
EVENT_AIM = 1.0
"""Milliseconds of processor time."""
_TICK = 0.01
"""Seconds: the kernel counts processor time in these."""
REQUESTS_AIM = 30.0
"""Requests in an hour in which nothing happens."""


async def run() -> Sequence[Row]:
    """Return the rows. Takes about two minutes."""
    return await asyncio.to_thread(_rows)


def _rows() -> list[Row]:
    with ApiServer() as server, tempfile.TemporaryDirectory() as name:
        kubeconfig = server.kubeconfig(Path(name) / "kubeconfig")
        for number in range(PODS):
            server.objects.create(_pod(number))
            patch = {"status": _status(0)}
            server.objects.merge(
                "pods", "default", f"shop-{number}", patch, sub="status"
            )
        others = {
            side: _side(server, kubeconfig, side, turn)
            for turn, side in enumerate(PEERS)
        }
        server.requests.clear()
        ours = _side(server, kubeconfig, "ours", len(PEERS))
        watches = [
            int(one.query["timeoutSeconds"])
            for one in server.requests.where(lambda one: one.verb == "watch")
        ]
        missing = server.requests.where(lambda one: one.status == 404)
    assert {one["pods"] for one in (ours, *others.values())} == {PODS}
    # What is not served is asked for as often as a watch is opened again.
    an_hour = sum(3600 / (seconds * 0.87) for seconds in watches) + len(missing)
    what = f"kube_watch: memory of {PODS:,} pods above rest"
    event = "kube_watch: processor time of an event"
    return [
        against_bound(what, ours["memory"], MEMORY_AIM, "MB", measure="memory"),
        *(
            against_floor(
                f"{what}, beside pods alone",
                ours["memory"],
                others[side]["memory"],
                None,
                "MB",
                measure="memory",
                against=name,
            )
            for side, name in PEERS.items()
        ),
        against_bound(event, ours["event"], EVENT_AIM, "ms", measure="processor"),
        *(
            against_floor(
                f"{event}, beside",
                ours["event"],
                max(others[side]["event"], _TICK / EVENTS * 1000),
                None,
                measure="processor",
                against=name,
            )
            for side, name in PEERS.items()
        ),
        against_bound(
            f"kube_watch: an observation with {PODS:,} pods",
            ours["observation"] * 1000,
            None,
            "ms",
            measure="processor",
        ),
        against_bound(
            "kube_watch: requests in a quiet hour", an_hour, REQUESTS_AIM, "requests"
        ),
    ]


def _side(
    server: ApiServer, kubeconfig: Path, side: str, turn: int
) -> dict[str, float]:
    """Return what a side needs: megabytes, milliseconds an event, seconds an observation.

    The statuses of each turn differ from those of the turn before: what changes nothing is no event.
    """
    code = "import sys; from bench._kube_watch_sides import main; main(*sys.argv[1:])"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(kubeconfig), side],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        text=True,
    ) as process:
        try:
            at_rest = _answer(process)["idle"]
            listed = _answer(process)
            before = _processor(process)
            for number in range(EVENTS):
                restarts = turn * EVENTS + number + 1
                last = number == EVENTS - 1
                _change(server, number % PODS, restarts, last=last)
            answer = _answer(process)
            used = _processor(process) - before
            if "observation" not in answer:
                answer = _answer(process)
        finally:
            process.kill()
    # So that the next side has a last event to wait for.
    name = f"shop-{(EVENTS - 1) % PODS}"
    patch = {"metadata": {"labels": {LAST: None}}}
    server.objects.merge("pods", "default", name, patch)
    return {
        "memory": listed["listed"] - at_rest,
        "pods": listed["pods"],
        "event": used / EVENTS * 1000,
        "observation": answer["observation"],
    }


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a side ended with {process.wait()}")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _processor(process: subprocess.Popen[str]) -> float:
    times = psutil.Process(process.pid).cpu_times()
    return float(times.user + times.system)


def _change(server: ApiServer, pod: int, restarts: int, *, last: bool) -> None:
    """Change a pod's status as its kubelet does; label the last one."""
    name = f"shop-{pod}"
    status = _status(restarts)
    server.objects.merge("pods", "default", name, {"status": status}, sub="status")
    if last:
        patch = {"metadata": {"labels": {LAST: "yes"}}}
        server.objects.merge("pods", "default", name, patch)


def _pod(number: int) -> Json:
    """A pod of the size that pods have: two containers, probes, variables and managed fields."""
    labels = {"app": f"shop-{number // 10}", "team": f"team-{number % 40}"}
    container: Json = {
        "image": f"registry.example/shop/app-{number // 10}:1.{number % 90}",
        "env": [
            {"name": f"VARIABLE_{one}", "value": f"value-{one}"} for one in range(30)
        ],
        "resources": {
            "requests": {"cpu": "100m", "memory": "128Mi"},
            "limits": {"memory": "256Mi"},
        },
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}},
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": 8080}},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/shop"}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"shop-{number}",
            "labels": labels,
            "annotations": {f"example.com/note-{one}": "x" * 80 for one in range(25)},
        },
        "spec": {
            "nodeName": f"node-{number % 100}",
            "containers": [container | {"name": name} for name in ("app", "proxy")],
            "volumes": [{"name": "config", "configMap": {"name": "shop"}}],
        },
    }


def _status(restarts: int) -> Json:
    at = "2026-01-01T00:00:00Z"
    return {
        "phase": "Running",
        "startTime": at,
        "conditions": [
            {"type": name, "status": "True", "lastTransitionTime": at}
            for name in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
        ],
        "containerStatuses": [
            {
                "name": name,
                "image": "registry.example/shop/app",
                "imageID": "registry.example/shop/app@sha256:" + "0" * 64,
                "containerID": "containerd://" + "0" * 64,
                "ready": True,
                "started": True,
                "restartCount": restarts,
                "state": {"running": {"startedAt": at}},
                "lastState": {},
            }
            for name in ("app", "proxy")
        ],
    }
