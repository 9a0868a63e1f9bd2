"""First aid for a server that is down, and for crashes and damage in its log."""

from __future__ import annotations

import re
from dataclasses import dataclass

from midwatch.diagnosis_schema import Action, Citation
from midwatch.log_shapes import time_of
from midwatch.model import Context, Ticket
from midwatch.playbooks.base import (
    SEVERITIES,
    Note,
    Tickets,
    action,
    find,
    find_start,
    finding,
    log_lines,
    message_of,
    playbook,
    text_fact,
    write_note,
)
from midwatch.playbooks.postgres.disk_full import PATTERN, disk_full

# Without a colon, so that no logged statement can match.
ENDED = r'[a-z][a-z ]{0,40}(?:"[^"]{0,80}" )?\(PID \d+\) was terminated by '
FULL = "disk full"
READY = "database system is ready to accept connections"


@dataclass(frozen=True, slots=True)
class Cause:
    """The cause that a log line that begins with `pattern` shows.

    With `disaster` it counts also for a server that has come back. `kind` is that of log_errors.
    """

    pattern: str
    description: str
    action: Action
    disaster: bool = True
    severities: str = SEVERITIES
    kind: str = ""


START = action(
    "Start it the way it is started here (systemctl, the container, pg_ctl), and watch the log until it "
    "takes connections"
)
RECOVERY = action(
    "Let it recover; if it does not come back by itself, start it and watch the log",
    risk="recovery takes as long as the write-ahead log since the last checkpoint",
)
# Causes come before their effects: a full disk before the crash that it leads to.
CAUSES = (
    Cause(
        "out of shared memory|not enough shared memory|could not .*shared memory"
        ".*(?:No space left on device|Cannot allocate memory)",
        "shared memory is full",
        action(
            "See whether /dev/shm is full (in a container it has 64 MB by default), or whether "
            "max_locks_per_transaction is too low for the locks that are taken",
            "df -h /dev/shm",
        ),
        kind="shared memory full",
    ),
    Cause(
        "could not fork .*Cannot allocate memory",
        "the machine has no memory for a new server process",
        action("See what uses the memory, and the limit of the cgroup", "free -m"),
        kind="out of memory at fork",
    ),
    Cause(
        "could not fork .*Resource temporarily unavailable",
        "the limit of processes is reached",
        action("See the limits of the server's user and of its cgroup", "ulimit -u"),
        kind="process limit",
    ),
    Cause(
        "could not .*Disk quota exceeded",
        "the disk quota of the server is used up",
        action("Raise the quota or make room (never by deleting files in pg_wal)"),
        kind="disk quota",
    ),
    Cause(
        "could not .*(?:Input/output error|Read-only file system|Structure needs cleaning)",
        "the disk or its filesystem fails",
        action(
            "Read the kernel's log for the disk, and prepare a failover or a restore",
            "dmesg -T | tail -50",
        ),
        kind="disk error",
    ),
    Cause(
        "(?:could not receive data from WAL stream: (?:ERROR|FATAL): +)?requested WAL segment .* removed",
        "the write-ahead log that a standby needs is gone from the primary",
        action(
            "Fetch the segment from the archive (restore_command), or rebuild the standby; "
            "a replication slot keeps it next time",
        ),
        kind="removed WAL",
    ),
    Cause(
        PATTERN,
        "the disk is full",
        action("See how much room is left", "df -h"),
        kind=FULL,
    ),
    Cause(
        ENDED + "signal 9",
        "a server process was killed with signal 9, as the kernel does when memory runs out",
        action(
            "Look for the kernel's out-of-memory killer",
            "dmesg -T | grep -i 'killed process'",
        ),
        kind="crash",
    ),
    Cause(
        ENDED,
        "a server process crashed",
        action("Keep the core dump and the log, and look for the statement it ran"),
        kind="crash",
    ),
    Cause(
        "out of memory",
        "memory ran out",
        action("See what uses the memory", "free -m"),
        kind="out of memory",
    ),
    Cause(
        r"(?:\d+ )?invalid pages? (?:in|among) block|(?:zeroing out|ignoring) .*among blocks"
        "|could not read block|page verification failed|ignoring checksum failure"
        "|unexpected data beyond EOF|missing chunk number",
        "data on disk are damaged",
        action(
            "Stop writing, keep a copy of the data folder, and prepare a restore",
            risk="running on can make the damage worse",
            undo=False,
        ),
        kind="damaged data",
    ),
    Cause(
        "could not locate a valid checkpoint record|could not find redo location",
        "it does not find the checkpoint to recover from: a part of the write-ahead log or the backup label is missing",
        action(
            "Copy the data folder as it is before anything else, and restore from a backup; pg_resetwal "
            "loses data and comes last"
        ),
        severities="PANIC|FATAL",
        kind="panic",
    ),
    Cause(
        "",
        "the server reached a state in which it could not continue (PANIC)",
        action(
            "Keep the log and the data folder as they are, and read the lines before it"
        ),
        severities="PANIC",
        kind="panic",
    ),
    Cause(
        "received (?:fast|smart|immediate) shutdown request",
        "it received a shutdown request",
        action(
            "Ask who stopped it (deployment, package upgrade, an operator)",
            "last -x | head",
        ),
    ),
    Cause(
        "could not (?:bind|create lock file|open|load|access|create any)|configuration file .* contains errors"
        '|lock file .* already exists|data directory "[^"]*" (?:has|does not|is)|.*"[^"]*" has group or world access'
        "|database files are incompatible|recovery aborted because of insufficient parameter settings"
        "|invalid value for parameter"
        "|.*is not a (?:valid )?(?:data directory|database cluster directory)",
        "it could not start",
        action("Correct what the log names, then start it"),
        disaster=False,
        severities="FATAL|PANIC",
    ),
)


