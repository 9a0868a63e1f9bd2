"""A workspace of 10,000 files with the content proxy: its first push, and the sync of ten changes.

Floors: the plain endpoints, where every folder is listed and every file is read; and `rsync -a --delete` and `tar` of the
same tree on this machine, the first push in processor time of all processes that take part. The proxy is a
separate process. Files are in memory if possible: no disk is measured. On an object store requests and bytes are counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import psutil

from midwatch.content.sync.client import ContentClient
from midwatch.content.sync.roots import Roots
from midwatch.content.sync.scan import Scanner
from midwatch.content.sync.session import WorkspaceSync
from midwatch.content.tokens import issue
from tests.acceptance.s3_server import URL, s3

from .report import Round, Row, against_bound, against_floor, paired

FOLDERS, FILES, FILE_BYTES = 100, 100, 2000
CHANGES = 10
ROUNDS = 9
SAMPLE = 300
"""Files that are read through the plain endpoints; the others cost the same."""
LARGE_BYTES = 256 << 20
MEMORY = Path("/dev/shm")
KEY = "0123456789abcdef0123456789abcdef"
FOLDER = "bench/tree.00000000"
FIRST_ROUNDS = 3
_BUCKET = {"MIDWATCH_CONTENT__URL": URL}


async def run() -> Sequence[Row]:
    """Return the rows. Takes about half a minute."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        root = Path(name)
        with _proxy(root) as url:
            rows = [*await _tree(root, url), await _on_disk(url)]
            rows += [*await _first(root), await _large(root, url)]
        return [*rows, *await _bucket(root)]


@contextlib.contextmanager
def _proxy(root: Path, **more: str) -> Iterator[str]:
    (root / "key").write_text(KEY)
    environ = {
        "PATH": os.defpath,
        "MIDWATCH_CONTENT__ROOT": str(root / "volume"),
        "MIDWATCH_CONTENT__PORT": "0",
        "MIDWATCH_CONTENT__KEY_FILE": str(root / "key"),
        **more,
    }
    command = [str(Path(sys.executable).with_name("midwatch")), "content", "serve"]
    with (
        (root / "log").open("w+") as log,
        subprocess.Popen(
            command, cwd=root, env=environ, stdout=log, stderr=log
        ) as proxy,
    ):
        try:
            yield _address(root / "log", proxy)
        finally:
            proxy.terminate()


def _address(log: Path, proxy: subprocess.Popen[bytes]) -> str:
    for _ in range(1000):
        if found := re.search(r"http://[\w.:\[\]]+:\d+", log.read_text()):
            return found.group()
        if proxy.poll() is not None:
            break
        time.sleep(0.02)
    raise RuntimeError(log.read_text())


class _Counting(httpx2.AsyncHTTPTransport):
    """Counts the bytes of bodies, both ways."""

    bytes = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        request.stream = _Counted(self, request.stream)
        response = await super().handle_async_request(request)
        response.stream = _Counted(self, response.stream)
        return response


class _Counted(httpx2.AsyncByteStream):
    def __init__(self, counting: _Counting, inner: object) -> None:
        self._counting = counting
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert isinstance(self._inner, httpx2.AsyncByteStream)
        async for piece in self._inner:
            self._counting.bytes += len(piece)
            yield piece

    async def aclose(self) -> None:
        if isinstance(self._inner, httpx2.AsyncByteStream):
            await self._inner.aclose()


def _token(folder: str = FOLDER) -> str:
    return issue(KEY.encode(), folder, now=datetime.now(UTC))


# ------------------------------------------------------------------ the tree


async def _tree(root: Path, url: str) -> list[Row]:
    work = root / "work"
    _make(work)
    counting = _Counting()
    async with ContentClient(url, _token(), FOLDER, transport=counting) as client:
        async with ContentClient(url, _token(), FOLDER) as other:
            here = WorkspaceSync(client, {"workspace": work}, root / "here")
            there = WorkspaceSync(other, {"workspace": root / "copy"}, root / "there")
            await here.push()
            await there.pull()
            before = client.requests, counting.bytes
            _change(work)
            await here.push()
            requests, sent = client.requests - before[0], counting.bytes - before[1]
            plain_requests, plain_bytes = await _plain(url, work)
            return [
                against_floor(
                    "content: requests for ten changes / per-file endpoints",
                    requests,
                    plain_requests,
                    0.01,
                    "requests",
                ),
                against_floor(
                    "content: bytes for ten changes / per-file endpoints",
                    sent / 1000,
                    plain_bytes / 1000,
                    0.01,
                    "kB",
                ),
                against_floor(
                    "content: bytes for ten changes / the changed content",
                    sent / 1000,
                    CHANGES * FILE_BYTES / 1000,
                    2,
                    "kB",
                ),
                *await _times(root, work, here, there),
                _scan(work),
            ]


