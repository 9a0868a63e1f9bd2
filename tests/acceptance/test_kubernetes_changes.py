"""Rollouts and changed ConfigMaps of a cluster are changes, and what broke a workload is named in its ticket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from midwatch.agent.evidence import ContextGatherer
from midwatch.agent.first_aid import FirstAidWriter
from midwatch.agent.recent_changes import RecentChanges
from midwatch.change_settings import ChangeSettings
from midwatch.lifecycle import SystemClock
from midwatch.model import ChangeKind, Ticket
from midwatch.monitor.loop import MonitorLoop
from midwatch.playbooks.base import playbooks
from midwatch.redaction import Redactor
from midwatch.store.figures import TicketFilter
from midwatch.store.sql import SqlStore, open_store
from midwatch.subjects.kubernetes.object_fields import read_deployment
from midwatch.subjects.kubernetes.rollout_changes import rollout_change
from midwatch.subjects.kubernetes.rollouts import Revision
from midwatch.system_changes import ChangeFilter, SystemChange
from tests.cluster import ApiServer, ProcessKubelet, asking
from tests.cluster.revisions import reconcile

from ..waiting import PATIENCE
from .cli import said, said_json
from .cluster_subject import (
    Json,
    Watched,
    deployment,
    namespace,
    pod_spec,
    pods,
    revision,
)


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with ApiServer(bookmarks=0.2) as server:
        yield server


@pytest.fixture
async def tickets_db(tmp_path: Path) -> AsyncIterator[SqlStore]:
    store = await open_store(f"sqlite:///{tmp_path / 'midwatch.db'}")
    yield store
    await store.close()


def managed(path: tuple[str, ...], manager: str, ago: float = 0) -> Json:
    """The entry of `managedFields` with which the API server records who wrote a field."""
    fields: Json = {}
    for name in reversed(path):
        fields = {name: fields}
    at = datetime.now(UTC) - timedelta(seconds=ago)
    return {
        "manager": manager,
        "operation": "Update",
        "apiVersion": "v1",
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
        "time": f"{at:%Y-%m-%dT%H:%M:%SZ}",
    }


def roll_out(server: ApiServer, space: str, number: int, spec: Json) -> Json:
    """Change the template of the Deployment shop as a person does, and act as its controller."""
    made = server.objects.get("deployments", space, "shop")
    template = {**made["spec"]["template"], "spec": spec}
    entry = managed(("f:spec", "f:template"), "kubectl-set")
    patch = {"metadata": {"managedFields": [entry]}, "spec": {"template": template}}
    made = server.objects.merge("deployments", space, "shop", patch)
    return revision(server, space, made, number, spec, 1)


async def cycles(
    watched: Watched, store: SqlStore, wanted: str
) -> tuple[Ticket, list[SystemChange]]:
    """Let a monitor observe until a ticket of this invariant is open, and twice more."""
    clock, subject = SystemClock(), watched.subject
    near = RecentChanges(store, ChangeSettings(), clock)
    gatherer = ContextGatherer({subject.name: subject}, Redactor(), clock, changes=near)
    kinds = {subject.name: subject.kind}
    aid = FirstAidWriter(store, gatherer, playbooks(), kinds, clock, PATIENCE)
    loop = MonitorLoop(store, [subject], first_aid=aid, clock=clock)
    end = time.monotonic() + PATIENCE
    more = 2
    while more:
        assert not (await loop.cycle()).unsaved and time.monotonic() < end
        await asyncio.sleep(0.05)
        found = [
            one
            for one in await store.tickets(TicketFilter())
            if one.key.invariant == wanted
        ]
        more -= bool(found)
    return found[0], await store.system_changes(ChangeFilter(limit=100))


async def test_the_rollout_that_broke_a_workload_is_named_in_its_ticket(
    server: ApiServer, tmp_path: Path, tickets_db: SqlStore
) -> None:
    space = namespace(server, "shop")
    source = {"configMapKeyRef": {"name": "config", "key": "mode"}}
    env = {"env": [{"name": "MODE", "valueFrom": source}]}
    for name in ("config", "unused"):
        document = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"mode": "s3cret"}}
        old = managed(("f:data",), "helm", 2 * 86400)
        meta = {"name": name, "managedFields": [old]}
        server.objects.create({**document, "metadata": meta}, space)
    good = pod_spec("sleep", "600", container=env)
    bad = pod_spec("false", container={**env, "image": "registry.example/shop:3"})
    replica_set = deployment(server, space, "shop", 1, **good)
    old = managed(("f:spec", "f:template"), "helm", 2 * 86400)
    patch = {"metadata": {"managedFields": [old]}}
    server.objects.merge("deployments", space, "shop", patch)
    with ProcessKubelet(server, tmp_path / "node") as kubelet:
        [name] = pods(server, space, replica_set, 1)
        async with Watched(server, tmp_path, namespaces=[space]) as watched:
            await watched.observe()
            for name_ in ("config", "unused"):
                entry = managed(("f:data",), "kubectl-edit")
                patch = {
                    "data": {"mode": "n3w"},
                    "metadata": {"managedFields": [entry]},
                }
                server.objects.merge("configmaps", space, name_, patch)
            server.objects.delete("pods", space, name, grace=0)
            pods(server, space, roll_out(server, space, 2, bad), 1)
            ticket, changes = await cycles(watched, tickets_db, "crash_loop")
    assert not kubelet.failures
    told = {one.title.partition(":")[0]: one for one in changes}
    about = "shop/Deployment/shop"
    assert told.keys() == {
        f"rollout of {about}",
        f"change of shop/ConfigMap/config, which {about} uses",
    }
    rollout = told[f"rollout of {about}"]
    assert "image: registry.example/shop:2 -> registry.example/shop:3" in rollout.title
    assert rollout.version_from == "revision 1, registry.example/shop:2"
    assert rollout.author == "kubectl-set" and rollout.kind is ChangeKind.DEPLOY
    [config] = [one for one in changes if one.kind is ChangeKind.CONFIG]
    assert config.author == "kubectl-edit"
    assert "s3cret" not in repr(changes) and "n3w" not in repr(changes)

    near = RecentChanges(tickets_db, ChangeSettings(), SystemClock())
    both = await near.before([ticket])
    assert {one.change.id for one in both} == {rollout.id, config.id}
    assert all(one.own and one.shortly for one in both)
    listed = said_json(tmp_path, "changes", "list", "--around", str(ticket.id))
    assert rollout.title in [one["title"] for one in listed]
    shown = said(tmp_path, "tickets", "show", str(ticket.id))
    assert "Changed shortly before" in shown and rollout.title[:40] in shown


async def test_what_was_changed_before_the_first_observation_and_what_cannot_be_read(
    server: ApiServer, tmp_path: Path
) -> None:
    """A rollout of an hour ago counts, one of last week does not; a history that is forbidden is a change without details."""
    space = namespace(server, "before")
    for name, ago in (("lately", 3600), ("earlier", 7 * 86400)):
        deployment(server, space, name, 1)
        entry = managed(("f:spec", "f:template"), "helm", ago)
        patch = {"metadata": {"managedFields": [entry]}}
        server.objects.merge("deployments", space, name, patch)
    forbidden = server.faults.refuse(asking("list", "replicasets"), status=403)
    async with Watched(server, tmp_path, namespaces=[space]) as watched:
        [found] = (await watched.observe()).changes
        assert found.title == "deployment of before/Deployment/lately"
        assert (
            found.author == "helm" and found.version_to == "app registry.example/shop:2"
        )
        server.faults.lift(forbidden)
        reads = len(server.requests.where(asking("list", "replicasets")))
        for _ in range(3):
            assert (await watched.observe()).changes == (found,)
        assert len(server.requests.where(asking("list", "replicasets"))) == reads
    server.faults.clear()


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet"])
async def test_a_rollout_by_controller_revisions(
    server: ApiServer, tmp_path: Path, kind: str
) -> None:
    space, plural = namespace(server, kind.lower()), f"{kind.lower()}s"
    labels = {"app": "db"}

    def template(image: str) -> Json:
        container = {"name": "app", "image": image}
        return {"metadata": {"labels": labels}, "spec": {"containers": [container]}}

    spec: Json = {"selector": {"matchLabels": labels}, "template": template("db:1")}
    if kind == "StatefulSet":
        spec["serviceName"] = "db"
    document = {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "db"}}
    server.objects.create({**document, "spec": spec}, space)
    reconcile(server.objects, plural, space, "db")
    async with Watched(server, tmp_path, namespaces=[space]) as watched:
        about = f"{space}/{kind}/db"
        [first] = (await watched.observe()).changes
        assert first.title == f"deployment of {about}"
        change = {"spec": {"template": template("db:2")}}
        server.objects.merge(plural, space, "db", change)
        reconcile(server.objects, plural, space, "db")
        await watched.until(lambda _: len(watched.last.changes) == 2)
        [second] = [one for one in watched.last.changes if one.key != first.key]
        assert second.title == (
            f"rollout of {about}: changed spec.containers[app].image: db:1 -> db:2"
        )
        assert second.version_from == "revision 1, db:1"


def test_a_rollback_is_one_although_its_revision_is_old() -> None:
    now = datetime.now(UTC)

    def made(number: int, ago: float, image: str) -> Revision:
        template = {"spec": {"containers": [{"name": "app", "image": image}]}}
        at = now.timestamp() - ago
        return Revision(number, f"shop-{number}", at, image, template, "")

    workload = read_deployment(
        {
            "metadata": {
                "name": "shop",
                "namespace": "shop",
                "uid": "u",
                "annotations": {"deployment.kubernetes.io/revision": "3"},
                "managedFields": [managed(("f:spec", "f:template"), "kubectl", 60)],
            }
        }
    )
    history = [made(3, 9 * 86400, "shop:1"), made(2, 86400, "shop:2")]
    found = rollout_change(workload, history, False, now)
    assert found is not None and found.title.startswith("rollback of shop/")
    assert found.at is not None and 59 <= (now - found.at).total_seconds() <= 61
    assert "shop:2 -> shop:1" in found.title
    old = [made(3, 9 * 86400, "shop:2"), made(2, 10 * 86400, "shop:1")]
    assert rollout_change(workload, old, False, now) is None
