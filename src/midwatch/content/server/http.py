"""Shared by all endpoints: reading and checking requests, responses and errors, limits, and waiting for changes.

Requests are bounded in bytes and in time, and checked before anything is done with them. Responses are JSON in ASCII;
every error has a status and `{error, hint}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import traceback
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from midwatch.content.errors import (
    ChunksMissing,
    ContentDamaged,
    ContentFull,
    ContentRefused,
    ContentTooLarge,
    ContentUnavailable,
    PathRefused,
    StreamBroken,
    Superseded,
    TokenRefused,
    VersionConflict,
)
from midwatch.content.server.store import ContentStore
from midwatch.content.tokens import Grant, Keys, verify
from midwatch.content.tree import (
    ATTEMPT,
    CHUNK,
    MAX_HASHES,
    SUPERSEDED,
    Delta,
    Entry,
    compact,
    entry_from_json,
    is_hash,
)
from midwatch.errors import MidwatchError, PermanentError, TemporaryError
from midwatch.lifecycle import Clock
from midwatch.settings import ContentSettings

P = ParamSpec("P")
T = TypeVar("T")
_TAG = re.compile(r'(?:W/)?"([^"]*)"')
_NUMBER = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_ONE_TAG = re.compile(r'"([0-9a-f]{64})"', re.ASCII)
_THREADS = 8
_SLOT_TIMEOUT = 10.0
"""Seconds that a request waits for a slot before it is answered 429."""


# ------------------------------------------------------------------ responses and errors


class RequestRefused(PermanentError):
    """A request that cannot be served, and its HTTP status."""

    def __init__(self, status: int, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


class TooBusy(TemporaryError):
    """The content proxy has too many requests at a time."""

    hint = "wait a moment; if this persists, raise content.max_streams or run a larger proxy"


STATUS: tuple[tuple[type[MidwatchError], int], ...] = (
    (StreamBroken, 400),
    (TokenRefused, 401),
    (ChunksMissing, 409),
    (Superseded, 409),
    (VersionConflict, 412),
    (ContentTooLarge, 413),
    (PathRefused, 422),
    (ContentRefused, 422),
    (ContentDamaged, 500),
    (ContentUnavailable, 503),
    (ContentFull, 507),
)
"""The first match counts; a test proves that every error of this package has one."""


class JsonResponse(Response):
    """JSON in ASCII: names that are not Unicode travel as escapes, which UTF-8 could not hold."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return compact(content)


def etag(version: str) -> dict[str, str]:
    """Return the header with a version."""
    return {"etag": f'"{version}"'}


def error_response(error: MidwatchError) -> JsonResponse:
    """Return the response for an error."""
    status = _status_of(error)
    body: dict[str, Any] = {"error": error.message, "hint": error.hint}
    headers: dict[str, str] = {}
    match error:
        case VersionConflict():
            body["version"] = error.current
            headers = etag(error.current)
        case ChunksMissing():
            body["missing"] = list(error.hashes)
        case Superseded():
            body |= {"code": SUPERSEDED, "attempt": error.current}
        case RequestRefused(status=408):
            headers["connection"] = "close"  # the rest of the body may never come
        case TokenRefused():
            headers["www-authenticate"] = "Bearer"
        case TemporaryError() if error.retry_after is not None:
            headers["retry-after"] = f"{error.retry_after:.0f}"
    return JsonResponse(body, status, headers)


def _status_of(error: MidwatchError) -> int:
    if isinstance(error, RequestRefused):
        return error.status
    if isinstance(error, TooBusy):
        return 429
    return next((code for kind, code in STATUS if isinstance(error, kind)), 500)


