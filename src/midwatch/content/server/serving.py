"""The content proxy as a process: the application, its socket, its background work and its end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator, Sequence

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp

from midwatch.content.server.answers import on_http_error, on_midwatch_error
from midwatch.content.server.api import FolderApi
from midwatch.content.server.collect import collect_for_ever
from midwatch.content.server.connection import guarded
from midwatch.content.server.desk import Desk
from midwatch.content.server.disk import disk_errors
from midwatch.content.server.figures import FiguresApi
from midwatch.content.server.guard import Guard
from midwatch.content.server.health import HealthApi
from midwatch.content.server.keys import Keys
from midwatch.content.server.plain import PlainApi
from midwatch.content.server.store import ContentStore
from midwatch.content.server.volume import Volume
from midwatch.content.server.workers import Workers
from midwatch.errors import MidwatchError, SettingsError
from midwatch.lifecycle import Clock, Stop, SystemClock
from midwatch.logs import Log
from midwatch.settings import ContentSettings

_KEEP_ALIVE = 75
"""Seconds that a connection may idle: longer than the wait between two looks of a client."""
_BACKLOG = 1024


async def serve(
    settings: ContentSettings,
    keys: Keys,
    stop: Stop,
    log: Log,
    clock: Clock | None = None,
) -> None:
    """Serve until the stop, then let requests in flight finish within the grace."""
    async with serving(settings, keys, stop, log, clock) as address:
        log.info("content proxy started", address=address, root=str(settings.root))
        await stop.wait()
        log.info("content proxy stopping", reason=stop.reason)


@contextlib.asynccontextmanager
async def serving(
    settings: ContentSettings,
    keys: Keys,
    stop: Stop,
    log: Log,
    clock: Clock | None = None,
) -> AsyncIterator[str]:
    """A server that runs while inside; yields its address. Raises SettingsError where it cannot."""
    clock = clock or SystemClock()
    with _volume(settings) as volume, _socket(settings) as listening:
        store = ContentStore(volume, settings, clock.now)
        desk = Desk(store, settings, keys, clock, Workers())
        health = HealthApi(desk, stop)
        figures = FiguresApi(desk)
        app = _application(desk, [*health.routes(), *figures.routes()], log)
        server = _Server(_config(app, settings))
        running = asyncio.create_task(server.serve([listening]), name="uvicorn")
        collecting = asyncio.create_task(
            collect_for_ever(desk, stop, log), name="collect"
        )
        host, port = listening.getsockname()[:2]
        waits = asyncio.create_task(_end_waits(desk, stop), name="end of waits")
        try:
            yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
        finally:
            stop.set("the server ends")
            server.should_exit = True
            await asyncio.gather(running, collecting, waits)
            await health.close()
            await figures.close()
            desk.work.close()


async def _end_waits(desk: Desk, stop: Stop) -> None:
    await stop.wait()
    desk.changes.end()


def _application(desk: Desk, more: Sequence[Route], log: Log) -> ASGIApp:
    app = Starlette(
        routes=[*FolderApi(desk).routes(), *PlainApi(desk).routes(), *more],
        exception_handlers={
            MidwatchError: on_midwatch_error,
            HTTPException: on_http_error,
        },
    )
    return Guard(app, log, desk.clock, desk.settings.request_time, desk.tally)


class _Server(uvicorn.Server):
    """Signals are ours: they set the one stop event."""

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()


def _config(app: ASGIApp, settings: ContentSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=guarded(settings.request_time),
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.max_waiting + 1000,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=round(settings.grace),
    )


@contextlib.contextmanager
def _volume(settings: ContentSettings) -> Iterator[Volume]:
    try:
        with disk_errors():
            volume = Volume(settings.root.absolute())
    except MidwatchError as error:
        raise SettingsError(
            f"{settings.root}: {error.message}",
            path="content.root",
            hint="name a folder that this user may write",
        ) from error
    try:
        yield volume
    finally:
        volume.close()


@contextlib.contextmanager
def _socket(settings: ContentSettings) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listening = socket.create_server(
            (settings.host, settings.port), family=family, backlog=_BACKLOG
        )
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}",
            path="content.port",
            hint="choose another port, or end what listens there",
        ) from None
    with listening:
        # asyncio sets it only where the protocol was named; without it each small answer takes 40 ms.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield listening
