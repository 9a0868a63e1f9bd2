"""The kubelet of the tests: Jobs really run, and end as they would in a cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster import (
    ApiServer,
    ImagePull,
    ProcessKubelet,
    Refused,
    Unschedulable,
    of_session,
)
from tests.cluster.containers import Image, namespace_prefix

from ..waiting import PATIENCE, wait_until

pytestmark = pytest.mark.integration

Json = dict[str, Any]


class Clock:
    """Time that a test adds to."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(clock: Clock) -> Iterator[ApiServer]:
    with ApiServer(now=clock, rbac=True) as server:
        yield server


@pytest.fixture
def kubelet(
    server: ApiServer, clock: Clock, tmp_path: Path
) -> Iterator[ProcessKubelet]:
    with ProcessKubelet(server, tmp_path / "node", now=clock) as kubelet:
        yield kubelet
    assert not kubelet.failures


def job(
    script: str, name: str = "work", *, pod: Json | None = None, **spec: Any
) -> Json:
    """A Job of one shell script, labelled as a session's."""
    container = {
        "name": "main",
        "image": "example.dev/runner:1",
        "command": ["sh", "-c", script],
        **spec.pop("container", {}),
    }
    template = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 5,
        "containers": [container],
        **(pod or {}),
    }
    labels = {"midwatch.dev/session": name}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "backoffLimit": 0,
            "template": {"metadata": {"labels": labels}, "spec": template},
            **spec,
        },
    }


def ended(found: Json | None) -> bool:
    conditions = (found or {}).get("status", {}).get("conditions", ())
    return any(c["type"] in ("Complete", "Failed") for c in conditions)


def condition(document: Json | None, type: str) -> Json:
    assert document
    return next(c for c in document["status"]["conditions"] if c["type"] == type)


def only_pod(server: ApiServer) -> Json:
    (pod,) = server.objects.list("pods", "default")
    return pod


def state_of(pod: Json) -> Json:
    state: Json = pod["status"]["containerStatuses"][0]["state"]
    return state


def test_a_job_runs_with_its_environment_and_volumes(
    server: ApiServer, kubelet: ProcessKubelet
) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}
    server.objects.create(secret | {"stringData": {"TOKEN": "t0p"}})
    reference = {"name": "s", "key": "TOKEN"}
    container = {
        "env": [
            {"name": "WORKSPACE_PATH", "value": "/workspace/main"},
            {"name": "SAID", "value": "$(WORKSPACE_PATH) $(NOBODY) $$"},
            {"name": "KEY", "valueFrom": {"secretKeyRef": reference}},
            {
                "name": "NONE",
                "valueFrom": {
                    "secretKeyRef": {"name": "no", "key": "k", "optional": True}
                },
            },
            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        ],
        "envFrom": [{"secretRef": {"name": "s"}, "prefix": "FROM_"}],
        "workingDir": "/workspace/main",
        "volumeMounts": [
            {"name": "w", "mountPath": "/workspace"},
            {"name": "s", "mountPath": "/etc/secret"},
        ],
    }
    volumes = [
        {"name": "w", "emptyDir": {}},
        {"name": "s", "secret": {"secretName": "s"}},
    ]
    script = (
        'env > env; test -s "$WORKSPACE_PATH/env" && echo told; sleep 0.2; echo again'
    )
    server.objects.create(job(script, container=container, pod={"volumes": volumes}))
    worker = kubelet.running("default", "work")
    folder = kubelet.folder(worker, "/workspace")
    done = server.objects.wait("jobs", "default", "work", ended)
    assert condition(done, "Complete") and done and done["status"]["succeeded"] == 1
    text = (folder / "main/env").read_text()
    seen = dict(line.split("=", 1) for line in text.splitlines())
    assert seen["WORKSPACE_PATH"].endswith("/workspace/main")
    assert seen["SAID"] == "/workspace/main $(NOBODY) $"
    assert (seen["KEY"], seen["FROM_TOKEN"]) == ("t0p", "t0p")
    assert seen["POD"].startswith("work-") and "NONE" not in seen
    assert not set(os.environ) & set(seen) - {
        "PATH",
        "HOME",
        "LANG",
        "PWD",
        "SHLVL",
        "_",
        "HOSTNAME",
        "OLDPWD",
    }
    pod = only_pod(server)
    assert pod["status"]["phase"] == "Succeeded" and "finalizers" not in pod["metadata"]
    assert state_of(pod)["terminated"]["reason"] == "Completed"
    assert kubelet.output(worker) == "told\nagain\n"


