"""Two notifiers on one database: every ticket is told once."""

from __future__ import annotations

import asyncio

from midwatch.lifecycle import StopEvent
from midwatch.store.sql import open_store
from midwatch.testing.store_conformance.fixture import MovableClock, StoreFixture

from ..acceptance.notify_support import notifier, service, settings
from ..waiting import PATIENCE

TICKETS = 20


async def test_two_notifiers_share_the_work(shared_database: str) -> None:
    stores = [await open_store(shared_database) for _ in range(2)]
    stop = StopEvent()
    with service() as hook:
        chosen = settings({"webhook": {"url": hook.url}})
        both = [notifier(store, chosen) for store in stores]
        await both[0].follow()  # it begins before the first ticket
        tasks = [asyncio.create_task(one.run(stop)) for one in both]
        on = StoreFixture(stores[0], MovableClock())
        for number in range(TICKETS):
            await on.open(f"c{number}")
        async with asyncio.timeout(PATIENCE):
            while (await stores[0].delivery_counts(3600)).get("sent") != TICKETS:
                await asyncio.sleep(0.05)
        stop.set()
        await asyncio.gather(*tasks)
    keys = [call.headers["idempotency-key"] for call in hook.calls]
    assert len(keys) == len(set(keys)) == TICKETS
    for store in stores:
        await store.close()
