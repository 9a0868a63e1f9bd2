"""The journal of systemd as a source, read with journalctl from a cursor on.

Format: https://systemd.io/JOURNAL_EXPORT_FORMATS/, journal JSON: a field is a text, a list of numbers where it is not
UTF-8, null where it is too large, and a list of these where an entry has it several times.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midwatch.errors import ObservationFailed, Unsupported
from midwatch.programs import ProcessResult, run
from midwatch.subjects.logs.levels import Level
from midwatch.subjects.logs.scanner import Scanner
from midwatch.subjects.logs.settings import JournalSettings
from midwatch.subjects.logs.source_reading import Reading
from midwatch.text import ticket_line

PROGRAM = "journalctl"
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "SYSTEMD_COLORS": "0",
}
MOST_OUTPUT = 16_000_000  # bytes of one reading; what is left is read in the next one
_PRIORITIES = (5, 5, 5, 4, 3, 2, 2, 1)  # by priority, syslog(3)
_HIDDEN = "not seeing messages from other users"
REMEDY = (
    "let the user that runs midwatch read the journal: add it to the group systemd-journal, "
    "or mount /var/log/journal into its container"
)


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One entry of the journal. `at` is in epoch seconds."""

    cursor: str
    text: str
    level: Level | None
    unit: str
    at: float


def arguments(settings: JournalSettings, *more: str) -> list[str]:
    """Return the command that prints entries as JSON."""
    command = [PROGRAM, "--output=json", "--all", "--no-pager"]
    command += [f"--unit={one}" for one in settings.units]
    command += [f"--identifier={one}" for one in settings.identifiers]
    command += [f"--priority={settings.priority}"]
    if settings.directory is not None:
        command.append(f"--directory={settings.directory}")
    return [*command, *more]


async def read_journal(
    settings: JournalSettings,
    state: Any,
    now: float,
    since: float,
    timeout: float,
    scanner: Scanner,
    *,
    environment: dict[str, str] | None = None,
) -> Reading:
    """Read what is new in the journal.

    Args:
        settings: Which entries count.
        state: The `place` of the last reading; None for the first one.
        now: The time, in epoch seconds.
        since: How many seconds before now the first reading begins.
        timeout: Seconds.
        scanner: Takes the entries.
        environment: That of journalctl.

    Raises:
        ObservationFailed: The journal cannot be read.
        Unsupported: A permission keeps it from being read.
    """
    env = environment or ENVIRONMENT
    reading = Reading(now)
    cursor, start = _place(state)
    if not cursor and not start:
        return await _first(settings, reading, since, timeout, scanner, env)
    where = f"--cursor={cursor}" if cursor else f"--since=@{start:.6f}"
    result = await run_journal(arguments(settings, where), timeout, env)
    if cursor and b"Failed to seek to cursor" in result.stderr:
        reading.lose("the journal does not know the position of the last reading", 0)
        result = await run_journal(
            arguments(settings, f"--since=@{now - 60:.6f}"), timeout, env
        )
    check_result(result, reading)
    found, last = list(entries(result.stdout)), ""
    if cursor and not reading.lost:
        if found and found[0].cursor == cursor:
            found = found[1:]
        elif found or not (result.too_large or result.code is None):
            reading.lose("the journal was vacuumed before all of it was read", 0)
    for one in found:
        scanner.record(one.text, one.level, one.unit, one.unit, one.at or None)
        last = one.cursor
    if result.too_large or result.code is None:
        reading.behind = 1
        if not found:
            raise ObservationFailed(f"{PROGRAM} {result.failure}")
    reading.place = {"cursor": last or cursor, "since": start}
    if reading.lost and not last:
        reading.place = {"cursor": "", "since": now}
    return reading