@playbook("postgres", "reachable", "log_errors")
def server_down(tickets: Tickets, context: Context) -> Note:
    """A server that does not answer: the cause is in the end of its log."""
    if tickets[0].key.invariant != "reachable":
        return None
    refused = find_start(context, "a connection attempt failed:")
    if refused is not None and (busy := _on_its_way(tickets, refused)) is not None:
        return busy
    for cause in CAUSES[:-2]:
        line = _after_start(context, cause)
        if line is not None:
            return _known(tickets, cause, line, refused, context)
    stopped, failed = (_after_start(context, cause) for cause in CAUSES[-2:])
    if failed and not (stopped and _follows(context, stopped, failed)):
        return _known(tickets, CAUSES[-1], failed, refused, context)
    if stopped:
        return _known(tickets, CAUSES[-2], stopped, refused, context)
    return _unknown(tickets[:1], context, refused)


def _on_its_way(tickets: Tickets, refused: Citation) -> Note:
    """Return the note on a server that answers that it starts, recovers or shuts down; None for another answer."""
    state = re.search(
        "is (starting up|shutting down)|in (recovery) mode|not yet accepting connections",
        refused.quote,
    )
    if state is None:
        return None
    does = state[1] or "in recovery"
    return write_note(
        tickets[:1],
        summary=f"The server runs and is {does}; it takes no connections yet.",
        cause=f"the server is {does}",
        cited=[refused],
        reason="it says so itself; why it was stopped or crashed is in its log",
        verdict="identified",
        actions=[
            action(
                "Leave it running: stopped now, it begins again. See in its process list how far it is",
                "ps -C postgres -o pid,etime,args",
            )
        ],
        risks=["Everything that needs this database is down."],
    )


def _known(
    tickets: Tickets,
    cause: Cause,
    line: Citation,
    refused: Citation | None,
    context: Context,
) -> Note:
    full = disk_full(context, line) if cause.kind == FULL else None
    detail = None if cause.disaster else _detail(context)
    return write_note(
        [tickets[0], *_effects(tickets[1:], cause)],
        summary=f"The server does not answer: {full.description if full else cause.description}.",
        cause=full.description if full else cause.description,
        cited=full.cited if full else [line, detail],
        reason="it is the server's own last message since it started",
        verdict="identified",
        confidence="high" if refused else "medium",
        findings=[
            finding("it refuses connections now", refused),
            *(full.findings if full else ()),
        ],
        actions=[*(full.actions if full else _named(cause, detail or line)), START],
        risks=["Everything that needs this database is down."],
    )


def _effects(tickets: Tickets, cause: Cause) -> list[Ticket]:
    """Return the tickets on the log that report this cause, or the crash that it leads to."""
    kinds = {cause.kind, *({"crash", "panic"} if cause.kind else ())}
    return [one for one in tickets if text_fact(one, "kind") in kinds]


