"""First aid for a cluster, on objects as clusters report them: each names its cause, and its quotes stand in the evidence."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from midwatch.agent.first_aid import preliminary
from midwatch.agent.grounding import ground
from midwatch.diagnosis_schema import DiagnosisOutput
from midwatch.model import Ticket
from midwatch.playbooks.kubernetes import PLAYBOOKS
from midwatch.subjects.kubernetes import KubernetesSubject
from tests.cluster import ApiServer

from .cluster_subject import (
    Watched,
    deployment,
    namespace,
    pod_spec,
    pods,
    recorded,
    revision,
)

SAYS = {
    "shop/PersistentVolumeClaim/data-search-1": (
        "No volume has been provisioned",
        "quota of disks is used up",
    ),
    "Node/node-2": ("reports nothing any more", "kubectl cordon node-2"),
    "Node/node-3": ("reports DiskPressure", "kubectl describe node node-3"),
    "shop/HorizontalPodAutoscaler/web": ("more pods than the autoscaler may", "raise"),
    "shop/HorizontalPodAutoscaler/api": ("cannot read its metrics", "metrics-server"),
    "ValidatingWebhookConfiguration/policy": (
        "Nothing answers for the service policy-webhook",
        "kubectl -n policy get pods,endpointslices",
    ),
    "shop/Service/api": ("none of them is ready", "--show-labels"),
    "shop/Ingress/shop": ("names a service that does not exist", "storefront"),
    "rolled/Deployment/shop": (
        "waiting ImagePullBackOff",
        "registry.example/shop:2 -> registry.example/shop:3",
    ),
    "shop/PodDisruptionBudget/cart": (
        "as many healthy pods as the workload has",
        "maxUnavailable: 1",
    ),
    "shop/PodDisruptionBudget/renamed": ("protects nothing", "basket trolley"),
    "shop/NetworkPolicy/renamed": ("restricts nothing", "Correct the selector"),
    "GatewayClass/nobody": ("No controller has taken it over", "gatewayclasses."),
    "shop/Gateway/public": ("for the reason that it reports", "no address is free"),
    "shop/HTTPRoute/shop": ("does not exist, or must not be used", "ReferenceGrant"),
}
"""Of each component a part of its cause, and of the rest of the note."""


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with ApiServer() as server:
        recorded(server, "broken")
        stuck_rollout(server)
        yield server


def stuck_rollout(server: ApiServer) -> None:
    """A Deployment whose second revision has an image that cannot be pulled, as its controllers leave it."""
    space = namespace(server, "rolled")
    deployment(server, space, "shop", 1)
    made = server.objects.get("deployments", space, "shop")
    spec = pod_spec(container={"image": "registry.example/shop:3"})
    [name] = pods(server, space, revision(server, space, made, 2, spec, 1), 1)
    waiting = {"reason": "ImagePullBackOff", "message": "manifest unknown"}
    container = {
        "name": "app",
        "image": "registry.example/shop:3",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"waiting": waiting},
    }
    status = {"phase": "Pending", "containerStatuses": [container]}
    server.objects.merge("pods", space, name, {"status": status}, sub="status")
    late = {
        "type": "Progressing",
        "status": "False",
        "reason": "ProgressDeadlineExceeded",
        "message": "timed out progressing",
    }
    status = {"observedGeneration": 9, "conditions": [late]}
    server.objects.merge("deployments", space, "shop", {"status": status}, sub="status")


@pytest.fixture
async def watched(server: ApiServer, tmp_path: Path) -> AsyncIterator[Watched]:
    invariants = {
        "claim_unbound": {"limit": 0},
        "ingress_certificate": {"enabled": False},
    }
    async with Watched(server, tmp_path, invariants=invariants) as watched:
        watched.clock.seconds = 700
        await watched.until(lambda found: SAYS.keys() <= {name for _, name in found})
        yield watched


async def noted(watched: Watched, ticket: Ticket) -> DiagnosisOutput:
    context = await watched.gathered([ticket])
    [(ids, note)] = preliminary(PLAYBOOKS, "kubernetes", [ticket], context)
    grounding = ground(note, context.evidence)
    assert list(ids) == [ticket.id]
    assert grounding.verified == grounding.total, (ticket.key, grounding)
    return note


async def test_each_ticket_names_its_cause_and_quotes_the_evidence(
    watched: Watched,
) -> None:
    wanted = [
        one
        for invariant in watched.subject.invariants
        for one in watched.tickets(invariant.id)
        if one.key.component in SAYS and one.key.invariant != "image_pull"
    ]
    assert {one.key.component for one in wanted} == SAYS.keys()
    for ticket in wanted:
        note = await noted(watched, ticket)
        cause, rest = SAYS[ticket.key.component]
        assert cause in note.root_cause, (ticket.key, note.root_cause)
        assert rest in note.model_dump_json(), (ticket.key, note)


def test_every_invariant_has_first_aid() -> None:
    known = {name for one in PLAYBOOKS for name in one.invariants}
    assert known == {one.id for one in KubernetesSubject.default_invariants}
