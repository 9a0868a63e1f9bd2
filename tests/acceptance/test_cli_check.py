"""`midwatch check`: what works, what does not, and the exit code."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from midwatch.agent.claude import ProbeResult, probe
from midwatch.cli.app import Edge
from midwatch.cli.check_changes import around
from midwatch.cli.finding import Finding, Grade
from midwatch.testing.messages_api import (
    Hang,
    Raw,
    Rule,
    ScriptedMessagesAPI,
    overloaded,
    unauthorized,
    unknown_model,
)

from ..forge_server import Fault, GitHubServer, HeldRequest
from .cli import KEY, environ, in_store, midwatch, said
from .pull_request_desk import PullRequestDesk, pull_request_desk

HOST = "subjects:\n- {name: box, kind: host, invariants: {disk: {limit: 0%}, load: {enabled: false}}}\n"
CARD = "/v1/models/claude-sonnet-5-5"
COUNT = "/v1/messages/count_tokens"


@pytest.fixture(scope="module")
def api() -> Iterator[ScriptedMessagesAPI]:
    with ScriptedMessagesAPI() as started:
        yield started


@pytest.fixture
def env(api: ScriptedMessagesAPI) -> dict[str, str]:
    api.script()
    return {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": api.base_url}


def test_all_is_well(
    tmp_path: Path, api: ScriptedMessagesAPI, env: dict[str, str]
) -> None:
    (tmp_path / "midwatch.yaml").write_text(HOST)
    before = len(api.calls)
    missing = said(tmp_path, "check", env=env).splitlines()[1]
    assert missing.startswith("! database: there is no database midwatch.db (check the")
    assert not (tmp_path / "midwatch.db").exists(), "a check creates nothing"
    said(tmp_path, "db", "upgrade")
    lines = said(tmp_path, "check", env=env).splitlines()
    assert lines[0] == "✔ settings: 1 subject"
    assert lines[1].startswith("✔ database: reachable")
    box = next(line for line in lines if "subject box (host)" in line)
    assert box.startswith("! ") and "broken now: disk" in box
    assert any(line.startswith("✔ key: accepted by 127.0.0.1") for line in lines)
    assert lines[-1] == "✔ model: claude-sonnet-5-5"
    assert len(api.calls) == before, "a check must cost nothing"


def test_everything_is_looked_at_though_something_failed(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    (tmp_path / "midwatch.yaml").write_text(
        "database: sqlite:////nowhere/midwatch.db\n"
        "anthropic: {model: claude-sonnet-4-5}\n"
        "subjects:\n"
        f"- {{name: shop, kind: postgres, dsn: 'postgresql://u:hunter2@127.0.0.1:{port}/x'}}\n"
        "- {name: job, kind: command, command: [/nowhere/program]}\n"
    )
    env = {
        "ANTHROPIC_API_KEY": KEY,
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}",
    }
    done = midwatch(tmp_path, "check", env=env)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (1, "")
    assert [line[0] for line in lines] == ["✔", "✘", "✘", "✘", "✘", "!"]
    assert "/nowhere/midwatch.db" in lines[1]
    assert "refused" in lines[2] and "broken now: reachable" in lines[2]
    assert "is unreachable" in lines[4]
    assert "November 30th, 2026" in lines[5]
    assert "hunter2" not in done.stdout and KEY not in done.stdout


def test_wrong_settings_are_a_failed_line(tmp_path: Path) -> None:
    (tmp_path / "midwatch.yaml").write_text("agnet: {}\n")
    done = midwatch(tmp_path, "check")
    assert done.returncode == 2
    assert done.stdout.startswith("✘ settings: agnet: unknown setting")
    (tmp_path / "midwatch.yaml").write_text(HOST.replace("0%", "90"))
    done = midwatch(tmp_path, "check")
    assert done.returncode == 2
    assert "✘ subject settings: subjects.box.invariants.disk.limit: " in done.stdout


def test_without_a_key_it_only_warns_and_without_subjects_it_fails(
    tmp_path: Path,
) -> None:
    beat = {"open": 2}
    in_store(tmp_path, lambda store: store.beat("monitor here:1", "monitor", beat))
    done = midwatch(tmp_path, "check", "--json")
    assert done.returncode == 1, "nothing would be watched"
    found = {one["what"]: one for one in json.loads(done.stdout)}
    assert {name: one["grade"] for name, one in found.items()} == {
        "settings": "ok",
        "database": "ok",
        "daemons": "ok",
        "subjects": "failed",
        "key": "warning",
        "model": "ok",
    }
    assert "monitor here:1" in found["daemons"]["says"]
    assert "first aid only" in found["key"]["says"]


@contextlib.contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A web server that gives this answer to every request."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "subject", "mark"),
    [
        (200, b"fine", "kind: http", "✔"),
        (200, b"fine", "kind: http, invariants: {latency: {limit: 0}}", "!"),
        (503, b"", "kind: http", "✘"),
        (404, b"", "kind: http", "✘"),
        (200, b"fine", "kind: http, body_matches: healthy", "✘"),
        (200, b"<html>It works!</html>", "kind: prometheus", "✘"),
        (404, b"404 page not found", "kind: prometheus", "✘"),
        (200, b"{}", "kind: prometheus", "✘"),
    ],
)
def test_a_subject_that_is_down_or_not_what_it_should_be_is_red(
    tmp_path: Path, status: int, body: bytes, subject: str, mark: str
) -> None:
    with answering(status, body) as url:
        text = f"subjects: [{{name: shop, url: '{url}', {subject}}}]"
        (tmp_path / "midwatch.yaml").write_text(text)
        done = midwatch(tmp_path, "check")
    [line] = [line for line in done.stdout.splitlines() if "subject shop" in line]
    assert (line[0], done.returncode) == (mark, int(mark == "✘")), line


def test_each_reason_why_something_is_not_seen_has_a_line(tmp_path: Path) -> None:
    (tmp_path / "there.log").write_text("")
    names = [f"{letter * 120}" for letter in "abcd"]
    files = [tmp_path / "there.log", *(tmp_path / f"{one}.log" for one in names)]
    source = {"name": "api", "files": [*map(str, files)]}
    subject = {"name": "logs", "kind": "logs", "sources": [source]}
    file = tmp_path / "midwatch.yaml"
    file.write_text(json.dumps({"subjects": [subject]}))
    lines = midwatch(tmp_path, "check").stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if "subject logs (logs)" in line)
    assert "observed; 0 of " in lines[start] and "not seen" not in lines[start]
    told = [line for line in lines[start + 1 :] if line.startswith("  not seen: ")]
    [storms] = [line for line in told if "error_storm" in line]
    assert "log_rate" in storms, "one reason is told once"
    assert storms.endswith("and 1 more"), "the end of a long line is there"
    (logs,) = [
        one
        for one in json.loads(midwatch(tmp_path, "check", "--json").stdout)
        if one["what"] == "subject logs (logs)"
    ]
    assert [f"  not seen: {one}" for one in logs["not_seen"]] == told


async def test_what_the_api_says_of_the_key(api: ScriptedMessagesAPI) -> None:
    async def asked(*rules: Rule) -> ProbeResult:
        api.script(*rules)
        return await probe(KEY, "claude-sonnet-5-5", api.base_url, seconds=5)

    result = await asked(Rule(unauthorized(), path=CARD, method="GET"))
    assert not result.works and "refuses the key (401)" in result.message
    result = await asked(Rule(overloaded(), path=CARD, method="GET"))
    assert result.temporary and "answers with 529" in result.message
    no_card = Rule(unknown_model(), path=CARD, method="GET")
    result = await asked(no_card, Rule(unknown_model(), path=COUNT))
    assert not result.works and "does not know the model" in result.message
    assert (await asked(no_card)).works, "a gateway need not have cards of models"
    page = Raw(200, b"<html>log in</html>", content_type="text/html")
    result = await asked(Rule(page, path=CARD, method="GET"))
    assert not result.works and "not a Messages API" in result.message


async def test_an_api_that_hangs_is_not_waited_for(api: ScriptedMessagesAPI) -> None:
    api.script(Rule(Hang(), path=CARD, method="GET"))
    result = await probe(KEY, "claude-sonnet-5-5", api.base_url, seconds=0.3)
    assert not result.works and "did not answer within 0.3 s" in result.message


def test_a_collector_and_a_sender_that_cannot_push_have_lines(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk")
    from .trace_collector import Collector

    with Collector() as collector:
        written = {
            "subjects": [{"name": "team", "kind": "alerts", "sender": "alertmanager"}],
            "telemetry": {"endpoint": collector.url, "timeout": "1s"},
        }
        file = tmp_path / "midwatch.yaml"
        file.write_text(json.dumps(written))
        lines = midwatch(tmp_path, "check").stdout.splitlines()
        assert f"✔ telemetry: traces go to {collector.url}" in lines
        [pushed] = [line for line in lines if "nothing can be pushed" in line]
        assert pushed.startswith("! subject team (alerts)")
        collector.status = 400
        written["server"] = {"listen": "127.0.0.1:0"}
        file.write_text(json.dumps(written))
        lines = midwatch(tmp_path, "check").stdout.splitlines()
    assert any(line.startswith("! telemetry: the collector at") for line in lines)
    assert not any("nothing can be pushed" in line for line in lines)


def around_of(folder: Path, settings: dict[str, Any], **env: str) -> list[Finding]:
    """What is found around the subjects of these settings."""
    file = folder / "midwatch.yaml"
    file.write_text(json.dumps(settings))
    edge = Edge(environ(folder, **env), file)

    async def run() -> list[Finding]:
        return [one async for one in around(edge, edge.settings())]

    return asyncio.run(run())


def pulls_of(desk: PullRequestDesk, **env: str) -> dict[str, Finding]:
    """What is found of the forge and of pull requests, by the last part of the name."""
    settings = json.loads((desk.folder / "midwatch.yaml").read_text())
    found = around_of(desk.folder, settings, **{**desk.env, **env})
    ours = [one for one in found if one.what.startswith(("forge ", "pull requests "))]
    return {one.what.rpartition("/")[2]: one for one in ours}


def test_forges_are_asked_for_each_repository(tmp_path: Path) -> None:
    with pull_request_desk(
        tmp_path, GitHubServer, "shop", "lib", timeout="200ms"
    ) as desk:
        found = pulls_of(desk)
        assert {one.grade for one in found.values()} == {Grade.OK}
        assert "a pull request is for main" in found["shop"].says
        held = HeldRequest("GET", "/repos/team/shop")
        desk.forge.held = [held]
        wrong = {"message": f"Bad credentials {desk.env['FORGE_TOKEN']}"}
        desk.forge.faults = [Fault("GET", "/repos/team/lib", 401, wrong)]
        found = pulls_of(desk)
        held.go.set()
        assert found["lib"].grade is Grade.FAILED and "renew it" in found["lib"].says
        assert desk.env["FORGE_TOKEN"] not in found["lib"].says
        assert found["shop"].grade is Grade.WARNING
        assert "did not answer within 0.2 s" in found["shop"].says
        desk.forge.held = []
        desk.forge.repository = {"archived": True}
        assert "it is archived" in pulls_of(desk)["lib"].says
        [missing] = pulls_of(desk, FORGE_TOKEN="").values()
        assert missing.grade is Grade.FAILED and "no FORGE_TOKEN" in missing.says


def test_senders_of_changes_that_can_be_forged_are_named(tmp_path: Path) -> None:
    def hook(name: str, sender: str, *secrets: str) -> dict[str, Any]:
        return {"name": name, "sender": sender, "signing_secrets": secrets}

    hooks = [
        hook("ci", "github", "0123456789abcdef0123456789abcdef"),
        hook("short", "github", "hunter2"),
        hook("lab", "gitlab", "whsec_0123456789abcdef!"),
        hook("argo", "argocd"),
    ]
    settings: dict[str, Any] = {
        "database": f"sqlite:///{tmp_path / 'midwatch.db'}",
        "changes": {"hooks": hooks},
        "server": {"listen": "127.0.0.1:1"},
    }
    said(tmp_path, "db", "upgrade")
    found = {one.what.rpartition("/")[2]: one for one in around_of(tmp_path, settings)}
    assert found["ci"].grade is Grade.OK and found["ci"].says == "1 signing secret"
    assert "can be guessed" in found["short"].says
    assert "whole" in found["lab"].says and "no token may use" in found["argo"].says
    assert all(found[one].grade is Grade.WARNING for one in ("short", "lab", "argo"))
    assert not any("hunter2" in one.says for one in found.values())
    said(tmp_path, "tokens", "create", "argo", "--scope", "changes:write")
    found = {one.what.rpartition("/")[2]: one for one in around_of(tmp_path, settings)}
    assert found["argo"].grade is Grade.OK
    settings["server"] = {}
    assert all(
        "server.listen" in one.says for one in around_of(tmp_path, settings)[-1:]
    )
    hooks[0]["subjects"] = ["gone"]
    [wrong] = around_of(tmp_path, settings)
    assert wrong.exit_code() == 2 and "there is no subject gone" in wrong.says
