"""Waiting, from any thread or event loop, for something another thread brings about."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future

Condition = Callable[[], bool]


class Waiting:
    """Who waits for what. Change the state under `lock`, then call `changed`."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._waiters: dict[Future[None], Condition] = {}

    def changed(self) -> None:
        """Wake every waiter whose condition holds now."""
        with self.lock:
            ready = [waiter for waiter, holds in self._waiters.items() if holds()]
            for waiter in ready:
                del self._waiters[waiter]
        for waiter in ready:
            if waiter.set_running_or_notify_cancel():
                waiter.set_result(None)

    async def until(self, holds: Condition, timeout: float | None = None) -> bool:
        """Wait at most `timeout` seconds in an event loop; false if that was not enough."""
        waiter = self._register(holds)
        try:
            await asyncio.wait_for(asyncio.wrap_future(waiter), timeout)
        except TimeoutError:
            return False
        finally:
            self._forget(waiter)
        return True

    def until_sync(self, holds: Condition, timeout: float | None = None) -> bool:
        """As `until`, blocking the calling thread."""
        waiter = self._register(holds)
        try:
            waiter.result(timeout)
        except TimeoutError:
            return False
        finally:
            self._forget(waiter)
        return True

    def _register(self, holds: Condition) -> Future[None]:
        waiter: Future[None] = Future()
        with self.lock:
            self._waiters[waiter] = holds
        self.changed()
        return waiter

    def _forget(self, waiter: Future[None]) -> None:
        with self.lock:
            self._waiters.pop(waiter, None)
