"""The content proxy from afar. The one place where its answers and the HTTP client's errors become ours.

Every wait has an end: for a connection, for the next bytes, and for the whole of a request. What may be sent twice is
tried again a few times; the rest is the caller's to decide.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import httpx2

from midwatch.content.errors import (
    ChunksMissing,
    ContentFull,
    ContentRefused,
    ContentTooLarge,
    ContentUnavailable,
    StreamBroken,
    Superseded,
    TokenRefused,
    VersionConflict,
)
from midwatch.content.sync.apply import delta_from_json, delta_to_json
from midwatch.content.tree import (
    ATTEMPT,
    CHUNK,
    MAX_HASHES,
    MEDIA_TYPE,
    SUPERSEDED,
    Delta,
    Entry,
    check_folder,
    check_tree,
    compact,
    decode_frames,
    tree_from_json,
    version_of,
)
from midwatch.errors import MidwatchError
from midwatch.lifecycle import Clock, SystemClock
from midwatch.model import Json

# ------------------------------------------------------------ answer
# What an answer of the content proxy that is no success means: the other end of `answers`.

_LONGEST = 500


def error_of(response: httpx2.Response, body: bytes, path: str) -> MidwatchError:
    """The error of this status. What is not known is temporary: a gateway may be in between."""
    data = _data(body)
    status = response.status_code
    message = _text(data.get("error")) or f"the content proxy answered {status}"
    hint = _text(data.get("hint")) or None
    match status:
        case 400 if path == "/chunks":
            return StreamBroken(message, hint=hint)
        case 401:
            return TokenRefused(message, hint=hint)
        case 409 if data.get("code") == SUPERSEDED:
            current = data.get("attempt")
            return Superseded(current if isinstance(current, int) else 0, message)
        case 409:
            missing = data.get("missing")
            names = missing if isinstance(missing, list) else []
            return ChunksMissing([str(name) for name in names], message)
        case 412:
            return VersionConflict(_text(data.get("version")), message)
        case 413:
            return ContentTooLarge(message, hint=hint)
        case 507:
            return ContentFull(message, hint=hint)
        case 400 | 403 | 404 | 405 | 411 | 415 | 422 | 428:
            return ContentRefused(message, hint=hint)
    return ContentUnavailable(message, hint=hint, retry_after=_retry_after(response))


def _data(body: bytes) -> Mapping[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _text(data: object) -> str:
    return data[:_LONGEST] if isinstance(data, str) else ""


def _retry_after(response: httpx2.Response) -> float | None:
    given = response.headers.get("retry-after", "")
    return min(float(given), 3600.0) if given.isdecimal() else None


T = TypeVar("T")
_TRIES = 3
_LONGEST_PAUSE = 5.0
_LARGEST_ANSWER = 512 << 20
"""Bytes of a JSON answer: twice a manifest of half a million files."""
_JSON = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Seconds: to connect, without any bytes, and for a request. Streams get a second more for each `slowest` bytes."""

    connect: float = 5.0
    silence: float = 30.0
    request: float = 120.0
    slowest: int = 64 << 10


@dataclass(frozen=True, slots=True)
class Remote:
    """A folder as the proxy has it."""

    version: str
    tree: Mapping[str, Entry]


