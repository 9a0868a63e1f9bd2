"""The endpoints: folders (`midwatch.content.tree` documents the protocol) and the earlier `/content/…`."""

from __future__ import annotations

import base64
import binascii
import json
import uuid
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from midwatch.content.errors import ChunksMissing, ContentTooLarge, PathRefused
from midwatch.content.server.http import (
    JsonResponse,
    RequestRefused,
    ServerState,
    Streamed,
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
from midwatch.content.server.manifest import Manifest
from midwatch.content.server.segments import SEGMENT
from midwatch.content.server.store import Edit
from midwatch.content.tree import (
    ATTEMPT,
    CHUNK,
    INBOX,
    MAX_HASHES,
    MEDIA_TYPE,
    Delta,
    Entry,
    check_path,
    chunk_hash,
    frame_of,
    split_frames,
)

MAX_LINE = 500_000
"""Bytes of a message: the reader of the mailbox rejects more."""
_LONGEST_NAME = 200
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
        return Streamed(state.in_thread.each(pieces), 200, headers, "application/json")

    async def _wait_for_change(
        self, request: Request, folder: str, version: str, seconds: float
    ) -> None:
        """Wait until the folder has another version, or the client has disconnected."""
        state, last = self._state, None

        async def done() -> bool:
            nonlocal last
            tag = await state.in_thread(self._store.tag, folder)
            if tag != last:
                found = await state.in_thread(self._store.manifest, folder)
                last = tag
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
                if size >= SEGMENT:
                    full, batch, size = batch, [], 0
                    stored += await self._write(folder, full)
        finally:
            # Also if the stream breaks: complete chunks need not be sent again.
            if batch:
                stored += await self._write(folder, batch)
        return JsonResponse({"stored": stored})

    async def _write(self, folder: str, batch: Sequence[tuple[str, bytes]]) -> int:
        return await self._state.in_thread(self._store.write_chunks, folder, batch)

    async def read_chunks(self, request: Request) -> Response:
        state = self._state
        folder = state.folder(request, write=False)
        body = await state.body(request, _HASHES_BODY)
        names = await state.in_thread(parse_hashes, body)
        await state.hold_stream(request, folder)
        if absent := await state.in_thread(self._store.absent, folder, names):
            raise ChunksMissing(absent)
        return Streamed(
            state.in_thread.each(self._frames(folder, names)), media_type=MEDIA_TYPE
        )

    def _frames(self, folder: str, names: Sequence[str]) -> Iterator[bytes]:
        for part in self._store.read_chunks(folder, names):
            yield b"".join(frame_of(name, data) for name, data in part)

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


_FILE, _FOLDER, _PRIVATE = 0o644, 0o755, 0o600


# ------------------------------------------------------------------ edits that the server makes itself


def write_file(manifest: Manifest, path: str, data: bytes) -> Edit:
    """Return the change that writes a file; an existing file keeps its mode. Raises PathRefused."""
    old = _file_at(manifest, path)
    return _edit(manifest, path, old.mode if old else _FILE, (), data)


def append_line(
    manifest: Manifest, path: str, line: bytes, read: Callable[[str], bytes]
) -> Edit:
    """Return the change that appends a line to a file. Raises PathRefused.

    Args:
        manifest: The folder.
        path: The file.
        line: The line, with its newline.
        read: Returns the bytes of a chunk; only the file's last one is read and rewritten.
    """
    old = _file_at(manifest, path)
    if old is None:
        return _edit(manifest, path, _PRIVATE, (), line)
    whole, tail = old.chunks, b""
    if old.size:
        whole, tail = old.chunks[:-1], read(old.chunks[-1])
    if tail and not tail.endswith(b"\n"):
        tail += b"\n"
    return _edit(manifest, path, old.mode, whole, tail + line)


def _edit(
    manifest: Manifest, path: str, mode: int, whole: tuple[str, ...], rest: bytes
) -> Edit:
    """Return the change to a file of the chunks `whole` and these bytes; missing folders are made."""
    pieces = [rest[at : at + CHUNK] for at in range(0, len(rest), CHUNK)]
    chunks = [(chunk_hash(piece), piece) for piece in pieces]
    size = len(whole) * CHUNK + len(rest)
    entry = Entry("file", mode, size, whole + tuple(name for name, _ in chunks))
    put = {
        above: Entry("folder", _FOLDER) for above in _missing_folders(manifest, path)
    }
    return Edit(Delta(put | {path: entry}, frozenset()), chunks)


def _file_at(manifest: Manifest, path: str) -> Entry | None:
    check_path(path)
    old = manifest.get(path)
    if old is not None and old.kind != "file":
        raise PathRefused(path, f"is a {old.kind}")
    return old


def _missing_folders(manifest: Manifest, path: str) -> list[str]:
    """Return the folders above `path` that have no entry. Raises PathRefused below a file or a symlink."""
    parts = path.split("/")[:-1]
    above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    for folder in above:
        if manifest.kind(folder) not in ("folder", None):
            raise PathRefused(path, f"is below a {manifest.kind(folder)}")
    return [folder for folder in above if manifest.kind(folder) is None]


# ------------------------------------------------------------------ the endpoints of the earlier content service


class LegacyApi:
    """Handlers for `/content/…`, the HTTP form of vTeam's `handlers/content.go`: its addresses, bodies and responses.

    A write is a commit of one file; a read streams its chunks. The folder is the token's. Paths are
    `/sessions/NAME/…` or relative to the folder; `..` is refused where that service resolved it, and
    symlinks are not followed.
    """

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._store = state.store

    def routes(self) -> list[Route]:
        return [
            Route("/content/write", self.write, methods=["POST"]),
            Route("/content/file", self.file, methods=["GET"]),
            Route("/content/list", self.list, methods=["GET"]),
        ]

    async def write(self, request: Request) -> Response:
        state = self._state
        folder = self._folder(request)
        await state.hold_stream(request, folder)
        body = await state.body(request, state.settings.max_body)
        given, data = await state.in_thread(_parse_write, body)
        path = _path_of(given, folder)
        try:
            async with state.commits.slot(folder):
                await state.in_thread(
                    self._store.edit, folder, lambda now: write_file(now, path, data)
                )
        except PathRefused as error:
            raise _invalid_path(error) from None
        state.changes.notify(folder)
        return JsonResponse({"message": "ok"})

    async def file(self, request: Request) -> Response:
        state = self._state
        folder = self._folder(request)
        path = _path_of(_query_path(request), folder)
        manifest = await state.in_thread(self._store.manifest, folder)
        entry = manifest.get(path)
        if entry is None:
            raise RequestRefused(404, "not found")
        if entry.kind != "file":
            raise RequestRefused(400, f"{ascii(path[:200])} is a {entry.kind}")
        await state.hold_stream(request, folder)
        headers = {"content-length": str(entry.size)}
        return Streamed(await self._content(folder, entry), 200, headers, MEDIA_TYPE)

    async def _content(self, folder: str, entry: Entry) -> AsyncIterator[bytes]:
        """Return the chunks. The first is read before the response begins, so that a failure has a status."""
        chunks = self._state.in_thread.each(self._chunks(folder, entry))
        first = await anext(chunks, b"")

        async def stream() -> AsyncIterator[bytes]:
            yield first
            async for piece in chunks:
                yield piece

        return stream()

    def _chunks(self, folder: str, entry: Entry) -> Iterator[bytes]:
        for part in self._store.read_chunks(folder, entry.chunks):
            yield b"".join(data for _, data in part)

    async def list(self, request: Request) -> Response:
        state = self._state
        folder = self._folder(request)
        given = _query_path(request)
        path = _path_of(given, folder, root=True)
        manifest = await state.in_thread(self._store.manifest, folder)
        shown = "/" + given.strip().strip("/").removeprefix(".")
        items = await state.in_thread(_items, manifest, path, shown.rstrip("/"))
        if items is None:
            raise RequestRefused(404, "not found")
        return JsonResponse({"items": items})

    def _folder(self, request: Request) -> str:
        folder = self._state.grant(request).folder
        request.state.folder = folder
        return folder


def _query_path(request: Request) -> str:
    """Return `path` of the query; bytes that are not UTF-8 are kept."""
    query = request.scope["query_string"].decode("latin-1")
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, errors="surrogateescape", max_num_fields=20
        )
    except ValueError:
        raise RequestRefused(400, "the query has more than 20 fields") from None
    return next((value for name, value in pairs if name == "path"), "")


