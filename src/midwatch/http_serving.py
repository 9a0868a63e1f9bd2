"""Run an ASGI application on a socket: how each server of Midwatch listens, times requests out and stops.

Only a process that serves HTTP imports this module: uvicorn is no dependency of the base package.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from midwatch.errors import SettingsError

_BACKLOG = 1024


class Server(uvicorn.Server):
    """Leaves the signals to the process, where they set the one stop event."""

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()


@contextlib.contextmanager
def listening(host: str, port: int, *, setting: str) -> Iterator[socket.socket]:
    """Listen while the block runs.

    Args:
        host: The address.
        port: The port; 0 for any that is free.
        setting: Path of the setting that an error names.

    Raises:
        SettingsError: The address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        opened = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            path=setting,
            hint="choose another port, or stop the process that listens there",
        ) from None
    with opened:
        # asyncio sets it only where the protocol was named; without it each small response takes 40 ms.
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield opened


def address_of(opened: socket.socket, scheme: str = "http") -> str:
    """Return the URL of a listening socket, without a path."""
    host, port = opened.getsockname()[:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def protocol_with_timeout(seconds: float) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with a timeout for the head of a request, from its first byte on.

    uvicorn alone waits for ever for the first line, and for the rest of a body whose response is sent already.
    """

    class TimedProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._start()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._is_busy():
                self._cancel()
            elif self._timer is None:
                self._start()

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel()
            super().connection_lost(exc)
            # uvicorn does so only where the connection ended without an error.
            self._unset_keepalive_if_required()

        def _is_busy(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _start(self) -> None:
            self._timer = self.loop.call_later(seconds, self._expired)

        def _cancel(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _expired(self) -> None:
            self._timer = None
            if not self._is_busy() and not self.transport.is_closing():
                self.transport.close()

    return TimedProtocol
