"""First aid for connections that run out, a server that is down, and numbers that run out."""

from __future__ import annotations

from midwatch.diagnosis_schema import Citation
from midwatch.model import Context, Ticket
from midwatch.playbooks.base import (
    Note,
    Tickets,
    action,
    bounded,
    evidence_lines,
    finding,
    integer_fact,
    line_starting,
    matching_line,
    own_line,
    playbook,
    sql_literal,
    text_fact,
    write_note,
)
from midwatch.units import format_count

_CONNECTIONS = "Connections by user"

# ------------------------------------------------------------------ connections


@playbook("mysql", "connections", "refused_logins")
def connections(tickets: Tickets, context: Context) -> Note:
    """One user or host holds most of the connections."""
    ticket = tickets[0]
    if ticket.key.invariant != "connections":
        return None
    user = text_fact(ticket, "holder_user")
    holders = [
        (number, line)
        for number, line in evidence_lines(context, _CONNECTIONS)
        if " of user " in line
    ]
    named = [one for one in holders if user and f" of user {user} at " in one[1]]
    cited = [
        Citation(evidence_id=n, quote=bounded(line)) for n, line in named or holders[:1]
    ][:3]
    if not cited:
        return _full(ticket, context)
    shown = cited[0].quote
    user = user or shown.partition(" of user ")[2].partition(" at ")[0]
    count = integer_fact(ticket, "holder_count")
    used = integer_fact(ticket, "used")
    share = f"{count} of the {used}" if count and used else "most"
    idle = integer_fact(ticket, "holder_idle")
    does = f", {idle} of these idle" if idle else ""
    most = bool(count and used and count * 2 >= used)
    return write_note(
        tickets,
        summary=f"user {user} holds {share} connections{does}.",
        cause=f"user {user} opened {share} connections{does}; it does not give them back, or its pools are larger than the server's limit",
        cited=[*cited, line_starting(context, _CONNECTIONS, "max_connections: ")],
        verdict="identified" if most else "suspected",
        confidence="high" if most else "medium",
        reason="the server counts its connections by user; why they are kept is not known",
        actions=[
            action(
                "See what they do, and from where",
                "SELECT host, command, COUNT(*), MAX(time) FROM information_schema.processlist\n"
                f"WHERE user = {sql_literal(user)} GROUP BY 1, 2 ORDER BY 3 DESC;",
            ),
            action(
                f"Make the pool of {user} smaller, or restart that application so that it gives them back",
                risk="what it is doing is interrupted",
            ),
            action(
                f"So that {user} cannot take all of them again, give it a limit",
                f"ALTER USER {sql_literal(user)}@'%' WITH MAX_USER_CONNECTIONS 50;",
                risk="connections above the limit are refused; the account's host may be another one than '%'",
            ),
        ],
        risks=["New clients are refused with error 1040, Too many connections."],
        missing=[f"Why {user} keeps so many."],
    )


def _full(ticket: Ticket, context: Context) -> Note:
    """Return the note on a server that is full for Midwatch too: who holds the connections is not visible."""
    cited = matching_line(
        context, "Server: version", lambda line: "Too many" in line
    ) or own_line(context, ticket, "message: ")
    return write_note(
        [ticket],
        summary="The server refuses connections: all are taken.",
        cause="all connections are taken; who holds them is not visible without one",
        cited=[cited],
        verdict="suspected",
        confidence="low",
        reason="the server refuses Midwatch's connection too",
        actions=[
            action(
                "Look as an administrator (one connection more is kept for it), or through MariaDB's extra_port",
                "SELECT user, host, command, COUNT(*) FROM information_schema.processlist GROUP BY 1, 2, 3 ORDER BY 4 DESC;",
            )
        ],
        missing=[
            "Who holds the connections: extra_port in the settings lets Midwatch see it."
        ],
    )


# ------------------------------------------------------------------ the server, numbers, tables


