"""First aid for lock queues, open transactions, long statements and deadlocks."""

from __future__ import annotations

import re
from collections.abc import Sequence

from midwatch.diagnosis_schema import Action, Citation
from midwatch.model import Context, Ticket
from midwatch.playbooks.base import (
    Note,
    Tickets,
    action,
    bounded,
    client_of,
    find,
    finding,
    integer_fact,
    log_lines,
    playbook,
    write_note,
)
from midwatch.playbooks.postgres.lock_tree import (
    PREPARED,
    LockTree,
    Waiter,
    read_tree,
)
from midwatch.playbooks.postgres.session_actions import (
    CLIENT_WRITE,
    Session,
    cancel,
    end,
    finish_prepared,
    idle_limit,
    inspect,
    of_ticket,
    prepared_in_front,
    sessions,
    ticket_name,
)
from midwatch.playbooks.postgres.vacuum_holders import held_back_by
from midwatch.playbooks.waiting_sessions import missing, numbers, once
from midwatch.units import format_count

SYNC_REP = "IPC/SyncRep"
"""The wait event of a commit that its synchronous standby has not confirmed."""


# ------------------------------------------------------------------ lock queues


@playbook(
    "postgres",
    "blocked_sessions",
    "connections",
    "idle_in_transaction",
    "long_queries",
    "transaction_id_age",
    "dead_tuples",
)
def lock_pile_up(tickets: Tickets, context: Context) -> Note:
    """Sessions wait for one that does not wait itself; what else is known of that one belongs to it."""
    ticket = tickets[0]
    if ticket.key.invariant != "blocked_sessions":
        return None
    tree = read_tree(context)
    if tree.first is None:
        return None
    told = integer_fact(ticket, "blocker_pid") or PREPARED
    roots = tree.roots_of_ticket(numbers(ticket, "blocked_pids"), told)
    if not roots:
        return _moved_on(ticket, tree)
    return _queue(ticket, roots, tree, tickets, context)


def _moved_on(ticket: Ticket, tree: LockTree) -> Note:
    """Return the note on a queue that the evidence does not show any more: nothing is to be ended."""
    return write_note(
        [ticket],
        summary="The sessions that waited for a lock do not wait any more.",
        cause=f"the queue of the ticket ({ticket_name(ticket, 'blocker_')}) is gone now",
        cited=[tree.first],
        confidence="low",
        reason="the lock waits of this moment are not those of the ticket",
        actions=[
            action(
                "See whether it builds up again, and behind whom",
                "SELECT pid, pg_blocking_pids(pid), query FROM pg_stat_activity\n"
                "WHERE wait_event_type = 'Lock';",
            )
        ],
    )


def _queue(
    ticket: Ticket,
    roots: Sequence[int],
    tree: LockTree,
    tickets: Tickets,
    context: Context,
) -> Note:
    waiting = set[int]().union(*map(tree.behind, roots))
    known = sessions(context)
    holders = [known[pid] for pid in roots if pid in known]
    gate = tree.gate(waiting)
    named = {
        pid: known[pid].name if pid in known else _nameless(pid, context)
        for pid in roots
    }
    prepared = prepared_in_front(context) if PREPARED in roots else []
    tie = len(roots) > 1 or len(prepared) > 1 or tree.cut
    count = format_count(len(waiting), "session")
    advisory = ticket.key.component.endswith(" advisory locks")
    return write_note(
        _explained(ticket, roots, gate, len(waiting), tickets, context),
        summary=f"{' and '.join(named.values())}{' and others' if tree.cut else ''} {_holds(roots)} {'an advisory' if advisory else 'a'} lock that {count} "
        f"{'waits' if len(waiting) == 1 else 'wait'} for."
        + (f" Most wait only behind pid {gate.id} ({gate.statement})." if gate else "")
        + "".join(
            f" pid {one.id} itself waits until a synchronous standby confirms its commit."
            for one in holders
            if one.wait == SYNC_REP
        ),
        cause="; ".join(
            f"{name} {_does(known[pid]) if pid in known else 'is not finished'}"
            for pid, name in named.items()
        )
        + _gated(gate, tree)
        + ("; an application may hold an advisory lock on purpose" if advisory else ""),
        cited=[
            *(quoted for quoted, _ in prepared),
            *tree.cited(roots, known),
            gate.citation if gate else None,
        ],
        verdict="suspected" if advisory else "identified",
        confidence="medium" if tie or advisory else "high",
        reason=(
            "the server names all of them: the queue moves when the last one ends"
            if tie
            else "the server itself names it as the root of the queue"
        ),
        findings=tree.waits(waiting, "pid"),
        actions=[
            *_cancel_gate(gate, tree),
            *(
                [_all_holders()]
                if tree.cut
                else _about(roots, holders, advisory, context)
            ),
        ],
        risks=["New sessions queue up behind it until connections run out."],
        missing=missing(holders),
    )


