"""First aid for exhausted resources: connections, disk, transaction ids, dead rows."""

from __future__ import annotations

from midwatch.diagnosis_schema import Action, Citation
from midwatch.model import Context
from midwatch.playbooks.base import (
    Note,
    Tickets,
    action,
    find,
    finding,
    integer_fact,
    playbook,
    reading,
    sql_literal,
    text_fact,
    write_note,
)


@playbook("postgres", "connections")
def connections_exhausted(tickets: Tickets, context: Context) -> Note:
    """Connections are exhausted: which application holds them."""
    if text_fact(tickets[0], "holder_application") or text_fact(
        tickets[0], "holder_user"
    ):
        return _held_by(tickets, context)
    return _refused(tickets, context)


def _held_by(tickets: Tickets, context: Context) -> Note:
    ticket = tickets[0]
    user, state = text_fact(ticket, "holder_user"), text_fact(ticket, "holder_state")
    application = text_fact(ticket, "holder_application")
    line = (
        find(context, f"application={application} ", f"state={state}")
        if application
        else find(context, f"user={user} ", f"state={state}")
    )
    who = f"user {user}" + (f", application {application}" if application else "")
    count, used = integer_fact(ticket, "holder_count"), integer_fact(ticket, "used")
    return write_note(
        tickets,
        summary=f"The connections run out; {who} holds {count} of {used}, {state}.",
        cause=f"{who} holds most connections ({count} of {used}, {state})",
        cited=[line],
        reason="who holds the connections is known; why it needs so many is not",
        readings=[
            reading(
                "max_connections",
                str(integer_fact(ticket, "max_connections")),
                find(context, "max_connections:"),
            )
        ],
        actions=[
            _who_holds(),
            action(
                "End connections of that role which have been idle for long",
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle' "
                f"AND usename = {sql_literal(user)} AND state_change < now() - interval '5 min';",
                risk="a pool that does not check its connections hands out dead ones for "
                "a moment",
                undo=False,
            ),
            action(
                "Limit the pool of that application, or put a pooler in front",
                risk="too small a pool makes its requests wait",
            ),
        ],
        risks=["New connections are refused; administrators need a reserved slot."],
    )


def _refused(tickets: Tickets, context: Context) -> Note:
    line = (
        find(context, "too many clients already")
        or find(context, "remaining connection slots are reserved")
        or find(context, "too many connections for")
    )
    return write_note(
        tickets,
        summary="The server refuses connections because all its slots are taken.",
        cause="all connection slots are taken; by whom cannot be seen without one",
        cited=[line],
        reason="the refusal is known, the holders are not",
        actions=[
            _who_holds(),
            action(
                "Stop or restart the application that opens the most",
                risk="its requests in flight fail",
                undo=False,
            ),
            action(
                "Give the monitoring role a reserved slot (PostgreSQL 16 and later, with "
                "reserved_connections above 0)",
                "GRANT pg_use_reserved_connections TO midwatch;",
                risk="one slot less for other roles",
            ),
        ],
        missing=["Who holds the connections."],
    )


def _who_holds() -> Action:
    return action(
        "Through a reserved slot (as superuser), see who holds them",
        "SELECT application_name, usename, state, count(*) FROM pg_stat_activity "
        "GROUP BY 1, 2, 3 ORDER BY 4 DESC;",
    )


@playbook("postgres", "inactive_slots")
def inactive_slots(tickets: Tickets, context: Context) -> Note:
    """A replication slot keeps the write-ahead log, and has no reader."""
    slot = text_fact(tickets[0], "slot", tickets[0].key.component)
    line = find(context, f"slot_name={slot} ")
    lost = text_fact(tickets[0], "wal_status") == "lost"
    return write_note(
        tickets,
        summary=f"Replication slot {slot} has no reader"
        + (", and it was invalidated." if lost else "; it keeps write-ahead log."),
        cause=f"the reader of replication slot {slot} is gone",
        cited=[line],
        verdict="identified",
        reason="the slot has no reader; why is not known",
        findings=[
            finding(
                "how much a slot may keep", find(context, "max_slot_wal_keep_size:")
            )
        ],
        actions=[
            action(f"Find out who should read {slot}, and start it again"),
            action(
                "If it is not needed any more, drop the slot",
                f"SELECT pg_drop_replication_slot({sql_literal(slot)});",
                risk="a standby or subscriber that comes back must be rebuilt",
                undo=False,
            ),
        ],
        risks=[] if lost else ["The disk of the write-ahead log fills up."],
    )


