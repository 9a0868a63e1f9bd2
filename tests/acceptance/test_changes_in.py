"""Changes that are reported to a real server: by the API and by webhooks; and where they are shown."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from helm_python import Chart
from prometheus_client.parser import text_string_to_metric_families

from midwatch.documents import read_yaml
from midwatch.model import Key, Severity, Violation
from midwatch.server.signatures import sign
from midwatch.store.protocol import Changes, Opening
from midwatch.store.sql import SqlStore

from ..waiting import PATIENCE
from . import change_bodies as bodies
from .cli import in_store, refused, said, said_json
from .server_process import Running, server_process

SECRET = "a-secret-of-the-webhook"
WHSEC = "whsec_" + base64.b64encode(b"k" * 32).decode()
SETTINGS: dict[str, Any] = {
    "subjects": [
        {
            "name": "web",
            "kind": "host",
            "depends_on": ["db"],
            "repositories": [
                {"url": "https://github.com/shop/web"},
                {"url": "git@gitlab.shop.example:shop/web.git"},
            ],
        },
        {"name": "db", "kind": "host"},
    ],
    "changes": {
        "poll_interval": None,
        "keep_for": "3650d",
        "window": "30d",
        "hooks": [
            {"name": "ci", "sender": "github", "signing_secrets": [SECRET]},
            {
                "name": "dbs",
                "sender": "github",
                "signing_secrets": [SECRET],
                "subjects": ["db"],
                "environments": ["production"],
            },
            {"name": "lab", "sender": "gitlab", "signing_secrets": [SECRET, WHSEC]},
            {"name": "argo", "sender": "argocd", "signing_secrets": [SECRET]},
            {"name": "open", "sender": "argocd"},
        ],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("changes")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    settings = {
        **SETTINGS,
        "server": {"url": "https://midwatch.example.org"},
        "metrics": {"port": 0},
    }
    with server_process(folder, settings) as running:
        token = said(
            folder,
            "tokens",
            "create",
            "ann",
            "--scope",
            "changes:write",
            "--scope",
            "read",
        )
        running.http.headers["authorization"] = f"Bearer {token.strip()}"
        yield running


def changes(server: Running, **query: Any) -> list[dict[str, Any]]:
    answer = server.http.get("/api/v1/changes", params={"limit": 500, **query})
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def github(
    server: Running,
    event: str,
    body: dict[str, Any],
    delivery: str,
    hook: str = "ci",
    **headers: str,
) -> Any:
    data = json.dumps(body).encode()
    sent = {
        "x-github-event": event,
        "x-github-delivery": delivery,
        "x-hub-signature-256": f"sha256={sign(SECRET, data)}",
        "content-type": "application/json",
        **headers,
    }
    return server.http.post(f"/hooks/github/{hook}", content=data, headers=sent)


def unnamed(server: Running, path: str, data: bytes, **headers: str) -> Any:
    """Send what no token comes with."""
    request = server.http.build_request(
        "POST",
        path,
        content=data,
        headers={"content-type": "application/json", **headers},
    )
    del request.headers["authorization"]
    return server.http.send(request)


def new(server: Running, before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    known = {one["id"] for one in before}
    return [one for one in changes(server) if one["id"] not in known]


# ------------------------------------------------------------------ the API and the commands


def test_a_reported_change_is_listed_and_its_key_makes_it_one(server: Running) -> None:
    body = {
        "title": "deploy shop 1.8",
        "subject": "web",
        "version_from": "1.7",
        "version_to": "1.8",
        "link": "https://ci.shop.example/12",
        "time": "2026-03-01T10:00:00+01:00",
    }
    key = {"idempotency-key": "run-12"}
    made = server.http.post("/api/v1/changes", json=body, headers=key)
    assert made.status_code == 201, made.text
    again = server.http.post("/api/v1/changes", json=body, headers=key)
    assert again.json() == made.json() and again.headers["idempotency-replayed"]
    one = made.json()
    assert one["time"] == "2026-03-01T09:00:00.000Z" and one["author"] == "ann"
    assert one["source"] == "api ann" and one["kind"] == "deploy"
    assert server.http.get(made.headers["location"]).json() == one
    assert [x for x in changes(server, subject="web") if x["id"] == one["id"]] == [one]


@pytest.mark.parametrize(
    "body,said",
    [
        ({"title": "x"}, "a subject, or labels"),
        ({"title": "x", "subject": "wbe"}, "did you mean web"),
        ({"title": " ", "subject": "web"}, "title"),
        ({"title": "x", "subject": "web", "time": "2099-01-01T00:00:00Z"}, "future"),
        ({"title": "x", "subject": "web", "time": "1999-01-01T00:00:00Z"}, "older"),
        ({"title": "x", "subject": "web", "kind": "commit"}, "kind"),
        ({"title": "x", "subject": "web", "unknown": 1}, "unknown"),
    ],
)
def test_a_report_that_makes_no_sense_is_refused(
    server: Running, body: dict[str, Any], said: str
) -> None:
    before = changes(server)
    answer = server.http.post("/api/v1/changes", json=body)
    assert answer.status_code == 422 and said in answer.text
    assert changes(server) == before


def test_pages_have_each_change_once(server: Running) -> None:
    for number in range(5):
        body = {"title": f"p{number}", "labels": {"page": "yes"}}
        assert server.http.post("/api/v1/changes", json=body).status_code == 201
    seen: list[int] = []
    cursor: dict[str, Any] = {}
    while True:
        page = server.http.get("/api/v1/changes", params={"limit": 2, **cursor}).json()
        seen += [one["id"] for one in page["items"]]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert seen == [one["id"] for one in changes(server)]
    assert server.http.get("/api/v1/changes?cursor=x").status_code == 400


def test_commands_report_and_list(server: Running, folder: Path) -> None:
    arguments = ("--subject", "db", "--kind", "config", "--time", "10m", "--key", "k1")
    made = said_json(folder, "changes", "add", "work_mem to 64MB", *arguments)
    assert said_json(folder, "changes", "add", "other words", *arguments) == made
    assert made["subject"] == "db" and made["kind"] == "config"
    listed = said_json(folder, "changes", "list", "--subject", "db", "--since", "1h")
    assert [one["id"] for one in listed] == [made["id"]]
    assert "work_mem to 64MB" in said(folder, "changes", "list", "--subject", "db")
    assert "there is no subject" in refused(
        folder, "changes", "add", "x", "--subject", "nobody"
    )
    assert "is not a time" in refused(
        folder, "changes", "list", "--since", "soon", code=2
    )


# ------------------------------------------------------------------ GitHub


def test_a_deployment_of_github_is_a_change_of_the_repository_s_subject(
    server: Running,
) -> None:
    before = changes(server)
    body = bodies.github_deployment_status()
    for _ in range(2):  # GitHub sends a delivery again with its id
        answer = github(server, "deployment_status", body, "d-1")
        assert answer.status_code == 200 and answer.json() == {"received": 1}
    [one] = new(server, before)
    assert one["subject"] == "web" and one["source"] == "github ci"
    assert one["title"] == "deployment to production succeeded: Rolled out"
    assert one["version_to"] == f"v1.8.0 {bodies.HEAD[:12]}"
    assert one["time"] == "2026-03-01T10:00:00.000Z" and one["author"] == "ann"
    assert one["link"] == "https://ci.shop.example/runs/12/log"
    assert one["labels"] == {"repository": "shop/web", "environment": "production"}


def test_a_push_is_the_commit_that_a_reading_finds_too(server: Running) -> None:
    before = changes(server)
    assert github(server, "push", bodies.github_push(), "p-1").status_code == 200
    [one] = new(server, before)
    assert (one["kind"], one["commit"]) == ("commit", bodies.HEAD)
    assert one["files"] == ["pool.ini"]
    # The time of the push, and not what the author's clock said.
    assert one["time"] == "2026-03-01T10:00:00.000Z"
    before = changes(server)
    for ref, after in (
        ("refs/heads/topic", bodies.HEAD),
        ("refs/heads/main", "0" * 40),
    ):
        body = bodies.github_push(ref, after=after)
        assert github(server, "push", body, f"p {ref}").json() == {"received": 0}
    assert github(server, "push", bodies.github_push(), "p-2").json() == {"received": 1}
    assert new(server, before) == []


def test_releases_runs_and_other_events_of_github(server: Running) -> None:
    before = changes(server)
    github(server, "release", bodies.github_release(), "r-1")
    github(server, "workflow_run", bodies.github_workflow_run(), "w-1")
    assert github(server, "ping", {"zen": "Keep it."}, "x").json() == {"received": 0}
    pending = bodies.github_deployment_status("pending")
    assert github(server, "deployment_status", pending, "d-2").json() == {"received": 0}
    form = urlencode(
        {"payload": json.dumps(bodies.github_deployment_status("failure"))}
    )
    headers = {
        "x-github-event": "deployment_status",
        "x-github-delivery": "d-3",
        "x-hub-signature-256": f"sha256={sign(SECRET, form.encode())}",
        "content-type": "application/x-www-form-urlencoded",
    }
    answer = server.http.post("/hooks/github/ci", content=form, headers=headers)
    assert answer.json() == {"received": 1}
    assert {one["title"] for one in new(server, before)} == {
        "release v1.8.0: The pool",
        "workflow Deploy: success",
        "deployment to production failed: Rolled out",
    }


def test_a_hook_with_subjects_takes_only_its_environments(server: Running) -> None:
    before = changes(server)
    staging = bodies.github_deployment_status(environment="staging")
    assert github(server, "deployment_status", staging, "e-1", "dbs").json() == {
        "received": 0
    }
    body = bodies.github_deployment_status()
    github(server, "deployment_status", body, "e-2", "dbs")
    [one] = new(server, before)
    assert one["subject"] == "db"


def test_a_forged_request_is_refused_and_nothing_is_stored(server: Running) -> None:
    before = changes(server)
    body = bodies.github_deployment_status()
    data = json.dumps(body).encode()
    for signature in (
        "",
        "sha256=" + "0" * 64,
        f"sha256={sign('another secret', data)}",
        f"sha256={sign(SECRET, data + b' ')}",
        "sha1=" + hmac.new(SECRET.encode(), data, hashlib.sha1).hexdigest(),
    ):
        headers = {"x-hub-signature-256": signature}
        answer = github(server, "deployment_status", body, "f", "ci", **headers)
        assert answer.status_code == 401, signature
    for headers in ({}, {"x-gitlab-token": "wrong"}, {"x-gitlab-token": ""}):
        forged = server.http.post(
            "/hooks/gitlab/lab", json=bodies.gitlab_deployment(), headers=headers
        )
        assert forged.status_code == 401
    for hook in ("argo", "open", "nobody"):
        forged = unnamed(server, f"/hooks/argocd/{hook}", data)
        assert forged.status_code == 401, hook
    assert changes(server) == before


@pytest.mark.parametrize(
    "body,status",
    [
        (b"{", 400),
        (b"[]", 422),
        (b'{"deployment_status": 1, "deployment": {}}', 422),
        (b'{"deployment_status": {"state": "success"}, "deployment": []}', 422),
        (b"[" * 100_000, 400),
    ],
)
def test_what_cannot_be_read_is_named(
    server: Running, body: bytes, status: int
) -> None:
    headers = {
        "x-github-event": "deployment_status",
        "x-github-delivery": "x",
        "x-hub-signature-256": f"sha256={sign(SECRET, body)}",
    }
    answer = server.http.post("/hooks/github/ci", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert "application/problem+json" in answer.headers["content-type"]


# ------------------------------------------------------------------ GitLab, Argo CD


def test_gitlab_reports_deployments_pushes_tags_and_pipelines(server: Running) -> None:
    github(server, "push", bodies.github_push(), "p-1")
    before = changes(server)
    for number, body in enumerate(
        (
            bodies.gitlab_deployment(),
            bodies.gitlab_push(),
            bodies.gitlab_tag_push(),
            bodies.gitlab_pipeline(),
        )
    ):
        headers = {"x-gitlab-token": SECRET, "idempotency-key": f"g-{number}"}
        for _ in range(2):
            answer = server.http.post("/hooks/gitlab", json=body, headers=headers)
            assert answer.json() == {"received": 1}, answer.text
    found = {one["title"]: one for one in new(server, before)}
    # The push is of the same commit as that of GitHub: it is one change.
    assert set(found) == {
        "deployment to production succeeded: Size the pool by the load",
        "tag v1.8.0: The pool",
        "pipeline Deploy: success",
    }
    for one in found.values():
        assert one["subject"] == "web" and one["source"] == "gitlab lab"
    times = {one["time"] for title, one in found.items() if "tag" not in title}
    assert times == {"2026-03-01T10:00:00.000Z"}


def test_a_signature_of_gitlab_is_checked_with_its_time(server: Running) -> None:
    body = json.dumps(bodies.gitlab_deployment("failed")).encode()

    def send(stamp: float, key: bytes, id_: str = "msg-1", **more: str) -> int:
        signed = f"{id_}.{int(stamp)}.".encode() + body
        digest = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest())
        headers = {
            "webhook-id": id_,
            "webhook-timestamp": str(int(stamp)),
            "webhook-signature": f"v1,{digest.decode()}",
            **more,
        }
        answer = unnamed(server, "/hooks/gitlab", body, **headers)
        return int(answer.status_code)

    before, now = changes(server), datetime.now(UTC).timestamp()
    assert send(now, b"j" * 32) == 401
    assert send(now - 3600, b"k" * 32) == 401
    assert send(now, b"k" * 32, **{"webhook-id": "msg-2"}) == 401
    assert new(server, before) == []
    assert send(now, b"k" * 32) == 200
    assert send(now, WHSEC.encode()) == 200
    # Sent again by somebody who saw it, with what is not signed changed.
    assert send(now, b"k" * 32, **{"idempotency-key": "other"}) == 200
    assert len(new(server, before)) == 1


def test_argo_cd_reports_with_a_token_or_a_signature(server: Running) -> None:
    before = changes(server)
    data = json.dumps(bodies.argocd()).encode()
    signed = {"x-midwatch-signature": sign(SECRET, data)}
    for _ in range(2):
        answer = unnamed(server, "/hooks/argocd/argo", data, **signed)
        assert answer.json() == {"received": 1}
    assert server.http.post(
        "/hooks/argocd/open", json=bodies.argocd("Pending")
    ).json() == {"received": 0}
    answer = server.http.post("/hooks/argocd/open", json=bodies.argocd("Failed"))
    assert answer.json() == {"received": 1}
    found = new(server, before)
    assert {one["source"] for one in found} == {"argocd argo", "argocd open"}
    assert {one["subject"] for one in found} == {"web"}
    assert found[0]["version_to"] == bodies.HEAD[:12]
    several = server.http.post("/hooks/argocd", json=bodies.argocd())
    assert several.status_code == 404 and "argo, open" in several.text


def test_the_template_for_argo_cd_reports_what_it_should(
    server: Running, tmp_path: Path
) -> None:
    """That of the docs, with the engine and the functions that Argo CD has, on applications as it has them."""
    page = (Path(__file__).parents[2] / "docs" / "changes.md").read_text()
    [block] = re.findall(
        r"```yaml\n(service\.webhook\.midwatch.*?)```", page, re.DOTALL
    )
    written = {
        name: read_yaml(text.encode())
        for name, text in read_yaml(block.encode()).items()
    }
    template = written["template.midwatch"]["webhook"]["midwatch"]
    before = changes(server)
    for app, revision in bodies.argocd_applications():
        body = go_template(tmp_path, template["body"], {"app": app})
        phase = app["status"]["operationState"]["phase"]
        sent = server.http.request(
            template["method"], "/hooks/argocd/open", content=body
        )
        assert sent.status_code == 200, sent.text
        [one] = [
            x for x in new(server, before) if app["metadata"]["name"] in x["title"]
        ]
        assert one["version_to"] == revision[:12] and one["subject"] == "web"
        assert ("began" in one["title"]) == (phase == "Running")
    headers = {
        one["name"]: one["value"]
        for one in written["service.webhook.midwatch"]["headers"]
    }
    assert headers["Authorization"] == "Bearer $midwatch-token"
    # A condition is sent when it becomes true: no two may hold at once, and each for every sync.
    conditions = written["trigger.midwatch"]
    phases = [
        one
        for condition in conditions
        for one in re.findall(r"'(\w+)'", condition["when"])
    ]
    assert sorted(phases) == ["Error", "Failed", "Running", "Succeeded"]
    assert all(
        one["oncePer"].endswith("operationState.startedAt") for one in conditions
    )


def go_template(folder: Path, text: str, values: dict[str, Any]) -> str:
    """Return what Go's template engine makes of a text, by way of Helm."""
    chart = folder / f"chart-{len(list(folder.iterdir()))}"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("{apiVersion: v2, name: body, version: 1.0.0}")
    inner = f"{{{{with .Values}}}}{text}{{{{end}}}}"
    (chart / "templates" / "body.txt").write_text(inner)
    [made] = Chart.load(chart).render(values).values()
    return str(made)


