"""The measure of a process's own standstill: what counts, and what it spoils."""

from __future__ import annotations

import asyncio
import time

import pytest

from midwatch.monitor.standstill import BEAT, Standstill


class Clocks:
    """The two clocks of a machine."""

    def __init__(self) -> None:
        self.monotonic = 100.0
        self.suspended = 5.0
        self.stepped = 1e9

    def boottime(self) -> float:
        return self.monotonic + self.suspended

    def standstill(self) -> Standstill:
        return Standstill(
            lambda: self.monotonic,
            self.boottime,
            lambda: self.boottime() + self.stepped,
        )


async def test_a_blocked_loop_is_measured_and_an_idle_one_is_not() -> None:
    standstill = Standstill()
    standstill.start()
    mark = standstill.mark()
    time.sleep(0.5)
    assert standstill.since(mark) > 0.3, "also before the next beat"
    await asyncio.sleep(3 * BEAT)
    assert standstill.late() > 0.3
    stopped = standstill.late()
    standstill.stop()
    time.sleep(2 * BEAT)
    assert standstill.late() == stopped, "nothing is measured any more"


async def test_a_stopped_process_and_a_suspended_machine() -> None:
    clocks = Clocks()
    standstill = clocks.standstill()
    standstill.start()
    mark = standstill.mark()
    clocks.monotonic += 12
    assert standstill.since(mark) == pytest.approx(12, abs=0.2)
    assert standstill.settling() == pytest.approx(12, abs=0.2)
    late = standstill.late()
    clocks.suspended += 3600
    assert standstill.since(mark) == pytest.approx(3612, abs=0.2)
    assert standstill.late() == late, "monotonic time was suspended as well"
    assert standstill.settling() == 30
    standstill.stop()


async def test_the_wall_clock_of_a_machine_that_was_paused() -> None:
    clocks = Clocks()
    standstill = clocks.standstill()
    mark = standstill.mark()
    for step, total in ((0.5, 0), (-3600, 0), (60, 60), (4, 60)):
        clocks.stepped += step
        assert standstill.since(mark) == pytest.approx(total), step


def test_each_event_loop_has_its_own_beat() -> None:
    clocks = Clocks()
    standstill = clocks.standstill()

    async def stand(seconds: float) -> float:
        standstill.start()
        mark = standstill.mark()
        clocks.monotonic += seconds
        return standstill.since(mark)

    assert asyncio.run(stand(3)) == pytest.approx(3, abs=0.2)
    clocks.monotonic += 500  # no loop runs
    assert asyncio.run(stand(0)) == 0


@pytest.mark.parametrize(
    ("stood", "timeout", "good", "bad"),
    [
        (0.0, 10, False, False),
        (0.5, 10, False, False),
        (1.5, 10, False, True),  # a timeout within the observation may have run out
        (6.0, 10, True, True),
        (0.3, 2, False, True),
        (0.8, 1, False, True),
        (1.2, 2, True, True),
        (12, 60, False, True),
    ],
)
async def test_what_a_standstill_spoils(
    stood: float, timeout: float, good: bool, bad: bool
) -> None:
    clocks = Clocks()
    standstill = clocks.standstill()
    mark = standstill.mark()
    clocks.suspended += stood
    assert standstill.spoils(mark, timeout, bad=False) == good
    assert standstill.spoils(mark, timeout, bad=True) == bad
    assert f"stood still for {stood:.1f} s" in standstill.reason(mark)
