"""The server's log: its new lines, and those that report a crash or damage.

Everything in it may have been written by a client. Lines are classified by the severity that
the server put in front; nothing else of them is interpreted.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from midwatch.model import Json, Signal
from midwatch.subjects.postgres import sql
from midwatch.subjects.postgres.connection import Connection, QueryFailed, text
from midwatch.subjects.postgres.observation import (
    NotObservable,
    Series,
    add_step,
    read_series,
)
from midwatch.subjects.postgres.settings import PostgresSettings
from midwatch.units import format_count, format_duration

PART = 1_000_000  # bytes read at a time; of more, the last ones
TAIL = 64_000

_SEVERITY = re.compile(
    r"\b(DEBUG\d?|LOG|INFO|NOTICE|WARNING|ERROR|FATAL|PANIC"
    r"|STATEMENT|DETAIL|HINT|CONTEXT|QUERY|LOCATION|BACKTRACE):  ?"
)
# "client backend (PID 7)", "background worker "x" (PID 7)": no colon, so no logged statement.
_ENDED = r'[a-z][a-z ]{0,40}(?:"[^"]{0,80}" )?\(PID \d+\) was terminated by '
_KINDS: tuple[tuple[str, str, re.Pattern[str]], ...] = (
    ("panic", "PANIC", re.compile("")),
    ("crash", "LOG", re.compile(_ENDED)),
    ("crash", "LOG", re.compile(r"database system was not properly shut down")),
    ("disk full", "ERROR FATAL LOG", re.compile("could not .*No space left on device")),
    ("out of memory", "ERROR FATAL", re.compile("out of memory")),
    (
        "damaged data",
        "ERROR FATAL WARNING",
        re.compile(
            r"invalid page in block|could not read block|page verification failed"
            r"|unexpected data beyond EOF|missing chunk number|found xmin \d+ from before"
        ),
    ),
)


def kind_of(line: str) -> str | None:
    """Return the kind of crash or damage that a line of the log reports, or None."""
    if line[:1].isspace():  # a continuation line, which a client may have written
        return None
    found = _SEVERITY.search(line[:2000])
    if not found:
        return None
    message = line[found.end() : 4000]
    for kind, severities, pattern in _KINDS:
        if found[1] in severities.split() and pattern.match(message):
            return kind
    return None


@dataclass(frozen=True, slots=True)
class LogPosition:
    """Where reading of the log ended. `file` is its inode number; 0 when read through the server."""

    path: str
    file: int
    offset: int

    @classmethod
    def of(cls, raw: Any) -> LogPosition | None:
        try:
            return cls(str(raw["path"]), int(raw["file"]), int(raw["offset"]))
        except (KeyError, TypeError, ValueError):
            return None

    def follows(self, previous: LogPosition | None) -> bool:
        """Return whether `previous` is an earlier position in the same file."""
        return previous is not None and (
            (self.path, self.file) == (previous.path, previous.file)
            and self.offset >= previous.offset
        )


async def part_since(
    settings: PostgresSettings,
    connection: Connection | None,
    previous: LogPosition | None,
) -> tuple[bytes, LogPosition]:
    """Return the complete lines after `previous`, and the position after them.

    At first there are none; of another file (rotated), all lines are new. Raises QueryFailed.
    """
    end = await _end(settings, connection)
    if previous is None:
        return b"", end
    start = previous.offset if end.follows(previous) else 0
    start = max(start, end.offset - PART)
    part = await _read(settings, connection, end.path, start, end.offset - start)
    whole = part[: part.rfind(b"\n") + 1]
    return whole, LogPosition(end.path, end.file, start + len(whole))


async def tail(settings: PostgresSettings, connection: Connection | None) -> str:
    """Return the last 200 lines. Raises QueryFailed."""
    end = await _end(settings, connection)
    start = max(0, end.offset - TAIL)
    part = await _read(settings, connection, end.path, start, end.offset - start)
    lines = part.decode("utf-8", "replace").splitlines()
    return "\n".join((lines[1:] if start else lines)[-200:])


async def _end(
    settings: PostgresSettings, connection: Connection | None
) -> LogPosition:
    if settings.log_file is not None:
        return await asyncio.to_thread(_local_end, settings.log_file)
    if connection is None:
        raise NotObservable("without log_file the log is read through the server")
    found = (await connection.rows(sql.LOG_PLACE))[0]
    if not found["path"] or not found["may_read"]:
        raise NotObservable(
            "the log cannot be read through the server",
            hint="set log_file, or turn on logging_collector and grant "
            "pg_read_server_files and EXECUTE on pg_read_binary_file to the role",
        )
    path = str(found["path"])
    sizes = await connection.rows(sql.LOG_SIZE, {"name": PurePosixPath(path).name})
    return LogPosition(path, 0, int(sizes[0]["size"]) if sizes else 0)


async def _read(
    settings: PostgresSettings,
    connection: Connection | None,
    path: str,
    start: int,
    length: int,
) -> bytes:
    if settings.log_file is not None:
        return await asyncio.to_thread(_local_read, settings.log_file, start, length)
    if connection is None:
        raise QueryFailed("without log_file the log is read through the server")
    rows = await connection.rows(
        sql.LOG_PART, {"path": path, "start": start, "length": length}
    )
    return bytes(rows[0]["part"] or b"")


def _local_end(path: Path) -> LogPosition:
    try:
        info = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    if not stat.S_ISREG(info.st_mode):
        raise QueryFailed(f"log_file {path} is not a regular file")
    return LogPosition(str(path), info.st_ino, info.st_size)


def _local_read(path: Path, start: int, length: int) -> bytes:
    try:
        with path.open("rb") as log:
            log.seek(start, os.SEEK_SET)
            return log.read(length)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> QueryFailed:
    return QueryFailed(
        f"log_file {path}: {error.strerror}",
        hint="give the user that runs midwatch permission to read it",
    )


async def check_log(
    settings: PostgresSettings,
    connection: Connection | None,
    previous: Json,
    state: Json,
    at: float,
) -> list[Signal]:
    """Return one signal for each kind of crash or damage within the window. Raises QueryFailed."""
    before = previous.get("log")
    known = before if isinstance(before, dict) else {}
    last = LogPosition.of(known.get("place"))
    part, position = await part_since(settings, connection, last)
    news = _news(part.decode("utf-8", "replace"))
    counts = known.get("counts")
    counted = counts if isinstance(counts, dict) else {}
    lines = known.get("lines")
    latest = {**(lines if isinstance(lines, dict) else {})}
    kept: dict[str, Series] = {}
    for kind in dict.fromkeys(name for name, _, _ in _KINDS):
        old = read_series(counted.get(kind)) or [[at, 0.0]]
        found = news.get(kind, [])
        kept[kind] = add_step(old, at, old[-1][1] + len(found), settings.event_window)
        if found:
            latest[kind] = text(found[-1], 300)
    state["log"] = {"place": asdict(position), "counts": kept, "lines": latest}
    if last is None:
        raise NotObservable("the first observation: the log is read from here on")
    return [
        _signal(kind, points, latest.get(kind, ""), settings.event_window)
        for kind, points in kept.items()
        if points[-1][1] > points[0][1]
    ]


def _news(new: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in new.split("\n"):
        kind = kind_of(line)
        if kind is not None:
            found.setdefault(kind, []).append(line)
    return found


def _signal(kind: str, points: Series, line: object, window: float) -> Signal:
    count = points[-1][1] - points[0][1]
    within = (
        f"within {format_duration(window)}" if window else "since the last observation"
    )
    return Signal(
        "log_errors",
        kind,
        f"the log reports: {kind}, {format_count(int(count), 'line')} {within}; last: {text(line, 200)}",
        count,
        facts={"kind": kind, "count": int(count), "line": text(line, 300)},
    )
