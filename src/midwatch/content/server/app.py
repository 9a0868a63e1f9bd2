"""The content proxy as a process: the application, its socket, its background work and its end."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections.abc import AsyncIterator, Iterator, MutableMapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from midwatch.content.errors import ContentUnavailable
from midwatch.content.server.api import FolderApi
from midwatch.content.server.http import (
    JsonAnswer,
    ServerState,
    Tally,
    Workers,
    error_answer,
    on_http_error,
    on_midwatch_error,
)
from midwatch.content.server.legacy import PlainApi
from midwatch.content.server.store import ContentStore
from midwatch.content.server.volume import Volume, disk_errors
from midwatch.content.tokens import Keys
from midwatch.errors import MidwatchError, SettingsError
from midwatch.lifecycle import Clock, StopEvent, SystemClock
from midwatch.logs import Log
from midwatch.metrics import Exposition, Family, Sample, code_label
from midwatch.settings import ContentSettings

# ------------------------------------------------------------ guard
# Around every request: its line in the log, the end of what is not read, and the last word on a failure.

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


# ------------------------------------------------------------ health
# Whether the proxy lives, and whether it can do its work: write to the volume.

_LONGEST_PROBE = 5.0


class HealthApi:
    """Handlers for `/healthz` and `/readyz`."""

    def __init__(self, desk: ServerState, stop: StopEvent) -> None:
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


# ------------------------------------------------------------ connection
# A connection that ends when its next request does not come: uvicorn alone waits for ever for the first
# line, and for the rest of a body whose answer is sent already.


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


# ------------------------------------------------------------ figures
# `/metrics`: what the proxy tells Prometheus, without a token, as to a probe.

_REQUESTS = Family(
    "midwatch_content_requests_total",
    "counter",
    "Requests that were answered; `other` is no address of the proxy.",
    ("route", "code"),
)
_RECEIVED = Family(
    "midwatch_content_received_bytes_total", "counter", "Bytes of requests' bodies."
)
_SENT = Family(
    "midwatch_content_sent_bytes_total", "counter", "Bytes of answers' bodies."
)
_COMMITS = Family(
    "midwatch_content_commits_total",
    "counter",
    "Changes of folders that were accepted: commits, messages and plain writes.",
)
_CONFLICTS = Family(
    "midwatch_content_conflicts_total",
    "counter",
    "Commits that were computed from another version than the folder has (412).",
)
_WAITING = Family(
    "midwatch_content_waiting", "gauge", "Requests that wait for a change now."
)
_FOLDERS = Family(
    "midwatch_content_folders",
    "gauge",
    "Folders, as the last pass of the collector found them.",
)
_COLLECTED = Family(
    "midwatch_content_collected_chunks_total",
    "counter",
    "Chunks that nothing named and that were removed.",
)
_USED = Family(
    "midwatch_content_volume_used_bytes", "gauge", "What is used of the volume."
)
_FREE = Family(
    "midwatch_content_volume_free_bytes", "gauge", "What is left of the volume."
)
CONTENT = (
    _REQUESTS,
    _RECEIVED,
    _SENT,
    _COMMITS,
    _CONFLICTS,
    _WAITING,
    _FOLDERS,
    _COLLECTED,
    _USED,
    _FREE,
)
_COMMIT = "/v1/folders/{namespace}/{name}/commit"
_CHANGING = (_COMMIT, "/v1/folders/{namespace}/{name}/inbox", "/content/write")
_LONGEST_LOOK = 2.0
"""Seconds that a scrape waits for the volume; without an answer it tells the rest."""


class FiguresApi:
    """The handler for `/metrics`."""

    def __init__(self, desk: ServerState) -> None:
        self._desk = desk
        self._exposition = Exposition(CONTENT, self._samples)
        self._look: asyncio.Task[tuple[int, int] | None] | None = None

    def routes(self) -> list[Route]:
        return [Route("/metrics", self.metrics, methods=["GET"])]

    async def metrics(self, request: Request) -> Response:
        await self._look_at_volume()
        media_type = self._exposition.content_type
        return Response(self._exposition.text(), media_type=media_type)

    async def _look_at_volume(self) -> None:
        """One look at a time: on a disk that hangs, each would take a thread for ever."""
        if self._look is None or self._look.done():
            root = self._desk.settings.root.absolute()
            self._look = asyncio.create_task(
                self._desk.work(_used_and_free, root), name="volume"
            )
        await asyncio.wait({self._look}, timeout=_LONGEST_LOOK)

    def _samples(self) -> Iterator[Sample]:
        tally = self._desk.tally
        for (route, status), count in tally.requests.items():
            yield _REQUESTS(count, route, code_label(status))
        yield _RECEIVED(tally.received)
        yield _SENT(tally.sent)
        yield _COMMITS(sum(tally.requests[route, 200] for route in _CHANGING))
        yield _CONFLICTS(tally.requests[_COMMIT, 412])
        yield _WAITING(len(self._desk.changes))
        yield _COLLECTED(tally.collected)
        if tally.folders is not None:
            yield _FOLDERS(tally.folders)
        if self._look is not None and self._look.done():
            if (found := self._look.result()) is not None:
                yield _USED(found[0])
                yield _FREE(found[1])

    async def close(self) -> None:
        if self._look is not None:
            self._look.cancel()
            await asyncio.gather(self._look, return_exceptions=True)


def _used_and_free(root: Path) -> tuple[int, int] | None:
    """Bytes of the file system; None where it does not say."""
    try:
        found = shutil.disk_usage(root)
    except OSError:
        return None
    return found.used, found.free


# ------------------------------------------------------------ collect
# The pass in the background that removes chunks nothing needs, folders nobody uses, and what dead processes left.


async def collect_for_ever(desk: ServerState, stop: StopEvent, log: Log) -> None:
    """Look at once, then every `collect_interval`; a folder that fails does not keep the others."""
    while not stop:
        try:
            await desk.work(desk.store.clean)
            folders = await desk.work(desk.store.folders)
            desk.tally.folders = len(folders)
            for folder in folders:
                await _collect(desk, folder, log)
                if stop:
                    return
        except MidwatchError as error:
            log.warning("cannot collect", error=error.one_line())
        await stop.pause(desk.settings.collect_interval)


async def _collect(desk: ServerState, folder: str, log: Log) -> None:
    try:
        if await desk.work(desk.store.expire, folder):
            keep_for = desk.settings.keep_for
            log.info(
                "removed a folder that nobody used", folder=folder, unused_for=keep_for
            )
            return
        if count := await desk.work(desk.store.collect, folder):
            desk.tally.collected += count
            log.info("collected", folder=folder, chunks=count)
    except MidwatchError as error:
        log.warning("cannot collect", folder=folder, error=error.one_line())


_KEEP_ALIVE = 75
"""Seconds that a connection may idle: longer than the wait between two looks of a client."""
_BACKLOG = 1024


async def serve(
    settings: ContentSettings,
    keys: Keys,
    stop: StopEvent,
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
    stop: StopEvent,
    log: Log,
    clock: Clock | None = None,
) -> AsyncIterator[str]:
    """A server that runs while inside; yields its address. Raises SettingsError where it cannot."""
    clock = clock or SystemClock()
    with _volume(settings) as volume, _socket(settings) as listening:
        store = ContentStore(volume, settings, clock.now)
        desk = ServerState(store, settings, keys, clock, Workers())
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


async def _end_waits(desk: ServerState, stop: StopEvent) -> None:
    await stop.wait()
    desk.changes.end()


def _application(desk: ServerState, more: Sequence[Route], log: Log) -> ASGIApp:
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
