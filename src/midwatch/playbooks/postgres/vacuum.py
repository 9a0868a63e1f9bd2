"""First aid where vacuum does not get through: transaction ids and dead rows."""

from __future__ import annotations

from collections.abc import Sequence

from midwatch.answer import Action, Citation, DiagnosisOutput
from midwatch.model import Context, Ticket
from midwatch.playbooks.base import find
from midwatch.playbooks.drafting import finding, literal, of, step, word, write

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
