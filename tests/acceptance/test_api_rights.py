"""Who may do what: every route of the API, by role and by scope of a token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from .api_seed import SETTINGS, seed
from .cli import said
from .server_process import Running, server_process

DOCUMENT = Path(__file__).parents[2] / "docs" / "openapi.json"
SCOPES = (
    "read",
    "tickets:write",
    "silences:write",
    "sessions:write",
    "investigations:write",
    "changes:write",
    "actions",
)
BODIES = {
    "resolve": {"why": "done"},
    "silence": {"why": "known", "seconds": 60},
    "silences": {"reason": "x", "matchers": ["a=b"], "seconds": 60},
    "investigations": {"subject": "other", "question": "?"},
    "changes": {"title": "x", "subject": "box"},
}


def needed(method: str, path: str) -> tuple[str, str]:
    """Return the scope and the role that a route is for."""
    if method == "get":
        return "read", "viewer"
    if path.startswith("/api/v1/investigations"):
        return "investigations:write", "operator"
    if path.endswith("/silence") or path.startswith("/api/v1/silences"):
        return "silences:write", "operator"
    if path.startswith("/api/v1/changes"):
        return "changes:write", "operator"
    if "/actions/" in path:
        return "actions", "operator"
    if path.endswith(("/fix", "/approve-pull-requests")):
        return "sessions:write", "operator"
    return "tickets:write", "operator"


ROUTES = [
    (method, path)
    for path, methods in json.loads(DOCUMENT.read_text())["paths"].items()
    for method in methods
    if path.startswith("/api/")
]


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Running, dict[tuple[str, str], str]]]:
    folder = tmp_path_factory.mktemp("rights")
    seed(folder)
    tokens = {
        (role, scope): said(
            folder, "tokens", "create", "t", "--role", role, "--scope", scope
        ).strip()
        for role in ("viewer", "operator")
        for scope in SCOPES
    }
    settings = {**SETTINGS, "server": {"url": "https://midwatch.example.org"}}
    with server_process(folder, settings) as running:
        yield running, tokens


@pytest.mark.parametrize("method,path", ROUTES)
def test_each_route_asks_for_its_role_and_its_scope(
    method: str, path: str, server: tuple[Running, dict[tuple[str, str], str]]
) -> None:
    running, tokens = server
    names = (
        "ticket_id",
        "diagnosis_id",
        "silence_id",
        "evidence_id",
        "name",
        "change_id",
    )
    url = path.replace("{session_id}", "s-1").replace("{investigation_id}", "i-1")
    for name in names:
        url = url.replace(f"{{{name}}}", "E1" if name == "evidence_id" else "9")
    body = BODIES.get(path.rpartition("/")[2], {}) if method == "post" else None
    scope, least = needed(method, path)
    assert running.http.request(method, url, json=body).status_code == 401
    for (role, given), token in tokens.items():
        answer = running.http.request(
            method, url, json=body, headers={"authorization": f"Bearer {token}"}
        )
        may = given == scope and (role == "operator" or least == "viewer")
        assert (answer.status_code == 403) is not may, (role, given, answer.text)
        assert answer.status_code != 401


PAGES = [
    *(
        ("get", path, "read", "viewer")
        for path in (
            "/tickets",
            "/tickets/1",
            "/changes",
            "/subjects",
            "/charts",
            "/charts/data.json",
            "/sessions",
            "/sessions/s-1",
            "/sessions/s-1/diff",
            "/sessions/s-1/events",
        )
    ),
    *(
        ("post", f"/tickets/9/{name}", "tickets:write", "operator")
        for name in ("acknowledge", "hold", "unhold", "retry", "resolve")
    ),
    ("post", "/tickets/9/silence", "silences:write", "operator"),
    ("post", "/tickets/9/fix", "sessions:write", "operator"),
    *(
        ("post", f"/sessions/s-1/{name}", "sessions:write", "operator")
        for name in ("approve", "deny", "interrupt", "end", "send")
    ),
]


@pytest.mark.parametrize("method,path,scope,least", PAGES)
def test_each_page_asks_for_the_same(
    method: str,
    path: str,
    scope: str,
    least: str,
    server: tuple[Running, dict[tuple[str, str], str]],
) -> None:
    running, tokens = server
    form = {"request_id": "r-1", "text": "x", "seconds": "60"}
    data = form if method == "post" else None
    for (role, given), token in tokens.items():
        headers = {"authorization": f"Bearer {token}"}
        # A stream of changes has no end.
        with running.http.stream(method, path, data=data, headers=headers) as answer:
            may = given == scope and (role == "operator" or least == "viewer")
            assert (answer.status_code == 403) is not may, (role, given)
