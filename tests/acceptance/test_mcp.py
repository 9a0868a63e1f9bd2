"""MCP: the real `claude` program and the SDK's client read tickets and change them, as far as their rights go."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import TextContent

from midwatch.testing.messages_api import Answer, Rule, ScriptedMessagesAPI, ToolUse

from .api_seed import HOSTILE, SETTINGS, seed
from .cli import MIDWATCH, said, said_json
from .server_process import server_process
from .session_cli import asking, events_of, make_desk, make_repositories

READING = {
    "list_tickets",
    "show_ticket",
    "show_evidence",
    "search_past_incidents",
    "list_subjects",
    "show_stats",
    "list_sessions",
    "list_changes",
    "list_actions",
}


def use(tool: str, **arguments: Any) -> Answer:
    return Answer(tool_uses=[ToolUse(f"mcp__midwatch__{tool}", arguments)])


def token(folder: Path, *scopes: str) -> dict[str, str]:
    options = [word for scope in ("mcp", *scopes) for word in ("--scope", scope)]
    secret = said(folder, "tokens", "create", "claude", *options).strip()
    return {"Authorization": f"Bearer {secret}"}


def claude_with(desk: Path, server: dict[str, Any], *answers: Answer | str) -> str:
    """Let the real `claude` program call tools of a server, as a session. Return all that the tools answered."""
    make_desk(desk, extra=f"  mcp_servers: {json.dumps({'midwatch': server})}\n")
    repository, _ = make_repositories(desk)
    file = desk / "midwatch.yaml"
    file.write_text(file.read_text().replace("[Bash]", "[mcp__midwatch]"))
    with ScriptedMessagesAPI(Rule([*answers, "Done."], tools=True)) as api:
        told = said(
            desk,
            *("session", "run", "--repo", repository, "-p", "Look.", "--json"),
            env=asking(api),
        )
    events = events_of(told)
    return json.dumps([one for one in events if one["type"] == "tool_result"])


def test_claude_reads_and_changes_tickets_over_standard_input(tmp_path: Path) -> None:
    watch = tmp_path / "watch"
    watch.mkdir()
    (watch / "midwatch.yaml").write_text(json.dumps(SETTINGS))
    seed(watch)
    server = {
        "command": str(MIDWATCH),
        "args": ["--config", str(watch / "midwatch.yaml"), "mcp"],
        "env": {"MIDWATCH_DATABASE": f"sqlite:///{watch / 'midwatch.db'}"},
    }
    seen = claude_with(
        tmp_path / "desk",
        server,
        use("list_tickets"),
        use("show_ticket", ticket=1),
        use("show_evidence", ticket=1, evidence="E1"),
        use("acknowledge_ticket", ticket=2, why="I look"),
        use("show_ticket", ticket=99),
    )
    assert "1: critical, diagnosed" in seen and "2: warning, open" in seen
    assert "It is full." in seen and "E1: Disks" in seen
    assert "/ is full </script>" in seen
    assert "there is no ticket 99" in seen
    assert said_json(watch, "tickets", "show", "2")["status"] == "acknowledged"
    [*_, last] = said_json(watch, "tickets", "history", "2")
    assert (last["action"], last["why"]) == ("acknowledge", "I look")


def test_claude_reads_over_http_with_a_token(tmp_path: Path) -> None:
    watch = tmp_path / "watch"
    watch.mkdir()
    seeded(watch)
    with server_process(watch, {**SETTINGS, "server": {"mcp": True}}) as server:
        seen = claude_with(
            tmp_path / "desk",
            {
                "type": "http",
                "url": f"{server.url}/mcp",
                "headers": token(watch, "read"),
            },
            use("list_tickets", status="any", text="disk"),
            use("list_subjects"),
            use("show_stats", days=1),
        )
    assert "box (host): 2 unresolved tickets" in seen
    assert "3 opened, 1 of them resolved" in seen


def seeded(folder: Path) -> None:
    (folder / "midwatch.yaml").write_text(json.dumps(SETTINGS))
    seed(folder)


def test_rights_decide_which_tools_there_are(tmp_path: Path) -> None:
    """A token without a scope neither sees the tools nor can call them; a change names the token."""
    seeded(tmp_path)
    with server_process(tmp_path, {**SETTINGS, "server": {"mcp": True}}) as server:
        tools, refusal = asyncio.run(_ask(server.url, token(tmp_path, "read")))
        assert tools == READING
        assert "may not call silence_ticket" in refusal
        more = token(tmp_path, "read", "tickets:write", "silences:write")
        tools, told = asyncio.run(_ask(server.url, more))
        assert tools == READING | {
            "acknowledge_ticket",
            "retry_diagnosis",
            "silence_ticket",
        }
        assert told.startswith("silence 1 ends at ")
        without = said(tmp_path, "tokens", "create", "ci", "--scope", "read").strip()
        answer = httpx2.post(
            f"{server.url}/mcp",
            json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"},
            headers={
                "Authorization": f"Bearer {without}",
                "Accept": "application/json, text/event-stream",
            },
        )
        assert answer.status_code == 403
        assert "no scope mcp" in answer.json()["detail"]
        for accept in ("text/event-stream", "*/*"):
            opened = httpx2.get(f"{server.url}/mcp", headers={**more, "Accept": accept})
            assert opened.status_code == 405
    [silence] = said_json(tmp_path, "silences", "list")
    assert silence["author"] == "claude"


async def _ask(url: str, headers: dict[str, str]) -> tuple[set[str], str]:
    """Return the tools that there are, and what silencing ticket 2 for an hour says."""
    async with (
        httpx2.AsyncClient(headers=headers) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http)) as client,
    ):
        listed = await client.list_tools()
        asked = {"ticket": 2, "duration": "1h", "why": "a deployment"}
        result = await client.call_tool("silence_ticket", asked)
        [content] = result.content
        assert isinstance(content, TextContent)
        return {tool.name for tool in listed.tools}, content.text


def test_wrong_arguments_are_one_line_for_the_model(tmp_path: Path) -> None:
    seeded(tmp_path)
    with server_process(tmp_path, {**SETTINGS, "server": {"mcp": True}}) as server:
        headers = token(tmp_path, "read", "silences:write")
        asyncio.run(_ask_wrongly(server.url, headers))


async def _ask_wrongly(url: str, headers: dict[str, str]) -> None:
    soon = {"ticket": 2, "duration": "soon", "why": "w"}
    async with (
        httpx2.AsyncClient(headers=headers) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http)) as client,
    ):
        for tool, arguments, expected in (
            ("show_ticket", {"ticket": "x"}, "ticket"),
            ("list_tickets", {"limit": 100_000}, "limit"),
            ("show_evidence", {"ticket": 1, "evidence": "E9"}, "it has: E1"),
            ("silence_ticket", soon, "is not a duration"),
        ):
            result = await client.call_tool(tool, arguments)
            [content] = result.content
            assert result.is_error and isinstance(content, TextContent)
            assert expected in content.text
        hostile = await client.call_tool("show_ticket", {"ticket": 2})
        [content] = hostile.content
        assert isinstance(content, TextContent)
        assert HOSTILE not in content.text and "\u202e" not in content.text


def test_mcp_is_off_until_it_is_set_up(tmp_path: Path) -> None:
    seeded(tmp_path)
    with server_process(tmp_path, SETTINGS) as server:
        assert server.http.post("/mcp", json={}).status_code == 404
