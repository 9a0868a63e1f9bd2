"""The operator on a real API server's semantics; the test plays the Job controller, the kubelet and the runner."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import jwt
import pytest

from midwatch.kube.cache import Index, Queue
from midwatch.kube.client import Cluster
from midwatch.kube.controller import ActionExecutor, ReconcileWorker
from midwatch.kube.crd import crd
from midwatch.kube.operator import Operator
from midwatch.kube.rules import API_VERSION, FINALIZER, KIND
from midwatch.kube.status import timestamp
from midwatch.lifecycle import StopEvent, SystemClock
from midwatch.logs import quiet_log
from midwatch.model import Json
from midwatch.settings import KeyReference, OperatorSettings
from tests.cluster import ApiServer, Refused, asking

from ..waiting import PATIENCE
from .cli import comes_true

eventually = partial(comes_true, timeout=PATIENCE)

PLURAL = "agenticsessions"
CONDITION = {
    "reason": "Completed",
    "message": "",
    "lastTransitionTime": "2026-03-01T12:00:00Z",
}


class Stand:
    """A cluster, and what happens in it."""

    def __init__(self, server: ApiServer, kubeconfig: Path) -> None:
        self.server = server
        self.settings = OperatorSettings(
            kubeconfig=kubeconfig,
            image="registry.example/midwatch:1",
            api_key_secret=KeyReference(name="claude"),
            port=None,
            backoff=0.05,
            backoff_max=0.3,
            image_pull_grace=0,
            termination_grace=1,
            request_timeout=3,
        )

    def create(self, name: str, **spec: Any) -> None:
        repos = [{"input": {"url": "https://git.example/shop.git"}}]
        document = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": name},
            "spec": {"prompt": "mend it", "repos": repos, **spec},
        }
        self.server.objects.create(document)

    def get(self, name: str) -> Json:
        return self.server.objects.get(PLURAL, "default", name)

    def change(self, name: str, patch: Json, *, sub: str = "") -> None:
        self.server.objects.merge(PLURAL, "default", name, patch, sub=sub)

    def told(self, name: str, **status: Any) -> None:
        """As the runner writes it."""
        self.change(name, {"status": status}, sub="status")

    async def wait(
        self,
        plural: str,
        name: str,
        until: Callable[[Json | None], object],
        timeout: float = PATIENCE,
    ) -> Json:
        found = await asyncio.to_thread(
            self.server.objects.wait, plural, "default", name, until, timeout
        )
        return found or {}

    async def job(self, name: str, attempt: int = 1) -> Json:
        """The Job of an attempt, once the status tells of it."""
        await self.phase(name, "Creating", attempt=attempt)
        return self.server.objects.get("jobs", "default", f"{name}-run-{attempt}")

    async def phase(self, name: str, phase: str, **status: Any) -> Json:
        def so(body: Json | None) -> bool:
            told = (body or {}).get("status") or {}
            return {"phase": phase, **status}.items() <= told.items()

        return (await self.wait(PLURAL, name, so))["status"]  # type: ignore[no-any-return]

    async def released(self, name: str) -> Json:
        """The resource, once the operator is done with it."""
        return await self.wait(
            PLURAL, name, lambda body: body and not body["metadata"].get("finalizers")
        )

    async def expires(self, job: str) -> None:
        """Until the Job goes some time after its end."""

        def so(body: Json | None) -> bool:
            return (body or {})["spec"].get("ttlSecondsAfterFinished") == 3600

        await self.wait("jobs", job, so)

    def pod(self, job: Json, **status: Any) -> str:
        """The Job's pod, with this status."""
        template, name = job["spec"]["template"], f"{job['metadata']['name']}-x"
        meta = {**template["metadata"], "name": name}
        document = {"apiVersion": "v1", "kind": "Pod", "metadata": meta}
        self.server.objects.create({**document, "spec": template["spec"]})
        self.server.objects.merge(
            "pods", "default", name, {"status": status}, sub="status"
        )
        return name

    def end_job(self, name: str, reason: str = "BackoffLimitExceeded") -> None:
        failed = {"type": "Failed", "status": "True", "reason": reason}
        self.server.objects.merge(
            "jobs", "default", name, {"status": {"conditions": [failed]}}, sub="status"
        )

    def is_watched(self) -> bool:
        """Sessions, Jobs and pods."""
        live = {watch.request.resource for watch in tuple(self.server.faults.watches)}
        return {PLURAL, "jobs", "pods"} <= live

    def drop_pod(self, name: str) -> None:
        self.server.objects.delete("pods", "default", name, grace=0)

    def events(self, name: str) -> list[str]:
        events = self.server.objects.list("events")
        return [e["reason"] for e in events if e["involvedObject"]["name"] == name]

    @contextlib.asynccontextmanager
    async def operator(self, **settings: Any) -> AsyncIterator[Operator]:
        """An operator that is killed at the end."""
        wanted = self.settings.model_copy(update=settings)
        async with Cluster.connect(wanted.kubeconfig, timeout=3) as cluster:
            stop = StopEvent()
            running = Operator(cluster, wanted)
            task = asyncio.create_task(running.run(stop))
            try:
                yield running
            finally:
                stop.set()
                await asyncio.wait_for(task, PATIENCE)


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with ApiServer(bookmarks=0.2) as server:
        server.objects.create(crd(), "")
        yield Stand(server, server.kubeconfig(tmp_path / "kubeconfig"))