def received(server: Running) -> dict[tuple[str, str], float]:
    """The counts of reports, by sender and outcome."""
    [address] = [
        one["address"] for one in server.log() if one["event"] == "metrics served"
    ]
    with urllib.request.urlopen(f"{address}/metrics", timeout=PATIENCE) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {
            (one.labels["sender"], one.labels["outcome"]): one.value
            for family in families
            for one in family.samples
            if one.name == "midwatch_server_changes_total"
        }


def test_reports_are_counted_by_their_outcome(server: Running) -> None:
    before = received(server)
    body = bodies.github_deployment_status()
    github(server, "deployment_status", body, "m-1")
    github(server, "ping", {"zen": "Keep it."}, "m-2")
    wrong = {"x-hub-signature-256": "sha256=0"}
    github(server, "deployment_status", body, "m-3", **wrong)
    github(server, "deployment_status", {"deployment_status": 1}, "m-4")
    server.http.post("/hooks/argocd/gone", json=bodies.argocd())
    report = {"title": "deploy", "labels": {"counted": "yes"}}
    assert server.http.post("/api/v1/changes", json=report).status_code == 201
    after = received(server)
    assert {
        one: after[one] - before[one] for one in after if after[one] > before[one]
    } == {
        ("github", "stored"): 1,
        ("github", "ignored"): 1,
        ("github", "refused"): 1,
        ("github", "unreadable"): 1,
        ("argocd", "refused"): 1,
        ("api", "stored"): 1,
    }


