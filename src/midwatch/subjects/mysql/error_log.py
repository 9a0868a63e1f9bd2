"""The server's error log where this machine can read it: lines about crashes and damage, and its end as evidence.

Formats: MariaDB's `2026-11-30  4:28:19 0 [ERROR] …` in local time, MySQL's `2026-11-30T04:28:19.123456Z 0 [ERROR] [MY-…] […] …`,
and the `261130  4:28:19 [ERROR] mysqld got signal 11 ;` of a crash in both.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from midwatch.errors import ObservationFailed, Unsupported
from midwatch.model import Invariant, Signal
from midwatch.subjects.findings import Findings
from midwatch.subjects.mysql.address import address_of
from midwatch.subjects.mysql.settings import MysqlSettings
from midwatch.subjects.rows import text
from midwatch.units import format_count, format_duration

_END = 1_000_000  # bytes of the log's end that are read
_RECENT = 16_000  # bytes of it that are read first for lines of late
_SHOWN = 60_000  # bytes of it that are evidence
_HEAD = re.compile(
    r"(?:(?P<mysql>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?)(?P<zone>Z|[+-]\d\d:\d\d)"
    r"|(?P<maria>\d{4}-\d\d-\d\d {1,2}\d{1,2}:\d\d:\d\d)|(?P<short>\d{6} {1,2}\d{1,2}:\d\d:\d\d))"
    r"(?: \d+)? \[(?P<level>\w+)\] (?:\[MY-\d+\] \[\w+\] )?(?P<message>.*)"
)
# What clients can write into: the texts of errors in events and in replicated statements.
_OF_CLIENTS = re.compile(
    r"Event Scheduler:|(?:Slave|Replica) (?:SQL|applier|worker)|Access denied|Got error .* when .*statement|Statement"
)
KINDS: dict[str, re.Pattern[str]] = {
    "crash": re.compile(
        r"(?:mysqld|mariadbd) got (?:signal|exception)|InnoDB: Assertion failure"
        r"|InnoDB: (?:Starting crash recovery|Database was not shutdown normally)"
    ),
    "memory": re.compile(
        r".*(?:Out of memory|[Cc]annot allocate memory|errno: 12\b|OS error: 12\b)"
    ),
    "disk full": re.compile(
        r".*(?:No space left on device|[Dd]isk (?:is )?full|[Ee]rrcode: 28\b|errno: 28\b|OS error: 28\b|Error (?:number )?28\b)"
    ),
    "damage": re.compile(
        r"InnoDB: .*(?:corrupt|[Cc]hecksum mismatch)|.*\bis marked as crashed\b|.*Incorrect (?:key file|information in file)"
    ),
}
"""What each kind of line says after its level, of lines that clients cannot write."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line with its time in epoch seconds."""

    at: float
    level: str
    message: str
    line: str

    @property
    def kind(self) -> str | None:
        if _OF_CLIENTS.match(self.message):
            return None
        return next(
            (kind for kind, wanted in KINDS.items() if wanted.match(self.message)), None
        )


def read_lines(data: str) -> Iterator[LogLine]:
    """Yield the lines that begin with a time; a time without a zone is that of this machine."""
    for line in data.splitlines():
        head = _HEAD.match(line[:4000])
        at = head and _time(head)
        if head and at is not None:
            yield LogLine(at, head["level"].upper(), head["message"], line)


def _time(head: re.Match[str]) -> float | None:
    try:
        if head["mysql"]:
            zone = head["zone"].replace("Z", "+00:00")
            return datetime.fromisoformat(head["mysql"] + zone).timestamp()
        written = " ".join((head["maria"] or head["short"]).split())
        return _local_time(
            written, "%Y-%m-%d %H:%M:%S" if head["maria"] else "%y%m%d %H:%M:%S"
        )
    except (ValueError, OverflowError):
        return None


@lru_cache(maxsize=64)  # many lines have the same second
def _local_time(written: str, form: str) -> float:
    return datetime.strptime(written, form).timestamp()


