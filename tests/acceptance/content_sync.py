"""Two people in one folder, a proxy between them, and everything that goes wrong on the way."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2

from midwatch.content.sync.client import ContentClient
from midwatch.content.sync.roots import STAGING
from midwatch.content.sync.session import WorkspaceSync
from midwatch.content.tree import chunk_hash

from .content_proxy import Proxy, token

INBOX = "session/inbox.jsonl"


class Dead(Exception):
    """The process was killed here."""


class FastClock:
    """The machine's time, but every wait is short."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.002))


class Network(httpx2.AsyncBaseTransport):
    """The real transport, with `faults` that come next, or any with the probability `trouble`."""

    ALL = ("refused", "500", "cut upload", "lost answer", "cut answer")

    def __init__(self, chance: random.Random | None = None) -> None:
        self.chance = chance or random.Random(0)
        self.trouble = 0.0
        self.faults: list[str] = []
        self.asked: list[str] = []
        self.told: list[set[str]] = []
        """The keys in each response about the manifest."""
        self._inner = httpx2.AsyncHTTPTransport(trust_env=False)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(f"{request.method} {request.url.path.rpartition('/')[2]}")
        fault = self._fault()
        if fault == "refused":
            raise httpx2.ConnectError("refused")
        if fault == "500":
            return httpx2.Response(500, text="<html>gateway</html>")
        if fault == "cut upload" and request.method == "PUT":
            request.stream = _Cut(request.stream, httpx2.WriteError("cut"))
        response = await self._inner.handle_async_request(request)
        if fault == "lost answer":
            await response.aread()
            await response.aclose()
            raise httpx2.ReadError("lost")
        if fault == "cut answer":
            response.stream = _Cut(response.stream, httpx2.ReadError("cut"))
        elif request.method == "GET" and response.status_code == 200:
            data = json.loads(await response.aread())
            await response.aclose()
            self.told.append(set(data))
            if fault == "wrong difference":
                data["put"].popitem()
            return httpx2.Response(200, content=json.dumps(data).encode())
        return response

    def _fault(self) -> str:
        if self.faults:
            return self.faults.pop(0)
        if self.chance.random() >= self.trouble:
            return ""
        return self.chance.choice(self.ALL)

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Cut(httpx2.AsyncByteStream):
    """Half of the first piece of a stream."""

    def __init__(self, inner: Any, error: Exception) -> None:
        self._inner = inner
        self._error = error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._inner:
            yield piece[: len(piece) // 2]
            raise self._error

    async def aclose(self) -> None:
        if hasattr(self._inner, "aclose"):
            await self._inner.aclose()


class Side:
    """A pod: its folders, and the sync in it, which can be killed and started again."""

    def __init__(
        self, root: Path, client: ContentClient, network: Network, **options: Any
    ) -> None:
        self.root = root
        self.work = root / "workspace"
        self.session = root / "session"
        self.client = client
        self.network = network
        self.dies_at: str | int | None = None
        self.meanwhile: Any = None
        self.steps: list[str] = []
        self._options = {"clock": FastClock(), "interval": 0.01} | options
        self.start()

    def start(self) -> None:
        roots = {"workspace": self.work, "session": self.session}
        self.sync = WorkspaceSync(
            self.client, roots, self.root / "state", step=self._step, **self._options
        )

    def _step(self, name: str) -> None:
        self.steps.append(name)
        if self.meanwhile:
            self.meanwhile(name)
        if self.dies_at in (name, len(self.steps)):
            self.dies_at = None
            raise Dead(name)

    def write(self, path: str, data: bytes | str, mode: int | None = None) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data if isinstance(data, bytes) else data.encode())
        if mode is not None:
            file.chmod(mode)

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def files(self) -> dict[str, Any]:
        return snapshot(self.work) | snapshot(self.session)

    def forget(self) -> None:
        """Delete the pod's volumes and start again."""
        shutil.rmtree(self.root)
        self.start()


@asynccontextmanager
async def side(
    proxy: Proxy, root: Path, *, folder: str = "", **options: Any
) -> AsyncIterator[Side]:
    folder = folder or proxy.folder
    network = Network()
    read, attempt = options.pop("read", ()), options.pop("attempt", None)
    async with ContentClient(
        proxy.url,
        token(folder, read),
        folder,
        attempt=attempt,
        transport=network,
        clock=FastClock(),
    ) as client:
        yield Side(root, client, network, **options)


def snapshot(root: Path) -> dict[str, Any]:
    """Return everything in a folder by path: kind, permissions and content."""
    found: dict[str, Any] = {}
    for folder, names, files in os.walk(root):
        if STAGING in names:
            names.remove(STAGING)
        for name in names + files:
            path = Path(folder, name)
            found[f"{root.name}/{path.relative_to(root)}"] = _what(path)
    return found


def _what(path: Path) -> tuple[Any, ...]:
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return "link", os.readlink(path)
    if stat.S_ISDIR(found.st_mode):
        return "folder", found.st_mode & 0o777
    return "file", found.st_mode & 0o777, path.read_bytes()


async def contents(proxy: Proxy, folder: str = "") -> Mapping[str, set[str]]:
    """Return the paths of each chunk on the proxy."""
    _, tree = await proxy.caller(folder).manifest()
    found: dict[str, set[str]] = {}
    for path, entry in tree.items():
        for chunk in entry.chunks:
            found.setdefault(chunk, set()).add(path)
    return found


def name_of(data: bytes) -> str:
    return chunk_hash(data)
