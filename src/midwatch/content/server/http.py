"""What a request is answered: JSON in ASCII, and every error as a status with {error, hint}."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

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
"""The first that fits; a test proves that every error of this package has one."""


class RequestRefused(PermanentError):
    """A request that cannot be served, with the HTTP status that says so."""

    def __init__(self, status: int, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


class TooBusy(TemporaryError):
    """The content proxy has more to do than it takes on at a time."""

    hint = (
        "wait a moment; if it stays so, raise content.max_streams or run a larger proxy"
    )


class JsonAnswer(Response):
    """ASCII: names that are not Unicode travel as escapes, which UTF-8 could not hold."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return compact(content)


def etag(version: str) -> dict[str, str]:
    return {"etag": f'"{version}"'}


def status_of(error: MidwatchError) -> int:
    if isinstance(error, RequestRefused):
        return error.status
    if isinstance(error, TooBusy):
        return 429
    return next((code for kind, code in STATUS if isinstance(error, kind)), 500)


def error_answer(error: MidwatchError) -> JsonAnswer:
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
            headers["connection"] = "close"  # the rest of the request may come for ever
        case TokenRefused():
            headers["www-authenticate"] = "Bearer"
        case TemporaryError() if error.retry_after is not None:
            headers["retry-after"] = f"{error.retry_after:.0f}"
    return JsonAnswer(body, status_of(error), headers)


