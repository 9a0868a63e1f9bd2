"""The endpoints of a folder; `midwatch.content.tree` documents the protocol."""

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
    JsonResponse,
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
    seconds_of,
    version_in,
)
from midwatch.content.server.legacy import append_line
from midwatch.content.tree import (
    ATTEMPT,
    INBOX,
    MAX_HASHES,
    MEDIA_TYPE,
    frame_of,
    split_frames,
)

MAX_LINE = 500_000
"""Bytes of a message: the reader of the mailbox rejects more."""
_LONGEST_NAME = 200
_BATCH_BYTES = 4 << 20
_BATCH_FRAMES = 256
"""A batch is synced at once; many small files would wait for the disk one by one."""
_HASHES_BODY = MAX_HASHES * 80
_GZIP_LEVEL = 4


class FolderApi:
    """Handlers for `/v1/folders/NAMESPACE/NAME`."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._store = state.store

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
        state, store = self._state, self._store
        folder = state.folder(request, write=False)
        found = await state.in_thread(store.manifest, folder, attempt_of(request))
        known = known_versions(request)
        wait = seconds_of(request, "wait", state.settings.wait)
        if found.version in known and wait:
            state.check_waiting()
            await self._wait_for_change(request, folder, found.version, wait)
            found = await state.in_thread(store.manifest, folder)
        if found.version in known:
            return Response(status_code=304, headers=etag(found.version))
        since = version_in(request, "since")
        await state.hold_stream(request, folder)
        changed = store.changed_since(folder, since, found)
        if changed is None:
            pieces = found.document()
        else:
            pieces = found.difference(since, changed)
        # The ETag is the version in either encoding: it names the tree, not the bytes.
        headers = etag(found.version) | {"vary": "accept-encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["content-encoding"] = "gzip"
            pieces = _gzipped(pieces)
        return StreamingResponse(
            state.in_thread.each(pieces), 200, headers, "application/json"
        )

    async def _wait_for_change(
        self, request: Request, folder: str, version: str, seconds: float
    ) -> None:
        """Wait until the folder has another version, or the client has disconnected."""
        state, last = self._state, None

        async def done() -> bool:
            nonlocal last
            stamp = await state.in_thread(self._store.stamp, folder)
            if stamp != last:
                found = await state.in_thread(self._store.manifest, folder)
                last = stamp
                if found.version != version:
                    return True
            return await request.is_disconnected()

        await state.changes.wait(folder, seconds, done)

    # -------------------------------------------------- chunks

    async def missing(self, request: Request) -> Response:
        state = self._state
        folder = state.folder(request, write=True)
        await state.in_thread(self._store.check_attempt, folder, attempt_of(request))
        body = await state.body(request, _HASHES_BODY)
        names = await state.in_thread(parse_hashes, body)
        missing = await state.in_thread(self._store.missing, folder, names)
        return JsonResponse({"missing": missing})

    async def put_chunks(self, request: Request) -> Response:
        state = self._state
        folder = state.folder(request, write=True)
        check_media_type(request, MEDIA_TYPE)
        await state.in_thread(self._store.check_attempt, folder, attempt_of(request))
        await state.hold_stream(request, folder)
        stored, batch, size = 0, list[tuple[str, bytes]](), 0
        try:
            async for name, data in split_frames(
                paced(request, state.settings.request_time)
            ):
                batch.append((name, data))
                size += len(data)
                if size >= _BATCH_BYTES or len(batch) >= _BATCH_FRAMES:
                    full, batch, size = batch, [], 0
                    stored += await self._write(folder, full)
        finally:
            # Also if the stream breaks: complete chunks need not be sent again.
            if batch:
                stored += await self._write(folder, batch)
        return JsonResponse({"stored": stored})

    async def _write(self, folder: str, batch: Sequence[tuple[str, bytes]]) -> int:
        return len(await self._state.in_thread(self._store.write_chunks, folder, batch))

    async def read_chunks(self, request: Request) -> Response:
        state = self._state
        folder = state.folder(request, write=False)
        body = await state.body(request, _HASHES_BODY)
        names = await state.in_thread(parse_hashes, body)
        await state.hold_stream(request, folder)
        if absent := await state.in_thread(self._store.absent, folder, names):
            raise ChunksMissing(absent)
        return StreamingResponse(self._frames(folder, names), media_type=MEDIA_TYPE)

    async def _frames(self, folder: str, names: Sequence[str]) -> AsyncIterator[bytes]:
        for name in names:
            yield await self._state.in_thread(
                lambda: frame_of(name, self._store.read_chunk(folder, name))
            )

    # -------------------------------------------------- changes

    async def claim(self, request: Request) -> Response:
        state = self._state
        folder = state.folder(request, write=True)
        attempt = attempt_of(request)
        if not attempt:
            raise RequestRefused(
                428, "a claim needs an attempt", hint=f"send {ATTEMPT}: NUMBER"
            )
        async with state.commits.slot(folder):
            claimed = await state.in_thread(self._store.claim, folder, attempt)
        return JsonResponse({"attempt": claimed})

    async def commit(self, request: Request) -> Response:
        state = self._state
        folder = state.folder(request, write=True)
        base, attempt = base_of(request), attempt_of(request)
        await state.hold_stream(request, folder)
        body = await state.body(request, state.settings.max_body)
        delta = await state.in_thread(parse_delta, body)
        del body
        async with state.commits.slot(folder):
            version = await state.in_thread(
                self._store.commit, folder, base, delta, attempt
            )
        state.changes.notify(folder)
        return JsonResponse({"version": version}, headers=etag(version))

    async def inbox(self, request: Request) -> Response:
        state, store = self._state, self._store
        folder = state.folder(request, write=True)
        body = await state.body(request, 2 * MAX_LINE)
        id, line = _inbox_line(parse_object(body), state.clock.now())

        def read(name: str) -> bytes:
            return store.read_chunk(folder, name)

        async with state.commits.slot(folder):
            version = await state.in_thread(
                store.edit, folder, lambda now: append_line(now, INBOX, line, read)
            )
        state.changes.notify(folder)
        return JsonResponse({"id": id, "version": version}, headers=etag(version))

    async def delete(self, request: Request) -> Response:
        state = self._state
        folder = state.folder(request, write=True)
        async with state.commits.slot(folder):
            deleted = await state.in_thread(
                self._store.delete, folder, attempt_of(request)
            )
        state.changes.notify(folder)
        return JsonResponse({"deleted": deleted})


def _inbox_line(data: Mapping[str, Any], now: datetime) -> tuple[str, bytes]:
    """Return a message's id and its line for the mailbox, whose reader decides whether it is valid.

    Raises RequestRefused (422) and ContentTooLarge.
    """
    kind, given = data.get("type"), data.get("id")
    if not _is_name(kind):
        raise RequestRefused(
            422,
            f"type must be a text of 1 to {_LONGEST_NAME} characters",
            hint="such as user_message",
        )
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
        raise ContentTooLarge(
            f"the message has {len(line)} bytes; at most {MAX_LINE} are allowed",
            hint="write a file and refer to it in the message",
        )
    return id, line + b"\n"


def _is_name(text: object) -> bool:
    return isinstance(text, str) and 0 < len(text) <= _LONGEST_NAME


def _gzipped(pieces: Iterator[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(_GZIP_LEVEL, wbits=31)  # 31: with gzip's head and foot
    for piece in pieces:
        if packed := packer.compress(piece):
            yield packed
    yield packer.flush()
