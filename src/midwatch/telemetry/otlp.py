"""Send spans with OpenTelemetry's SDK, by OTLP over HTTP. A collector that is down costs no more than its spans."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind as OtelKind
from opentelemetry.trace import Status, StatusCode

from midwatch.errors import SettingsError
from midwatch.logs import Log, quiet_log
from midwatch.redaction import Redactor
from midwatch.telemetry.spans import Attributes, Span, SpanKind, Value
from midwatch.telemetry_settings import TelemetrySettings
from midwatch.text import clean, one_line

_LONGEST_TEXT = 32_768
"""Characters of one attribute."""
_LONGEST_ERROR = 500
_DELAY_MILLISECONDS = 2000
_QUEUE = 4096
_CLOSE_SECONDS = 1.0
_KINDS = {"internal": OtelKind.INTERNAL, "client": OtelKind.CLIENT}


class OtlpTelemetry:
    """Satisfies `midwatch.telemetry.Telemetry`. Raises SettingsError if a file of the settings cannot be read."""

    def __init__(
        self, settings: TelemetrySettings, redactor: Redactor, log: Log
    ) -> None:
        assert settings.endpoint is not None
        self.content = settings.content
        self._redactor = redactor
        # One line for an outage says more than one of the library for each request.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._exporter = _Exporter(settings, log)
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.share)),
            resource=Resource(
                {
                    "service.name": settings.service,
                    "service.version": version("midwatch"),
                }
            ),
            shutdown_on_exit=False,
            span_limits=SpanLimits(max_span_attribute_length=_LONGEST_TEXT),
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter,
                max_queue_size=_QUEUE,
                schedule_delay_millis=_DELAY_MILLISECONDS,
            )
        )
        self._tracer = self._provider.get_tracer("midwatch", version("midwatch"))

    @contextlib.contextmanager
    def span(
        self, name: str, attributes: Attributes = {}, kind: SpanKind = "internal"
    ) -> Iterator[Span]:
        with self._tracer.start_as_current_span(
            name,
            kind=_KINDS[kind],
            record_exception=False,
            set_status_on_exception=False,
        ) as began:
            span = _Span(began, self._redactor)
            span.set(attributes)
            try:
                yield span
            except BaseException as error:
                # Without the traceback: its lines may have text from outside.
                span.fail(type(error).__name__, str(error))
                raise

    def begin(
        self,
        name: str,
        attributes: Attributes = {},
        *,
        parent: Span | None = None,
        at: datetime | None = None,
    ) -> Span:
        above = (
            trace.set_span_in_context(parent.inner)
            if isinstance(parent, _Span)
            else None
        )
        span = _Span(
            self._tracer.start_span(name, context=above, start_time=_nanoseconds(at)),
            self._redactor,
        )
        span.set(attributes)
        return span

    def trace_ids(self) -> dict[str, str]:
        context = trace.get_current_span().get_span_context()
        if not context.is_valid:
            return {}
        return {
            "trace_id": trace.format_trace_id(context.trace_id),
            "span_id": trace.format_span_id(context.span_id),
        }

    def report_to(self, log: Log) -> None:
        self._exporter.log = log

    async def close(self) -> None:
        """Send what is left. A collector that does not answer is left alone after a second."""
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()

        def close() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=close, name="close telemetry", daemon=True).start()
        try:
            await asyncio.wait_for(ended.wait(), _CLOSE_SECONDS)
        except TimeoutError:
            self._exporter.shutdown()  # ends the wait before another try


class _Span:
    def __init__(self, inner: trace.Span, redactor: Redactor) -> None:
        self.inner = inner
        self._redactor = redactor

    def set(self, attributes: Attributes) -> None:
        if not self.inner.is_recording():
            return
        for name, value in attributes.items():
            if value is not None:
                self.inner.set_attribute(name, self._clean(value))

    def fail(self, kind: str, message: str = "") -> None:
        text = one_line(self._redactor.text(clean(message)), _LONGEST_ERROR)
        self.inner.set_attribute("error.type", kind)
        self.inner.set_status(Status(StatusCode.ERROR, text or kind))

    def end(self, at: datetime | None = None) -> None:
        if self.inner.is_recording():
            self.inner.end(_nanoseconds(at))

    def _clean(self, value: Value) -> str | int | float | bool | Sequence[str | int]:
        if isinstance(value, str):
            return self._redactor.text(clean(value, longest=None))
        if isinstance(value, tuple):
            return [
                self._redactor.text(clean(one)) if isinstance(one, str) else one
                for one in value
            ]
        assert value is not None
        return value


def _nanoseconds(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp() * 1_000_000) * 1000


class _Exporter(SpanExporter):
    """Sends spans, and logs an outage once."""

    def __init__(self, settings: TelemetrySettings, log: Log) -> None:
        assert settings.endpoint is not None
        self.log = log
        self._endpoint = settings.endpoint
        self._failing = False
        self._inner = OTLPSpanExporter(
            endpoint=f"{settings.endpoint.rstrip('/')}/v1/traces",
            certificate_file=_existing(settings.certificate_file),
            headers=_headers(settings.headers_file),
            timeout=settings.timeout,
        )

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._inner.export(spans)
        failed = result is not SpanExportResult.SUCCESS
        if failed and not self._failing:
            self.log.warning("traces not sent", collector=self._endpoint)
        elif self._failing and not failed:
            self.log.info("traces are sent again", collector=self._endpoint)
        self._failing = failed
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()  # type: ignore[no-untyped-call]


def takes_spans(settings: TelemetrySettings) -> bool:
    """Return whether the collector takes spans, asked with none. Raises SettingsError as `OtlpTelemetry` does."""
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    exporter = _Exporter(settings, quiet_log())
    try:
        return exporter.export(()) is SpanExportResult.SUCCESS
    finally:
        exporter.shutdown()


def _existing(file: Path | None) -> str | None:
    if file is not None and not file.is_file():
        raise SettingsError(
            f"there is no file {file}", path="telemetry.certificate_file"
        )
    return None if file is None else str(file)


def _headers(file: Path | None) -> dict[str, str]:
    """Return the headers in a file. Raises SettingsError, which does not have their values."""
    if file is None:
        return {}
    path = "telemetry.headers_file"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read {file}: {error}", path=path) from error
    headers = {}
    for number, line in enumerate(lines, 1):
        name, colon, value = line.partition(":")
        if not line.strip():
            continue
        if not colon or not name.strip():
            raise SettingsError(
                f"line {number} of {file} is not a header",
                path=path,
                hint="Name: value",
            )
        headers[name.strip()] = value.strip()
    return headers
