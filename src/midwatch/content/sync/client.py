"""The client of the content proxy: the one place that maps its responses and the HTTP client's errors.

Every wait has a timeout: for a connection, for the next bytes, and for a whole request. A request that may be repeated
is retried a few times; the caller decides about the others.
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
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
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
    delta_from_json,
    tree_from_json,
    version_of,
)
from midwatch.errors import MidwatchError
from midwatch.lifecycle import Backoff, Clock, SystemClock
from midwatch.model import Json

T = TypeVar("T")
_TRIES = 3
_FIRST_PAUSE = 0.4
_LONGEST_PAUSE = 5.0
_LARGEST_RESPONSE = 512 << 20
"""Bytes of a JSON response: twice a manifest of half a million files."""
_LONGEST_TEXT = 500
_JSON = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Timeouts in seconds.

    Attributes:
        connect: To connect.
        silence: Without any bytes.
        request: For a whole request.
        slowest: Bytes for which a stream gets one more second.
    """

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
    """A client for one folder of the proxy; use it as an async context manager.

    It counts `requests`, and bytes of chunks `sent` and `received`.

    Args:
        url: The address of the proxy.
        token: The token for the folder.
        folder: The id of the folder, `NAMESPACE/NAME.UID`.
        attempt: The number of the runner's attempt; None for a tool, which no later attempt supersedes.
        limits: The timeouts.
        verify: How to verify the proxy's certificate.
        transport: Replaces the network, in tests.
        clock: Waits between retries.

    Raises:
        ContentUnavailable, ContentFull, VersionConflict, ChunksMissing, StreamBroken: A retry may help.
        ContentRefused (and its children): A retry does not help.
        Superseded: A later attempt has claimed the folder.
        PathRefused: A manifest has a path that must not be written.
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
                # Without TLS there is nothing to verify, and the system's authorities take 15 ms to load.
                verify=verify if httpx2.URL(url).scheme == "https" else False,
                transport=transport,
                trust_env=False,
                follow_redirects=False,
            )
        except (httpx2.InvalidURL, UnicodeEncodeError) as error:
            raise ContentRefused(
                f"{url!r} is not an address of a content proxy: {error}"
            ) from None

    async def __aenter__(self) -> ContentClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.aclose()

    async def claim(self) -> None:
        """Refuse changes by earlier attempts from now on. Raises Superseded."""
        await self._retry(lambda: self._ask("POST", "/claim"))

    # ------------------------------------------------------------------ the manifest

    async def manifest(self, *, folder: str | None = None) -> Remote:
        """Return the tree of the folder, or of another one that the token may read."""

        async def ask() -> Remote:
            answer = await self._ask("GET", "/manifest", folder=folder)
            return await asyncio.to_thread(lambda: _parse_tree(_parse(answer)))

        return await self._retry(ask)

    async def changed(self, known: Remote) -> Remote:
        """Return the tree of the folder, which was `known` before; usually only the difference is sent.

        Returns:
            `known` itself if nothing has changed.
        """
        headers = {"if-none-match": f'"{known.version}"'}
        path = f"/manifest?since={known.version}"

        async def ask() -> Remote | None:
            answer = await self._ask("GET", path, headers=headers)
            if answer is None:
                return known
            return await asyncio.to_thread(lambda: _parse_change(_parse(answer), known))

        return await self._retry(ask) or await self.manifest()

    async def wait_for_change(self, version: str, seconds: float) -> bool:
        """Wait until the folder has another version, or for `seconds`. Return whether it has."""
        # HEAD: the caller decides when to read the change.
        async with self._opened(
            "HEAD",
            f"/manifest?wait={seconds:.3f}",
            headers={"if-none-match": f'"{version}"', "accept-encoding": "identity"},
            longer=seconds,
        ) as response:
            return response.status_code != 304

    # ------------------------------------------------------------------ chunks

    async def missing(self, chunks: Sequence[str]) -> list[str]:
        """Return the chunks that the proxy does not have, in their order."""
        absent: set[str] = set()
        for start in range(0, len(chunks), MAX_HASHES):
            asked = {"hashes": list(chunks[start : start + MAX_HASHES])}
            answer = await self._retry(lambda: self._json("POST", "/missing", asked))
            absent.update(map(str, answer.get("missing", ())))
        return [chunk for chunk in chunks if chunk in absent]

    async def put_chunks(self, frames: AsyncIterable[bytes], size: int) -> None:
        """Send a stream of frames, about `size` bytes. Not retried: `missing` returns what is left to send."""

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
        """Yield up to `MAX_HASHES` chunks with their hashes, verified. The stream may end before all have come."""
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
        """Apply a change to version `base`, all of it or nothing. Return the new version.

        It may be repeated: a commit that was applied already succeeds.
        """
        content = await asyncio.to_thread(delta.to_bytes)
        headers = _JSON | {"if-match": f'"{base}"'}

        async def ask() -> str:
            answer = await self._ask(
                "POST", "/commit", content=content, headers=headers
            )
            return str(_parse(answer).get("version", ""))

        return await self._retry(ask)

    async def append_inbox(self, message: Json) -> str:
        """Append a message to the session's mailbox. Return its id. Retried only if the message has an id."""

        async def ask() -> str:
            return str((await self._json("POST", "/inbox", message)).get("id", ""))

        return await (self._retry(ask) if message.get("id") else ask())

    async def delete(self) -> None:
        """Delete the whole folder."""
        await self._retry(lambda: self._ask("DELETE", ""))

    # ------------------------------------------------------------------ requests

    async def _retry(self, ask: Callable[[], Awaitable[T]]) -> T:
        backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        for _ in range(1, _TRIES):
            try:
                return await ask()
            except ContentUnavailable as error:
                pause = error.retry_after or backoff.next() * (1 + random.random())
                if pause > _LONGEST_PAUSE:
                    raise
                await self._clock.sleep(pause)
        return await ask()

    async def _json(self, method: str, path: str, body: Json) -> Json:
        answer = await self._ask(method, path, content=compact(body), headers=_JSON)
        return _parse(answer)

    async def _ask(self, method: str, path: str, **options: Any) -> bytes | None:
        """Return the body of a response, or None for 304."""
        async with self._opened(method, path, **options) as response:
            if response.status_code == 304:
                return None
            return await _read(response)

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
        with _map_http_errors():
            async with asyncio.timeout(limits.request + longer):
                async with self._http.stream(
                    method,
                    f"/v1/folders/{check_folder(folder or self.folder)}{path}",
                    headers=headers,
                    content=content,
                    timeout=timeout,
                ) as response:
                    if response.status_code not in (200, 304):
                        raise map_status_error(response, await _read(response), path)
                    yield response