def recent_lines(path: Path, since: float) -> list[LogLine]:
    """Return the lines that were written later than `since` (epoch seconds). Raises Unsupported as `log_end`.

    The log is read from its end on, no further than that: it may be large, and most of it is old.
    """
    found: list[LogLine] = []
    for most in (_RECENT, _END):
        data, found = _read(path, most), []
        for line in reversed(data.splitlines()):
            for one in read_lines(line):
                if one.at <= since:
                    return found[::-1]
                found.append(one)
    return found[::-1]


def log_place(settings: MysqlSettings, log_error: str, datadir: str) -> str:
    """Return where the log is: `log_file`, else @@log_error of a server on this machine; empty without one."""
    if settings.log_file is not None:
        return str(settings.log_file)
    if not log_error or log_error == "stderr" or not address_of(settings).local:
        return ""
    return os.path.join(datadir or "/", log_error)


async def log_end(place: str) -> str:
    """Return the end of the log. Raises Unsupported with the remedy where it cannot be read."""
    return await asyncio.to_thread(_read, _path(place), _END)


def _path(place: str) -> Path:
    if not place:
        raise Unsupported(
            "the error log is not visible: it goes to the journal, or the server is on another machine",
            hint="set log_file where this machine can read it",
        )
    return Path(place)


def _read(path: Path, most: int) -> str:
    try:
        with open(path, "rb", buffering=0, opener=_without_waiting) as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise Unsupported(
                    f"{path} is not a file", hint="set log_file to the error log"
                )
            start = max(0, info.st_size - most)
            file.seek(start)
            data = file.read(most) or b""
    except OSError as error:
        raise Unsupported(
            f"the error log {path} cannot be read: {error.strerror}",
            hint="let Midwatch's system user read it, or set log_file",
        ) from None
    lines = data.decode(errors="replace")
    return lines.partition("\n")[2] if start else lines


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


async def check_log(
    settings: MysqlSettings,
    place: str,
    findings: Findings,
    at: float,
    invariant: Invariant,
) -> Sequence[Signal]:
    """Return a signal for each kind of line within event_window. Raises Unsupported where the log is not readable."""
    last = findings.state.get("log_at")
    window = settings.event_window
    since = at - window
    if not window and isinstance(last, (int, float)):
        since = float(last)
    findings.state["log_at"] = at
    recent = await asyncio.to_thread(recent_lines, _path(place), since)
    found: dict[str, list[LogLine]] = {
        kind: [] for kind in KINDS if not invariant.ignores({"kind": kind})
    }
    for one in recent:
        if one.at <= at + 60 and one.kind in found:
            found[one.kind].append(one)
    return [_signal(kind, lines, at - since) for kind, lines in found.items()]


def _signal(kind: str, found: Sequence[LogLine], seconds: float) -> Signal:
    message = f"{format_count(len(found), 'line')} about {kind} within {format_duration(seconds)}"
    if found:
        message += f", the last: {text(found[-1].message, 300)}"
    return Signal(
        "log_errors",
        kind,
        message,
        float(len(found)),
        facts={
            "kind": kind,
            "count": len(found),
            "line": text(found[-1].line, 500) if found else "",
        },
    )


async def log_around(place: str, onset: datetime | None) -> str:
    """Return the lines around the onset and the end of the log. Raises Unsupported or ObservationFailed."""
    data = await log_end(place)
    if not data.strip():
        raise ObservationFailed("the error log is empty")
    return await asyncio.to_thread(_around, data, onset)


def _around(data: str, onset: datetime | None) -> str:
    end = data[-_SHOWN:]
    if onset is None:
        return end
    start = onset.astimezone(UTC).timestamp() - 600
    first = next((one.line for one in read_lines(data) if one.at >= start), None)
    around = data[data.index(first) :][:_SHOWN] if first else ""
    return end if not around or around in end else f"{around}\n{end}"
