"""First aid for a replica: a thread that stopped, a source that is away, and a replay that does not keep up."""

from __future__ import annotations

from collections.abc import Sequence

from midwatch.diagnosis_schema import Action, Citation
from midwatch.model import Context, Ticket
from midwatch.playbooks.base import (
    Note,
    Tickets,
    action,
    bounded,
    evidence_lines,
    integer_fact,
    playbook,
    text_fact,
    write_note,
)
from midwatch.playbooks.mysql.locks import about_holders, doing
from midwatch.playbooks.mysql.sessions import (
    SYSTEM,
    LockTree,
    Waiter,
    inspect,
    read_tree,
    sessions,
)

_REPLICATION = "Replication channels"
_OLD = "Reads from this replica return old data"


class _Channel:
    """The lines of evidence about the channel of a ticket."""

    def __init__(self, ticket: Ticket, context: Context) -> None:
        self.lines: list[Citation] = []
        wanted = text_fact(ticket, "channel")
        for evidence_id, line in [*evidence_lines(context, _REPLICATION), ("", "")]:
            if line:
                quote = Citation(evidence_id=evidence_id, quote=bounded(line))
                self.lines.append(quote)
            elif self._name() == wanted:
                break
            else:
                self.lines = []

    def _name(self) -> str:
        found = self.line("channel_name")
        return found.quote.partition(": ")[2] if found else ""

    def line(self, name: str) -> Citation | None:
        """Return the line of a column of SHOW REPLICA STATUS."""
        starts = f"{name}: "
        return next((one for one in self.lines if one.quote.startswith(starts)), None)


def _of_channel(ticket: Ticket, tickets: Tickets) -> list[Ticket]:
    return [one for one in tickets if one.key.component == ticket.key.component]


# ------------------------------------------------------------------ a thread that does not run


@playbook("mysql", "replication_running", "replication_lag")
def replication_stopped(tickets: Tickets, context: Context) -> Note:
    """A thread of replication does not run; its error tells why."""
    ticket = tickets[0]
    if ticket.key.invariant != "replication_running":
        return None
    channel = _Channel(ticket, context)
    applier = integer_fact(ticket, "applier_errno") or 0
    receiver = integer_fact(ticket, "receiver_errno") or 0
    stopped = text_fact(ticket, "applier") == "No"
    thread, short = ("applier", "sql") if stopped else ("receiver", "io")
    number = applier if stopped else receiver
    error = text_fact(ticket, f"{thread}_error")
    source = text_fact(ticket, "source", "its source")
    connects = not stopped and text_fact(ticket, "receiver") == "Connecting"
    state = "cannot connect" if connects else "stopped"
    what = f"the {short.upper()} thread {state}"
    if number:
        what += f": error {number}: {error[:300]}"
    elif not connects:
        what += " without an error: a person or a program stopped it"
    return write_note(
        _of_channel(ticket, tickets),
        summary=f"Replication from {source} does not run: {what}",
        cause=f"replication from {source}: {what}",
        cited=[
            channel.line(f"last_{short}_error") if number else None,
            channel.line(f"last_{short}_errno") if number else None,
            channel.line(f"replica_{short}_running"),
        ],
        verdict="identified" if number else "suspected",
        confidence="high" if number else "medium",
        reason=(
            "the server itself names the error" if number else "no error is recorded"
        ),
        actions=_about_error(
            applier if stopped else 0, 0 if stopped else receiver, source
        ),
        risks=[f"{_OLD}; the source keeps its binary logs only for a while."],
        missing=(
            ["How this row came to differ from the source."]
            if applier in _DIFFERS
            else []
        ),
    )


_DIFFERS = frozenset((1032, 1062, 1146, 1049, 1050, 1051, 1060, 1091, 1133, 1396))
_LOOK = action(
    "See the state and the whole error of each channel",
    "SHOW ALL SLAVES STATUS\\G",
    "SHOW REPLICA STATUS\\G",
)