def _path_of(given: str, folder: str, *, root: bool = False) -> str:
    """Return the path in the folder; with `root`, "" stands for the folder itself. Raises RequestRefused."""
    session = folder.partition("/")[2].rpartition(".")[0]
    path = given.strip()
    if path.startswith("/sessions/"):
        name, _, path = path.removeprefix("/sessions/").partition("/")
        if name != session:
            raise RequestRefused(403, "the token belongs to another session")
    if root and path.rstrip("/") in ("", "."):
        return ""
    path = path.rstrip("/") if root else path
    try:
        check_path(path)
    except PathRefused as error:
        raise _invalid_path(error) from None
    return path


def _invalid_path(error: PathRefused) -> RequestRefused:
    return RequestRefused(400, f"invalid path: {error.message}", hint=error.hint)


def _parse_write(body: bytes) -> tuple[str, bytes]:
    data = parse_object(body)
    path, content = data.get("path"), data.get("content", "")
    encoding = data.get("encoding") or "utf8"
    if not all(isinstance(text, str) for text in (path, content, encoding)):
        raise RequestRefused(400, "path, content and encoding must be strings")
    assert isinstance(path, str) and isinstance(content, str)
    try:
        if encoding.lower() == "base64":
            return path, base64.b64decode(content, validate=True)
        return path, content.encode()
    except binascii.Error:
        raise RequestRefused(400, "invalid base64 content") from None
    except UnicodeEncodeError:
        raise RequestRefused(
            400, "content is not Unicode", hint="send it as base64"
        ) from None


def _items(manifest: Manifest, path: str, shown: str) -> list[dict[str, Any]] | None:
    """Return the items of a folder, or a file alone; None if there is neither."""
    entry = manifest.get(path) if path else None
    if entry is not None and entry.kind != "folder":
        name, at = path.rpartition("/")[2], manifest.changed_at(path)
        return [_item(name, shown, entry, at)]
    inside = f"{path}/" if path else ""
    newest: dict[str, int] = {}
    for below in manifest.slots:
        if below.startswith(inside):
            name = below[len(inside) :].partition("/")[0]
            newest[name] = max(newest.get(name, 0), manifest.changed_at(below))
    if not newest and entry is None and path:
        return None
    return [
        _item(name, f"{shown}/{name}", manifest.get(inside + name), newest[name])
        for name in sorted(newest)
    ]


def _item(name: str, shown: str, entry: Entry | None, at: int) -> dict[str, Any]:
    """Return one item. `entry` is None for a folder that exists only because of what is below it."""
    time = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "name": name,
        "path": shown,
        "isDir": entry is None or entry.kind == "folder",
        "size": 0 if entry is None else entry.size or len(entry.target),
        "modifiedAt": time,
    }