def exited(code: int, reason: str = "Error") -> Json:
    ended = {"terminated": {"exitCode": code, "reason": reason}}
    return container(ended) | {"phase": "Succeeded" if code == 0 else "Failed"}


def container(state: Json) -> Json:
    one = {
        "name": "session",
        "image": "x",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": state,
    }
    return {"phase": "Pending", "containerStatuses": [one]}


async def test_a_life_leaves_nothing_of_kopf_and_takes_few_requests(
    stand: Stand,
) -> None:
    async with stand.operator():
        await eventually(stand.is_watched)
        stand.server.requests.clear()
        stand.create("shop")
        job = await stand.job("shop")
        assert stand.get("shop")["metadata"]["finalizers"] == [FINALIZER]
        pod = stand.pod(job, phase="Running")
        stand.told("shop", phase="Running", attempt=1)
        told = [
            {**CONDITION, "type": "Ready", "status": "False"},
            {**CONDITION, "type": "Finished", "status": "True"},
        ]
        at, done = CONDITION["lastTransitionTime"], "done after 3 turns"
        end = {"phase": "Completed", "message": done, "completionTime": at}
        stand.told("shop", **end, attempt=1, conditions=told)
        stand.server.objects.merge(
            "pods", "default", pod, {"status": exited(0)}, sub="status"
        )
        body = await stand.released("shop")
        await stand.expires("shop-run-1")
        asked = [one for one in stand.server.requests if one.verb != "watch"]
        assert len(asked) == 10, [(one.verb, one.resource) for one in asked]
    assert sorted(stand.events("shop")) == ["Completed", "JobCreated"]
    assert "annotations" not in body["metadata"] and "kopf" not in json.dumps(body)
    assert body["status"]["phase"] == "Completed"


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", None, 2) as got:
            return bool(got.status == 200)
    except OSError:
        return False


async def test_each_fate_of_a_pod_is_told_in_the_resource(stand: Stand) -> None:
    denied = {"waiting": {"reason": "ErrImagePull", "message": "denied"}}
    fates: dict[str, tuple[Json, str]] = {
        "memory": (exited(137, "OOMKilled"), "OutOfMemory"),
        "crash": (exited(1), "ExitCode"),
        "silent": (exited(0, "Completed"), "OutcomeUnknown"),
        "image": (container(denied), "ImagePull"),
    }
    async with stand.operator():
        for name in (*fates, "deadline", "never"):
            stand.create(name)
        for name, (status, _) in fates.items():
            stand.pod(await stand.job(name), **status)
        for name in ("deadline", "never"):
            await stand.job(name)
        stand.told("deadline", phase="Running", attempt=1)
        stand.end_job("deadline-run-1", "DeadlineExceeded")
        stand.end_job("never-run-1", "DeadlineExceeded")
        reasons = {name: reason for name, (_, reason) in fates.items()}
        reasons |= {"deadline": "DeadlineExceeded", "never": "NeverStarted"}
        for name, reason in reasons.items():
            status = await stand.phase(name, "Failed", reason=reason)
            finished = {c["type"]: c["status"] for c in status["conditions"]}
            assert finished["Finished"] == "True" and status["completionTime"]
            await stand.released(name)
            assert "Failed" in stand.events(name)
    assert stand.server.objects.find("jobs", "default", "image-run-1") is None


