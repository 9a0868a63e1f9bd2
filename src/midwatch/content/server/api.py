"""The endpoints of a folder; `wire` has the table of them."""

from __future__ import annotations

import json
import uuid
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from midwatch.content.errors import ChunksMissing, ContentTooLarge
from midwatch.content.server.http import (
    JsonAnswer,
    RequestRefused,
    ServerState,
    attempt_of,
    base_of,
    check_media_type,
    etag,
    known_versions,
    paced,
    parse_delta,
    parse_hashes,
    parse_object,
    read_body,
    seconds_of,
    version_in,
)
from midwatch.content.server.legacy import appended
from midwatch.content.server.manifest import Manifest
from midwatch.content.tree import (
    ATTEMPT,
    INBOX,
    MAX_HASHES,
    MEDIA_TYPE,
    frame_of,
    split_frames,
)

# ------------------------------------------------------------ inbox
# Lines for the mailbox of a session. Which of them mean something, its reader decides.

MAX_LINE = 500_000
"""Bytes: more is refused by whoever reads the mailbox."""
_LONGEST_NAME = 200


def inbox_line(data: Mapping[str, Any], now: datetime) -> tuple[str, bytes]:
    """The message's id and its line. Raises RequestRefused (422) and ContentTooLarge."""
    kind, given = data.get("type"), data.get("id")
    if not _is_name(kind):
        raise RequestRefused(422, "type must be a text", hint="such as user_message")
    if given is not None and not _is_name(given):
        raise RequestRefused(
            422, f"id must be a text of 1 to {_LONGEST_NAME} characters"
        )
    id = given or uuid.uuid4().hex
    message = {
        "id": id,
        "type": kind,
        "content": data.get("content"),
        "timestamp": str(data.get("timestamp") or now.isoformat())[:_LONGEST_NAME],
    }
    line = json.dumps(message, ensure_ascii=False).encode("utf-8", "replace")
    if len(line) > MAX_LINE:
        raise ContentTooLarge(f"a message may have {MAX_LINE} bytes")
    return id, line + b"\n"


def _is_name(text: object) -> bool:
    return isinstance(text, str) and 0 < len(text) <= _LONGEST_NAME


_BATCH_BYTES = 4 << 20
_BATCH_FRAMES = 256
"""A batch is synced at once; many small files would wait for the disk one by one."""
_HASHES_BODY = MAX_HASHES * 80
_GZIP_LEVEL = 4


