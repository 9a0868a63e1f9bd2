"""The API, the page and MCP create the session of a ticket in a cluster: once for a request, with the rights of the chart."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from deploy import render
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import TextContent

from midwatch.kube.crd import crd
from midwatch.kube.resource import read_resource
from midwatch.kube.rules import PLURAL
from midwatch.kube.session_body import TICKET_LABEL
from midwatch.testing.fakes import add_commit
from tests.cluster import ApiServer, asking

from ..forge_server import TOKEN
from ..waiting import wait_until
from .cli import midwatch, said, said_json
from .pull_request_desk import GIT_TOKEN, pull_request_desk
from .server_process import Running, server_process

SPACE = "team-a"
CLUSTER = {"namespace": SPACE}
VALUES = {
    "server": {"enabled": True},
    "operator": {"namespaces": [SPACE]},
    "settings": {"server": {"session_cluster": CLUSTER}},
}
API = "/api/v1/tickets/1"
ASKED = {"prompt": "Look at the cache.", "pull_request": True}


@pytest.fixture
def cluster() -> Iterator[ApiServer]:
    """With the account of the chart's server, and no right of it."""
    with ApiServer(rbac=True) as running:
        running.objects.create(crd())
        for name in ("midwatch", SPACE):
            about = {"metadata": {"name": name}}
            space = {"apiVersion": "v1", "kind": "Namespace", **about}
            running.objects.create(space)
        give(running, "ServiceAccount")
        yield running


def give(cluster: ApiServer, *kinds: str) -> None:
    for one in render.documents(VALUES):
        if one["kind"] in kinds and one["metadata"]["name"].startswith(
            "midwatch-server" if one["kind"] == "ServiceAccount" else "midwatch-session"
        ):
            cluster.objects.create(one)


def fix(server: Running, key: str, **more: Any) -> httpx2.Response:
    headers = {"Idempotency-Key": key, **more}
    return server.http.post(f"{API}/fix", json=ASKED, headers=headers)


def checked(folder: Path) -> tuple[str, str]:
    """Return what `midwatch check` says of the cluster: grade and text."""
    found = json.loads(midwatch(folder, "check", "--json").stdout)
    [one] = [one for one in found if one["what"] == f"sessions in {SPACE}"]
    return one["grade"], one["says"].lower()


def resources(cluster: ApiServer) -> dict[str, Any]:
    found = cluster.objects.list(PLURAL, SPACE)
    return {one["metadata"]["name"]: one for one in found}


async def start_fix(url: str, bearer: str) -> str:
    headers = {"Authorization": bearer}
    async with (
        httpx2.AsyncClient(headers=headers) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http)) as client,
    ):
        asked = {"ticket": 1, "pull_request": True}
        result = await client.call_tool("start_fix", asked)
        [content] = result.content
        assert isinstance(content, TextContent) and not result.is_error, content
        return content.text


def test_sessions_with_pull_requests_run_in_the_cluster(
    cluster: ApiServer, tmp_path: Path
) -> None:
    secret = cluster.token_for("midwatch", "midwatch-server")
    login = cluster.kubeconfig(tmp_path / "kubeconfig", secret)
    with pull_request_desk(tmp_path, interval="5s") as desk:
        tokens = [
            said(tmp_path, "tokens", "create", name, *options).strip()
            for name, *options in (
                ("reader", "--scope", "read"),
                ("claude", "--scope", "mcp", "--scope", "sessions:write"),
            )
        ]
        reader, claude = (f"Bearer {one}" for one in tokens)
        settings = json.loads((tmp_path / "midwatch.yaml").read_text())
        chosen = {**CLUSTER, "kubeconfig": str(login)}
        settings["server"] = {"session_cluster": chosen, "mcp": True}
        with server_process(tmp_path, settings, env=desk.env) as server:
            # Without a right nothing is created, and nothing recorded.
            assert fix(server, "a", Authorization=reader).status_code == 403
            refused = fix(server, "b")
            assert refused.status_code >= 400 and "forbidden" in refused.text.lower()
            assert server.http.get(API).json()["pull_requests"] == []
            grade, says = checked(tmp_path)
            assert grade == "failed" and "forbidden" in says
            give(cluster, "Role", "RoleBinding")
            assert checked(tmp_path) == ("ok", "an agenticsession can be created")
            assert not resources(cluster)

            # The answer to the first is lost: the same request again finds what was created.
            cluster.faults.drop(asking("create", PLURAL), at="after", times=1)
            answers = [fix(server, "c") for _ in range(3)]
            done = [one for one in answers if one.status_code == 202]
            assert len(done) >= 2 and {one.text for one in done} == {done[0].text}
            name = done[0].json()["session"]
            assert done[0].json() == {"session": name, "resource": f"{SPACE}/{name}"}
            assert done[0].headers["location"] == API
            (made,) = resources(cluster).values()
            assert made["metadata"]["labels"] == {TICKET_LABEL: "1"}
            spec = read_resource(made).spec
            assert spec.auto_push_on_complete and not spec.interactive
            assert "Look at the cache." in spec.prompt and "broken" in spec.prompt
            pull = desk.pull()
            assert (pull["state"], pull["session"]) == ("waiting", name)
            assert made["spec"]["repos"][0]["output"] == {"branch": pull["branch"]}
            assert TOKEN not in str(made) and GIT_TOKEN not in str(made)

            page = server.http.get("/tickets/1").text
            assert f"in the cluster (namespace {SPACE})" in page and name in page
            [key] = re.findall('name="key" value="([^"]+)"', page)
            for _ in range(2):
                form = {"key": key, "pull_request": "true"}
                origin = {"Origin": server.url}
                pressed = server.http.post("/tickets/1/fix", data=form, headers=origin)
                assert pressed.headers["location"] == "/tickets/1", pressed.text
            assert len(resources(cluster)) == 2

            told = {asyncio.run(start_fix(server.url, claude)) for _ in range(2)}
            assert len(resources(cluster)) == 3
            last = desk.pull()["session"]
            assert told == {f"session {SPACE}/{last} is created in the cluster"}

            # The daemon in the server opens the pull request of what a pod pushed.
            add_commit(
                desk.git.root / "team" / "shop",
                {"main.py": "1\n"},
                "Bye",
                branch=pull["branch"],
            )
            desk.created_days_ago(0)
            wait_until(lambda: desk.pull()["state"] == "open")
            assert len(desk.forge.pulls) == 1
            assert asyncio.run(start_fix(server.url, claude)) not in told
        history = said_json(tmp_path, "tickets", "history", "1")
        created = {
            row["why"] for row in history if "created in namespace" in row["why"]
        }
        assert created >= {
            f"session {one}: created in namespace {SPACE}"
            for one in resources(cluster)
            if one != name
        }
