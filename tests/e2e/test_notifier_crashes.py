"""What a death costs: notifiers in real processes, killed, on one database. A message is sent at least once, under one key."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from midwatch.notify.notifier import CURSOR
from midwatch.store.sql import SqlStore, open_store
from midwatch.testing.fakes import open_tickets

from ..acceptance.notify_support import Service, service, settings
from ..scripts import Script
from ..waiting import PATIENCE

OVER = 3 * PATIENCE + 31
"""Seconds after which the claim of a notifier that died is over."""


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'midwatch.db'}"


@pytest.fixture
async def shared(database: str) -> AsyncIterator[SqlStore]:
    opened = await open_store(database)
    # The notifier was there before: what it tells of is what comes from now on.
    end = await opened.last_cursor()
    assert await opened.save_deliveries(CURSOR, None, end, ())
    yield opened
    await opened.close()


@contextlib.contextmanager
def process(
    database: str, hook: Service, point: str = "none", ahead: float = 0.0
) -> Iterator[Script]:
    chosen = settings({"webhook": {"url": hook.url}})
    arguments = (database, chosen.model_dump_json(by_alias=True), point, ahead)
    code = f"from tests.e2e import crashing_notifier as it; it.run{arguments!r}"
    one = Script(code)
    try:
        yield one
    finally:
        one.terminate()
        one.wait()


async def until_sent(store: SqlStore) -> None:
    deadline = time.monotonic() + PATIENCE
    while not any(one.state == "sent" for one in await store.deliveries()):
        assert time.monotonic() < deadline, "nothing was sent"
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("point", "calls"),
    [
        ("before save_deliveries", 1),
        ("before the commit", 1),
        ("after save_deliveries", 1),
        ("after claim_delivery", 1),
        ("before finish_delivery", 2),
        ("after finish_delivery", 1),
    ],
)
async def test_kill_9_loses_nothing_and_doubles_nothing(
    shared: SqlStore, database: str, point: str, calls: int
) -> None:
    await open_tickets(shared, "db")
    with service() as hook:
        with process(database, hook, point) as dying:
            await asyncio.to_thread(dying.wait)
            assert dying.returncode == -signal.SIGKILL
        with process(database, hook, ahead=OVER):
            await until_sent(shared)
    assert len(hook.calls) == calls
    assert len({call.headers["idempotency-key"] for call in hook.calls}) == 1
    assert len(await shared.deliveries()) == 1


async def test_kill_9_during_the_request(shared: SqlStore, database: str) -> None:
    await open_tickets(shared, "db")
    with service(lambda call: killed.append(call.body) or kill()) as hook:  # type: ignore[func-returns-value]
        killed: list[bytes] = []
        with process(database, hook) as dying:

            def kill() -> tuple[int, dict[str, str], bytes]:
                if len(killed) == 1 and dying.pid is not None:
                    os.kill(dying.pid, signal.SIGKILL)
                return 200, {}, b""

            await asyncio.to_thread(dying.wait)
            assert dying.returncode == -signal.SIGKILL
        assert [one.state for one in await shared.deliveries()] == ["due"]
        with process(database, hook, ahead=OVER):
            await until_sent(shared)
    keys = {call.headers["idempotency-key"] for call in hook.calls}
    assert (len(hook.calls), len(keys)) == (2, 1)
