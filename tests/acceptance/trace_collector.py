"""A collector on loopback that takes OTLP over HTTP, and the spans that it was sent."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from ..waiting import wait_until


@dataclass(frozen=True)
class Seen:
    """A span as it was sent."""

    name: str
    trace: str
    id: str
    parent: str
    kind: str
    attributes: dict[str, Any]
    error: str | None
    service: str
    seconds: float


class Collector:
    """Takes traces while the block runs. `status` is what it answers, once `hold` is set."""

    def __init__(self) -> None:
        self.status = 200
        self.hold = threading.Event()
        self.hold.set()
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.asked = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def spans(self) -> list[Seen]:
        """The spans that were accepted, by their start."""
        return sorted(
            (span for body in self.bodies for span in _spans(body)),
            key=lambda span: span.attributes["start"],
        )

    def until(self, name: str, number: int = 1) -> list[Seen]:
        """The spans of this name, once there are so many."""
        wait_until(lambda: sum(s.name == name for s in self.spans()) >= number)
        return [span for span in self.spans() if span.name == name]

    def below(self, span: Seen) -> list[str]:
        """The names of the spans right below a span."""
        return [one.name for one in self.spans() if one.parent == span.id]


def _spans(body: bytes) -> list[Seen]:
    sent = ExportTraceServiceRequest.FromString(body)
    found = []
    for resource in sent.resource_spans:
        names = {
            one.key: one.value.string_value for one in resource.resource.attributes
        }
        for scope in resource.scope_spans:
            found += [_seen(span, names["service.name"]) for span in scope.spans]
    return found


def _seen(span: Span, service: str) -> Seen:
    failed = span.status.code == Status.STATUS_CODE_ERROR
    attributes = {one.key: _value(one.value) for one in span.attributes}
    return Seen(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        {**attributes, "start": span.start_time_unix_nano},
        span.status.message if failed else None,
        service,
        (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
    )


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)


def _handler(collector: Collector) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.asked += 1
            collector.hold.wait()
            if collector.status == 200 and self.path == "/v1/traces":
                collector.bodies.append(body)
                collector.headers.append(
                    {k.lower(): v for k, v in self.headers.items()}
                )
            self.send_response(collector.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    return Handler
