"""What a daemon knows for good is not looked through again and again."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from midwatch.lifecycle import collect_from_now_on
from midwatch.monitor.loop import MonitorLoop
from midwatch.store.sql import SqlStore
from midwatch.testing.fakes import FakeSubject, ManualClock, healthy


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def is_looked_through(thing: object) -> bool:
    return any(one is thing for one in gc.get_objects())


def test_a_program_that_uses_the_library_decides_by_itself() -> None:
    known = [1]
    collect_from_now_on()
    assert is_looked_through(known)


async def test_a_monitor_keeps_what_it_knows_after_its_first_round(
    store: SqlStore, clock: ManualClock
) -> None:
    monitor = MonitorLoop(store, [FakeSubject("db", [healthy()])], clock=clock)
    gc.freeze()
    known = [1]
    assert is_looked_through(known)
    monitor._ended_round([await monitor.cycle()], 0.0)
    assert not is_looked_through(known)
    later = [2]
    monitor._ended_round([await monitor.cycle()], 0.0)
    assert is_looked_through(later)
    await monitor.close()
