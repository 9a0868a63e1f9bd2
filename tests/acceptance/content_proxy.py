"""A content proxy for a test, in its loop or as a process, and a client that hides nothing of HTTP."""

from __future__ import annotations

import asyncio
import io
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2

from midwatch.content.server.app import serving
from midwatch.content.server.manifest import load
from midwatch.content.server.segments import head_length, parse_head
from midwatch.content.tokens import issue
from midwatch.content.tree import (
    CHUNK,
    MEDIA_TYPE,
    Entry,
    Tree,
    chunk_hash,
    decode_frames,
    encode_frame,
    tree_from_json,
)
from midwatch.lifecycle import StopEvent
from midwatch.logs import open_log
from midwatch.redaction import Redactor
from midwatch.settings import ContentSettings, LogSettings

from ..processes import start
from ..waiting import PATIENCE
from .cli import MIDWATCH, environ

KEY = b"0123456789abcdef0123456789abcdef"
FOLDER = "team/fix.0123abcd"
OTHER = "team/other.99999999"


def token(folder: str = FOLDER, read: Sequence[str] = (), key: bytes = KEY) -> str:
    return issue(key, folder, read, now=datetime.now(UTC))


def bearer(
    folder: str = FOLDER, read: Sequence[str] = (), key: bytes = KEY
) -> dict[str, str]:
    return {"authorization": f"Bearer {token(folder, read, key)}"}


def split(data: bytes) -> list[bytes]:
    return [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]


def file(data: bytes, mode: int = 0o644) -> Entry:
    return Entry("file", mode, len(data), tuple(map(chunk_hash, split(data))))


class Caller:
    """Requests about one folder."""

    def __init__(self, http: httpx2.AsyncClient, folder: str = FOLDER) -> None:
        self.http = http
        self.folder = folder
        self.at = f"/v1/folders/{folder}"
        self.headers = bearer(folder)

    async def manifest(self) -> tuple[str, dict[str, Entry]]:
        answer = await self.http.get(f"{self.at}/manifest", headers=self.headers)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert answer.headers["etag"] == f'"{body["version"]}"'
        return body["version"], tree_from_json(body["tree"])

    async def known(self, version: str, wait: float = 0) -> httpx2.Response:
        return await self.http.get(
            f"{self.at}/manifest?wait={wait:g}",
            headers=self.headers | {"if-none-match": f'"{version}"'},
            timeout=PATIENCE,
        )

    async def since(self, version: str) -> httpx2.Response:
        return await self.http.get(
            f"{self.at}/manifest?since={version}", headers=self.headers
        )

    async def put(self, *data: bytes) -> httpx2.Response:
        frames = b"".join(encode_frame(one) for whole in data for one in split(whole))
        return await self.http.put(
            f"{self.at}/chunks",
            content=frames,
            headers=self.headers | {"content-type": MEDIA_TYPE},
        )

    async def post(self, what: str, body: Any, **headers: str) -> httpx2.Response:
        return await self.http.post(
            f"{self.at}/{what}",
            content=json.dumps(body).encode(),
            headers=self.headers | {"content-type": "application/json"} | headers,
        )

    async def commit(
        self, base: str, put: Tree | None = None, removed: Sequence[str] = ()
    ) -> httpx2.Response:
        entries = {path: entry.to_json() for path, entry in (put or {}).items()}
        body = {"put": entries, "removed": list(removed)}
        return await self.post("commit", body, **{"if-match": f'"{base}"'})

    async def write(self, files: Mapping[str, bytes]) -> str:
        """Commit these files on top of the current version; send again what was collected meanwhile."""
        base, _ = await self.manifest()
        tree = {path: file(data) for path, data in files.items()}
        while True:
            await self.put(*(data for data in files.values() if data))
            answer = await self.commit(base, tree)
            if not (answer.status_code == 409 and answer.json().get("missing")):
                break
        assert answer.status_code == 200, answer.text
        return str(answer.json()["version"])

    async def missing(self, *names: str) -> list[str]:
        answer = await self.post("missing", {"hashes": names})
        return list(answer.json()["missing"])

    async def content(self, entry: Entry) -> bytes:
        """Return a file's bytes, read from its chunks."""
        answer = await self.post("chunks/read", {"hashes": entry.chunks})
        assert answer.status_code == 200, answer.text
        unique = {n: d async for n, d in decode_frames(answer.aiter_bytes())}
        return b"".join(unique[name] for name in entry.chunks)