def warn(stand: Stand, kind: str, name: str, reason: str, message: str) -> None:
    """Record an event as kubelet, scheduler and controllers do."""
    at = timestamp(datetime.now(UTC))
    about = {"kind": kind, "name": name, "namespace": "default"}
    event = {"type": "Warning", "reason": reason, "message": message}
    meta = {"name": f"{name}.{reason.lower()}", "namespace": "default"}
    times = {"firstTimestamp": at, "lastTimestamp": at, "count": 1}
    document = {"apiVersion": "v1", "kind": "Event", "metadata": meta}
    stand.server.objects.create(
        {**document, "involvedObject": about, **event, **times}, "default"
    )


@pytest.mark.parametrize("may_read", [True, False])
async def test_why_a_pod_does_not_start_is_told_in_the_words_of_the_cluster(
    stand: Stand, may_read: bool
) -> None:
    """Within a minute of its scheduling, which was 50 seconds ago."""
    if not may_read:  # the rights of an earlier release
        stand.server.faults.refuse(asking("list", "events"), status=403)
    long_ago = timestamp(datetime.now(UTC) - timedelta(seconds=50))
    placed = {"type": "PodScheduled", "status": "True", "lastTransitionTime": long_ago}
    async with stand.operator():
        stand.create("shop")
        job = await stand.job("shop")
        said = 'Multi-Attach error for volume "pvc-1"'
        warn(stand, "Pod", "shop-run-1-x", "FailedAttachVolume", said)
        creating = container({"waiting": {"reason": "ContainerCreating"}})
        stand.pod(job, **creating, conditions=[placed])
        status = await stand.phase("shop", "Creating", reason="PodNotStarted")
        assert "its container has not started: ContainerCreating" in status["message"]
        assert (f"FailedAttachVolume: {said}" in status["message"]) == may_read
        stand.end_job("shop-run-1", "DeadlineExceeded")
        stand.drop_pod("shop-run-1-x")
        end = await stand.phase("shop", "Failed", reason="NeverStarted")
        assert status["message"] in end["message"]


async def test_a_pod_that_a_quota_refuses_is_told_with_the_quota(stand: Stand) -> None:
    long_ago = timestamp(datetime.now(UTC) - timedelta(seconds=50))
    async with stand.operator():
        stand.create("shop")
        await stand.job("shop")
        said = "Error creating: pods is forbidden: exceeded quota: small"
        warn(stand, "Job", "shop-run-1", "FailedCreate", said)
        begun = {"status": {"startTime": long_ago}}
        stand.server.objects.merge("jobs", "default", "shop-run-1", begun, sub="status")
        status = await stand.phase("shop", "Creating", reason="NoPod")
        assert f"FailedCreate: {said}" in status["message"]


async def test_a_deadline_is_told_also_when_the_pod_is_gone_before_the_job_failed(
    stand: Stand,
) -> None:
    """In the order of Kubernetes, and of a Job older than the grace in which it has to have a pod."""
    target = {"status": "True", "reason": "BackoffLimitExceeded"}
    async with stand.operator(unschedulable_grace=4):
        for name in ("late", "lost"):
            stand.create(name)
            stand.pod(await stand.job(name), phase="Running")
            stand.told(name, phase="Running", attempt=1)
        await asyncio.sleep(4.1)
        for name, reason in (("late", "DeadlineExceeded"), ("lost", "")):
            why = target | {"type": "FailureTarget"}
            why |= {"reason": reason} if reason else {}
            noted = {"uncountedTerminatedPods": {"failed": ["u"]}}
            status = {"conditions": [why], **noted}
            stand.server.objects.merge(
                "jobs", "default", f"{name}-run-1", {"status": status}, sub="status"
            )
            stand.drop_pod(f"{name}-run-1-x")
        await stand.phase("late", "Failed", reason="DeadlineExceeded")
        await asyncio.sleep(0.3)
        assert stand.get("lost")["status"]["phase"] == "Running"
        stand.end_job("lost-run-1")
        await stand.job("lost", 2)


