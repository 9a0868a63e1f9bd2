"""The Job controller of the tests: the order of its writes is that of Kubernetes 1.36, as it was watched there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.cluster import ApiServer
from tests.cluster.jobs import GAP, JobController

pytestmark = pytest.mark.integration

Json = dict[str, Any]


class Stand:
    """A controller that is called by hand, with a clock that is set by hand; `told` is what a watch sees."""

    def __init__(self, server: ApiServer) -> None:
        self.time = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
        self.objects = server.objects
        self.jobs = JobController(server.objects, lambda: self.time)
        self.told: list[str] = []
        server.listen(
            lambda change: self.told.append(line(change.type, change.document))
        )

    def begin(self, **spec: Any) -> Json:
        """A Job whose pod runs."""
        container = {"name": "main", "image": "i:1"}
        template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "work"}}
        fixed = {"backoffLimit": 0, "podReplacementPolicy": "Failed"}
        self.objects.create(job | {"spec": {**fixed, **spec, "template": template}})
        self.jobs.reconcile("default", "work")
        pod = self.pod()
        self.objects.merge(
            "pods", "default", pod, {"status": {"phase": "Running"}}, sub="status"
        )
        self.told.clear()
        return self.objects.get("pods", "default", pod)

    def pod(self) -> str:
        (pod,) = self.objects.list("pods", "default")
        return str(pod["metadata"]["name"])

    def end_pod(self, phase: str) -> None:
        self.objects.merge(
            "pods", "default", self.pod(), {"status": {"phase": phase}}, sub="status"
        )

    def step(self) -> list[str]:
        """The next round of the controller; what was told since the last one."""
        self.time += GAP
        self.told.clear()
        self.jobs.reconcile("default", "work")
        return list(self.told)


def line(type: str, document: Json) -> str:
    """An event in few words."""
    status, meta = document.get("status", {}), document["metadata"]
    if document["kind"] == "Pod":
        held = "held" if meta.get("finalizers") else "free"
        return f"Pod {type} {status['phase']} {held}"
    conditions = [c["type"] for c in status.get("conditions", ())]
    noted = [k for k, v in (status.get("uncountedTerminatedPods") or {}).items() if v]
    counts = [
        f"{k}={status[k]}"
        for k in ("active", "failed", "succeeded", "terminating")
        if status.get(k)
    ]
    return " ".join(["Job", *conditions, *(f"uncounted:{k}" for k in noted), *counts])


@pytest.fixture
def stand() -> Iterator[Stand]:
    with ApiServer() as server:
        yield Stand(server)


def test_a_pod_that_fails(stand: Stand) -> None:
    stand.begin()
    stand.end_pod("Failed")
    assert stand.step() == ["Job FailureTarget uncounted:failed"]
    assert stand.step() == ["Pod MODIFIED Failed free"]
    assert stand.step() == ["Job FailureTarget Failed failed=1"]
    assert stand.step() == []


def test_a_pod_that_succeeds(stand: Stand) -> None:
    stand.begin()
    stand.end_pod("Succeeded")
    assert stand.step() == ["Job SuccessCriteriaMet uncounted:succeeded"]
    assert stand.step() == ["Pod MODIFIED Succeeded free"]
    assert stand.step() == ["Job SuccessCriteriaMet Complete succeeded=1"]


def test_a_pod_that_is_deleted_is_gone_before_its_job_has_failed(stand: Stand) -> None:
    stand.begin()
    stand.objects.delete("pods", "default", stand.pod(), grace=30)
    stand.end_pod("Failed")
    assert stand.step() == ["Job FailureTarget uncounted:failed"]
    stand.objects.delete("pods", "default", stand.pod(), grace=0)
    assert stand.step() == ["Pod DELETED Failed held"]
    assert stand.step() == ["Job FailureTarget Failed failed=1"]


def test_a_deadline_lets_its_pod_go_at_once_and_fails_once_it_is_gone(
    stand: Stand,
) -> None:
    stand.begin(activeDeadlineSeconds=60)
    stand.objects.merge("pods", "default", stand.pod(), {"spec": {"nodeName": "n"}})
    stand.time += timedelta(seconds=60)
    assert stand.step() == [
        "Pod MODIFIED Running held",
        "Job FailureTarget uncounted:failed terminating=1",
    ]
    assert stand.step() == ["Pod MODIFIED Running free"]
    assert stand.step() == ["Job FailureTarget failed=1 terminating=1"]
    stand.objects.delete("pods", "default", stand.pod(), grace=0)
    assert stand.step() == ["Job FailureTarget failed=1"]
    assert stand.step() == ["Job FailureTarget Failed failed=1"]


def test_a_step_has_its_time_to_come(stand: Stand) -> None:
    stand.begin()
    stand.end_pod("Failed")
    stand.step()
    seen = len(stand.told)
    stand.jobs.reconcile("default", "work")
    assert len(stand.told) == seen
    assert stand.jobs.due["default", "work"] == stand.time + GAP


def test_a_suspended_job_lets_its_pod_go_uncounted(stand: Stand) -> None:
    stand.begin()
    stand.objects.merge("jobs", "default", "work", {"spec": {"suspend": True}})
    assert stand.step() == [
        "Pod MODIFIED Running free",
        "Pod DELETED Running free",
        "Job Suspended",
    ]
