"""Sign-in through an OpenID Connect provider, with one on loopback that checks what a client has to prove."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from .cli import refused, said_json
from .oidc_provider import CLIENT, SECRET, Provider, provider
from .server_process import Running, server_process
from .test_server_auth import OPEN

PUBLIC = "https://midwatch.example.org"


@pytest.fixture
def idp() -> Iterator[Provider]:
    with provider() as running:
        yield running


def settings(idp: Provider, **roles: list[str]) -> dict[str, Any]:
    oidc = {"issuer": idp.url, "client_id": CLIENT, "client_secret": "${OIDC_SECRET}"}
    roles = roles or {"operators": ["*@example.org"]}
    return {"server": {"url": PUBLIC, "oidc": oidc, "roles": roles}}


ENV = {"OIDC_SECRET": SECRET}


def cookies_of(answer: httpx2.Response) -> dict[str, str]:
    """Cookies as a browser keeps them; httpx2 sends no secure ones over HTTP."""
    found = {}
    for header in answer.headers.get_list("set-cookie"):
        name, _, rest = header.partition("=")
        assert "Secure" in rest and "HttpOnly" in rest and "SameSite=lax" in rest
        found[name] = rest.partition(";")[0]
    return found


def sent(cookies: dict[str, str]) -> dict[str, str]:
    return {"cookie": "; ".join(f"{name}={one}" for name, one in cookies.items())}


def to_provider(
    server: Running, target: str = "/tickets"
) -> tuple[str, dict[str, str]]:
    """Where the provider sends the browser back to, as a path, and the cookies so far."""
    begun = server.http.get("/sign-in/provider", params={"next": target})
    assert begun.status_code == 303, begun.text
    back = httpx2.get(begun.headers["location"])
    assert back.status_code == 302
    location = back.headers["location"]
    assert location.startswith(f"{PUBLIC}/sign-in/done?")
    return location.removeprefix(PUBLIC), cookies_of(begun)


def test_a_person_signs_in_with_the_role_of_the_settings(
    tmp_path: Path, idp: Provider
) -> None:
    with server_process(tmp_path, settings(idp), env=ENV) as server:
        assert "/sign-in/provider" in server.http.get("/sign-in").text
        back, begun = to_provider(server, "/tickets?status=open")
        done = server.http.get(back, headers=sent(begun))
        assert done.status_code == 303, done.text
        assert done.headers["location"] == "/tickets?status=open"
        cookies = cookies_of(done)
        assert not cookies.pop("__Host-midwatch-sign-in").strip('"')
        answer = server.http.get(OPEN, headers=sent(cookies))
        assert answer.status_code == 200
        assert "max-age" in answer.headers["strict-transport-security"]
        # The same answer of the provider cannot be used twice.
        again = server.http.get(back, headers=sent(begun))
        assert again.status_code == 400 and "invalid_grant" in again.text
    [sign_in] = said_json(tmp_path, "tokens", "list", env=ENV)
    assert (sign_in["name"], sign_in["role"]) == ("ann@example.org", "operator")
    assert sign_in["created_by"] == "oidc"
    log = server.log_file.read_text()
    assert SECRET not in log and "code-0" not in log


def test_an_answer_for_another_browser_is_refused(
    tmp_path: Path, idp: Provider
) -> None:
    with server_process(tmp_path, settings(idp), env=ENV) as server:
        back, begun = to_provider(server)
        without = server.http.get(back)
        assert without.status_code == 400 and "no sign-in was begun" in without.text
        _, other = to_provider(server)
        mixed = server.http.get(back, headers=sent(other))
        assert mixed.status_code == 400 and "another sign-in" in mixed.text
        denied = back.partition("?")[0] + "?error=access_denied&state="
        state = begun["__Host-midwatch-sign-in"].partition(".")[0].strip('"')
        told = server.http.get(denied + state, headers=sent(begun))
        assert told.status_code == 400 and "access_denied" in told.text


HOUR = 3600
UNPROVEN: list[tuple[dict[str, Any], int, str]] = [
    ({"nonce": "another"}, 400, "nonce"),
    ({"aud": "another"}, 400, "aud"),
    ({"aud": [CLIENT, "another"], "azp": "another"}, 400, "azp"),
    ({"iss": "https://another.example"}, 400, "iss"),
    ({"exp": int(time.time()) - HOUR}, 400, "expired"),
    ({"iat": int(time.time()) + 24 * HOUR}, 400, "not valid"),
    ({"email_verified": False}, 403, "verified"),
    ({"email_verified": "true"}, 403, "verified"),
    ({"email": ""}, 403, "no email"),
    ({"email": ["ann@example.org"]}, 403, "no email"),
    ({"email": "eve@example.com"}, 403, "has no role"),
    ({"email": "x<script>alert(1)</script>"}, 403, "x&lt;script&gt;"),
]


def test_a_token_that_does_not_prove_it_signs_nobody_in(
    tmp_path: Path, idp: Provider
) -> None:
    with server_process(tmp_path, settings(idp), env=ENV) as server:
        for claims, status, why in UNPROVEN:
            idp.claims = claims
            back, begun = to_provider(server)
            told = server.http.get(back, headers=sent(begun))
            assert told.status_code == status and why in told.text, (claims, told.text)
            assert "__Host-midwatch" not in cookies_of(told)
        idp.claims = {}
        for fault, status in (
            ("signed by another", 400),
            ("signed with the client's secret", 400),
            ("signed with a key of another kind", 400),
            ("down", 503),
        ):
            back, begun = to_provider(server)
            idp.err(fault)
            told = server.http.get(back, headers=sent(begun))
            assert told.status_code == status, (fault, told.text)
            assert "__Host-midwatch" not in cookies_of(told)
    assert said_json(tmp_path, "tokens", "list", env=ENV) == []


def test_a_new_key_of_the_provider_is_read(tmp_path: Path, idp: Provider) -> None:
    roles = {"admins": ["group:sre"]}
    with server_process(tmp_path, settings(idp, **roles), env=ENV) as server:
        first, _ = to_provider(server)
        idp.claims = {"groups": ["web", "sre"]}
        idp.err("signed by another")
        idp.published = [idp.key]
        back, begun = to_provider(server)
        assert server.http.get(back, headers=sent(begun)).status_code == 303


def test_a_provider_under_another_name_is_refused(
    tmp_path: Path, idp: Provider
) -> None:
    chosen = settings(idp)
    idp.err("renamed")
    with server_process(tmp_path, chosen, env=ENV) as server:
        told = server.http.get("/sign-in/provider")
        assert told.status_code == 503 and "elsewhere.example" in told.text


def test_settings_that_cannot_work(tmp_path: Path, idp: Provider) -> None:
    chosen = settings(idp)["server"] | {"listen": "127.0.0.1:0"}
    for wrong, said in (
        ({"url": None}, "server.url"),
        ({"oidc": {**chosen["oidc"], "client_secret_file": "none"}}, "secret_file"),
        ({"certificate_file": "none"}, "server.certificate_file"),
    ):
        written = {"server": {**chosen, **wrong}}
        (tmp_path / "midwatch.yaml").write_text(json.dumps(written))
        assert said in refused(tmp_path, "serve", env=ENV, code=2)
