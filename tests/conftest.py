"""What all tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from midwatch.store.sql import SqlStore, open_store
from midwatch.testing.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def store(clock: ManualClock) -> AsyncIterator[SqlStore]:
    """A SQLite store in memory whose database clock is `clock`."""
    opened = await open_store("sqlite://", clock=clock.database)
    yield opened
    await opened.close()
