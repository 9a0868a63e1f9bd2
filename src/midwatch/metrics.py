"""Metrics as values, and the port that serves them.

The daemons count in plain attributes. A `Family` describes a metric, `midwatch.exposition` turns values
into Prometheus' text format when they are scraped, and `serving` opens a port for daemons that have no other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

from midwatch.errors import SettingsError
from midwatch.lifecycle import Liveness, cancel
from midwatch.logs import Log

# ------------------------------------------------------------------ families


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a metric, with the values of its labels in the family's order."""

    family: Family
    value: float
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """A metric. Its labels take values of a bounded set only, such as names from the settings."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()

    def __call__(self, value: float, *labels: str) -> Sample:
        return Sample(self, value, labels)


Read = Callable[[], Iterable[Sample]]
"""Returns the current values."""


def code_label(status: int) -> str:
    """Return an HTTP status as a label: common ones themselves, others by class, such as "4xx"."""
    return str(status) if status in _CODES else f"{min(max(status // 100, 0), 9)}xx"


_CODES = frozenset(
    (400, 401, 403, 404, 405, 408, 409, 410, 412, 413, 415, 422, 428, 429)
    + (499, 500, 502, 503, 504, 507)
)


# ------------------------------------------------------------------ serving

_LONGEST_HEAD = 8192
_LONGEST_REQUEST = 10.0
"""Seconds from the first byte of a request to the last of its answer."""
_CONNECTIONS = 32
_PLAIN = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    content_type: str = _PLAIN


Page = Callable[[], Answer]


def health(progress: Liveness, notice: Callable[[], str] = lambda: "") -> Page:
    """Return the page of a liveness probe: 200, or 503 with the names of the loops that are overdue.

    `notice` returns a line for a person, which does not make the daemon unhealthy.
    """

    def page() -> Answer:
        late = progress.late()
        lines = [f"{loop}: late by {by:.0f} s\n" for loop, by in sorted(late.items())]
        more = notice()
        text = "".join(lines or ["ok\n"]) + (f"{more}\n" if more else "")
        return Answer(503 if late else 200, text.encode())

    return page


@contextlib.asynccontextmanager
async def serving(
    host: str, port: int, pages: Mapping[str, Page], log: Log, *, setting: str
) -> AsyncIterator[str]:
    """Serve pages to probes and Prometheus while the block runs.

    It answers GET and HEAD alone, one request a connection, and bounds the bytes, seconds and connections
    of its clients.

    Args:
        host: The address to listen on.
        port: The port; 0 for any that is free.
        pages: What is served, by path.
        log: Where the failure of a page is logged.
        setting: Path of the setting that an error names.

    Yields:
        The URL without a path.

    Raises:
        SettingsError: The port cannot be opened.
    """
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
            # A bug in the page: the daemon continues, and the client gets no answer.
            log.error("a page failed", exc_info=error)

    try:
        server = await asyncio.start_server(accept, host, port, limit=_LONGEST_HEAD)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            path=setting,
            hint="choose another port, or stop the program that listens there",
        ) from None
    name, number = server.sockets[0].getsockname()[:2]
    try:
        yield f"http://{f'[{name}]' if ':' in name else name}:{number}"
    finally:
        server.close()
        await cancel(*connections)


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
        pass  # not a request
    except (TimeoutError, OSError):
        pass
    finally:
        writer.transport.abort()


def _response(head: bytes, pages: Mapping[str, Page]) -> bytes:
    method, _, rest = head.partition(b" ")
    target = rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1")
    page = pages.get(target)
    if method not in (b"GET", b"HEAD"):
        answer = Answer(405, b"only GET is allowed\n")
    else:
        answer = page() if page else Answer(404, b"not found\n")
    lines = [
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
        f"Content-Type: {answer.content_type}",
        f"Content-Length: {len(answer.body)}",
        "Connection: close",
    ]
    start = "\r\n".join([*lines, "", ""]).encode("ascii")
    return start if method == b"HEAD" else start + answer.body
