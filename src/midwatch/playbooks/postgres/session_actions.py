"""Sessions as the evidence shows them, and what can be done about one without harm to another.

Each command that ends something holds only for the transaction that the evidence names: a pid that was
reused, or a session that has gone on meanwhile, is left alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from midwatch.diagnosis_schema import Action, Citation
from midwatch.model import Context, Ticket
from midwatch.playbooks.base import action, sql_literal, text_fact
from midwatch.playbooks.postgres.evidence_rows import Row, rows
from midwatch.playbooks.postgres.lock_tree import Waiter
from midwatch.playbooks.waiting_sessions import ShownSession, session_lines

_LINE = re.compile(
    r"pid (?P<id>\d+): (?P<state>.*?)(?:, process (?P<process>.*?))?"
    r"(?:, transaction open for .*? since (?P<since>[0-9T:.-]+Z)(?:, statement since (?P<begun>[0-9T:.-]+Z))?)?"
    r"(?:, waits on (?P<wait>\S+/\S+))?(?:, connected since [0-9T:.-]+Z)?, user (?P<user>.*?)"
    r"(?:, application (?P<application>.*?))?, database (?P<database>.*?), client (?P<client>\S*),"
    r" (?:runs|last ran): (?P<query>.*)$"
)
_SESSIONS = ("Blocking tree", "Sessions that are active")
BACKUP = re.compile(
    r"pg_?dump|pg_?basebackup|backup|backrest|barman|wal-?[ge]\b|pg_?probackup|pghoard|pg_rman|\brepmgr",
    re.IGNORECASE,
)
_BACKUP_STATEMENT = re.compile(
    r"\s*(?:COPY\s.*\sTO\s+STDOUT|(?:SELECT\b.*)?\bpg_(?:backup_)?(?:start|stop)(?:_backup)?\s*\()"
    r"|.*\b(?:binary_upgrade_|pg_export_snapshot\b)|\s*SET TRANSACTION SNAPSHOT\b|\s*LOCK TABLE .* IN ACCESS SHARE MODE",
    re.IGNORECASE | re.DOTALL,
)
_MAINTENANCE = re.compile(
    r"\s*(?:autovacuum:|VACUUM\b|ANALYZE\b|CREATE\s+(?:UNIQUE\s+)?INDEX\b|REINDEX\b|CLUSTER\b|REPACK\b"
    r"|REFRESH\s+MATERIALIZED\b|ALTER\s+(?:TABLE|INDEX)\b|COPY\s.*\sFROM\b)",
    re.IGNORECASE | re.DOTALL,
)
CLIENT_WRITE = "Client/ClientWrite"
"""The wait event of a session whose client does not take what it sends."""
ROLLBACK = "its transaction is rolled back and its client sees an error"


@dataclass(frozen=True, slots=True)
class Session(ShownSession):
    """A session on a line of evidence. `begun` is the start of its statement if that is later than `since`."""

    process: str = ""
    begun: str = ""
    wait: str = ""
    application: str = ""

    @property
    def backup(self) -> bool:
        """Whether it is a backup, as far as its names and its statement tell."""
        names = f"{self.application} {self.user}"
        return bool(BACKUP.search(names) or _BACKUP_STATEMENT.match(self.query))

    @property
    def maintenance(self) -> bool:
        return bool(_MAINTENANCE.match(self.query))

    @property
    def spared(self) -> str:
        """Why it must not be ended without a person's decision; empty where nothing speaks against it."""
        if self.backup:
            return "it is a backup: ended, there is none"
        if self.process:
            return f"it is a process of the server ({self.process}), not of a client"
        if not self.idle and self.maintenance:
            return "it is maintenance: ended, its work begins again"
        return ""

    @property
    def name(self) -> str:
        """The session in words: pid, user, application, client."""
        parts = [f"user {self.user}"] if self.user and not self.process else []
        parts += [f"process {self.process}"] if self.process else []
        parts += [f"application {self.application}"] if self.application else []
        parts += [f"client {self.client}"] if self.client and not self.process else []
        return f"pid {self.id}" + (f" ({', '.join(parts)})" if parts else "")


def sessions(context: Context) -> dict[int, Session]:
    """Return the sessions in the evidence of this moment, by pid."""
    found: dict[int, Session] = {}
    for pid, quoted, names in session_lines(context, _SESSIONS, _LINE, "pid "):
        found.setdefault(pid, Session(pid, quoted, **names))
    return found


