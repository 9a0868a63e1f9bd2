"""Structured logs: readable on a terminal, JSON elsewhere; redacted in both."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, TextIO

import structlog
from structlog.typing import FilteringBoundLogger, Processor

from midwatch.redaction import Redactor, redacting
from midwatch.settings import LogSettings

Log = FilteringBoundLogger


def open_log(
    settings: LogSettings,
    stream: TextIO,
    redactor: Redactor,
    trace_ids: Callable[[], Mapping[str, str]] = dict,
) -> Log:
    """Return a log that writes to `stream` in the format and at the level of the settings.

    `trace_ids` returns the ids of the current trace, which each line gets.
    """

    def with_trace(
        logger: Any, name: str, line: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        line.update(trace_ids())
        return line

    pretty = settings.format == "console" or (
        settings.format == "auto" and stream.isatty()
    )
    processors: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(
            fmt="%H:%M:%S" if pretty else "iso", utc=not pretty
        ),
        structlog.processors.format_exc_info,
        redacting(redactor),
        with_trace,  # ids are random, as keys are
    ]
    if pretty:
        processors.append(structlog.dev.ConsoleRenderer(colors=stream.isatty()))
    else:
        processors.append(structlog.processors.JSONRenderer(ensure_ascii=False))
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    return _wrap(structlog.PrintLogger(stream), processors, level)


class _Forwarder(logging.Handler):
    """Writes what libraries log to the log of Midwatch, redacted and in its format."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self.set_name("midwatch")
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.log(record.levelno, record.getMessage(), logger=record.name)


def forward_library_logs(log: Log) -> None:
    """Write the warnings and errors that libraries log to `log`, for the whole process.

    Without a handler Python prints them to stderr as plain text, unredacted, among lines of JSON.
    """
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, _Forwarder)]:
        root.removeHandler(handler)
    root.addHandler(_Forwarder(log))


def quiet_log() -> Log:
    """Return a log that drops every event: the default for users of the library."""
    return _wrap(structlog.ReturnLogger(), [_drop], logging.CRITICAL)


def _drop(logger: Any, name: str, event: MutableMapping[str, Any]) -> Any:
    raise structlog.DropEvent


def _wrap(logger: Any, processors: list[Processor], level: int) -> Log:
    bound: Log = structlog.wrap_logger(
        logger,
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return bound
