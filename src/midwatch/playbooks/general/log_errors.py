"""First aid for logs: what an error that is logged again and again means, what began when, and what stopped."""

from __future__ import annotations

import re

from midwatch.diagnosis_schema import Citation
from midwatch.model import Context, Ticket
from midwatch.playbooks.base import (
    Note,
    Tickets,
    action,
    finding,
    integer_fact,
    matching_line,
    own_line,
    playbook,
    text_fact,
    titled_lines,
    write_note,
)

# What a message says, in the words of the C library, of JVMs and of runtimes, and what to see first.
_MEANINGS = (
    (
        r"no space left on device|disk full|ENOSPC",
        "a file system is full",
        "See which file system is full and what fills it",
        ("df -h", "df -i"),
    ),
    (
        r"too many open files|EMFILE|ENFILE",
        "the process has used up its file descriptors",
        "See which descriptors the process holds, and its limit",
        ("cat /proc/PID/limits", "ls /proc/PID/fd | wc -l"),
    ),
    (
        r"connection refused|ECONNREFUSED",
        "nothing listens at the address that is called",
        "See whether what is called runs, and whether the address is right",
        ("ss -ltn",),
    ),
    (
        r"name or service not known|temporary failure in name resolution|no such host|ENOTFOUND|could not resolve",
        "a host name has no address",
        "See whether the name is right and the resolver answers",
        ("cat /etc/resolv.conf",),
    ),
    (
        r"connection timed out|i/o timeout|deadline exceeded|read timed out|ETIMEDOUT|timeout",
        "what is called does not answer in time",
        "See whether what is called is slow or out of reach",
        (),
    ),
    (
        r"certificate (?:has expired|verify failed|is not yet valid)|x509|CERTIFICATE_VERIFY_FAILED|PKIX",
        "a certificate is not accepted",
        "See when the certificate ends, whom it names and who signed it",
        (),
    ),
    (
        r"out ?of ?memory|OutOfMemoryError|cannot allocate memory|ENOMEM|\boom\b",
        "memory is used up",
        "See which process uses the memory, and its limit",
        ("free -m",),
    ),
    (
        r"permission denied|EACCES|EPERM|operation not permitted|forbidden|access denied",
        "a right is missing",
        "See which user the process has, and what was changed last",
        (),
    ),
    (
        r"no such file or directory|ENOENT|FileNotFound|ModuleNotFoundError|cannot find module|ClassNotFound|NoClassDefFound",
        "something that the program needs is not where it looks for it",
        "See whether the path is right and what the last deployment changed",
        (),
    ),
    (
        r"authentication failed|invalid (?:password|token|credentials)|unauthorized|\b401\b|token (?:has )?expired",
        "a login is refused",
        "See whether the credentials were changed or have expired",
        (),
    ),
    (
        r"address already in use|EADDRINUSE",
        "another process has the address",
        "See which process listens there",
        ("ss -ltnp",),
    ),
    (
        r"too many connections|connection pool|pool (?:is )?exhausted|remaining connection slots|QueuePool limit",
        "no connection is left",
        "See who holds the connections, and for how long",
        (),
    ),
    (
        r"deadlock|lock wait timeout|could not obtain lock|database is locked",
        "statements wait for locks of others",
        "See who holds the lock",
        (),
    ),
)


def _line_of(context: Context, ticket: Ticket) -> Citation | None:
    """Return the row of the table of shapes that is about a ticket."""
    shape = text_fact(ticket, "shape")
    title = f"Errors of {text_fact(ticket, 'source')} by shape"
    return matching_line(context, title, lambda text: bool(shape) and shape in text)


def _has_past(context: Context, source: str) -> bool:
    """Return whether the table of shapes knows the time before the onset."""
    title = f"Errors of {source} by shape"
    return (
        matching_line(context, title, lambda text: "the hour before it:" in text)
        is not None
    )


def _is_new(row: Citation | None) -> bool:
    return row is not None and re.match(r"since=\d+ before=0\b", row.quote) is not None