_PORT = re.compile(r'could not bind .*?address "([^"]*)"')
_FILE = re.compile(
    r'(?:data directory|lock file|configuration file|in file|open file|load \S+ \S+ file) "([^"]+)"'
    r"(?:,? line (\d+))?"
)


def _detail(context: Context) -> Citation | None:
    """Return the line that names the address or the line of a file for which the server did not start."""
    pattern = r'could not bind|.* in file "[^"]+" line \d+'
    found = log_lines(context, pattern, "LOG|WARNING")
    ready = log_lines(context, READY, "LOG")
    if not found or (ready and not _follows(context, found[0], ready[0])):
        return None
    return found[0]


def _named(cause: Cause, line: Citation) -> list[Action]:
    """Return the action of the cause, with the file or address that the line names."""
    if _PORT.search(line.quote):
        return [
            action(
                "See who listens on its port; end nothing before you know what it is",
                "ss -ltnp",
            )
        ]
    file = _FILE.search(line.quote)
    if cause.kind or file is None:
        return [cause.action]
    quoted = "'" + file[1].replace("'", "'\\''") + "'"
    if "lock file" in file[0]:
        return [
            action(
                "See whether another server runs on the same data before anything else; the lock file must "
                "not be deleted while one does",
                f"cat {quoted}",
                "ps -C postgres -o pid,etime,args",
            )
        ]
    return [
        action(
            f"Correct {file[1]}" + (f", line {file[2]}" if file[2] else ""),
            f"ls -ld {quoted}",
        )
    ]


def _unknown(tickets: Tickets, context: Context, refused: Citation | None) -> Note:
    last = _last_log_line(context)
    error = text_fact(tickets[0], "error")
    if refused is None and last is None:
        return None
    if "refused" not in error.casefold():
        # A timeout or a failing name can have a cause in the network as well as in the server.
        cause = "it is hung, overloaded or cut off from here"
    elif last is None:
        cause = "its process is gone"
    else:
        cause = (
            "its process is gone without a shutdown in its log: it was killed "
            "from outside (kill -9, out-of-memory killer) or the machine went down"
        )
    return write_note(
        tickets,
        summary=f"The server does not answer: {cause}.",
        cause=cause,
        cited=[refused, last],
        confidence="medium" if last else "low",
        reason="the refusal is known; what ended the server left no line in the log",
        actions=[
            *_asked(error),
            action(
                "On its machine, see whether it runs and whether the kernel killed it",
                "ps -C postgres -o pid,etime,cmd",
                "dmesg -T | grep -i 'killed process'",
            ),
            RECOVERY,
        ],
        risks=["Everything that needs this database is down."],
        missing=["The kernel's log of that machine."],
    )


_ENDPOINT = re.compile(
    r'(?:at "(?P<host>[^"]+)"(?: \([^)]*\))?, port (?P<port>\d+)'
    r'|on socket "(?P<folder>[^"]+)/\.s\.PGSQL\.(?P<number>\d+)")'
)


def _asked(error: str) -> list[Action]:
    """Return the action that tries the address of a connection attempt again."""
    found = _ENDPOINT.search(error)
    if found is None:
        return []
    host, port = found["host"] or found["folder"], found["port"] or found["number"]
    quoted = "'" + host.replace("'", "'\\''") + "'"
    return [
        action("See whether it answers now", f"pg_isready -h {quoted} -p {port}"),
    ]


@playbook("postgres", "log_errors")
def log_disaster(tickets: Tickets, context: Context) -> Note:
    """A server that runs, but whose log reports a crash or damage."""
    kinds = {text_fact(ticket, "kind") for ticket in tickets} - {""}
    for cause in sorted(CAUSES, key=lambda one: one.kind not in kinds):
        lines = log_lines(context, cause.pattern, cause.severities)
        if lines and cause.disaster:
            return _write(_of_cause(tickets, cause), cause, lines[0], context)
    lines = log_lines(context, "database system was not properly shut down")
    if lines:
        ended = Cause(
            "",
            "it ended without a shutdown and recovered when it was started again",
            RECOVERY,
        )
        return _write(tickets, ended, lines[0], context)
    return None


