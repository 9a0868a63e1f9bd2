"""How the API is reached, as it is read from an environment."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import anthropic
import pytest
import urllib3.util.connection  # noqa: F401: its import opens a socket, which no unit test may

from midwatch.errors import SettingsError
from midwatch.provider import (
    ApiAccess,
    Provider,
    access_of,
    check_proxies,
    cloud_client,
    parse_headers,
)


@pytest.mark.parametrize(
    "environ",
    [
        {"ANTHROPIC_API_KEY": "sk-1"},
        {"ANTHROPIC_AUTH_TOKEN": "tok"},
        {"ANTHROPIC_API_KEY": "sk-1", "ANTHROPIC_AUTH_TOKEN": "tok"},
        {"ANTHROPIC_API_KEY": "", "ANTHROPIC_AUTH_TOKEN": "tok"},
        {"ANTHROPIC_API_KEY": "sk-1", "ANTHROPIC_BASE_URL": "https://gateway/x/"},
        {
            "ANTHROPIC_API_KEY": "k",
            "ANTHROPIC_CUSTOM_HEADERS": "X-A: 1\nX-B:2:3\n\njunk",
        },
    ],
)
def test_an_environment_is_read_as_the_sdk_reads_it(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    client, access = anthropic.Anthropic(), ApiAccess.from_environ(environ)
    assert (access.api_key, access.auth_token) == (client.api_key, client.auth_token)
    given = str(client.base_url).rstrip("/")
    assert (access.base_url or "https://api.anthropic.com").rstrip("/") == given
    sent = client.default_headers
    assert {name: sent[name] for name in access.headers} == access.headers
    assert len(sent) == len(
        anthropic.Anthropic(
            api_key="k", default_headers={name: "" for name in access.headers}
        ).default_headers
    )


def test_arguments_come_before_the_environment() -> None:
    environ = {"ANTHROPIC_API_KEY": "env", "ANTHROPIC_BASE_URL": "https://env"}
    access = ApiAccess.from_environ(environ, api_key="arg", base_url="https://arg")
    assert (access.api_key, access.base_url) == ("arg", "https://arg")


@pytest.mark.parametrize(
    "text", ["X Y: 1", ": 1", "X-A: a\x00b", "X-A: a\rX-B: c", "X-Ä: 1", "X-A: schön"]
)
def test_headers_that_http_does_not_have_are_refused(text: str) -> None:
    with pytest.raises(SettingsError) as raised:
        parse_headers(text)
    assert "ANTHROPIC_CUSTOM_HEADERS" in raised.value.one_line()


def test_only_a_key_needs_no_relay() -> None:
    plain = {"ANTHROPIC_API_KEY": "k", "HTTPS_PROXY": "http://proxy:3128"}
    assert not ApiAccess.from_environ(plain).has_secrets
    assert not ApiAccess.from_environ(plain).secret_proxies
    for more in (
        {"ANTHROPIC_API_KEY": "", "ANTHROPIC_AUTH_TOKEN": "t"},
        {"ANTHROPIC_CUSTOM_HEADERS": "X-A: 1"},
        {"ANTHROPIC_BASE_URL": "https://me:secret@gateway"},
    ):
        assert ApiAccess.from_environ(plain | more).has_secrets
    assert ApiAccess.from_environ(plain, provider="vertex").has_secrets
    for url in ("http://me:pw@proxy:1", "me:pw@proxy:1", "https://token@proxy"):
        assert ApiAccess.from_environ({"https_proxy": url}).secret_proxies


def test_every_secret_is_known_to_the_redactor() -> None:
    access = ApiAccess.from_environ(
        {
            "ANTHROPIC_API_KEY": "the-key",
            "ANTHROPIC_CUSTOM_HEADERS": "X-Gateway: Bearer the-gateway-word\nX-Team: ops",
            "ANTHROPIC_BEDROCK_BASE_URL": "https://me:the%2Furl@gateway",
            "HTTPS_PROXY": "http://me:the-password@proxy",
            "AWS_SECRET_ACCESS_KEY": "the-aws-secret",
        },
        provider="bedrock",
    )
    known = set(access.secrets)
    assert known >= {"the-key", "the-gateway-word", "Bearer the-gateway-word"}
    assert known >= {"the%2Furl", "the/url", "the-password", "the-aws-secret"}
    assert "ops" not in known and "the-" not in repr(access)


@pytest.mark.parametrize("kind", [anthropic.Anthropic, anthropic.AsyncAnthropic])
def test_a_client_of_the_sdk_is_taken_with_its_headers(kind: Any) -> None:
    headers = {"X-Team": "ops", "Authorization": "Bearer other"}
    client = kind(
        auth_token="tok", base_url="https://gateway/", default_headers=headers
    )
    access = access_of(client)
    assert access.auth_token == "tok" and access.api_key is None
    assert access.base_url == "https://gateway" and access.headers == headers
    plain = access_of(kind(api_key="sk-1"))
    assert plain.api_key == "sk-1" and not plain.headers and not plain.needs_relay


def test_a_client_of_a_cloud_signs_the_requests_itself() -> None:
    client = anthropic.AsyncAnthropicBedrock(api_key="tok", aws_region="eu-west-1")
    access = access_of(client)
    assert access.provider == "bedrock" and access.client is client
    vertex = anthropic.AnthropicVertex(
        region="global", project_id="p", access_token="t"
    )
    assert access_of(vertex).provider == "vertex"


@pytest.mark.parametrize(
    ("provider", "environ", "named"),
    [
        ("bedrock", {"AWS_BEARER_TOKEN_BEDROCK": "t"}, "AWS_REGION"),
        ("vertex", {}, "CLOUD_ML_REGION"),
        ("vertex", {"CLOUD_ML_REGION": "global"}, "ANTHROPIC_VERTEX_PROJECT_ID"),
    ],
)
def test_what_a_cloud_lacks_is_named(
    provider: Provider, environ: dict[str, str], named: str
) -> None:
    access = ApiAccess.from_environ(environ, provider=provider)
    with pytest.raises(SettingsError) as raised:
        cloud_client(access)
    missing = find_spec("google") is None and provider == "vertex"
    assert ("midwatch[vertex]" if missing else named) in raised.value.one_line()


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    "url", [":::bad", "ftp://u:dummy-pass@h", "http://u:dummy-pass@h:x", "http://h:1"]
)
def test_a_proxy_that_cannot_be_used_is_named(name: str, url: str) -> None:
    access = ApiAccess.from_environ({"ANTHROPIC_AUTH_TOKEN": "tok", name: url})
    if url == "http://h:1":
        check_proxies(access)
        return
    with pytest.raises(SettingsError) as caught:
        check_proxies(access)
    assert caught.value.path == name and caught.value.hint
    assert "dummy-pass" not in caught.value.one_line()


@pytest.mark.skipif(find_spec("socksio") is not None, reason="socksio is installed")
@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_a_socks_proxy_needs_a_library(scheme: str) -> None:
    access = ApiAccess.from_environ({"ALL_PROXY": f"{scheme}://127.0.0.1:1080"})
    with pytest.raises(SettingsError, match="SOCKS") as caught:
        check_proxies(access)
    assert "socksio" in caught.value.one_line()