# ------------------------------------------------------------------ on a ticket


async def _ticket(store: SqlStore) -> int:
    violation = Violation(
        Key("web", "load", "host"), Severity.CRITICAL, "the load is high"
    )
    revision = (await store.watch("web")).revision
    saved = await store.save_cycle("web", revision, Changes((Opening(violation),)))
    return saved.opened[0]


def test_a_ticket_shows_what_was_changed_before_it_everywhere(
    server: Running, folder: Path
) -> None:
    hostile = "<script>alert(1)</script>\u202e\x1b[31m"
    now = datetime.now(UTC)
    for minutes, body in (
        (40, {"subject": "web", "title": "deploy web"}),
        (4.5, {"subject": "db", "title": f"deploy db {hostile}", "kind": "migration"}),
        (4, {"labels": {"invariant": "load"}, "title": "by labels"}),
        (3, {"labels": {"invariant": "load", "team": "x"}, "title": "other labels"}),
    ):
        body = {**body, "time": (now - timedelta(minutes=minutes)).isoformat()}
        assert server.http.post("/api/v1/changes", json=body).status_code == 201
    id_ = in_store(folder, _ticket)
    near = [one["title"] for one in changes(server, ticket=id_)]
    assert near[0] == "by labels" and "deploy web" in near
    assert near[1].startswith("deploy db <script>")
    assert "other labels" not in near
    listed = said_json(folder, "changes", "list", "--around", str(id_))
    assert [one["title"] for one in listed] == near
    assert 0 < listed[0]["seconds_before_onset"] < 600
    page = server.http.get(f"/tickets/{id_}", headers={"accept": "text/html"}).text
    assert "Changed before the onset" in page and "proves no cause" in page
    assert "deploy db &lt;script&gt;" in page and "<script>alert" not in page
    report = said(folder, "tickets", "report", str(id_))
    timeline = report.partition("Timeline")[2]
    assert timeline.index("deploy web") < timeline.index("deploy db")
    assert server.http.get("/api/v1/changes?ticket=999999").status_code == 404
