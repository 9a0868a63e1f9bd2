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
    evidence_lines,
    finding,
    integer_fact,
    playbook,
    text_fact,
    write_note,
)
from midwatch.playbooks.mysql.sessions import (
    LockTree,
    Session,
    Waiter,
    cancel,
    end,
    inspect,
    read_tree,
    sessions,
)
from midwatch.playbooks.waiting_sessions import missing, numbers, once
from midwatch.units import format_count

# ------------------------------------------------------------------ lock queues


@playbook(
    "mysql",
    "blocked_sessions",
    "connections",
    "idle_in_transaction",
    "long_transactions",
    "history_length",
    "long_queries",
)
def lock_pile_up(tickets: Tickets, context: Context) -> Note:
    """Sessions wait for one that does not wait itself; what else is known of that one belongs to it."""
    ticket = tickets[0]
    if ticket.key.invariant != "blocked_sessions":
        return None
    tree = read_tree(context)
    if tree.first is None:
        return None
    told = integer_fact(ticket, "blocker_id") or 0
    roots = tree.roots_of_ticket(numbers(ticket, "blocked_ids"), told)
    if roots:
        return _queue(ticket, roots, tree, tickets, context)
    return _hidden(ticket, tree) if tree.hidden else _moved_on(ticket, tree)


def _moved_on(ticket: Ticket, tree: LockTree) -> Note:
    """Return the note on a queue that the evidence does not show any more: nothing is to be ended."""
    holder = text_fact(ticket, "blocker_user", "unknown")
    return write_note(
        [ticket],
        summary="The lock queue has moved on: the sessions that waited do not wait any more.",
        cause=f"a transaction of user {holder} held a lock for a while; it has ended",
        cited=[tree.first],
        verdict="suspected",
        confidence="low",
        reason="the evidence of this moment does not show the queue",
        actions=[
            action("Ask the owner of that user what the transaction did for so long")
        ],
        missing=["Why the transaction took so long."],
    )


def _hidden(ticket: Ticket, tree: LockTree) -> Note:
    """Return the note on a queue whose holder has no session, or is not shown."""
    [(what, cited), *_] = tree.hidden.items()
    prepared = "XA" in what
    return write_note(
        [ticket],
        summary=f"{what[:1].upper()}{what[1:]} holds a lock that others wait for.",
        cause=f"{what} holds the lock",
        cited=[cited],
        verdict="suspected",
        reason="the server names the waiting sessions, and no session that can hold the lock",
        actions=[
            (
                action(
                    "List the prepared XA transactions, and ask their transaction manager what it decided",
                    "XA RECOVER FORMAT='SQL';",
                )
                if prepared
                else action(
                    "Let the server show who holds metadata locks, then look again",
                    "INSTALL SONAME 'metadata_lock_info';",
                    "SELECT * FROM information_schema.metadata_lock_info;",
                    risk="none: it only shows; with performance_schema = ON its table metadata_locks does the same",
                )
            )
        ],
        missing=["Who holds the lock."],
    )


def _queue(
    ticket: Ticket,
    roots: Sequence[int],
    tree: LockTree,
    tickets: Tickets,
    context: Context,
) -> Note:
    known = sessions(context)
    holders = [known[one] for one in roots if one in known]
    waiting = {one for root in roots for one in tree.behind(root)}
    gate = tree.gate(waiting)
    count = format_count(len(waiting), "session")
    names = [known[one].name if one in known else f"connection {one}" for one in roots]
    guess = not tree.certain
    several = guess and len(roots) > 1
    holds = (
        "may each hold" if several else "together hold" if len(roots) > 1 else "holds"
    )
    return write_note(
        _explained(ticket, roots, gate, waiting, tickets),
        summary=f"{' and '.join(names)} {holds} a lock that {count} {'waits' if len(waiting) == 1 else 'wait'} for."
        + _gated(gate, tree),
        cause="; ".join(
            f"{name} {doing(known[one]) if one in known else 'is not shown any more'}"
            for one, name in zip(roots, names, strict=True)
        )
        + _gated(gate, tree),
        cited=[
            *tree.cited(roots, known),
            gate.citation if gate else None,
        ],
        verdict="suspected" if several else "identified",
        confidence="medium" if guess else "high",
        reason=(
            "the server does not show who holds a metadata lock; these had a transaction open before the wait began"
            if guess
            else "the server itself names it as the root of the queue"
        ),
        findings=tree.waits(waiting, "connection"),
        actions=[
            *_cancel_gate(gate, tree),
            inspect(*roots),
            *about_holders(holders, several),
        ],
        risks=["New sessions queue up behind it until connections run out."],
        missing=missing(holders),
    )


