"""First aid where vacuum does not get on: what holds it back, as far as the evidence proves it."""

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
    finding,
    integer_fact,
    matching_line,
    playbook,
    text_fact,
    write_note,
)
from midwatch.playbooks.postgres.evidence_rows import Row, count, rows, setting
from midwatch.playbooks.postgres.session_actions import (
    Session,
    cancel,
    end,
    finish_prepared,
    identifier,
    inspect,
    sessions,
)
from midwatch.playbooks.postgres.slot_readers import about_slot

IDLE_LASTS = 5
WORK_LASTS = 60
"""Seconds from which on an open transaction, idle or at work, is not one that just passes by."""

_AUTOVACUUM_OFF = re.compile(
    r"(?<!toast\.)\bautovacuum_enabled=\W?(?:off|false|no|0)\b", re.I
)


@dataclass(frozen=True, slots=True)
class Holder:
    """What keeps vacuum from removing rows: one line of that evidence."""

    row: Row
    citation: Citation

    @property
    def kind(self) -> str:
        return self.row.get("kind", "")

    @property
    def held(self) -> int:
        return count(self.row, "held")

    @property
    def pid(self) -> int | None:
        return count(self.row, "pid") or None

    @property
    def owner(self) -> bool:
        """Whether its own transaction id is the oldest one: others only see that transaction run."""
        return self.row.get("owner") == "True"

    @property
    def lasts(self) -> bool:
        """Whether it is more than the snapshot of a moment."""
        if self.kind not in ("session", "standby"):
            return True
        idle = self.row.get("state", "").startswith("idle in transaction")
        return count(self.row, "seconds") >= (IDLE_LASTS if idle else WORK_LASTS)

    @property
    def name(self) -> str:
        name = f"{self.kind} {self.row.get('name', '')}".strip()
        detail = self.row.get("detail", "")
        return f"{name} ({detail})" if detail and self.kind == "session" else name


def holders(ticket: Ticket, context: Context) -> list[Holder]:
    """Return what holds vacuum back most for this ticket; several are a tie, none where nothing lasting does.

    A session of another database does not hold back the tables of this one, a slot for logical decoding only
    the system catalogs. Who merely shares the horizon of a transaction that still runs is left out.
    """
    found = [
        Holder(row, cited) for cited, row in rows(context, "Who holds back vacuum")
    ]
    if ticket.key.invariant == "dead_tuples":
        database = text_fact(ticket, "database", ticket.key.component.partition(".")[0])
        catalogs = text_fact(ticket, "schema") == "pg_catalog"
        found = [
            one
            for one in found
            if one.row.get("database", database) == database
            and (catalogs or one.row.get("scope") != "catalogs")
        ]
    else:
        age = integer_fact(ticket, "xid_age") or 0
        if (integer_fact(ticket, "mxid_age") or 0) > age:
            return []  # multixacts have a horizon of their own
        found = [one for one in found if one.held * 2 >= age]
    worst = max((one.held for one in found), default=0)
    top = [one for one in found if one.held == worst]
    first = [one for one in top if one.owner] or top
    return [one for one in first if one.lasts]


def held_back_by(ticket: Ticket, context: Context) -> int | None:
    """Return the pid of the one session that holds vacuum back for this ticket, or None."""
    found = holders(ticket, context)
    return found[0].pid if len(found) == 1 else None


def _release(holder: Holder, context: Context) -> list[Action]:
    if holder.kind == "prepared transaction":
        row = holder.row
        named = {
            "gid": row.get("name", ""),
            "owner": row.get("detail", "").removeprefix("owner "),
            "database": row.get("database", ""),
            "prepared": row.get("since", ""),
        }
        return finish_prepared(named)
    if holder.kind == "replication slot":
        return about_slot(holder.row.get("name", ""), context)
    if holder.kind == "standby":
        return [
            action(
                f"On the standby or reader behind {holder.row.get('name')}, see which query holds a snapshot "
                "for so long (hot_standby_feedback)",
                "SELECT pid, xact_start, usename, application_name, query\n"
                "FROM pg_stat_activity WHERE backend_xmin IS NOT NULL ORDER BY xact_start;",
            )
        ]
    session = sessions(context).get(holder.pid or 0)
    return _release_session(session) if session else []


def _release_session(session: Session) -> list[Action]:
    if why := session.spared:
        return [inspect(session.id), action(f"Let {session.name} finish: {why}")]
    done = end(session, f"If its owner agrees or cannot be found, end {session.name}")
    if not session.idle:
        done = cancel(
            session,
            f"If its owner does not need it, cancel the statement of {session.name}",
        )
    return [inspect(session.id), *done]


def _names(found: Sequence[Holder]) -> str:
    return " and ".join(one.name for one in found)


# ------------------------------------------------------------------ transaction ids


@playbook("postgres", "transaction_id_age")
def transaction_ids(tickets: Tickets, context: Context) -> Note:
    """Old transaction ids are not frozen: what holds vacuum back."""
    ticket = tickets[0]
    database = ticket.key.component
    age = _row(context, "Age of transaction ids", kind="database", name=database)
    found = holders(ticket, context)
    if not found:
        return _without(ticket, context, age)
    tie = len(found) > 1
    return write_note(
        [ticket],
        summary=f"Transaction ids of {database} are not frozen in time; vacuum is held back by "
        f"{_names(found)}.",
        cause=f"{_names(found)} {'keep' if tie else 'keeps'} vacuum from freezing old rows"
        + (" (all of them share the oldest horizon)" if tie else ""),
        cited=[one.citation for one in found],
        reason="it is the oldest horizon now, and as old as most of what is not frozen",
        verdict="suspected" if tie else "identified",
        findings=[finding(f"how old {database} is", age)],
        actions=[
            *(one for holder in found for one in _release(holder, context)),
            _freeze(database, context, "Then freeze"),
        ],
        risks=["At the end of the ids the server refuses every write."],
    )


