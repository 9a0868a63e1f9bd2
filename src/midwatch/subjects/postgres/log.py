"""The check of the server's log, and its end as evidence."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from midwatch.errors import ObservationFailed, Unsupported
from midwatch.log_shapes import thin, time_of
from midwatch.model import Fact, Invariant, Json, Signal
from midwatch.subjects.findings import NotObservable
from midwatch.subjects.log_position import LogPosition
from midwatch.subjects.postgres.connection import Connection, QueryFailed, role_of
from midwatch.subjects.postgres.log_files import (
    LogFiles,
    NewLog,
    ServerLogSettings,
    open_log,
    server_log_settings,
)
from midwatch.subjects.postgres.log_lines import (
    KINDS,
    LinePrefix,
    Record,
    TextLog,
    kind_of,
    structured_records,
)
from midwatch.subjects.postgres.log_storms import SEVERITIES, learned, storms
from midwatch.subjects.postgres.settings import PostgresSettings
from midwatch.subjects.rows import text
from midwatch.subjects.series import Series, add_step, read_series
from midwatch.units import format_count, format_duration

__all__ = ["LogPosition", "LogReport", "check_log", "kind_of", "tail"]

TAIL = 1_000_000  # bytes of the log's end that are evidence
AROUND = 1_000_000  # bytes around the onset, where the end does not reach back to it
LEARNED = 1_000_000  # bytes of the log from which usual errors are learned
PROBE = 8_000  # bytes that are read to find a time in the log
LOG_BEFORE = timedelta(minutes=2)
_ENGLISH = re.compile(r"(?:|C|POSIX|en|English)(?:[._@ -].*|_.*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LogReport:
    """What the log says: `problem` tells why lines may be missing, and `ignored` what was left out.

    `storms` and `storms_ignored` are those of errors, `signals` and `ignored` those of crashes and damage.
    """

    signals: tuple[Signal, ...]
    ignored: tuple[str, ...] = ()
    storms: tuple[Signal, ...] = ()
    storms_ignored: tuple[str, ...] = ()
    problem: ObservationFailed | None = None


async def check_log(
    settings: PostgresSettings,
    connection: Connection | None,
    previous: Json,
    state: Json,
    at: float,
    invariant: Invariant,
    storm: Invariant | None = None,
) -> LogReport:
    """Return one signal for each kind of crash or damage within the window, and for each unusual shape of errors.

    Args:
        connection: None when the server cannot be reached; then only `log_file` can be read.
        previous: The state of the last observation.
        state: The state to leave for the next one; `log` in it is replaced.
        at: The time, in epoch seconds.
        invariant: What it says to leave out is not counted.
        storm: The invariant of storms of errors; None leaves them out.

    Raises:
        ObservationFailed: The log cannot be read.
    """
    before = previous.get("log")
    known = before if isinstance(before, dict) else {}
    server = ServerLogSettings.of(known.get("server"))
    old_prefix = server.prefix
    if connection is not None:
        server = await server_log_settings(connection)
    files = await open_log(settings, connection, server)
    last = LogPosition.of(known.get("place"))
    if last is None:
        end = await files.end()
        state["log"] = {"place": asdict(end), "server": server.state}
        state["log"]["errors"] = await _first_errors(files, end, server, storm, at)
        raise NotObservable("the first observation: the log is read from here on")
    new = await files.since(last)
    prefixes = _prefixes(server, old_prefix)
    until = time.monotonic() + settings.timeout / 4
    records, unread = await asyncio.to_thread(_records, files, new, prefixes, until)
    counted, ignored = _sorted_out([one for one in records if one.kind], invariant)
    counts, latest = _counts(known, counted, at, settings.event_window)
    state["log"] = {
        "place": asdict(new.position),
        "server": server.state,
        "counts": counts,
        "lines": latest,
    }
    before = known.get("errors")
    if not isinstance(before, dict):  # of an earlier version
        before = await _first_errors(files, last, server, storm, at)
    errors = _of_others(records, settings)
    state["log"]["errors"], found, storms_ignored = _storms(
        before, errors, at, settings.event_window, storm
    )
    signals = tuple(
        _signal(kind, points, latest.get(kind), settings.event_window)
        for kind, points in counts.items()
        if points[-1][1] > points[0][1]
    )
    return LogReport(signals, ignored, found, storms_ignored, unread or _hidden(server))


def _storms(
    before: Json,
    errors: Sequence[Record],
    at: float,
    window: float,
    storm: Invariant | None,
) -> tuple[Json, tuple[Signal, ...], tuple[str, ...]]:
    """Return the state of errors for the next observation, the storms, and what was left out."""
    if storm is None:
        return before, (), ()
    errors, ignored = _sorted_out(errors, storm)
    elapsed = at - float(before.get("at", at))
    limit = math.inf if storm.limit is None else storm.limit
    shapes, found = storms(before.get("shapes", {}), errors, at, elapsed, window, limit)
    return {"at": at, "shapes": shapes}, found, ignored


def _is_error(record: Record) -> bool:
    return record.severity in SEVERITIES and not record.kind


def _of_others(records: Iterable[Record], settings: PostgresSettings) -> list[Record]:
    """Return the errors without those of Midwatch's own sessions, known by name and role together."""
    own = ("midwatch", role_of(settings))
    return [
        one for one in records if _is_error(one) and (one.application, one.role) != own
    ]


