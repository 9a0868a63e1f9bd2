"""First aid for a server that is down, and for crashes and damage in its log."""

from __future__ import annotations

from dataclasses import dataclass

from midwatch.diagnosis_schema import Action, Citation
from midwatch.model import Context
from midwatch.playbooks.base import (
    SEVERITIES,
    Note,
    Tickets,
    action,
    find,
    finding,
    log_lines,
    playbook,
    text_fact,
    write_note,
)

# Without a colon, so that no logged statement can match.
ENDED = r'[a-z][a-z ]{0,40}(?:"[^"]{0,80}" )?\(PID \d+\) was terminated by '
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


START = action("Start it, and watch the log until it takes connections")
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
        "could not .*No space left on device|could not extend file .*: wrote only",
        "the disk is full",
        action(
            "Make room on the disk (never by deleting files in pg_wal), then start it",
            "df -h",
            risk="deleting the wrong files loses data",
            undo=False,
        ),
        kind="disk full",
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
        "could not (?:bind|create lock file|open file|load|access)|configuration file .* contains errors",
        "it could not start",
        action("Correct what the log names, then start it"),
        disaster=False,
    ),
)


@playbook("postgres", "reachable")
def server_down(tickets: Tickets, context: Context) -> Note:
    """A server that does not answer: the cause is in the end of its log."""
    refused = find(context, "a connection attempt failed:")
    for cause in CAUSES:
        line = _after_start(context, cause)
        if line is not None:
            return _known(tickets, cause, line, refused)
    return _unknown(tickets, context, refused)


def _known(
    tickets: Tickets, cause: Cause, line: Citation, refused: Citation | None
) -> Note:
    return write_note(
        tickets,
        summary=f"The server does not answer: {cause.description}.",
        cause=cause.description,
        cited=[line],
        reason="it is the server's own last message since it started",
        verdict="identified",
        confidence="high" if refused else "medium",
        findings=[finding("it refuses connections now", refused)],
        actions=[cause.action, START],
        risks=["Everything that needs this database is down."],
    )


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


@playbook("postgres", "log_errors")
def log_disaster(tickets: Tickets, context: Context) -> Note:
    """A server that runs, but whose log reports a crash or damage."""
    kinds = {text_fact(ticket, "kind") for ticket in tickets} - {""}
    for cause in sorted(CAUSES, key=lambda one: one.kind not in kinds):
        lines = log_lines(context, cause.pattern, cause.severities)
        if lines and cause.disaster:
            return _write(tickets, cause.description, lines[0], cause.action)
    lines = log_lines(context, "database system was not properly shut down")
    if lines:
        description = (
            "it ended without a shutdown and recovered when it was started again"
        )
        return _write(tickets, description, lines[0], RECOVERY)
    return None


@playbook("postgres", "checksum_failures")
def damaged_pages(tickets: Tickets, context: Context) -> Note:
    """Pages whose checksum failed, by the server's counter."""
    counted = find(context, "failures=", f"datname={tickets[0].key.component}")
    damage = next(cause for cause in CAUSES if cause.kind == "damaged data")
    lines = log_lines(context, damage.pattern)
    return write_note(
        tickets,
        summary="Pages on disk are damaged: their checksums fail.",
        cause=damage.description,
        cited=[counted],
        reason="the server counts each page whose checksum fails; the counter does not show the cause",
        verdict="identified",
        findings=[finding("the log names the pages", lines[0])] if lines else [],
        actions=[damage.action],
        risks=["More pages can be damaged than have been read."],
    )


def _write(tickets: Tickets, description: str, line: Citation, action: Action) -> Note:
    return write_note(
        tickets,
        summary=f"The log reports a disaster: {description}.",
        cause=description,
        cited=[line],
        reason="the line is the server's own; what led to it is not in it",
        actions=[action],
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


def _follows(context: Context, line: Citation, earlier: Citation) -> bool:
    lines = log_lines(context, "")
    return lines.index(line) < lines.index(earlier)


def _last_log_line(context: Context) -> Citation | None:
    lines = log_lines(context, "")
    return lines[0] if lines else None
