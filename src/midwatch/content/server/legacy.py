"""The endpoints of the earlier content service (vTeam's `handlers/content.go`): same addresses, bodies and responses.

A write is a commit of one file; a read streams its chunks. The folder is the token's. Paths are
`/sessions/NAME/…` or relative to the folder; `..` is refused where that service resolved it, and symlinks
are not followed.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from midwatch.content.errors import PathRefused
from midwatch.content.server.http import (
    JsonResponse,
    RequestRefused,
    ServerState,
    parse_object,
)
from midwatch.content.server.manifest import Manifest
from midwatch.content.server.store import Edit
from midwatch.content.tree import (
    CHUNK,
    MEDIA_TYPE,
    Delta,
    Entry,
    check_path,
    chunk_hash,
)

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


# ------------------------------------------------------------------ endpoints


class LegacyApi:
    """Handlers for `/content/…`."""

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
        return StreamingResponse(
            await self._content(folder, entry), 200, headers, MEDIA_TYPE
        )

    async def _content(self, folder: str, entry: Entry) -> AsyncIterator[bytes]:
        """Return the chunks. The first is read before the response begins, so that a failure has a status."""
        first = await self._read(folder, entry.chunks[0]) if entry.chunks else b""

        async def stream() -> AsyncIterator[bytes]:
            yield first
            for name in entry.chunks[1:]:
                yield await self._read(folder, name)

        return stream()

    async def _read(self, folder: str, name: str) -> bytes:
        return await self._state.in_thread(self._store.read_chunk, folder, name)

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
