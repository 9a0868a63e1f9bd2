"""Reading requests: bounded in bytes and in time, and checked before anything is done with them."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request

from midwatch.content.errors import ContentTooLarge
from midwatch.content.server.answers import RequestRefused
from midwatch.content.tree import CHUNK, Delta, Entry, entry_from_json, is_hash
from midwatch.content.wire import ATTEMPT, MAX_HASHES

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