def _make(work: Path) -> None:
    for folder in range(FOLDERS):
        (work / f"{folder}").mkdir(parents=True)
        for name in range(FILES):
            (work / f"{folder}/{name}").write_bytes(random.randbytes(FILE_BYTES))


def _change(work: Path) -> None:
    for number in random.sample(range(FOLDERS * FILES), CHANGES):
        path = work / f"{number // FILES}/{number % FILES}"
        path.write_bytes(random.randbytes(FILE_BYTES))


async def _plain(url: str, work: Path) -> tuple[float, float]:
    """Return the requests and bytes to list and read everything through the plain endpoints."""
    folders = ["workspace", *(f"workspace/{p.name}" for p in work.iterdir())]
    counting = _Counting()
    headers = {"authorization": f"Bearer {_token()}"}
    async with httpx2.AsyncClient(
        base_url=url, headers=headers, transport=counting
    ) as http:
        files: list[str] = []
        for folder in folders:
            answer = await http.get("/content/list", params={"path": folder})
            items = answer.raise_for_status().json()["items"]
            files += [i["path"].lstrip("/") for i in items if not i["isDir"]]
        listed, counting.bytes = counting.bytes, 0
        for path in files[:SAMPLE]:
            answer = await http.get("/content/file", params={"path": path})
            answer.raise_for_status()
    read = counting.bytes * len(files) / SAMPLE
    return len(folders) + len(files), listed + read


async def _times(
    root: Path, work: Path, here: WorkspaceSync, there: WorkspaceSync
) -> list[Row]:
    async def pushed() -> float:
        _change(work)
        began = time.perf_counter()
        await here.push()
        return time.perf_counter() - began

    async def pulled() -> float:
        _change(work)
        await here.push()
        began = time.perf_counter()
        await there.pull()
        return time.perf_counter() - began

    async def copied() -> float:
        _change(work)
        began = time.perf_counter()
        rsync = ["rsync", "-a", "--delete", f"{work}/", str(root / "mirror")]
        process = await asyncio.create_subprocess_exec(*rsync)
        if await process.wait():
            raise RuntimeError("rsync failed")
        return time.perf_counter() - began

    if not shutil.which("rsync"):
        taken = statistics.median([await pushed() for _ in range(ROUNDS)])
        name = "content: push of ten changes (rsync is not installed)"
        return [against_bound(name, taken * 1000, 200, "ms")]
    push, floor = await paired(pushed, copied, ROUNDS)
    pull, again = await paired(pulled, copied, ROUNDS)
    return [
        against_floor(
            "content: push of ten changes / rsync", push * 1000, floor * 1000, 2
        ),
        against_floor(
            "content: pull of ten changes / rsync", pull * 1000, again * 1000, 2
        ),
    ]


async def _on_disk(url: str) -> Row:
    """Measure the share of a pull of all files that waits for the disk to sync."""
    shares = []
    async with ContentClient(url, _token(), FOLDER) as client:
        for _ in range(3):
            with tempfile.TemporaryDirectory() as name:
                shares.append(await _waited(client, Path(name)))
    share = statistics.median(shares) * 100
    return against_bound("content: wait for the disk in a pull of all", share, 20, "%")


async def _waited(client: ContentClient, disk: Path) -> float:
    """Return the share of a pull's time between the begin and the end of each disk sync."""
    waited, since = 0.0, None

    def step(name: str) -> None:
        nonlocal waited, since
        if since is not None:
            waited += time.perf_counter() - since
        since = time.perf_counter() if name.startswith("sync") else None

    began = time.perf_counter()
    await WorkspaceSync(
        client, {"workspace": disk / "copy"}, disk / "state", step=step
    ).pull()
    return waited / (time.perf_counter() - began)


def _scan(work: Path) -> Row:
    scanner = Scanner(Roots({"workspace": work}))
    scanner.scan()
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        scanner.scan()
        taken.append(time.perf_counter() - began)
    value = statistics.median(taken) * 1000
    return against_bound("content: scan of 10,000 unchanged files", value, 150, "ms")


# ------------------------------------------------------------------ the first push


