"""The approved restart and roll-back of a workload, under the rights of the chart, on a cluster whose containers are real processes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from deploy import render

from midwatch.agent.approved_actions import ApprovedActions, TicketActions
from midwatch.errors import ObservationFailed
from midwatch.model import Evidence, Ticket
from midwatch.monitor.loop import MonitorLoop
from midwatch.redaction import Redactor
from midwatch.settings import MonitorSettings
from midwatch.store.action_runs_protocol import ActionRun
from midwatch.store.protocol import TicketFilter
from midwatch.store.sql import SqlStore, open_store
from midwatch.subjects.actionable import ProposedAction
from midwatch.subjects.kubernetes import KubernetesSubject
from midwatch.subjects.kubernetes.rollouts import CHANGE_CAUSE, CONTROLLERS
from midwatch.subjects.kubernetes.settings import KubernetesSettings
from tests.cluster import ApiServer, ProcessKubelet, Request
from tests.cluster.revisions import reconcile

from ..waiting import PATIENCE
from .approvals_support import recommending, store_diagnosis
from .cluster_subject import Json, namespace, plural_of, pod_spec, roll_out

SPACE = "shop"
ACTIONS = {
    "timeout": 3,
    "allow": ["restart_workload", "roll_back_workload"],
    "workloads": [f"{SPACE}/Deployment/*", f"{SPACE}/*/checkout"],
}
WATCHED = {
    "name": "cluster",
    "kind": "kubernetes",
    "namespaces": [SPACE],
    "cluster_objects": False,
}
SERVER = "system:serviceaccount:midwatch:midwatch-server"
GOOD = pod_spec("sleep", "600")
BAD = pod_spec("sh", "-c", "exit 3")


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """With what the chart gives to the monitor and to the server that runs actions."""
    values = {
        "server": {"enabled": True},
        "monitor": {"enabled": True},
        "settings": {"subjects": [{**WATCHED, "actions": ACTIONS}]},
    }
    with ApiServer(rbac=True, bookmarks=0.2) as server:
        for name in ("midwatch", SPACE):
            namespace(server, name)
        for one in render.documents(values):
            if one["kind"] in ("Role", "RoleBinding", "ServiceAccount"):
                server.objects.create(one)
        yield server


@dataclass
class Case:
    """A workload that was good in its first revision, and a store with what became of it."""

    server: ApiServer
    subject: KubernetesSubject
    store: SqlStore
    kind: str = "Deployment"

    def __post_init__(self) -> None:
        limits = MonitorSettings(group_wait=0)
        self._monitor = MonitorLoop(self.store, [self.subject], limits)
        self.actions = ApprovedActions(self.store, [self.subject], Redactor())
        self.name = f"{SPACE}/{self.kind}/checkout"
        self.place = plural_of(self.kind), SPACE, "checkout"

    async def until(self, resolved: bool) -> Ticket:
        """Run cycles of the monitor until the ticket is there, or resolved."""
        end = time.monotonic() + PATIENCE
        while True:
            await self._monitor.cycle()
            found = await self.store.tickets(TicketFilter())
            assert len(found) <= 1, found
            if found and found[0].resolved is resolved:
                return found[0]
            assert time.monotonic() < end, found
            await asyncio.sleep(0.1)

    async def diagnose(self, verb: str, *more: str) -> TicketActions:
        """Store a diagnosis that recommends `kubectl rollout VERB` of the workload."""
        options = " --to-revision=1" if verb == "undo" else ""
        command = f"kubectl -n {SPACE} rollout {verb} {self.kind.lower()}/checkout"
        commands = [f"{command}{options}", *more]

        def found(evidence: Sequence[Evidence]) -> dict[str, Any]:
            by_title = {one.title: one for one in evidence}
            rollout = by_title[f"Rollout history of {self.name}"]
            [changed, *_] = [
                line
                for line in rollout.text.splitlines()
                if line.startswith(("changed", "added"))
            ] or [rollout.text.splitlines()[1]]
            return {
                "root_cause": "the last rollout broke it",
                "evidence_id": rollout.id,
                "quote": changed,
                "recommended_actions": [recommending("Undo it", commands)],
            }

        await store_diagnosis(self.store, [self.subject], found)
        return await self.actions.of_ticket(1)

    async def approve(self, found: TicketActions) -> ActionRun:
        [one] = found.proposals
        return await self.actions.approve(1, one.id, by="ann", channel="cli")

    def create(self) -> None:
        """Create the workload, and let its controller make the first revision."""
        labels = {"app": "checkout"}
        spec: Json = {"selector": {"matchLabels": labels}}
        spec["template"] = {"metadata": {"labels": labels}, "spec": GOOD}
        if self.kind != "DaemonSet":
            spec["replicas"] = 1
        if self.kind == "StatefulSet":
            spec["serviceName"] = "checkout"
        meta = {"name": "checkout", "annotations": {"owner": "ann", CHANGE_CAUSE: "v1"}}
        document = {"apiVersion": "apps/v1", "kind": self.kind, "metadata": meta}
        self.server.objects.create({**document, "spec": spec}, SPACE)
        self.follow()

    def follow(self) -> Json:
        """Do what the controllers do next, and return what holds the present revision."""
        if self.kind == "Deployment":
            return roll_out(self.server, SPACE, "checkout")
        return reconcile(self.server.objects, *self.place)

    def change(self, spec: dict[str, Any], cause: str = "v2") -> None:
        """Change the template of the workload, and let its controllers follow."""
        change = {
            "metadata": {"annotations": {CHANGE_CAUSE: cause}},
            "spec": {"template": {"spec": spec}},
        }
        self.server.objects.merge(*self.place, change)
        self.follow()

    def present(self) -> dict[str, Any]:
        return self.server.objects.get(*self.place)

    def pod(self) -> Json:
        [pod] = self.server.objects.list("pods", SPACE, "app=checkout")
        return pod

    def patches(self) -> list[Request]:
        """What was sent to change the workload with the login of the actions."""
        return self.server.requests.where(
            lambda one: one.user == SERVER and is_patch(one)
        )


@asynccontextmanager
async def broken(
    server: ApiServer, folder: Path, kind: str = "Deployment"
) -> AsyncIterator[Case]:
    logins = {
        one: server.kubeconfig(folder / one, server.token_for("midwatch", one))
        for one in ("midwatch-monitor", "midwatch-server")
    }
    settings = KubernetesSettings.model_validate(
        {
            **WATCHED,
            "kubeconfig": logins["midwatch-monitor"],
            "settle": 1.5,
            "invariants": {
                "crash_loop": {"limit": 0},
                "rollout_stuck": {"enabled": False},
                "pods_unready": {"enabled": False},
            },
            "actions": {**ACTIONS, "kubeconfig": logins["midwatch-server"]},
        }
    )
    subject = KubernetesSubject(settings)
    store = await open_store(f"sqlite:///{folder}/midwatch.db")
    try:
        case = Case(server, subject, store, kind)
        case.create()
        yield case
    finally:
        await subject.close()
        await store.close()


@pytest.mark.parametrize("kind", CONTROLLERS)
async def test_a_rollout_that_crashes_is_rolled_back_and_resolves(
    server: ApiServer, tmp_path: Path, kind: str
) -> None:
    with ProcessKubelet(server, tmp_path / "node") as kubelet:
        async with broken(server, tmp_path, kind) as case:
            good, first = case.present(), case.follow()
            # A StatefulSet replaces none of its pods that is not ready.
            server.objects.wait("pods", SPACE, case.pod()["metadata"]["name"], is_ready)
            case.change(BAD)
            ticket = await case.until(resolved=False)
            assert ticket.key.component == case.name
            found = await case.diagnose("undo")
            [one] = found.proposals
            what = f"roll {case.name} back from revision 2 to revision 1"
            assert one.action.what == what
            check = await case.actions.dry_run(1, one.id)
            assert check.ready and "dryRun=All" in check.text, check
            version = case.present()["metadata"]["resourceVersion"]
            run = await case.approve(found)
            assert run.state == "done", run
            assert "changed spec.containers[app].command" in str(run.output)
            again = await case.actions.of_ticket(1)
            assert again.runs == (run,) and run.approved_by == "ann"
            dry, done = case.patches()
            assert dry.query["dryRun"] == "All" and "dryRun" not in done.query
            path = "/metadata/resourceVersion"
            lock = {"op": "replace", "path": path, "value": version}
            assert lock in json.loads(done.body)
            back = case.present()
            assert back["metadata"]["generation"] == 3
            assert back["spec"]["template"]["spec"] == good["spec"]["template"]["spec"]
            causes = [back["metadata"]["annotations"][CHANGE_CAUSE], "ann"]
            assert causes == ["v1", back["metadata"]["annotations"]["owner"]]
            # The controller knows the template again: its old revision, with a new number.
            present = case.follow()
            assert present["metadata"]["uid"] == first["metadata"]["uid"]
            if kind == "StatefulSet":
                assert not is_ready(case.pod())
                server.objects.delete("pods", SPACE, "checkout-0", grace=0)
                case.follow()
            assert (await case.until(resolved=True)).resolution
            asked = server.requests.where(lambda one: one.user == SERVER)
            verbs = {(one.verb, one.resource) for one in asked if one.status == 200}
            plural = case.place[0]
            assert ("patch", plural) in verbs
            assert verbs <= {
                *(("get", plural), ("patch", plural)),
                *(("list", plural_of(CONTROLLERS[kind])), ("list", "pods")),
            }
    assert not kubelet.failures


def is_ready(pod: Json | None) -> bool:
    conditions = (pod or {}).get("status", {}).get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


async def test_a_daemon_set_is_left_alone_once_its_revisions_are_others(
    server: ApiServer, tmp_path: Path
) -> None:
    """The one to go back to is gone, another one is made, or it is another DaemonSet."""
    with ProcessKubelet(server, tmp_path / "node"):
        async with broken(server, tmp_path, "DaemonSet") as case:
            first = case.follow()
            case.change(BAD)
            await case.until(resolved=False)
            await case.diagnose("undo")
            ended = []

            async def approved(says: str) -> None:
                found = await case.actions.of_ticket(1)
                check = await case.actions.dry_run(1, found.proposals[0].id)
                assert not check.ready and says in check.text, check
                run = await case.approve(found)
                assert run.state == "not_run" and says in str(run.output), run
                ended.append(run.id)

            kept = "controllerrevisions", SPACE, first["metadata"]["name"]
            server.objects.delete(*kept)
            await approved("is not kept any more")
            for name in ("uid", "resourceVersion", "creationTimestamp"):
                del first["metadata"][name]
            server.objects.create(first, SPACE)
            spec = {**BAD, "terminationGracePeriodSeconds": 7}
            change = {"spec": {"template": {"spec": spec}}}
            server.objects.merge(*case.place, change)
            await approved("its controller has not seen generation 3 yet")
            case.follow()
            await approved("is at revision 3 (checkout-")
            server.objects.delete(*case.place)
            case.create()
            await approved("was deleted and created again")
            assert len(set(ended)) == 4 and not case.patches()


async def test_a_restart_is_done_once_and_only_on_the_revision_of_the_evidence(
    server: ApiServer, tmp_path: Path
) -> None:
    with ProcessKubelet(server, tmp_path / "node"):
        async with broken(server, tmp_path) as case:
            case.change(BAD)
            await case.until(resolved=False)
            found = await case.diagnose("restart")
            run = await case.approve(found)
            assert run.state == "done", run
            template = case.present()["spec"]["template"]
            assert "kubectl.kubernetes.io/restartedAt" in str(template["metadata"])
            # Its controller has not seen it, then it is at another revision: not again.
            later = await case.actions.of_ticket(1)
            assert [one.id for one in later.proposals] == [
                one.id.replace("-1", "-2") for one in found.proposals
            ]
            held = await case.approve(later)
            assert held.state == "not_run" and "is being changed" in str(held.output)
            case.follow()
            third = await case.approve(await case.actions.of_ticket(1))
            assert third.state == "not_run" and "revision 3" in str(third.output)


async def test_what_the_evidence_does_not_prove_is_not_offered(
    server: ApiServer, tmp_path: Path
) -> None:
    """The first revision crashes, so there is none to go back to; then one that came after the violation."""
    with ProcessKubelet(server, tmp_path / "node"):
        async with broken(server, tmp_path) as case:
            case.change(BAD)
            await case.until(resolved=False)
            case.change({**BAD, "terminationGracePeriodSeconds": 7})
            other = "kubectl rollout restart deployment/other; rm -rf /"
            found = await case.diagnose("undo", other)
            assert not found.proposals and "proves" in found.reason


# ------------------------------------------------------------------ how a run ends


def is_patch(request: Request) -> bool:
    return request.verb == "patch"


REVISION = "deployment.kubernetes.io/revision"


def unplaced(case: Case) -> ProposedAction:
    """Bring a revision whose pods no node takes, and return its roll-back. Without a kubelet nothing changes by itself."""
    case.change({**GOOD, "nodeSelector": {"disk": "none"}})
    uid = case.present()["metadata"]["uid"]
    sets = [one["metadata"] for one in case.server.objects.owned("replicasets", uid)]
    names = {int(one["annotations"][REVISION]): one["name"] for one in sets}
    target = {
        "namespace": SPACE,
        "kind": "Deployment",
        "name": "checkout",
        "uid": uid,
        "invariant": "unschedulable",
        "revision": 2,
        "revision_name": names[2],
        "to_revision": 1,
        "to_name": names[1],
    }
    return ProposedAction("roll_back_workload", target, "roll it back")


async def test_a_workload_that_has_changed_is_left_alone(
    server: ApiServer, tmp_path: Path
) -> None:
    async with broken(server, tmp_path) as case:
        action = unplaced(case)
        assert "permits it" in await case.subject.probe_actions()
        reading = {"kubeconfig": None, "context": None}
        chosen = case.subject.settings.actions.model_copy(update=reading)
        settings = case.subject.settings.model_copy(update={"actions": chosen})
        with pytest.raises(ObservationFailed, match="patch deployments in shop"):
            await KubernetesSubject(settings).probe_actions()

        async def refused(says: str, **target: str) -> None:
            asked = replace(action, target={**action.target, **target})
            result = await case.subject.run_action(asked)
            assert result.outcome == "not_run" and says in result.text, result
            check = await case.subject.check_action(asked)
            assert not check.ready and says in check.text, check

        await refused("was deleted and created again", uid="another")
        await refused("is not among actions.workloads", name="x/../y")
        await refused("at revision 2", revision_name="checkout-gone")
        await refused("is not kept any more", to_name="checkout-gone")
        await refused("not broken any more", invariant="crash_loop")
        objects = server.objects
        objects.merge("deployments", SPACE, "checkout", {"spec": {"paused": True}})
        await refused("is paused")
        keeper = {"apiVersion": "argoproj.io/v1", "kind": "Rollout", "name": "x"}
        above = {**keeper, "uid": case.present()["metadata"]["uid"], "controller": True}
        change = {"metadata": {"ownerReferences": [above]}}
        objects.merge("deployments", SPACE, "checkout", change)
        await refused("belongs to Rollout/x")
        assert not case.patches()


async def test_how_a_patch_ended_is_told(server: ApiServer, tmp_path: Path) -> None:
    """Refused: nothing was done. Without an answer: unknown, unless a second look shows the change."""
    async with broken(server, tmp_path) as case:
        action = unplaced(case)
        before = case.present()["metadata"]["generation"]

        async def ended() -> tuple[str, int]:
            result = await case.subject.run_action(action)
            return result.outcome, case.present()["metadata"]["generation"] - before

        faults = server.faults
        for status, outcome in ((403, "failed"), (429, "failed"), (500, "unknown")):
            faults.refuse(is_patch, status=status, times=1)
            assert await ended() == (outcome, 0), status
        held = faults.hang(is_patch, times=1)
        assert await ended() == ("unknown", 0)
        faults.lift(held)
        # Somebody else writes in between, and then the answer to a patch that arrived is lost.
        faults.refuse(is_patch, status=409, times=1)
        faults.drop(is_patch, at="after", times=1)
        assert await ended() == ("done", 1)
        template = case.present()["spec"]["template"]["spec"]
        assert "nodeSelector" not in template