async def on_midwatch_error(request: Request, error: Exception) -> Response:
    """Answer a MidwatchError of a handler, and keep it for the log."""
    assert isinstance(error, MidwatchError)
    request.state.error = error.one_line()
    return error_response(error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer what the router itself refuses: an unknown address or method."""
    assert isinstance(error, HTTPException)
    body = {"error": error.detail, "hint": "see docs/kubernetes.md for the addresses"}
    return JsonResponse(body, error.status_code, dict(error.headers or {}))


# ------------------------------------------------------------------ bodies


async def read_body(request: Request, limit: float, seconds: float) -> bytes:
    """Return a whole JSON body.

    Args:
        request: The request.
        limit: Bytes at most.
        seconds: Time for all of it.

    Raises:
        RequestRefused: Another media type (415), or too slow (408).
        ContentTooLarge: It has more bytes.
    """
    check_media_type(request, "application/json")
    too_large = ContentTooLarge(f"the body of this request may have {limit:.0f} bytes")
    if int(request.headers.get("content-length", "0")) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise _too_slow(seconds) from None
    return bytes(body)


async def paced(request: Request, seconds: float) -> AsyncIterator[bytes]:
    """Yield a body of any length, as long as every `CHUNK` of it comes within `seconds`.

    Only the time spent waiting counts. Raises RequestRefused (408).
    """
    left, received = seconds, 0
    loop = asyncio.get_running_loop()
    stream = request.stream()
    while True:
        began = loop.time()
        try:
            async with asyncio.timeout(left):
                piece = await anext(stream, None)
        except TimeoutError:
            raise _too_slow(seconds) from None
        if piece is None:
            return
        received += len(piece)
        left -= loop.time() - began
        if received >= CHUNK:
            left, received = seconds, 0
        yield piece


def _too_slow(seconds: float) -> RequestRefused:
    return RequestRefused(
        408, f"the request did not arrive within {seconds:g} s", hint="try again"
    )


def check_media_type(request: Request, wanted: str) -> None:
    """Raise RequestRefused (415) if the body has another media type or is compressed."""
    given = request.headers.get("content-type", wanted).partition(";")[0].strip()
    if given.lower() != wanted:
        raise RequestRefused(
            415, f"the body is {given[:100]!a}, not {wanted}", hint=f"send {wanted}"
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestRefused(
            415, "the body is compressed", hint="send it without content-encoding"
        )


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body. Raises RequestRefused (400)."""
    try:
        data = json.loads(
            body, object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError):
        raise RequestRefused(400, "the body is not JSON") from None
    if not isinstance(data, dict):
        raise RequestRefused(400, "the body is not a JSON object")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse two members with one name: readers differ in which of them they take."""
    data = dict(pairs)
    if len(data) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise RequestRefused(400, f"{ascii(name[:200])} is in the body twice")
    return data


def _refuse_constant(name: str) -> None:
    """Refuse `NaN` and such: Python accepts them as JSON, others do not."""
    raise RequestRefused(400, f"{name} is not JSON")


def parse_hashes(body: bytes) -> list[str]:
    """Return the hashes in `{"hashes": [...]}`, each once. Raises RequestRefused (400) and ContentTooLarge."""
    names = parse_object(body).get("hashes")
    if not isinstance(names, list) or not all(map(is_hash, names)):
        raise RequestRefused(400, "hashes must be a list of SHA-256 in hexadecimal")
    if len(names) > MAX_HASHES:
        raise ContentTooLarge(
            f"{len(names)} hashes are more than {MAX_HASHES}",
            hint="send several requests",
        )
    return list(dict.fromkeys(names))


def parse_delta(body: bytes) -> Delta:
    """Return the change in `{"put": {path: entry}, "removed": [path]}`. Raises RequestRefused (400, 422)."""
    data = parse_object(body)
    put, removed = data.get("put", {}), data.get("removed", [])
    if not isinstance(put, dict) or not isinstance(removed, list):
        raise RequestRefused(400, "put must be an object and removed a list")
    if not all(isinstance(path, str) for path in removed):
        raise RequestRefused(400, "removed must be a list of paths")
    return Delta(
        {path: _entry(path, entry) for path, entry in put.items()}, frozenset(removed)
    )


def _entry(path: str, data: Any) -> Entry:
    try:
        return entry_from_json(data)
    except ValueError as error:
        raise RequestRefused(422, f"{ascii(path[:200])}: {error}") from None


# ------------------------------------------------------------------ headers and queries


def base_of(request: Request) -> str:
    """Return the one version in `If-Match`. Raises RequestRefused (400, 428)."""
    given = request.headers.get("if-match")
    if given is None:
        raise RequestRefused(
            428,
            "a commit must name the version that it is based on",
            hint='send If-Match: "VERSION"; an empty folder has a version too',
        )
    found = _ONE_TAG.fullmatch(given.strip())
    if found is None:
        raise RequestRefused(
            400, "If-Match must hold one version", hint='send If-Match: "VERSION"'
        )
    return found[1]


def attempt_of(request: Request) -> int:
    """Return the attempt that sends the request; 0 without one. Raises RequestRefused (400)."""
    given = request.headers.get(ATTEMPT)
    if given is None:
        return 0
    if not _NUMBER.fullmatch(given):
        raise RequestRefused(400, f"{ATTEMPT} must be a number, 1 or more")
    return int(given)


def known_versions(request: Request) -> set[str]:
    """Return the versions in `If-None-Match`."""
    return set(_TAG.findall(request.headers.get("if-none-match", "")))


def version_in(request: Request, name: str) -> str:
    """Return a version in the query; empty without one. Raises RequestRefused (400)."""
    given = request.query_params.get(name, "")
    if given and not is_hash(given):
        raise RequestRefused(400, f"{name} must be a version")
    return given


def seconds_of(request: Request, name: str, longest: float) -> float:
    """Return a number of seconds in the query, at most `longest`; 0 without one. Raises RequestRefused (400)."""
    given = request.query_params.get(name, "0")
    if not re.fullmatch(r"\d{1,6}(\.\d{1,3})?", given, re.ASCII):
        raise RequestRefused(400, f"{name} must be a number of seconds")
    return min(float(given), longest)


# ------------------------------------------------------------------ threads, limits, changes


class Workers:
    """A pool of threads for calls that block."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="content")

    async def __call__(
        self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: work(*args, **kwargs))

    async def each(self, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the pieces, each computed in a thread."""
        while (piece := await self(next, pieces, None)) is not None:
            yield piece

    def close(self) -> None:
        """Wait for the calls that run, and drop those that do not run yet."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class Streamed(StreamingResponse):
    """A response in pieces. Where its client goes away, its last piece, which may have megabytes, is freed at once.

    anyio keeps the cancellation of it in a reference cycle, with all that the frames on its way have.
    """

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)
            raise


class RequestLimit:
    """Bounds the requests at a time, in all and per folder, so that one folder cannot take all slots.

    Args:
        limit: Requests of all folders.
        of_one: Requests of one folder; a quarter of `limit` by default.
        seconds: How long a request waits for a slot.
    """

    def __init__(
        self, limit: int, of_one: int | None = None, seconds: float = _SLOT_TIMEOUT
    ) -> None:
        self._free = asyncio.Semaphore(limit)
        self._of_one = of_one or max(limit // 4, 1)
        self._folders: WeakValueDictionary[str, asyncio.Semaphore] = (
            WeakValueDictionary()
        )
        self._seconds = seconds

    @contextlib.asynccontextmanager
    async def slot(self, folder: str) -> AsyncIterator[None]:
        """Hold a slot while the block runs. Raises TooBusy."""
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


class ChangeNotifier:
    """Lets requests wait for a change of a folder, without a thread or a lock.

    Changes by this process are notified; those by other processes are found by polling.

    Args:
        poll: Seconds between two checks of a folder.
    """

    def __init__(self, poll: float) -> None:
        self._poll = poll
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._closed = False

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def notify(self, folder: str) -> None:
        """Wake the requests that wait for this folder."""
        for event in self._waiting.get(folder, ()):
            event.set()

    def close(self) -> None:
        """End every wait, also those to come."""
        self._closed = True
        for folder in self._waiting:
            self.notify(folder)

    async def wait(
        self, folder: str, seconds: float, done: Callable[[], Awaitable[bool]]
    ) -> None:
        """Return when `done` returns true, which is checked after each change, or after `seconds`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        event = asyncio.Event()
        self._waiting[folder].add(event)
        try:
            while not self._closed and loop.time() < deadline and not await done():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(
                        min(loop.time() + self._poll, deadline)
                    ):
                        await event.wait()
                event.clear()
        finally:
            self._waiting[folder].discard(event)
            if not self._waiting[folder]:
                del self._waiting[folder]


# ------------------------------------------------------------------ state


@dataclass(slots=True)
class ServerStats:
    """Counts since the start of the proxy.

    Attributes:
        requests: By route (the template of the address, without names of folders) and status.
        received: Bytes of request bodies.
        sent: Bytes of response bodies.
        collected: Segments that were removed.
        folders: As the last pass of the collector found them; None before the first.
    """

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    received: int = 0
    sent: int = 0
    collected: int = 0
    folders: int | None = None


@dataclass(slots=True)
class ServerState:
    """What the handlers share; `in_thread` runs calls that block."""

    store: ContentStore
    settings: ContentSettings
    keys: Keys
    clock: Clock
    in_thread: Workers = field(default_factory=Workers)
    stats: ServerStats = field(default_factory=ServerStats)
    changes: ChangeNotifier = field(init=False)
    streams: RequestLimit = field(init=False)
    commits: RequestLimit = field(init=False)

    def __post_init__(self) -> None:
        self.changes = ChangeNotifier(self.store.poll)
        self.streams = RequestLimit(self.settings.max_streams)
        # One per folder: the others would wait for its lock in threads that all need.
        self.commits = RequestLimit(self.settings.max_streams, of_one=1)

    def grant(self, request: Request) -> Grant:
        """Return the permissions of the request's token. Raises TokenRefused."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise TokenRefused(
                "the request has no token", hint="send Authorization: Bearer TOKEN"
            )
        return verify(self.keys(), token.strip(), now=self.clock.now())

    def folder(self, request: Request, *, write: bool) -> str:
        """Return the folder in the address, if the token permits it. Raises TokenRefused, RequestRefused (403)."""
        grant = self.grant(request)
        folder = "{namespace}/{name}".format(**request.path_params)
        request.state.folder = folder
        # Only folders named in a verified token become paths.
        if not (grant.may_write(folder) if write else grant.may_read(folder)):
            raise RequestRefused(
                403,
                f"the token does not permit {'writing' if write else 'reading'} this folder",
                hint="each session has a token of its own",
            )
        return folder

    async def body(self, request: Request, limit: float) -> bytes:
        """Return a whole JSON body of up to `limit` bytes; raises as `read_body`."""
        return await read_body(request, limit, self.settings.request_time)

    async def hold_stream(self, request: Request, folder: str) -> None:
        """Hold a slot of `streams` until the whole response is sent. Raises TooBusy."""
        await request.state.held.enter_async_context(self.streams.slot(folder))

    def check_waiting(self) -> None:
        """Raise TooBusy if too many requests wait for a change."""
        if len(self.changes) >= self.settings.max_waiting:
            raise TooBusy(
                "too many requests wait for a change; content.max_waiting is "
                f"{self.settings.max_waiting}",
                retry_after=5.0,
            )
