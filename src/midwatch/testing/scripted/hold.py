"""A gate in front of a reply: a test does things while a call is in flight."""

from __future__ import annotations

from collections.abc import Callable

from .answers import Answer
from .exchange import Exchange, Reply
from .waiting import Waiting


class Hold:
    """A gate: requests wait in front of it until `release`; then, and ever after, they get `then`.

    A test lets the call arrive, does what has to happen meanwhile, and releases it; it needs no
    sleep. Any thread and any event loop may wait and release.
    """

    def __init__(self, then: Reply = Answer()) -> None:
        self.then = then
        self._waiting = Waiting()
        self._arrived = 0
        self._released = False

    async def send(self, exchange: Exchange) -> None:
        self._change(self._arrive)
        await self._waiting.until(lambda: self._released)
        await self.then.send(exchange)

    async def arrived(self, count: int = 1, timeout: float = 10.0) -> None:
        """Return once so many requests have come. Raises TimeoutError after `timeout` seconds."""
        if not await self._waiting.until(lambda: self._arrived >= count, timeout):
            raise self._too_late(count, timeout)

    def arrived_sync(self, count: int = 1, timeout: float = 10.0) -> None:
        """As `arrived`, blocking the calling thread."""
        if not self._waiting.until_sync(lambda: self._arrived >= count, timeout):
            raise self._too_late(count, timeout)

    def release(self) -> None:
        """Open the gate."""
        self._change(self._open)

    def _change(self, change: Callable[[], None]) -> None:
        with self._waiting.lock:
            change()
        self._waiting.changed()

    def _arrive(self) -> None:
        self._arrived += 1

    def _open(self) -> None:
        self._released = True

    def _too_late(self, count: int, timeout: float) -> TimeoutError:
        return TimeoutError(
            f"{self._arrived} of {count} requests reached the hold in {timeout:g} s"
        )
