"""First aid for what runs out: connections, the write-ahead log's disk, space."""

from __future__ import annotations

from collections.abc import Sequence

from midwatch.diagnosis_schema import Action, Citation, DiagnosisOutput
from midwatch.model import Context, Ticket
from midwatch.playbooks.base import (
    find,
    finding,
    integer,
    literal,
    of,
    reading,
    step,
    word,
    write,
)


class ConnectionsExhausted:
    """Who holds the connections."""

    kind = "postgres"
    invariants: Sequence[str] = ("connections",)

    def first_aid(
        self, tickets: Sequence[Ticket], context: Context
    ) -> DiagnosisOutput | None:
        ours = of(tickets, *self.invariants)
        if not ours:
            return None
        if word(ours[0], "holder_application") or word(ours[0], "holder_user"):
            return self._held(ours, context)
        return self._refused(ours, context)

    def _held(
        self, tickets: Sequence[Ticket], context: Context
    ) -> DiagnosisOutput | None:
        ticket = tickets[0]
        user, state = word(ticket, "holder_user"), word(ticket, "holder_state")
        application = word(ticket, "holder_application")
        line = (
            find(context, f"application={application} ", f"state={state}")
            if application
            else find(context, f"user={user} ", f"state={state}")
        )
        who = f"user {user}" + (f", application {application}" if application else "")
        count, used = integer(ticket, "holder_count"), integer(ticket, "used")
        return write(
            tickets,
            summary=f"The connections run out; {who} holds {count} of {used}, {state}.",
            cause=f"{who} holds most connections ({count} of {used}, {state})",
            cited=[line],
            verdict="suspected",
            confidence="medium",
            reason="who holds the connections is seen; why it needs so many is not",
            readings=[
                reading(
                    "max_connections",
                    str(integer(ticket, "max_connections")),
                    find(context, "max_connections:"),
                )
            ],
            actions=[
                _who_holds(),
                step(
                    "End connections of that role which have been idle for long",
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle' "
                    f"AND usename = {literal(user)} AND state_change < now() - interval '5 min';",
                    risk="a pool that does not check its connections hands out dead ones for "
                    "a moment",
                    undo=False,
                ),
                step(
                    "Limit the pool of that application, or put a pooler in front",
                    risk="too small a pool makes its requests wait",
                ),
            ],
            risks=["Nobody else gets in, administrators only through reserved slots."],
        )

    def _refused(
        self, tickets: Sequence[Ticket], context: Context
    ) -> DiagnosisOutput | None:
        line = (
            find(context, "too many clients already")
            or find(context, "remaining connection slots are reserved")
            or find(context, "too many connections for")
        )
        return write(
            tickets,
            summary="The server refuses connections because all its slots are taken.",
            cause="all connection slots are taken; by whom cannot be seen without one",
            cited=[line],
            confidence="medium",
            verdict="suspected",
            reason="the refusal is seen, the holders are not",
            actions=[
                _who_holds(),
                step(
                    "Stop or restart the application that opens the most",
                    risk="its requests in flight fail",
                    undo=False,
                ),
                step(
                    "Give the monitoring role a reserved slot (PostgreSQL 16 and later, with "
                    "reserved_connections above 0)",
                    "GRANT pg_use_reserved_connections TO midwatch;",
                    risk="one slot less for others",
                ),
            ],
            missing=["Who holds the connections."],
        )


def _who_holds() -> Action:
    return step(
        "Through a reserved slot (as superuser), see who holds them",
        "SELECT application_name, usename, state, count(*) FROM pg_stat_activity "
        "GROUP BY 1, 2, 3 ORDER BY 4 DESC;",
    )