def test_a_secret_that_is_missing_is_waited_for(
    server: ApiServer, kubelet: ProcessKubelet
) -> None:
    container = {"envFrom": [{"secretRef": {"name": "late"}}]}
    server.objects.create(job('test "$A" = b', container=container))
    wait_until(
        lambda: server.objects.list("pods")
        and "containerStatuses" in only_pod(server)["status"]
    )
    waiting = state_of(only_pod(server))["waiting"]
    assert waiting["reason"] == "CreateContainerConfigError"
    assert waiting["message"] == 'secret "late" not found'
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "late"}}
    server.objects.create(secret | {"stringData": {"A": "b"}})
    done = server.objects.wait("jobs", "default", "work", ended)
    assert condition(done, "Complete")


def test_suspending_ends_the_pod_gently_and_counts_nothing(
    server: ApiServer, kubelet: ProcessKubelet
) -> None:
    script = 'trap "echo saved; exit 0" TERM; echo ready; while :; do sleep 0.05; done'
    server.objects.create(job(script))
    worker = kubelet.running("default", "work")
    wait_until(lambda: "ready" in kubelet.output(worker))
    server.objects.merge("jobs", "default", "work", {"spec": {"suspend": True}})
    wait_until(lambda: not server.objects.list("pods"))
    assert kubelet.output(worker) == "ready\nsaved\n"
    found = server.objects.get("jobs", "default", "work")
    assert condition(found, "Suspended")["status"] == "True"
    assert not ended(found) and "failed" not in found["status"]
    server.objects.merge("jobs", "default", "work", {"spec": {"suspend": False}})
    assert kubelet.running("default", "work") is not worker


def test_deadlines_and_the_time_after_the_end_follow_the_clock(
    server: ApiServer, kubelet: ProcessKubelet, clock: Clock
) -> None:
    script = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    spec = {"activeDeadlineSeconds": 60, "ttlSecondsAfterFinished": 600}
    server.objects.create(job(script, pod={"terminationGracePeriodSeconds": 1}, **spec))
    worker = kubelet.running("default", "work")
    wait_until(lambda: "ready" in kubelet.output(worker))
    clock.ahead += timedelta(seconds=61)
    wait_until(
        lambda: (
            condition(server.objects.get("jobs", "default", "work"), "FailureTarget")
            if server.objects.get("jobs", "default", "work")["status"].get("conditions")
            else None
        )
    )
    done = server.objects.wait("jobs", "default", "work", ended)
    assert condition(done, "Failed")["reason"] == "DeadlineExceeded"
    assert worker.process and worker.process.code() == 137
    clock.ahead += timedelta(seconds=601)
    server.objects.wait("jobs", "default", "work", lambda found: found is None)


def alive_in_group(group: int) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE and _group(process) == group
    ]


def _group(process: psutil.Process) -> int:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return 0


@pytest.mark.parametrize(
    ("happens", "seen"),
    [
        ("oom_kill", (137, "OOMKilled", None)),
        ("kill", (137, "Error", None)),
        ("evict", (137, "Error", "Evicted")),
    ],
)
def test_what_kills_a_pod_shows_in_it(
    server: ApiServer, kubelet: ProcessKubelet, happens: str, seen: tuple[Any, ...]
) -> None:
    server.objects.create(job("sleep 60 & sleep 60"))
    worker = kubelet.running("default", "work")
    assert worker.process
    getattr(kubelet, happens)(worker)
    done = server.objects.wait("jobs", "default", "work", ended)
    assert condition(done, "Failed")["reason"] == "BackoffLimitExceeded"
    pod = only_pod(server)
    over = state_of(pod)["terminated"]
    assert (over["exitCode"], over["reason"], pod["status"].get("reason")) == seen
    assert not alive_in_group(worker.process.pid)


@pytest.mark.parametrize("policy", ["TerminatingOrFailed", "Failed"])
def test_a_pod_that_somebody_deletes_fails_its_job(
    server: ApiServer, kubelet: ProcessKubelet, policy: str
) -> None:
    server.objects.create(job("exec sleep 60", podReplacementPolicy=policy))
    worker = kubelet.running("default", "work")
    server.objects.delete("pods", *worker.key)
    done = server.objects.wait("jobs", "default", "work", ended)
    assert condition(done, "Failed") and done and done["status"]["failed"] == 1
    assert not server.objects.list("pods")


