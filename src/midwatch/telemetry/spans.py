"""What records spans, and the one that records none."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Literal, Protocol

from midwatch.logs import Log

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
