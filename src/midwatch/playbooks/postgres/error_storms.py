"""First aid for storms of errors in the log: what the message means, and who gets it."""

from __future__ import annotations

import re

from midwatch.diagnosis_schema import Citation
from midwatch.model import Context
from midwatch.playbooks.base import (
    Note,
    Tickets,
    action,
    find,
    finding,
    integer_fact,
    log_lines,
    matching_line,
    playbook,
    text_fact,
    write_note,
)

# A message, what it means, what to do, and the title and word of evidence that shows more of it.
_MEANINGS = (
    (
        "nextval: reached m(?:ax|in)imum value of sequence",
        "a sequence is at its end, so that no new row gets a number",
        "See the type of the column and the limit of the sequence; an integer column has to become bigint, "
        "which rewrites the table under a lock",
        ("Sequences near", "EXHAUSTED"),
    ),
    (
        "(?:relation|column|function|type|schema) .*does not exist|column .* of relation .* does not exist",
        "statements name something that does not exist: program and schema are of different versions",
        "See which of the two was deployed last, and bring the other one to the same version",
        ("Recent changes", "changed="),
    ),
    (
        "permission denied for",
        "a role lacks a privilege that its program needs",
        "See what was revoked or created without a GRANT, and grant it to that role",
        ("Recent changes", "changed="),
    ),
    (
        "(?:password|.{0,20}) ?authentication failed for user|no pg_hba\\.conf entry|pg_hba\\.conf rejects"
        '|role ".*" (?:is not permitted|does not exist)',
        "logins of a role are refused",
        "See whether its password has expired or was changed, and which line of pg_hba.conf counts",
        ("Settings and limits", "EXPIRED"),
    ),
    (
        "too many connections for|sorry, too many clients|remaining connection slots",
        "a limit of connections is reached",
        "See which application holds the connections",
        ("Connections by", "sessions="),
    ),
    (
        "canceling statement due to (?:statement|lock) timeout",
        "statements take longer than their timeout",
        "See what they wait for, and whether a lock or a plan has changed",
        ("Sessions that are active", "waits on"),
    ),
    (
        "current transaction is aborted",
        "a program goes on after an error in the same transaction: the first error is the cause",
        "Read the first error of such a session in the log",
        ("server's log", "ERROR:"),
    ),
    (
        "duplicate key value violates unique constraint",
        "rows are inserted twice, or a sequence is behind its table",
        "Compare the highest number of the column with the sequence, and see who inserts",
        ("Sequences near", "sequence"),
    ),
)


@playbook("postgres", "log_error_storm")
def error_storm(tickets: Tickets, context: Context) -> Note:
    """Errors of one shape are far more frequent than usual: what the message means, and who gets it."""
    ticket = tickets[0]
    message = re.split(
        r"(?:ERROR|FATAL|PANIC): +", text_fact(ticket, "line"), maxsplit=1
    )[-1]
    lines = log_lines(context, re.escape(message[:60]), "ERROR|FATAL|PANIC")
    known = next((one for one in _MEANINGS if re.match(one[0], message)), None)
    who = ", ".join(
        f"{name} {value}"
        for name in ("role", "application", "database")
        if (value := text_fact(ticket, name))
    )
    more = _more(context, message, *known[3]) if known else None
    means = known[1] if known else "statements fail with an error that is not usual"
    return write_note(
        [ticket],
        summary=f"{integer_fact(ticket, 'count') or 'Many'} errors of one shape: {message[:150]}"
        + (f" ({who})." if who else "."),
        cause=f"{means}: {message[:150]}"
        + (f" ({who})" if who else "")
        + (f"; {more.quote[:150]}" if more else ""),
        cited=[lines[0] if lines else find(context, message[:60]), more],
        reason="the message is the server's; what led to it is not in it",
        confidence="medium" if more else "low",
        findings=[finding("the latest of them", *lines[:1])],
        actions=[
            action(
                known[2]
                if known
                else "Read the statement in the log's STATEMENT line, and ask who sends it"
            ),
            action(
                "See who sends such statements now",
                "SELECT pid, usename, application_name, client_addr, state, query\n"
                "FROM pg_stat_activity WHERE backend_type = 'client backend';",
            ),
        ],
        missing=["What has changed since it was not so."],
    )


_NAMED = re.compile(r'"([^"]+)"|\b(?:table|relation|sequence|view|schema) (\w+)')
_OF_OTHERS = ("Sequences near", "Settings and limits")
"""Evidence whose lines are each about one sequence or role: one that the message does not name has no part in it."""


def _more(context: Context, message: str, title: str, word: str) -> Citation | None:
    names = {one or other for one, other in _NAMED.findall(message)}
    about = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)")

    def own(line: str) -> bool:
        return word in line and bool(names) and bool(about.search(line))

    found = matching_line(context, title, own)
    if found or title in _OF_OTHERS:
        return found
    return matching_line(context, title, lambda line: word in line)
