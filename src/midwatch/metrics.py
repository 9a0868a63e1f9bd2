"""Metrics for Prometheus, and a port that serves them.

The daemons count in plain values of their own. `Exposition` turns them into the text that Prometheus
reads when it scrapes, `serving` is the port for daemons that have no other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import version
from typing import Literal

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from midwatch.errors import SettingsError
from midwatch.lifecycle import Liveness
from midwatch.logs import Log

# ------------------------------------------------------------ families
# What a metric is called and means, and one value of it.


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a metric, with the values of its labels in their order."""

    family: Family
    value: float
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """A metric. `labels` take values of a bounded set only: names from the settings, constants."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()

    def __call__(self, value: float, *labels: str) -> Sample:
        return Sample(self, value, labels)


Read = Callable[[], Iterable[Sample]]
"""The values as they are now."""


def code_label(status: int) -> str:
    """An HTTP status as a label: the common ones as they are, the others by their hundred."""
    return str(status) if status in _CODES else f"{min(max(status // 100, 0), 9)}xx"


_CODES = frozenset(
    (400, 401, 403, 404, 405, 408, 409, 410, 412, 413, 415, 422, 428, 429)
    + (499, 500, 502, 503, 504, 507)
)

_INFO = Family("midwatch_info", "gauge", "The version; always 1.", ("version",))
_Metric = CounterMetricFamily | GaugeMetricFamily


class Exposition:
    """The metrics of one process. `read` is asked at every scrape, in the caller's thread."""

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self, families: Sequence[Family], read: Read) -> None:
        # A registry of its own: there may be several in a process, and nothing else gets in.
        self._registry = CollectorRegistry()
        self._registry.register(_Values((_INFO, *families), read))
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Values(Collector):
    def __init__(self, families: Sequence[Family], read: Read) -> None:
        self._families = families
        self._read = read

    def describe(self) -> Iterable[_Metric]:
        return [_metric(family) for family in self._families]

    def collect(self) -> Iterable[_Metric]:
        metrics = {family: _metric(family) for family in self._families}
        for sample in (_INFO(1, version("midwatch")), *self._read()):
            _add(metrics[sample.family], sample)
        return metrics.values()


def _metric(family: Family) -> _Metric:
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    return kind(family.name, family.help, labels=family.labels)


def _add(metric: _Metric, sample: Sample) -> None:
    metric.add_metric(list(sample.labels), sample.value)


# ------------------------------------------------------------ serving
# A port with few pages for probes and Prometheus, for daemons that have no other. It answers GET alone, one
# request a connection, and bounds what a stranger can make of it: bytes, seconds and connections.

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


def health(progress: Liveness) -> Page:
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
            # The daemon goes on; the client gets no answer.
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
        pass  # no request: no client waits for an answer
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
