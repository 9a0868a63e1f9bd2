"""Around every request: its line in the log, the end of what is not read, and the last word on a failure."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from midwatch.content.server.answers import JsonAnswer
from midwatch.content.server.tally import Tally
from midwatch.lifecycle import Clock
from midwatch.logs import Log

_GONE = 499
"""In the log only: the client went away before its answer (as nginx has it)."""
_PROBES = ("/health", "/healthz", "/readyz", "/metrics")
_OTHER = "other"
"""The route of what has none, whatever its path: that may be anything."""


@dataclass(slots=True)
class _Seen:
    """What is known of a request so far. `status` is 0 until its answer begins."""

    status: int = 0
    received: int = 0
    sent: int = 0


class _NotRead(Exception):
    """The client does not read its answer."""


class Guard:
    """ASGI, outermost. `state.held` keeps what a handler takes until all of its answer is sent."""

    def __init__(
        self, app: Starlette, log: Log, clock: Clock, seconds: float, tally: Tally
    ) -> None:
        self._app = app
        self._tally = tally
        routes = [route for route in app.routes if isinstance(route, Route)]
        self._routes: dict[object, str] = {
            route.endpoint: route.path for route in routes
        }
        self._log = log
        self._clock = clock
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        seen, began = _Seen(), self._clock.monotonic()
        state = scope.setdefault("state", {})
        try:
            async with AsyncExitStack() as state["held"]:
                await self._served(scope, receive, send, seen)
        finally:
            self._tell(scope, state, seen, self._clock.monotonic() - began)
            route = self._routes.get(scope.get("endpoint"), _OTHER)
            self._tally.served(route, seen.status, seen.received, seen.sent)

    async def _served(
        self, scope: Scope, receive: Receive, send: Send, seen: _Seen
    ) -> None:
        async def counted() -> Message:
            message = await receive()
            seen.received += len(message.get("body", b""))
            return message

        async def in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self._seconds):
                    await send(message)
            except TimeoutError:
                raise _NotRead from None
            seen.status = message.get("status", seen.status)
            seen.sent += len(message.get("body", b""))

        try:
            await self._app(scope, counted, in_time)
        except (ClientDisconnect, _NotRead):
            # Nothing is sent any more: the server closes a connection whose answer has no end.
            seen.status = _GONE
        except Exception as error:  # the outermost guard: one request, not the server
            self._log.error(
                "request failed", path=_path(scope), exc_info=error, after=seen.status
            )
            if not seen.status:
                await _apology()(scope, receive, in_time)

    def _tell(
        self,
        scope: Scope,
        state: MutableMapping[str, Any],
        seen: _Seen,
        seconds: float,
    ) -> None:
        said = self._log.debug if scope["path"] in _PROBES else self._log.info
        # The query stays out, and headers: a token may be in either.
        said(
            "request",
            method=scope["method"],
            path=_path(scope),
            folder=state.get("folder"),
            status=seen.status,
            ms=round(seconds * 1000, 1),
            received=seen.received,
            sent=seen.sent,
            **({"error": state["error"]} if "error" in state else {}),
        )


def _path(scope: Scope) -> str:
    return ascii(scope["path"][:300])[1:-1]


def _apology() -> JsonAnswer:
    body = {"error": "the content proxy failed", "hint": "its log says how; try again"}
    return JsonAnswer(body, 500)
