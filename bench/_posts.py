"""Requests that are posted to a server over connections that stay open, and the least server that stores them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ._server import reachable, running

SENDERS = 8


@dataclass(frozen=True, slots=True)
class Load:
    """How a run went: its seconds, and those of each request."""

    seconds: float
    each: tuple[float, ...]


def post(path: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """Return a request with a JSON body, as it is sent."""
    more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"{more}content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def load(port: int, requests: Sequence[bytes]) -> Load:
    """Send requests, and return how that went. Each is answered before the next one of its connection."""
    left = iter(requests)
    taken: list[float] = []

    async def sender() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for request in left:
            began = time.perf_counter()
            writer.write(request)
            await _answer(reader)
            taken.append(time.perf_counter() - began)
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(sender() for _ in range(SENDERS)))
    return Load(time.perf_counter() - began, tuple(taken))


async def _answer(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 20"), head
    [length] = [
        int(line.split(b":")[1])
        for line in head.lower().splitlines()
        if line.startswith(b"content-length")
    ]
    await reader.readexactly(length)


def p99(seconds: Sequence[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.99) - 1]


@contextlib.contextmanager
def _listening() -> Iterator[tuple[int, int]]:
    """Yield the descriptor of a socket that listens, and its port."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        opened.listen(128)
        opened.set_inheritable(True)
        yield opened.fileno(), opened.getsockname()[1]


@contextlib.asynccontextmanager
async def bare(folder: Path) -> AsyncIterator[int]:
    """Run a Starlette application that inserts a row for each request. Yields its port."""
    with _listening() as (descriptor, port):
        command = [
            sys.executable,
            str(Path(__file__).with_name("_bare_handler.py")),
            str(folder / "bare.db"),
            str(descriptor),
        ]
        with running(folder, command, descriptor):
            await reachable(port)
            yield port
