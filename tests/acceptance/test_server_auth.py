"""Who may ask the server: tokens, the header of a proxy, this machine; and what other sites cannot do."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ..waiting import wait_until
from .cli import in_store, refused, said, said_json
from .server_process import Running, server_process

OPEN = "/api/v1/openapi.json"
"""An address that every principal may read."""
JSON_MD = Path(__file__).parents[2] / "docs" / "json.md"
ELSEWHERE: dict[str, Any] = {"url": "https://midwatch.example.org"}
"""Settings with which requests from this machine need a sign-in, too."""


def token(folder: Path, *options: str, name: str = "ci") -> str:
    return said(folder, "tokens", "create", name, *options).strip()


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def problem(answer: httpx2.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    return f"{body['detail']} ({body.get('hint', '')})"


def test_a_token_is_accepted_until_it_ends(tmp_path: Path) -> None:
    with server_process(tmp_path, {"server": ELSEWHERE}) as server:
        ask = server.http.get
        assert "sign in" in problem(ask(OPEN), 401)
        good, short = token(tmp_path), token(tmp_path, "--expires", "1s", name="short")
        assert ask(OPEN, headers=bearer(good)).status_code == 200
        basic = base64.b64encode(f"anyone:{good}".encode()).decode()
        assert ask(OPEN, headers={"authorization": f"Basic {basic}"}).status_code == 200
        told = problem(ask(OPEN, headers=bearer(good[:-1])), 401)
        assert "no token of Midwatch" in told
        told = problem(ask(OPEN, headers=bearer(f"{good[:-1]}~")), 401)
        assert "not known" in told
        assert "no token" in problem(ask(OPEN, headers={"authorization": "Dig"}), 401)
        _until(server, short, "has expired")
        [listed] = said_json(tmp_path, "tokens", "list")
        documented = JSON_MD.read_text()
        assert all(f"`{field}`" in documented for field in listed)
        assert (listed["name"], listed["scopes"]) == ("ci", ["read"])
        assert listed["last_used_at"] is not None
        assert "revoked" in said(tmp_path, "tokens", "revoke", str(listed["id"]))
        _until(server, good, "was revoked")
        assert said_json(tmp_path, "tokens", "list") == []
    log = server.log_file.read_text()
    assert good not in log and short not in log and basic not in log
    stored = (tmp_path / "midwatch.db").read_bytes()
    assert good.encode() not in stored


def _until(server: Running, secret: str, why: str) -> None:
    """Ask until the token is refused for this reason: a server knows a token for some seconds."""

    def ask() -> httpx2.Response:
        return server.http.get(OPEN, headers=bearer(secret))

    wait_until(lambda: ask().status_code == 401)
    assert why in problem(ask(), 401)


def test_what_no_token_can_be(tmp_path: Path) -> None:
    said(tmp_path, "db", "upgrade")
    create = ("tokens", "create", "ci")
    assert "is no scope" in refused(tmp_path, *create, "--scope", "write", code=2)
    assert "is no role" in refused(tmp_path, *create, "--role", "root", code=2)
    assert "never" in refused(tmp_path, *create, "--expires", "0s", code=2)
    assert "is empty" in refused(tmp_path, "tokens", "create", " ", code=2)
    assert "no token 7" in refused(tmp_path, "tokens", "revoke", "7")


def test_this_machine_needs_no_sign_in_where_nothing_else_is_set(
    tmp_path: Path,
) -> None:
    with server_process(tmp_path) as server:
        assert server.http.get(OPEN).status_code == 200
        # A reverse proxy of this machine: the request came from anywhere.
        for name in ("X-Forwarded-For", "Forwarded", "Via"):
            problem(server.http.get(OPEN, headers={name: "1.2.3.4"}), 401)
    for settings in (ELSEWHERE, {"listen": "0.0.0.0:0"}):
        with server_process(tmp_path, {"server": settings}) as server:
            url = server.url.replace("0.0.0.0", "127.0.0.1")
            problem(httpx2.get(f"{url}{OPEN}"), 401)


def test_a_header_counts_only_from_the_proxy(tmp_path: Path) -> None:
    proxy = {"addresses": ["127.0.0.2/32"], "groups_header": "X-Groups"}
    roles = {"viewers": ["*@example.org"], "operators": ["group:sre"]}
    settings = {"server": {"proxy": proxy, "roles": roles}}
    with server_process(tmp_path, settings) as server:
        named = {"x-forwarded-user": "ann@example.org"}
        problem(server.http.get(OPEN, headers=named), 401)
        transport = httpx2.HTTPTransport(local_address="127.0.0.2")
        with httpx2.Client(base_url=server.url, transport=transport) as through:
            assert through.get(OPEN, headers=named).status_code == 200
            problem(through.get(OPEN), 401)
            stranger = {"x-forwarded-user": "eve@example.com"}
            assert "has no role" in problem(through.get(OPEN, headers=stranger), 403)
            by_group = stranger | {"x-groups": "web, sre"}
            assert through.get(OPEN, headers=by_group).status_code == 200
            for other in (
                {"x-forwarded-user": "group:sre"},
                stranger | {"x-groups": "all@example.org"},
            ):
                assert "has no role" in problem(through.get(OPEN, headers=other), 403)
            # Alerts open and resolve tickets, which no viewer may.
            hook = "/hooks/generic"
            assert "alerts:write" in problem(through.post(hook, headers=named), 403)
            problem(through.post(hook, headers=by_group), 404)
            twice = [*named.items(), *stranger.items()]
            assert "twice" in problem(through.get(OPEN, headers=twice), 400)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1"])
def test_a_foreign_name_for_this_machine_is_refused(tmp_path: Path, host: str) -> None:
    with server_process(tmp_path) as server:
        answer = server.http.get(OPEN, headers={"host": host})
        assert "server.hosts" in problem(answer, 421)


def test_names_that_are_ours(tmp_path: Path) -> None:
    settings = {"server": {"hosts": ["alerts.internal"]}}
    with server_process(tmp_path, settings) as server:
        for host in ("localhost:1", "Alerts.Internal", "127.0.0.1", "[::1]:8470"):
            assert server.http.get(OPEN, headers={"host": host}).status_code == 200
        evil = {"host": "evil.example"}
        # A browser cannot be made to send a token that it does not have.
        secret = token(tmp_path)
        assert server.http.get(OPEN, headers=evil | bearer(secret)).status_code == 200


def test_another_site_changes_nothing(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:

        def send(**headers: str) -> httpx2.Response:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return server.http.post("/sign-out", headers=named)

        for headers in (
            {"sec_fetch_site": "cross-site"},
            {"sec_fetch_site": "same-site"},
            {"origin": "https://evil.example"},
            {"origin": "null"},
            {"origin": "http://[::1"},
            {"cookie": "midwatch=stolen"},  # no browser of today sends so little
        ):
            assert "another site" in problem(send(**headers), 403)
        for headers in ({}, {"origin": server.url}, {"sec_fetch_site": "same-origin"}):
            assert send(**headers).status_code == 303


def test_a_password_that_a_browser_sends_by_itself_is_no_proof_of_intent(
    tmp_path: Path,
) -> None:
    with server_process(tmp_path, {"server": ELSEWHERE}) as server:
        secret = token(tmp_path, "--scope", "tickets:write")
        basic = base64.b64encode(f"ann:{secret}".encode()).decode()
        foreign = {"origin": "https://evil.example"}
        given = {"authorization": f"Basic {basic}"}
        told = problem(server.http.post("/sign-out", headers=given | foreign), 403)
        assert "another site" in told
        assert server.http.post("/sign-out", headers=given).status_code == 303
        both = bearer(secret) | foreign
        assert server.http.post("/sign-out", headers=both).status_code == 303


def test_a_person_signs_in_with_a_token_and_out_again(tmp_path: Path) -> None:
    with server_process(tmp_path, {"server": ELSEWHERE}) as server:
        http, own = server.http, {"sec-fetch-site": "same-origin"}
        page = {"accept": "text/html"}
        led = http.get("/tickets?q=a%26b", headers=page)
        assert led.status_code == 303
        assert led.headers["location"] == "/sign-in?next=%2Ftickets%3Fq%3Da%2526b"
        form = http.get(led.headers["location"])
        assert 'value="/tickets?q=a%26b"' in form.text
        assert "script" not in form.headers["content-security-policy"].replace(
            "script-src 'self'", ""
        )
        wrong = http.post("/sign-in", headers=own, data={"token": "guess"})
        assert wrong.status_code == 401 and 'role="alert"' in wrong.text
        secret = token(tmp_path, "--scope", "read", "--expires", "1h", name="ann")
        given = {"token": secret, "next": "//evil.example"}
        done = http.post("/sign-in", headers=own, data=given)
        assert (done.status_code, done.headers["location"]) == (303, "/")
        kept = done.headers["set-cookie"]
        name, _, rest = kept.partition("=")
        value, _, attributes = rest.partition(";")
        assert name == "__Host-midwatch" and secret not in kept
        for attribute in ("Path=/", "Secure", "HttpOnly", "SameSite=lax"):
            assert attribute in attributes
        cookie = {"cookie": f"{name}={value}"}
        assert http.get(OPEN, headers=cookie).status_code == 200
        problem(http.get(OPEN, headers=bearer(value)), 401)
        made, sign_in = said_json(tmp_path, "tokens", "list")
        assert (sign_in["kind"], sign_in["scopes"]) == ("sign_in", ["read"])
        assert sign_in["expires_at"] <= made["expires_at"]
        again = http.post("/sign-in", headers=cookie | own, data={"token": secret})
        problem(http.get(OPEN, headers=cookie), 401)  # one sign-in follows another
        cookie = {"cookie": again.headers["set-cookie"].partition(";")[0]}
        out = http.post("/sign-out", headers=cookie | own)
        assert "Max-Age=0" in out.headers["set-cookie"]
        problem(http.get(OPEN, headers=cookie), 401)
    assert [one.id for one in in_store(tmp_path, lambda store: store.tokens())] == [
        made["id"]
    ]
