"""The content proxy as a process: the application, its socket, background tasks and shutdown."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Generic, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from midwatch.content.errors import ContentUnavailable
from midwatch.content.server.api import FolderApi, LegacyApi
from midwatch.content.server.http import (
    JsonResponse,
    ServerState,
    ServerStats,
    Workers,
    error_response,
    on_http_error,
    on_midwatch_error,
)
from midwatch.content.server.objects import Objects, Overview, map_disk_errors
from midwatch.content.server.store import ContentStore
from midwatch.content.server.volume import Volume
from midwatch.content.tokens import Keys
from midwatch.errors import MidwatchError, SettingsError
from midwatch.exposition import Exposition
from midwatch.http_serving import (
    Server,
    address_of,
    listening,
    protocol_with_timeout,
)
from midwatch.lifecycle import Clock, StopEvent, SystemClock, cancel
from midwatch.logs import Log
from midwatch.metrics import Family, Sample, code_label
from midwatch.settings import ContentSettings

T = TypeVar("T")
_CLIENT_GONE = 499
"""In the log only: the client disconnected before its response (as nginx has it)."""
_PROBES = ("/health", "/healthz", "/readyz", "/metrics")
_OTHER = "other"
"""The route of unknown addresses: their paths may be anything."""
_PROBE_TIMEOUT = 5.0
_DISK_USAGE_TIMEOUT = 2.0
"""Seconds that a scrape waits for the volume; after that it answers without its usage."""
_KEEP_ALIVE = 75
"""Seconds that a connection may be idle: longer than a client waits between two requests."""
_COMMIT = "/v1/folders/{namespace}/{name}/commit"
_CHANGING = (_COMMIT, "/v1/folders/{namespace}/{name}/inbox", "/content/write")


# ------------------------------------------------------------------ the process


async def serve(
    settings: ContentSettings,
    keys: Keys,
    stop: StopEvent,
    log: Log,
    clock: Clock | None = None,
) -> None:
    """Serve until the stop, then let requests in flight finish within `content.grace`."""
    async with serving(settings, keys, stop, log, clock) as address:
        where = settings.url or str(settings.root)
        log.info("content proxy started", address=address, store=where)
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
    """Run a server while the block runs. Yields its address. Raises SettingsError if it cannot start."""
    clock = clock or SystemClock()
    socket = listening(settings.host, settings.port, setting="content.port")
    async with AsyncExitStack() as stack:
        objects = await stack.enter_async_context(_objects(settings))
        opened = stack.enter_context(socket)
        store = ContentStore(objects, settings, clock.now)
        state = ServerState(store, settings, keys, clock)
        health, metrics = HealthApi(state, stop), MetricsApi(state)
        app = _application(state, [*health.routes(), *metrics.routes()], log)
        server = Server(_config(app, settings))
        tasks = [
            asyncio.create_task(server.serve([opened]), name="uvicorn"),
            asyncio.create_task(collect_until(stop, state, log), name="collect"),
            asyncio.create_task(_close_changes(state, stop), name="close changes"),
        ]
        try:
            yield address_of(opened)
        finally:
            stop.set("the server ends")
            server.should_exit = True
            await asyncio.gather(*tasks)
            await health.close()
            await metrics.close()
            state.in_thread.close()


async def _close_changes(state: ServerState, stop: StopEvent) -> None:
    await stop.wait()
    state.changes.close()


def _application(state: ServerState, more: Sequence[Route], log: Log) -> ASGIApp:
    app = Starlette(
        routes=[*FolderApi(state).routes(), *LegacyApi(state).routes(), *more],
        exception_handlers={
            MidwatchError: on_midwatch_error,
            HTTPException: on_http_error,
        },
    )
    return Guard(app, log, state.clock, state.settings.request_time, state.stats)


def _config(app: ASGIApp, settings: ContentSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol_with_timeout(settings.request_time),
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


@contextlib.asynccontextmanager
async def _objects(settings: ContentSettings) -> AsyncIterator[Objects]:
    objects = await asyncio.to_thread(_bucket if settings.url else _volume, settings)
    try:
        yield objects
    finally:
        objects.close()


def _volume(settings: ContentSettings) -> Objects:
    try:
        with map_disk_errors():
            return Volume(settings.root.absolute())
    except MidwatchError as error:
        raise SettingsError(
            f"{settings.root}: {error.message}",
            path="content.root",
            hint="name a folder that this user may write",
        ) from error


def _bucket(settings: ContentSettings) -> Objects:
    from midwatch.content.server.bucket import Bucket  # a package of 15 MB

    assert settings.url is not None
    bucket = Bucket(settings.url, settings.keep_for)
    try:
        bucket.open()
    except MidwatchError as error:
        raise SettingsError(
            error.message, path="content.url", hint=error.hint
        ) from error
    return bucket


# ------------------------------------------------------------------ around every request


@dataclass(slots=True)
class _Exchange:
    """A request so far. `status` is 0 until its response begins."""

    status: int = 0
    received: int = 0
    sent: int = 0


class _NotRead(Exception):
    """The client does not read its response."""


class Guard:
    """The outermost ASGI application: logs and counts requests, and answers 500 after an unexpected error.

    `state.held` holds what a handler acquires until the whole response is sent.

    Args:
        app: The application.
        log: Where requests are logged.
        clock: Measures their duration.
        seconds: Time for the client to read a piece of a response.
        stats: Where requests are counted.
    """

    def __init__(
        self, app: Starlette, log: Log, clock: Clock, seconds: float, stats: ServerStats
    ) -> None:
        self._app = app
        self._stats = stats
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
        exchange, began = _Exchange(), self._clock.monotonic()
        state = scope.setdefault("state", {})
        try:
            async with AsyncExitStack() as state["held"]:
                await self._run(scope, receive, send, exchange)
        finally:
            self._log_request(scope, exchange, self._clock.monotonic() - began)
            route = self._routes.get(scope.get("endpoint"), _OTHER)
            self._stats.requests[route, exchange.status] += 1
            self._stats.received += exchange.received
            self._stats.sent += exchange.sent

    async def _run(
        self, scope: Scope, receive: Receive, send: Send, exchange: _Exchange
    ) -> None:
        async def counted() -> Message:
            message = await receive()
            exchange.received += len(message.get("body", b""))
            return message

        async def in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self._seconds):
                    await send(message)
            except TimeoutError:
                raise _NotRead from None
            exchange.status = message.get("status", exchange.status)
            exchange.sent += len(message.get("body", b""))

        try:
            await self._app(scope, counted, in_time)
        except (ClientDisconnect, _NotRead):
            # Nothing more is sent: the server closes a connection whose response has no end.
            exchange.status = _CLIENT_GONE
        except Exception as error:  # the outermost guard: one request, not the server
            self._log.error(
                "request failed",
                path=_path(scope),
                exc_info=error,
                after=exchange.status,
            )
            if not exchange.status:
                await _internal_error()(scope, receive, in_time)

    def _log_request(self, scope: Scope, exchange: _Exchange, seconds: float) -> None:
        log = self._log.debug if scope["path"] in _PROBES else self._log.info
        state = scope["state"]
        # The query and headers are left out: a token may be in either.
        log(
            "request",
            method=scope["method"],
            path=_path(scope),
            folder=state.get("folder"),
            status=exchange.status,
            ms=round(seconds * 1000, 1),
            received=exchange.received,
            sent=exchange.sent,
            **({"error": state["error"]} if "error" in state else {}),
        )


def _path(scope: Scope) -> str:
    return ascii(scope["path"][:300])[1:-1]


def _internal_error() -> JsonResponse:
    body = {"error": "the content proxy failed", "hint": "see its log; try again"}
    return JsonResponse(body, 500)


# ------------------------------------------------------------------ health and metrics


class _SharedCall(Generic[T]):
    """A call in a thread that runs once at a time: on a disk that hangs, each would take a thread for ever."""

    def __init__(self, in_thread: Workers, work: Callable[[], T]) -> None:
        self._in_thread = in_thread
        self._work = work
        self._task: asyncio.Task[T] | None = None

    async def wait(self, seconds: float) -> bool:
        """Start the call if it does not run, and wait for it. Return whether it has ended."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._in_thread(self._work))
        await asyncio.wait({self._task}, timeout=seconds)
        return self._task.done()

    def result(self) -> T | None:
        """Return the result, or raise the error of the call; None if it has not ended."""
        return self._task.result() if self._task and self._task.done() else None

    async def close(self) -> None:
        if self._task is not None:
            await cancel(self._task)


