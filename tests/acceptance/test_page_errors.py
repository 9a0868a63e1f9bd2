"""What a browser gets where a program gets a problem, and buttons that only those see who may press them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from midwatch.silences import Matcher
from midwatch.store.sql import SqlStore

from .cli import in_store, said
from .page_data import opening
from .server_process import Running, server_process

BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("errors")
    said(folder, "db", "upgrade")
    in_store(folder, lambda store: store.open_ticket(opening(), "ann"))
    with server_process(folder) as running:
        yield running


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("POST", "/subjects", 405),
        ("POST", "/tickets/1/hold", 403),
        ("GET", "/tickets/999", 404),
    ],
)
def test_an_error_is_a_page_for_a_browser_and_a_problem_for_a_program(
    server: Running, method: str, path: str, status: int
) -> None:
    foreign = {"sec-fetch-site": "cross-site"} if status == 403 else {}
    page = server.http.request(method, path, headers={**BROWSER, **foreign})
    assert page.status_code == status
    assert page.headers["content-type"].startswith("text/html")
    assert 'href="/tickets"' in page.text and "<h1>" in page.text
    answer = server.http.request(method, path, headers={"accept": "*/*", **foreign})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


def test_the_api_answers_a_browser_as_a_program(server: Running) -> None:
    answer = server.http.get("/api/v1/nowhere", headers=BROWSER)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_place_in_the_changes_that_cannot_be_read_is_refused(server: Running) -> None:
    """To go on with what comes from now on would lose changes without a word."""
    stream = {"accept": "text/event-stream"}
    for query, more in (("?after=soon", {}), ("", {"last-event-id": "soon"})):
        answer = server.http.get(f"/changes{query}", headers={**stream, **more})
        assert answer.status_code == 400
        assert "no place in the changes" in answer.json()["detail"]


def test_buttons_are_those_of_the_token(tmp_path: Path, server: Running) -> None:
    folder = server.log_file.parent
    for scope, silences in (("tickets:write", False), ("silences:write", True)):
        create = ("tokens", "create", "t", "--role", "operator", "--scope", "read")
        token = said(folder, *create, "--scope", scope).split()[-1]
        page = server.http.get(
            "/tickets/1", headers={**BROWSER, "authorization": f"Bearer {token}"}
        )
        assert ("/tickets/1/silence" in page.text) is silences
        assert ("/tickets/1/hold" in page.text) is not silences


def test_silences_and_deliveries_are_listed_and_a_silence_is_ended(
    server: Running,
) -> None:
    folder, hostile = server.log_file.parent, "<b>why</b>"
    matchers = [Matcher("subject", "=", "other")]

    async def seed(store: SqlStore) -> int:
        silence = await store.add_silence(
            matchers, author="ann", reason=hostile, seconds=600
        )
        asked = await store.investigate(
            "i-1", "db", "Why?", by="ci", callback_url="https://ci.example/?key=hidden1"
        )
        await store.resolve(asked.ticket_id, "ann", "known")
        return silence.id

    silence_id = in_store(folder, seed)
    page = server.http.get("/silences", headers=BROWSER).text
    assert "&lt;b&gt;why&lt;/b&gt;" in page and hostile not in page
    end = f"/silences/{silence_id}/expire"
    assert end in page
    assert server.http.post(end, headers=BROWSER).status_code == 303
    assert end not in server.http.get("/silences?ended=true", headers=BROWSER).text
    assert server.http.post(end, headers=BROWSER).status_code == 409
    page = server.http.get("/deliveries?state=due", headers=BROWSER).text
    assert "investigation" in page and "hidden1" not in page
    page = server.http.get("/deliveries?state=given_up", headers=BROWSER).text
    assert "There are none" in page
    answer = server.http.get("/deliveries?state=lost", headers=BROWSER)
    assert answer.status_code == 422