# ------------------------------------------------------------------ errors


@contextmanager
def _map_http_errors() -> Iterator[None]:
    """Turn errors of the HTTP client, and a timeout, into ContentUnavailable."""
    try:
        yield
    except (TimeoutError, httpx2.TimeoutException) as error:
        raise ContentUnavailable("the content proxy took too long") from error
    except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
        why = str(error) or type(error).__name__
        raise ContentUnavailable(f"the content proxy failed: {why[:200]}") from error


def map_status_error(
    response: httpx2.Response, body: bytes, path: str
) -> MidwatchError:
    """Return the error for a response. An unknown status is temporary: a gateway may be in between."""
    data = _error_data(body)
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


def _error_data(body: bytes) -> Mapping[str, Any]:
    try:
        return _parse(body)
    except ContentUnavailable:
        return {}


def _text(data: object) -> str:
    return data[:_LONGEST_TEXT] if isinstance(data, str) else ""


def _retry_after(response: httpx2.Response) -> float | None:
    given = response.headers.get("retry-after", "")
    return min(float(given), 3600.0) if given.isdecimal() else None


# ------------------------------------------------------------------ responses


async def _read(response: httpx2.Response) -> bytes:
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > _LARGEST_RESPONSE:
            raise ContentRefused(
                f"the content proxy's response has more than {_LARGEST_RESPONSE} bytes"
            )
    return bytes(body)


def _parse(body: bytes | None) -> Json:
    try:
        data = json.loads(body or b"")
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise ContentUnavailable(
            "the response is not from a content proxy",
            hint="check the address, and any gateway in front of it",
        )
    return data


def _parse_tree(data: Json) -> Remote:
    """Return the tree of a response. Its version is computed, not trusted."""
    try:
        version, tree = str(data["version"]), tree_from_json(data["tree"])
    except (KeyError, ValueError) as error:
        raise _invalid_manifest(error) from None
    if version_of(tree) != version:
        raise _invalid_manifest("it does not match its version")
    check_tree(tree)
    return Remote(version, tree)


def _parse_change(data: Json, known: Remote) -> Remote | None:
    """Return the tree of a response that may hold a difference only; None if that does not lead to its version."""
    if data.get("since") != known.version:
        return _parse_tree(data)
    try:
        version, tree = str(data["version"]), delta_from_json(data).apply(known.tree)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise _invalid_manifest(error) from None
    if version_of(tree) != version:
        return None
    check_tree(tree)
    return Remote(version, tree)


def _invalid_manifest(why: object) -> ContentUnavailable:
    return ContentUnavailable(f"the content proxy sent an invalid manifest: {why}")
