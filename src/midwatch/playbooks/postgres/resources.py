"""First aid for exhausted resources: connections and databases that grow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from midwatch.diagnosis_schema import Action, Citation
from midwatch.model import Context, Ticket
from midwatch.playbooks.base import (
    Note,
    Tickets,
    action,
    evidence_lines,
    find_start,
    integer_fact,
    log_lines,
    playbook,
    reading,
    sql_literal,
    write_note,
)
from midwatch.playbooks.postgres.evidence_rows import Row, count, rows, setting
from midwatch.playbooks.postgres.session_actions import BACKUP, identifier

# ------------------------------------------------------------------ connections


@dataclass(frozen=True, slots=True)
class Holder:
    """The connections of one application, user, database, client and state."""

    row: Row
    citation: Citation

    @property
    def sessions(self) -> int:
        return count(self.row, "sessions")

    @property
    def state(self) -> str:
        return self.row.get("state", "unknown")

    @property
    def owner(self) -> tuple[str, str]:
        return self.row.get("user", ""), self.row.get("application", "")

    @property
    def name(self) -> str:
        parts = [f"user {self.row.get('user', 'unknown')}"]
        parts += [
            f"{key} {self.row[key]}"
            for key in ("application", "client", "database")
            if self.row.get(key)
        ]
        return ", ".join(parts)


@playbook("postgres", "connections")
def connections_exhausted(tickets: Tickets, context: Context) -> Note:
    """Connections are exhausted: which application holds them, of the limit that is reached."""
    ticket = tickets[0]
    kind, _, name = ticket.key.component.partition(" ")
    found = [
        Holder(row, cited)
        for cited, row in rows(context, "Connections by")
        if kind not in ("role", "database")
        or row.get("user" if kind == "role" else "database") == name
    ]
    found = [
        one
        for one in found
        if one.sessions and one.row.get("application") != "midwatch"
    ]
    return (
        _held(ticket, kind, name, found, context)
        if found
        else _refused(ticket, context)
    )


def _held(
    ticket: Ticket, kind: str, name: str, found: Sequence[Holder], context: Context
) -> Note:
    """Return the note on who holds the connections now."""
    total = sum(one.sessions for one in found)
    totals: dict[tuple[str, str], int] = {}
    for one in found:
        totals[one.owner] = totals.get(one.owner, 0) + one.sessions
    most = max(totals.values())
    leaders = [owner for owner, sessions in totals.items() if sessions == most]
    # The first link is proven only where one application has most of them.
    alone = len(leaders) == 1 and most * 2 > total
    shown = [one for one in found if one.owner in leaders][:5]
    limit = f"the {kind} {name}" if kind in ("role", "database") else "the server"
    who = "; ".join(
        f"{one.name}: {one.sessions} of {total}, {one.state}" for one in shown
    )
    value, line = setting(context, "max_connections")
    return write_note(
        [ticket],
        summary=f"The connections of {limit} run out. {who}.",
        cause=(
            f"{shown[0].name} holds most connections of {limit} ({most} of {total}, {shown[0].state})"
            if alone
            else f"no application holds most connections of {limit}: {who}"
        ),
        cited=[one.citation for one in shown],
        verdict="identified" if alone else "suspected",
        reason="who holds the connections is known; why it needs so many is not",
        readings=[reading("max_connections", value, line)],
        actions=[
            _who_holds(kind, name),
            *(_end_idle(shown, context) if alone else []),
            action(
                (
                    "Correct the pool of that application (its size, and connections that it never gives back)"
                    if alone
                    else "Compare the pools of these applications with the limit"
                ),
                risk="too small a pool makes its requests wait",
            ),
            *_raise(ticket, kind, name),
        ],
        risks=["New connections are refused; administrators need a reserved slot."],
    )


# Names of no application: those of drivers and tools, which many programs share.
_NAMELESS = {"", "PostgreSQL JDBC Driver", "psql", "pgbouncer", "node-postgres"}


def _who_holds(kind: str, name: str) -> Action:
    column = {"role": "usename", "database": "datname"}.get(kind)
    where = f"WHERE {column} = {sql_literal(name)} " if column else ""
    return action(
        "See who holds them now",
        "SELECT application_name, usename, client_addr, state, count(*), min(state_change)\n"
        f"FROM pg_stat_activity {where}GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC;",
    )


def _end_idle(found: Sequence[Holder], context: Context) -> list[Action]:
    """Return the action that ends what this application has not used since the evidence was gathered.

    Only idle sessions without a transaction: a session at work, or one that was used since, is left alone.
    """
    now = next(
        (
            text.removeprefix("now: ")
            for _, text in evidence_lines(context, "Server:")
            if text.startswith("now: ")
        ),
        "",
    )
    idle = [one for one in found if one.state == "idle"]
    if (
        not now
        or not idle
        or 2 * sum(one.sessions for one in idle) < sum(one.sessions for one in found)
    ):
        return []
    row = idle[0].row
    # Without a name of its own it can be any program of the role.
    if row.get("application", "") in _NAMELESS or BACKUP.search(idle[0].name):
        return []
    return [
        action(
            f"If it does not give them back, end those idle sessions of {idle[0].name} that were not used "
            f"since {now}",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity\n"
            f"WHERE usename = {sql_literal(row.get('user', ''))} AND datname = {sql_literal(row.get('database', ''))}\n"
            f"  AND application_name = {sql_literal(row.get('application', ''))}\n"
            f"  AND coalesce(host(client_addr), 'local') = {sql_literal(row.get('client', ''))}\n"
            f"  AND state = 'idle' AND state_change < {sql_literal(now)};",
            risk="a pool that does not check its connections hands out dead ones for a moment",
            undo=False,
        )
    ]


def _raise(ticket: Ticket, kind: str, name: str) -> list[Action]:
    """Return the action that raises the limit of one role or database, which takes effect at once."""
    cap = integer_fact(ticket, "connection_limit")
    if kind not in ("role", "database") or not cap:
        return []
    return [
        action(
            f"If the need is real, raise the limit of the {kind}",
            f"ALTER {kind.upper()} {identifier(name)} CONNECTION LIMIT {cap + max(5, cap // 2)};",
            risk="more sessions of the server's own limit go to it",
        )
    ]


def _refused(ticket: Ticket, context: Context) -> Note:
    """Return the note on a server that has no connection left for Midwatch either."""
    pattern = (
        "(?:sorry, )?too many clients already|remaining connection slots are reserved"
        "|too many connections for"
    )
    refused = find_start(context, "a connection attempt failed:")
    if refused and not re.search("slots|too many", refused.quote):
        refused = None
    kind, _, name = ticket.key.component.partition(" ")
    limit = f"{kind} {name}" if kind == "database" else "the server"
    return write_note(
        [ticket],
        summary=f"All connection slots of {limit} are taken, and new connections are refused.",
        cause=f"all connection slots of {limit} are taken; by whom cannot be seen without one",
        cited=[refused, *log_lines(context, pattern, "FATAL")[:1]],
        reason="the refusal is known, the holders are not",
        actions=[
            action(
                "On its machine, see who is connected: user, database, client and state of each process",
                "ps -C postgres -o pid,etime,args --sort=-etime",
            ),
            action(
                "Or ask the server through a slot that is reserved for superusers",
                "SELECT application_name, usename, client_addr, state, count(*)\n"
                "FROM pg_stat_activity GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC;",
            ),
        ],
        risks=["New connections are refused; administrators need a reserved slot."],
        missing=["Who holds the connections."],
    )


# ------------------------------------------------------------------ growth


@playbook("postgres", "database_growth")
def growth(tickets: Tickets, context: Context) -> Note:
    """A database grows: which one, and its largest table where the evidence is of the same database."""
    ticket = tickets[0]
    name = ticket.key.component
    size = table = None
    largest = ""
    for cited, row in rows(context, "Sizes of"):
        if row.get("kind") == "database" and row.get("name") == name:
            size = cited
        elif table is None and row.get("database") == name:
            table, largest = cited, row.get("name", "")
    return write_note(
        [ticket],
        summary=f"Database {name} grows faster than usual.",
        cause=f"database {name} grows"
        + (f"; its largest table is {largest}" if largest else ""),
        cited=[size, table],
        confidence="low",
        reason="the size is known, not which statement adds to it",
        actions=[
            action(
                f"In database {name}, see which tables get the most rows",
                "SELECT schemaname, relname, n_tup_ins, n_tup_upd, n_dead_tup\n"
                "FROM pg_stat_user_tables ORDER BY n_tup_ins DESC LIMIT 20;",
            ),
            action("See how much of the disk is left, and make room in time", "df -h"),
        ],
        risks=["A full disk stops the server."],
        missing=["Which statement writes so much."],
    )
