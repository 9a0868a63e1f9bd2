"""One connection to a database server for all the evidence of a ticket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Generic, Protocol, Self, TypeVar

from midwatch.errors import ObservationFailed


class Connects(Protocol):
    """A connection that is opened by entering it, which raises ObservationFailed."""

    async def __aenter__(self) -> Self: ...

    async def close(self) -> None: ...


C = TypeVar("C", bound=Connects)


class SharedConnection(Generic[C]):
    """One connection for all the evidence of a ticket, open while it is used.

    Concurrent users get the same connection, or the same failure. The last one closes it.

    Args:
        connect: Returns a connection that is not open yet.
    """

    def __init__(self, connect: Callable[[], C]) -> None:
        self._connect = connect
        self._lock = asyncio.Lock()
        self._users = 0
        self._connection: C | None = None
        self._failure: ObservationFailed | None = None

    @contextlib.asynccontextmanager
    async def use(self) -> AsyncIterator[C]:
        """Yield the connection. Raises ObservationFailed, and what opening the connection does."""
        self._users += 1
        try:
            async with self._lock:
                yield await self._opened()
        finally:
            self._users -= 1
            if self._users == 0:
                await self._close()

    async def _opened(self) -> C:
        if self._failure is not None:
            raise self._failure
        if self._connection is None:
            try:
                self._connection = await self._connect().__aenter__()
            except ObservationFailed as failure:
                self._failure = failure
                raise
        return self._connection

    async def _close(self) -> None:
        connection, self._connection, self._failure = self._connection, None, None
        if connection is not None:
            await connection.close()