@playbook("mysql", "reachable", "log_errors")
def server_down(tickets: Tickets, context: Context) -> Note:
    """The server does not answer, or its log has a crash: what the log says last."""
    ticket = tickets[0]
    lines = [
        (number, line)
        for number, line in evidence_lines(context, "error log")
        if "[ERROR]" in line
        or "got signal" in line
        or "crash recovery" in line
        or "Shutdown complete" in line
    ]
    refused = matching_line(
        context,
        "Server: version",
        lambda line: line.startswith("a connection attempt failed"),
    )
    last = (
        Citation(evidence_id=lines[-1][0], quote=bounded(lines[-1][1]))
        if lines
        else None
    )
    own = own_line(context, ticket, "line: ") or own_line(context, ticket, "message: ")
    down = ticket.key.invariant == "reachable"
    said = (
        last.quote if last else text_fact(ticket, "line") or text_fact(ticket, "error")
    )
    return write_note(
        tickets,
        summary=(
            "The server does not answer"
            if down
            else "The error log has a crash or damage"
        )
        + (f"; its log says last: {said[:200]}" if last else f": {said[:200]}"),
        cause=said[:300] or ticket.message,
        cited=[last, refused or own],
        verdict="suspected",
        confidence="medium" if last else "low",
        reason=(
            "the log is the server's own; what led to it is not known"
            if last
            else "only the failed connection is known"
        ),
        findings=[finding("what a connection meets", refused)],
        actions=[
            action(
                "See whether it runs, and what it wrote last",
                "systemctl status mariadb mysql",
                "journalctl -u mariadb -u mysql -n 50 --no-pager",
            )
        ],
        missing=[
            "Why it ended: the kernel's log names the out-of-memory killer (journalctl -k)."
        ],
    )


@playbook("mysql", "auto_increment")
def numbers_run_out(tickets: Tickets, context: Context) -> Note:
    """The numbers of a column are nearly used up."""
    ticket = tickets[0]
    table = f"{text_fact(ticket, 'database')}.{text_fact(ticket, 'table')}"
    column, type_ = text_fact(ticket, "column"), text_fact(ticket, "type")
    highest, following = text_fact(ticket, "highest"), text_fact(ticket, "next")
    over = f"{following}{highest}".isdecimal() and int(following) > int(highest)
    return write_note(
        tickets,
        summary=f"The numbers of {table}.{column} ({type_}) are {'used up: no row can be added' if over else 'nearly used up'}.",
        cause=f"the next number of {table}.{column} is {following}; the type {type_} holds up to {highest}",
        cited=[own_line(context, ticket, "message: ")],
        verdict="identified",
        confidence="high",
        reason="the server's own counter and the column's type say so",
        actions=[
            (
                action(
                    "Widen the column, before its end if that can still be, at a quiet time or with gh-ost or pt-online-schema-change; "
                    "columns that refer to it need the same type",
                    f"ALTER TABLE {table} MODIFY {column} {wider} NOT NULL AUTO_INCREMENT;",
                    risk="it copies the table: writes wait, and replicas lag behind",
                    undo=False,
                )
                if (wider := _wider(type_.lower()))
                else action(
                    "No type is wider: find the row whose number is far above the others, and who wrote it",
                    f"SELECT {column} FROM {table} ORDER BY {column} DESC LIMIT 20;",
                )
            )
        ],
        risks=["At the end every INSERT fails with error 1062 or 1467."],
        missing=[
            "How fast it grows: rows that were rolled back or ignored use numbers too."
        ],
    )


def _wider(type_: str) -> str:
    """Return the widest type that holds what this one holds; empty without one. AUTO_INCREMENT takes integers only."""
    if "unsigned" in type_:
        return "" if "bigint" in type_ else "BIGINT UNSIGNED"
    return "BIGINT UNSIGNED" if "bigint" in type_ else "BIGINT"


@playbook("mysql", "crashed_tables")
def crashed(tickets: Tickets, context: Context) -> Note:
    """Tables that the server cannot open."""
    names = [
        f"{text_fact(one, 'database')}.{text_fact(one, 'table')}" for one in tickets
    ]
    return write_note(
        tickets,
        summary=f"{format_count(len(names), 'table')} cannot be opened: {', '.join(names[:5])}.",
        cause=text_fact(tickets[0], "problem") or tickets[0].message,
        cited=[own_line(context, one, "message: ") for one in tickets[:3]],
        verdict="identified",
        confidence="medium",
        reason="the server names the table and its error; what damaged it is not known",
        actions=[
            action(
                "Copy the files of the table away, then check it",
                f"CHECK TABLE {names[0]} EXTENDED;",
            ),
            action(
                "Repair a MyISAM or Aria table; restore one of InnoDB from a backup",
                f"REPAIR TABLE {names[0]};",
                risk="rows that cannot be read are lost; the table is locked meanwhile",
                undo=False,
            ),
        ],
        missing=[
            "What damaged it: a kill, a full disk or the disk itself. See the log."
        ],
    )
