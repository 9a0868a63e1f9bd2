"""A clock that a test moves by hand."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection


class ManualClock:
    """Time stands still until `advance`. Satisfies `midwatch.lifecycle.Clock`.

    `database` serves as the database's clock of an `SqlStore`, so that leases and waits
    follow the same time.
    """

    def __init__(
        self, start: datetime = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    ) -> None:
        self._wall = start
        self._elapsed = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        return self._wall

    def monotonic(self) -> float:
        return self._elapsed

    def database(self, connection: Connection) -> datetime:
        return self._wall

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        due = self._elapsed + seconds
        heapq.heappush(self._sleepers, (due, next(self._order), woken))
        await woken

    @property
    def sleeping(self) -> list[float]:
        """Seconds from now until each sleeper is due, soonest first."""
        return sorted(
            due - self._elapsed for due, _, woken in self._sleepers if not woken.done()
        )

    async def advance(self, seconds: float) -> None:
        """Move on, waking every sleeper at its own moment and letting it act."""
        end = self._elapsed + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, woken = heapq.heappop(self._sleepers)
            self._move(due - self._elapsed)
            if not woken.done():
                woken.set_result(None)
                for _ in range(5):
                    await asyncio.sleep(0)
        self._move(end - self._elapsed)

    def step_wall_clock(self, seconds: float) -> None:
        """Set the wall clock, as an operator or NTP does; monotonic time does not notice."""
        self._wall += timedelta(seconds=seconds)

    def _move(self, seconds: float) -> None:
        self._elapsed += seconds
        self._wall += timedelta(seconds=seconds)
