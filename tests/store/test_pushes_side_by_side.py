"""Servers and a monitor on one database: whoever saves an alert first, it is one ticket."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial

from midwatch.errors import StaleWatch, StoreBusy
from midwatch.matchers import Matcher
from midwatch.received import PushRules
from midwatch.store.protocol import Changes, Opening, Store, TicketFilter, Watch
from midwatch.store.sql import open_store
from midwatch.testing.store_conformance.fixture import opening
from midwatch.testing.store_conformance.pushes import alert, push

NAMES = [f"h{number}" for number in range(30)]


async def test_two_servers_and_a_monitor_open_each_ticket_once(
    shared_database: str,
) -> None:
    stores = [await open_store(shared_database) for _ in range(3)]
    first, second, monitor = stores
    try:
        await asyncio.gather(
            *(_push(first, name) for name in NAMES),
            *(_push(second, name) for name in reversed(NAMES)),
            *(_poll(monitor, name) for name in NAMES[::3]),
        )
        found = await monitor.tickets(TicketFilter(limit=1000))
        assert Counter(one.key.component for one in found) == Counter(NAMES)
        ends = [alert(name, firing=False) for name in NAMES]
        await asyncio.gather(
            first.receive([push(*ends)], PushRules()),
            second.receive([push(*reversed(ends))], PushRules()),
        )
        found = await monitor.tickets(TicketFilter(limit=1000))
        assert all(one.resolved for one in found)
    finally:
        for store in stores:
            await store.close()


async def _push(store: Store, name: str) -> None:
    while True:
        try:
            await store.receive([push(alert(name))], PushRules())
            return
        except StoreBusy:  # as the sender of an alert, which has got no answer
            continue


async def _poll(store: Store, name: str) -> None:
    """Open the ticket as a monitor does that sees the alert."""
    for _ in range(200):
        watch = await store.watch("team")
        if any(one.key.component == name for one in watch.tickets):
            return
        seen = opening(name, subject="team", invariant="alert:Down")
        try:
            await store.save_cycle("team", watch.revision, Changes((seen,)))
            return
        except (StaleWatch, StoreBusy):
            continue


async def test_silences_change_while_tickets_open_and_resolve(
    shared_database: str,
) -> None:
    """None waits for another in a circle, which PostgreSQL would end with an error for one of them."""
    server, monitor, person = [await open_store(shared_database) for _ in range(3)]
    done = asyncio.Event()

    async def pushes() -> None:
        await server.receive([push(*map(alert, NAMES))], PushRules())
        for name in NAMES:
            ends, begins = alert(name, firing=False), alert(f"{name}-again")
            await server.receive([push(ends, begins)], PushRules())

    async def cycles() -> None:
        for number in range(20):
            seen = tuple(
                opening(f"{name}-{number}", subject="db") for name in NAMES[:10]
            )
            await _save(monitor, partial(_opened, seen))
            await _save(
                monitor,
                lambda watch: Changes(resolved=tuple(one.id for one in watch.tickets)),
            )

    async def silences() -> None:
        while not done.is_set():
            made = await person.add_silence(
                [Matcher("subject", "!=", "")],
                author="ann",
                reason="work",
                seconds=600,
            )
            await person.expire_silence(made.id, "ann")

    try:
        changing = asyncio.create_task(silences())
        await asyncio.gather(pushes(), cycles())
        done.set()
        await changing
    finally:
        for store in (server, monitor, person):
            await store.close()


def _opened(seen: tuple[Opening, ...], watch: Watch) -> Changes:
    return Changes(seen)


async def _save(store: Store, changes: Callable[[Watch], Changes]) -> None:
    """Save a cycle as a monitor does, which computes it again when something has changed."""
    while True:
        watch = await store.watch("db")
        try:
            await store.save_cycle("db", watch.revision, changes(watch))
            return
        except StaleWatch:
            continue
