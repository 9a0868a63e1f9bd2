"""The kind `kubernetes`: what is broken, healthy and unknown, on objects as clusters report them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from deploy import render

from midwatch.cluster.errors import ClusterUnavailable
from midwatch.errors import ObservationFailed
from midwatch.subjects.kubernetes import KubernetesSubject
from midwatch.subjects.kubernetes.cluster_watch import KINDS
from tests.cluster import ApiServer, asking

from .cluster_subject import (
    Json,
    TlsHosts,
    Watched,
    deployment,
    gateway_api,
    namespace,
    plural_of,
    pods,
    reached,
    recorded,
)

BROKEN = {
    ("crash_loop", "shop/Deployment/cart"),
    ("oom_killed", "shop/StatefulSet/search"),
    ("image_pull", "shop/DaemonSet/agent"),
    ("container_config", "shop/Pod/by-hand"),
    ("unschedulable", "shop/Deployment/large"),
    ("pod_pending", "shop/Workflow/nightly"),
    ("pods_unready", "shop/Deployment/api"),
    ("rollout_stuck", "shop/Deployment/web"),
    ("pod_quota", "shop/Deployment/batch"),
    ("pod_admission", "shop/StatefulSet/guarded"),
    ("webhook_endpoints", "ValidatingWebhookConfiguration/policy"),
    ("node_ready", "Node/node-2"),
    ("node_pressure", "Node/node-3"),
    ("job_failed", "shop/Job/migrate"),
    ("job_overdue", "shop/Job/reindex"),
    ("cronjob_overdue", "shop/CronJob/report"),
    ("claim_unbound", "shop/PersistentVolumeClaim/data-search-1"),
    ("hpa_at_maximum", "shop/HorizontalPodAutoscaler/web"),
    ("hpa_metrics", "shop/HorizontalPodAutoscaler/api"),
    ("service_endpoints", "shop/Service/api"),
    ("ingress_backend", "shop/Ingress/shop"),
    ("ingress_certificate", "shop/Ingress/secure"),
    ("disruption_budget_blocks", "shop/PodDisruptionBudget/cart"),
    ("disruption_budget_unused", "shop/PodDisruptionBudget/renamed"),
    ("network_policy_unused", "shop/NetworkPolicy/renamed"),
    ("gateway_class_accepted", "GatewayClass/nobody"),
    ("gateway_programmed", "shop/Gateway/public"),
    ("http_route_accepted", "shop/HTTPRoute/shop"),
}
OF_PODS = {
    "crash_loop",
    "oom_killed",
    "image_pull",
    "container_config",
    "unschedulable",
    "pod_pending",
    "pods_unready",
}
REFUSED = {"pod_quota", "pod_admission"}
GATEWAY_API = {"gateway_class_accepted", "gateway_programmed", "http_route_accepted"}
UNUSED = {"disruption_budget_unused", "network_policy_unused"}
OF_WORKLOADS = REFUSED | UNUSED | {"rollout_stuck", "service_endpoints"}
NEEDED_BY = {
    "pods": OF_PODS | UNUSED | {"rollout_stuck", "claim_unbound"},
    "deployments": OF_WORKLOADS,
    "statefulsets": OF_WORKLOADS,
    "daemonsets": OF_WORKLOADS,
    "jobs": REFUSED | {"job_failed", "job_overdue"},
    "cronjobs": {"cronjob_overdue"} | UNUSED,
    "persistentvolumeclaims": {"claim_unbound"},
    "horizontalpodautoscalers": {"hpa_at_maximum", "hpa_metrics"},
    "services": {
        "service_endpoints",
        "ingress_backend",
        "webhook_endpoints",
        "http_route_accepted",
    },
    "poddisruptionbudgets": {"disruption_budget_blocks", "disruption_budget_unused"},
    "networkpolicies": {"network_policy_unused"},
    "gatewayclasses": {"gateway_class_accepted"},
    "gateways": {"gateway_programmed"},
    "httproutes": {"http_route_accepted"},
    "endpointslices": {"service_endpoints", "webhook_endpoints"},
    "ingresses": {"ingress_backend", "ingress_certificate"},
    "events": REFUSED,
    "nodes": {"node_ready", "node_pressure"},
    "validatingwebhookconfigurations": {"webhook_endpoints"},
    "mutatingwebhookconfigurations": {"webhook_endpoints"},
}


def earlier() -> datetime:
    """The server's clock: what is created was created twelve minutes ago."""
    return datetime.now(UTC) - timedelta(seconds=720)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsHosts]:
    with TlsHosts(tmp_path_factory.mktemp("tls")) as hosts:
        yield hosts


def broken(server: ApiServer, hosts: TlsHosts) -> list[Json]:
    """Create what is broken."""
    made = recorded(server, "broken")
    reached(server, "shop", "secure", hosts.port)
    return made


@pytest.fixture(scope="module")
def server(hosts: TlsHosts) -> Iterator[ApiServer]:
    with ApiServer(bookmarks=0.2, now=earlier) as server:
        broken(server, hosts)
        yield server


