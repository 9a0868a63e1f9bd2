"""First aid for what runs out: connections, the write-ahead log's disk, space."""

from __future__ import annotations

from collections.abc import Sequence

from midwatch.answer import Action, DiagnosisOutput
from midwatch.model import Context, Ticket
from midwatch.playbooks.base import find
from midwatch.playbooks.drafting import (
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
