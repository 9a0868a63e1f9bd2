"""One connection for all the evidence of a ticket, open only while somebody needs it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from ...errors import ObservationFailed
from .connection import Connection
from .settings import PostgresSettings


class SharedConnection:
    """Who comes while others are waiting gets the same connection, or the same failure.

    The last one out closes it, so nothing has to be closed at the end.
    """

    def __init__(self, settings: PostgresSettings) -> None:
        self.settings = settings
        self._lock = asyncio.Lock()
        self._users = 0
        self._connection: Connection | None = None
        self._failure: ObservationFailed | None = None

    @contextlib.asynccontextmanager
    async def use(self) -> AsyncIterator[Connection]:
        """Raises Unreachable, Exhausted or ObservationFailed."""
        self._users += 1
        try:
            async with self._lock:
                yield await self._opened()
        finally:
            self._users -= 1
            if self._users == 0:
                await self._close()

    async def _opened(self) -> Connection:
        if self._failure is not None:
            raise self._failure
        if self._connection is None:
            try:
                self._connection = await Connection(self.settings).__aenter__()
            except ObservationFailed as failure:
                self._failure = failure
                raise
        return self._connection

    async def _close(self) -> None:
        connection, self._connection, self._failure = self._connection, None, None
        if connection is not None:
            await connection.close()
