"""Waiting for a folder to change, without a thread or a lock: told by this process, looked up for others."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable

_POLL = 2.0
"""Seconds between two looks: what another process on the volume has changed shows after so long."""


class Changes:
    """Who waits for which folder."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._ended = False

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def tell(self, folder: str) -> None:
        """The folder has changed."""
        for event in self._waiting.get(folder, ()):
            event.set()

    def end(self) -> None:
        """Every wait ends now, and those to come at once."""
        self._ended = True
        for folder in self._waiting:
            self.tell(folder)

    async def wait(
        self, folder: str, seconds: float, over: Callable[[], Awaitable[bool]]
    ) -> None:
        """Return when `over` says so, which is asked after each change, or after `seconds`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        event = asyncio.Event()
        self._waiting[folder].add(event)
        try:
            while not self._ended and loop.time() < deadline and not await over():
                left = min(_POLL, deadline - loop.time())
                await _wait_for(event, left)
                event.clear()
        finally:
            self._waiting[folder].discard(event)
            if not self._waiting[folder]:
                del self._waiting[folder]


async def _wait_for(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(max(seconds, 0)):
            await event.wait()
    except TimeoutError:
        pass
