"""Gateways, clouds and folders from the environment, through the command line and the library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from midwatch.provider import ApiAccess
from midwatch.session.agentic_session import run_agentic_session
from midwatch.session.errors import BudgetSpent, KeyRefused
from midwatch.session.log import default_sessions
from midwatch.testing.fakes import collect, options, session_in
from midwatch.testing.messages_api import (
    Answer,
    Rule,
    ScriptedMessagesAPI,
    ToolUse,
    Usage,
    fingerprint,
)
from midwatch.workspace.setup import default_cache

from .cli import midwatch, said
from .session_cli import make_desk, make_repositories

HOST = "subjects: [{name: box, kind: host, invariants: {load: {enabled: false}}}]\n"
TOKEN = "gateway-token-123456"


@pytest.fixture
def gateway() -> ScriptedMessagesAPI:
    return ScriptedMessagesAPI(Answer("Fine."))


def through(api: ScriptedMessagesAPI) -> dict[str, str]:
    """The environment of someone behind a gateway, who has no key."""
    return {
        "ANTHROPIC_AUTH_TOKEN": TOKEN,
        "ANTHROPIC_BASE_URL": api.base_url,
        "ANTHROPIC_CUSTOM_HEADERS": "X-Team: ops",
    }


def assert_through(api: ScriptedMessagesAPI) -> None:
    assert api.requests
    for request in api.requests:
        assert request.headers["authorization"] == fingerprint(f"Bearer {TOKEN}")
        assert request.headers["x-team"] == "ops"
        assert "x-api-key" not in request.headers


def test_the_commands_use_the_gateway(
    tmp_path: Path, gateway: ScriptedMessagesAPI
) -> None:
    desk = make_desk(tmp_path / "desk", extra=HOST)
    app, _ = make_repositories(tmp_path)
    with gateway as api:
        env = through(api)
        told = said(desk, "check", env=env)
        assert "accepted by 127.0.0.1" in told and TOKEN not in told
        said(desk, "session", "run", "-r", app, "--prompt", "Hi.", "--json", env=env)
        assert_through(api)
        assert {r.path for r in api.requests} == {
            "/v1/messages",
            "/v1/models/claude-sonnet-5-5",
        }


def test_the_library_uses_the_gateway(
    tmp_path: Path, gateway: ScriptedMessagesAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with gateway as api:
        for name, value in through(api).items():
            monkeypatch.setenv(name, value)
        result = run_agentic_session("Hi.", tmp_path / "work", "", options=options())
        assert result.text == "Fine."
        assert_through(api)
        result = run_agentic_session(
            "Hi.", tmp_path / "work", "sk-1", options=options()
        )
        key = api.calls[-1].headers
        assert key["x-api-key"] == fingerprint("sk-1") and key["x-team"] == "ops"
    assert result.folder.is_relative_to(tmp_path / "state" / "midwatch" / "sessions")


@pytest.mark.parametrize(
    ("environ", "state", "cache"),
    [
        ({"HOME": "/home/a"}, "/home/a/.local/state", "/home/a/.cache"),
        ({"HOME": "/a", "XDG_STATE_HOME": "/s", "XDG_CACHE_HOME": "/c"}, "/s", "/c"),
        ({"HOME": "/a", "XDG_STATE_HOME": "s"}, "/a/.local/state", "/a/.cache"),
    ],
)
def test_state_is_where_the_environment_says(
    environ: dict[str, str], state: str, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert default_sessions() == Path(state, "midwatch", "sessions")
    assert default_cache() == Path(cache, "midwatch")


@pytest.mark.parametrize(
    ("provider", "environ", "named"),
    [
        ("bedrock", {"AWS_BEARER_TOKEN_BEDROCK": "t"}, "AWS_REGION: is not set"),
        ("bedrock", {"AWS_REGION": "eu-west-1", "AWS_BEARER_TOKEN_BEDROCK": "t", "ANTHROPIC_BEDROCK_BASE_URL": "http://127.0.0.1:9"}, "127.0.0.1 is unreachable"),
        ("vertex", {"ANTHROPIC_VERTEX_PROJECT_ID": "p"}, ("CLOUD_ML_REGION: is not set", "midwatch[vertex]")),
        ("azure", {}, "anthropic.provider: 'azure' is not a choice"),
    ],
)  # fmt: skip
def test_check_names_what_a_cloud_lacks(
    tmp_path: Path, provider: str, environ: dict[str, str], named: str | tuple[str, ...]
) -> None:
    settings = f"anthropic: {{provider: {provider}}}\n{HOST}"
    (tmp_path / "midwatch.yaml").write_text(settings)
    done = midwatch(tmp_path, "check", "--json", env=environ)
    assert done.returncode == (2 if provider == "azure" else 1), done.stderr
    failed = [
        one["says"] for one in json.loads(done.stdout) if one["grade"] == "failed"
    ]
    choices = (named,) if isinstance(named, str) else named
    assert len(failed) == 1 and any(one in failed[0] for one in choices), failed


def test_check_tries_a_cloud_for_diagnoses_and_sessions(tmp_path: Path) -> None:
    settings = "anthropic: {provider: bedrock, model: us.anthropic.claude-opus-5-5}\n"
    settings += f"sessions: {{model: us.anthropic.claude-sonnet-5-5}}\n{HOST}"
    (tmp_path / "midwatch.yaml").write_text(settings)
    models = [f"us.anthropic.claude-{one}-5-5" for one in ("opus", "sonnet")]
    answers = [Rule(Answer("."), path=f"/model/{one}/invoke") for one in models]
    with ScriptedMessagesAPI(*answers) as api:
        env = {
            "AWS_REGION": "eu-west-1",
            "AWS_BEARER_TOKEN_BEDROCK": TOKEN,
            "ANTHROPIC_BEDROCK_BASE_URL": api.base_url,
        }
        found = json.loads(said(tmp_path, "check", "--json", env=env))
        asked = [r.path for r in api.requests]
    assert asked == [f"/model/{one}/invoke" for one in models]
    told = [one for one in found if one["what"] == "bedrock"]
    assert [one["grade"] for one in told] == ["ok", "ok"]
    assert next(one for one in found if one["what"] == "model")["grade"] == "ok"


async def test_a_budget_ends_at_the_higher_price(tmp_path: Path) -> None:
    """Two requests of 250,000 tokens: 0.75 dollars each by the program, 1.50 by the list."""
    usage = Usage(input_tokens=250_000, output_tokens=10)
    # The second command never ends, so that there is no third request on its way.
    look, wait = (
        Answer("Look.", tool_uses=[ToolUse("Bash", {"command": command})], usage=usage)
        for command in ("true", "tail -f /dev/null")
    )
    async with ScriptedMessagesAPI(Rule([look, wait, "Done."], tools=True)) as api:
        session = session_in(
            tmp_path,
            api,
            model="claude-sonnet-4-5",
            options=options(limits={"max_usd": 2.0}),
        )
        with pytest.raises(BudgetSpent):
            await collect(session, "Hi.")
        assert len(api.calls) == 2
    assert session.status().cost_usd == pytest.approx(3.0, rel=0.01)


def test_a_session_without_any_login_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyRefused, match="there is no API key"):
        session_in(tmp_path, "", client=ApiAccess(headers={"X-Team": "ops"}))


@pytest.mark.parametrize(
    ("name", "value", "said_so"),
    [
        ("ANTHROPIC_BASE_URL", "http://me:hunter2@h:99999", "the port is not a number"),
        ("ANTHROPIC_BASE_URL", "http://h:hunter2", "the port is not a number"),
        ("ANTHROPIC_BASE_URL", "http://hunter2@[::1", "not a URL"),
        ("ANTHROPIC_BASE_URL", "hunter2", "not a URL"),
        ("HTTPS_PROXY", "http://me:hunter2@p:99999", "is not the URL of a proxy"),
        ("HTTPS_PROXY", "http://me:hunter2@[::1", "is not the URL of a proxy"),
    ],
)
def test_an_address_that_is_none_is_one_line(
    tmp_path: Path, name: str, value: str, said_so: str
) -> None:
    (tmp_path / "midwatch.yaml").write_text(HOST)
    env = {"ANTHROPIC_API_KEY": TOKEN, name: value}
    done = midwatch(tmp_path, "check", env=env)
    [line] = [one for one in done.stdout.splitlines() if one.startswith("✘ key")]
    assert done.returncode == 1 and f"{name}: {said_so}" in line, line
    agent = midwatch(tmp_path, "agent", "--once", env=env)
    assert agent.returncode == 1 and f"{name}: {said_so}" in agent.stderr
    assert agent.stderr.count("\n") == 1
    assert "hunter2" not in done.stdout + done.stderr + agent.stdout + agent.stderr
