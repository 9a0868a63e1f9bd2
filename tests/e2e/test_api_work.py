"""What the API starts: an investigation that an agent answers, and a session that works on a ticket."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import TextContent
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


def test_what_is_sent_twice_starts_one_session(tmp_path: Path) -> None:
    """The page's form by a double click, and a tool of MCP that is called again while its session works."""
    app, _ = make_repositories(tmp_path)
    settings = {
        "subjects": [{"name": "box", "kind": "host", "repositories": [{"url": app}]}],
        "sessions": {"folder": str(tmp_path / "state"), "sandbox": "off"},
        "server": {"mcp": True},
    }
    said(tmp_path, "db", "upgrade")

    async def seed(store: SqlStore) -> None:
        await open_tickets(store, "locked", subject="box")

    in_store(tmp_path, seed)
    holds = [Hold(Answer("Fixed.")) for _ in range(2)]
    with ScriptedMessagesAPI(Rule([*holds], tools=True)) as api:
        with server_process(tmp_path, settings, env=asking(api)) as server:
            form = server.http.get("/tickets/1").text
            [key] = re.findall('name="key" value="([^"]+)"', form)
            with ThreadPoolExecutor(2) as pool:
                clicks = pool.map(
                    lambda _: server.http.post(
                        "/tickets/1/fix",
                        data={"key": key, "prompt": "Look."},
                        headers={"Origin": server.url},
                    ),
                    range(2),
                )
                places = [(one.status_code, one.headers["location"]) for one in clicks]
            assert len({*places}) == 1 and places[0][0] == 303
            first = places[0][1].removeprefix("/sessions/")
            said_twice = asyncio.run(_called_twice(server.url))
            assert len({*said_twice}) == 1 and first not in said_twice[0]
            assert len(said_json(tmp_path, "session", "list")) == 2
            for hold in holds:
                hold.arrived_sync(timeout=PATIENCE)
                hold.release()
            for one in said_json(tmp_path, "session", "list"):
                said(tmp_path, "session", "end", one["id"])
            wait_until(
                lambda: not {"Pending", "Creating", "Running"}
                & {one["phase"] for one in said_json(tmp_path, "session", "list")}
            )


async def _called_twice(url: str) -> list[str]:
    async with Client(streamable_http_client(f"{url}/mcp")) as client:

        async def call() -> str:
            result = await client.call_tool("start_fix", {"ticket": 1})
            [content] = result.content
            assert isinstance(content, TextContent) and not result.is_error, content
            return content.text

        return [*await asyncio.gather(call(), call()), await call()]
