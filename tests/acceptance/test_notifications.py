"""People are told of tickets: real requests to services on loopback, real stores, real processes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

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