def _row(context: Context, title: str, **wanted: str) -> Citation | None:
    for cited, row in rows(context, title):
        if all(row.get(name) == value for name, value in wanted.items()):
            return cited
    return None


# A name as the server quotes it; one that was cut or redacted is not.
_WHOLE_NAME = re.compile(r'(?:\w+|"(?:[^"…[]|"")+")(?:\.(?:\w+|"(?:[^"…[]|"")+"))?')


def _freeze(database: str, context: Context, first: str) -> Action:
    """Return the action that freezes the oldest table where the evidence names it, else the database."""
    tables = [
        row["name"]
        for _, row in rows(context, "Age of transaction ids")
        if row.get("kind") == "table"
        and row.get("database") == database
        and _WHOLE_NAME.fullmatch(row.get("name", ""))
    ]
    if tables:
        what, command = (
            f"{first} the oldest table",
            f"VACUUM (FREEZE, VERBOSE) {tables[0]};",
        )
    else:
        what = f"{first} the oldest tables of {database} (connected to it)"
        command = (
            "SELECT format('VACUUM (FREEZE, VERBOSE) %s;', oid::regclass) FROM pg_class\n"
            "WHERE relkind IN ('r', 'm', 't') ORDER BY age(relfrozenxid) DESC LIMIT 5;"
        )
    return action(what, command, risk="reads and writes the whole table")


def _without(ticket: Ticket, context: Context, age: Citation | None) -> Note:
    """Return the note where nothing lasting holds vacuum back."""
    off, line = _autovacuum_off(context)
    return write_note(
        [ticket],
        summary="Transaction ids are not frozen in time, and nothing that lasts holds vacuum back now.",
        cause=(
            "autovacuum is off"
            if off
            else "autovacuum is too slow or fails on the oldest tables"
        ),
        cited=[age, line if off else None],
        confidence="medium" if off else "low",
        reason="the age is known, not why vacuum did not run",
        findings=[finding("whether autovacuum is on", line)],
        actions=[
            *([_turn_on()] if off else []),
            _freeze(ticket.key.component, context, "Freeze"),
        ],
        risks=["At the end of the ids the server refuses every write."],
        missing=["The log lines of autovacuum on the oldest tables."],
    )


def _autovacuum_off(context: Context) -> tuple[bool, Citation | None]:
    value, line = setting(context, "autovacuum")
    return value == "off", line


def _turn_on() -> Action:
    return action(
        "Turn autovacuum on",
        "ALTER SYSTEM SET autovacuum = on;",
        "SELECT pg_reload_conf();",
        risk="its workers read and write tables that it has left for long",
    )


# ------------------------------------------------------------------ dead rows


@playbook("postgres", "dead_tuples")
def dead_rows(tickets: Tickets, context: Context) -> Note:
    """A table keeps dead rows: autovacuum is off, or something holds it back."""
    ticket = tickets[0]
    table = ticket.key.component.partition(".")[2]
    line = _row(context, "State of vacuum", kind="table", name=table)
    found = holders(ticket, context)
    off, setting_line = _autovacuum_off(context)
    own = _own_parameter(context, table)
    why = _why(ticket, bool(own), off, found)
    quoted = ".".join(
        identifier(part)
        for part in (text_fact(ticket, "schema"), text_fact(ticket, "table"))
        if part
    )
    vacuum = action(
        "Vacuum the table; `dead but not yet removable` in its answer proves that something holds it back",
        f"VACUUM (VERBOSE, ANALYZE) {quoted or table};",
        risk="reads and writes the whole table",
    )
    return write_note(
        [ticket],
        summary=f"Table {table} is full of dead rows: {why}.",
        cause=f"{table}: {why}",
        cited=[
            line,
            own,
            setting_line if off else None,
            *(one.citation for one in found),
        ],
        confidence="medium" if own or off else "low",
        verdict="identified" if own or off else "suspected",
        reason="the rows, the settings and the horizon are known, the history is not",
        findings=[finding("whether autovacuum is on", setting_line)],
        actions=[
            *([_turn_on()] if off else []),
            *([_reset(quoted or table)] if own else []),
            vacuum,
            *(one for holder in found for one in _release(holder, context)),
        ],
        risks=["Queries on it slow down and the disk fills with dead rows."],
    )


def _why(ticket: Ticket, own: bool, off: bool, found: Sequence[Holder]) -> str:
    if own:
        why = "autovacuum is turned off for it (autovacuum_enabled)"
    elif off:
        why = "autovacuum is off on the server"
    elif not text_fact(ticket, "last_autovacuum"):
        why = "autovacuum never ran on it"
    else:
        why = "autovacuum does not keep up"
    if found:
        tie = " (they share the oldest horizon)" if len(found) > 1 else ""
        why += f"; {_names(found)} may hold vacuum back{tie}"
    return why


def _own_parameter(context: Context, table: str) -> Citation | None:
    """Return the line that shows that autovacuum is turned off for this table."""

    def off(line: str) -> bool:
        own = line.startswith((f"kind=table name={table} ", f"table {table}: "))
        return own and bool(_AUTOVACUUM_OFF.search(line))

    return matching_line(context, "State of vacuum", off) or matching_line(
        context, "Tables concerned", off
    )


def _reset(table: str) -> Action:
    return action(
        "Let autovacuum work on it again",
        f"ALTER TABLE {table} RESET (autovacuum_enabled);",
        risk="it may have been turned off for a reason: ask",
    )
