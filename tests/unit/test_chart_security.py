"""What the chart's pods may do: to their node, on the network, and at the API server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from deploy import render
from deploy.cases import CASES

from midwatch.kube.manifests import role
from midwatch.kube.resource import read_resource
from midwatch.kube.rules import PLURAL, SESSION_LABEL
from midwatch.kube.schedules import SCHEDULE_LABEL

Json = dict[str, Any]
every_case = pytest.mark.parametrize("case", CASES)


@cache
def rendered(case: str) -> list[Json]:
    return render.documents(CASES[case])


def of_kind(documents: list[Json], *kinds: str) -> list[Json]:
    return [one for one in documents if one["kind"] in kinds]


# ------------------------------------------------------------------ Pod Security "restricted"

_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral"),
    *("persistentVolumeClaim", "projected", "secret"),
}


def violations(pod: Json) -> Iterator[str]:
    """What the Pod Security Standard `restricted` forbids in a pod's spec
    (kubernetes.io/docs/concepts/security/pod-security-standards); we add a read-only root.
    """
    about = pod.get("securityContext", {})
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            yield name
    for volume in pod.get("volumes", ()):
        if not volume.keys() - {"name"} <= _VOLUMES:
            yield f"volume {volume['name']}"
    if about.get("seccompProfile", {}).get("type") not in (
        "RuntimeDefault",
        "Localhost",
    ):
        yield "seccompProfile"
    if about.get("runAsNonRoot") is not True or about.get("runAsUser") == 0:
        yield "runs as root"
    for container in [*pod.get("initContainers", ()), *pod["containers"]]:
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            yield "privileges"
        capabilities = own.get("capabilities", {})
        if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
            yield "capabilities"
        if own.get("readOnlyRootFilesystem") is not True:
            yield "writable root"
        if any("hostPort" in port for port in container.get("ports", ())):
            yield "hostPort"


@every_case
def test_every_pod_is_restricted(case: str) -> None:
    for one in of_kind(rendered(case), "Deployment", "StatefulSet", "Job", "CronJob"):
        job = one["spec"].get("jobTemplate", one)
        pod = job["spec"]["template"]["spec"]
        assert list(violations(pod)) == [], one["metadata"]["name"]
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            assert container["resources"]["limits"]["memory"]
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        talks_to_the_cluster = pod["containers"][0]["name"] in ("operator", "submit")
        assert pod["automountServiceAccountToken"] is talks_to_the_cluster


def test_the_check_finds_what_is_not_restricted() -> None:
    plain: Json = {"containers": [{"name": "x"}], "hostNetwork": True}
    assert len(list(violations(plain))) == 6


# ------------------------------------------------------------------ the network


@dataclass(frozen=True)
class Peer:
    """A pod, or with an `address` somebody outside of the cluster."""

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = ""
    address: str = ""


def allowed(documents: list[Json], source: Peer, target: Peer, port: int) -> bool:
    """Whether the network policies let one call the other (networking.k8s.io/v1, by its documentation)."""
    policies = of_kind(documents, "NetworkPolicy")
    out = [one for one in policies if _selects(one, source, "Egress")]
    into = [one for one in policies if _selects(one, target, "Ingress")]
    return _lets(out, "egress", "to", target, port) and _lets(
        into, "ingress", "from", source, port
    )


def _selects(policy: Json, pod: Peer, direction: str) -> bool:
    return (
        not pod.address
        and policy["metadata"]["namespace"] == pod.namespace
        and direction in policy["spec"]["policyTypes"]
        and _matches(policy["spec"]["podSelector"], pod.labels)
    )


def _lets(policies: list[Json], rules: str, side: str, peer: Peer, port: int) -> bool:
    """A pod that no policy selects may do all."""
    return not policies or any(
        any(_is(one, peer, policy) for one in rule[side])
        and port in {one["port"] for one in rule["ports"]}
        for policy in policies
        for rule in policy["spec"].get(rules, ())
    )


def _is(selector: Json, peer: Peer, policy: Json) -> bool:
    if block := selector.get("ipBlock"):
        return _within(peer.address, block["cidr"]) and not any(
            _within(peer.address, one) for one in block.get("except", ())
        )
    if peer.address:
        return False
    if "namespaceSelector" in selector:
        names = {"kubernetes.io/metadata.name": peer.namespace}
        in_namespace = _matches(selector["namespaceSelector"], names)
    else:
        in_namespace = policy["metadata"]["namespace"] == peer.namespace
    return in_namespace and _matches(selector.get("podSelector", {}), peer.labels)


def _within(address: str, block: str) -> bool:
    return bool(address) and ip_address(address) in ip_network(block)


def _matches(selector: Json, labels: Mapping[str, str]) -> bool:
    operators = {
        "Exists": lambda one: one["key"] in labels,
        "In": lambda one: labels.get(one["key"]) in one["values"],
    }
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        operators[one["operator"]](one) for one in selector.get("matchExpressions", ())
    )


def peers(documents: list[Json]) -> dict[str, Peer]:
    """The pods of a release by component, beside a session's."""
    return {
        labels["app.kubernetes.io/component"]: Peer(
            labels, one["metadata"]["namespace"]
        )
        for one in of_kind(documents, "Deployment", "StatefulSet")
        for labels in [one["spec"]["template"]["metadata"]["labels"]]
    }


DNS = Peer({"k8s-app": "kube-dns"}, "kube-system")
CLAUDE = Peer(address="160.79.104.10")
METADATA = Peer(address="169.254.169.254")
STRANGER = Peer({"app": "shop"}, "midwatch")


def session_in(namespace: str) -> Peer:
    return Peer({SESSION_LABEL: "fix-it"}, namespace)