class HealthApi:
    """Handlers for `/healthz` (the process lives) and `/readyz` (it can write to the volume)."""

    def __init__(self, state: ServerState, stop: StopEvent) -> None:
        self._stop = stop
        self._probe = _SharedCall(state.in_thread, state.store.probe)

    def routes(self) -> list[Route]:
        return [
            Route("/healthz", self.alive, methods=["GET"]),
            Route("/health", self.alive, methods=["GET"]),
            Route("/readyz", self.ready, methods=["GET"]),
        ]

    async def alive(self, request: Request) -> Response:
        return JsonResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        if self._stop:
            return error_response(ContentUnavailable("the proxy is stopping", hint=""))
        try:
            if not await self._probe.wait(_PROBE_TIMEOUT):
                raise ContentUnavailable(
                    f"the volume did not answer within {_PROBE_TIMEOUT:g} s",
                    hint="check the volume of the content proxy",
                )
            self._probe.result()
        except MidwatchError as error:
            return error_response(error)
        return JsonResponse({"status": "ok"})

    async def close(self) -> None:
        await self._probe.close()


_REQUESTS = Family(
    "midwatch_content_requests_total",
    "counter",
    "Requests answered; the route of an unknown address is `other`.",
    ("route", "code"),
)
_RECEIVED = Family(
    "midwatch_content_received_bytes_total",
    "counter",
    "Bytes of request bodies received.",
)
_SENT = Family(
    "midwatch_content_sent_bytes_total", "counter", "Bytes of response bodies sent."
)
_COMMITS = Family(
    "midwatch_content_commits_total",
    "counter",
    "Changes of folders accepted: commits, messages and plain writes.",
)
_CONFLICTS = Family(
    "midwatch_content_conflicts_total",
    "counter",
    "Commits refused because they were based on another version (412).",
)
_WAITING = Family(
    "midwatch_content_waiting", "gauge", "Requests waiting for a change now."
)
_FOLDERS = Family(
    "midwatch_content_folders", "gauge", "Folders at the last pass of the collector."
)
_COLLECTED = Family(
    "midwatch_content_collected_segments_total",
    "counter",
    "Segments removed because no manifest needed them.",
)
_USED = Family(
    "midwatch_content_volume_used_bytes", "gauge", "Bytes used on the volume."
)
_FREE = Family(
    "midwatch_content_volume_free_bytes", "gauge", "Bytes free on the volume."
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


class MetricsApi:
    """The handler for `/metrics`; like a probe, it needs no token."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._disk_usage = _SharedCall(state.in_thread, state.store.disk_usage)
        self._exposition = Exposition(CONTENT, self._samples)

    def routes(self) -> list[Route]:
        return [Route("/metrics", self.metrics, methods=["GET"])]

    async def metrics(self, request: Request) -> Response:
        await self._disk_usage.wait(_DISK_USAGE_TIMEOUT)
        media_type = self._exposition.content_type
        return Response(self._exposition.text(), media_type=media_type)

    def _samples(self) -> Iterator[Sample]:
        stats = self._state.stats
        for (route, status), count in stats.requests.items():
            yield _REQUESTS(count, route, code_label(status))
        yield _RECEIVED(stats.received)
        yield _SENT(stats.sent)
        yield _COMMITS(sum(stats.requests[route, 200] for route in _CHANGING))
        yield _CONFLICTS(stats.requests[_COMMIT, 412])
        yield _WAITING(len(self._state.changes))
        yield _COLLECTED(stats.collected)
        if stats.folders is not None:
            yield _FOLDERS(stats.folders)
        if (usage := self._disk_usage.result()) is not None:
            yield _USED(usage[0])
            yield _FREE(usage[1])

    async def close(self) -> None:
        await self._disk_usage.close()


# ------------------------------------------------------------------ the collector


async def collect_until(stop: StopEvent, state: ServerState, log: Log) -> None:
    """Remove unneeded content, unused folders and incomplete files, at once and every `content.collect_interval`.

    A folder that fails does not stop the collection of the others.
    """
    while not stop:
        try:
            await state.in_thread(state.store.clean)
            folders = await state.in_thread(state.store.overview)
            state.stats.folders = len(folders)
            for seen in folders:
                await _collect(state, seen, log)
                if stop:
                    return
        except MidwatchError as error:
            log.warning("cannot collect", error=error.one_line())
        await stop.pause(state.settings.collect_interval)


async def _collect(state: ServerState, seen: Overview, log: Log) -> None:
    folder = seen.folder
    try:
        if await state.in_thread(state.store.expire, seen):
            keep_for = state.settings.keep_for
            log.info("removed an unused folder", folder=folder, unused_for=keep_for)
            return
        if count := await state.in_thread(state.store.collect, seen):
            state.stats.collected += count
            log.info("collected", folder=folder, segments=count)
    except MidwatchError as error:
        log.warning("cannot collect", folder=folder, error=error.one_line())