def of_ticket(ticket: Ticket, context: Context, fact: str = "pid") -> Session | None:
    """Return the session that the ticket names in a fact, as the evidence shows it now, or None."""
    pid = ticket.facts.get(fact)
    return sessions(context).get(pid) if isinstance(pid, int) else None


# ------------------------------------------------------------------ actions


def inspect(*pids: int) -> Action:
    chosen = ", ".join(map(str, pids))
    return action(
        "See whether it still does so, and ask its owner",
        "SELECT pid, state, xact_start, wait_event, usename, application_name,\n"
        f"  client_addr, query FROM pg_stat_activity WHERE pid IN ({chosen});",
    )


def end(session: Session, what: str) -> list[Action]:
    """Return the action that ends an open transaction whose client does nothing; none for any other session.

    That is an idle one, or one whose client does not take its result: no cancel reaches that.
    """
    stuck = session.wait == CLIENT_WRITE
    if not session.since or session.spared or not (session.idle or stuck):
        return []
    only = (
        "wait_event = 'ClientWrite'" if stuck else "state LIKE 'idle in transaction%'"
    )
    return [
        action(
            what,
            f"SELECT pg_terminate_backend({session.id}) FROM pg_stat_activity\n"
            f"WHERE pid = {session.id} AND xact_start = '{session.since}'\n"
            f"  AND {only};",
            risk=f"{ROLLBACK}; what it has not committed is lost",
            undo=False,
        )
    ]


def cancel(one: Session | Waiter, what: str) -> list[Action]:
    """Return the action that cancels one statement, of a session that waits for a lock only while it still does."""
    if not one.since:
        return []
    only = "wait_event_type = 'Lock'" if isinstance(one, Waiter) else "state = 'active'"
    return [
        action(
            what,
            f"SELECT pg_cancel_backend({one.id}) FROM pg_stat_activity\n"
            f"WHERE pid = {one.id} AND xact_start = '{one.since}'\n"
            f"  AND query_start = '{one.begun or one.since}' AND {only};",
            risk="its client sees an error and has to repeat it",
            undo=False,
        )
    ]


def idle_limit(session: Session) -> list[Action]:
    """Return the action that lets the server end such transactions of the same role from now on."""
    if not session.user or session.user == "unknown" or session.spared:
        return []
    return [
        action(
            "Later, let the server end forgotten transactions of this role by itself (new sessions only)",
            f"ALTER ROLE {identifier(session.user)}\n"
            "  SET idle_in_transaction_session_timeout = '5min';",
            risk="clients of that role that pause inside a transaction for longer are disconnected",
        )
    ]


def identifier(name: str) -> str:
    """Return a name as an identifier in SQL."""
    return '"' + name.replace('"', '""') + '"'


def ticket_name(ticket: Ticket, prefix: str = "") -> str:
    """Return user and application as the ticket has them."""
    user = text_fact(ticket, f"{prefix}user", "unknown")
    application = text_fact(ticket, f"{prefix}application")
    return f"user {user}" + (f", application {application}" if application else "")


def finish_prepared(row: Row) -> list[Action]:
    """Return what to do about a prepared transaction: its transaction manager knows whether it is committed."""
    gid, owner = sql_literal(row.get("gid", "")), row.get("owner", "its owner")
    where = f" (in database {row.get('database')}, as {owner} or a superuser)"
    return [
        action(
            f"See whether {gid} is still there, and ask its transaction manager (of {owner}) what it decided",
            "SELECT gid, transaction, prepared, owner, database FROM pg_prepared_xacts\n"
            f"WHERE gid = {gid} AND prepared = '{row.get('prepared', '')}';",
        ),
        action(
            f"If it was committed elsewhere, commit it{where}",
            f"COMMIT PREPARED {gid};",
            risk="its changes become visible",
            undo=False,
        ),
        action(
            f"If its manager rolled it back or does not know it, roll it back{where}",
            f"ROLLBACK PREPARED {gid};",
            risk="its changes are lost; it may have been committed elsewhere",
            undo=False,
        ),
    ]


def prepared_in_front(context: Context) -> list[tuple[Citation, Row]]:
    """Return the prepared transactions that sessions wait for; several are a tie."""
    found = rows(context, "Prepared transactions")
    return [(cited, row) for cited, row in found if row.get("in_front_of")]
