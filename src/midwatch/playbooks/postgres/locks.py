"""First aid for lock queues, open transactions, long statements and deadlocks."""

from __future__ import annotations

import re

from midwatch.diagnosis_schema import Action, Citation
from midwatch.model import Context, Ticket
from midwatch.playbooks.base import (
    Note,
    Tickets,
    action,
    bounded,
    find,
    finding,
    integer_fact,
    log_lines,
    playbook,
    session_line,
    text_fact,
    write_note,
)

ROLLBACK = "its transaction is rolled back and its client sees an error"


def _inspect(pid: int) -> Action:
    return action(
        "See first whether it still does so, and ask its owner",
        "SELECT pid, state, xact_start, state_change, application_name, query "
        f"FROM pg_stat_activity WHERE pid = {pid};",
    )


def _terminate(pid: int, what: str) -> Action:
    return action(
        what,
        f"SELECT pg_terminate_backend({pid});",
        risk=f"{ROLLBACK}; what it has not committed is lost",
        undo=False,
    )


def _cancel(pid: int) -> Action:
    return action(
        "Cancel its statement",
        f"SELECT pg_cancel_backend({pid});",
        risk="the statement's work is lost and its client sees an error; the session stays",
        undo=False,
    )


def _idle_limit() -> Action:
    return action(
        "Let the server end such transactions by itself from now on",
        "ALTER SYSTEM SET idle_in_transaction_session_timeout = '60s';",
        "SELECT pg_reload_conf();",
        risk="clients that pause inside a transaction for longer are disconnected",
    )


def _named(ticket: Ticket, prefix: str = "") -> str:
    user = text_fact(ticket, f"{prefix}user", "unknown")
    application = text_fact(ticket, f"{prefix}application")
    return f"user {user}" + (f", application {application}" if application else "")


@playbook("postgres", "blocked_sessions", "idle_in_transaction", "long_queries")
def lock_pile_up(tickets: Tickets, context: Context) -> Note:
    """Sessions wait for one that does not wait itself; what else is known of that one belongs to it."""
    if tickets[0].key.invariant != "blocked_sessions":
        return None
    pid = integer_fact(tickets[0], "blocker_pid")
    if pid is None:
        return _prepared(tickets[0], context)
    return _behind(tickets[0], pid, tickets, context)


def _behind(ticket: Ticket, pid: int, tickets: Tickets, context: Context) -> Note:
    idle = text_fact(ticket, "blocker_state").startswith("idle in transaction")
    root = find(context, "root: blocks", f"pid {pid}:") or session_line(context, pid)
    count = integer_fact(ticket, "blocked_count") or 0
    who = f"pid {pid} ({_named(ticket, 'blocker_')})"
    if idle:
        does = "keeps a transaction open while it does nothing"
    else:
        does = f"is {text_fact(ticket, 'blocker_state', 'in an unknown state')}"
    return write_note(
        [
            one
            for one in tickets
            if pid in (integer_fact(one, "blocker_pid"), integer_fact(one, "pid"))
        ],
        summary=f"{who} {does} and holds a lock that {count} session"
        f"{' waits' if count == 1 else 's wait'} for.",
        cause=f"{who} {does}; what it ran last: {text_fact(ticket, 'blocker_query', 'unknown')}",
        cited=[root],
        verdict="identified",
        confidence="high",
        reason="the server itself names it as the root of the queue",
        findings=[
            finding(f"pid {one} waits for it", find(context, f"pid {one} has waited"))
            for one in _pids(ticket)[:5]
        ],
        actions=_actions(pid, idle),
        risks=["New sessions queue up behind it until connections run out."],
        missing=["Why the client does not end its transaction."] if idle else [],
    )


def _actions(pid: int, idle: bool) -> list[Action]:
    if idle:  # there is no statement that could be cancelled
        end = _terminate(pid, "End the session; the queue then moves on")
        return [_inspect(pid), end, _idle_limit()]
    return [
        _inspect(pid),
        _cancel(pid),
        _terminate(pid, "If that is not enough, end it"),
    ]


def _prepared(ticket: Ticket, context: Context) -> Note:
    root = find(context, "root: a prepared transaction")
    return write_note(
        [ticket],
        summary="A prepared transaction that was not finished holds a lock that others wait for.",
        cause="a transaction was prepared (two-phase commit) and neither committed nor "
        "rolled back",
        cited=[root],
        verdict="identified",
        confidence="high",
        reason="the server reports a blocker without a process",
        actions=[
            action(
                "Find it, and ask its transaction manager what became of it",
                "SELECT gid, prepared, owner, database FROM pg_prepared_xacts ORDER BY prepared;",
            ),
            action(
                "Then commit it or roll it back",
                "ROLLBACK PREPARED 'gid';",
                risk="the transaction may have been committed elsewhere",
                undo=False,
            ),
        ],
        missing=["Which prepared transaction it is, if there are several."],
    )