def _gated(gate: Waiter | None, tree: LockTree) -> str:
    if gate is None:
        return ""
    return (
        f" {format_count(len(tree.freed_by(gate.id)), 'session')} of them waits or wait only behind connection {gate.id} "
        f"({gate.statement}), which waits itself."
    )


def doing(session: Session) -> str:
    if session.idle:
        said = (
            ""
            if session.query == "(not known)"
            else f"; what it ran last: {session.query[:200]}"
        )
        return f"keeps a transaction open while it does nothing{said}"
    return f"is in state {session.state}; it runs: {session.query[:200]}"


def _cancel_gate(gate: Waiter | None, tree: LockTree) -> list[Action]:
    if gate is None:
        return []
    freed = format_count(len(tree.freed_by(gate.id)), "session")
    return cancel(
        gate.id,
        f"First cancel the waiting {gate.statement} (connection {gate.id}): it has not got its lock yet, and {freed} "
        "behind it can go on; run it again later with a short lock_wait_timeout",
        gate.statement,
    )


def about_holders(holders: Sequence[Session], several: bool) -> list[Action]:
    """Return what to do about those who hold the lock."""
    done: list[Action] = []
    for session in holders:
        if why := session.spared:
            done.append(action(f"Let {session.name} finish: {why}"))
        elif session.idle:
            which = " (one of those that can hold the lock)" if several else ""
            done += end(
                session,
                f"If its owner agrees or cannot be found, end {session.name}{which}",
            )
        else:
            done += cancel(
                session.id,
                f"If its work can be repeated, cancel the statement of {session.name}",
                session.query,
            )
    if any(one.idle and not one.spared for one in holders):
        done.append(_idle_limit())
    return once(done)


def _idle_limit() -> Action:
    return action(
        "Later, let the server end forgotten transactions by itself (MariaDB 10.3 and later; new sessions only)",
        "SET GLOBAL idle_transaction_timeout = 300;",
        risk="clients that pause inside a transaction for longer are disconnected",
    )


def _explained(
    ticket: Ticket,
    roots: Sequence[int],
    gate: Waiter | None,
    waiting: set[int],
    tickets: Tickets,
) -> list[Ticket]:
    """Return the tickets that are of the same sessions, or of what piles up behind them."""
    ids = {*roots, *([gate.id] if gate else [])}

    def same(one: Ticket) -> bool:
        match one.key.invariant:
            case "blocked_sessions":
                return one is ticket or integer_fact(one, "blocker_id") in roots
            case "connections":
                used = integer_fact(one, "used")
                return used is not None and len(waiting) * 2 >= used
            case "history_length":
                return integer_fact(one, "oldest_id") in roots
        return integer_fact(one, "id") in ids

    return [one for one in tickets if same(one)]


# ------------------------------------------------------------------ open transactions, long statements


@playbook("mysql", "idle_in_transaction", "long_transactions", "history_length")
def open_transaction(tickets: Tickets, context: Context) -> Note:
    """An open transaction that no session waits for; what purge cannot remove because of it belongs to it."""
    ticket = tickets[0]
    fact = "oldest_id" if ticket.key.invariant == "history_length" else "id"
    number = integer_fact(ticket, fact)
    session = sessions(context).get(number) if number else None
    if session is None or not session.since:
        return None
    more = (integer_fact(ticket, "count") or 1) - 1
    does = (
        "left a transaction open and does nothing in it"
        if session.idle
        else "has had a transaction open for too long"
    )
    return write_note(
        [
            one
            for one in tickets
            if one is ticket
            or number in (integer_fact(one, "id"), integer_fact(one, "oldest_id"))
        ],
        summary=f"{session.name} {does}" + (f"; {more} more like it." if more else "."),
        cause=f"{session.name} {doing(session)}",
        cited=[session.citation],
        verdict="identified",
        reason="the session's state is known; why its client does not end the transaction is not",
        actions=[
            inspect(session.id),
            *(
                [action(f"Let it finish: {session.spared}")]
                if session.spared
                else end(
                    session, "If its owner agrees or cannot be found, end the session"
                )
            ),
            *([_idle_limit()] if session.idle and not session.spared else []),
        ],
        risks=[
            "It keeps its locks, and purge cannot remove the rows that it may still see."
        ],
        missing=["What its client waits for."],
    )


