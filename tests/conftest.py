"""What all tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import settings

from midwatch.store.sql import SqlStore, open_store
from midwatch.testing.fakes import ManualClock

# The same examples on every machine and in every run: whoever breaks a property is the one
# who changed something. `pytest --hypothesis-profile=explore` looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("same")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def store(clock: ManualClock) -> AsyncIterator[SqlStore]:
    """A SQLite store in memory whose database clock is `clock`."""
    opened = await open_store("sqlite://", clock=clock.database)
    yield opened
    await opened.close()
