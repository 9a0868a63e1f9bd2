"""The watcher of pull requests goes on after an error that nobody expected."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace
from typing import Any

from midwatch.lifecycle import StopEvent, SystemClock
from midwatch.logs import Log
from midwatch.pull_requests.watcher import PullRequestWatcher

SEVERAL = 9


class Hurried(SystemClock):
    """Sleeps no time, and remembers for how long it should have."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


class Records:
    """Fails in a way that is no error of the store, then has two rows, and then ends the watch."""

    def __init__(self, stop: StopEvent) -> None:
        self.stop = stop
        self.asked = 0
        self.changed: dict[int, dict[str, Any]] = {}

    async def due(self, seconds: float) -> list[Any]:
        self.asked += 1
        if self.asked <= SEVERAL:
            raise KeyError("a bug")
        self.stop.set()
        row = {"ticket": 1, "repository": "r", "failures": 0, "last_error": None}
        return [SimpleNamespace(id=id_, number=1, **row) for id_ in (1, 2)]

    async def change(self, row: Any, values: dict[str, Any], seconds: float) -> None:
        self.changed[row.id] = {**values, "seconds": seconds}


class Forges:
    closed = False

    def of(self, repository: str) -> Any:
        raise ZeroDivisionError("another bug")

    async def close(self) -> None:
        self.closed = True


async def test_a_bug_is_logged_and_tried_again_later() -> None:
    clock, failed = Hurried(), list[type | None]()
    stop = StopEvent(clock)
    records, forges = Records(stop), Forges()
    publisher: Any = SimpleNamespace(records=records, store=None, forges=forges)
    log = Log(lambda line: failed.append(sys.exc_info()[0]), logging.ERROR)
    await PullRequestWatcher(publisher, 60.0, log, str).run(stop)
    assert clock.slept == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert failed == [KeyError] * SEVERAL + [ZeroDivisionError] * 2
    assert set(records.changed) == {1, 2}, "one keeps no other waiting"
    for changed in records.changed.values():
        assert changed["last_error"] == "ZeroDivisionError"
        assert changed["failures"] == 1 and changed["seconds"] == 120
    assert forges.closed
