"""Disk and CPU work in threads, so many at a time; requests that wait for their turn, not for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar
from weakref import WeakValueDictionary

from midwatch.content.server.answers import TooBusy

P = ParamSpec("P")
T = TypeVar("T")
_THREADS = 8
_TURN = 10.0
"""Seconds that a request waits for its turn before it is told to come again."""


class Workers:
    """Calls that block, in threads of our own."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="content")

    async def __call__(
        self, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: do(*args, **kwargs))

    async def each(self, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        """The pieces, each computed in a thread."""
        while (piece := await self(next, pieces, None)) is not None:
            yield piece

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class Turns:
    """So many at a time, and of one folder fewer, so that nobody takes them all. The others wait,
    and after a while are told to come again."""

    def __init__(
        self, many: int, of_one: int | None = None, seconds: float = _TURN
    ) -> None:
        self._free = asyncio.Semaphore(many)
        self._of_one = of_one or max(many // 4, 1)
        self._folders: WeakValueDictionary[str, asyncio.Semaphore] = (
            WeakValueDictionary()
        )
        self._seconds = seconds

    @contextlib.asynccontextmanager
    async def turn(self, folder: str) -> AsyncIterator[None]:
        """Raises TooBusy."""
        own = self._folders.get(folder)
        if own is None:
            own = self._folders[folder] = asyncio.Semaphore(self._of_one)
        deadline = asyncio.get_running_loop().time() + self._seconds
        async with _acquired(own, deadline), _acquired(self._free, deadline):
            yield


@contextlib.asynccontextmanager
async def _acquired(free: asyncio.Semaphore, deadline: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout_at(deadline):
            await free.acquire()
    except TimeoutError:
        raise TooBusy(retry_after=1.0) from None
    try:
        yield
    finally:
        free.release()