async def _first(
    settings: JournalSettings,
    reading: Reading,
    since: float,
    timeout: float,
    scanner: Scanner,
    env: dict[str, str],
) -> Reading:
    """Find the last entry, or read those of some time."""
    command = arguments(settings, "--lines=1")
    result = await run_journal(command, timeout / 2, env)
    check_result(result, reading)
    newest = list(entries(result.stdout))
    if not newest:  # with --output=json nothing says that there is no journal
        command = [PROGRAM, "--no-pager", "--lines=1"]
        if settings.directory is not None:
            command.append(f"--directory={settings.directory}")
        check_result(await run_journal(command, timeout / 2, env), reading)
    reading.place = {"cursor": "", "since": reading.began}
    if newest:
        reading.place = {"cursor": newest[-1].cursor, "since": reading.began}
    if since > 0 and newest:
        start = reading.began - since
        result = await run_journal(
            arguments(settings, f"--since=@{start:.6f}"), timeout / 2, env
        )
        check_result(result, reading)
        for one in entries(result.stdout):
            scanner.record(one.text, one.level, one.unit, one.unit, one.at or None)
            reading.place = {"cursor": one.cursor, "since": start}
        reading.behind = int(result.too_large or result.code is None)
    return reading


def _place(state: Any) -> tuple[str, float]:
    try:
        return str(state["cursor"]), float(state["since"])
    except (KeyError, TypeError, ValueError):
        return "", 0.0


async def run_journal(
    command: Sequence[str], timeout: float, env: dict[str, str]
) -> ProcessResult:
    """Run journalctl. Raises Unsupported where it is missing."""
    try:
        return await run(
            command, env=env, cwd=Path("/"), timeout=timeout, max_output=MOST_OUTPUT
        )
    except ObservationFailed as error:
        raise Unsupported(
            error.message, hint="install systemd, or let the source read files"
        ) from None


def check_result(result: ProcessResult, reading: Reading) -> None:
    """Note what a permission hides. Raises ObservationFailed or Unsupported where nothing can be read."""
    said = result.stderr.decode("utf-8", "replace")
    if _HIDDEN in said:
        reading.denied = (
            f"entries of other users and of the system are hidden (hint: {REMEDY})"
        )
    if "insufficient permissions" in said or "Permission denied" in said:
        raise Unsupported("the journal may not be read", hint=REMEDY)
    if "No journal files were found" in said or "No journal files were opened" in said:
        raise Unsupported("there is no journal", hint=REMEDY)
    if result.code is None and not result.too_large and not result.stdout:
        raise ObservationFailed(f"{PROGRAM} {result.failure}")
    if result.failure and not result.too_large and result.code is not None:
        # 1 is also the status of a search that finds nothing, without a word.
        why = ticket_line(said.strip(), 200)
        if why and "-- No entries --" not in why:
            raise ObservationFailed(f"{PROGRAM} {result.failure}: {why}")


# ------------------------------------------------------------------ entries


def entries(output: bytes) -> Iterator[JournalEntry]:
    """Yield the entries of complete lines of JSON; a line that is cut off is left for the next reading."""
    for line in output[: output.rfind(b"\n") + 1].split(b"\n"):
        try:
            read = json.loads(line)
            cursor = _text(read.get("__CURSOR"))
        except (ValueError, AttributeError):
            continue
        if not cursor:
            continue
        unit = _text(read.get("_SYSTEMD_UNIT")) or _text(read.get("SYSLOG_IDENTIFIER"))
        yield JournalEntry(
            cursor,
            _message(read.get("MESSAGE")),
            _level(_text(read.get("PRIORITY"))),
            unit or "kernel",
            _seconds(_text(read.get("__REALTIME_TIMESTAMP"))),
        )


def _message(value: Any) -> str:
    """Return the message of an entry; of several, which have no order, the longest is its first line."""
    if isinstance(value, list) and not _is_bytes(value):
        return "\n".join(sorted(map(_text, value), key=len, reverse=True))
    return _text(value)


def _is_bytes(value: list[Any]) -> bool:
    return all(isinstance(one, int) and 0 <= one < 256 for one in value)


def _text(value: Any) -> str:
    """Return a field as text; of one that an entry has several times, the first."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        if _is_bytes(value):
            return bytes(value).decode("utf-8", "replace")
        return _text(value[0])
    return ""


def _level(priority: str) -> Level | None:
    return (
        Level(_PRIORITIES[int(priority)]) if re.fullmatch("[0-7]", priority) else None
    )


def _seconds(micros: str) -> float:
    return int(micros) / 1e6 if micros.isdigit() else 0.0
