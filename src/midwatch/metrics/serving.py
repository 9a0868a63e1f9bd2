"""A port with few pages for probes and Prometheus, for daemons that have no other. It answers GET alone, one
request a connection, and bounds what a stranger can make of it: bytes, seconds and connections.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from midwatch.errors import SettingsError
from midwatch.logs import Log
from midwatch.progress import Progress

if TYPE_CHECKING:
    from midwatch.metrics.exposition import Exposition

_LONGEST_HEAD = 8192
_LONGEST_REQUEST = 10.0
"""Seconds from the first byte to the last of the answer."""
_CONNECTIONS = 32
_PLAIN = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    content_type: str = _PLAIN


Page = Callable[[], Answer]


def health(progress: Progress) -> Page:
    """200 while all loops come round, else 503 with the names of those that do not."""

    def page() -> Answer:
        late = progress.late()
        said = [f"{loop}: late by {by:.0f} s\n" for loop, by in sorted(late.items())]
        return Answer(503 if late else 200, "".join(said or ["ok\n"]).encode())

    return page


def metrics_page(exposition: Exposition) -> Page:
    return lambda: Answer(200, exposition.text(), exposition.content_type)


@contextlib.asynccontextmanager
async def serving(
    host: str, port: int, pages: Mapping[str, Page], log: Log, *, setting: str
) -> AsyncIterator[str]:
    """Serves while inside; yields the address. Raises SettingsError, for `setting`, where it cannot."""
    connections: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(connections) >= _CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.create_task(_connection(reader, writer, pages), name="scrape")
        connections.add(task)
        task.add_done_callback(ended)

    def ended(task: asyncio.Task[None]) -> None:
        connections.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A fault of ours; the daemon goes on, and who asked sees no answer.
            log.error("a page failed", exc_info=error)

    try:
        server = await asyncio.start_server(accept, host, port, limit=_LONGEST_HEAD)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            path=setting,
            hint="choose another port, or end what listens there",
        ) from None
    name, number = server.sockets[0].getsockname()[:2]
    try:
        yield f"http://{f'[{name}]' if ':' in name else name}:{number}"
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _connection(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    pages: Mapping[str, Page],
) -> None:
    try:
        async with asyncio.timeout(_LONGEST_REQUEST):
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(_response(head, pages))
            await writer.drain()
            writer.close()
            await writer.wait_closed()
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass  # no request: nobody waits for an answer
    except (TimeoutError, OSError):
        pass
    finally:
        writer.transport.abort()


def _response(head: bytes, pages: Mapping[str, Page]) -> bytes:
    method, _, rest = head.partition(b" ")
    target = rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1")
    page = pages.get(target)
    if method not in (b"GET", b"HEAD"):
        answer = Answer(405, b"GET alone\n")
    else:
        answer = page() if page else Answer(404, b"there is no such page\n")
    lines = [
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
        f"Content-Type: {answer.content_type}",
        f"Content-Length: {len(answer.body)}",
        "Connection: close",
    ]
    start = "\r\n".join([*lines, "", ""]).encode("ascii")
    return start if method == b"HEAD" else start + answer.body
