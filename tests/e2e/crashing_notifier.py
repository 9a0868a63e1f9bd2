"""A notifier in a process of its own that is killed at a point the test names."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

from sqlalchemy import Connection

from midwatch.lifecycle import StopEvent, stop_on_signals
from midwatch.notification_settings import NotificationSettings
from midwatch.store.schema import database_now
from midwatch.store.sql import SqlStore, open_store

from ..acceptance.notify_support import notifier
from .crashing_agent import die, kill_around


def arm(store: SqlStore, point: str) -> None:
    """Make the process die around a method of the store, or within the transaction that moves the cursor."""
    if point == "before the commit":
        real = store.transactions.run

        async def run(function, *arguments, **options):  # type: ignore[no-untyped-def]
            def deadly(connection: Connection) -> object:
                result = function(connection, *arguments, **options)
                count = "SELECT count(*) FROM deliveries"
                if connection.exec_driver_sql(count).scalar():
                    die()
                return result

            return await real(deadly)

        store.transactions.run = run  # type: ignore[method-assign]
    elif point != "none":
        when, method = point.split()
        kill_around(store, method, after=when == "after")


async def main(database: str, settings: str, point: str, ahead: float) -> None:
    def clock(connection: Connection) -> datetime:
        return database_now(connection) + timedelta(seconds=ahead)

    store = await open_store(database, clock=clock)
    arm(store, point)
    chosen = NotificationSettings.model_validate_json(settings)
    stop = StopEvent()
    with stop_on_signals(stop):
        await notifier(store, chosen).run(stop)
    await store.close()


def run(database: str, settings: str, point: str, ahead: float = 0.0) -> None:
    asyncio.run(main(database, settings, point, ahead))