async def test_a_pod_is_missed_only_in_a_job_that_was_begun_with(stand: Stand) -> None:
    """After an outage the operator may be back before the Job controller is."""
    async with stand.operator(unschedulable_grace=0):
        stand.create("shop")
        await stand.job("shop")
        await asyncio.sleep(0.3)
        assert stand.get("shop")["status"]["phase"] == "Creating"
        begun = {"startTime": CONDITION["lastTransitionTime"]}
        stand.server.objects.merge(
            "jobs", "default", "shop-run-1", {"status": begun}, sub="status"
        )
        await stand.phase("shop", "Failed", reason="NoPod")


async def test_a_job_that_cannot_be_is_told_once_and_not_tried_again(
    stand: Stand,
) -> None:
    # Which no rule of the definition foresees.
    gpu = "example.com/gpu"
    more = {"requests": {gpu: 1}, "limits": {gpu: 2}}
    async with stand.operator():
        stand.create("shop", resources=more)
        status = await stand.phase("shop", "Failed", reason="InvalidSpec")
        assert "must be equal to example.com/gpu limit of 2" in status["message"]
        assert "create another session" in status["message"]
        await stand.released("shop")
        tries = stand.server.requests.where(asking("create", "jobs"))
        await asyncio.sleep(0.4)
        assert stand.server.requests.where(asking("create", "jobs")) == tries
        assert len(tries) == 1
    assert stand.events("shop") == ["Failed"]


async def test_a_session_starts_with_one_request_for_each_thing_it_needs(
    stand: Stand,
) -> None:
    names = [f"shop-{number}" for number in range(8)]
    for name in names:
        stand.create(name)
    before = len(stand.server.requests.where(asking()))
    async with stand.operator():
        for name in names:
            await stand.phase(name, "Creating")
        asked = stand.server.requests.where(asking())[before:]
    made = Counter((one.verb, one.resource) for one in asked if one.verb != "watch")
    helpers = ("serviceaccounts", "roles", "rolebindings", "jobs", "events")
    kinds = ("agenticsessions", "jobs", "pods")
    assert made == {
        **{("create", kind): len(names) for kind in helpers},
        ("patch", "agenticsessions"): len(names),
        ("patch", "agenticsessions/status"): len(names),
        **{("list", kind): 1 for kind in kinds},
    }


async def test_a_job_that_is_refused_is_all_that_is_tried_again(stand: Stand) -> None:
    def made(resource: str) -> int:
        return len(stand.server.requests.where(asking("create", resource)))

    async with stand.operator():
        quota = stand.server.faults.refuse(
            asking("create", "jobs"), status=403, message="exceeded quota: jobs"
        )
        stand.create("shop")
        await eventually(lambda: made("jobs") > 3)
        stand.server.faults.lift(quota)
        job = await stand.job("shop")
        assert [made(one) for one in ("serviceaccounts", "roles")] == [1, 1]

        # Its pod ran, so it had what it needs.
        pod = stand.pod(job, **exited(137))
        stand.end_job("shop-run-1")
        job = await stand.job("shop", 2)
        assert made("serviceaccounts") == 1

        # This one never did.
        stand.drop_pod(pod)
        stand.server.objects.delete("serviceaccounts", "default", "shop-session")
        stand.pod(job, phase="Failed", reason="Evicted")
        stand.end_job("shop-run-2")
        await stand.job("shop", 3)
        assert stand.server.objects.find("serviceaccounts", "default", "shop-session")