class Replication:
    """Slots that keep the log, standbys that are late."""

    kind = "postgres"
    invariants: Sequence[str] = ("inactive_slots", "replication_lag")

    def first_aid(
        self, tickets: Sequence[Ticket], context: Context
    ) -> DiagnosisOutput | None:
        slots = of(tickets, "inactive_slots")
        if slots:
            return self._slot(slots, context)
        late = of(tickets, "replication_lag")
        return self._late(late, context) if late else None

    def _slot(
        self, tickets: Sequence[Ticket], context: Context
    ) -> DiagnosisOutput | None:
        slot = word(tickets[0], "slot", tickets[0].key.component)
        line = find(context, f"slot_name={slot} ")
        lost = word(tickets[0], "wal_status") == "lost"
        return write(
            tickets,
            summary=f"Nobody reads replication slot {slot}"
            + (", and it was invalidated." if lost else "; it keeps write-ahead log."),
            cause=f"the reader of replication slot {slot} is gone",
            cited=[line],
            reason="the slot is seen without a reader; where the reader went is not",
            confidence="medium",
            findings=[
                finding(
                    "how much a slot may keep", find(context, "max_slot_wal_keep_size:")
                )
            ],
            actions=[
                step(f"Find out who should read {slot}, and start it again"),
                step(
                    "If nobody does any more, drop the slot",
                    f"SELECT pg_drop_replication_slot({literal(slot)});",
                    risk="a standby or subscriber that comes back must be built anew",
                    undo=False,
                ),
            ],
            risks=[] if lost else ["The disk of the write-ahead log fills up."],
        )

    def _late(
        self, tickets: Sequence[Ticket], context: Context
    ) -> DiagnosisOutput | None:
        name = word(tickets[0], "standby", tickets[0].key.component)
        return write(
            tickets,
            summary=f"Standby {name} is behind.",
            cause=f"{name} does not replay as fast as the primary writes",
            cited=[find(context, f"application_name={name} ", "behind=")],
            verdict="suspected",
            confidence="low",
            reason="the lag is seen, its cause is not",
            actions=[
                step(
                    "On the standby, see what holds back the replay",
                    "SELECT pid, now() - xact_start AS age, query FROM pg_stat_activity "
                    "WHERE xact_start IS NOT NULL ORDER BY xact_start;",
                    "SELECT * FROM pg_stat_database_conflicts;",
                ),
                step("Check the network and the standby's disk"),
            ],
            risks=[
                "After a failover, what was not replayed takes time; reads there are old."
            ],
            missing=["What the standby itself does."],
        )


class Growth:
    """Which database and table grow."""

    kind = "postgres"
    invariants: Sequence[str] = ("database_growth",)

    def first_aid(
        self, tickets: Sequence[Ticket], context: Context
    ) -> DiagnosisOutput | None:
        ours = of(tickets, *self.invariants)
        if not ours:
            return None
        name = ours[0].key.component
        table = find(context, "kind=table with indexes")
        return write(
            ours,
            summary=f"Database {name} grows faster than usual.",
            cause=f"database {name} grows; its largest table may tell by what",
            cited=[find(context, "kind=database ", f"name={name} "), table],
            verdict="suspected",
            confidence="low",
            reason="the size is seen, not which statement adds to it",
            actions=[
                step(
                    "See which tables get the most rows",
                    "SELECT schemaname, relname, n_tup_ins, n_tup_upd, n_dead_tup "
                    "FROM pg_stat_user_tables ORDER BY n_tup_ins DESC LIMIT 20;",
                ),
                step("See how much of the disk is left, and make room in time"),
            ],
            risks=["A full disk stops the server."],
            missing=["Which statement writes so much."],
        )


# ------------------------------------------------------------ vacuum
# First aid where vacuum does not get through: transaction ids and dead rows.

# How the evidence names a kind of holder, worst first within the evidence itself.
KINDS = ("session", "prepared transaction", "replication slot", "standby")


def _holder(context: Context) -> tuple[str, str, Citation] | None:
    """Kind, name and line of who holds vacuum back most: the first line of that evidence."""
    lines = [
        (kind, found)
        for kind in KINDS
        if (found := find(context, f"kind={kind} ", "name=", "held=")) is not None
    ]
    if not lines:
        return None
    kind, citation = max(lines, key=lambda line: _held(line[1].quote))
    name = citation.quote.partition(" name=")[2].partition(" held=")[0]
    return kind, name, citation


def _held(line: str) -> float:
    digits = line.partition(" held=")[2].split(" ")[0]
    try:
        return float(digits)
    except ValueError:
        return 0.0