async def on_midwatch_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MidwatchError)
    request.state.error = error.one_line()
    return error_answer(error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """What the router itself refuses: an address or a method that is not there."""
    assert isinstance(error, HTTPException)
    body = {"error": error.detail, "hint": "see docs/kubernetes.md for the addresses"}
    return JsonAnswer(body, error.status_code, dict(error.headers or {}))


# ------------------------------------------------------------ bodies
# Reading requests: bounded in bytes and in time, and checked before anything is done with them.

_TAG = re.compile(r'(?:W/)?"([^"]*)"')
_NUMBER = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_ONE_TAG = re.compile(r'"([0-9a-f]{64})"', re.ASCII)


async def read_body(request: Request, limit: float, seconds: float) -> bytes:
    """All of a JSON body. Raises RequestRefused (408, 415) and ContentTooLarge."""
    check_media_type(request, "application/json")
    too_large = ContentTooLarge(f"a request may have {limit:.0f} bytes here")
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
    """The pieces of a body of any length, as long as every `CHUNK` of it comes within `seconds`.

    Only the time that we wait counts. Raises RequestRefused (408).
    """
    left, got = seconds, 0
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
        got += len(piece)
        left -= loop.time() - began
        if got >= CHUNK:
            left, got = seconds, 0
        yield piece


def _too_slow(seconds: float) -> RequestRefused:
    return RequestRefused(
        408, f"the request did not come within {seconds:g} s", hint="try again"
    )


def check_media_type(request: Request, wanted: str) -> None:
    """Raises RequestRefused (415)."""
    given = request.headers.get("content-type", wanted).partition(";")[0].strip()
    if given.lower() != wanted:
        raise RequestRefused(415, "the body is of another type", hint=f"send {wanted}")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestRefused(415, "the body is compressed", hint="send it as it is")


def parse_object(body: bytes) -> dict[str, Any]:
    """Raises RequestRefused (400)."""
    try:
        data = json.loads(body, object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise RequestRefused(400, "the body is not JSON") from None
    if not isinstance(data, dict):
        raise RequestRefused(400, "the body is not a JSON object")
    return data


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two members with one name, readers take different ones."""
    data = dict(pairs)
    if len(data) < len(pairs):
        counted = Counter(name for name, _ in pairs)
        name = counted.most_common(1)[0][0]
        raise RequestRefused(400, f"{ascii(name[:200])} is in the body twice")
    return data


def _no_constant(name: str) -> None:
    """`NaN` and such: Python takes them for JSON, others do not."""
    raise RequestRefused(400, f"{name} is not JSON")


def parse_hashes(body: bytes) -> list[str]:
    """`{"hashes": [...]}`, each once. Raises RequestRefused (400) and ContentTooLarge."""
    names = parse_object(body).get("hashes")
    if not isinstance(names, list) or not all(map(is_hash, names)):
        raise RequestRefused(400, "hashes must be a list of SHA-256 in hexadecimal")
    if len(names) > MAX_HASHES:
        raise ContentTooLarge(
            f"a request may have {MAX_HASHES} hashes", hint="ask in several requests"
        )
    return list(dict.fromkeys(names))


def parse_delta(body: bytes) -> Delta:
    """`{"put": {path: entry}, "removed": [path]}`. Raises RequestRefused (400, 422)."""
    data = parse_object(body)
    put, removed = data.get("put", {}), data.get("removed", [])
    if not isinstance(put, dict) or not isinstance(removed, list):
        raise RequestRefused(400, "put must be an object, removed a list")
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


def base_of(request: Request) -> str:
    """The one version in `If-Match`. Raises RequestRefused (400, 428)."""
    given = request.headers.get("if-match")
    if given is None:
        raise RequestRefused(
            428,
            "a commit names the version that it was computed from",
            hint='send If-Match: "VERSION"; a folder with nothing has one too',
        )
    found = _ONE_TAG.fullmatch(given.strip())
    if found is None:
        raise RequestRefused(
            400, "If-Match must hold one version", hint='send If-Match: "VERSION"'
        )
    return found[1]


def attempt_of(request: Request) -> int:
    """The attempt that asks; 0 for a request of none. Raises RequestRefused (400)."""
    given = request.headers.get(ATTEMPT)
    if given is None:
        return 0
    if not _NUMBER.fullmatch(given):
        raise RequestRefused(400, f"{ATTEMPT} must be a number from 1 on")
    return int(given)


def known_versions(request: Request) -> set[str]:
    """Those in `If-None-Match`."""
    return set(_TAG.findall(request.headers.get("if-none-match", "")))


def version_in(request: Request, name: str) -> str:
    """A version in the query; empty without one. Raises RequestRefused (400)."""
    given = request.query_params.get(name, "")
    if given and not is_hash(given):
        raise RequestRefused(400, f"{name} must be a version")
    return given


def seconds_of(request: Request, name: str, longest: float) -> float:
    """A number in the query, at most `longest`; 0 without one. Raises RequestRefused (400)."""
    given = request.query_params.get(name, "0")
    if not re.fullmatch(r"\d{1,6}(\.\d{1,3})?", given, re.ASCII):
        raise RequestRefused(400, f"{name} must be a number of seconds")
    return min(float(given), longest)


# ------------------------------------------------------------ workers
# Disk and CPU work in threads, so many at a time; requests that wait for their turn, not for ever.

P = ParamSpec("P")
T = TypeVar("T")
_THREADS = 8
_TURN = 10.0
"""Seconds that a request waits for its turn before it is told to come again."""


class Workers:
    """Calls that block, in threads of our own."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="content")

    async def __call__(
        self, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: do(*args, **kwargs))

    async def each(self, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        """The pieces, each computed in a thread."""
        while (piece := await self(next, pieces, None)) is not None:
            yield piece

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class Turns:
    """So many at a time, and of one folder fewer, so that nobody takes them all. The others wait,
    and after a while are told to come again."""

    def __init__(
        self, many: int, of_one: int | None = None, seconds: float = _TURN
    ) -> None:
        self._free = asyncio.Semaphore(many)
        self._of_one = of_one or max(many // 4, 1)
        self._folders: WeakValueDictionary[str, asyncio.Semaphore] = (
            WeakValueDictionary()
        )
        self._seconds = seconds

    @contextlib.asynccontextmanager
    async def turn(self, folder: str) -> AsyncIterator[None]:
        """Raises TooBusy."""
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


# ------------------------------------------------------------ changes
# Waiting for a folder to change, without a thread or a lock: told by this process, looked up for others.

_POLL = 2.0
"""Seconds between two looks: what another process on the volume has changed shows after so long."""


class Changes:
    """Who waits for which folder."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._ended = False

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def tell(self, folder: str) -> None:
        """The folder has changed."""
        for event in self._waiting.get(folder, ()):
            event.set()

    def end(self) -> None:
        """Every wait ends now, and those to come at once."""
        self._ended = True
        for folder in self._waiting:
            self.tell(folder)

    async def wait(
        self, folder: str, seconds: float, over: Callable[[], Awaitable[bool]]
    ) -> None:
        """Return when `over` says so, which is asked after each change, or after `seconds`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        event = asyncio.Event()
        self._waiting[folder].add(event)
        try:
            while not self._ended and loop.time() < deadline and not await over():
                left = min(_POLL, deadline - loop.time())
                await _wait_for(event, left)
                event.clear()
        finally:
            self._waiting[folder].discard(event)
            if not self._waiting[folder]:
                del self._waiting[folder]


async def _wait_for(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(max(seconds, 0)):
            await event.wait()
    except TimeoutError:
        pass


# ------------------------------------------------------------ tally
# What the proxy did since its start, in plain numbers.

Route = str
"""The template of an address: names of folders are no part of it."""


@dataclass(slots=True)
class Tally:
    """`requests` by route and status, bodies in bytes; `folders` as the last pass of the collector found
    them, None before the first."""

    requests: Counter[tuple[Route, int]] = field(default_factory=Counter)
    received: int = 0
    sent: int = 0
    collected: int = 0
    folders: int | None = None

    def served(self, route: Route, status: int, received: int, sent: int) -> None:
        self.requests[route, status] += 1
        self.received += received
        self.sent += sent


# ------------------------------------------------------------ desk
# What every request meets: who asks, for which folder, and whether it is their turn.


@dataclass(slots=True)
class ServerState:
    """What the handlers share."""

    store: ContentStore
    settings: ContentSettings
    keys: Keys
    clock: Clock
    work: Workers
    changes: Changes = field(default_factory=Changes)
    tally: Tally = field(default_factory=Tally)
    streams: Turns = field(init=False)
    commits: Turns = field(init=False)

    def __post_init__(self) -> None:
        self.streams = Turns(self.settings.max_streams)
        # One of a folder: the others would wait for its lock in threads that all need.
        self.commits = Turns(self.settings.max_streams, of_one=1)

    def grant(self, request: Request) -> Grant:
        """Raises TokenRefused."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise TokenRefused("there is no token", hint="send Authorization: Bearer")
        return verify(self.keys(), token.strip(), now=self.clock.now())

    def folder(self, request: Request, *, write: bool) -> str:
        """The folder in the address, if the token allows it. Raises TokenRefused, RequestRefused (403)."""
        grant = self.grant(request)
        folder = "{namespace}/{name}".format(**request.path_params)
        request.state.folder = folder
        # The names in a grant were checked: what is none of them never becomes a path.
        if not (grant.may_write(folder) if write else grant.may_read(folder)):
            raise RequestRefused(
                403,
                f"the token is not for {'writing' if write else 'reading'} this folder",
                hint="each session has a token of its own",
            )
        return folder

    async def turn(self, request: Request, turns: Turns, folder: str) -> None:
        """Wait for a turn, which ends when all of the answer is sent. Raises TooBusy."""
        await request.state.held.enter_async_context(turns.turn(folder))

    def check_waiting(self) -> None:
        """Raises TooBusy."""
        if len(self.changes) >= self.settings.max_waiting:
            raise TooBusy("too many wait for a change", retry_after=5.0)
