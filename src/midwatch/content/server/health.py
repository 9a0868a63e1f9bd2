"""Whether the proxy lives, and whether it can do its work: write to the volume."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from midwatch.content.errors import ContentUnavailable
from midwatch.content.server.answers import JsonAnswer, error_answer
from midwatch.content.server.desk import Desk
from midwatch.errors import MidwatchError
from midwatch.lifecycle import Stop

_LONGEST_PROBE = 5.0


class HealthApi:
    """Handlers for `/healthz` and `/readyz`."""

    def __init__(self, desk: Desk, stop: Stop) -> None:
        self._desk = desk
        self._stop = stop
        self._probe: asyncio.Task[None] | None = None

    def routes(self) -> list[Route]:
        return [
            Route("/healthz", self.alive, methods=["GET"]),
            Route("/health", self.alive, methods=["GET"]),
            Route("/readyz", self.ready, methods=["GET"]),
        ]

    async def alive(self, request: Request) -> Response:
        return JsonAnswer({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        if self._stop:
            return error_answer(ContentUnavailable("the proxy is stopping", hint=""))
        try:
            await self._probed()
        except MidwatchError as error:
            return error_answer(error)
        return JsonAnswer({"status": "ok"})

    async def _probed(self) -> None:
        """One probe at a time: on a disk that hangs, each would take a thread for ever."""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(
                self._desk.work(self._desk.store.probe), name="probe"
            )
        await asyncio.wait({self._probe}, timeout=_LONGEST_PROBE)
        if not self._probe.done():
            raise ContentUnavailable(
                f"the volume did not answer within {_LONGEST_PROBE:g} s",
                hint="check the volume of the content proxy",
            )
        self._probe.result()

    async def close(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            with contextlib.suppress(asyncio.CancelledError, MidwatchError):
                await self._probe
