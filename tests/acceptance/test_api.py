"""The HTTP API: pages, conditional requests, requests that are carried out once, and what each change leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest

from midwatch.cli.tickets import user_at_host
from midwatch.model import Severity
from midwatch.server.api.investigation_api import check_callback
from midwatch.server.problems import Unprocessable
from midwatch.store.sql import SqlStore
from midwatch.testing.fakes import open_tickets

from .api_seed import SETTINGS, seed
from .cli import in_store, said_json
from .server_process import Running, server_process

API = "/api/v1"
ME = user_at_host()
HOSTS = SETTINGS["notifications"]["callback_hosts"]


def problem(response: httpx2.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status and body["title"]
    return str(body["detail"])


def got(server: Running, path: str, status: int = 200) -> Any:
    response = server.http.get(f"{API}{path}")
    assert response.status_code == status, response.text
    return response.json()


def posted(server: Running, path: str, body: Any, **headers: str) -> httpx2.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.http.post(f"{API}{path}", json=body, headers=named)


def test_what_programs_read_is_what_the_command_line_prints(tmp_path: Path) -> None:
    seed(tmp_path)
    with server_process(tmp_path, SETTINGS) as server:
        assert got(server, "/tickets/1") == said_json(tmp_path, "tickets", "show", "1")
        assert got(server, "/tickets/2/history")["items"] == said_json(
            tmp_path, "tickets", "history", "2"
        )
        listed = said_json(tmp_path, "tickets", "list")
        assert got(server, "/tickets") == {"items": listed, "next": None}
        stats = said_json(tmp_path, "stats", "--within", "7d")
        assert {**got(server, "/stats"), "since": 0} == {**stats, "since": 0}
        diagnosis = got(server, "/tickets/1")["diagnosis"]
        assert got(server, "/diagnoses/1") == {**diagnosis, "settled_because": None}
        [piece] = got(server, "/diagnoses/1/evidence")["items"]
        assert piece == diagnosis["evidence"][0]
        assert got(server, "/diagnoses/1/evidence/E1") == piece
        assert got(server, "/tickets/1/diagnoses")["items"] == [diagnosis]
        [box] = got(server, "/subjects")["items"]
        assert (box["name"], box["unresolved"]) == (
            "box",
            {"critical": 1, "warning": 1},
        )
        for missing in (
            "/tickets/9",
            "/diagnoses/9",
            "/diagnoses/1/evidence/E9",
            "/sessions/s-9",
            "/subjects/other",
            "/silences/9",
            "/investigations/i-9",
            "/investigations/i-9/report",
            "/other",
        ):
            assert problem(server.http.get(f"{API}{missing}"), 404)


def test_pages_miss_nothing_while_tickets_open(tmp_path: Path) -> None:
    """Each page is asked for after more has opened in front of it and behind it."""
    seed(tmp_path)
    names = [f"c{number:02}" for number in range(20)]

    async def many(store: SqlStore) -> None:
        await open_tickets(store, *names, subject="many", severity=Severity.INFO)

    in_store(tmp_path, many)
    with server_process(tmp_path, SETTINGS) as server:
        for order in ("urgent", "newest"):
            seen: list[str] = []
            asked: dict[str, Any] = {"subject": "many", "limit": 6, "order": order}
            cursor: dict[str, Any] = {}
            while True:
                page = server.http.get(
                    f"{API}/tickets", params={**asked, **cursor}
                ).json()
                seen += [one["component"] for one in page["items"]]
                if page["next"] is None:
                    break
                cursor = {"cursor": page["next"]}
                extra = f"{order} {len(seen)}"

                async def more(store: SqlStore, extra: str = extra) -> None:
                    await open_tickets(
                        store, extra, subject="many", severity=Severity.CRITICAL
                    )

                in_store(tmp_path, more)
            old = [one for one in seen if one in names]
            assert old == (names if order == "urgent" else names[::-1])
            assert len(set(seen)) == len(seen)
        refused = server.http.get(f"{API}/tickets", params={"cursor": "bm90IG9uZQ"})
        assert "not one of this list" in problem(refused, 400)
        found = got(server, "/tickets?q=FULL root")["items"]
        assert [one["id"] for one in found] == [1]


def test_a_change_can_be_bound_to_what_was_read(tmp_path: Path) -> None:
    seed(tmp_path)
    with server_process(tmp_path, SETTINGS) as server:
        first = server.http.get(f"{API}/tickets/2")
        tag = first.headers["etag"]
        again = server.http.get(f"{API}/tickets/2", headers={"if-none-match": tag})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
        weak = {"if-none-match": f'"x", W/{tag}'}
        assert server.http.get(f"{API}/tickets/2", headers=weak).status_code == 304
        done = posted(server, "/tickets/2/acknowledge", {"why": "mine"}, if_match=tag)
        assert done.json()["acknowledged_by"] == ME
        late = posted(server, "/tickets/2/resolve", {"why": "gone"}, if_match=tag)
        assert "changed since it was read" in problem(late, 412)
        foreign = posted(server, "/tickets/2/hold", {}, if_match='"abc"')
        assert problem(foreign, 400)
        now = done.headers["etag"]
        held = posted(server, "/tickets/2/hold", {}, if_match=now)
        assert held.json()["held"] is True
        assert posted(server, "/tickets/2/unhold", {}, if_match="*").status_code == 200
        assert problem(posted(server, "/tickets/2/resolve", {"why": "  "}), 422)
        assert problem(posted(server, "/tickets/2/hold", {"wy": "typo"}), 422)
        why = "password=hunter2hunter2 was wrong"
        resolved = posted(server, "/tickets/2/resolve", {"why": why}).json()
        assert resolved["status"] == "resolved"
        assert "hunter2" not in resolved["resolution"]
        assert problem(posted(server, "/tickets/2/retry", {}), 409)
    actions = [one["action"] for one in said_json(tmp_path, "tickets", "history", "2")]
    assert actions[-4:] == ["acknowledge", "hold", "unhold", "resolve"]


def test_a_request_with_a_key_is_carried_out_once(tmp_path: Path) -> None:
    seed(tmp_path)
    asked = {"subject": "box", "question": "Why is it slow?"}
    with server_process(tmp_path, SETTINGS) as server:
        first = posted(server, "/investigations", asked, idempotency_key="k1")
        assert first.status_code == 202
        for _ in range(2):
            again = posted(server, "/investigations", asked, idempotency_key="k1")
            assert again.json() == first.json() and again.status_code == 202
            assert again.headers["location"] == first.headers["location"]
            assert again.headers["idempotency-replayed"] == "true"
        blank = posted(server, "/investigations", {**asked, "question": "\x00"})
        assert "no character" in problem(blank, 422)
        other = posted(
            server, "/investigations", {**asked, "question": "?"}, idempotency_key="k1"
        )
        assert "another request" in problem(other, 422)
        where = posted(server, "/tickets/1/hold", {}, idempotency_key="k1")
        assert problem(where, 422)
        assert len(got(server, "/investigations")["items"]) == 1
        wrong = posted(server, "/tickets/3/hold", {}, idempotency_key="k2")
        same = posted(server, "/tickets/3/hold", {}, idempotency_key="k2")
        assert problem(wrong, 409) == problem(same, 409)
        assert same.headers["idempotency-replayed"] == "true"
        assert problem(posted(server, "/tickets/1/hold", {}, idempotency_key=""), 422)


def test_silences_come_and_go(tmp_path: Path) -> None:
    seed(tmp_path)
    with server_process(tmp_path, SETTINGS) as server:
        body = {"why": "known", "seconds": 3600}
        made = posted(server, "/tickets/2/silence", body)
        assert made.status_code == 201
        silence = made.json()
        assert (silence["state"], silence["author"]) == ("active", ME)
        assert got(server, made.headers["location"].removeprefix(API)) == silence
        weekly = {
            "reason": "backup",
            "matchers": ['severity="info"', "subject!=web"],
            "ends_at": "2099-01-01T00:00:00Z",
            "rrule": "FREQ=WEEKLY;BYDAY=SU;BYHOUR=3;BYMINUTE=0",
            "window_seconds": 7200,
            "timezone": "Europe/Berlin",
        }
        second = posted(server, "/silences", weekly)
        assert second.status_code == 201, second.text
        page = got(server, "/silences?limit=1")
        assert [one["id"] for one in page["items"]] == [second.json()["id"]]
        rest = got(server, f"/silences?limit=1&cursor={page['next']}")
        assert [one["id"] for one in rest["items"]] == [silence["id"]]
        ended = server.http.delete(f"{API}/silences/{silence['id']}")
        assert ended.json()["expired_by"] == ME
        gone = server.http.delete(f"{API}/silences/{silence['id']}")
        assert problem(gone, 409)
        assert len(got(server, "/silences")["items"]) == 1
        assert len(got(server, "/silences?ended=true")["items"]) == 2
        for wrong in (
            {**weekly, "matchers": ["=x"]},
            {**weekly, "rrule": "FREQ=SOMETIMES"},
            {**weekly, "rrule": None},
            {**weekly, "timezone": "Mars/Olympus"},
            {**weekly, "ends_at": "1999-01-01T00:00:00Z"},
            {**weekly, "ends_at": "0001-01-01T00:00:00+23:00"},
        ):
            assert problem(posted(server, "/silences", wrong), 422)


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://ci.example.org:8080/",
        "http://ci.example.org@10.0.0.1/",
        "http://ci.example.org.evil.example/",
        "http://10.0.0.1/#ci.example.org",
        "http://10.0.0.1\\@ci.example.org/",
        "file://ci.example.org/etc/passwd",
        "gopher://127.0.0.1:8080/",
        "http://127.0.0.1:99999/",
        "http://[::1/",
        "//ci.example.org/",
    ],
)
def test_nothing_is_called_back_that_the_settings_do_not_name(url: str) -> None:
    with pytest.raises(Unprocessable):
        check_callback(url, HOSTS)


def test_a_host_of_the_settings_is_called_back() -> None:
    for url in ("https://ci.example.org/done?id=1", "http://127.0.0.1:8080/"):
        check_callback(url, HOSTS)