async def _first(root: Path) -> list[Row]:
    """Compare the processor time of a first push, of client and proxy, with rsync's and tar's."""
    if not shutil.which("rsync"):
        return []
    here = psutil.Process()
    [proxy] = [p for p in here.children() if "content" in p.cmdline()]
    numbers = itertools.count(1)
    work = root / "work"

    async def pushed() -> float:
        folder, state = f"bench/first.{next(numbers):08x}", root / "first-state"
        before = _used(here) + _used(proxy)
        async with ContentClient(_url_of(root), _token(folder), folder) as client:
            await WorkspaceSync(client, {"workspace": work}, state).push()
        shutil.rmtree(state)
        return _used(here) + _used(proxy) - before

    def program(*command: str) -> Round:
        async def run() -> float:
            shutil.rmtree(root / "first-copy", ignore_errors=True)
            before = os.times()
            subprocess.run([*command, str(root / "first-copy")], check=True)
            after = os.times()
            if (root / "first-copy").is_file():
                (root / "first-copy").unlink()
            user = after.children_user - before.children_user
            return user + after.children_system - before.children_system

        return run

    rsync = program("rsync", "-a", "--delete", f"{work}/")
    push, floor = await paired(pushed, rsync, FIRST_ROUNDS)
    again, packed = await paired(
        pushed, program("tar", "-C", str(work), "-c", ".", "-f"), FIRST_ROUNDS
    )
    name = "content: processor time of the first push of 10,000 files"
    return [
        against_floor(f"{name} / rsync", push * 1000, floor * 1000, 1.5),
        against_floor(f"{name} / tar", again * 1000, packed * 1000, 10),
    ]


def _used(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _url_of(root: Path) -> str:
    found = re.search(r"http://[\w.:\[\]]+:\d+", (root / "log").read_text())
    assert found, "the proxy has started"
    return found.group()


# ------------------------------------------------------------------ on an object store


async def _bucket(root: Path) -> list[Row]:
    """Count the requests to the object store, and the bytes, of the first push and of a push of ten changes."""
    work, state = root / "work", root / "bucket-state"
    with s3() as service, _proxy(root, **service.environ, **_BUCKET) as url:
        async with ContentClient(url, _token(), FOLDER) as client:
            sync = WorkspaceSync(client, {"workspace": work}, state)
            counts = []
            for _ in range(2):
                before = service.requests.total(), service.sent
                await sync.push()
                _change(work)
                counts.append(
                    (service.requests.total() - before[0], service.sent - before[1])
                )
    (requests, sent), (few, little) = counts
    content = FOLDERS * FILES * FILE_BYTES / 1000
    return [
        against_bound("content: store requests, first push", requests, 30, "requests"),
        against_floor(
            "content: bytes to the store, first push / content",
            sent / 1000,
            content,
            1.2,
            "kB",
        ),
        against_bound("content: store requests, ten changes", few, 6, "requests"),
        against_bound(
            "content: bytes to the store, ten changes", little / 1000, 2000, "kB"
        ),
    ]


# ------------------------------------------------------------------ one large file


async def _large(root: Path, url: str) -> Row:
    """Measure the memory that a large file adds to the process that sends it and brings it back."""
    program = [sys.executable, "-m", "bench.content", url, str(root)]
    process = await asyncio.create_subprocess_exec(
        *program, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    grown = float(output) / 1e6
    return against_bound("content: memory for a file of 256 MB", grown, 50, "MB")


async def _send_large(url: str, root: Path, size: int) -> float:
    async with ContentClient(url, _token(), FOLDER) as client:
        here = WorkspaceSync(client, {"large": root / "large"}, root / "large-state")
        there = WorkspaceSync(client, {"large": root / "back"}, root / "back-state")
        await here.push()
        await there.pull()
        before = psutil.Process().memory_info().rss
        with (root / "large/file").open("wb") as file:
            for _ in range(size >> 20):
                file.write(random.randbytes(1 << 20))
        watching = asyncio.create_task(_peak())
        await here.push()
        await there.pull()
        watching.cancel()
        peak = await watching
        assert (root / "back/file").stat().st_size == size
        return peak - before


async def _peak() -> float:
    peak = 0
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            peak = max(peak, psutil.Process().memory_info().rss)
            await asyncio.sleep(0.01)
    return peak


if __name__ == "__main__":
    size = int(sys.argv[3]) if len(sys.argv) > 3 else LARGE_BYTES
    print(asyncio.run(_send_large(sys.argv[1], Path(sys.argv[2]), size)))
