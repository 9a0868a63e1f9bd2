"""People are told of tickets: real requests to services on loopback, real stores, real processes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs

import pytest

from midwatch.lifecycle import StopEvent
from midwatch.model import Severity, Ticket
from midwatch.notify.notifier import Notifier
from midwatch.store.sql import SqlStore, open_store
from midwatch.testing.store_conformance.fixture import MovableClock, StoreFixture

from ..waiting import PATIENCE
from .notify_support import Call, notifier, service, settings
from .web import Reply

SECRET = "a-secret-of-20-chars"


@pytest.fixture
async def store() -> AsyncIterator[SqlStore]:
    """A SQLite store in memory, on the machine's clock: a wait is over when it is over."""
    found = await open_store("sqlite://")
    yield found
    await found.close()


@asynccontextmanager
async def running(one: Notifier) -> AsyncIterator[StopEvent]:
    stop = StopEvent()
    task = asyncio.create_task(one.run(stop))
    try:
        while await one.store.cursor("notifier") is None:
            await asyncio.sleep(0.01)
        yield stop
    finally:
        stop.set()
        await asyncio.wait_for(task, PATIENCE)


async def opened(
    store: SqlStore, *components: str, severity: Severity = Severity.CRITICAL
) -> tuple[Ticket, ...]:
    fixture = StoreFixture(store, MovableClock())
    return await fixture.open(*components, severity=severity)


async def told(one: Any, number: int) -> list[Call]:
    return await asyncio.to_thread(one.wait_for, number)


async def test_a_webhook_is_told_of_a_ticket_that_opens(store: SqlStore) -> None:
    with service() as hook:
        chosen = settings({"webhook": {"url": f"{hook.url}/x", "secret": SECRET}})
        async with running(notifier(store, chosen)):
            [ticket] = await opened(store, "orders")
            [call] = await told(hook, 1)
    document = call.document
    assert [one["name"] for one in document["events"]] == ["opened"]
    assert document["incident"]["tickets"][0]["id"] == ticket.id
    assert document["incident"]["url"] == f"http://midwatch.test/tickets/{ticket.id}"
    assert document["title"] == "CRITICAL db: orders is not well"
    assert call.headers["idempotency-key"] == document["id"]
    at, made = call.headers["x-midwatch-signature"].split(",v1=")
    signed = f"{at.removeprefix('t=')}.".encode() + call.body
    assert made == hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()


async def test_what_fails_is_sent_again_with_the_same_key(store: SqlStore) -> None:
    answers: list[Reply | None] = [None, (503, {}, b"down"), (200, {}, b"")]
    with service(lambda call: answers.pop(0)) as hook:
        chosen = settings({"webhook": {"url": hook.url}})
        async with running(notifier(store, chosen)):
            await opened(store, "orders")
            calls = await told(hook, 3)
            while (await store.deliveries())[0].state != "sent":
                await asyncio.sleep(0.01)
    assert len({call.headers["idempotency-key"] for call in calls}) == 1
    assert (await store.deliveries())[0].attempts == 3


# ------------------------------------------------------------------ Slack


def slack(url: str) -> dict[str, Any]:
    return {"slack": {"token": "xoxb-1234567890", "channel": "C1", "base_url": url}}


def as_slack(call: Call) -> Reply:
    found = {"ok": True, "channel": "C1", "ts": "1.2"}
    return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()


def field_of(call: Call, name: str) -> str:
    return call.document[name] if call.body[:1] == b"{" else form(call)[name]


def form(call: Call) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(call.body.decode()).items()}


async def test_slack_has_one_message_and_a_thread_for_an_incident(
    store: SqlStore,
) -> None:
    with service(as_slack) as api:
        async with running(notifier(store, settings(slack(f"{api.url}/api")))):
            [first] = await opened(store, "orders")
            await told(api, 1)
            await store.acknowledge(first.id, "ann")
            await told(api, 2)
            await store.resolve(first.id, "ann", "restarted <!channel> it")
            calls = await told(api, 4)
    assert [call.path for call in calls] == [
        "/api/chat.postMessage",
        "/api/chat.update",
        "/api/chat.update",
        "/api/chat.postMessage",
    ]
    assert field_of(calls[0], "text").startswith("*CRITICAL db: orders is not well*")
    assert field_of(calls[1], "ts") == "1.2"
    assert "RESOLVED" in field_of(calls[2], "text")
    assert field_of(calls[3], "thread_ts") == "1.2"
    assert "restarted &lt;!channel&gt; it" in field_of(calls[3], "text")
    assert calls[0].headers["authorization"] == "Bearer xoxb-1234567890"


async def test_slack_is_asked_again_when_it_says_so(store: SqlStore) -> None:
    answers = [
        (429, {"Retry-After": "1"}, b'{"ok": false, "error": "ratelimited"}'),
        as_slack(Call("", {}, b"")),
    ]
    with service(lambda call: answers.pop(0)) as api:
        one = notifier(store, settings(slack(f"{api.url}/api/")))
        async with running(one):
            await opened(store, "orders")
            await told(api, 2)
            while (await store.deliveries())[0].state != "sent":
                await asyncio.sleep(0.01)
    [row] = await store.deliveries()
    assert row.attempts == 2
    assert row.ended_at is not None
    assert (row.ended_at - row.created_at).total_seconds() >= 1