async def test_a_refusal_that_passes_is_not_told_as_the_sessions_fault(
    stand: Stand,
) -> None:
    def accepted(name: str) -> list[str]:
        conditions = stand.get(name).get("status", {}).get("conditions", ())
        return [c["status"] for c in conditions if c["type"] == "Accepted"]

    roles = {"status": 403, "message": 'User "operator" cannot create resource'}
    told: set[str] = set()
    stand.server.listen(lambda _: told.update(accepted("shop")))
    stand.server.faults.refuse(asking("create", "serviceaccounts"), times=2, **roles)
    async with stand.operator():
        stand.create("shop")
        pod = stand.pod(await stand.job("shop"), phase="Running")
        assert told == {"True"}

        # After the end there is nothing to accept any more.
        stand.told("shop", phase="Completed", message="done", attempt=1)
        stand.server.faults.refuse(asking("patch", PLURAL), times=6, **roles)
        await stand.released("shop")
        assert told == {"True"} and pod

        stand.server.faults.refuse(asking("create", "serviceaccounts"), **roles)
        stand.create("next")
        await eventually(lambda: accepted("next") == ["False"])


async def test_a_session_that_is_to_stop_before_it_began(stand: Stand) -> None:
    async with stand.operator():
        stand.create("shop", stop=True)
        await stand.phase("shop", "Stopped")
        await eventually(lambda: stand.events("shop") == ["Stopped"])
    assert stand.server.objects.list("jobs") == []


async def test_a_lost_pod_is_started_again_as_often_as_allowed(stand: Stand) -> None:
    evicted = {"phase": "Failed", "reason": "Evicted", "message": "disk pressure"}
    async with stand.operator():
        stand.create("shop", maxRestarts=1)
        for attempt in (1, 2):
            job = await stand.job("shop", attempt)
            env = job["spec"]["template"]["spec"]["containers"][0]["env"]
            assert {"name": "SESSION_ATTEMPT", "value": str(attempt)} in env
            stand.pod(job, **evicted)
            stand.end_job(f"shop-run-{attempt}")
            job = stand.server.objects.get("jobs", "default", f"shop-run-{attempt}")
            assert "ttlSecondsAfterFinished" not in job["spec"], "the end is not told"
        status = await stand.phase("shop", "Failed", reason="Evicted", restarts=1)
        for attempt in (1, 2):
            await stand.expires(f"shop-run-{attempt}")
        assert "disk pressure" in status["message"]
    names = [job["metadata"]["name"] for job in stand.server.objects.list("jobs")]
    assert sorted(names) == ["shop-run-1", "shop-run-2"]
    assert "Restarted" in stand.events("shop")


async def test_what_is_wrong_is_a_condition_and_is_looked_at_again(
    stand: Stand, tmp_path: Path
) -> None:
    def refused(reason: str) -> Callable[[Json | None], bool]:
        def so(body: Json | None) -> bool:
            conditions = ((body or {}).get("status") or {}).get("conditions") or []
            return any(
                (c["type"], c["status"], c["reason"]) == ("Accepted", "False", reason)
                for c in conditions
            )

        return so

    key = tmp_path / "key"
    theirs = {"apiVersion": "v1", "kind": "ServiceAccount"}
    stand.server.objects.create({**theirs, "metadata": {"name": "taken-session"}})
    content = {"content_url": "http://content", "content_key_file": key}
    async with stand.operator(**content):
        stand.create("taken")
        body = await stand.wait(PLURAL, "taken", refused("OperatorSettings"))
        assert str(key) in body["status"]["message"]
        key.write_text("k" * 32)
        await stand.wait(PLURAL, "taken", refused("NameTaken"))
        stand.server.objects.delete("serviceaccounts", "default", "taken-session")
        await stand.job("taken")
        made = stand.server.objects.get("secrets", "default", "taken-content")
        token = base64.b64decode(made["data"]["token"]).decode()
        claims = jwt.decode(token, options={"verify_signature": False})
        # Eleven attempts of an hour, and what they may wait.
        assert claims["exp"] - claims["iat"] == 11 * 3600 + 14 * 86400

        stand.create("next", resumeFrom="before")
        body = await stand.wait(PLURAL, "next", refused("ResumeFromNotFound"))
        assert body["status"]["phase"] == "Pending"
        quota = stand.server.faults.refuse(
            asking("create", "jobs"), status=403, message="exceeded quota: jobs"
        )
        stand.create("before")
        await stand.wait(PLURAL, "before", refused("QuotaExceeded"))
        stand.server.faults.lift(quota)
        await stand.wait(PLURAL, "next", refused("ResumeFromNotEnded"))
        await stand.job("before")
        assert stand.server.objects.find("jobs", "default", "next-run-1") is None
        stand.told("before", phase="Failed", attempt=1)
        job = await stand.job("next")
        env = job["spec"]["template"]["spec"]["containers"][0]["env"]
        uid = stand.get("before")["metadata"]["uid"][:8]
        folder = {"name": "RESUME_FROM_FOLDER", "value": f"default/before.{uid}"}
        assert folder in env
        assert "Refused" in stand.events("next")


