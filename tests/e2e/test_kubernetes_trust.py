"""What somebody puts into a secret, a resource or a status does to the session that it is for, and to no more."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2

from midwatch.kube.status import phase_of
from midwatch.model import Json
from midwatch.testing.fakes import run_git
from midwatch.testing.messages_api import Answer, Hold, Rule, ScriptedMessagesAPI
from tests.cluster.local import TEAM, LocalCluster

from ..acceptance.session_cli import bash
from ..waiting import PATIENCE
from .kube_support import cluster, conditions, over, repositories, spec

DATABASE = "postgres://app:unlikely-w0rd@db/shop"
DANGEROUS = {
    "LD_PRELOAD": "/nonexistent/evil.so",
    "LD_TRACE_LOADED_OBJECTS": "1",
    "PYTHONPATH": "/nonexistent",
    "PYTHONHOME": "/nonexistent",
    "PATH": "/nonexistent",
    "HOME": "/nonexistent",
    "MIDWATCH_SESSIONS__ALLOWED_TOOLS": "[]",
    "MIDWATCH_CONFIG": "/nonexistent.yaml",
    "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
    "MODEL": "claude-nonsense",
    "EFFORT": "enormous",
    "SESSION_NAME": "other",
    "CONTENT_TOKEN": "not-a-token-at-all",
    "OPENSSL_CONF": "/nonexistent.cnf",
}


def secret(running: LocalCluster, name: str, values: dict[str, str]) -> None:
    meta = {"name": name, "namespace": TEAM}
    made = {"apiVersion": "v1", "kind": "Secret", "metadata": meta}
    running.server.objects.create({**made, "stringData": values})


def test_a_secret_reaches_bash_and_nothing_else(tmp_path: Path) -> None:
    shop, _ = repositories(tmp_path)
    show = (
        'test "$DATABASE_URL" = postgres://app:unlikely-w0rd@db/shop && echo same > got;'
        " env | cut -d= -f1 > names; echo $LANG $TOGGLE $CLAUDE_CODE_MAX_OUTPUT_TOKENS >> got;"
        " echo it is $DATABASE_URL"
    )
    steps = [bash(show), Answer(f"It connects to {DATABASE}, true.")]
    with (
        ScriptedMessagesAPI(Rule(steps, tools=True)) as api,
        cluster(tmp_path, api.base_url, forked=False) as running,
    ):
        secret(running, "shop", {"DATABASE_URL": DATABASE, "TOGGLE": "true"})
        secret(running, "odd", DANGEROUS)
        given = {"LANG": "de_DE.UTF-8", "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "9000"}
        environment = {"secrets": ["shop", "odd"], "variables": given}
        running.create("fix", spec(shop, environment=environment))
        body = running.until("fix", over)
        assert body is not None and phase_of(body).value == "Completed", body
        result = body["status"]["result"]
        assert result == "It connects to [redacted:secret], true."
        got = running.saved_file(body, "workspace/shop/got")
        assert got == b"same\nde_DE.UTF-8 true 9000\n"
        names = running.saved_file(body, "workspace/shop/names")
        assert names is not None
        assert not {b"LD_PRELOAD", b"PYTHONPATH", b"MODEL"} & set(names.split())
        told = running.saved_file(body, "session/outbox.jsonl") or b""
        assert b"it is [redacted:secret]" in told and b"unlikely-w0rd" not in told
        [pod] = running.kubelet.pods(TEAM, "fix")
        log = running.kubelet.output(pod)
        assert "LD_PRELOAD is a reserved name" in log and "unlikely-w0rd" not in log


def test_a_session_waits_for_the_one_that_it_continues(tmp_path: Path) -> None:
    shop, _ = repositories(tmp_path)
    hold = Hold(Answer("Done."))
    steps = [bash("echo a >> main.py"), hold, bash("echo b >> main.py"), Answer("Yes.")]
    with (
        ScriptedMessagesAPI(Rule(steps, tools=True)) as api,
        cluster(tmp_path, api.base_url) as running,
    ):
        running.create("first", spec(shop, autoPushOnComplete=True))
        hold.arrived_sync(timeout=PATIENCE)
        running.create("second", spec(shop, resumeFrom="first", prompt="Go on."))

        def refused(body: Json | None) -> bool:
            told = (body or {}).get("status", {}).get("conditions", ())
            return any(one["reason"] == "ResumeFromNotEnded" for one in told)

        body = running.until("second", refused)
        assert body is not None and conditions(body["status"])["Accepted"] == "False"
        assert running.server.objects.find("jobs", TEAM, "second-run-1") is None
        hold.release()
        first = running.until("first", over)
        assert first is not None and first["status"]["phase"] == "Completed"
        assert run_git(shop, "show", "midwatch/first:main.py").endswith("\na")
        second = running.until("second", over)
        assert second is not None
        assert second["status"]["phase"] == "Completed", second["status"]
        assert conditions(second["status"])["Accepted"] == "True"


def test_a_forged_status_is_at_least_whole(tmp_path: Path) -> None:
    """The token is in the pod, and so in the reach of Claude's Bash."""
    shop, _ = repositories(tmp_path)
    hold = Hold()
    with (
        ScriptedMessagesAPI(Rule([bash("true"), hold], tools=True)) as api,
        cluster(tmp_path, api.base_url) as running,
    ):
        running.create("fix", spec(shop))
        hold.arrived_sync(timeout=PATIENCE)
        kind = "apis/midwatch.dev/v1alpha1"
        at = f"{running.server.url}/{kind}/namespaces/{TEAM}/agenticsessions/fix/status"
        token = running.server.token_for(TEAM, "fix-session")
        answer = httpx2.patch(
            at,
            headers={
                "authorization": f"Bearer {token}",
                "content-type": "application/merge-patch+json",
            },
            content=json.dumps({"status": {"phase": "Completed", "result": "Fine."}}),
        )
        assert answer.status_code == 200

        def whole(body: Json | None) -> bool:
            status = (body or {}).get("status", {})
            return bool(
                conditions(status).get("Finished") == "True"
                and conditions(status)["Ready"] == "False"
                and status.get("completionTime")
            )

        running.until("fix", whole, PATIENCE)
        hold.release()
