"""The files of a server's log: where they are, and what is new in them since a position.

A file is read on this machine (`log_file`) or through the server. When the log was rotated since the last
position, the end of the file before is read too; where it cannot be found, the poll is unknown.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from midwatch.errors import ObservationFailed, Unsupported
from midwatch.model import Json
from midwatch.subjects.findings import NotObservable
from midwatch.subjects.log_position import (
    COMPRESSED,
    MARK,
    LogPosition,
    mark_of,
    rotated_name,
)
from midwatch.subjects.postgres import sql
from midwatch.subjects.postgres.connection import Connection, QueryFailed
from midwatch.subjects.postgres.log_lines import split_csv
from midwatch.subjects.postgres.settings import PostgresSettings
from midwatch.units import format_size

CHUNK = 1_000_000  # bytes of one read
MOST = 16_000_000  # bytes read in one observation; of more, the last ones
_LINE = re.compile(rb"\n")
_CSV_RECORD = re.compile(rb"\n(?=\d{4}-\d\d-\d\d [\d:.]+ [^,\n]{1,40},)")

GRANT = (
    "set log_file, or let the role read the log through the server: turn on logging_collector and "
    "GRANT EXECUTE ON FUNCTION pg_current_logfile(text), pg_ls_logdir(), "
    "pg_read_binary_file(text, bigint, bigint) TO the role"
)


@dataclass(frozen=True, slots=True)
class ServerLogSettings:
    """What the server says about its log. Without a connection, its last answer."""

    prefix: str | None = None
    destinations: tuple[str, ...] = ()
    collected: bool = False
    language: str = ""
    lowest: str = ""

    @classmethod
    def of(cls, raw: Any) -> ServerLogSettings:
        """Return the settings from stored state."""
        known = raw if isinstance(raw, dict) else {}
        prefix, destinations = known.get("prefix"), known.get("destinations")
        return cls(
            prefix if isinstance(prefix, str) else None,
            tuple(map(str, destinations)) if isinstance(destinations, list) else (),
            bool(known.get("collected")),
            str(known.get("language", "")),
            str(known.get("lowest", "")),
        )

    @property
    def state(self) -> Json:
        return {**asdict(self), "destinations": list(self.destinations)}


async def server_log_settings(connection: Connection) -> ServerLogSettings:
    """Ask the server how it writes its log. Raises QueryFailed."""
    rows = await connection.rows(sql.LOG_SETTINGS)
    found = {str(row["name"]): str(row["setting"]) for row in rows}
    destinations = found.get("log_destination", "").replace('"', "").lower()
    return ServerLogSettings(
        found.get("log_line_prefix"),
        tuple(one.strip() for one in destinations.split(",") if one.strip()),
        found.get("logging_collector") == "on",
        found.get("lc_messages", ""),
        found.get("log_min_messages", ""),
    )


@dataclass(frozen=True, slots=True)
class LogFile:
    """One file of the log at one moment."""

    path: str
    file: int
    size: int
    changed: float


@dataclass(frozen=True, slots=True)
class LogFiles:
    """The current file of the log, how it is read, and its neighbours."""

    current: LogFile
    format: str
    read: Callable[[str, int, int], Awaitable[bytes]]
    neighbours: Callable[[], Awaitable[Sequence[LogFile]]]

    async def tail(self, length: int) -> bytes:
        """Return the last complete lines of at most `length` bytes. Raises ObservationFailed."""
        return await self.lines(max(0, self.current.size - length), length)

    async def lines(self, start: int, length: int) -> bytes:
        """Return the complete lines of at most `length` bytes from a place on. Raises ObservationFailed."""
        length = min(length, self.current.size - start)
        part = await self.read(self.current.path, start, length)
        part = part[self._first(part) :] if start else part
        if start + length < self.current.size:
            part = part[: part.rfind(b"\n") + 1]
        return part

    async def end(self) -> LogPosition:
        """Return the position after the last complete line. Raises ObservationFailed."""
        size = self.current.size
        start = max(0, size - CHUNK)
        part = await self.read(self.current.path, start, size - start)
        return await self._position(
            self.current, start + (part.rfind(b"\n") + 1 or len(part))
        )

    async def since(self, last: LogPosition) -> NewLog:
        """Return what was written after `last`. Raises ObservationFailed."""
        parts, lost = await self._parts(last)
        skipped = sum(file.size - start for file, start in parts) - MOST
        texts, total, position = [], 0, last
        for file, start in parts:
            left_out = min(max(0, skipped), file.size - start)
            skipped -= left_out
            data = await self._read_all(file, start + left_out)
            used = len(data) if file is not parts[-1][0] else self._complete(data)
            position = await self._position(file, start + left_out + used)
            if left_out:
                total += left_out
                lost = f"{format_size(total)} of new log lines were too much to read"
                used, data = used - (cut := self._first(data)), data[cut:]
            texts.append(data[:used].decode("utf-8", "replace"))
        return NewLog(tuple(texts), position, lost)

    async def _parts(self, last: LogPosition) -> tuple[list[tuple[LogFile, int]], str]:
        """Return the files with new lines, each with where these start, and why some are lost."""
        if last.path == self.current.path and last.file == self.current.file:
            if await self._is_at(self.current, last):
                return [(self.current, last.offset)], ""
        others = sorted(
            (one for one in await self.neighbours() if one.path != self.current.path),
            key=lambda one: (
                one.file != last.file if last.file else one.path != last.path
            ),
        )
        for old in others:
            if not old.path.endswith(COMPRESSED) and await self._is_at(old, last):
                between = [
                    one
                    for one in others
                    if one is not old and old.changed < one.changed
                ]
                between.sort(key=lambda one: one.changed)
                packed = any(one.path.endswith(COMPRESSED) for one in between)
                between = [one for one in between if not one.path.endswith(COMPRESSED)]
                files = [(old, last.offset), *((one, 0) for one in between)]
                return [*files, (self.current, 0)], _LOST if packed else ""
        return [(self.current, 0)], _LOST

    async def _is_at(self, file: LogFile, last: LogPosition) -> bool:
        if file.size < last.offset:
            return False
        if not last.mark:  # of an earlier version
            return file.file == last.file
        return (await self._position(file, last.offset)).mark == last.mark

    async def _position(self, file: LogFile, offset: int) -> LogPosition:
        start = max(0, offset - MARK)
        before = await self.read(file.path, start, offset - start)
        return LogPosition(file.path, file.file, offset, mark_of(before))

    async def _read_all(self, file: LogFile, start: int) -> bytes:
        parts = []
        while start < file.size:
            part = await self.read(file.path, start, min(CHUNK, file.size - start))
            if not part:
                break
            parts.append(part)
            start += len(part)
        return b"".join(parts)

    def _first(self, data: bytes) -> int:
        """Return where the first record begins in a part that may begin within one."""
        begins = _CSV_RECORD if self.format == "csvlog" else _LINE
        found = begins.search(data)
        return found.end() if found else len(data)

    def _complete(self, data: bytes) -> int:
        """Return how many bytes are complete records; all, if one record alone is too large to read."""
        end = data.rfind(b"\n") + 1
        if self.format == "csvlog" and data.count(b'"', 0, end) % 2:
            last = split_csv(data[:end].decode("latin-1"))[-1]
            end -= len(last)
        return end or (len(data) if len(data) >= MOST else 0)


_LOST = "the log was rotated, and lines that were written before it cannot be found"


@dataclass(frozen=True, slots=True)
class NewLog:
    """The new texts of the log, oldest first, the position after them, and why lines are missing (or empty)."""

    texts: tuple[str, ...]
    position: LogPosition
    lost: str = ""


async def open_log(
    settings: PostgresSettings,
    connection: Connection | None,
    server: ServerLogSettings,
) -> LogFiles:
    """Return the log's files.

    Raises:
        Unsupported: A setting or a permission keeps the log from being read.
        ObservationFailed: It cannot be read now.
    """
    if settings.log_file is not None:
        return await asyncio.to_thread(_local, settings.log_file, server)
    if connection is None:
        raise NotObservable("without log_file the log is read through the server")
    return await _through_server(connection, server)


# ------------------------------------------------------------------ on this machine


def _local(path: Path, server: ServerLogSettings) -> LogFiles:
    structured = [
        path.with_suffix(suffix)
        for suffix, name in ((".json", "jsonlog"), (".csv", "csvlog"))
        if name in server.destinations and path.suffix == ".log"
    ]
    chosen = next((one for one in structured if os.access(one, os.R_OK)), path)
    name = {".json": "jsonlog", ".csv": "csvlog"}.get(chosen.suffix, "stderr")
    written = {"syslog", "eventlog", "stderr"} if name == "stderr" else {name}
    if server.destinations and not written & {*server.destinations}:
        raise Unsupported(
            f"the server writes its log to {', '.join(server.destinations)}, not to {path}",
            hint="let log_file name the file that log_destination writes",
        )
    try:
        found = chosen.stat()
        if not stat.S_ISREG(found.st_mode):
            raise Unsupported(
                f"log_file {path} is not a regular file",
                hint="let log_file name the server's current log",
            )
        with chosen.open("rb"):
            pass
    except OSError as error:
        raise _unreadable(chosen, error) from None

    async def read(name: str, start: int, length: int) -> bytes:
        return await asyncio.to_thread(_local_read, Path(name), start, length)

    async def neighbours() -> Sequence[LogFile]:
        return await asyncio.to_thread(_local_neighbours, chosen)

    return LogFiles(_local_file(chosen, found), name, read, neighbours)


def _local_file(path: Path, info: os.stat_result) -> LogFile:
    return LogFile(str(path), info.st_ino, info.st_size, info.st_mtime)


def _local_neighbours(path: Path) -> list[LogFile]:
    """Return the files that logrotate made of this one."""
    rotated = rotated_name(path)
    found = []
    try:
        with os.scandir(path.parent) as entries:
            for one in entries:
                if rotated.fullmatch(one.name) and one.is_file():
                    found.append(_local_file(Path(one.path), one.stat()))
    except OSError as error:
        raise QueryFailed(f"the folder of log_file {path}: {error.strerror}") from None
    return found


def _local_read(path: Path, start: int, length: int) -> bytes:
    try:
        with path.open("rb") as log:
            log.seek(start, os.SEEK_SET)
            return log.read(length)
    except OSError as error:
        raise QueryFailed(f"log_file {path}: {error.strerror}") from None


def _unreadable(path: Path, error: OSError) -> Unsupported:
    hints = {
        FileNotFoundError: "correct log_file, or wait until the server has written it",
        PermissionError: "give the user that runs midwatch permission to read it "
        "(on Debian: the group adm)",
    }
    return Unsupported(
        f"log_file {path}: {error.strerror}",
        hint=hints.get(type(error), "see why it cannot be read"),
    )


# ------------------------------------------------------------------ through the server


async def _through_server(
    connection: Connection, server: ServerLogSettings
) -> LogFiles:
    if server.prefix is not None and not server.collected:
        raise Unsupported(
            "the server does not collect its log in files that it could show "
            "(logging_collector is off)",
            hint=GRANT,
        )
    # In a statement of its own: a function that the role may not call fails the whole statement.
    may = (await connection.rows(sql.LOG_PRIVILEGES))[0]
    refused = [name for name, granted in may.items() if not granted]
    if refused:
        raise Unsupported(
            f"the role may not call {', '.join(refused)} to read the log", hint=GRANT
        )
    for name in ("jsonlog", "csvlog", "stderr"):
        if name in server.destinations:
            rows = await connection.rows(sql.LOG_PLACE, {"format": name})
            if rows[0]["path"]:
                return await _server_files(connection, str(rows[0]["path"]), name)
    raise Unsupported(
        f"the server writes its log to {', '.join(server.destinations)}, which it does not show",
        hint="add jsonlog to log_destination",
    )


async def _server_files(connection: Connection, path: str, name: str) -> LogFiles:
    folder = PurePosixPath(path).parent

    async def read(file: str, start: int, length: int) -> bytes:
        rows = await connection.rows(
            sql.LOG_PART, {"path": file, "start": start, "length": length}
        )
        return bytes(rows[0]["part"] or b"")

    async def neighbours() -> Sequence[LogFile]:
        rows = await connection.rows(
            sql.LOG_FILES, {"ending": PurePosixPath(path).suffix}
        )
        return [_server_file(folder, row) for row in rows]

    files = await connection.rows(sql.LOG_FILE, {"name": PurePosixPath(path).name})
    if not files:
        raise ObservationFailed(f"the log {path} is not among the files of the server")
    return LogFiles(_server_file(folder, files[0]), name, read, neighbours)


def _server_file(folder: PurePosixPath, row: Mapping[str, Any]) -> LogFile:
    return LogFile(
        str(folder / str(row["name"])), 0, int(row["size"]), float(row["changed"])
    )
