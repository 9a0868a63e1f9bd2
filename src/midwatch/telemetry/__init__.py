"""Spans of what this process does. Without a collector in the settings nothing is recorded, and nothing is imported."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Literal, Protocol

from midwatch.errors import SettingsError
from midwatch.logs import Log, quiet_log
from midwatch.redaction import Redactor
from midwatch.telemetry_settings import TelemetrySettings

Value = str | int | float | bool | tuple[str, ...] | tuple[int, ...] | None
Attributes = Mapping[str, Value]
"""Attributes by name; those that are None are left out."""
SpanKind = Literal["internal", "client"]


class Span(Protocol):
    """An operation that is being recorded."""

    def set(self, attributes: Attributes) -> None:
        """Add attributes, or replace them. Secrets are removed from their text."""
        ...

    def fail(self, kind: str, message: str = "") -> None:
        """Record that the operation failed: `kind` is its `error.type`, of a bounded set."""
        ...

    def end(self, at: datetime | None = None) -> None:
        """End a span that `Telemetry.begin` began, at a time or now. A second call does nothing."""
        ...


class Telemetry(Protocol):
    """Records spans. `content` is whether they may have the text of prompts, answers and tools."""

    content: bool

    def span(
        self, name: str, attributes: Attributes = {}, kind: SpanKind = "internal"
    ) -> AbstractContextManager[Span]:
        """Record the block as a span, below the one that is current; it is current within the block.

        An exception that leaves the block is recorded, and passes on.
        """
        ...

    def begin(
        self,
        name: str,
        attributes: Attributes = {},
        *,
        parent: Span | None = None,
        at: datetime | None = None,
    ) -> Span:
        """Begin a span that does not become current, at a time or now; `Span.end` ends it."""
        ...

    def trace_ids(self) -> dict[str, str]:
        """Return `trace_id` and `span_id` of the current span in hexadecimal; nothing without one."""
        ...

    def report_to(self, log: Log) -> None:
        """Log there when the collector cannot be reached, and when it can again."""
        ...

    async def close(self) -> None:
        """Send what is left, within a second."""
        ...


class _NoSpan:
    def set(self, attributes: Attributes) -> None: ...

    def fail(self, kind: str, message: str = "") -> None: ...

    def end(self, at: datetime | None = None) -> None: ...


class NoTelemetry:
    """Records nothing."""

    content = False
    _span = _NoSpan()

    def span(
        self, name: str, attributes: Attributes = {}, kind: SpanKind = "internal"
    ) -> AbstractContextManager[Span]:
        return contextlib.nullcontext(self._span)

    def begin(
        self,
        name: str,
        attributes: Attributes = {},
        *,
        parent: Span | None = None,
        at: datetime | None = None,
    ) -> Span:
        return self._span

    def trace_ids(self) -> dict[str, str]:
        return {}

    def report_to(self, log: Log) -> None: ...

    async def close(self) -> None: ...


def open_telemetry(
    settings: TelemetrySettings, redactor: Redactor, log: Log | None = None
) -> Telemetry:
    """Return what records the spans of this process.

    Args:
        settings: Where they are sent, and how many of them.
        redactor: Removes secrets from the text of spans.
        log: As for `Telemetry.report_to`.

    Raises:
        SettingsError: The extra `otel` is not installed, or a file cannot be read.
    """
    if settings.endpoint is None:
        return NoTelemetry()
    try:
        from midwatch.telemetry.otlp import OtlpTelemetry
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
        raise SettingsError(
            "traces need OpenTelemetry",
            path="telemetry.endpoint",
            hint="install midwatch[otel]",
        ) from None
    return OtlpTelemetry(settings, redactor, log or quiet_log())