def _gated(gate: Waiter | None, tree: LockTree) -> str:
    if gate is None:
        return ""
    return (
        f"; {len(tree.freed_by(gate.id))} of them wait only because pid {gate.id} "
        f"({gate.statement}) waits in front of them"
    )


def _holds(roots: Sequence[int]) -> str:
    return "holds" if len(roots) == 1 else "together hold"


def _nameless(pid: int, context: Context) -> str:
    """Return the name of who holds a lock without a session: the prepared transactions that it can be."""
    if pid != PREPARED:
        return f"pid {pid}"
    named = [
        f"{row.get('gid')} (owner {row.get('owner')}, prepared {row.get('prepared')})"
        for _, row in prepared_in_front(context)
    ]
    return f"the prepared transaction {' or '.join(named)}".strip()


def _does(session: Session) -> str:
    if session.idle:
        does = "keeps a transaction open while it does nothing; what it ran last"
    elif session.wait == SYNC_REP:
        does = "waits until a synchronous standby confirms its commit; it ran"
    elif session.wait == CLIENT_WRITE:
        does = "waits until its client takes the result; it runs"
    elif session.process:
        does = f"is a process of the server ({session.process}); it runs"
    else:
        does = f"is {session.state}; its statement"
    return f"{does}: {session.query[:200] or 'unknown'}"


def _cancel_gate(gate: Waiter | None, tree: LockTree) -> list[Action]:
    if gate is None:
        return []
    freed = format_count(len(tree.freed_by(gate.id)), "session")
    return cancel(
        gate,
        f"First cancel the waiting {gate.statement} (pid {gate.id}): it has not got its lock yet, "
        f"and {freed} behind it can go on; run it again later with a lock_timeout",
    )


def _about(
    roots: Sequence[int], holders: Sequence[Session], advisory: bool, context: Context
) -> list[Action]:
    """Return what to do about those who hold the lock."""
    done = [inspect(*pids)] if (pids := [pid for pid in roots if pid]) else []
    if advisory:
        return [
            *done,
            action(
                "Ask whether the application holds this advisory lock on purpose, as the leader of several "
                "processes does; then leave it alone"
            ),
        ]
    if PREPARED in roots:
        for _, row in prepared_in_front(context):
            done += finish_prepared(row)
    together = (
        " (all of them hold the lock: only together it helps)" if len(roots) > 1 else ""
    )
    for session in holders:
        done += _release(session, together)
    return once(done)


def _all_holders() -> Action:
    return action(
        "See all that hold the lock: they are too many to be shown, and to end some of them does not help",
        "SELECT pid, state, xact_start, usename, application_name, client_addr, query FROM pg_stat_activity\n"
        "WHERE pid IN (SELECT unnest(pg_blocking_pids(pid)) FROM pg_stat_activity)\n"
        "  AND cardinality(pg_blocking_pids(pid)) = 0 ORDER BY xact_start;",
    )


def _release(session: Session, together: str) -> list[Action]:
    """Return what to do about one session that holds a lock and does not wait for one."""
    if why := session.spared:
        return [
            action(f"Let {session.name} finish: {why}"),
            *([_progress()] if session.maintenance or session.backup else []),
        ]
    if session.wait == SYNC_REP:
        return _synchronous()
    if session.idle or session.wait == CLIENT_WRITE:
        what = f"If its owner agrees or cannot be found, end {session.name}{together}"
        return [*end(session, what), *idle_limit(session)]
    return cancel(
        session,
        f"If its work can be repeated, cancel the statement of {session.name}{together}",
    )


def _progress() -> Action:
    return action(
        "See how far it is",
        "SELECT pid, phase, heap_blks_scanned, heap_blks_total FROM pg_stat_progress_vacuum;",
        "SELECT pid, phase, blocks_done, blocks_total FROM pg_stat_progress_create_index;",
        "SELECT pid, relid, command, tuples_processed FROM pg_stat_progress_copy;",
        "SELECT pid, phase, backup_streamed, backup_total FROM pg_stat_progress_basebackup;",
    )


def _synchronous() -> list[Action]:
    return [
        action(
            "Bring the synchronous standby back: every commit waits for it",
            "SHOW synchronous_standby_names;",
            "SELECT application_name, client_addr, state, sync_state FROM pg_stat_replication;",
        ),
        action(
            "If it cannot come back soon, let commits go on without it",
            "ALTER SYSTEM SET synchronous_standby_names = '';",
            "SELECT pg_reload_conf();",
            risk="what is committed from then on is on this server only",
        ),
    ]


def _explained(
    ticket: Ticket,
    roots: Sequence[int],
    gate: Waiter | None,
    waiting: int,
    tickets: Tickets,
    context: Context,
) -> list[Ticket]:
    """Return the tickets that are of the same sessions, or of what piles up behind them."""
    pids = {*roots, *([gate.id] if gate else [])} - {PREPARED}

    def same(one: Ticket) -> bool:
        invariant = one.key.invariant
        if invariant == "blocked_sessions":
            return one is ticket or (
                (integer_fact(one, "blocker_pid") or PREPARED) in roots
                and one.facts.get("blocker_state") == ticket.facts.get("blocker_state")
            )
        if invariant == "connections":
            return waiting * 2 >= (integer_fact(one, "used") or waiting * 3)
        if invariant in ("transaction_id_age", "dead_tuples"):
            return held_back_by(one, context) in pids
        return integer_fact(one, "pid") in pids

    return [one for one in tickets if same(one)]