def waits(metrics: httpx2.Response) -> bool:
    """Whether a proxy that tells these has one request that waits for a change."""
    return "\nmidwatch_content_waiting 1.0\n" in metrics.text


@dataclass(frozen=True)
class Proxy:
    """A running proxy: a client, its volume, its log, and its stop event."""

    http: httpx2.AsyncClient
    url: str
    root: Path
    log: io.StringIO
    stop: StopEvent
    folder: str = FOLDER
    """The default folder: tests that share a proxy have one each."""

    def caller(self, folder: str = "") -> Caller:
        return Caller(self.http, folder or self.folder)

    async def until_waiting(self) -> None:
        """Return once a request waits for a change."""
        async with asyncio.timeout(PATIENCE):
            while not waits(await self.http.get("/metrics")):
                await asyncio.sleep(0.01)

    async def until_collected(self) -> None:
        """Return once the first pass of the collector has listed the folders."""
        async with asyncio.timeout(PATIENCE):
            metrics = await self.http.get("/metrics")
            while "\nmidwatch_content_folders " not in metrics.text:
                await asyncio.sleep(0.01)
                metrics = await self.http.get("/metrics")

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


@asynccontextmanager
async def proxy(folder: Path, **settings: Any) -> AsyncIterator[Proxy]:
    log, stop, root = io.StringIO(), StopEvent(), folder / "volume"
    chosen = ContentSettings(root=root, port=0, **settings)
    opened = open_log(LogSettings(format="json"), log, Redactor())
    # Without TLS, whose certificates take longer to read than all else here.
    async with httpx2.AsyncClient(timeout=PATIENCE, verify=False) as http:
        async with serving(chosen, lambda: [KEY], stop, opened) as url:
            http.base_url = httpx2.URL(url)
            yield Proxy(http, url, root, log, stop)


@contextmanager
def process(folder: Path, *before: str, **variables: str) -> Iterator[tuple[str, int]]:
    """Run `midwatch content serve` on `folder/volume`. Yields its address and its process id.

    Variables are settings of the proxy, or those of AWS as they are.
    """
    (folder / "key").write_bytes(KEY)
    log = folder / f"log-{uuid.uuid4().hex}"
    chosen = {"ROOT": "volume", "PORT": "0", "KEY_FILE": "key"} | variables
    # Into a file: a pipe that nobody reads would stop the server when it is full.
    named = {
        name if name.startswith("AWS_") else f"MIDWATCH_CONTENT__{name}": one
        for name, one in chosen.items()
    }
    with (
        log.open("w") as written,
        start(
            [*before, MIDWATCH, "content", "serve"],
            cwd=folder,
            env=environ(folder, **named),
            stdout=written,
            stderr=2,
        ) as running,
    ):
        try:
            yield _address(log), running.pid
        finally:
            running.terminate()
            running.wait(PATIENCE)


def _address(log: Path) -> str:
    deadline = time.monotonic() + PATIENCE
    while not (found := re.search(r'"address": "([^"]+)"', log.read_text())):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    return found[1]


def stored_chunks(folder: Path) -> dict[str, bytes]:
    """Return the chunks in a folder's segments, and those of an earlier version, whatever their bytes are."""
    found = {path.name: path.read_bytes() for path in folder.glob("chunks/*/*")}
    for path in folder.glob("segments/*"):
        data = path.read_bytes()
        head = data[: head_length(f"segments/{path.name}")]
        for chunk, place in parse_head(f"segments/{path.name}", head).items():
            found[chunk.hex()] = data[place.start : place.start + place.length]
    return found


def segment_of(folder: Path, data: bytes) -> Path:
    """Return the segment on the volume that has these bytes."""
    [path] = [path for path in folder.glob("segments/*") if data in path.read_bytes()]
    return path


def check_whole(root: Path) -> int:
    """Check that every manifest on the volume is whole and every chunk it names has its bytes. Return the entries."""
    entries = 0
    for path in root.glob("folders/*/*/manifest.jsonl"):
        with path.open("rb") as opened:
            manifest = load(opened)
        stored = stored_chunks(path.parent)
        for name in manifest.chunks():
            assert chunk_hash(stored[name.hex()]) == name.hex()
        entries += len(manifest)
    return entries
