"""Group commit of pushed alerts: how many transactions the requests of several senders take."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from midwatch.logs import quiet_log
from midwatch.received import Accepted, Push, PushRules
from midwatch.server.alert_writer import AlertWriter
from midwatch.store.protocol import Store
from midwatch.testing.fakes import ManualClock

SENDERS, EACH = 8, 5


class CountingStore:
    """Keeps the groups that it is given; each takes a few turns of the event loop."""

    def __init__(self) -> None:
        self.groups: list[int] = []

    async def receive(self, pushes: Sequence[Push], rules: PushRules) -> Accepted:
        self.groups.append(len(pushes))
        for _ in range(10):
            await asyncio.sleep(0)
        return Accepted()


async def test_senders_that_are_answered_together_are_saved_together_again() -> None:
    store = CountingStore()
    writer = AlertWriter(
        cast(Store, store), PushRules(), quiet_log(), clock=ManualClock()
    )

    async def sender(number: int) -> None:
        for _ in range(EACH):
            for _ in range(number % 3):  # the steps of a request until it is here
                await asyncio.sleep(0)
            await writer.write(Push("team", "alerts", "generic", ()))

    await asyncio.gather(*(sender(number) for number in range(SENDERS)))
    assert store.groups == [SENDERS] * EACH


async def test_a_request_alone_is_saved_at_once() -> None:
    store = CountingStore()
    writer = AlertWriter(
        cast(Store, store), PushRules(), quiet_log(), clock=ManualClock()
    )
    for _ in range(3):
        await writer.write(Push("team", "alerts", "generic", ()))
    assert store.groups == [1, 1, 1]