@playbook("postgres", "replication_lag")
def replication_lag(tickets: Tickets, context: Context) -> Note:
    """A standby is behind, or has no connection."""
    name = text_fact(tickets[0], "standby", tickets[0].key.component)
    if text_fact(tickets[0], "state") == "disconnected":
        return _disconnected(tickets, context, name)
    return write_note(
        tickets,
        summary=f"Standby {name} is behind.",
        cause=f"{name} does not replay as fast as the primary writes",
        cited=[find(context, f"application_name={name} ", "behind=")],
        confidence="low",
        reason="the lag is known, its cause is not",
        actions=[
            action(
                "On the standby, see what holds back the replay",
                "SELECT pid, now() - xact_start AS age, query FROM pg_stat_activity "
                "WHERE xact_start IS NOT NULL ORDER BY xact_start;",
                "SELECT * FROM pg_stat_database_conflicts;",
            ),
            action("Check the network and the standby's disk"),
        ],
        risks=[
            "After a failover, what was not replayed takes time; reads there are old."
        ],
        missing=["What the standby itself does."],
    )


def _disconnected(tickets: Tickets, context: Context, name: str) -> Note:
    own = name == "this server"
    who = "This standby" if own else f"Standby {name}"
    removed = find(context, "requested WAL segment", "has already been removed")
    return write_note(
        tickets,
        summary=f"{who} has no connection to its primary.",
        cause=(
            "the primary has removed write-ahead log that the standby still needs"
            if removed
            else "the standby is down, or its connection is refused or cut"
        ),
        cited=[removed or find(context, f"standby={own} ", "lsn=")],
        confidence="high" if removed else "low",
        reason="the connection is missing; the log of the standby tells why",
        actions=[
            action(
                "On the standby, see its log and whether it receives",
                "SELECT status, sender_host, last_msg_receipt_time FROM pg_stat_wal_receiver;",
            ),
            action("See whether the standby reaches the primary and may log in"),
            action(
                "If the log says that a segment has already been removed, rebuild the standby "
                "with pg_basebackup, or let it restore from the archive",
                risk="its data are replaced",
                undo=False,
            ),
        ],
        risks=["A failover to it loses what it has not received."],
        missing=["The log of the standby."],
    )


@playbook("postgres", "database_growth")
def growth(tickets: Tickets, context: Context) -> Note:
    """A database grows: which one, and its largest table."""
    name = tickets[0].key.component
    table = find(context, "kind=table with indexes")
    return write_note(
        tickets,
        summary=f"Database {name} grows faster than usual.",
        cause=f"database {name} grows; its largest table may show why",
        cited=[find(context, "kind=database ", f"name={name} "), table],
        confidence="low",
        reason="the size is known, not which statement adds to it",
        actions=[
            action(
                "See which tables get the most rows",
                "SELECT schemaname, relname, n_tup_ins, n_tup_upd, n_dead_tup "
                "FROM pg_stat_user_tables ORDER BY n_tup_ins DESC LIMIT 20;",
            ),
            action("See how much of the disk is left, and make room in time"),
        ],
        risks=["A full disk stops the server."],
        missing=["Which statement writes so much."],
    )


# ------------------------------------------------------------------ vacuum

# The kinds of holders in the evidence, which lists the oldest first.
KINDS = ("session", "prepared transaction", "replication slot", "standby")


def _holder(context: Context) -> tuple[str, str, Citation] | None:
    """Return kind, name and citation of what holds vacuum back most: the first line of that evidence."""
    lines = [
        (kind, found)
        for kind in KINDS
        if (found := find(context, f"kind={kind} ", "name=", "held=")) is not None
    ]
    if not lines:
        return None
    kind, citation = max(lines, key=lambda line: _held_for(line[1].quote))
    name = citation.quote.partition(" name=")[2].partition(" held=")[0]
    return kind, name, citation


