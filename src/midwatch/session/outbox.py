"""The outbox: an append-only file of events, one JSON object a line."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from midwatch.errors import MidwatchError
from midwatch.events import Event, from_json, parse_line, to_json
from midwatch.model import keepable
from midwatch.redaction import Redactor
from midwatch.session.errors import DiskFull, FolderUnusable

MAX_LINE = 1_000_000
"""Bytes of one line; a longer event has its longest texts cut."""
_CHUNK = 65536
_OURS = ("type", "seq", "at")  # nobody else's text is in them
_CAPS = (200_000, 20_000, 2_000, 200, 20)  # characters of one text, tried in turn


class EventLog:
    """The one writer of an outbox. Every append is one write, whatever the length of the file.

    `seq` goes on where the file ends. A last line torn by a crash is closed with a newline, and every
    reader skips it. Raises DiskFull and FolderUnusable.
    """

    def __init__(
        self,
        path: Path,
        redactor: Redactor | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.path = path
        self._redactor = redactor or Redactor()
        self._now = now
        try:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._file = os.open(path, flags, 0o600)
        except OSError as error:
            raise disk_error(error, path) from error
        self.last_seq, self._torn = _end_of(self._file)

    def append(self, event: Event) -> Event:
        """Log an event; returns it as it was logged, with its `seq` and time, redacted."""
        numbered = replace(event, seq=self.last_seq + 1, at=self._now())
        data = to_json(numbered)
        ours = {name: data.pop(name) for name in _OURS}
        data = {**ours, **self._redactor.value(data)}
        line = _line(data)
        self._write((b"\n" if self._torn else b"") + line)
        self.last_seq += 1
        return from_json(json.loads(line))

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, data: bytes) -> None:
        try:
            while data:
                written = os.write(self._file, data)
                data = data[written:]
                self._torn = bool(data)
        except OSError as error:
            raise disk_error(error, self.path) from error


def _line(data: Any) -> bytes:
    """One line of at most MAX_LINE bytes."""
    line = _encoded(data)
    for cap in _CAPS:
        if len(line) <= MAX_LINE:
            break
        line = _encoded(_shortened(data, cap))
    return line


def _encoded(data: Any) -> bytes:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return keepable(text).encode() + b"\n"


def _shortened(value: Any, cap: int) -> Any:
    if isinstance(value, str) and len(value) > cap:
        return f"{value[:cap]}… [{len(value) - cap} characters cut]"
    if isinstance(value, list):
        return [_shortened(item, cap) for item in value[: max(cap, 20)]]
    if isinstance(value, dict):
        kept = list(value.items())[: max(cap, 20)]
        return {key[: max(cap, 40)]: _shortened(item, cap) for key, item in kept}
    return value


def _end_of(file: int) -> tuple[int, bool]:
    """The last sequence number in the file, and whether its last line lacks its newline."""
    end = os.fstat(file).st_size
    if end == 0:
        return 0, False
    torn = os.pread(file, 1, end - 1) != b"\n"
    tail = b""
    while end > 0:
        start = max(0, end - _CHUNK)
        tail = os.pread(file, end - start, start) + tail
        end = start
        lines = tail.split(b"\n")
        for line in reversed(lines if start == 0 else lines[1:]):
            event = parse_line(line)
            if event is not None:
                return event.seq, torn
        tail = lines[0]
    return 0, torn


def disk_error(error: OSError, path: Path) -> MidwatchError:
    """What the operating system says of a file of a session, as an error of ours."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskFull(f"{path}: {error.strerror}")
    return FolderUnusable(f"{path}: {error.strerror}")


class EventReader:
    """Follows an outbox from the first event after `after`; `poll` gives what is new."""

    def __init__(self, path: Path, after: int = 0) -> None:
        self.path = path
        self.last_seq = after
        self._offset = _offset_after(path, after)

    def poll(self, limit: int = 10_000) -> list[Event]:
        """The next events, at most so many; none while there is nothing new or no file."""
        events: list[Event] = []
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                while len(events) < limit:
                    line = file.readline()
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    event = parse_line(line)
                    if event is not None and event.seq > self.last_seq:
                        self.last_seq = event.seq
                        events.append(event)
        except FileNotFoundError:
            return []
        return events


def read_events(path: Path, after: int = 0) -> Iterator[Event]:
    """The events of an outbox that come after sequence number `after`."""
    reader = EventReader(path, after)
    while events := reader.poll():
        yield from events


def _offset_after(path: Path, after: int) -> int:
    """A byte offset at the beginning of a line, at or before the first event after `after`.

    Sequence numbers only grow, so the file is searched by halves.
    """
    if after <= 0:
        return 0
    try:
        with path.open("rb") as file:
            low, high = 0, file.seek(0, os.SEEK_END)
            while high - low > _CHUNK:
                middle = (low + high) // 2
                file.seek(middle)
                file.readline()
                line_start, event = file.tell(), parse_line(file.readline())
                if event is None or event.seq > after or line_start >= high:
                    high = middle
                else:
                    low = line_start
            return low
    except FileNotFoundError:
        return 0