def _of_cause(tickets: Tickets, cause: Cause) -> Tickets:
    """Return the tickets that the cause explains: all of them where none is of its kind."""
    same = [one for one in tickets if text_fact(one, "kind") == cause.kind]
    rest = [one for one in tickets if one not in same]
    return [*same, *_effects(rest, cause)] if same else tickets


@playbook("postgres", "checksum_failures")
def damaged_pages(tickets: Tickets, context: Context) -> Note:
    """Pages whose checksum failed, by the server's counter."""
    counted = find(context, "failures=", f"datname={tickets[0].key.component}")
    damage = next(cause for cause in CAUSES if cause.kind == "damaged data")
    lines = log_lines(context, damage.pattern)
    named = _damaged_relation(lines[0]) if lines else []
    said = f": {message_of(lines[0])}" if named else ""
    return write_note(
        tickets,
        summary="Pages on disk are damaged: their checksums fail.",
        cause=damage.description + said,
        cited=[counted, *(lines[:1] if named else ())],
        reason="the server counts each page whose checksum fails; the counter does not show the cause",
        verdict="identified",
        findings=[finding("the log names the pages", lines[0])] if lines else [],
        actions=[damage.action, *named],
        risks=["More pages can be damaged than have been read."],
    )


_RELATION = re.compile(
    r'"?(?:base|pg_tblspc/(?P<space>\d+)/PG_[^/"]+)/(?P<database>\d+)/(?P<file>\d+)(?![\d_])'
)


def _damaged_relation(line: Citation) -> list[Action]:
    """Return the action that finds the table or index of the file that a line names."""
    found = _RELATION.search(line.quote)
    if found is None:
        return []
    space, file = found["space"] or "0", found["file"]
    return [
        action(
            "See which table or index it is, in the database that the first statement names: an index can be built "
            "again from its table (REINDEX), a table cannot",
            f"SELECT datname FROM pg_database WHERE oid = {found['database']};",
            f"SELECT oid::regclass, relkind FROM pg_class WHERE oid = pg_filenode_relation({space}, {file});",
        )
    ]


def _write(tickets: Tickets, cause: Cause, line: Citation, context: Context) -> Note:
    full = disk_full(context, line) if cause.kind == FULL else None
    description = full.description if full else cause.description
    pages = cause.kind == "damaged data"
    if pages:
        description += f": {message_of(line)}"
    return write_note(
        tickets,
        summary=f"The log reports: {description}.",
        cause=description,
        cited=full.cited if full else [line],
        reason="the line is the server's own; what led to it is not in it",
        verdict="identified" if full else "suspected",
        findings=full.findings if full else (),
        actions=[
            *(full.actions if full else [cause.action]),
            *(_damaged_relation(line) if pages else ()),
        ],
        risks=["It can happen again at any time."],
    )


def _after_start(context: Context, cause: Cause) -> Citation | None:
    """Return the latest line of this cause, if the server has not started since.

    Errors of single statements (ERROR) do not end a server.
    """
    found = log_lines(context, cause.pattern, cause.severities.replace("ERROR|", ""))
    ready = log_lines(context, READY, "LOG")
    if not found:
        return None
    return found[0] if not ready or _follows(context, found[0], ready[0]) else None


_UNTIL = re.compile(r"\t\[×\d+ until (.*?)[;\]]")


def _follows(context: Context, line: Citation, earlier: Citation) -> bool:
    """Return whether the last line like the first one is after the last line like the other one.

    Lines of one shape are shown once, where they were first, with the time of the last one.
    """
    (place, until), (other, since) = _last(context, line), _last(context, earlier)
    return until > since if until and since and until != since else place > other


def _last(context: Context, line: Citation) -> tuple[int, str]:
    """Return the place of a line among those of the log, and the time of the last one like it as the log writes it."""
    place, until, found = 0, "", False
    for evidence in context.evidence:
        if evidence.id != line.evidence_id:
            continue
        for number, text in enumerate(evidence.text.splitlines()):
            if line.quote in text:
                place, until, found = number, time_of(text, None)[1], True
            elif found and (note := _UNTIL.match(text)):
                until, found = note[1], False
            elif not text[:1].isspace():
                found = False
    return place, until


def _last_log_line(context: Context) -> Citation | None:
    lines = log_lines(context, "")
    return lines[0] if lines else None