def _about_error(applier: int, receiver: int, source: str) -> list[Action]:
    if applier in _DIFFERS:
        return [
            _LOOK,
            action(
                "Find out who wrote on this replica: compare the row here and on the source, and whether read_only is on",
                "SELECT @@read_only;",
            ),
            action(
                "If the row can be made as on the source, do so, and start the thread",
                "START SLAVE SQL_THREAD;",
                risk="the replica applies all that has piled up; one row is set right, others may differ too",
            ),
            action(
                "If more differs, build the replica again from a backup of the source: skipping the event hides the difference",
                risk="it takes as long as a restore",
                undo=False,
            ),
        ]
    if receiver in (1236, 13114):
        return [
            _LOOK,
            action(
                "See which binary logs the source still has: if the one that is needed is gone, build the replica again from a backup",
                "SHOW BINARY LOGS;",
            ),
        ]
    if receiver in (1045, 1130, 1129, 2002, 2003, 2005, 2013, 2026, 3159):
        return [
            _LOOK,
            action(
                f"See whether {source} runs, and try the connection from this machine with the account of replication: "
                "address, password, TLS and firewall. The thread connects by itself then"
            ),
        ]
    if applier or receiver:
        return [
            _LOOK,
            action(
                "Remove the cause that the error names, then start replication",
                "START SLAVE;",
            ),
        ]
    return [
        _LOOK,
        action(
            "Ask who stopped it: maintenance may go on. Then start it",
            "START SLAVE;",
            risk="it applies all that has piled up",
        ),
    ]


# ------------------------------------------------------------------ a replay that is late


@playbook("mysql", "replication_lag")
def replication_late(tickets: Tickets, context: Context) -> Note:
    """Both threads run, and what was received is not applied in time: by a lock, or by the work itself."""
    tree = read_tree(context)
    stuck = [
        one
        for one in tree.waiters.values()
        if any(f": user {name}" in one.citation.quote for name in SYSTEM)
    ]
    if stuck:
        return _locked(tickets, context, tree, stuck[0])
    channel = _Channel(tickets[0], context)
    state = channel.line("replica_sql_running_state")
    at_work = state.quote.partition(": ")[2] if state else "not known"
    source = text_fact(tickets[0], "source", "its source")
    return write_note(
        _of_channel(tickets[0], tickets),
        summary=f"This replica applies more slowly than {source} writes; its SQL thread: {at_work}",
        cause=f"the SQL thread does not keep up; its state: {at_work}",
        cited=[state, channel.line("seconds_behind_source")],
        confidence="low",
        reason="no lock is in its way; large transactions, tables without a primary key and a slow disk are left",
        actions=[
            _LOOK,
            action(
                "See what it applies, and whether that table has a primary key: without one each row is searched for",
                "SHOW PROCESSLIST;",
            ),
            action(
                "If many small transactions pile up, let several threads apply them",
                "SELECT @@slave_parallel_threads;",
            ),
        ],
        risks=[f"{_OLD}."],
        missing=["What the source wrote: its binary log at this position."],
    )


def _locked(tickets: Tickets, context: Context, tree: LockTree, stuck: Waiter) -> Note:
    """Return the note on an SQL thread that waits for a lock."""
    known, roots = sessions(context), tree.roots_of([stuck.id])
    holders = [known[one] for one in roots if one in known]
    several = not tree.certain and len(roots) > 1
    names = [known[one].name if one in known else f"connection {one}" for one in roots]
    who = " or ".join(names) or "a session that is not shown"
    holds = "may hold" if several else "holds"
    what = f"the SQL thread waits for a {stuck.what} that {who} {holds}"
    source = text_fact(tickets[0], "source", "its source")
    return write_note(
        _of_channel(tickets[0], tickets),
        summary=f"This replica is behind {source}: {what}.",
        cause="; ".join([what, *(f"{one.name} {doing(one)}" for one in holders)]),
        cited=[
            stuck.citation,
            *(tree.roots.get(one) for one in roots),
            _Channel(tickets[0], context).line("seconds_behind_source"),
        ],
        verdict="identified" if roots and not several else "suspected",
        confidence="high" if roots and tree.certain else "medium",
        reason=_reason(roots, tree.certain),
        actions=[
            *([inspect(*roots)] if roots else [_LOOK, _WHO_LOCKS]),
            *about_holders(holders, several),
        ],
        risks=[f"{_OLD}, and what follows on this channel waits too."],
        missing=[] if roots else ["Who holds the lock."],
    )


_WHO_LOCKS = action(
    "Look for LOCK TABLES and FLUSH TABLES WITH READ LOCK, such as a backup's, among the sessions",
    "SHOW PROCESSLIST;",
)


def _reason(roots: Sequence[int], certain: bool) -> str:
    if not roots:
        return "the server shows that the thread waits, and no session that can hold the lock"
    if certain:
        return "the server itself names the root of the queue"
    return "the server does not show who holds a metadata lock; these had a transaction open before the wait began"