@pytest.fixture(autouse=True)
def sound(server: ApiServer) -> Iterator[None]:
    yield
    server.faults.clear()


def test_every_invariant_has_an_object() -> None:
    ids = {one.id for one in KubernetesSubject.default_invariants}
    assert ids == {id_ for id_, _ in BROKEN} == set().union(*NEEDED_BY.values())


async def test_a_healthy_cluster_at_work(tmp_path: Path) -> None:
    with ApiServer(now=earlier) as server:
        recorded(server, "healthy")
        async with Watched(server, tmp_path) as watched:
            observed = await watched.observe()
            assert watched.broken() == set()
            assert {id_ for id_, _ in BROKEN} == observed.covered
            assert not observed.unavailable and not observed.unsupported


@pytest.mark.parametrize("plural", NEEDED_BY)
async def test_what_cannot_be_read_makes_unknown_what_needs_it(
    server: ApiServer, tmp_path: Path, plural: str
) -> None:
    """Forbidden, not served, lost, and its history lost: no ticket resolves, and no other invariant suffers."""
    unknown = NEEDED_BY[plural]
    others = {one for one in BROKEN if one[0] not in unknown}
    async with Watched(server, tmp_path, stale_after=0.2) as watched:
        for status in (403, 404):
            refused = server.faults.refuse(asking("list", plural), status=status)
            async with Watched(server, tmp_path) as fresh:
                await fresh.until(lambda found: found == others)
                assert fresh.last.unsupported.keys() == unknown
                assert not any(fresh.known(*o) for o in BROKEN if o[0] in unknown)
            server.faults.lift(refused)
        assert await watched.until(lambda found: found == BROKEN)
        closed = server.faults.refuse(asking("watch", plural), status=503)
        server.faults.break_watches()
        await watched.until(lambda found: found == others)
        assert watched.last.unavailable.keys() == unknown
        server.faults.lift(closed)
        server.faults.refuse(asking("watch", plural), status=410, times=1)
        held = server.faults.refuse(asking("list", plural), status=500)
        await watched.until(lambda found: found == others)
        server.faults.lift(held)
        assert await watched.until(lambda found: found == BROKEN)


async def test_what_is_deleted_is_clear_and_what_was_deleted_unseen_too(
    tmp_path: Path, hosts: TlsHosts
) -> None:
    with ApiServer(bookmarks=0.2, now=earlier) as server:
        made = broken(server, hosts)
        async with Watched(server, tmp_path, stale_after=0.2) as watched:
            await watched.until(lambda found: found == BROKEN)
            with server.away():
                # In a lost connection's time nothing is known; then a part of it has changed unseen.
                with pytest.raises(ObservationFailed, match="nothing of the cluster"):
                    while True:
                        await watched.observe()
                        assert watched.broken() <= BROKEN
                        await asyncio.sleep(0.02)
            for one in reversed(made):
                if one["kind"] not in ("Namespace", "StorageClass"):
                    meta, kind = one["metadata"], one["kind"]
                    server.objects.delete(
                        plural_of(kind),
                        meta.get("namespace", ""),
                        meta["name"],
                        grace=0,
                    )
            server.forget_history()
            await watched.until(
                lambda found: not found and all(watched.known(*one) for one in BROKEN)
            )


async def test_one_namespace_of_two_is_forbidden(
    server: ApiServer, tmp_path: Path
) -> None:
    """What holds again in the other one is clear all the same."""
    one, two = namespace(server, "one"), namespace(server, "two")
    for space in (one, two):
        made = deployment(server, space, "api", 1)
        [name] = pods(server, space, made, 1)
        status = {"phase": "Pending"}
        server.objects.merge("pods", space, name, {"status": status}, sub="status")
    component = "{}/Deployment/api".format
    async with Watched(
        server, tmp_path, namespaces=[one, two], stale_after=0.2, cluster_objects=False
    ) as both:
        pair = {("unschedulable", component(one)), ("unschedulable", component(two))}
        await both.until(lambda found: found == pair)
        refused = asking("list", "pods", namespace=two)
        server.faults.refuse(refused, status=403)
        server.faults.refuse(asking("watch", "pods", namespace=two), status=403)
        server.faults.break_watches()
        alone = {("unschedulable", component(one))}
        # First it is only known that the watch has ended.
        await both.until(
            lambda found: found == alone
            and "two" in both.last.unsupported.get("unschedulable", "")
        )
        server.objects.delete("pods", one, "api-1d9f-0", grace=0)
        await both.until(lambda found: not found)
        await both.until(lambda _: both.known("unschedulable", component(one)))
        assert not both.known("unschedulable", component(two))