def test_who_may_call_whom() -> None:
    documents = rendered("both")
    pods, session = peers(documents), session_in("midwatch")
    content, operator = pods["content"], pods["operator"]

    def may(source: Peer, target: Peer, port: int) -> bool:
        return allowed(documents, source, target, port)

    assert may(session, DNS, 53) and may(session, CLAUDE, 443)
    assert may(session, content, 8080) and may(operator, content, 8080)
    assert may(operator, Peer(address="10.0.0.1"), 6443) and may(operator, DNS, 53)
    assert may(session_in("elsewhere"), content, 8080), "its token decides"

    assert not may(session, METADATA, 80)
    assert not may(session, CLAUDE, 22) and not may(session, CLAUDE, 5432)
    assert not may(session, STRANGER, 443) and not may(session, operator, 8080)
    assert not may(STRANGER, session, 443) and not may(STRANGER, content, 8080)
    assert not may(STRANGER, operator, 8080) and not may(session, session, 443)
    for daemon in ("monitor", "agents"):
        assert not may(pods[daemon], content, 8080)
        assert not may(STRANGER, pods[daemon], 8080)
        assert may(pods[daemon], STRANGER, 5432) and may(pods[daemon], CLAUDE, 443)
    assert not may(content, CLAUDE, 443) and not may(content, DNS, 53)


def test_each_namespace_with_sessions_is_walled_in() -> None:
    documents = rendered("everything")
    content = peers(documents)["content"]
    for namespace in ("team-a", "team-b"):
        session = session_in(namespace)
        assert allowed(documents, session, content, 8080)
        assert allowed(documents, session, CLAUDE, 22)
        assert not allowed(documents, session, STRANGER, 443)
        assert not allowed(documents, session, Peer(address="10.1.2.3"), 443)
        assert not allowed(documents, session, Peer(address="fd00::2"), 443)
        assert allowed(documents, session, Peer(address="10.0.0.1"), 6443)
    assert not allowed(documents, session_in("team-c"), STRANGER, 443)
    assert not allowed(documents, session_in("team-d"), content, 8080)


def test_the_pod_of_a_schedule_reaches_the_api_server_alone() -> None:
    documents = rendered("schedules")
    pod = Peer({SCHEDULE_LABEL: "tidy"}, "team-b")
    assert allowed(documents, pod, DNS, 53)
    assert allowed(documents, pod, Peer(address="10.0.0.1"), 6443)
    for target in (STRANGER, session_in("team-b"), *peers(documents).values()):
        assert not allowed(documents, pod, target, 8080)
        assert not allowed(documents, target, pod, 8080)


def test_prometheus_may_read_metrics_where_it_is_named() -> None:
    prometheus = Peer({"app": "prometheus"}, "monitoring")
    documents, closed = rendered("everything"), rendered("both")
    for component, pod in peers(documents).items():
        assert allowed(documents, prometheus, pod, 8080), component
        assert not allowed(documents, STRANGER, pod, 8080)
    assert not allowed(documents, prometheus, session_in("team-a"), 8080)
    for pod in peers(closed).values():
        assert not allowed(closed, prometheus, pod, 8080)


def test_without_policies_everybody_may() -> None:
    documents = render.documents({"networkPolicy": {"enabled": False}})
    assert allowed(documents, STRANGER, peers(documents)["content"], 8080)


# ------------------------------------------------------------------ the API server


def grants(rules: list[Json]) -> set[tuple[str, str, str]]:
    """Group, resource and verb of all that the rules allow, whatever the object's name."""
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_operator_s_rights() -> None:
    wide, narrow = render.rules_for(), render.rules_for(CASES["everything"])
    assert list(wide) == [""] and list(narrow) == ["team-a", "team-b"]
    assert narrow["team-a"] == narrow["team-b"] == wide[""]
    granted = grants(wide[""])
    assert not {word for grant in granted for word in grant} & {
        *("*", "escalate", "bind", "impersonate")
    }
    secrets = {verb for _, resource, verb in granted if resource == "secrets"}
    assert secrets == {"get", "create"}, "it neither lists nor changes secrets"
    assert not {verb for _, kind, verb in granted if kind == "pods"} - {"list", "watch"}


def test_it_has_the_rights_that_it_gives_to_a_session() -> None:
    """The API server lets nobody create a role, or a binding to it, with rights they lack."""
    resource = read_resource(
        {
            "metadata": {"name": "fix-it", "namespace": "team-a", "uid": "0" * 36},
            "spec": {
                "prompt": "Mend it.",
                "repos": [{"input": {"url": "https://git.example.com/shop.git"}}],
            },
        }
    )
    given = grants(role(resource)["rules"])
    assert given and given <= grants(render.rules_for()[""])
    assert ("midwatch.dev", f"{PLURAL}/status", "patch") in given


def test_its_account_has_the_role_and_no_other_has_any() -> None:
    for case in ("defaults", "everything"):
        documents = rendered(case)
        bindings = [
            one
            for one in of_kind(documents, "ClusterRoleBinding", "RoleBinding")
            if SCHEDULE_LABEL not in one["metadata"]["labels"]
        ]
        operator = next(
            one["spec"]["template"]["spec"]["serviceAccountName"]
            for one in of_kind(documents, "Deployment")
            if one["metadata"]["name"].endswith("-operator")
        )
        roles = {
            (one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"])
            for one in of_kind(documents, "ClusterRole", "Role")
        }
        for binding in bindings:
            assert [one["name"] for one in binding["subjects"]] == [operator]
            ref = binding["roleRef"]
            namespace = binding["metadata"].get("namespace")
            assert (ref["kind"], namespace, ref["name"]) in roles
        assert bindings
