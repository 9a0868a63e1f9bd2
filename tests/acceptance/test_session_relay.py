"""The relay between the program and the API: what it adds, whom it answers, and what it does not let through."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest
import trustme

from midwatch.agent.claude import probe
from midwatch.errors import SettingsError
from midwatch.provider import ApiAccess
from midwatch.session.relay import Relay
from midwatch.testing.fakes import collect, session_in
from midwatch.testing.messages_api import (
    Answer,
    Cut,
    Hold,
    Rule,
    ScriptedMessagesAPI,
    ToolUse,
    fingerprint,
)
from midwatch.testing.messages_wire import events as wire_events

from ..waiting import PATIENCE

QUESTION = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "?"}],
}


def asking(relay: Relay, key: str | None = None) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(
        api_key=key or relay.token,
        base_url=relay.variables()["ANTHROPIC_BASE_URL"],
        max_retries=0,
        timeout=PATIENCE,
    )


@pytest.mark.parametrize(
    ("access", "header", "value"),
    [
        ({"api_key": "sk-real"}, "x-api-key", "sk-real"),
        ({"auth_token": "tok"}, "authorization", "Bearer tok"),
    ],
)
async def test_it_sends_the_credentials_and_the_headers(
    access: dict[str, str], header: str, value: str
) -> None:
    async with ScriptedMessagesAPI(Answer("Fine. " * 200)) as api:
        given = ApiAccess(base_url=api.base_url, headers={"X-Team": "ops"}, **access)  # type: ignore[arg-type]
        async with Relay(given) as relay, asking(relay) as client:
            message = await client.messages.create(**QUESTION)  # type: ignore[call-overload]
            assert message.content[0].text == "Fine. " * 200
            async with client.messages.stream(**QUESTION) as stream:  # type: ignore[arg-type]
                assert await stream.get_final_text() == "Fine. " * 200
        for call in api.calls:
            assert call.headers["x-team"] == "ops"
            assert call.headers[header] == fingerprint(value)
            other = {"x-api-key", "authorization"} - {header}
            assert not other & set(call.headers)


async def test_requests_may_follow_each_other_on_a_connection() -> None:
    async with ScriptedMessagesAPI(Answer("Fine.")) as api:
        given = ApiAccess("sk-real", api.base_url, headers={"X-Team": "ops"})
        async with Relay(given) as relay:
            body = json.dumps(QUESTION)
            one = (
                f"POST /v1/messages HTTP/1.1\r\nhost: relay\r\nx-api-key: {relay.token}\r\n"
                f"content-length: {len(body)}\r\n\r\n{body}"
            )
            last = one.replace("host:", "connection: close\r\nhost:")
            url = relay.variables()["ANTHROPIC_BASE_URL"].removeprefix("http://")
            host, _, port = url.partition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write((one + one + last).encode())
            answers = await asyncio.wait_for(reader.read(), PATIENCE)
            writer.close()
    assert answers.count(b"HTTP/1.1 200") == answers.count(b"Fine.") == 3
    assert len(api.calls) == 3


@pytest.mark.parametrize(
    "noise", [b"\r\n\r\n", b"x\r\n\r\n", b"\xff / \r\n\r\n", b"GET / HTTP/9\r\n\r\n"]
)
async def test_noise_ends_only_its_connection(noise: bytes) -> None:
    async with ScriptedMessagesAPI(Answer("Fine.")) as api:
        given = ApiAccess("sk-real", api.base_url, headers={"X-Team": "ops"})
        async with Relay(given) as relay, asking(relay) as client:
            url = relay.variables()["ANTHROPIC_BASE_URL"].removeprefix("http://")
            host, _, port = url.partition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(noise)
            await asyncio.wait_for(reader.read(), PATIENCE)
            writer.close()
            message = await client.messages.create(**QUESTION)  # type: ignore[call-overload]
    assert message.content[0].text == "Fine."


async def test_it_answers_nobody_else() -> None:
    async with ScriptedMessagesAPI(Answer("Fine.")) as api:
        given = ApiAccess("sk-real", api.base_url, headers={"X-Team": "ops"})
        async with Relay(given) as relay, asking(relay, "sk-other") as client:
            with pytest.raises(anthropic.AuthenticationError):
                await client.messages.create(**QUESTION)  # type: ignore[call-overload]
        assert not api.requests


async def test_an_answer_that_is_cut_stays_cut() -> None:
    async with ScriptedMessagesAPI(Rule(Cut(Answer("x" * 4000)))) as api:
        given = ApiAccess("sk-real", api.base_url, headers={"X-Team": "ops"})
        async with Relay(given) as relay, asking(relay) as client:
            with pytest.raises((httpx2.HTTPError, anthropic.APIConnectionError)):
                async with client.messages.stream(**QUESTION) as stream:  # type: ignore[arg-type]
                    await stream.get_final_text()


async def test_an_api_that_is_away_is_told() -> None:
    given = ApiAccess("sk-real", "http://127.0.0.1:9", headers={"X-Team": "ops"})
    async with Relay(given) as relay, asking(relay) as client:
        with pytest.raises(anthropic.APIStatusError, match="127.0.0.1 cannot be") as it:
            await client.messages.create(**QUESTION)  # type: ignore[call-overload]
        assert it.value.status_code == 502


async def test_who_goes_away_ends_the_request() -> None:
    gate = Hold(Answer("Too late."))
    async with ScriptedMessagesAPI(Rule(gate)) as api:
        given = ApiAccess("sk-real", api.base_url, headers={"X-Team": "ops"})
        async with Relay(given) as relay, asking(relay) as client:
            task = asyncio.ensure_future(client.messages.create(**QUESTION))  # type: ignore[call-overload]
            await asyncio.to_thread(gate.arrived_sync)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.wait_for(_until(lambda: not relay._busy), PATIENCE)
        gate.release()


async def _until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.01)


# ------------------------------------------------------------------ proxies


@dataclass
class Proxy:
    """A proxy that wants a password, and answers each tunnel by itself."""

    port: int = 0
    heads: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://me:the%2Fpassword@127.0.0.1:{self.port}"


@asynccontextmanager
async def proxy(
    then: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[Proxy]:
    found = Proxy()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        await then(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    async with server:
        yield found


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
    writer.write(b"heard " + await reader.readline())
    await writer.drain()


async def _refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")


async def _spoken(url: str, head: str, line: bytes = b"") -> bytes:
    host, _, port = url.rpartition("@")[2].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head.encode() + b"\r\n\r\n" + line)
    answer = await asyncio.wait_for(reader.read(), PATIENCE)
    writer.close()
    return answer


def _login(url: str) -> str:
    login = url.removeprefix("http://").rpartition("@")[0]
    return base64.b64encode(login.encode()).decode()


async def test_a_proxy_gets_its_password_from_the_relay() -> None:
    async with proxy(_echo) as it:
        environ = {"HTTPS_PROXY": it.url, "NO_PROXY": "internal"}
        async with Relay(ApiAccess("sk-real", environ=environ)) as relay:
            given = relay.variables()
            assert given["NO_PROXY"] == "internal"
            assert "password" not in json.dumps(given)
            url = given["HTTPS_PROXY"]
            head = f"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\nProxy-Authorization: Basic {_login(url)}"
            answer = await _spoken(url, head, b"hello\n")
            assert answer == b"HTTP/1.1 200 Connected\r\n\r\nheard hello\n"
            nobody = "CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443"
            assert b" 407 " in await _spoken(url, nobody)
    assert len(it.heads) == 1 and it.heads[0].startswith("CONNECT example.org:443 ")
    login = base64.b64encode(b"me:the/password").decode()
    assert f"Proxy-Authorization: Basic {login}\r\n" in it.heads[0]


async def test_a_proxy_that_refuses_is_heard() -> None:
    async with proxy(_refuse) as it:
        async with Relay(ApiAccess("k", environ={"https_proxy": it.url})) as relay:
            url = relay.variables()["https_proxy"]
            head = f"CONNECT example.org:443 HTTP/1.1\r\nProxy-Authorization: Basic {_login(url)}"
            assert b" 403 " in await _spoken(url, head)


async def test_a_proxy_without_a_password_is_handed_on(tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    environ = {
        "HTTPS_PROXY": "http://proxy:3128",
        "SSL_CERT_FILE": str(tmp_path / "ca.pem"),
    }
    async with Relay(ApiAccess("k", environ=environ)) as relay:
        assert relay.variables() == environ


async def test_certificates_that_cannot_be_read_are_named() -> None:
    environ = {"NODE_EXTRA_CA_CERTS": "/nowhere/ca.pem"}
    access = ApiAccess("k", headers={"X-Team": "ops"}, environ=environ)
    with pytest.raises(SettingsError, match="NODE_EXTRA_CA_CERTS.*/nowhere/ca.pem"):
        await Relay(access).__aenter__()
    found = await probe(access, "claude-sonnet-5-5")
    assert not found.works and "/nowhere/ca.pem" in found.message


@pytest.mark.parametrize(
    ("host", "hit"), [("127.0.0.1", False), ("*", False), ("example.org", True)]
)
async def test_the_relay_goes_through_the_proxy(host: str, hit: bool) -> None:
    async with proxy(_refuse) as it, ScriptedMessagesAPI(Answer("Fine.")) as api:
        environ = {"http_proxy": it.url, "NO_PROXY": host}
        given = ApiAccess("k", api.base_url, headers={"X-Team": "ops"}, environ=environ)
        async with Relay(given) as relay, asking(relay) as client:
            with contextlib.suppress(anthropic.APIError):
                await client.messages.create(**QUESTION)  # type: ignore[call-overload]
    assert bool(it.heads) is hit and bool(api.calls) is not hit


# ------------------------------------------------------------------ what Bash can see

SECRETS = {
    "ANTHROPIC_AUTH_TOKEN": "gateway-token-5f1c9a",
    "ANTHROPIC_CUSTOM_HEADERS": "X-Gateway-Key: header-secret-77aa31",
    "HTTPS_PROXY": "http://proxy-user:proxy-password-09de@127.0.0.1:9",
    "AWS_REGION": "eu-west-1",
    "AWS_BEARER_TOKEN_BEDROCK": "bedrock-token-bb20c4",
}
WORDS = (
    "gateway-token-5f1c9a",
    "header-secret-77aa31",
    "proxy-password-09de",
    "bedrock-token-bb20c4",
)
LOOK = (
    "(env; p=$PPID; for i in 1 2; do tr '\\0' '\\n' < /proc/$p/environ; tr '\\0' ' ' < /proc/$p/cmdline;"
    " p=$(awk '{print $4}' /proc/$p/stat); done) > seen"
)


async def test_bash_sees_no_secret_of_a_gateway(tmp_path: Path) -> None:
    look = Answer(tool_uses=[ToolUse("Bash", {"command": LOOK})])
    async with ScriptedMessagesAPI(Rule([look, "Done."], tools=True)) as api:
        environ = {
            **SECRETS,
            "ANTHROPIC_BASE_URL": api.base_url,
            "NO_PROXY": "127.0.0.1",
        }
        session = session_in(tmp_path, api, client=ApiAccess.from_environ(environ))
        await collect(session, f"Look around. It is {WORDS[0]}.")
        assert len(api.calls) == 2
        for call in api.calls:
            assert call.headers["authorization"] == fingerprint(f"Bearer {WORDS[0]}")
            assert call.headers["x-gateway-key"] == WORDS[1]
    seen = (tmp_path / "work" / "seen").read_text(errors="replace")
    assert "ANTHROPIC_BASE_URL=http://127.0.0.1:" in seen and "HTTPS_PROXY" in seen
    log = session.folder.outbox.read_text()
    for word in WORDS:
        assert word not in seen and word not in log, word
        for path in (tmp_path / "session" / "run").rglob("*"):
            assert not path.is_file() or word.encode() not in path.read_bytes()


async def test_bash_sees_no_credentials_of_a_cloud(tmp_path: Path) -> None:
    look = ToolUse("Bash", {"command": LOOK})
    asked: list[str] = []
    model = "us.anthropic.claude-sonnet-5-5"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"content-length: (\d+)", head, re.I)
        body = await reader.readexactly(int(length[1])) if length else b""
        status, kind, answer = b"404 Not Found", b"application/json", b"{}"
        if "/invoke-with-response-stream" in head:
            asked.append(head)
            assert json.loads(body)["anthropic_version"] == "bedrock-2023-05-31"
            status, kind = b"200 OK", b"application/vnd.amazon.eventstream"
            reply = Answer(tool_uses=[look]) if len(asked) == 1 else Answer("Done.")
            answer = b"".join(map(_frame, _events(reply, len(asked), model)))
        writer.write(
            b"HTTP/1.1 %s\r\ncontent-type: %s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            % (status, kind, len(answer))
            + answer
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        environ = {
            **SECRETS,
            "ANTHROPIC_BEDROCK_BASE_URL": url,
            "NO_PROXY": "127.0.0.1",
        }
        access = ApiAccess.from_environ(environ, provider="bedrock")
        session = session_in(tmp_path, "", client=access, model=model)
        await collect(session, "Look around.")
    assert session.status().result == "Done." and session.status().cost_usd > 0
    for head in asked:
        assert f"authorization: bearer {WORDS[3]}\r\n" in head.lower()
        assert f"x-gateway-key: {WORDS[1]}\r\n" in head.lower()
    seen = (tmp_path / "work" / "seen").read_text(errors="replace")
    assert "CLAUDE_CODE_USE_BEDROCK=1" in seen and "AWS_REGION=eu-west-1" in seen
    assert not [word for word in WORDS if word in seen]


def _events(answer: Answer, number: int, model: str) -> list[dict[str, Any]]:
    """The events of an answer as they are streamed, without the scripted server."""
    blocks = [
        {
            "type": "tool_use",
            "id": f"toolu_{number}",
            "name": one.name,
            "input": dict(one.input),
        }
        for one in answer.tool_uses
    ] or [{"type": "text", "text": answer.text}]
    message = {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": blocks,
        "stop_reason": "tool_use" if answer.tool_uses else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 100, "output_tokens": 20},
    }
    return [
        json.loads(part.partition(b"data: ")[2])
        for part in wire_events(message)
        if b"data: " in part
    ]


def _frame(event: dict[str, Any]) -> bytes:
    """An event of the Messages API as Bedrock sends it: a message of Amazon's event stream."""
    data = base64.b64encode(json.dumps(event).encode()).decode()
    payload = json.dumps({"bytes": data}).encode()
    headers = b"".join(
        bytes([len(name)]) + name + b"\x07" + struct.pack(">H", len(value)) + value
        for name, value in (
            (b":event-type", b"chunk"),
            (b":content-type", b"application/json"),
            (b":message-type", b"event"),
        )
    )
    total = 12 + len(headers) + len(payload) + 4
    prelude = struct.pack(">II", total, len(headers))
    whole = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + payload
    return whole + struct.pack(">I", zlib.crc32(whole))