# ------------------------------------------------------------------ open transactions, long statements


@playbook("postgres", "idle_in_transaction", "transaction_id_age", "dead_tuples")
def idle_in_transaction(tickets: Tickets, context: Context) -> Note:
    """An open, idle transaction that no session waits for yet; what it keeps from being vacuumed belongs to it."""
    ticket = tickets[0]
    session = of_ticket(ticket, context)
    if ticket.key.invariant != "idle_in_transaction" or session is None:
        return None
    if not session.idle:
        return None
    more = (integer_fact(ticket, "count") or 1) - 1
    spared = session.spared
    return write_note(
        [
            one
            for one in tickets
            if one is ticket
            or (
                one.key.invariant != "idle_in_transaction"
                and held_back_by(one, context) == session.id
            )
        ],
        summary=f"{session.name} left a transaction open and does nothing in it"
        + (f"; {more} more like it in database {session.database}." if more else "."),
        cause=f"{session.name} does not end its transaction; what it ran last: "
        f"{session.query[:200] or 'unknown'}",
        cited=[session.citation],
        verdict="identified",
        reason="the session's state is known; why its client stopped is not",
        actions=[
            inspect(session.id),
            *(
                [action(f"Let it finish: {spared}")]
                if spared
                else end(
                    session, "If its owner agrees or cannot be found, end the session"
                )
            ),
            *idle_limit(session),
        ],
        risks=["It keeps its locks, and vacuum cannot remove rows it may still see."],
        missing=["What its client waits for."],
    )


@playbook("postgres", "long_queries")
def long_query(tickets: Tickets, context: Context) -> Note:
    """A statement that has been running for too long."""
    ticket = tickets[0]
    session = of_ticket(ticket, context)
    if session is None or session.state.startswith("idle"):
        return None
    return write_note(
        [ticket],
        summary=f"{session.name} has been running one statement for too long.",
        cause=f"{session.name} {_waits_or_runs(session)}: {session.query[:200] or 'unknown'}",
        cited=[session.citation],
        verdict="identified",
        reason="the statement is known; whether it is expected to take so long is not",
        actions=[inspect(session.id), *_about_long(session)],
        risks=["It takes CPU and disk from others and holds vacuum back."],
        missing=["Its plan (EXPLAIN) and how long it usually takes."],
    )


def _waits_or_runs(session: Session) -> str:
    if session.wait == SYNC_REP:
        return "waits until a synchronous standby confirms its commit"
    if session.wait == CLIENT_WRITE:
        return "waits until its client takes the result"
    return "runs"


def _about_long(session: Session) -> list[Action]:
    if why := session.spared:
        return [action(f"Let it finish: {why}"), _progress()]
    if session.wait == SYNC_REP:
        return _synchronous()
    if session.wait == CLIENT_WRITE:
        return end(session, "If its client hangs, end the session")
    return cancel(
        session,
        "If its owner does not need it, cancel the statement; the session stays",
    )


# ------------------------------------------------------------------ deadlocks


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
    losers = {name: one for one in reversed(lines) if (name := client_of(one.quote))}
    if losers:
        cause += f"; aborted: {', '.join(list(losers)[:_MOST_STATEMENTS])}"
    return write_note(
        tickets,
        summary="Transactions deadlocked; the server aborted one of each pair.",
        cause=cause,
        cited=[
            *(list(losers.values())[:_MOST_STATEMENTS] or [*lines[:1], counter][:1]),
            *(quoted for _, quoted in statements),
        ],
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


_STATEMENT = re.compile(r"^\s+Process (\d+): (\S.*)$")
_OF_PROCESS = re.compile(r"[^\[]{0,60}\[(\d+)\] ")
_MOST_STATEMENTS = 4


def deadlocked_statements(context: Context) -> list[tuple[str, Citation]]:
    """Return the distinct statements in the log's deadlock reports with their clients, each with a citation."""
    found: dict[str, tuple[str, Citation]] = {}
    for evidence in context.evidence:
        clients: dict[str, str] = {}
        lines = evidence.text.splitlines() if evidence.available else []
        for line in lines:
            process, client = _OF_PROCESS.match(line), client_of(line)
            if process and client:
                clients.setdefault(process[1], client)
        for line in lines:
            match = _STATEMENT.match(line[:2000])
            if match and match[2] not in found and len(found) < _MOST_STATEMENTS:
                quoted = Citation(evidence_id=evidence.id, quote=bounded(line.strip()))
                client = clients.get(match[1], "")
                said = bounded(match[2], 120) + (f" ({client})" if client else "")
                found[match[2]] = said, quoted
    return list(found.values())