def _release(kind: str, name: str) -> Action:
    if kind == "session":
        pid = "".join(c for c in name if c.isdigit())
        return step(
            "End the transaction that holds vacuum back, after asking its owner",
            f"SELECT pg_terminate_backend({pid});",
            risk="its transaction is rolled back and its client sees an error",
            undo=False,
        )
    if kind == "prepared transaction":
        return step(
            "Finish the prepared transaction, as its transaction manager decided",
            f"ROLLBACK PREPARED {literal(name)};",
            risk="it may have been committed elsewhere",
            undo=False,
        )
    if kind == "replication slot":
        return step(
            "Start the slot's reader again, or drop the slot",
            f"SELECT pg_drop_replication_slot({literal(name)});",
            risk="a reader that comes back must be built anew",
            undo=False,
        )
    return step(
        "See on the standby which query runs for so long (hot_standby_feedback)"
    )


class TransactionIds:
    """Who keeps old transaction ids from being frozen."""

    kind = "postgres"
    invariants: Sequence[str] = ("transaction_id_age",)

    def first_aid(
        self, tickets: Sequence[Ticket], context: Context
    ) -> DiagnosisOutput | None:
        ours = of(tickets, *self.invariants)
        if not ours:
            return None
        database = ours[0].key.component
        age = find(context, "kind=database ", f"name={database} ", "xid_age=")
        vacuum = step(
            "Then freeze the oldest tables",
            "VACUUM (FREEZE, VERBOSE) the_table;",
            risk="reads and writes the whole table",
        )
        holder = _holder(context)
        if holder is None:
            return self._without(ours, age, find(context, "autovacuum:"), vacuum)
        kind, name, line = holder
        return write(
            ours,
            summary=f"Transaction ids of {database} are not frozen in time; vacuum is held back "
            f"most by a {kind} ({name}).",
            cause=f"{kind} {name} keeps vacuum from freezing old rows",
            cited=[line],
            verdict="suspected",
            confidence="medium",
            reason="it is the oldest horizon now; whether it was all the time is not known",
            findings=[finding(f"how old {database} is", age)],
            actions=[_release(kind, name), vacuum],
            risks=["At the end of the ids the server refuses every write."],
        )

    def _without(
        self,
        tickets: Sequence[Ticket],
        age: Citation | None,
        autovacuum: Citation | None,
        vacuum: Action,
    ) -> DiagnosisOutput | None:
        return write(
            tickets,
            summary="Transaction ids are not frozen in time, and nobody holds vacuum back now.",
            cause="autovacuum is off, too slow or fails on the oldest tables",
            cited=[age],
            verdict="suspected",
            confidence="low",
            reason="the age is seen, not why vacuum did not come",
            findings=[finding("whether autovacuum is on", autovacuum)],
            actions=[vacuum],
            risks=["At the end of the ids the server refuses every write."],
            missing=["The log lines of autovacuum on the oldest tables."],
        )


class DeadRows:
    """Why dead rows stay."""

    kind = "postgres"
    invariants: Sequence[str] = ("dead_tuples",)

    def first_aid(
        self, tickets: Sequence[Ticket], context: Context
    ) -> DiagnosisOutput | None:
        ours = of(tickets, *self.invariants)
        if not ours:
            return None
        table = ours[0].key.component.partition(".")[2]
        line = find(context, "kind=table ", f"name={table} ", "dead=")
        holder = _holder(context)
        never = not word(ours[0], "last_autovacuum")
        why = (
            "autovacuum never ran on it" if never else "autovacuum does not get through"
        )
        if holder is not None:
            why += f"; {holder[0]} {holder[1]} holds it back most now"
        return write(
            ours,
            summary=f"Table {table} is full of dead rows: {why}.",
            cause=f"{table}: {why}",
            cited=[line, holder[2] if holder else None],
            verdict="suspected",
            confidence="low",
            reason="the rows and the horizon are seen, the history is not",
            findings=[
                finding("whether autovacuum is on", find(context, "autovacuum:"))
            ],
            actions=[
                *([_release(holder[0], holder[1])] if holder else []),
                step(
                    "Vacuum the table",
                    f"VACUUM (VERBOSE, ANALYZE) {table};",
                    risk="reads and writes the whole table",
                ),
            ],
            risks=["Queries on it slow down and the disk fills with rows nobody sees."],
        )
