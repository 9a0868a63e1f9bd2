"""What stands around every request: a stream that ends with its process or its token, and a body that is bounded in time."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from sse_starlette import EventSourceResponse
from starlette.responses import StreamingResponse
from starlette.types import Message

from midwatch.agent.links import Links
from midwatch.errors import StoreUnavailable
from midwatch.lifecycle import StopEvent
from midwatch.logs import open_log, quiet_log
from midwatch.redaction import Redactor
from midwatch.server import problems
from midwatch.server.authentication import digest_of, new_secret
from midwatch.server.context import ServerContext
from midwatch.server.guard import Guard
from midwatch.settings import LogSettings, Settings
from midwatch.store.on_call import NewToken
from midwatch.store.sql import open_store
from midwatch.testing.fakes import ManualClock

from ..waiting import PATIENCE


@pytest.fixture
async def context() -> AsyncIterator[ServerContext]:
    store = await open_store("sqlite://")
    made = ServerContext(
        settings=Settings.model_validate({"server": {"listen": "127.0.0.1:0"}}),
        store=store,
        subjects=[],
        redactor=Redactor([]),
        links=Links([], {}),
        log=quiet_log(),
        clock=ManualClock(),
        environ={},
        stop=StopEvent(),
    )
    yield made
    await made.authenticator.close()
    await store.close()


async def secret_of(context: ServerContext) -> str:
    secret = new_secret()
    new = NewToken("api", "ci", digest_of(secret), "viewer", ("read",), "test", 3600)
    await context.store.add_token(new)
    return secret


class Client:
    """One request to the guard; what is sent to it comes from the guard's own functions."""

    def __init__(self, context: ServerContext, app: FastAPI, **headers: str) -> None:
        problems.add_handlers(app)
        named = {"host": "localhost", **headers}
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/stream",
            "raw_path": b"/stream",
            "query_string": b"",
            "headers": [(k.encode(), v.encode()) for k, v in named.items()],
            "client": ("127.0.0.1", 40000),
            "server": ("127.0.0.1", 8470),
        }
        self.sent: list[Message] = []
        self.arrived = asyncio.Event()
        self._first = True
        self._guard = Guard(app, context)

    async def receive(self) -> Message:
        if self._first:
            self._first = False
            return {"type": "http.request", "body": b"", "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if message.get("body"):
            self.arrived.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(
            self._guard(self.scope, self.receive, self.send), name="request"
        )
        async with asyncio.timeout(PATIENCE):
            await self.arrived.wait()
            yield task
            await task

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])


def streaming(more: asyncio.Event, response: Callable[..., Any]) -> FastAPI:
    """An application with a stream that sends one event at once, and one after each time `more` is set."""
    app = FastAPI()

    async def events() -> AsyncIterator[str]:
        while True:
            yield "event\n\n"
            await more.wait()
            more.clear()

    app.add_api_route("/stream", lambda: response(events()), response_model=None)
    return app


async def test_a_stream_ends_with_the_process(context: ServerContext) -> None:
    app = streaming(asyncio.Event(), EventSourceResponse)
    client = Client(context, app, accept="text/event-stream")
    async with client.running():
        assert context.stats.streams == 1 and context.stats.active == 0
        context.stop.set("test")
    assert client.status == 200
    assert context.stats.streams == 0


@pytest.mark.parametrize("response", [EventSourceResponse, StreamingResponse])
async def test_a_stream_ends_with_its_token(
    context: ServerContext, response: Callable[..., Any]
) -> None:
    secret, more = await secret_of(context), asyncio.Event()
    headers = {"authorization": f"Bearer {secret}", "accept": "text/event-stream"}
    client = Client(context, streaming(more, response), **headers)
    assert isinstance(context.clock, ManualClock)
    async with client.running() as task:
        client.arrived.clear()
        await context.clock.advance(60)
        more.set()  # the token is still valid
        await client.arrived.wait()
        [token] = await context.store.tokens()
        await context.store.revoke_token(token.id)
        before = len(client.sent)
        await context.clock.advance(60)
        more.set()
        await asyncio.wait({task})
    assert len(client.sent) == before


async def test_a_failure_is_told_without_its_text(context: ServerContext) -> None:
    app = FastAPI()

    async def fails() -> None:
        raise RuntimeError("the password is hunter2")

    app.add_api_route("/stream", fails)
    client = Client(context, app)
    async with client.running():
        pass
    assert client.status == 500
    assert b"hunter2" not in client.sent[1]["body"]
    assert context.stats.requests == {("/stream", 500): 1}


async def test_an_outage_in_the_middle_of_a_stream_is_one_line(
    context: ServerContext,
) -> None:
    """The router cannot answer an error once the response has begun; that is no fault of the server."""
    lines = io.StringIO()
    context.log = open_log(LogSettings(format="json"), lines, Redactor([]))
    app, more = FastAPI(), asyncio.Event()

    async def events() -> AsyncIterator[str]:
        yield "event\n\n"
        await more.wait()
        raise StoreUnavailable("the database is away")

    def route() -> StreamingResponse:
        return StreamingResponse(events())

    app.add_api_route("/stream", route, response_model=None)
    client = Client(context, app, accept="text/event-stream")
    async with client.running():
        more.set()
    [line] = [json.loads(one) for one in lines.getvalue().splitlines()]
    assert (line["event"], line["status"]) == ("request", 200)
    assert line["error"].startswith("the database is away")
