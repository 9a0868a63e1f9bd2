"""Structured logs: readable on a terminal, JSON elsewhere; redacted in both."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, TextIO

from midwatch.redaction import Redactor, redacting
from midwatch.settings import LogSettings
from midwatch.text import one_line

Line = MutableMapping[str, Any]
_COLOURS = {"warning": "33", "error": "31", "critical": "31", "info": "32"}
_EVENT_WIDTH = 30  # columns


class Log:
    """Writes events with their fields, from a level on.

    Args:
        write: Gets the fields of an event, among them `event` and `level`.
        level: A level of `logging`.
    """

    def __init__(self, write: Callable[[Line], object], level: int) -> None:
        self._write = write
        self._level = level

    def debug(self, event: str, **fields: Any) -> None:
        self.log(logging.DEBUG, event, **fields)

    def info(self, event: str, **fields: Any) -> None:
        self.log(logging.INFO, event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        self.log(logging.WARNING, event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        """`exc_info` is an exception, or true for the one that is being handled."""
        self.log(logging.ERROR, event, **fields)

    def exception(self, event: str, **fields: Any) -> None:
        """Log the exception that is being handled as an error."""
        self.log(logging.ERROR, event, **{"exc_info": True, **fields})

    def log(self, level: int, event: str, **fields: Any) -> None:
        if level >= self._level:
            name = logging.getLevelName(level).lower()
            self._write({**fields, "event": event, "level": name})


def open_log(
    settings: LogSettings,
    stream: TextIO,
    redactor: Redactor,
    trace_ids: Callable[[], Mapping[str, str]] = dict,
) -> Log:
    """Return a log that writes to `stream` in the format and at the level of the settings.

    `trace_ids` returns the ids of the current trace, which each line gets.
    """
    pretty = settings.format == "console" or (
        settings.format == "auto" and stream.isatty()
    )
    colours = stream.isatty()
    redact = redacting(redactor)
    writing = threading.Lock()

    def write(line: Line) -> None:
        now = datetime.now(UTC)
        if pretty:
            line["timestamp"] = now.astimezone().strftime("%H:%M:%S")
        else:
            line["timestamp"] = f"{now:%Y-%m-%dT%H:%M:%S.%f}Z"
        line = redact(None, "", line)
        line.update(trace_ids())  # they are random, as keys are
        text = _for_people(line, colours) if pretty else _as_json(line)
        with writing:
            stream.write(f"{text}\n")
            stream.flush()

    return Log(write, logging.getLevelNamesMapping()[settings.level.upper()])


def _as_json(line: Line) -> str:
    return json.dumps(line, ensure_ascii=False, default=repr)


def _for_people(line: Line, colours: bool) -> str:
    """Return time, level and event in columns, then the fields by name; a traceback follows below."""

    def styled(text: str, style: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if colours else text

    time, level, event = line.pop("timestamp"), line.pop("level"), line.pop("event")
    event, trace = one_line(str(event)), line.pop("exception", "")
    columns = [
        styled(time, "2"),
        styled(f"{level:<8}", _COLOURS.get(level, "2")),
        styled(f"{event:<{_EVENT_WIDTH}}", "1") if line else styled(event, "1"),
        *(f"{styled(name, '36')}={_field(line[name])}" for name in sorted(line)),
    ]
    return " ".join(columns) + (f"\n{trace}" if trace else "")


def _field(value: Any) -> str:
    """Return a value as it stands in a line: a text of one word bare, all else as Python writes it."""
    plain = isinstance(value, str) and value.isprintable() and " " not in value
    return value if plain and value else repr(value)


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
    return Log(lambda line: None, logging.CRITICAL + 1)