async def test_a_stop_ends_the_pod_and_is_told_for_a_runner_that_did_not(
    stand: Stand,
) -> None:
    async with stand.operator():
        stand.create("shop")
        pod = stand.pod(await stand.job("shop"), phase="Running")
        stand.told("shop", phase="Running", attempt=1)
        stand.change("shop", {"spec": {"stop": True}})
        await stand.wait("jobs", "shop-run-1", lambda j: j and j["spec"].get("suspend"))
        await asyncio.sleep(0.2)
        assert stand.get("shop")["status"]["phase"] == "Running"
        stand.drop_pod(pod)
        await stand.phase("shop", "Stopped", reason="Stopped")
        await stand.wait("jobs", "shop-run-1", lambda job: job is None)
    assert "Stopping" in stand.events("shop")


async def test_a_deletion_waits_for_the_pod_also_over_a_restart(stand: Stand) -> None:
    async with stand.operator():
        stand.create("shop")
        pod = stand.pod(await stand.job("shop"), phase="Running")
        stand.told("shop", phase="Running", attempt=1)
    stand.server.objects.delete(PLURAL, "default", "shop")
    async with stand.operator():
        await stand.wait("jobs", "shop-run-1", lambda j: j and j["spec"].get("suspend"))
    watching = asking("watch", "pods")
    before = len(stand.server.requests.where(watching))
    async with stand.operator():
        await eventually(lambda: len(stand.server.requests.where(watching)) > before)
        await asyncio.sleep(0.3)
        assert stand.get("shop")["metadata"]["deletionTimestamp"]
        stand.drop_pod(pod)
        await stand.wait(PLURAL, "shop", lambda body: body is None)
    left = stand.server.objects.list("jobs") + stand.server.objects.list("roles")
    await stand.wait("jobs", "shop-run-1", lambda job: job is None)
    assert len(left) <= 2


async def test_two_operators_and_a_busy_writer_make_one_of_everything(
    stand: Stand,
) -> None:
    """The writer leaves a status alone after some changes: on a slow machine it would win each time, for ever."""
    names = [f"shop-{number}" for number in range(8)]
    busy = threading.Event()
    touched: Counter[str] = Counter()

    def disturb() -> None:
        while not busy.wait(0.002):
            for name in names:
                with contextlib.suppress(Refused):
                    seen = f"{name} {stand.get(name).get('status')}"
                    if touched[seen] < 20:
                        touched[seen] += 1
                        mark = os.urandom(4).hex()
                        stand.change(name, {"metadata": {"labels": {"touched": mark}}})

    writer = threading.Thread(target=disturb)
    async with stand.operator(), stand.operator():
        for name in names:
            stand.create(name)
        writer.start()
        try:
            for name in names:
                stand.pod(await stand.job(name), phase="Failed", reason="Evicted")
                stand.end_job(f"{name}-run-1")
            for name in names:
                job = await stand.job(name, 2)
                stand.told(name, phase="Completed", attempt=2)
                # The Job of a completed session that never had a pod would be deleted in the end.
                stand.pod(job, phase="Succeeded")
            for name in names:
                await stand.released(name)
        finally:
            busy.set()
            writer.join()
    assert len(stand.server.objects.list("jobs")) == 2 * len(names)
    for name in names:
        assert sorted(stand.events(name)) == ["Completed", "JobCreated", "Restarted"]
        assert stand.get(name)["status"]["restarts"] == 1


