"""The kind `kubernetes` on a cluster whose containers are real processes that fail."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from midwatch.agent.first_aid import preliminary
from midwatch.agent.grounding import ground
from midwatch.model import Json, Origin, Severity
from midwatch.playbooks.kubernetes import PLAYBOOKS
from midwatch.subjects.kubernetes import KubernetesSubject
from midwatch.subjects.tools import Answer, Refused, tools_of
from midwatch.testing.subject_conformance import check_kind, check_subject
from tests.cluster import (
    ApiServer,
    ContainerRuns,
    ImagePull,
    ProcessKubelet,
    Unschedulable,
    asking,
)

from .cluster_subject import (
    Watched,
    deployment,
    job,
    namespace,
    owner,
    pod_spec,
    pods,
    revision,
)


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with ApiServer(bookmarks=0.2) as server:
        yield server


@pytest.fixture(scope="module")
def kubelet(
    server: ApiServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProcessKubelet]:
    with ProcessKubelet(server, tmp_path_factory.mktemp("node")) as kubelet:
        yield kubelet
    assert not kubelet.failures


CRASH = "echo connected; echo 'FATAL: no route to shop-db:5432' >&2; exit 3"


def ready(pod: Json | None) -> bool:
    statuses = pod["status"].get("containerStatuses", ()) if pod else ()
    return any(one["ready"] for one in statuses)


async def test_a_crash_loop_is_one_ticket_until_it_has_settled(
    server: ApiServer, kubelet: ProcessKubelet, tmp_path: Path
) -> None:
    """Ten pods of a Deployment crash, run between the crashes, and one day stay up."""
    space = namespace(server, "crash")
    good = tmp_path / "good"
    command = f"test -e {good} && exec sleep 600; {CRASH}"
    spec = pod_spec("sh", "-c", command)
    replica_set = deployment(server, space, "shop", 3, **spec)
    made = server.objects.get("deployments", space, "shop")
    pods(server, space, replica_set, 3)
    component = "crash/Deployment/shop"
    async with Watched(server, tmp_path, namespaces=[space]) as watched:
        await watched.until(lambda found: ("crash_loop", component) in found)
        assert {name for _, name in watched.broken()} == {component}
        [signal] = [s for s in watched.last.signals if s.invariant == "crash_loop"]
        assert signal.facts["exit_code"] == 3 and signal.severity is Severity.CRITICAL

        # A second revision, whose pods would crash alike: what it changed is evidence.
        later = pod_spec("sh", "-c", command, container={"image": "shop:3"})
        revision(server, space, made, 2, later, 0)
        tickets = watched.tickets("crash_loop")
        context = await watched.gathered(tickets)
        by_title = {one.title: one for one in context.evidence}
        log = by_title[f"Log of app in {signal.facts['pod']}, the run before"]
        assert "FATAL: no route to shop-db:5432" in log.text
        assert log.origin is Origin.REPORTED
        assert (
            "changed spec.containers[app].image"
            in by_title[f"Rollout history of {component}"].text
        )
        [(ids, note)] = preliminary(PLAYBOOKS, "kubernetes", tickets, context)
        assert "exits with code 3" in note.root_cause
        assert "no route to shop-db" in note.model_dump_json()
        grounding = ground(note, context.evidence)
        assert grounding.verified == grounding.total, grounding

        good.touch()
        for name in (f"shop-1d9f-{one}" for one in range(3)):
            server.objects.wait("pods", space, name, ready)
        await watched.observe()
        assert ("crash_loop", component) in watched.broken(), "it has just started"
        watched.clock.seconds = 601
        await watched.until(lambda found: not found)
        assert watched.known("crash_loop", component)


async def test_a_crash_loop_in_new_pods_is_unknown_until_they_have_run(
    server: ApiServer, kubelet: ProcessKubelet, tmp_path: Path
) -> None:
    space = namespace(server, "replaced")
    replica_set = deployment(server, space, "shop", 1, **pod_spec("false"))
    [name] = pods(server, space, replica_set, 1)
    component = "replaced/Deployment/shop"
    async with Watched(server, tmp_path, namespaces=[space]) as watched:
        await watched.until(lambda found: ("crash_loop", component) in found)
        kubelet.outcomes.add(
            ContainerRuns(),
            lambda pod: pod["metadata"]["namespace"] == space,
            times=1,
        )
        server.objects.delete("pods", space, name, grace=0)
        server.objects.wait("pods", space, name, lambda pod: pod is None)
        pods(server, space, replica_set, 1)
        await watched.until(lambda found: not found)
        assert not watched.known("crash_loop", component)
        watched.clock.seconds = 601
        await watched.until(lambda _: watched.known("crash_loop", component))
        assert not watched.broken()


async def test_an_out_of_memory_kill_counts_for_a_while(
    server: ApiServer, kubelet: ProcessKubelet, tmp_path: Path
) -> None:
    space = namespace(server, "memory")
    spec = pod_spec("sleep", "600")
    replica_set = deployment(server, space, "shop", 1, **spec)
    [name] = pods(server, space, replica_set, 1)
    async with Watched(server, tmp_path, namespaces=[space]) as watched:
        server.objects.wait(
            "pods", space, name, lambda pod: pod and pod["status"].get("podIP")
        )
        [worker] = [w for w in kubelet.workers() if w.key == (space, name)]
        kubelet.oom_kill(worker)
        component = "memory/Deployment/shop"
        await watched.until(lambda found: ("oom_killed", component) in found)
        tickets = watched.tickets("oom_killed")
        [(_, note)] = preliminary(
            PLAYBOOKS, "kubernetes", tickets, await watched.gathered(tickets)
        )
        assert "out of memory" in note.summary
        watched.clock.seconds = 3700
        await watched.until(lambda found: ("oom_killed", component) not in found)
        assert watched.known("oom_killed", component)


async def test_pods_that_cannot_start(
    server: ApiServer, kubelet: ProcessKubelet, tmp_path: Path
) -> None:
    """No image, no configuration and no node: each by the words of the kubelet or the scheduler."""
    space = namespace(server, "start")
    missing = {
        "name": "MODE",
        "valueFrom": {"configMapKeyRef": {"name": "shop", "key": "m"}},
    }
    spec = pod_spec("sleep", "600", container={"env": [missing]})
    specs = {"image": pod_spec(), "config": spec, "node": pod_spec()}
    outcomes = {"image": ImagePull(), "node": Unschedulable()}
    for name, outcome in outcomes.items():
        kubelet.outcomes.add(
            outcome,
            lambda pod, name=name: pod["metadata"]["namespace"] == space  # type: ignore[misc]
            and pod["metadata"]["name"].startswith(name),
        )
    for name, own in specs.items():
        pods(server, space, deployment(server, space, name, 1, **own), 1)
    wanted = {
        ("image_pull", "start/Deployment/image"),
        ("container_config", "start/Deployment/config"),
        ("unschedulable", "start/Deployment/node"),
    }
    async with Watched(
        server, tmp_path, namespaces=[space], invariants={"unschedulable": {"limit": 0}}
    ) as watched:
        assert await watched.until(lambda found: found >= wanted) == wanted
        for invariant, cause in (
            ("image_pull", "does not have this image or tag"),
            ("container_config", "missing"),
            ("unschedulable", "no node has enough memory"),
        ):
            tickets = watched.tickets(invariant)
            context = await watched.gathered(tickets)
            [(_, note)] = preliminary(PLAYBOOKS, "kubernetes", tickets, context)
            assert cause in note.root_cause, note.root_cause
            grounding = ground(note, context.evidence)
            assert grounding.verified == grounding.total, grounding


async def test_jobs_fail_and_later_ones_end_well(
    server: ApiServer, kubelet: ProcessKubelet, tmp_path: Path
) -> None:
    space = namespace(server, "jobs")
    template = {"spec": {**pod_spec("true"), "restartPolicy": "Never"}}
    cron = server.objects.create(
        {
            "apiVersion": "batch/v1",
            "kind": "CronJob",
            "metadata": {"name": "report"},
            "spec": {
                "schedule": "*/5 * * * *",
                "jobTemplate": {"spec": {"template": template}},
            },
        },
        space,
    )
    owned = {"ownerReferences": [owner("CronJob", cron)]}
    job(server, space, "alone", "sh", "-c", "echo 'no such table: orders'; exit 1")
    job(server, space, "report-1", "false", **owned)
    wanted = {("job_failed", "jobs/Job/alone"), ("job_failed", "jobs/CronJob/report")}
    async with Watched(server, tmp_path, namespaces=[space]) as watched:
        assert await watched.until(lambda found: found >= wanted) == wanted
        tickets = [
            one
            for one in watched.tickets("job_failed")
            if one.key.component == "jobs/Job/alone"
        ]
        context = await watched.gathered(tickets)
        [(_, note)] = preliminary(PLAYBOOKS, "kubernetes", tickets, context)
        assert "no such table: orders" in note.model_dump_json()

        server.objects.wait(
            "jobs", space, "report-1", lambda one: one and one["status"].get("failed")
        )
        job(server, space, "report-2", "sh", "-c", "sleep 1.1", **owned)
        server.objects.delete("jobs", space, "alone")
        await watched.until(lambda found: not found)
        assert all(watched.known(*one) for one in wanted)
        watched.clock.seconds = 660
        assert await watched.until(lambda found: found) == {
            ("cronjob_overdue", "jobs/CronJob/report")
        }


async def test_it_conforms(
    server: ApiServer, kubelet: ProcessKubelet, tmp_path: Path
) -> None:
    check_kind(KubernetesSubject)
    space = namespace(server, "conform")
    pods(server, space, deployment(server, space, "shop", 1, **pod_spec("false")), 1)
    async with Watched(server, tmp_path, namespaces=[space]) as watched:
        await watched.until(lambda found: found)
        assert await check_subject(watched.subject) is not None


async def test_tools_read_within_the_subject_and_show_no_secret(
    server: ApiServer, kubelet: ProcessKubelet, tmp_path: Path
) -> None:
    space, other = namespace(server, "tools"), namespace(server, "others")
    server.objects.create(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "db"},
            "stringData": {"password": "v3ry-s3cret"},
        },
        space,
    )
    reference = {"secretKeyRef": {"name": "db", "key": "password"}}
    env = [
        {"name": "DB_HOST", "value": "db.example"},
        {"name": "API_TOKEN", "value": "plain-t0ken"},
        {"name": "DB_WORD", "valueFrom": reference},
    ]
    command = ("sh", "-c", "echo reset by db.example; exec sleep 600")
    spec = pod_spec(*command, container={"env": env})
    [name] = pods(server, space, deployment(server, space, "shop", 1, **spec), 1)
    server.objects.wait("pods", space, name, ready)  # before, there is no log
    async with Watched(server, tmp_path, namespaces=[space]) as watched:
        tools = {one.name: one for one in tools_of(watched.subject)}

        async def ask(tool: str, **arguments: object) -> Answer:
            asked = tools[tool].arguments.model_validate(arguments)
            return await tools[tool].run(asked)

        shown = await ask("describe_object", kind="Pod", namespace=space, name=name)
        assert "env[DB_HOST]: db.example" in shown.text
        assert "env[DB_WORD]: from the Secret db, key password" in shown.text
        for one in ("v3ry-s3cret", "plain-t0ken"):
            assert one not in shown.text
        listed = await ask("list_objects", kind="Deployment", namespace=space)
        assert "shop: replicas=1" in listed.text
        log = {"namespace": space, "pod": name, "container": "app"}
        while "reset by db.example" not in (found := await ask("pod_log", **log)).text:
            await asyncio.sleep(0.05)
        assert found.origin is Origin.REPORTED
        with pytest.raises(Refused, match="has the namespaces tools"):
            await ask("list_objects", kind="Pod", namespace=other)
        for wrong in (
            {"kind": "Secret", "namespace": space, "name": "db"},
            {"kind": "Pod", "namespace": space, "name": "../../secrets/db"},
        ):
            with pytest.raises(ValidationError):
                await ask("describe_object", **wrong)
    assert not server.requests.where(asking(resource="secrets"))