@pytest.mark.parametrize(
    "how", ["missing", "expired", "nonsense", "away", "no api", "no extra"]
)
async def test_a_cluster_that_cannot_be_asked(
    server: ApiServer, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kubeconfig"
    if how != "missing":
        server.kubeconfig(file, token="expired" if how == "expired" else None)
    if how == "nonsense":
        file.write_text("clusters: [")
    if how == "away":
        config = json.loads(file.read_text())
        config["clusters"][0]["cluster"]["server"] = "http://127.0.0.1:9"
        file.write_text(json.dumps(config))
    if how == "no api":
        server.faults.drop(at="middle")
    if how == "no extra":
        monkeypatch.setitem(sys.modules, "croniter", None)  # so that it is not found
    says = {
        "expired": "401",
        "missing": "cannot read",
        "nonsense": "cannot read",
        "no extra": "the extra kubernetes is not installed",
    }
    async with Watched(server, tmp_path, kubeconfig=file) as watched:
        with pytest.raises(ObservationFailed, match=says.get(how, "cannot")) as caught:
            await watched.observe()
        assert "\n" not in caught.value.one_line()


async def test_an_owner_that_cannot_be_read_leaves_its_pods_unknown(
    server: ApiServer, tmp_path: Path
) -> None:
    """A ReplicaSet whose Deployment is not named like it: only the API says whose it is."""
    space = namespace(server, "owners")
    made = deployment(server, space, "api", 1)
    made["spec"]["template"]["metadata"]["labels"].pop("pod-template-hash")
    [name] = pods(server, space, made, 1)
    server.objects.merge(
        "pods", space, name, {"status": {"phase": "Pending"}}, sub="status"
    )
    key = ("unschedulable", "owners/Deployment/api")
    away = server.faults.refuse(asking("get", "replicasets"), status=503)
    async with Watched(
        server, tmp_path, namespaces=[space], cluster_objects=False
    ) as watched:
        await watched.observe()
        assert watched.broken() == set() and not watched.known(*key)
        assert "owner" in watched.last.unavailable["unschedulable"]
        assert watched.last.covered >= {"job_failed", "rollout_stuck"}
        server.faults.lift(away)
        await watched.until(lambda found: found == {key})


async def test_a_cluster_without_the_gateway_api_is_right(tmp_path: Path) -> None:
    """Its invariants are not seen, without a failure; it is asked for again within hours, and watched once it is there."""
    with ApiServer(now=earlier) as server:
        namespace(server, "shop")
        async with Watched(server, tmp_path) as watched:
            observed = await watched.observe()
            why = observed.unsupported
            assert why.keys() == GATEWAY_API and not observed.unavailable
            assert len(set(why.values())) == 1, "one line of `midwatch check`"
            assert "is not installed" in next(iter(why.values()))
            assert not watched.broken()
            gateway_api(server)
            await watched.until(lambda _: GATEWAY_API <= watched.last.covered)


async def test_a_quiet_cluster_is_asked_little(
    server: ApiServer, tmp_path: Path
) -> None:
    async with Watched(server, tmp_path) as watched:
        connection = watched.subject.connection()
        await watched.until(lambda _: connection.requests["watch", "2xx"] >= len(KINDS))
        before = sum(connection.requests.values())
        for _ in range(20):
            await watched.observe()
            await asyncio.sleep(0.02)
        assert sum(connection.requests.values()) == before
        asked = [one for one in server.requests.where(asking("watch")) if one.query]
        seconds = [int(one.query["timeoutSeconds"]) for one in asked[-len(KINDS) :]]
        assert sum(3600 / one for one in seconds) <= 24


@pytest.mark.parametrize("namespaces", [[], ["shop"]])
async def test_the_rights_that_the_chart_gives_suffice_and_are_used(
    tmp_path: Path, hosts: TlsHosts, namespaces: list[str]
) -> None:
    subject = {"name": "cluster", "kind": "kubernetes", "namespaces": namespaces}
    values = {**render.WATCH, "settings": {"subjects": [subject]}}
    with ApiServer(now=earlier, rbac=True) as server:
        broken(server, hosts)
        namespace(server, "midwatch")
        roles = [
            one
            for one in render.documents(values)
            if one["kind"].startswith(("Role", "ClusterRole", "ServiceAccount"))
        ]
        for one in roles:
            server.objects.create(one)
        token = server.token_for("midwatch", "midwatch-monitor")
        file = server.kubeconfig(tmp_path / "limited", token)
        server.requests.clear()
        async with Watched(
            server, tmp_path, kubeconfig=file, namespaces=namespaces
        ) as watched:
            wanted = {one for one in BROKEN if one[0] != "webhook_endpoints"}
            await watched.until(
                lambda found: found >= wanted and not watched.last.unavailable
            )
            assert not watched.last.unsupported
            for ticket in watched.tickets():
                for source in watched.subject.sources([ticket]):
                    with contextlib.suppress(ClusterUnavailable):  # no kubelet
                        await source.fetch()
        asked = {
            (one.group, one.resource, one.verb)
            for one in server.requests.where(asking())
            if one.resource
        }
        assert all(one.status != 403 for one in server.requests.where(asking()))
        given = {
            (group, resource, verb)
            for role in roles
            for rule in role.get("rules", ())
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }
        assert asked <= given
        assert not any(resource.startswith("secrets") for _, resource, _ in given)
        # What only tools or other tickets ask for, and what this server does not serve.
        assert {one for one in given - asked if one[2] == "watch"} == set()
