"""People are told of tickets: real requests to services on loopback, real stores, real processes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email import message_from_bytes
from email.policy import default
from typing import Any
from urllib.parse import parse_qs

import pytest
from aiosmtpd.smtp import SMTP

from midwatch.lifecycle import Backoff, StopEvent
from midwatch.matchers import parse_matchers
from midwatch.model import Severity, Ticket
from midwatch.notification_settings import NotificationSettings
from midwatch.notify.notifier import Notifier
from midwatch.store.on_call import NewDelivery
from midwatch.store.sql import SqlStore, open_store
from midwatch.testing.store_conformance.fixture import MovableClock, StoreFixture

from ..waiting import PATIENCE
from .notify_support import Call, notifier, service, settings, slowly
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
            while not await store.deliveries(states=["sent"]):
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
            while not await store.deliveries(states=["sent"]):
                await asyncio.sleep(0.01)
    [row] = await store.deliveries()
    assert row.attempts == 2
    assert row.ended_at is not None
    assert (row.ended_at - row.created_at).total_seconds() >= 1


# ------------------------------------------------------------------ services with a key


async def test_pagerduty_has_one_alert_that_is_acknowledged_and_resolved(
    store: SqlStore,
) -> None:
    with service() as api:
        target = {"pagerduty": {"routing_key": "k" * 32, "url": f"{api.url}/v2"}}
        async with running(notifier(store, settings(target))):
            first, second = await opened(store, "orders", "carts")
            await told(api, 1)
            await store.acknowledge(first.id, "ann")
            await store.acknowledge(second.id, "ann")
            await told(api, 2)
            await store.resolve(first.id, "ann", "done")
            await store.resolve(second.id, "ann", "done")
            calls = await told(api, 3)
    sent = [call.document for call in calls]
    assert [one["event_action"] for one in sent] == [
        "trigger",
        "acknowledge",
        "resolve",
    ]
    assert len({one["dedup_key"] for one in sent}) == 1
    assert sent[0]["payload"]["severity"] == "critical"
    assert sent[0]["links"][0]["href"].endswith(f"/tickets/{first.id}")


@pytest.mark.parametrize("kind", ["pagerduty", "opsgenie"])
async def test_an_alert_that_may_have_arrived_is_resolved(
    kind: str, store: SqlStore
) -> None:
    """The service took the alert, and its answer was lost: nobody would end it there."""
    back = threading.Event()
    with service(lambda call: (202, {}, b"{}") if back.is_set() else None) as api:
        key = {"pagerduty": "routing_key", "opsgenie": "api_key"}[kind]
        chosen = settings({kind: {key: "k" * 32, "url": api.url}})
        one = notifier(store, chosen)
        async with running(one):
            [ticket] = await opened(store, "orders")
            while not one.failing:
                await asyncio.sleep(0.01)
            await store.resolve(ticket.id, "ann", "done")
            back.set()
            while one.failing:
                await asyncio.sleep(0.01)
    last = api.calls[-1]
    assert "/close?" in last.path or last.document["event_action"] == "resolve"


async def test_opsgenie_has_one_alert_with_notes(store: SqlStore) -> None:
    with service(lambda call: (202, {}, b"{}")) as api:
        target = {"opsgenie": {"api_key": "k" * 32, "url": api.url}}
        async with running(notifier(store, settings(target))):
            [ticket] = await opened(store, "orders")
            await told(api, 1)
            await store.resolve(ticket.id, "ann", "done")
            calls = await told(api, 2)
    alias = calls[0].document["alias"]
    assert calls[0].path == "/v2/alerts"
    assert calls[1].path == f"/v2/alerts/{alias}/close?identifierType=alias"
    assert calls[0].headers["authorization"] == f"GenieKey {'k' * 32}"


# ------------------------------------------------------------------ mail


class Mailbox:
    """Takes mails for SMTP."""

    def __init__(self) -> None:
        self.mails: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.mails.append(message_from_bytes(envelope.content, policy=default))
        return "250 OK"


@asynccontextmanager
async def smtp() -> AsyncIterator[tuple[Mailbox, str]]:
    box, loop = Mailbox(), asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(box), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield box, f"mailto://127.0.0.1:{port}?from=midwatch@example.org&to=ops@example.org&mode=insecure"
    finally:
        server.close()


async def test_a_mail_is_escaped_and_says_where_the_ticket_is(store: SqlStore) -> None:
    async with smtp() as (box, url):
        async with running(notifier(store, settings({"apprise": {"url": url}}))):
            await opened(store, "<img src=x onerror=alert(1)>")
            while not box.mails:
                await asyncio.sleep(0.01)
    [mail] = box.mails
    html = mail.get_body(("html",)).get_content()
    assert mail["subject"].startswith("CRITICAL db: <img src=x")
    assert "<img" not in html and "&lt;img src=x onerror" in html
    assert 'href="http://midwatch.test/tickets/1"' in html


async def test_a_mail_is_not_sent_again_when_only_a_count_changed(
    store: SqlStore,
) -> None:
    async with smtp() as (box, url):
        async with running(notifier(store, settings({"apprise": {"url": url}}))):
            on = StoreFixture(store, MovableClock())
            await on.open("orders", group_wait=600)
            while not box.mails:
                await asyncio.sleep(0.01)
            [second] = await on.open("carts", group_wait=600)
            while not await store.deliveries(second.id, ["dropped"]):
                await asyncio.sleep(0.01)
    assert len(box.mails) == 1


# ------------------------------------------------------------------ what is slow, dead or refuses


async def test_a_dead_target_delays_neither_the_others_nor_the_stop(
    store: SqlStore,
) -> None:
    with service(slowly(2)) as dead, service() as hook:
        chosen = settings(
            {"webhook": {"url": dead.url}},
            route={"to": ["ops", "other"]},
            targets=[
                {"name": "ops", "webhook": {"url": dead.url}},
                {"name": "other", "webhook": {"url": hook.url}},
            ],
            timeout=600 / 3,
        )
        async with running(notifier(store, chosen)):
            for number in range(3):
                await opened(store, f"c{number}")
            await told(dead, 1)
            await told(hook, 3)


async def test_a_request_that_takes_too_long_is_one_that_failed(
    store: SqlStore,
) -> None:
    with service(slowly(1)) as hook:
        chosen = settings({"webhook": {"url": hook.url}}, timeout=0.2, backoff=600)
        one = notifier(store, chosen)
        async with running(one):
            await opened(store, "orders")
            while not one.failing:
                await asyncio.sleep(0.01)
    assert "did not answer within 0.2 s" in one.failing["ops"]


async def test_a_refused_message_is_given_up_on_the_ticket_without_its_secrets(
    store: SqlStore,
) -> None:
    def refuse(call: Call) -> Reply:
        return 400, {}, b"bad token hunter2hunter2"

    with service(refuse) as hook:
        chosen = settings({"webhook": {"url": hook.url}})
        one = notifier(store, chosen, "hunter2hunter2")
        async with running(one):
            [ticket] = await opened(store, "orders")
            while not await store.deliveries(states=["given_up"]):
                await asyncio.sleep(0.01)
    row = (await store.history(ticket.id))[-1]
    assert row.action == "notify"
    assert "ops could not be notified: the webhook answered 400: bad token" in row.why
    assert "hunter2" not in row.why
    assert one.results["ops", "given_up"] == 1
    assert await store.delivery_counts(3600) == {"given_up": 1}


async def test_what_cannot_be_sent_for_long_is_given_up(store: SqlStore) -> None:
    with service(lambda call: (503, {}, b"")) as hook:
        chosen = settings({"webhook": {"url": hook.url}}, give_up_after=0.3)
        async with running(notifier(store, chosen)):
            [ticket] = await opened(store, "orders")
            while not await store.deliveries(states=["given_up"]):
                await asyncio.sleep(0.01)
    assert hook.calls
    assert (await store.history(ticket.id))[-1].action == "notify"


# ------------------------------------------------------------------ what people asked for


async def test_a_silenced_ticket_tells_nobody_until_the_silence_ends() -> None:
    clock = MovableClock()
    store = await open_store("sqlite://", clock=clock)
    with service() as hook:
        one = notifier(store, settings({"webhook": {"url": hook.url}}))
        await one.follow()
        [ticket] = await StoreFixture(store, clock).open("orders")
        silence = await store.add_silence(
            parse_matchers('component="orders"'),
            author="ann",
            reason="work",
            seconds=600,
        )
        await one.follow()
        await one.deliver("ops", Backoff(1, 1))
        assert not hook.calls
        clock.move(60)
        await one.deliver("ops", Backoff(1, 1))
        assert not hook.calls
        await store.expire_silence(silence.id, "ann")
        clock.move(60)
        await one.deliver("ops", Backoff(1, 1))
    [call] = hook.calls
    assert call.document["incident"]["tickets"][0]["id"] == ticket.id
    await store.close()


async def test_a_digest_tells_everything_at_once() -> None:
    clock = MovableClock()
    store = await open_store("sqlite://", clock=clock)
    with service() as hook:
        route = {"name": "all", "to": ["ops"], "digest": 3600}
        chosen = settings({"webhook": {"url": hook.url}}, route=route)
        one = notifier(store, chosen)
        await one.follow()
        on = StoreFixture(store, clock)
        [first] = await on.open("orders")
        await one.follow()
        assert await one.deliver("ops", Backoff(1, 1)) is None
        await on.open("carts")
        await store.resolve(first.id, "ann", "done")
        await one.follow()
        clock.move(3600)
        await one.deliver("ops", Backoff(1, 1))
        assert await one.deliver("ops", Backoff(1, 1)) is None
    [call] = hook.calls
    assert call.document["title"] == "Digest: 2 tickets"
    assert "info" in call.document["text"] or "warning" in call.document["text"]
    assert len(call.document["events"]) == 3
    await store.close()


async def test_a_ticket_that_is_held_for_too_long_is_told_of() -> None:
    clock = MovableClock()
    store = await open_store("sqlite://", clock=clock)
    with service() as hook:
        chosen = settings({"webhook": {"url": hook.url}}, held_after=7200)
        one = notifier(store, chosen)
        await one.follow()
        kept, freed = await StoreFixture(store, clock).open("kept", "freed")
        await one.follow()
        await one.deliver("ops", Backoff(1, 1))
        for ticket in (kept, freed):
            await store.hold(ticket.id, True, "ann")
        await one.follow()
        await store.hold(freed.id, False, "ann")
        clock.move(7200)
        await one.deliver("ops", Backoff(1, 1))
    told_of = hook.calls[-1].document["events"]
    assert [(one["name"], one["ticket"]) for one in told_of] == [
        ("held_too_long", kept.id)
    ]
    assert (await store.deliveries(freed.id))[0].state == "dropped"
    await store.close()


async def test_nobody_acknowledged_so_the_next_route_is_told(store: SqlStore) -> None:
    with service() as hook, service() as boss:
        targets = [
            {"name": "ops", "webhook": {"url": hook.url}},
            {"name": "boss", "webhook": {"url": boss.url}},
        ]
        routes = [
            {"name": "first", "to": ["ops"], "escalate_after": 0.5},
            {"name": "second", "to": ["boss"]},
        ]
        chosen = settings(
            {"webhook": {"url": hook.url}}, targets=targets, routes=routes
        )
        async with running(notifier(store, chosen)):
            [seen] = await opened(store, "seen")
            await store.acknowledge(seen.id, "ann")
            [unseen] = await opened(store, "unseen")
            [call] = await told(boss, 1)
            await store.resolve(unseen.id, "ann", "done")
            calls = await told(boss, 2)
            while not await store.deliveries(seen.id, ["dropped"]):
                await asyncio.sleep(0.01)
    assert [one["name"] for one in call.document["events"]] == ["escalated"]
    assert call.document["incident"]["tickets"][0]["id"] == unseen.id
    assert [one["name"] for one in calls[1].document["events"]] == ["resolved"]
    [row] = await store.deliveries(seen.id, ["dropped"])
    assert row.last_error == "acknowledged in time"


async def test_who_asked_for_an_investigation_is_called_back(store: SqlStore) -> None:
    with service() as hook:
        chosen = NotificationSettings(
            callback_hosts=[hook.url.removeprefix("http://")],
            callback_secret=SECRET,
            poll_interval=0.05,
        )
        async with running(notifier(store, chosen)):
            [ticket] = await opened(store, "orders")
            key, where = f"callback {ticket.id}", f"{hook.url}/done"
            new = NewDelivery(
                *(key, "callback", where, "investigation", key, ticket.id),
                {"investigation": "i-1"},
            )
            place = await store.cursor("notifier")
            assert place is not None
            while not await store.save_deliveries("notifier", place, place, [new]):
                place = await store.cursor("notifier")
            [call] = await told(hook, 1)
    assert call.path == "/done"
    assert call.document["investigation"] == "i-1"
    assert "x-midwatch-signature" in call.headers