class FolderApi:
    """Handlers for `/v1/folders/NAMESPACE/NAME`."""

    def __init__(self, desk: ServerState) -> None:
        self._desk = desk

    def routes(self) -> list[Route]:
        folder = "/v1/folders/{namespace}/{name}"
        return [
            Route(f"{folder}/manifest", self.manifest, methods=["GET"]),
            Route(f"{folder}/claim", self.claim, methods=["POST"]),
            Route(f"{folder}/missing", self.missing, methods=["POST"]),
            Route(f"{folder}/chunks", self.put_chunks, methods=["PUT"]),
            Route(f"{folder}/chunks/read", self.read_chunks, methods=["POST"]),
            Route(f"{folder}/commit", self.commit, methods=["POST"]),
            Route(f"{folder}/inbox", self.inbox, methods=["POST"]),
            Route(folder, self.delete, methods=["DELETE"]),
        ]

    # -------------------------------------------------- the manifest

    async def manifest(self, request: Request) -> Response:
        desk = self._desk
        folder = desk.folder(request, write=False)
        found = await desk.work(desk.store.manifest, folder, attempt_of(request))
        known, wait = known_versions(request), seconds_of(
            request, "wait", desk.settings.wait
        )
        if found.version in known and wait:
            desk.check_waiting()
            await self._changed(request, folder, found.version, wait)
            found = await desk.work(desk.store.manifest, folder)
        if found.version in known:
            return Response(status_code=304, headers=etag(found.version))
        since = version_in(request, "since")
        await desk.turn(request, desk.streams, folder)
        return self._told(request, found, self._pieces(folder, found, since))

    def _pieces(self, folder: str, found: Manifest, since: str) -> Iterator[bytes]:
        """The difference where it is asked for and known, or the whole tree."""
        changed = self._desk.store.changed_since(folder, since, found)
        if changed is None:
            return found.document()
        return found.difference(since, changed)

    async def _changed(
        self, request: Request, folder: str, version: str, seconds: float
    ) -> None:
        """Wait until the folder has another version, or nobody is there to hear of it."""
        desk, seen = self._desk, None

        async def over() -> bool:
            nonlocal seen
            mark = await desk.work(desk.store.mark, folder)
            if mark == seen:  # as it was when we last read it
                return await request.is_disconnected()
            found = await desk.work(desk.store.manifest, folder)
            seen = mark
            return found.version != version or await request.is_disconnected()

        await desk.changes.wait(folder, seconds, over)

    def _told(
        self, request: Request, found: Manifest, pieces: Iterator[bytes]
    ) -> Response:
        # The ETag is the version in either encoding: it names the tree, not the bytes.
        headers = etag(found.version) | {"vary": "accept-encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["content-encoding"] = "gzip"
            pieces = _gzipped(pieces)
        return StreamingResponse(
            self._desk.work.each(pieces), 200, headers, "application/json"
        )

    # -------------------------------------------------- chunks

    async def missing(self, request: Request) -> Response:
        desk = self._desk
        folder = desk.folder(request, write=True)
        await desk.work(desk.store.check_attempt, folder, attempt_of(request))
        body = await read_body(request, _HASHES_BODY, desk.settings.request_time)
        names = await desk.work(parse_hashes, body)
        return JsonAnswer(
            {"missing": await desk.work(desk.store.missing, folder, names)}
        )

    async def put_chunks(self, request: Request) -> Response:
        desk = self._desk
        folder = desk.folder(request, write=True)
        check_media_type(request, MEDIA_TYPE)
        await desk.work(desk.store.check_attempt, folder, attempt_of(request))
        await desk.turn(request, desk.streams, folder)
        stored, batch, size = 0, list[tuple[str, bytes]](), 0
        try:
            async for name, data in split_frames(
                paced(request, desk.settings.request_time)
            ):
                batch.append((name, data))
                size += len(data)
                if size >= _BATCH_BYTES or len(batch) >= _BATCH_FRAMES:
                    full, batch, size = batch, [], 0
                    stored += await self._store(folder, full)
        finally:
            # Also of a stream that breaks: what came whole need not come again.
            if batch:
                stored += await self._store(folder, batch)
        return JsonAnswer({"stored": stored})

    async def _store(self, folder: str, batch: Sequence[tuple[str, bytes]]) -> int:
        return len(await self._desk.work(self._desk.store.write_chunks, folder, batch))

    async def read_chunks(self, request: Request) -> Response:
        desk = self._desk
        folder = desk.folder(request, write=False)
        body = await read_body(request, _HASHES_BODY, desk.settings.request_time)
        names = await desk.work(parse_hashes, body)
        await desk.turn(request, desk.streams, folder)
        if absent := await desk.work(desk.store.absent, folder, names):
            raise ChunksMissing(absent)
        return StreamingResponse(self._frames(folder, names), media_type=MEDIA_TYPE)

    async def _frames(self, folder: str, names: Sequence[str]) -> AsyncIterator[bytes]:
        for name in names:
            yield await self._desk.work(
                lambda: frame_of(name, self._desk.store.read_chunk(folder, name))
            )

    # -------------------------------------------------- changes

    async def claim(self, request: Request) -> Response:
        desk = self._desk
        folder = desk.folder(request, write=True)
        attempt = attempt_of(request)
        if not attempt:
            raise RequestRefused(
                428, "a claim is that of an attempt", hint=f"send {ATTEMPT}: NUMBER"
            )
        async with desk.commits.turn(folder):
            claimed = await desk.work(desk.store.claim, folder, attempt)
        return JsonAnswer({"attempt": claimed})

    async def commit(self, request: Request) -> Response:
        desk = self._desk
        folder = desk.folder(request, write=True)
        base, attempt = base_of(request), attempt_of(request)
        await desk.turn(request, desk.streams, folder)
        body = await read_body(
            request, desk.settings.max_body, desk.settings.request_time
        )
        delta = await desk.work(parse_delta, body)
        del body
        async with desk.commits.turn(folder):
            version = await desk.work(desk.store.commit, folder, base, delta, attempt)
        desk.changes.tell(folder)
        return JsonAnswer({"version": version}, headers=etag(version))

    async def inbox(self, request: Request) -> Response:
        desk = self._desk
        folder = desk.folder(request, write=True)
        body = await read_body(request, 2 * MAX_LINE, desk.settings.request_time)
        id, line = inbox_line(parse_object(body), desk.clock.now())

        def read(name: str) -> bytes:
            return desk.store.read_chunk(folder, name)

        async with desk.commits.turn(folder):
            version = await desk.work(
                desk.store.edit, folder, lambda now: appended(now, INBOX, line, read)
            )
        desk.changes.tell(folder)
        return JsonAnswer({"id": id, "version": version}, headers=etag(version))

    async def delete(self, request: Request) -> Response:
        desk = self._desk
        folder = desk.folder(request, write=True)
        async with desk.commits.turn(folder):
            deleted = await desk.work(desk.store.delete, folder, attempt_of(request))
        desk.changes.tell(folder)
        return JsonAnswer({"deleted": deleted})


def _gzipped(pieces: Iterator[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(_GZIP_LEVEL, wbits=31)  # 31: with gzip's head and foot
    for piece in pieces:
        if packed := packer.compress(piece):
            yield packed
    yield packer.flush()
