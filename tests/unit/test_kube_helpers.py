"""What the operator keeps in mind: the objects beside a session's Job, and failures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from midwatch.kube.cache import Index, Queue
from midwatch.kube.client import Cluster
from midwatch.kube.controller import ActionExecutor, HelperCache, ReconcileWorker
from midwatch.kube.observed import ObservedState, PodView, observe
from midwatch.kube.reconcile import CreateJob
from midwatch.lifecycle import SystemClock
from midwatch.logs import quiet_log
from midwatch.settings import OperatorSettings

from ..acceptance.test_cluster_login import kubeconfig

POD = PodView("team", "s", "p1", "u-1", 1, phase="Failed")


def seen(*pods: PodView, **status: object) -> ObservedState:
    repos = [{"input": {"url": "https://git.example/shop.git"}}]
    meta = {"name": "s", "namespace": "team", "uid": "u-1"}
    spec = {"prompt": "mend it", "repos": repos}
    return observe({"metadata": meta, "spec": spec, "status": status}, (), pods)


def test_they_are_known_for_a_time() -> None:
    helpers, first = HelperCache(longest=60), CreateJob(1, 100)
    assert not helpers.are_present(seen(), first, 0)
    helpers.record("u-1", 0)
    assert helpers.are_present(seen(), first, 60)
    assert not helpers.are_present(seen(), first, 61)
    helpers.forget("u-1")
    assert not helpers.are_present(seen(), first, 1)


@pytest.mark.parametrize(
    ("before", "known"),
    [
        (seen(replace(POD, exit_code=137)), True),
        (seen(podName="p1"), True),
        (seen(POD), False),
        (seen(), False),
        (seen(replace(POD, attempt=2, exit_code=137)), False),
    ],
)
def test_after_an_attempt_whose_pod_never_ran_one_may_be_missing(
    before: ObservedState, known: bool
) -> None:
    helpers = HelperCache()
    helpers.record("u-1", 0)
    assert helpers.are_present(before, CreateJob(2, 100), 1) is known


def test_the_oldest_are_forgotten() -> None:
    helpers = HelperCache(most=2)
    for number in (1, 2, 1, 3):
        helpers.record(f"u-{number}", 0)
    assert helpers.are_present(seen(), CreateJob(1, 100), 0)
    helpers.record("u-4", 0)
    assert not helpers.are_present(seen(), CreateJob(1, 100), 0)


async def test_the_failures_of_a_session_that_is_gone_are_forgotten(
    tmp_path: Path,
) -> None:
    file = kubeconfig(tmp_path, {"server": "http://127.0.0.1:9"}, {})
    queue, key = Queue(600, 600), ("team", "s")
    async with Cluster.connect(file) as cluster:
        executor = ActionExecutor(
            cluster, Index(), OperatorSettings(), SystemClock(), quiet_log()
        )
        queue.retry(key)
        assert queue.failures(key) == 1
        await ReconcileWorker(executor, queue).reconcile(key)
    assert queue.failures(key) == 0
    queue.close()
