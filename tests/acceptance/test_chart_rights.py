"""The operator under the rights that the chart gives it, with the settings that the chart writes: the command
itself, against an API server that enforces roles and refuses those that would give more than one has.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from deploy import render

from midwatch.kube.crd import crd
from midwatch.kube.status import timestamp
from tests.cluster import ApiServer

from ..waiting import PATIENCE

Json = dict[str, Any]
ACCOUNT = "system:serviceaccount:midwatch:midwatch-operator"
TEAM = "team-a"
VALUES: dict[str, Json] = {
    "everywhere": {"settings": {"operator": {"storage": "claim"}}},
    "in namespaces": {"operator": {"namespaces": [TEAM]}},
}
FOR_OTHERS = {
    # to give them to a session, and to own objects
    ("midwatch.dev", "agenticsessions/status", "get"),
    ("midwatch.dev", "agenticsessions/status", "update"),
    ("midwatch.dev", "agenticsessions/finalizers", "update"),
}
"""Rights that are not used in requests of its own."""
ON_A_RERUN = {
    # an object that is there already, but for the account, which is there in this test
    ("", "secrets", "get"),
    ("", "persistentvolumeclaims", "get"),
    ("rbac.authorization.k8s.io", "roles", "get"),
    ("rbac.authorization.k8s.io", "rolebindings", "get"),
    ("batch", "jobs", "get"),
}
"""Used where a create was cut off."""


@pytest.fixture(params=VALUES)
def values(request: pytest.FixtureRequest) -> Json:
    return VALUES[request.param]


@pytest.fixture
def server(values: Json) -> Iterator[ApiServer]:
    """With the CRD, the namespaces, and from the chart what an API server without controllers takes."""
    with ApiServer(rbac=True) as server:
        server.objects.create(crd())
        for name in ("midwatch", TEAM):
            space = {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": name},
            }
            server.objects.create(space)
        for one in render.documents(values):
            if one["kind"].startswith(("Role", "ClusterRole", "ServiceAccount")):
                server.objects.create(one)
        yield server


def settings_file(values: Json, folder: Path) -> Path:
    maps = [one for one in render.documents(values) if one["kind"] == "ConfigMap"]
    data = next(m for m in maps if m["metadata"]["name"].endswith("-operator"))["data"]
    file = folder / "midwatch.yaml"
    file.write_text(data["midwatch.yaml"])
    return file


@contextmanager
def operator(server: ApiServer, values: Json, folder: Path) -> Iterator[None]:
    """`midwatch kube operator` as the chart runs it; only the way to the cluster is another."""
    key = folder / "key"
    key.write_text("0" * 64)
    token = server.token_for("midwatch", "midwatch-operator")
    kubeconfig = server.kubeconfig(folder / "kubeconfig", token)
    environ = {
        "PATH": os.environ["PATH"],
        "MIDWATCH_CONFIG": str(settings_file(values, folder)),
        "MIDWATCH_OPERATOR__KUBECONFIG": str(kubeconfig),
        "MIDWATCH_OPERATOR__PORT": "null",
        "MIDWATCH_OPERATOR__CONTENT_KEY_FILE": str(key),
    }
    code = "from midwatch.cli.main import main; main()"
    command = [sys.executable, "-c", code, "kube", "operator"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            assert process.wait(PATIENCE) == 0, (folder / "log").read_text()


def session(name: str) -> Json:
    return {
        "apiVersion": "midwatch.dev/v1alpha1",
        "kind": "AgenticSession",
        "metadata": {"name": name, "namespace": TEAM},
        "spec": {
            "prompt": "Mend it.",
            "repos": [{"input": {"url": "https://git.example.com/shop.git"}}],
        },
    }


def live(server: ApiServer) -> None:
    """A session from its creation to its deletion, whose pod is late, and one whose name is taken."""
    objects = server.objects
    taken = {"name": "two-session", "namespace": TEAM}
    objects.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": taken})
    objects.create(session("one"))
    objects.create(session("two"))
    objects.wait("jobs", TEAM, "one-run-1", bool)

    def told(name: str, text: str) -> None:
        def in_status(body: Json | None) -> bool:
            return text in json.dumps((body or {}).get("status"))

        objects.wait("agenticsessions", TEAM, name, in_status)

    told("one", "Creating")
    told("two", "NameTaken")
    # Its pod is late, and the events are asked why.
    begun = timestamp(datetime.now(UTC) - timedelta(seconds=50))
    late = {"status": {"startTime": begun}}
    objects.merge("jobs", TEAM, "one-run-1", late, sub="status")
    told("one", "NoPod")
    objects.merge("agenticsessions", TEAM, "one", {"spec": {"stop": True}})
    told("one", "Stopped")
    objects.wait("jobs", TEAM, "one-run-1", lambda found: found is None)
    objects.delete("agenticsessions", TEAM, "one")
    objects.wait("agenticsessions", TEAM, "one", lambda found: found is None)


def test_the_chart_s_rights_are_what_the_operator_needs(
    server: ApiServer, values: Json, tmp_path: Path
) -> None:
    with operator(server, values, tmp_path):
        live(server)
    log = (tmp_path / "log").read_text()
    asked = server.requests.where(lambda one: one.user == ACCOUNT and bool(one.verb))
    refused = [(one.verb, one.resource) for one in asked if one.status == 403]
    assert asked and not refused, log
    used = {(one.group, one.resource, one.verb) for one in asked if one.resource}
    granted = {
        (group, resource, verb)
        for rule in next(iter(render.rules_for(values).values()))
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    claims = {("", "persistentvolumeclaims", "create")}
    unused = granted - used
    assert unused - claims == FOR_OTHERS | ON_A_RERUN
    assert bool(unused & claims) == ("settings" not in values)