async def test_what_the_api_server_does_is_survived(stand: Stand) -> None:
    server = stand.server
    async with stand.operator(watch_silence=0.6):
        stand.create("first")
        await stand.job("first")
        await eventually(stand.is_watched)

        with server.away():
            await asyncio.sleep(0.4)
        stand.create("after-absence")
        await stand.job("after-absence")

        server.forget_history()
        server.faults.break_watches()
        stand.create("after-410")
        await stand.job("after-410")

        busy = server.faults.refuse(status=429, retry_after=0)
        stand.create("after-429")
        await asyncio.sleep(0.3)
        server.faults.lift(busy)
        await stand.job("after-429")

        await eventually(stand.is_watched)
        assert server.faults.freeze_watches() >= 3
        stand.create("after-silence")
        await stand.job("after-silence")

        stand.told("first", phase="Completed", attempt=1)
        await stand.released("first")
    assert len(server.objects.list("jobs")) == 5


async def test_the_process_is_killed_started_again_and_stopped(
    stand: Stand, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = tmp_path / "midwatch.yaml"
    config.write_text(
        "operator:\n"
        f"  kubeconfig: {stand.settings.kubeconfig}\n"
        "  image: registry.example/midwatch:1\n"
        "  api_key_secret: {name: claude}\n"
        "  host: 127.0.0.1\n"
        f"  port: {port}\n"
    )
    program = Path(sys.executable).with_name("midwatch")
    command = [program, "-c", config, "kube", "operator"]

    @contextlib.contextmanager
    def start() -> Iterator[subprocess.Popen[bytes]]:
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            try:
                yield process
            finally:
                process.kill()

    with start():
        stand.create("shop")
        await stand.job("shop")
    stand.pod(stand.server.objects.get("jobs", "default", "shop-run-1"), **exited(1))
    stand.create("other")
    with start() as second:
        await stand.phase("shop", "Failed", reason="ExitCode")
        await stand.job("other")
        await eventually(lambda: healthy(port))
        second.send_signal(signal.SIGTERM)
        out, _ = await asyncio.to_thread(second.communicate, None, 4)
        assert second.returncode == 0
    lines = [json.loads(line) for line in out.decode().splitlines()]
    assert lines[0]["event"] == "operator started" and lines[0]["sessions"] == 2
    assert lines[-1] == lines[-1] | {"event": "operator stopped", "reason": "SIGTERM"}
    assert len(stand.server.objects.list("jobs")) == 2


class _Interleaved:
    """A cluster in which something happens once, between a list of Jobs and the next read."""

    def __init__(
        self, cluster: Cluster, between: Callable[[], Awaitable[None]]
    ) -> None:
        self._cluster = cluster
        self._between: Callable[[], Awaitable[None]] | None = between

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cluster, name)

    async def list_jobs(self, namespace: str, session: str) -> list[Json]:
        found = await self._cluster.list_jobs(namespace, session)
        between, self._between = self._between, None
        if between is not None:
            await between()
        return found


async def test_the_job_that_another_operator_makes_between_two_reads_is_not_lost(
    stand: Stand,
) -> None:
    stand.create("s")
    stand.change("s", {"metadata": {"finalizers": [FINALIZER]}})
    key = ("default", "s")

    def worker(cluster: Any) -> ReconcileWorker:
        index = Index()
        index.put_session(stand.get("s"))
        queue = Queue(1, 1)
        clock = SystemClock()
        executor = ActionExecutor(cluster, index, stand.settings, clock, quiet_log())
        return ReconcileWorker(executor, queue)

    async with Cluster.connect(stand.settings.kubeconfig, timeout=3) as cluster:
        first = worker(cluster)
        second = worker(_Interleaved(cluster, lambda: first.reconcile(key)))
        await second.reconcile(key)
    jobs = [job["metadata"]["name"] for job in stand.server.objects.list("jobs")]
    assert jobs == ["s-run-1"]
    assert stand.get("s")["status"]["attempt"] == 1
