"""The variables of a pod: written and read alike, who wrote which, and what of that is a secret."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.errors import SettingsError
from midwatch.kube.crd import crd
from midwatch.kube.environment import (
    PROVIDER_VARIABLE,
    RESERVED_PREFIXES,
    RESERVED_VARIABLES,
    RUNNER_VARIABLES,
    RunnerEnvironment,
    container_env,
    sorted_variables,
)
from midwatch.kube.runner_task import read_task
from midwatch.redaction import Redactor
from midwatch.settings import OperatorSettings

REPOS = json.dumps([{"input": {"url": "https://git.example/shop.git"}}])
POD = {
    "PATH": "/bin",
    "HOME": "/home/midwatch",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "SESSION_NAME": "fix",
    "STATUS": "none",
    "REPOS_JSON": REPOS,
    "PROMPT": "Do it.",
    "ANTHROPIC_API_KEY": "",
}


def by_secret(**values: str) -> dict[str, str]:
    return {f"SESSION_SECRET_{name}": value for name, value in values.items()}


def test_no_key_of_a_secret_becomes_a_variable_of_the_runner() -> None:
    names = [*RESERVED_VARIABLES, *(f"{one}X" for one in RESERVED_PREFIXES)]
    api = {"ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_CUSTOM_HEADERS"}
    allowed = {"GIT_TOKEN", "GIT_HOST", *api}
    given = sorted_variables({**POD, **by_secret(**dict.fromkeys(names, "evil"))})
    assert {n for n, v in given.own.items() if v == "evil"} == allowed
    assert set(given.left_out) == set(names) - allowed
    assert "evil" not in given.of_the_program.values()
    assert given.of_git["PATH"] == "/bin"


def test_a_key_that_the_operator_wrote_stays() -> None:
    written = {**POD, "ANTHROPIC_API_KEY": "ours"}
    given = sorted_variables({**written, **by_secret(ANTHROPIC_API_KEY="theirs")})
    assert given.own["ANTHROPIC_API_KEY"] == "ours"


def test_the_program_gets_what_people_asked_for() -> None:
    asked = {"SESSION_VARIABLE_LANG": "de_DE.UTF-8", "SESSION_VARIABLE_A": "literal"}
    given = sorted_variables({**POD, **asked, **by_secret(A="secret", TERM="dumb")})
    wanted = {"TZ": "UTC", "LANG": "de_DE.UTF-8", "A": "literal", "TERM": "dumb"}
    assert given.of_the_program == wanted


def test_the_program_gets_no_secret_of_the_api() -> None:
    network = {"HTTPS_PROXY": "http://me:pw@proxy:1", "SSL_CERT_FILE": "/ca.pem"}
    secrets = by_secret(ANTHROPIC_AUTH_TOKEN="gateway-token", AWS_ACCESS_KEY_ID="A")
    given = sorted_variables({**POD, **network, **secrets})
    assert given.of_the_program == {"TZ": "UTC", "AWS_ACCESS_KEY_ID": "A"}
    access = read_task(given).access
    assert (access.api_key, access.auth_token) == (None, "gateway-token")
    assert access.network == network
    cloud = {PROVIDER_VARIABLE: "bedrock", "AWS_REGION": "eu-west-1"}
    given = sorted_variables({**POD, **cloud, **secrets})
    assert "AWS_ACCESS_KEY_ID" not in given.of_the_program
    access = read_task(given, "bedrock").access
    assert access.environ["AWS_ACCESS_KEY_ID"] == "A"
    assert access.cloud == {"AWS_REGION": "eu-west-1"}


def test_the_operators_own_proxies_and_certificates_count_and_not_the_resources() -> (
    None
):
    ours = {"HTTPS_PROXY": "http://ours", "NODE_EXTRA_CA_CERTS": "/ours.pem"}
    theirs = {f"SESSION_VARIABLE_{name}": "theirs" for name in ours}
    key = by_secret(https_proxy="x", ANTHROPIC_API_KEY="sk-ant-test")
    given = sorted_variables({**POD, **ours, **theirs, **key})
    access = read_task(given).access
    for environ in (access.network, given.of_git):
        assert ours.items() <= environ.items() and "https_proxy" not in environ
    assert not ours.keys() & given.of_the_program.keys()
    assert given.left_out == ("HTTPS_PROXY", "NODE_EXTRA_CA_CERTS", "https_proxy")


def test_values_of_secrets_are_hidden_whatever_their_names() -> None:
    values = {"DATABASE_URL": "unlikely-w0rd", "SENTRY_DSN": "another 0ne"}
    secrets = by_secret(**values, TOGGLE="true", ANTHROPIC_API_KEY="sk-ant-0123456789")
    secrets |= by_secret(MODEL="left-out m0del")
    plain = {"SESSION_VARIABLE_REGION": "eu-central-1"}
    task = read_task(sorted_variables({**POD, **secrets, **plain}))
    text = "unlikely-w0rd another 0ne left-out m0del true eu-central-1"
    hidden = f"{' '.join(3 * ['[redacted:secret]'])} true eu-central-1"
    assert Redactor(task.secrets).text(text) == hidden
    assert "unlikely" not in repr(task)


def written(own: RunnerEnvironment, **settings: str) -> dict[str, str]:
    """The environment that a container gets of this."""
    env = container_env(own, {}, settings=settings, resource={"A": "$(GIT_TOKEN)"})
    return {one["name"]: one["value"].replace("$$", "$") for one in env}


TEXTS = st.text(st.sampled_from("$(A)x"), max_size=5)
SECONDS = st.integers(1, 604_800) | st.sampled_from([0.25, 30.5])


@given(
    st.builds(
        RunnerEnvironment,
        session_name=st.just("fix"),
        session_generation=st.integers(0, 9),
        session_attempt=st.integers(1, 9),
        workspace_path=st.just(Path("/elsewhere")),
        repos_json=st.just(REPOS),
        prompt=TEXTS,
        interactive=st.booleans(),
        trust_repositories=st.booleans(),
        model=st.none() | st.just("claude"),
        max_turns=st.none() | st.integers(1, 9),
        max_budget_usd=st.none() | st.floats(0.001, 1e6),
        effort=st.sampled_from([None, "low", "max"]),
        status=st.sampled_from(["resource", "none"]),
        content_url=st.sampled_from(["", "https://content"]),
        resume_from=TEXTS,
        timeout=SECONDS,
        sync_interval=SECONDS,
    )
)
def test_the_runner_reads_what_the_operator_wrote(own: RunnerEnvironment) -> None:
    environ = written(own, PROMPT="settings", MODEL="settings", EFFORT="high")
    read = RunnerEnvironment.read({**environ, "ANTHROPIC_API_KEY": "key"})
    left = {"model": own.model or "settings", "effort": own.effort or "high"}
    assert read == replace(own, anthropic_api_key="key", **left)
    assert environ["SESSION_VARIABLE_A"] == "$(GIT_TOKEN)"


def test_no_secret_is_written_or_shown() -> None:
    names = [variable.name.lower() for variable in RUNNER_VARIABLES if variable.secret]
    assert len(names) == 5
    values: dict[str, Any] = dict.fromkeys(names, "unlikely-w0rd")
    own = RunnerEnvironment(session_name="fix", **values)
    assert "unlikely-w0rd" not in f"{written(own)} {own!r}"


def test_one_fault_is_one_line_and_only_the_named_are_read() -> None:
    with pytest.raises(SettingsError) as raised:
        RunnerEnvironment.read({**POD, "TIMEOUT": "5x", "ANTHROPIC_API_KEY": "k"})
    assert raised.value.one_line() == "TIMEOUT: '5x' is not valid (write a number)"
    with pytest.raises(SettingsError, match="ANTHROPIC_API_KEY: is not set"):
        read_task(sorted_variables(POD))
    assert RunnerEnvironment.read({**POD, "TIMEOUT": "5x"}, {"SESSION_NAME"}) == (
        RunnerEnvironment(session_name="fix")
    )


def test_the_table_names_fields_and_settings_that_there_are() -> None:
    known = {f"operator.{name}" for name in OperatorSettings.model_fields}
    schema = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    known |= {f"spec.{name}" for name in schema["spec"]["properties"]}
    llm = schema["spec"]["properties"]["llmSettings"]["properties"]
    known |= {f"spec.llmSettings.{name}" for name in llm}
    known |= {f"metadata.{name}" for name in ("name", "namespace", "uid", "generation")}
    named = {
        path for v in RUNNER_VARIABLES for path in re.findall(r"`([^`]+)`", v.set_by)
    }
    assert len(named) > 20 and named <= known
