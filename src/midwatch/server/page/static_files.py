"""The files that a browser loads: read once, compressed once, kept by the browser for good under the hash of their content."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from midwatch.errors import NotFound

_FOLDER = Path(__file__).parents[1] / "static"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FOR_GOOD = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    compressed: bytes
    media_type: str
    version: str


class StaticFiles:
    """The files of `midwatch.server.static` that have one of the known types."""

    def __init__(self, folder: Path = _FOLDER) -> None:
        self._files = {
            path.relative_to(folder).as_posix(): _read(path)
            for path in sorted(folder.rglob("*"))
            if path.suffix in _TYPES
        }

    def url(self, name: str) -> str:
        """Return the path of a file, with its version. Raises KeyError for an unknown one."""
        return f"/static/{name}?v={self._files[name].version}"

    def router(self) -> APIRouter:
        """Return the route of the files. They are the same for everybody, so no one has to sign in for them."""
        router = APIRouter(include_in_schema=False)
        router.add_api_route("/static/{name:path}", self._answer, methods=["GET"])
        return router

    async def _answer(self, request: Request, name: str) -> Response:
        file = self._files.get(name)
        if file is None:
            raise NotFound(f"there is no file {name[:100]}")
        current = request.query_params.get("v") == file.version
        headers = {
            "cache-control": _FOR_GOOD if current else "no-cache",
            "etag": f'"{file.version}"',
            "vary": "accept-encoding",
            "x-content-type-options": "nosniff",
        }
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        body = file.content
        if "gzip" in request.headers.get("accept-encoding", ""):
            body, headers["content-encoding"] = file.compressed, "gzip"
        return Response(body, headers=headers, media_type=file.media_type)


def _read(path: Path) -> _File:
    content = path.read_bytes()
    version = hashlib.sha256(content).hexdigest()[:12]
    return _File(
        content, gzip.compress(content, 9, mtime=0), _TYPES[path.suffix], version
    )
