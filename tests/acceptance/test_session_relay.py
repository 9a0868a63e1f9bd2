"""The relay between the program and the API: what it adds, whom it answers, and what it does not let through."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anthropic
import httpx2
import pytest

from midwatch.provider import ApiAccess
from midwatch.session.relay import Relay
from midwatch.testing.messages_api import (
    Answer,
    Cut,
    Hold,
    Rule,
    ScriptedMessagesAPI,
    fingerprint,
)

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
    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")

    async with proxy(refuse) as it:
        async with Relay(ApiAccess("k", environ={"https_proxy": it.url})) as relay:
            url = relay.variables()["https_proxy"]
            head = f"CONNECT example.org:443 HTTP/1.1\r\nProxy-Authorization: Basic {_login(url)}"
            assert b" 403 " in await _spoken(url, head)


async def test_a_proxy_without_a_password_is_handed_on() -> None:
    environ = {"HTTPS_PROXY": "http://proxy:3128", "SSL_CERT_FILE": "/ca.pem"}
    async with Relay(ApiAccess("k", environ=environ)) as relay:
        assert relay.variables() == environ