class ContentClient:
    """One folder behind the proxy; a context. Counts `requests`, and bytes of chunks `sent` and `received`.

    `attempt` is the number of the runner that asks; without one, no attempt's end concerns it.

    Raises ContentUnavailable, ContentRefused (and its children), ContentFull, VersionConflict,
    ChunksMissing and StreamBroken; Superseded where a later attempt has claimed the folder; PathRefused for a manifest that nobody should write down.
    """

    def __init__(
        self,
        url: str,
        token: str,
        folder: str,
        *,
        attempt: int | None = None,
        limits: TimeLimits = TimeLimits(),
        verify: ssl.SSLContext | bool = True,
        transport: httpx2.AsyncBaseTransport | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.folder = check_folder(folder)
        self.requests = self.sent = self.received = 0
        self.attempt = attempt
        self._limits = limits
        self._clock = clock or SystemClock()
        try:
            self._http = httpx2.AsyncClient(
                base_url=url.rstrip("/"),
                headers={"authorization": f"Bearer {token}"},
                timeout=httpx2.Timeout(limits.silence, connect=limits.connect),
                verify=verify,
                transport=transport,
                trust_env=False,
                follow_redirects=False,
            )
        except (httpx2.InvalidURL, UnicodeEncodeError) as error:
            raise ContentRefused(f"the proxy's address is wrong: {error}") from None

    async def __aenter__(self) -> ContentClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def claim(self) -> None:
        """From now on no earlier attempt changes the folder. May be repeated. Raises Superseded."""
        await self._again(lambda: self._ask("POST", "/claim"))

    # ------------------------------------------------------------------ the manifest

    async def manifest(self, *, folder: str | None = None) -> Remote:
        """What is in the folder, or in another that the token may read."""

        async def ask() -> Remote:
            answer = await self._ask("GET", "/manifest", folder=folder)
            return await asyncio.to_thread(lambda: _remote(_parsed(answer or b"")))

        return await self._again(ask)

    async def changed(self, known: Remote) -> Remote:
        """What is in the folder, if it was `known` before: most often only the difference is sent.

        `known` itself where nothing has changed.
        """
        headers = {"if-none-match": f'"{known.version}"'}
        path = f"/manifest?since={known.version}"

        async def ask() -> Remote | None:
            answer = await self._ask("GET", path, headers=headers)
            if answer is None:
                return known
            return await asyncio.to_thread(lambda: _changed(_parsed(answer), known))

        return await self._again(ask) or await self.manifest()

    async def wait_for_change(self, version: str, seconds: float) -> bool:
        """Whether the folder has another version, as soon as it has, or after so many seconds."""
        # HEAD: whoever hears of a change still wants to decide when to read it.
        async with self._opened(
            "HEAD",
            f"/manifest?wait={seconds:.3f}",
            headers={"if-none-match": f'"{version}"', "accept-encoding": "identity"},
            longer=seconds,
        ) as response:
            return response.status_code != 304

    # ------------------------------------------------------------------ chunks

    async def missing(self, chunks: Sequence[str]) -> list[str]:
        """Those that the proxy does not have, in their order."""
        absent: set[str] = set()
        for start in range(0, len(chunks), MAX_HASHES):
            asked = {"hashes": list(chunks[start : start + MAX_HASHES])}
            answer = await self._again(lambda: self._json("POST", "/missing", asked))
            absent.update(map(str, answer.get("missing", ())))
        return [chunk for chunk in chunks if chunk in absent]

    async def put_chunks(self, frames: AsyncIterable[bytes], size: int) -> None:
        """Send a stream of frames of some `size` bytes. Not tried again: `missing` tells what is left to send."""

        async def counted() -> AsyncIterator[bytes]:
            async for piece in frames:
                self.sent += len(piece)
                yield piece

        await self._ask(
            "PUT",
            "/chunks",
            content=counted(),
            headers={"content-type": MEDIA_TYPE},
            longer=size / self._limits.slowest,
        )

    async def read_chunks(
        self, chunks: Sequence[str], *, folder: str | None = None
    ) -> AsyncIterator[tuple[str, bytes]]:
        """At most `MAX_HASHES` chunks with their hashes, checked. It may end before all have come."""
        async with self._opened(
            "POST",
            "/chunks/read",
            content=compact({"hashes": list(chunks)}),
            headers=_JSON,
            longer=len(chunks) * CHUNK / self._limits.slowest,
            folder=folder,
        ) as response:
            async for name, data in decode_frames(response.aiter_bytes()):
                self.received += len(data)
                yield name, data

    # ------------------------------------------------------------------ changes

    async def commit(self, base: str, delta: Delta) -> str:
        """Make this change of version `base`: all of it or nothing. The new version.

        May be repeated: a commit that is in place already is a success.
        """
        content = await asyncio.to_thread(compact, delta_to_json(delta))
        headers = _JSON | {"if-match": f'"{base}"'}

        async def ask() -> str:
            answer = await self._ask(
                "POST", "/commit", content=content, headers=headers
            )
            return str(_parsed(answer or b"").get("version", ""))

        return await self._again(ask)

    async def append_inbox(self, message: Json) -> str:
        """Append a message to the session's mailbox; its id. Not tried again unless the message has one."""

        async def ask() -> str:
            return str((await self._json("POST", "/inbox", message)).get("id", ""))

        return await (self._again(ask) if message.get("id") else ask())

    async def delete(self) -> None:
        """The whole folder."""
        await self._again(lambda: self._ask("DELETE", ""))

    # ------------------------------------------------------------------ the one boundary

    async def _again(self, ask: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(1, _TRIES):
            try:
                return await ask()
            except ContentUnavailable as error:
                pause = error.retry_after or 0.2 * 2**attempt * (1 + random.random())
                if pause > _LONGEST_PAUSE:
                    raise
                await self._clock.sleep(pause)
        return await ask()

    async def _json(self, method: str, path: str, body: Json) -> Json:
        answer = await self._ask(method, path, content=compact(body), headers=_JSON)
        return _parsed(answer or b"")

    async def _ask(self, method: str, path: str, **options: Any) -> bytes | None:
        """The body of an answer; None for 304."""
        async with self._opened(method, path, **options) as response:
            if response.status_code == 304:
                return None
            return await _bounded(response)

    @asynccontextmanager
    async def _opened(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        content: bytes | AsyncIterable[bytes] | None = None,
        longer: float = 0.0,
        folder: str | None = None,
    ) -> AsyncIterator[httpx2.Response]:
        limits = self._limits
        timeout = httpx2.Timeout(
            limits.silence + (longer if method == "HEAD" else 0),
            connect=limits.connect,
        )
        self.requests += 1
        if self.attempt is not None and folder in (None, self.folder):
            headers = {**(headers or {}), ATTEMPT: str(self.attempt)}
        with _translated():
            async with asyncio.timeout(limits.request + longer):
                async with self._http.stream(
                    method,
                    f"/v1/folders/{check_folder(folder or self.folder)}{path}",
                    headers=headers,
                    content=content,
                    timeout=timeout,
                ) as response:
                    if response.status_code not in (200, 304):
                        raise error_of(response, await _bounded(response), path)
                    yield response


class _translated:
    """Errors of the HTTP client, and a time that is over, as ContentUnavailable."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, TimeoutError | httpx2.TimeoutException):
            raise ContentUnavailable("the content proxy took too long") from error
        if isinstance(error, httpx2.HTTPError | httpx2.StreamError | OSError):
            why = str(error) or type(error).__name__
            raise ContentUnavailable(
                f"the content proxy failed: {why[:200]}"
            ) from error


async def _bounded(response: httpx2.Response) -> bytes:
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > _LARGEST_ANSWER:
            raise ContentRefused("the content proxy's answer is too large")
    return bytes(body)


def _remote(data: Json) -> Remote:
    """The tree of an answer; its version is computed, not believed."""
    try:
        version, tree = str(data["version"]), tree_from_json(data["tree"])
    except (KeyError, ValueError) as error:
        raise _no_manifest(error) from None
    if version_of(tree) != version:
        raise _no_manifest("it is not what its version says")
    check_tree(tree)
    return Remote(version, tree)


def _changed(data: Json, known: Remote) -> Remote | None:
    """The tree of an answer that may tell a difference only; None where that does not lead to its version."""
    if data.get("since") != known.version:
        return _remote(data)
    try:
        version, tree = str(data["version"]), delta_from_json(data).apply(known.tree)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise _no_manifest(error) from None
    if version_of(tree) != version:
        return None
    check_tree(tree)
    return Remote(version, tree)


def _no_manifest(why: object) -> ContentUnavailable:
    return ContentUnavailable(f"the content proxy sent no manifest: {why}")


def _parsed(body: bytes) -> Json:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise ContentUnavailable(
            "what answers is not the content proxy",
            hint="check its address, and what stands before it",
        )
    return data