def _pids(ticket: Ticket) -> list[int]:
    parts = text_fact(ticket, "blocked_pids").split(",")
    return [int(part) for part in parts if part.strip().isdigit()]


@playbook("postgres", "idle_in_transaction")
def idle_in_transaction(tickets: Tickets, context: Context) -> Note:
    """An open, idle transaction that no session waits for yet."""
    if (found := _with_pid(tickets)) is None:
        return None
    ticket, pid = found
    who = f"pid {pid} ({_named(ticket)})"
    return write_note(
        [ticket],
        summary=f"{who} left a transaction open and does nothing in it.",
        cause=f"{who} does not end its transaction; what it ran last: "
        f"{text_fact(ticket, 'query', 'unknown')}",
        cited=[session_line(context, pid)],
        verdict="identified",
        reason="the session's state is known; why its client stopped is not",
        actions=[
            _inspect(pid),
            _terminate(pid, "End the session if its owner agrees"),
            _idle_limit(),
        ],
        risks=["It keeps its locks, and vacuum cannot remove rows it may still see."],
        missing=["What its client waits for."],
    )


@playbook("postgres", "long_queries")
def long_query(tickets: Tickets, context: Context) -> Note:
    """A statement that has been running for too long."""
    if (found := _with_pid(tickets)) is None:
        return None
    ticket, pid = found
    who = f"pid {pid} ({_named(ticket)})"
    return write_note(
        [ticket],
        summary=f"{who} has been running one statement for too long.",
        cause=f"{who} runs: {text_fact(ticket, 'query', 'unknown')}",
        cited=[session_line(context, pid)],
        verdict="identified",
        reason="the statement is known; whether it is expected to take so long is not",
        actions=[
            _inspect(pid),
            _cancel(pid),
            _terminate(pid, "If it does not react, end its session"),
            action(
                "Limit the statements of its role from now on",
                "ALTER ROLE the_role SET statement_timeout = '5min';",
                risk="longer statements of that role fail",
            ),
        ],
        risks=["It takes CPU and disk from others and holds vacuum back."],
        missing=["Its plan (EXPLAIN) and how long it usually takes."],
    )


def _with_pid(tickets: Tickets) -> tuple[Ticket, int] | None:
    """Return the first ticket that names a session, and the session's pid."""
    pids = ((ticket, integer_fact(ticket, "pid")) for ticket in tickets)
    return next(((ticket, pid) for ticket, pid in pids if pid is not None), None)


@playbook("postgres", "deadlocks")
def deadlocks(tickets: Tickets, context: Context) -> Note:
    """Transactions that took the same locks in a different order."""
    lines = log_lines(context, "deadlock detected")
    counter = find(context, f"database={tickets[0].key.component} ", "deadlocks=")
    if not (lines or counter):
        return None
    parties = find(context, "waits for", "blocked by process")
    statements = deadlocked_statements(context)
    cause = "two or more transactions take the same locks in a different order"
    if statements:
        cause += ": " + " / ".join(text for text, _ in statements)
    return write_note(
        tickets,
        summary="Transactions deadlocked; the server aborted one of each pair.",
        cause=cause,
        cited=[lines[0] if lines else counter, *(quoted for _, quoted in statements)],
        reason=(
            "the log names the processes and their statements"
            if parties
            else "only the counter is known, not the statements"
        ),
        confidence="high" if parties else "low",
        verdict="identified" if parties else "suspected",
        findings=[
            finding("who waited for whom", parties),
            finding("what the server counts", counter),
        ],
        actions=[
            action(
                "Read the statements in the log's DETAIL lines and let every transaction "
                "take its locks in the same order"
            ),
            action(
                "Make the clients repeat a transaction that fails with SQLSTATE 40P01",
                risk="none where the transaction can be repeated as a whole",
            ),
        ],
        missing=[] if parties else ["The log lines of the deadlock."],
    )


_STATEMENT = re.compile(r"^\s+Process \d+: (\S.*)$")
_MOST_STATEMENTS = 4


def deadlocked_statements(context: Context) -> list[tuple[str, Citation]]:
    """Return the distinct statements in the log's deadlock reports, each with a citation."""
    found: dict[str, Citation] = {}
    for evidence in context.evidence:
        for line in evidence.text.splitlines() if evidence.available else ():
            match = _STATEMENT.match(line[:2000])
            if match and match[1] not in found and len(found) < _MOST_STATEMENTS:
                quoted = Citation(evidence_id=evidence.id, quote=bounded(line.strip()))
                found[bounded(match[1], 120)] = quoted
    return list(found.items())