@playbook("logs", "error_storm", "new_error")
def log_errors(tickets: Tickets, context: Context) -> Note:
    """Errors of a shape are logged again and again, or for the first time."""
    ticket = max(tickets, key=lambda one: integer_fact(one, "count") or 0)
    example = text_fact(ticket, "example")
    source, count = text_fact(ticket, "source"), integer_fact(ticket, "count")
    row = _line_of(context, ticket)
    message = own_line(context, ticket, "message: ")
    known = next(
        (one for one in _MEANINGS if re.search(one[0], example, re.IGNORECASE)), None
    )
    means = known[1] if known else "an error that the log does not explain further"
    past = _has_past(context, source)
    began = " It was not logged in the hour before." if past and _is_new(row) else ""
    others = [one for one in tickets if one is not ticket]
    first = _earliest(context, source) if past else None
    return write_note(
        tickets,
        summary=f"{source} logs {count or 'many'} errors of one shape: {example[:200]}.{began}",
        cause=f"{means}: {example[:200]}",
        cited=[message, row],
        reason="the line is what the program wrote; what led to it is not in it",
        confidence="medium" if known else "low",
        findings=[
            finding("how often it was logged since the onset and before", row),
            finding("the shape that was logged first since the onset", first),
            *(
                finding(
                    f"another shape: {text_fact(one, 'shape')[:100]}",
                    _line_of(context, one),
                )
                for one in others[:3]
            ),
        ],
        actions=[
            action(known[2] if known else "Read the lines before the first of them"),
            *(
                [action("Look at this first, on the machine of the program", *known[3])]
                if known and known[3]
                else []
            ),
            action("See what was deployed or changed shortly before the first of them"),
        ],
        missing=["What has changed since it was not so."],
    )


_FROM = re.compile(r"since=[1-9]\d* before=0, from (\S+) ")


def _earliest(context: Context, source: str) -> Citation | None:
    """Return the row of the shape that began first of those that are new: it is nearest to the cause."""
    rows = [
        (found[1], Citation(evidence_id=evidence_id, quote=text[:300]))
        for evidence_id, text in titled_lines(context, f"Errors of {source} by shape")
        if (found := _FROM.match(text))
    ]
    return min(rows, key=lambda one: one[0])[1] if len(rows) > 1 else None


@playbook("logs", "log_rate")
def log_rate(tickets: Tickets, context: Context) -> Note:
    """A log is written far faster than usual: which shapes of errors there are."""
    ticket = tickets[0]
    source = text_fact(ticket, "source")
    message = own_line(context, ticket, "message: ")
    rows = [
        Citation(evidence_id=evidence_id, quote=text[:300])
        for evidence_id, text in titled_lines(context, f"Errors of {source} by shape")
        if text.startswith("since=")
    ]
    return write_note(
        tickets,
        summary=f"The log {source} is written far faster than usual.",
        cause=f"{source} writes far more lines than usual"
        + ("; the most frequent error is the first to look at" if rows else ""),
        cited=[message, *rows[:1]],
        reason="the rate is measured; what causes it is not in it",
        confidence="low",
        findings=[finding("the most frequent errors", *rows[:3])],
        actions=[
            action("See which lines are most frequent, and what was changed last"),
            action("See how long the space for the log lasts", "df -h"),
        ],
        missing=["Which lines are more frequent than usual, if they are no errors."],
    )


@playbook("logs", "heartbeat")
def log_heartbeat(tickets: Tickets, context: Context) -> Note:
    """A line that must come again does not: what was logged last."""
    ticket = tickets[0]
    source, beat = text_fact(ticket, "source"), text_fact(ticket, "heartbeat")
    message = own_line(context, ticket, "message: ")
    rows = [
        Citation(evidence_id=evidence_id, quote=text[:300])
        for evidence_id, text in titled_lines(context, f"Errors of {source} by shape")
        if text.startswith("since=")
    ]
    return write_note(
        tickets,
        summary=f"The heartbeat {beat} of {source} is missing; it was last seen at {text_fact(ticket, 'last_seen', 'an unknown time')}.",
        cause=f"what writes the heartbeat {beat} has stopped, hangs or does not get to it",
        cited=[message],
        reason="that the line is missing is measured; why is not",
        confidence="low",
        findings=[finding("errors of the same log", *rows[:3])],
        actions=[
            action("See whether the process runs, and what it waits for"),
            action("Read the last lines that it logged"),
        ],
        missing=["Whether the process runs."],
    )


PLAYBOOKS = (log_errors, log_rate, log_heartbeat)
