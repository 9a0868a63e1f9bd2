"""The live feed of a process: many subscribers, changes of this and of other processes, outages, slow readers."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import Connection

from midwatch.lifecycle import StopEvent
from midwatch.logs import Log, open_log
from midwatch.redaction import Redactor
from midwatch.server.feed import ChangeFeed
from midwatch.settings import LogSettings
from midwatch.store.engine import Transaction, audit_row
from midwatch.store.on_call import Change, Cursor
from midwatch.store.schema import database_now
from midwatch.store.sql import SqlStore, open_store

from ..waiting import PATIENCE
from .test_side_by_side import filled

NEVER = 600.0


@asynccontextmanager
async def running(
    store: SqlStore, interval: float, log: Log | None = None
) -> AsyncIterator[ChangeFeed]:
    feed, stop = ChangeFeed(store, log, interval=interval), StopEvent()
    task = asyncio.create_task(feed.run(stop))
    try:
        yield feed
    finally:
        stop.set()
        await asyncio.wait_for(task, PATIENCE)


async def change(store: SqlStore, *whys: str) -> None:
    for why in whys:
        await store.acknowledge(1, "ann", why)


async def take(changes: AsyncIterator[Change], number: int) -> list[str]:
    """Return the reasons of the next changes."""
    return [
        (await asyncio.wait_for(anext(changes), PATIENCE)).why for _ in range(number)
    ]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


async def test_each_subscriber_has_every_change_of_any_process(
    shared_database: str,
) -> None:
    """Each from its own place on, in order."""
    store, other = await filled(shared_database, 1), await open_store(shared_database)
    await change(store, "earlier")
    async with running(store, 0.05) as feed:
        live, every = feed.subscribe(), feed.subscribe(Cursor(0))
        first = asyncio.create_task(take(live, 3))
        assert (await take(every, 2))[1] == "earlier"
        await until(lambda: feed.end.audit_id == 2)
        await change(other, "theirs")
        await change(store, "ours", "last")
        assert await first == ["theirs", "ours", "last"]
        assert await take(every, 3) == ["theirs", "ours", "last"]
    await other.close()
    await store.close()


async def test_changes_of_this_process_are_not_waited_for(database: str) -> None:
    store = await filled(database, 1)
    async with running(store, NEVER) as feed:
        waiting = asyncio.create_task(take(feed.subscribe(), 1))
        await until(lambda: feed.end.audit_id > 0)
        await change(store, "now")
        assert await waiting == ["now"]
    await store.close()


async def test_a_subscriber_that_resumes_has_no_gap(database: str) -> None:
    """Also one that was away for more changes than the feed keeps, and one that is slow."""
    store = await filled(database, 1)
    numbers = [str(number) for number in range(1200)]

    def write(connection: Connection) -> None:
        rows = [audit_row(1, "ann", "note", "open", "open", why) for why in numbers]
        Transaction(connection, database_now).note(rows)

    async with running(store, 0.05) as feed:
        slow, gone = feed.subscribe(Cursor(1)), feed.subscribe(Cursor(1))
        await change(store, "before")
        place = await asyncio.wait_for(anext(gone), PATIENCE)
        assert place.why == "before"
        await store.transactions.run(write)
        assert await take(feed.subscribe(place.cursor), 1200) == numbers
        assert await take(slow, 1201) == ["before", *numbers]
    await store.close()


async def test_subscriptions_end_with_the_feed(database: str) -> None:
    store = await filled(database, 1)
    async with running(store, NEVER) as feed:
        await until(lambda: feed.end.audit_id > 0)

        async def follow() -> list[str]:
            return [one.why async for one in feed.subscribe()]

        waiting = asyncio.create_task(follow())
    assert await asyncio.wait_for(waiting, PATIENCE) == []
    assert [one async for one in feed.subscribe()] == []
    await store.close()


async def test_an_outage_costs_no_change(sqlite_file: Path) -> None:
    """The database file is away for a while; one line says so, and one that it is back."""
    store = await filled(f"sqlite:///{sqlite_file}", 1)
    away, lines = sqlite_file.with_suffix(".away"), io.StringIO()
    log = open_log(LogSettings(format="json"), lines, Redactor())
    async with running(store, 0.01, log) as feed:
        changes = feed.subscribe()
        waiting = asyncio.create_task(take(changes, 1))
        await until(lambda: feed.end.audit_id > 0)
        sqlite_file.rename(away)
        await until(lambda: "changes not read" in lines.getvalue())
        away.rename(sqlite_file)
        await until(lambda: "changes are read again" in lines.getvalue())
        await change(store, "after")
        assert await waiting == ["after"]
    assert lines.getvalue().count("\n") == 2
    await store.close()


async def test_a_database_in_the_place_of_another_is_followed_from_its_beginning(
    tmp_path: Path, sqlite_file: Path
) -> None:
    store = await filled(f"sqlite:///{sqlite_file}", 5)
    fresh = await filled(f"sqlite:///{tmp_path / 'fresh.db'}", 1)
    await change(fresh, "news")
    await fresh.close()
    async with running(store, 0.01) as feed:
        changes = feed.subscribe()
        waiting = asyncio.create_task(take(changes, 2))
        await until(lambda: feed.end.audit_id == 5)
        for end in ("", "-wal", "-shm"):
            Path(f"{sqlite_file}{end}").unlink()
        (tmp_path / "fresh.db").rename(sqlite_file)
        assert (await waiting)[1] == "news"
    await store.close()
