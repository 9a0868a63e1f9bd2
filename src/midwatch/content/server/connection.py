"""A connection that ends when its next request does not come: uvicorn alone waits for ever for the first
line, and for the rest of a body whose answer is sent already."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def guarded(seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol, with `seconds` for the head of a request from its first byte on."""

    class Guarded(H11Protocol):
        _opening: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._expect()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._at_work():
                self._unset()
            elif self._opening is None:
                self._expect()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unset()
            super().connection_lost(exc)

        def _at_work(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _expect(self) -> None:
            self._opening = self.loop.call_later(seconds, self._too_late)

        def _unset(self) -> None:
            if self._opening is not None:
                self._opening.cancel()
                self._opening = None

        def _too_late(self) -> None:
            self._opening = None
            if not self._at_work() and not self.transport.is_closing():
                self.transport.close()

    return Guarded
