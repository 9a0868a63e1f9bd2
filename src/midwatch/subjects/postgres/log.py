"""The check of the server's log, and its end as evidence."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from midwatch.errors import ObservationFailed, Unsupported
from midwatch.model import Fact, Invariant, Json, Signal
from midwatch.subjects.postgres.connection import Connection, QueryFailed, text
from midwatch.subjects.postgres.log_files import (
    LogFiles,
    LogPosition,
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
from midwatch.subjects.postgres.observation import (
    NotObservable,
    Series,
    add_step,
    read_series,
)
from midwatch.subjects.postgres.settings import PostgresSettings
from midwatch.units import format_count, format_duration

__all__ = ["LogPosition", "LogReport", "check_log", "kind_of", "tail"]

TAIL = 64_000
_ENGLISH = re.compile(r"(?:|C|POSIX|en|English)(?:[._@ -].*|_.*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LogReport:
    """What the log says: `problem` tells why lines may be missing, and `ignored` what was left out."""

    signals: tuple[Signal, ...]
    ignored: tuple[str, ...] = ()
    problem: ObservationFailed | None = None


async def check_log(
    settings: PostgresSettings,
    connection: Connection | None,
    previous: Json,
    state: Json,
    at: float,
    invariant: Invariant,
) -> LogReport:
    """Return one signal for each kind of crash or damage within the window.

    Args:
        connection: None when the server cannot be reached; then only `log_file` can be read.
        previous: The state of the last observation.
        state: The state to leave for the next one; `log` in it is replaced.
        at: The time, in epoch seconds.
        invariant: What it says to leave out is not counted.

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
        state["log"] = {"place": asdict(await files.end()), "server": server.state}
        raise NotObservable("the first observation: the log is read from here on")
    new = await files.since(last)
    prefixes = _prefixes(server, old_prefix)
    until = time.monotonic() + settings.timeout / 4
    records, unread = await asyncio.to_thread(_records, files, new, prefixes, until)
    counted, ignored = _sorted_out(records, invariant)
    counts, latest = _counts(known, counted, at, settings.event_window)
    state["log"] = {
        "place": asdict(new.position),
        "server": server.state,
        "counts": counts,
        "lines": latest,
    }
    signals = tuple(
        _signal(kind, points, latest.get(kind), settings.event_window)
        for kind, points in counts.items()
        if points[-1][1] > points[0][1]
    )
    return LogReport(signals, ignored, unread or _hidden(server))


def _prefixes(server: ServerLogSettings, old: str | None) -> list[LinePrefix]:
    syslog = "syslog" in server.destinations
    known = [one for one in (server.prefix, old) if one is not None]
    return [LinePrefix(one, syslog=syslog) for one in dict.fromkeys(known)]


def _records(
    files: LogFiles, new: NewLog, prefixes: Sequence[LinePrefix], until: float
) -> tuple[list[Record], ObservationFailed | None]:
    """Return the records of crashes and damage, and why there may be more."""
    found: list[Record] = []
    unread = QueryFailed(new.lost) if new.lost else None
    for part in new.texts:
        if files.format != "stderr":
            records = structured_records(part, files.format)
            found += [one for one in records if one.kind]
            continue
        log = TextLog(part, prefixes)
        try:
            for one in log.records(until):
                if one.kind:
                    found.append(one)
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
        names = {k: text(v, 64) for k, v in record.about.items() if v and k != "kind"}
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


async def tail(
    settings: PostgresSettings,
    connection: Connection | None,
    length: int = TAIL,
    most: int = 200,
) -> str:
    """Return the last lines, each with its severity before anything that a client chose.

    Args:
        settings: The server's.
        connection: None reads a log on this machine.
        length: Bytes that are read.
        most: Lines that are returned.

    Raises:
        ObservationFailed: The log cannot be read.
    """
    server = ServerLogSettings()
    if connection is not None:
        server = await server_log_settings(connection)
    files = await open_log(settings, connection, server)
    part = _BREAKS.sub("?", (await files.tail(length)).decode("utf-8", "replace"))
    if files.format != "stderr":
        records = structured_records(part, files.format, telling=False)
        return "\n".join([line for one in records for line in one.evidence][-most:])
    shown = TextLog(part, _prefixes(server, None)).evidence()
    return "\n".join(shown.rstrip("\n").split("\n")[-most:])


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
    whole = await tail(settings, connection, WINDOW, most=100_000)
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
