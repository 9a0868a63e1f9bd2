"""First aid for a full disk: what was written there decides what is down and what gives room.

A temporary file fails one statement, and its room is free again at once. A data file fails the statements
that add to it. The write-ahead log stops the server.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from midwatch.diagnosis_schema import Action, Citation, Finding
from midwatch.model import Context
from midwatch.playbooks.base import (
    action,
    bounded,
    evidence_lines,
    finding,
    log_lines,
    matching_line,
)
from midwatch.playbooks.postgres.evidence_rows import rows, setting

PATTERN = "could not .*No space left on device|could not extend file .*: wrote only"
_PATH = re.compile(r'file "([^"]+)"')
_TEMPORARY = re.compile(r"pgsql_tmp|/t\d+_\d+|temporary file")
_TABLESPACE = re.compile(r"pg_tblspc/(\d+)/")
_PLACE = re.compile(r"tablespace oid (\d+) (.*?): at (.*?), (?:\d|not visible)")
_STATEMENT = re.compile(r"\bSTATEMENT: +(\S.*)$")


@dataclass(frozen=True, slots=True)
class DiskFull:
    """What a line about a full disk means. `stops` tells whether it stops the server."""

    description: str
    actions: list[Action]
    cited: list[Citation]
    findings: list[Finding | None] = field(default_factory=list)
    stops: bool = False


def disk_full(context: Context, line: Citation) -> DiskFull:
    """Return what the line of the log means and what gives room."""
    named = _PATH.search(line.quote)
    path = named[1] if named else ""
    if "pg_wal" in path:
        return _wal(context, line)
    space, location, cited = _tablespace(context, path)
    directory, directory_line = setting(context, "data_directory")
    place = location or directory
    cited = cited or directory_line
    if _TEMPORARY.search(line.quote):
        return _temporary(context, line, space, place, cited)
    where = f"tablespace {space}" if space else "the data directory"
    return DiskFull(
        f"the disk of {where}{f' ({place})' if place else ''} is full: {path or 'a file'} cannot grow",
        [
            _free(place),
            action(
                "See which databases and tables are the largest, and what else lies on that disk; "
                "make room (never by deleting files of the server by hand)",
                "SELECT datname, pg_size_pretty(pg_database_size(oid)) FROM pg_database\n"
                "ORDER BY pg_database_size(oid) DESC LIMIT 10;",
            ),
        ],
        [line],
        [finding(f"where {where} lies", cited)],
    )


def _free(place: str) -> Action:
    quoted = "'" + place.replace("'", "'\\''") + "'"
    return action(
        "See how much room is left, and what else takes it",
        f"df -h {quoted}" if place else "df -h",
    )


def _tablespace(context: Context, path: str) -> tuple[str, str, Citation | None]:
    """Return name and location of the tablespace that the path is in, with its citation."""
    oid = _TABLESPACE.search(path)
    for evidence_id, line in evidence_lines(context, "Tablespaces"):
        found = _PLACE.match(line)
        if oid and found and found[1] == oid[1]:
            cited = Citation(evidence_id=evidence_id, quote=bounded(line))
            return found[2], found[3], cited
    return (f"with oid {oid[1]}" if oid else ""), "", None


def _temporary(
    context: Context, line: Citation, space: str, place: str, cited: Citation | None
) -> DiskFull:
    """Statements that spill to disk fail; the server runs on and is not to be started."""
    statement = _statement(context, line)
    where = f"temporary tablespace {space}" if space else "the disk of temporary files"
    limit, limit_line = setting(context, "temp_file_limit")
    use = matching_line(
        context,
        "Tablespaces",
        lambda text: bool(re.search("temporary: [1-9]", text)),
    )
    actions = [
        action(
            "See which statements write temporary files now (the number in the file's name is the pid)",
            "SELECT s.spcname, t.name, pg_size_pretty(t.size), a.pid, a.usename, a.query\n"
            "FROM pg_tablespace s, LATERAL pg_ls_tmpdir(s.oid) t LEFT JOIN pg_stat_activity a\n"
            "  ON a.pid = substring(t.name FROM 'pgsql_tmp(\\d+)')::int\n"
            "WHERE s.spcname <> 'pg_global' ORDER BY t.size DESC LIMIT 20;",
        ),
        _free(place),
        action(
            "Let the statement need less room: fewer rows or columns to sort, hash or join, an index, or "
            "more work_mem for it" + (f": {statement[0]}" if statement else "")
        ),
    ]
    return DiskFull(
        f"{where}{f' ({place})' if place else ''} is full: statements that sort, hash or build there fail; "
        "the server itself runs"
        + (f". It failed: {statement[0]}" if statement else ""),
        actions,
        [line, *([statement[1]] if statement else [])],
        [
            finding("where it lies", cited),
            finding("what is there now", use),
            finding(f"temp_file_limit is {limit}", limit_line),
        ],
    )


def _wal(context: Context, line: Citation) -> DiskFull:
    """The disk of the write-ahead log: what keeps the log from being removed."""
    kept = [
        (cited, row)
        for cited, row in rows(context, "Replication slots")
        if row.get("active") == "False" and row.get("wal_status") != "lost"
    ]
    archive = log_lines(
        context, "archive command failed|archiving write-ahead log file .* failed"
    )
    why = ""
    if archive:
        why = ": archiving fails, so the log is kept"
    elif kept:
        why = f": slot {kept[0][1].get('slot_name')} has no reader and keeps the log"
    return DiskFull(
        f"the disk of the write-ahead log (pg_wal) is full{why}",
        [
            _free(setting(context, "data_directory")[0]),
            action(
                "Make the disk larger or remove other files from it; never delete files in pg_wal",
                risk="deleting the wrong files loses data",
                undo=False,
            ),
            action(
                "Once it runs, see what keeps the log: a slot without a reader, or an archive command that fails",
                "SELECT slot_name, active, wal_status, restart_lsn FROM pg_replication_slots;",
                "SELECT failed_count, last_failed_wal, last_failed_time FROM pg_stat_archiver;",
            ),
        ],
        [line, *archive[:1], *(cited for cited, _ in kept[:1] if not archive)],
        stops=True,
    )


def _statement(context: Context, line: Citation) -> tuple[str, Citation] | None:
    """Return the statement that the log has right after this line."""
    for evidence in context.evidence:
        if evidence.id != line.evidence_id or not evidence.available:
            continue
        lines = evidence.text.splitlines()
        places = [n for n, text in enumerate(lines) if line.quote in text.strip()]
        for text in lines[places[-1] + 1 : places[-1] + 4] if places else ():
            if match := _STATEMENT.search(text):
                quoted = Citation(evidence_id=evidence.id, quote=bounded(text.strip()))
                return bounded(match[1], 200), quoted
    return None