async def _first_errors(
    files: LogFiles,
    end: LogPosition,
    server: ServerLogSettings,
    storm: Invariant | None,
    at: float,
) -> Json:
    """Return how frequent errors were in the log so far. Raises ObservationFailed."""
    if storm is None:
        return {"at": at, "shapes": {}}
    start = max(0, end.offset - LEARNED)
    data = await files.lines(start, end.offset - start)
    part = data.decode("utf-8", "replace")
    until = time.monotonic() + 1.0
    records, _ = await asyncio.to_thread(
        _records, files, NewLog((part,), end), _prefixes(server, None), until
    )
    errors = [one for one in records if _is_error(one)]
    times = [time_of(one.line[:200], None)[0] for one in errors]
    known = [one.timestamp() for one in times if one is not None]
    seconds = at - min(known) if known else 3600.0
    return {"at": at, "shapes": learned(errors, seconds)}


def _prefixes(server: ServerLogSettings, old: str | None) -> list[LinePrefix]:
    syslog = "syslog" in server.destinations
    known = [one for one in (server.prefix, old) if one is not None]
    return [LinePrefix(one, syslog=syslog) for one in dict.fromkeys(known)]


def _records(
    files: LogFiles, new: NewLog, prefixes: Sequence[LinePrefix], until: float
) -> tuple[list[Record], ObservationFailed | None]:
    """Return the records of crashes, damage and errors, and why there may be more."""
    found: list[Record] = []
    unread = QueryFailed(new.lost) if new.lost else None
    for part in new.texts:
        if files.format != "stderr":
            records = structured_records(part, files.format)
            found += [one for one in records if one.kind or _is_error(one)]
            continue
        log = TextLog(part, prefixes)
        try:
            found += [one for one in log.records(until) if one.kind]
            found += [one for one in log.errors(until) if _is_error(one)]
        except TimeoutError:
            unread = QueryFailed("the new log lines could not be read in time")
        if log.foreign:
            unread = QueryFailed(
                f"no line of {files.current.path} begins as log_line_prefix says",
                hint="let log_file name the log of this server, as the server writes it",
            )
    return found, unread


def _hidden(server: ServerLogSettings) -> Unsupported | None:
    """Return which of the server's settings keep a crash or damage out of the log."""
    if not _ENGLISH.fullmatch(server.language):
        return Unsupported(
            f"the server writes its messages in the language of lc_messages = {server.language}, "
            "in which a crash is not recognised",
            hint="set lc_messages to C in postgresql.conf",
        )
    if server.lowest in ("log", "fatal", "panic"):
        return Unsupported(
            f"the server does not log errors (log_min_messages = {server.lowest})",
            hint="set log_min_messages to error or warning",
        )
    return None


def _sorted_out(
    records: Iterable[Record], invariant: Invariant
) -> tuple[list[Record], tuple[str, ...]]:
    """Return the records that count, and short texts about those that `ignore` leaves out."""
    counted: list[Record] = []
    left_out: Counter[str] = Counter()
    for record in records:
        if not invariant.ignores(record.about):
            counted.append(record)
            continue
        named = [
            f"{name} {text(value, 64)}"
            for name, value in record.about.items()
            if value and any(name in entry for entry in invariant.ignore)
        ]
        left_out[", ".join(named)] += 1
    texts = (f"{what} ({format_count(n, 'line')})" for what, n in left_out.items())
    return counted, tuple(sorted(texts))


def _counts(
    known: Json, records: Sequence[Record], at: float, window: float
) -> tuple[dict[str, Series], dict[str, Json]]:
    """Return the steps of each kind's count, and an example of each kind that has had one."""
    raw_counts, raw_latest = known.get("counts"), known.get("lines")
    old_counts = raw_counts if isinstance(raw_counts, dict) else {}
    latest: dict[str, Json] = {
        str(kind): one if isinstance(one, dict) else {"line": text(one, 300)}
        for kind, one in (raw_latest if isinstance(raw_latest, dict) else {}).items()
    }
    found = Counter(record.kind for record in records)
    counts: dict[str, Series] = {}
    for kind in KINDS:
        old = read_series(old_counts.get(kind)) or [[at, 0.0]]
        counts[kind] = add_step(old, at, old[-1][1] + found[kind], window)
    for record in reversed(records):  # the first is nearest to the cause
        names = {
            name: text(value, 64)
            for name, value in record.about.items()
            if value and name in ("database", "role", "application")
        }
        latest[str(record.kind)] = {"line": text(record.line, 300), **names}
    return counts, latest