def _held_for(line: str) -> float:
    digits = line.partition(" held=")[2].split(" ")[0]
    try:
        return float(digits)
    except ValueError:
        return 0.0


def _release(kind: str, name: str) -> Action:
    if kind == "session":
        pid = "".join(c for c in name if c.isdigit())
        return action(
            "End the transaction that holds vacuum back, after asking its owner",
            f"SELECT pg_terminate_backend({pid});",
            risk="its transaction is rolled back and its client sees an error",
            undo=False,
        )
    if kind == "prepared transaction":
        return action(
            "Finish the prepared transaction, as its transaction manager decided",
            f"ROLLBACK PREPARED {sql_literal(name)};",
            risk="it may have been committed elsewhere",
            undo=False,
        )
    if kind == "replication slot":
        return action(
            "Start the slot's reader again, or drop the slot",
            f"SELECT pg_drop_replication_slot({sql_literal(name)});",
            risk="a reader that comes back must be rebuilt",
            undo=False,
        )
    return action(
        "See on the standby which query runs for so long (hot_standby_feedback)"
    )


@playbook("postgres", "transaction_id_age")
def transaction_ids(tickets: Tickets, context: Context) -> Note:
    """Old transaction ids are not frozen: what holds vacuum back."""
    database = tickets[0].key.component
    age = find(context, "kind=database ", f"name={database} ", "xid_age=")
    vacuum = action(
        "Then freeze the oldest tables",
        "VACUUM (FREEZE, VERBOSE) the_table;",
        risk="reads and writes the whole table",
    )
    holder = _holder(context)
    if holder is None:
        return _without(tickets, age, find(context, "autovacuum:"), vacuum)
    kind, name, line = holder
    return write_note(
        tickets,
        summary=f"Transaction ids of {database} are not frozen in time; vacuum is held back "
        f"most by a {kind} ({name}).",
        cause=f"{kind} {name} keeps vacuum from freezing old rows",
        cited=[line],
        reason="it is the oldest horizon now; whether it was all the time is not known",
        findings=[finding(f"how old {database} is", age)],
        actions=[_release(kind, name), vacuum],
        risks=["At the end of the ids the server refuses every write."],
    )


def _without(
    tickets: Tickets, age: Citation | None, autovacuum: Citation | None, vacuum: Action
) -> Note:
    return write_note(
        tickets,
        summary="Transaction ids are not frozen in time, and nothing holds vacuum back now.",
        cause="autovacuum is off, too slow or fails on the oldest tables",
        cited=[age],
        confidence="low",
        reason="the age is known, not why vacuum did not run",
        findings=[finding("whether autovacuum is on", autovacuum)],
        actions=[vacuum],
        risks=["At the end of the ids the server refuses every write."],
        missing=["The log lines of autovacuum on the oldest tables."],
    )


@playbook("postgres", "dead_tuples")
def dead_rows(tickets: Tickets, context: Context) -> Note:
    """A table keeps dead rows: what holds vacuum back."""
    table = tickets[0].key.component.partition(".")[2]
    line = find(context, "kind=table ", f"name={table} ", "dead=")
    holder = _holder(context)
    never = not text_fact(tickets[0], "last_autovacuum")
    why = "autovacuum never ran on it" if never else "autovacuum does not keep up"
    if holder is not None:
        why += f"; {holder[0]} {holder[1]} holds it back most now"
    return write_note(
        tickets,
        summary=f"Table {table} is full of dead rows: {why}.",
        cause=f"{table}: {why}",
        cited=[line, holder[2] if holder else None],
        confidence="low",
        reason="the rows and the horizon are known, the history is not",
        findings=[finding("whether autovacuum is on", find(context, "autovacuum:"))],
        actions=[
            *([_release(holder[0], holder[1])] if holder else []),
            action(
                "Vacuum the table",
                f"VACUUM (VERBOSE, ANALYZE) {table};",
                risk="reads and writes the whole table",
            ),
        ],
        risks=["Queries on it slow down and the disk fills with dead rows."],
    )