@pytest.mark.parametrize("known", [True, False])
async def test_requests_are_signed_with_the_keys_of_amazon(
    known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("botocore")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    keys = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "the-secret"}
    async with ScriptedMessagesAPI(Rule("Fine.", path="/model/m:0/invoke")) as api:
        environ = {"AWS_REGION": "eu-west-1", **(keys if known else {})}
        environ["ANTHROPIC_BEDROCK_BASE_URL"] = api.base_url
        access = ApiAccess.from_environ(environ, provider="bedrock")
        async with Relay(access) as relay, httpx2.AsyncClient() as client:
            url = relay.variables()["ANTHROPIC_BEDROCK_BASE_URL"]
            answer = await client.post(f"{url}/model/m:0/invoke", json={})
            denied = url.replace(relay.token, "other")
            assert (await client.post(f"{denied}/model/m:0/invoke")).status_code == 401
        if not known:
            found = await probe(access, "m:0")
            assert not found.works and "no credentials for bedrock" in found.message
            assert answer.status_code == 401 and "no credentials" in answer.text
            assert not api.requests
            return
        assert answer.status_code == 200
        (asked,) = api.requests
    # The scripted API keeps secrets as fingerprints; a signature has no fixed text.
    assert asked.headers["x-amz-date"] and "authorization" in asked.headers
    assert "x-api-key" not in asked.headers
