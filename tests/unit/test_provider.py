"""How the API is reached, as it is read from an environment."""

from __future__ import annotations

import anthropic
import pytest

from midwatch.errors import SettingsError
from midwatch.provider import ApiAccess, check_provider, parse_headers


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
            "ANTHROPIC_BASE_URL": "https://me:the%2Furl@gateway",
            "HTTPS_PROXY": "http://me:the-password@proxy",
            "AWS_SECRET_ACCESS_KEY": "the-aws-secret",
        }
    )
    known = set(access.secrets)
    assert known >= {"the-key", "the-gateway-word", "Bearer the-gateway-word"}
    assert known >= {"the%2Furl", "the/url", "the-password", "the-aws-secret"}
    assert "ops" not in known and "the-" not in repr(access)


def test_a_provider_is_one_of_three() -> None:
    assert check_provider("bedrock") == "bedrock"
    with pytest.raises(SettingsError, match="azure"):
        check_provider("azure")
