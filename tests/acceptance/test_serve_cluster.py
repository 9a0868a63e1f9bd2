"""The runner and its resource: a real API server process would not know the difference, see `tests.cluster`."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from midwatch.kube.crd import crd
from midwatch.kube.manifests import role, role_binding, service_account
from midwatch.kube.resource import read_resource
from midwatch.kube.rules import API_VERSION, KIND, PLURAL, account_name
from midwatch.model import Json
from midwatch.session.events import ToolResult
from midwatch.settings import OperatorSettings
from midwatch.testing.fakes import run_git
from midwatch.testing.messages_api import (
    Answer,
    Hold,
    Rule,
    ScriptedMessagesAPI,
    unauthorized,
)
from tests.cluster import ApiServer, asking

from ..waiting import PATIENCE
from .serve_pod import Pod
from .session_cli import bash, make_repositories, until

NAMESPACE = "default"


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer(rbac=True) as running:
        running.objects.create(crd())
        yield running


@pytest.fixture
def repos(tmp_path: Path) -> tuple[str, str]:
    return make_repositories(tmp_path)


class InCluster:
    """A resource, and a pod that runs it with the rights of its own account."""

    def __init__(
        self,
        server: ApiServer,
        folder: Path,
        repos: tuple[str, str],
        api: ScriptedMessagesAPI | str,
    ) -> None:
        self.server = server
        spec = {"prompt": "Do it.", "repos": [{"input": {"url": url}} for url in repos]}
        self.made = server.objects.create(
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "metadata": {"name": "fix"},
                "spec": spec,
            }
        )
        resource = read_resource(self.made)
        account = service_account(resource, OperatorSettings())
        for manifest in (account, role(resource), role_binding(resource)):
            server.objects.create(manifest)
        self.pod = Pod(folder, api, repos)
        folder.mkdir()
        token = server.token_for(NAMESPACE, account_name("fix"))
        kubeconfig = server.kubeconfig(folder / "kubeconfig", token)
        self.pod.more = {
            "STATUS": "resource",
            "SESSION_NAMESPACE": NAMESPACE,
            "SESSION_UID": resource.uid,
            "SESSION_GENERATION": "1",
            "JOB_NAME": "fix-run-1",
            "POD_NAME": "fix-run-1-abcde",
            "MIDWATCH_OPERATOR__KUBECONFIG": str(kubeconfig),
        }

    @property
    def status(self) -> Json:
        found: Json = self.server.objects.get(PLURAL, NAMESPACE, "fix").get(
            "status", {}
        )
        return found

    @property
    def conditions(self) -> dict[str, Any]:
        return {one["type"]: one for one in self.status.get("conditions", ())}

    def merge(self, patch: Json, sub: str = "") -> None:
        self.server.objects.merge(PLURAL, NAMESPACE, "fix", patch, sub=sub)


def test_the_resource_tells_a_session_from_creating_to_completed(
    server: ApiServer, tmp_path: Path, repos: tuple[str, str]
) -> None:
    phases: list[str] = []
    server.listen(
        lambda change: phases.append(change.document.get("status", {}).get("phase", ""))
    )
    steps = [bash("echo x >> main.py; sleep 1.5"), Answer("It is done.")]
    with ScriptedMessagesAPI(Rule(steps, tools=True)) as api:
        cluster = InCluster(server, tmp_path / "pod", repos, api)
        server.requests.clear()
        ended = cluster.pod.serve(AUTO_PUSH_ON_COMPLETE="true")
    assert ended.returncode == 0, ended.stderr
    status = cluster.status
    assert (status["phase"], status["reason"]) == ("Completed", "Completed")
    assert status["result"] == "It is done."
    assert status["numTurns"] == 2 and status["usage"]["outputTokens"] > 0
    assert (status["jobName"], status["podName"]) == ("fix-run-1", "fix-run-1-abcde")
    assert status["sessionId"] and status["startTime"] <= status["completionTime"]
    app, lib = status["repos"]
    assert (app["name"], app["state"], app["added"]) == ("app", "pushed", 1)
    assert app["pushedTo"].endswith("app midwatch/fix") and lib["state"] == "clean"
    assert "x" in run_git(Path(repos[0]), "show", "midwatch/fix:main.py")
    conditions = cluster.conditions
    assert conditions["Finished"]["status"] == "True"
    assert conditions["Ready"]["status"] == "False"
    assert conditions["WorkspaceSaved"]["reason"] == "OnVolume"
    order = [phase for phase in dict.fromkeys(phases) if phase]
    assert order == ["Creating", "Running", "Completed"]
    assert len(server.requests) < 12, [(r.method, r.path) for r in server.requests]


@pytest.mark.parametrize("stop", [True, False])
def test_a_signal_is_the_end_only_where_the_resource_says_so(
    server: ApiServer, tmp_path: Path, repos: tuple[str, str], stop: bool
) -> None:
    """Without a request to stop, the pod is drained: another attempt goes on."""
    steps = [bash("echo begun > begun; sleep 60"), "Done."]
    with ScriptedMessagesAPI(Rule(steps, tools=True)) as api:
        cluster = InCluster(server, tmp_path / "pod", repos, api)
        with cluster.pod.serving() as runner:
            begun = cluster.pod.workspace / "app/begun"
            until(begun.exists, lambda: runner.log.read_text())
            if stop:
                cluster.merge({"spec": {"stop": True}})
            code = runner.end(signal.SIGTERM)
    assert code == (0 if stop else 143)
    status = cluster.status
    assert status["phase"] == ("Stopped" if stop else "Running")
    assert status["reason"] == ("Stopped" if stop else "PodEnding")
    assert cluster.conditions["Ready"]["status"] == "False"
    assert {one["name"]: one["state"] for one in status["repos"]}["app"] == "changed"


def test_an_attempt_that_is_overtaken_ends_quietly(
    server: ApiServer, tmp_path: Path, repos: tuple[str, str]
) -> None:
    hold = Hold(Answer("Late."))
    with ScriptedMessagesAPI(Rule([bash("echo x"), hold], tools=True)) as api:
        cluster = InCluster(server, tmp_path / "pod", repos, api)
        with cluster.pod.serving() as runner:
            runner.until(ToolResult)
            restarted = {"attempt": 2, "phase": "Creating", "reason": "Restarted"}
            cluster.merge({"status": restarted}, "status")
            try:
                assert runner.process.wait(PATIENCE) == 0
            finally:
                hold.release()
        assert "attempt 2 has taken over" in runner.log.read_text()
        before = cluster.status
        # One of an older attempt that begins only now has cloned nothing.
        late = cluster.pod
        late.root = tmp_path / "late"
        ended = late.serve()
        assert ended.returncode == 0 and not late.workspace.joinpath("app").exists()
    assert cluster.status == before
    assert (before["attempt"], before["reason"]) == (2, "Restarted")


def test_a_server_that_is_away_delays_no_turn_and_gets_the_last_word(
    server: ApiServer, tmp_path: Path, repos: tuple[str, str]
) -> None:
    gate = Hold(Answer("Done."))
    with ScriptedMessagesAPI(Rule([bash("echo x"), gate], tools=True)) as api:
        cluster = InCluster(server, tmp_path / "pod", repos, api)
        with cluster.pod.serving() as runner:
            runner.until(ToolResult)
            gate.arrived_sync()
            with server.away():
                gate.release()
                until(
                    lambda: "Completed: done" in runner.log.read_text(),
                    lambda: runner.log.read_text(),
                )
            assert runner.process.wait(PATIENCE) == 0
    assert (cluster.status["phase"], cluster.status["result"]) == ("Completed", "Done.")


def test_what_is_wrong_before_it_begins_is_in_the_resource(
    server: ApiServer, tmp_path: Path, repos: tuple[str, str]
) -> None:
    cluster = InCluster(server, tmp_path / "pod", repos, "http://127.0.0.1:1")
    ended = cluster.pod.serve(TIMEOUT="abc")
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert (cluster.status["phase"], cluster.status["reason"]) == (
        "Failed",
        "BadEnvironment",
    )
    assert "TIMEOUT" in cluster.status["message"]
    # The end is told: whoever starts now ends at once.
    assert cluster.pod.serve(SESSION_ATTEMPT="2").returncode == 0
    assert cluster.status["reason"] == "BadEnvironment"


def test_an_invalid_key_in_the_resource(
    server: ApiServer, tmp_path: Path, repos: tuple[str, str]
) -> None:
    with ScriptedMessagesAPI(Rule(unauthorized(), tools=True)) as api:
        cluster = InCluster(server, tmp_path / "pod", repos, api)
        assert cluster.pod.serve().returncode == 1
    status = cluster.status
    assert (status["phase"], status["reason"]) == ("Failed", "KeyRefused")
    assert "spec.apiKeySecret" in status["message"]
    assert "sk-ant" not in json.dumps(status)
    assert not server.requests.where(asking(resource="secrets"))