@pytest.mark.skipif(not namespace_prefix(), reason="no mount namespaces here")
def test_a_zombie_of_a_lost_node_keeps_to_its_own_files(
    server: ApiServer, kubelet: ProcessKubelet
) -> None:
    script = 'echo "$NAME" > "$W/mine"; while [ ! -e "$W/go" ]; do sleep 0.05; done; echo late >> "$W/mine"'
    mounts = [{"name": "w", "mountPath": "/workspace"}]
    name = {"fieldRef": {"fieldPath": "metadata.name"}}
    env = [{"name": "W", "value": "/workspace"}, {"name": "NAME", "valueFrom": name}]
    container = {"env": env, "volumeMounts": mounts}
    work = job(
        script, container=container, pod={"volumes": [{"name": "w", "emptyDir": {}}]}
    )
    server.objects.create({**work, "spec": {**work["spec"], "backoffLimit": 1}})
    zombie = kubelet.running("default", "work")
    wait_until(lambda: (kubelet.folder(zombie, "/workspace") / "mine").exists())
    kubelet.lose_node(zombie, zombie=True)
    pod = server.objects.get("pods", *zombie.key)
    assert pod["status"]["reason"] == "NodeLost" and "running" in state_of(pod)
    kubelet.collect_lost(zombie)
    second = kubelet.running("default", "work")
    assert second is not zombie
    ours = kubelet.folder(second, "/workspace")
    wait_until(lambda: (ours / "mine").exists())
    (ours / "go").touch()
    done = server.objects.wait("jobs", "default", "work", ended)
    assert condition(done, "Complete")
    assert (ours / "mine").read_text() == f"{second.key[1]}\nlate\n"
    assert zombie.process and zombie.process.code() is None
    assert not (kubelet.folder(zombie, "/workspace") / "go").exists()


def test_fates_keep_pods_waiting_until_lifted(
    server: ApiServer, kubelet: ProcessKubelet
) -> None:
    nowhere = kubelet.outcomes.add(Unschedulable(), of_session("a"))
    pull = kubelet.outcomes.add(ImagePull(), of_session("b"))
    server.objects.create(job("true", "a"))
    server.objects.create(job("true", "b"))

    def pod(name: str) -> Json:
        found = server.objects.list("pods", "default", f"job-name={name}")
        return found[0] if found else {"status": {}}

    wait_until(lambda: pod("a")["status"].get("conditions"))
    assert condition(pod("a"), "PodScheduled")["reason"] == "Unschedulable"
    wait_until(lambda: "ImagePullBackOff" in str(pod("b")["status"]))
    nowhere.remove()
    pull.remove()
    for name in "ab":
        assert condition(
            server.objects.wait("jobs", "default", name, ended), "Complete"
        )


def test_a_pod_reaches_the_server_as_its_service_account(
    server: ApiServer, kubelet: ProcessKubelet
) -> None:
    """With the configuration that lightkube finds by itself; roles apply; the token ends with the pod."""
    objects = server.objects
    objects.create(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "bot"}}
    )
    about = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "bot"}}
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}
    objects.create(about | {"kind": "Role", "rules": [rule]})
    subject = {"kind": "ServiceAccount", "name": "bot", "namespace": "default"}
    grant = {
        "roleRef": {
            "kind": "Role",
            "name": "bot",
            "apiGroup": "rbac.authorization.k8s.io",
        }
    }
    objects.create(about | grant | {"kind": "RoleBinding", "subjects": [subject]})
    code = (
        "from lightkube import ApiError, Client, KubeConfig\n"
        "from lightkube.resources.core_v1 import Pod, Secret\n"
        "client = Client(KubeConfig.from_env())\n"
        "print(len(list(client.list(Pod))))\n"
        "try: list(client.list(Secret))\n"
        "except ApiError as error: print(error.status.code)\n"
    )
    container = {"command": ["python", "-c", code]}
    objects.create(job("", container=container, pod={"serviceAccountName": "bot"}))
    assert condition(
        objects.wait("jobs", "default", "work", ended, PATIENCE), "Complete"
    )
    (worker,) = kubelet.pods("default", "work")
    assert kubelet.output(worker).split() == ["1", "403"]
    quiet = {"automountServiceAccountToken": False}
    objects.create(job('test -z "$KUBECONFIG"', "quiet", pod=quiet))
    assert condition(objects.wait("jobs", "default", "quiet", ended), "Complete")


def test_a_job_document_that_is_no_job_is_refused(server: ApiServer) -> None:
    bad = json.loads(json.dumps(job("true")))
    bad["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = [
        {"name": "none", "mountPath": "/x"}
    ]
    with pytest.raises(Refused, match='volumeMounts\\[0\\].name: Not found: "none"'):
        server.objects.create(bad)


@pytest.mark.parametrize(
    ("container", "words"),
    [
        ({}, ["init", "tool", "--help"]),
        ({"args": ["serve"]}, ["init", "tool", "serve"]),
        ({"command": ["sh"]}, ["sh"]),
        ({"command": ["sh"], "args": ["-c"]}, ["sh", "-c"]),
    ],
)
def test_an_images_entry_point_stays_unless_there_is_a_command(
    container: Json, words: list[str]
) -> None:
    image = Image({}, entrypoint=("init", "tool"), command=("--help",))
    assert image.argv(container) == words


def test_a_container_without_a_command_runs_its_images(
    server: ApiServer, kubelet: ProcessKubelet
) -> None:
    made = job("", container={"args": ["--version"]})
    del made["spec"]["template"]["spec"]["containers"][0]["command"]
    server.objects.create(made)
    server.objects.wait("jobs", "default", "work", ended)
    (worker,) = kubelet.pods("default", "work")
    assert kubelet.output(worker).startswith("midwatch ")