@playbook("mysql", "long_queries", "slow_queries")
def long_query(tickets: Tickets, context: Context) -> Note:
    """A statement that has been running for too long."""
    ticket = tickets[0]
    number = integer_fact(ticket, "id")
    session = sessions(context).get(number) if number else None
    if session is None or session.state.startswith("idle"):
        return None
    return write_note(
        [
            one
            for one in tickets
            if one is ticket or one.key.invariant == "slow_queries"
        ],
        summary=f"{session.name} has been running one statement for too long.",
        cause=f"{session.name} is in state {session.state}; it runs: {session.query[:200]}",
        cited=[session.citation],
        verdict="identified",
        reason="the statement is known; whether it is expected to take so long is not",
        findings=[finding("its plan", _plan_line(context, session.id))],
        actions=[
            inspect(session.id),
            *(
                [action(f"Let it finish: {session.spared}")]
                if session.spared
                else cancel(
                    session.id,
                    "If its owner does not need it, cancel the statement; the session stays",
                    session.query,
                )
            ),
        ],
        risks=["It takes processor time and disk from others and holds purge back."],
        missing=["How long it usually takes."],
    )


def _plan_line(context: Context, number: int) -> Citation | None:
    """Return the first line of the plan of this connection."""
    own = False
    for evidence_id, line in evidence_lines(context, "Plans of running statements"):
        if own:
            return Citation(evidence_id=evidence_id, quote=bounded(line))
        own = line.startswith(f"the plan of connection {number},")
    return None


# ------------------------------------------------------------------ deadlocks

_STATEMENT = re.compile(
    r"^(?:SELECT|UPDATE|DELETE|INSERT|REPLACE|WITH|LOAD)\b", re.IGNORECASE
)


@playbook("mysql", "deadlocks")
def deadlocks(tickets: Tickets, context: Context) -> Note:
    """Transactions that took the same locks in a different order."""
    title = "The latest deadlock"
    lines = list(evidence_lines(context, title))
    rolled = next(
        (
            Citation(evidence_id=number, quote=bounded(line))
            for number, line in lines
            if "WE ROLL BACK TRANSACTION" in line
        ),
        None,
    )
    said = {
        line[:200]: Citation(evidence_id=number, quote=bounded(line))
        for number, line in lines
        if _STATEMENT.match(line)
    }
    parties = [
        Citation(evidence_id=number, quote=bounded(line))
        for number, line in lines
        if line.startswith(("MySQL thread id", "MariaDB thread id"))
    ]
    if rolled is None and not said:
        return None
    cause = "two transactions take the same locks in a different order"
    if said:
        cause += ": " + " / ".join(list(said)[:4])
    return write_note(
        tickets,
        summary="Transactions deadlocked; InnoDB rolled one of each pair back.",
        cause=cause,
        cited=[*list(said.values())[:4], rolled],
        verdict="identified" if len(said) > 1 else "suspected",
        confidence="high" if len(said) > 1 else "medium",
        reason="InnoDB's report names both transactions and their last statements",
        findings=[finding("a party", one) for one in parties[:2]],
        actions=[
            action(
                "Let every transaction take its locks in the same order, and find its rows by an index"
            ),
            action(
                "Make the clients repeat a transaction that fails with error 1213",
                risk="none where the transaction can be repeated as a whole",
            ),
            action(
                "To see all deadlocks, not only the latest, let InnoDB write them to the error log",
                "SET GLOBAL innodb_print_all_deadlocks = ON;",
                risk="the log has the statements with their values",
            ),
        ],
        missing=[
            "The statements that took the locks before: the report has only the last ones."
        ],
    )
