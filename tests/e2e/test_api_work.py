"""What the API starts: an investigation that an agent answers, and a session that works on a ticket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from midwatch.cli.tickets import user_at_host
from midwatch.store.schema import deliveries
from midwatch.store.sql import SqlStore
from midwatch.testing.fakes import answer, open_tickets
from midwatch.testing.messages_api import Answer, Hold, Rule, ScriptedMessagesAPI

from ..acceptance.cli import in_store, said, said_json
from ..acceptance.server_process import Running, server_process
from ..acceptance.session_cli import asking, make_repositories
from ..waiting import PATIENCE, wait_until

API = "/api/v1"
QUIET = [
    "echo",
    '{"violations": [], "evidence": [{"title": "Load", "text": "load 0.5"}]}',
]


def until(server: Running, path: str, **fields: Any) -> dict[str, Any]:
    """The document at a path, once it has these fields."""
    found: dict[str, Any] = {}

    def look() -> bool:
        response = server.http.get(f"{API}{path}")
        found.clear()
        found.update(response.json())
        return fields.items() <= found.items()

    wait_until(look)
    return found


def test_an_investigation_is_answered_by_the_agent(tmp_path: Path) -> None:
    """While the monitor, which sees no fault, looks on."""
    settings = {
        "subjects": [{"name": "box", "kind": "command", "command": QUIET}],
        "monitor": {"interval": "1s"},
        "agent": {"poll_interval": "200ms"},
        "notifications": {"callback_hosts": ["ci.example.org"]},
    }
    hold = Hold(Answer(structured=answer("the disk is slow", explains=(1,))))
    alert = {
        "labels": {
            "alertname": "SlowCheckout",
            "team": "shop",
            "token": "hunter2hunter2",
        },
        "annotations": {"summary": "p99 is over 2 s"},
        "status": "firing",
    }
    body = {
        "subject": "box",
        "alert": alert,
        "callback_url": "https://ci.example.org/done",
    }
    with (
        ScriptedMessagesAPI(Rule([hold])) as api,
        server_process(tmp_path, settings, command="up", env=asking(api)) as server,
    ):
        made = server.http.post(f"{API}/investigations", json=body)
        assert made.status_code == 202, made.text
        where = made.headers["location"].removeprefix(API)
        assert made.json()["question"] == (
            "What is behind the alert SlowCheckout? p99 is over 2 s"
        )
        hold.arrived_sync(timeout=PATIENCE)
        assert until(server, where, state="running")["diagnosis"] is None
        polled = server.http.get(f"{API}/subjects/box").json()["last_polled_at"]
        wait_until(
            lambda: polled
            != server.http.get(f"{API}/subjects/box").json()["last_polled_at"]
        )
        hold.release()
        done = until(server, where, state="answered")
        assert done["diagnosis"]["verdict"] in ("identified", "suspected")
        prompt = api.calls[0].prompt
        assert "What is behind the alert SlowCheckout?" in prompt
        assert "team: shop" in prompt and "hunter2" not in prompt
        report = server.http.get(f"{API}{where}/report")
        assert report.headers["content-type"] == "text/markdown; charset=utf-8"
        assert "**answered**" in report.text and done["id"] in report.text
        ticket = server.http.get(f"{API}/tickets/{done['ticket']}").json()
        assert ticket["status"] == "resolved"
        ended = server.http.post(f"{API}{where}/cancel")
        assert ended.status_code == 409

    async def due(store: SqlStore) -> list[Any]:
        columns = (deliveries.c.target, deliveries.c.event, deliveries.c.content)

        def read(connection: Connection) -> list[Any]:
            return [tuple(row) for row in connection.execute(select(*columns))]

        return await store.transactions.read(read)

    assert in_store(tmp_path, due) == [
        (body["callback_url"], "investigation", {"investigation": done["id"]})
    ]


def test_a_session_is_started_for_a_ticket(tmp_path: Path) -> None:
    """It works with what the person adds, names who started it, and is not the server's child to lose."""
    app, _ = make_repositories(tmp_path)
    settings = {
        "subjects": [{"name": "box", "kind": "host", "repositories": [{"url": app}]}],
        "sessions": {"folder": str(tmp_path / "state"), "sandbox": "off"},
    }
    said(tmp_path, "db", "upgrade")

    async def seed(store: SqlStore) -> None:
        await open_tickets(store, "locked", subject="box")

    in_store(tmp_path, seed)
    hold = Hold(Answer("Fixed."))
    with ScriptedMessagesAPI(Rule([hold], tools=True)) as api:
        with server_process(tmp_path, settings, env=asking(api)) as server:
            asked = {"prompt": "Look at main.py first.", "interactive": False}
            made = server.http.post(f"{API}/tickets/1/fix", json=asked)
            assert made.status_code == 202, made.text
            where = made.headers["location"].removeprefix(API)
            hold.arrived_sync(timeout=PATIENCE)
            assert until(server, where, phase="Running")["ticket"] == 1
        hold.release()
        id_ = made.json()["session"]
        wait_until(
            lambda: said_json(tmp_path, "session", "show", id_)["phase"] == "Completed"
        )
        assert "Look at main.py first." in api.calls[0].prompt
    wait_until(
        lambda: said_json(tmp_path, "tickets", "history", "1")[-1]["why"]
        == f"session {id_}: Completed"
    )
    rows = said_json(tmp_path, "tickets", "history", "1")
    notes = [(row["actor"], row["why"]) for row in rows if row["action"] == "session"]
    assert notes == [
        (user_at_host(), f"session {id_}: {word}") for word in ("started", "Completed")
    ]
