"""The operator: requests to the API server, memory with 1,000 live sessions, and how fast they get their Jobs.

The API server and the nodes are ours, in this process; the operator is a process of its own with the rights of the
chart. Floors, both plainly with lightkube: a process that watches the same objects and keeps nothing of them, and one
that makes the same objects, as many at a time.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from deploy import render

from midwatch.kube.rules import PLURAL
from midwatch.kube.status import phase_of
from midwatch.model import Json
from midwatch.settings import OperatorSettings
from midwatch.testing.fakes import make_repository
from midwatch.testing.messages_api import Answer, Rule, ScriptedMessagesAPI, ToolUse
from tests.cluster import ContainerExits, ContainerRuns
from tests.cluster.local import TEAM, Daemon, LocalCluster

from ._meter import Cost, Meter
from .report import Round, Row, against_bound, against_floor, compared, sized, turns

SESSIONS = sized(1000, 50)
PER_LIFE = 30.0
"""Requests of operator and runner together for one short session."""
PER_SESSION = 18.0
"""Requests of the operator alone."""
MEMORY_AIM, SPEED_AIM = 1.5, 1.5
"""Besides the 6 objects of a session, the operator writes to the resource twice and receives 10 watch events."""
_PATIENCE = 600.0
_REST = 3.0
"""Seconds until a process has released the memory of its peak load."""
_NO_API = "http://127.0.0.1:9"


async def run() -> Sequence[Row]:
    """Return the rows. Takes about four minutes."""
    rows = await asyncio.to_thread(lambda: [_one_life(), _ended(), *_live()])
    return [*rows, *await _made_in_turns()]


@contextmanager
def _cluster(api_url: str) -> Iterator[LocalCluster]:
    rules = render.rules_for()[""]
    with (
        tempfile.TemporaryDirectory(prefix="midwatch-bench-") as name,
        LocalCluster(Path(name), api_url, rules=rules) as cluster,
    ):
        cluster.wait_for_content()
        _until(lambda: "operator started" in cluster.operator.log.read_text())
        yield cluster


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE
    while not true():
        if time.monotonic() > end:
            raise TimeoutError("the cluster does not come to it")
        time.sleep(0.05)


# ------------------------------------------------------------------ one session


def _one_life() -> Row:
    """A real runner changes a file, pushes and ends; then the resource is deleted."""
    edit = ToolUse("Bash", {"command": "echo done >> main.py"})
    steps = [Answer(tool_uses=[edit]), Answer("Done.")]
    with (
        tempfile.TemporaryDirectory() as name,
        ScriptedMessagesAPI(Rule(steps, tools=True)) as api,
        _cluster(api.base_url) as cluster,
    ):
        shop = make_repository(Path(name) / "shop", {"main.py": "print(1)\n"})
        before = _asked(cluster)
        cluster.create("fix", _spec(f"file://{shop}") | {"autoPushOnComplete": True})
        body = cluster.until("fix", lambda body: _phase(body) == "Completed")
        assert body is not None and body["status"]["repos"][0]["state"] == "pushed"
        cluster.delete("fix")
        cluster.until("fix", lambda body: body is None)
        requests = _asked(cluster) - before
    what = "kube: requests of one session's life, operator and runner"
    return against_bound(what, requests, PER_LIFE, "requests")


def _spec(url: str) -> Json:
    return {"prompt": "Mend it.", "repos": [{"input": {"url": url}}], "timeout": 3600}


def _phase(body: Json | None) -> str:
    return phase_of(body or {}).value


def _asked(cluster: LocalCluster) -> int:
    """Return the requests until now without watches, whose number does not depend on the sessions."""
    return len(cluster.server.requests.where(lambda one: one.verb not in ("", "watch")))


# ------------------------------------------------------------------ a thousand


def _ended() -> Row:
    """Each pod ends at once without a status of its own: the operator writes every status itself."""
    with _cluster(_NO_API) as cluster:
        cluster.kubelet.outcomes.add(ContainerExits(0))
        before = _asked(cluster)
        _create(cluster)
        _until(lambda: _in_phase(cluster, "Failed") == SESSIONS)
        _rested(cluster)
        requests = (_asked(cluster) - before) / SESSIONS
    what = f"kube: requests of the operator a session, {SESSIONS:,} that end untold"
    return against_bound(what, requests, PER_SESSION, "requests")


def _live() -> list[Row]:
    """Create the sessions before the operator starts, so that it does not wait for them."""
    with _sessions_waiting() as cluster:
        before = _asked(cluster)
        cluster.operator.start()
        _until(lambda: _in_phase(cluster, "Creating") == SESSIONS)
        time.sleep(_REST)
        requests = (_asked(cluster) - before) / SESSIONS
        memory = _memory(cluster.operator)
        cluster.operator.end()
        bare = _bare_memory(cluster)
    what = f"kube: {SESSIONS:,} live sessions"
    each = f"{what}, requests of the operator each"
    return [
        against_bound(each, requests, PER_SESSION, "requests"),
        *(
            against_floor(
                f"{what}, operator's {kind}",
                mine,
                floor,
                MEMORY_AIM,
                "MB",
                measure="memory",
                against="bare watches",
            )
            for kind, mine, floor in zip(("RSS", "PSS"), memory, bare, strict=True)
        ),
    ]


async def _made_in_turns() -> list[Row]:
    """Make the objects of all sessions with the operator, and the same objects plainly with lightkube.

    The processor time of the API server and the nodes, which are in this process, is part of both sides.
    """

    def side(maker: Callable[[LocalCluster], Daemon]) -> Round:
        async def once() -> Cost:
            return await asyncio.to_thread(_cost_of_jobs, maker)

        return once

    sides = {
        "operator": side(lambda cluster: cluster.operator),
        "plain creates": side(_creates),
    }
    samples = await turns(sides, 2)
    name = f"kube: {SESSIONS:,} Jobs made at once, each"
    both = ("processor", "wall")
    aims = {"plain creates": SPEED_AIM}
    return compared(name, samples, aims, each=SESSIONS, judged=both)


def _creates(cluster: LocalCluster) -> Daemon:
    return _floor(cluster, "create", OperatorSettings().concurrency)


@contextmanager
def _sessions_waiting() -> Iterator[LocalCluster]:
    """A cluster without an operator, with sessions that nobody has started."""
    with _cluster(_NO_API) as cluster:
        cluster.kubelet.outcomes.add(ContainerRuns())
        cluster.operator.end()
        _create(cluster)
        yield cluster


def _cost_of_jobs(make: Callable[[LocalCluster], Daemon]) -> Cost:
    """Return the cost from the first created object to the last Job, without the start of the process."""
    with _sessions_waiting() as cluster:
        maker = make(cluster)
        maker.start()
        try:
            _until(lambda: _made(cluster, "serviceaccounts") > 1)
            with Meter() as meter:
                _until(lambda: _made(cluster, "jobs") == SESSIONS)
        finally:
            maker.stop()
    return meter.cost


def _create(cluster: LocalCluster) -> None:
    for name in _names():
        cluster.create(name, _spec("https://git.example.com/team/shop.git"))


def _names() -> list[str]:
    return [f"s{number}" for number in range(SESSIONS)]


def _in_phase(cluster: LocalCluster, phase: str) -> int:
    found = cluster.server.objects.list(PLURAL, TEAM)
    return sum(_phase(body) == phase for body in found)


def _rested(cluster: LocalCluster) -> None:
    """Return when no more requests arrive."""
    before = -1
    while (now := _asked(cluster)) != before:
        before = now
        time.sleep(1.0)


def _made(cluster: LocalCluster, plural: str) -> int:
    """Return the number of create requests; a list request would add load to the server."""
    made = cluster.server.requests.where(
        lambda one: one.verb == "create" and one.resource == plural
    )
    return len(made)


def _memory(daemon: Daemon) -> tuple[float, float]:
    """Return resident and proportional memory in megabytes."""
    assert daemon.process is not None
    found = psutil.Process(daemon.process.pid).memory_full_info()
    return found.rss / 1e6, found.pss / 1e6


def _bare_memory(cluster: LocalCluster) -> tuple[float, float]:
    bare = _floor(cluster, "watch", SESSIONS)
    bare.start()
    try:
        _until(lambda: "seen all" in bare.log.read_text())
        time.sleep(_REST)
        return _memory(bare)
    finally:
        bare.stop()


def _floor(cluster: LocalCluster, what: str, number: int) -> Daemon:
    """Return a process of `_kube_floor`, not yet started, with the permissions of the operator."""
    code = "import sys; from bench._kube_floor import main; main(*sys.argv[1:])"
    return Daemon(
        cluster.folder,
        f"floor-{what}",
        (str(cluster.folder / "operator.kubeconfig"), what, str(number)),
        {"PYTHONPATH": str(Path(__file__).parents[1])},
        code=code,
    )