def _signal(kind: str, points: Series, latest: object, window: float) -> Signal:
    count = points[-1][1] - points[0][1]
    within = (
        f"within {format_duration(window)}" if window else "since the last observation"
    )
    example: dict[str, Fact] = {
        str(name): text(value, 300)
        for name, value in (latest if isinstance(latest, dict) else {}).items()
    }
    return Signal(
        "log_errors",
        kind,
        f"the log reports: {kind}, {format_count(int(count), 'line')} {within}; "
        f"such as: {text(example.get('line'), 200)}",
        count,
        facts={"kind": kind, "count": int(count), **example},
    )


# ------------------------------------------------------------------ evidence

# What str.splitlines takes for the end of a line: a client can write it.
_BREAKS = re.compile("[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


async def tail(settings: PostgresSettings, connection: Connection | None) -> str:
    """Return the end of the log, each line with its severity before anything that a client chose.

    Raises ObservationFailed.
    """
    return await log_around(settings, connection, None)


async def log_around(
    settings: PostgresSettings, connection: Connection | None, onset: datetime | None
) -> str:
    """Return the log around the onset and its end; only the end, where that has the onset or no times.

    Args:
        settings: The server's.
        connection: None reads a log on this machine.
        onset: When the fault was first seen.

    Raises:
        ObservationFailed: The log cannot be read.
    """
    files, server = await _opened(settings, connection)
    parts = [await files.tail(TAIL)]
    if onset is not None and _begins_after(parts[0], onset - LOG_BEFORE):
        end = max(0, files.current.size - TAIL)
        early = await _place_of(files, onset - LOG_BEFORE, end)
        late = await _place_of(files, onset, end)
        # Where the log is so dense that not all of it is read, what is nearest to the onset.
        start = max(early, late - AROUND * 3 // 4)
        parts.insert(0, await files.lines(start, min(AROUND, end - start)))
    shown = [
        await asyncio.to_thread(_shown, part, files.format, server) for part in parts
    ]
    return "\n[… lines between left out …]\n".join(filter(None, shown))


async def _opened(
    settings: PostgresSettings, connection: Connection | None
) -> tuple[LogFiles, ServerLogSettings]:
    server = ServerLogSettings()
    if connection is not None:
        server = await server_log_settings(connection)
    return await open_log(settings, connection, server), server


def _shown(data: bytes, format_: str, server: ServerLogSettings) -> str:
    if format_ == "stderr":
        data = thin(data)
    part = _BREAKS.sub("?", data.decode("utf-8", "replace"))
    if format_ != "stderr":
        records = structured_records(part, format_, telling=False)
        return "\n".join([line for one in records for line in one.evidence])
    return TextLog(part, _prefixes(server, None)).evidence().rstrip("\n")


def _begins_after(part: bytes, at: datetime) -> bool:
    first = _first_time(part, at)
    return first is not None and first > at


def _first_time(part: bytes, near: datetime) -> datetime | None:
    for line in part[:PROBE].decode("utf-8", "replace").split("\n"):
        at, _ = time_of(line.removeprefix('{"timestamp":"'), near)
        if at is not None:
            return at
    return None


async def _place_of(files: LogFiles, at: datetime, end: int) -> int:
    """Return where, before `end`, the lines from a time on begin, to within `PROBE` bytes."""
    low, high = 0, end
    while high - low > PROBE:
        middle = (low + high) // 2
        first = _first_time(await files.lines(middle, PROBE), at)
        if first is not None and first < at:
            low = middle
        else:
            high = middle
    return low


WINDOW = 2_000_000
"""Bytes at the end of the log in which a window of it is searched."""
_TIME = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d")


async def window(
    settings: PostgresSettings,
    connection: Connection | None,
    since: str = "",
    until: str = "",
    contains: str = "",
) -> str:
    """Return the lines of the log from `since` to `until`, in its own time zone, that have a text.

    Times are compared as text, in the form that the log has them; a line without a time has that of the line
    before it. Of many lines the last 200 are returned. Raises ObservationFailed.
    """
    files, server = await _opened(settings, connection)
    whole = await asyncio.to_thread(
        _shown, await files.tail(WINDOW), files.format, server
    )
    since, until = since.replace("T", " "), until.replace("T", " ")
    at, first, kept = "", "", []
    for line in whole.split("\n"):
        if found := _TIME.search(line[:400]):
            at = found[0].replace("T", " ")
            first = first or at
        if (
            at >= since
            and (not until or at[: len(until)] <= until)
            and contains in line
        ):
            kept.append(line)
    left_out = len(kept) - 200
    notes = [f"(read from {first} on)"] if first > since and since else []
    notes += [f"({left_out} earlier lines are left out)"] if left_out > 0 else []
    return "\n".join([*notes, *kept[-200:]]) if kept else ""
