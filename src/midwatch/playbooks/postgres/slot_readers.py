"""First aid for replication slots: why the reader does not read.

A slot is what its reader needs to come back. Only one that the server has invalidated is of no use any more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from midwatch.diagnosis_schema import Action, Citation, Finding
from midwatch.model import Context, Ticket
from midwatch.playbooks.base import (
    Note,
    Tickets,
    action,
    finding,
    log_lines,
    playbook,
    sql_literal,
    text_fact,
    write_note,
)
from midwatch.playbooks.postgres.evidence_rows import Row, rows, setting
from midwatch.playbooks.postgres.session_actions import identifier

# Messages of a server that refuses a login, as the log has them after the severity.
_REFUSALS = (
    r'(?:password|[\w" ]{1,20}) authentication failed for user "(?P<user>[^"]*)"',
    r'no pg_hba\.conf entry for (?:(?P<replication>replication) connection from )?host "(?P<host>[^"]*)",'
    r' user "(?P<user>[^"]*)"(?:, database "(?P<database>[^"]*)")?',
    r'pg_hba\.conf rejects (?:(?P<replication>replication) )?connection for host "(?P<host>[^"]*)",'
    r' user "(?P<user>[^"]*)"(?:, database "(?P<database>[^"]*)")?',
    r'role "(?P<user>[^"]*)" (?P<nologin>is not permitted to log in|does not exist)',
    r'(?P<limit>too many connections for role) "(?P<user>[^"]*)"',
    r"(?P<walsender>must be superuser or replication role to start walsender"
    r"|permission denied to start WAL sender"
    r"|number of requested standby connections exceeds .{0,3}max_wal_senders)",
)
_REPLICATION = "Roles that may replicate"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A login that the server refused, with the role that wanted to read."""

    citation: Citation
    message: str
    role: Row
    host: str = ""
    database: str = ""
    hba: bool = False
    nologin: bool = False
    limit: bool = False

    @property
    def user(self) -> str:
        return self.role.get("role", "")

    @property
    def expired(self) -> bool:
        return self.role.get("expired") == "True"

    @property
    def broad(self) -> bool:
        """Whether the role does more than replicate, and the login may have been for that."""
        return self.role.get("superuser") == "True" and not self.expired

    @property
    def cause(self) -> str:
        if self.expired:
            until = self.role.get("valid_until", "")
            return f"the password of role {self.user} has expired ({until})"
        return self.message


def refusals(context: Context) -> list[Refusal]:
    """Return the refused logins of roles that may replicate, the latest of each role and kind."""
    roles = {
        row["role"]: row for _, row in rows(context, _REPLICATION) if "role" in row
    }
    found: dict[tuple[str, str], Refusal] = {}
    for pattern in _REFUSALS:
        for cited in log_lines(context, pattern, "FATAL"):
            match = re.search(pattern, cited.quote)
            if match is None:
                continue
            parts = {key: value or "" for key, value in match.groupdict().items()}
            user = parts.get("user", "")
            if user in roles or parts.get("replication") or parts.get("walsender"):
                one = Refusal(
                    cited,
                    match[0],
                    roles.get(user, {"role": user}),
                    parts.get("host", ""),
                    parts.get("database", ""),
                    "pg_hba" in match[0],
                    bool(parts.get("nologin")),
                    bool(parts.get("limit")),
                )
                found.setdefault((user, pattern), one)
    return list(found.values())


def let_in(refusal: Refusal) -> Action:
    """Return the action that lets a reader log in again."""
    user = refusal.user
    role = identifier(user)
    if refusal.expired:
        return action(
            f"Renew the password's validity of {user}; its reader then comes back by itself",
            f"ALTER ROLE {role} VALID UNTIL 'infinity';",
            risk="without a date the password stays valid: set a new date afterwards",
        )
    if refusal.hba and refusal.host and user:
        block = f"{refusal.host}/{128 if ':' in refusal.host else 32}"
        local = refusal.host == "[local]"
        where = refusal.host if local else f"host {refusal.host}"
        # A reader by logical replication names its database, and the word does not stand for that.
        names = f"{_hba(refusal.database) or 'replication'} {_hba(user)}"
        entry = f"local {names}" if local else f"host {names} {block}"
        return action(
            f"Let {user} in from {where}: see which line of pg_hba.conf rejects it, add the missing "
            f"one ({entry} scram-sha-256) before that, and reload",
            "SELECT line_number, type, database, user_name, address, auth_method, error\n"
            "FROM pg_hba_file_rules;",
            "SHOW hba_file;",
            "SELECT pg_reload_conf();",
            risk="the line lets that role in",
        )
    if refusal.nologin and "permitted" in refusal.message:
        return action(
            f"Let {user} log in again, if that was not taken away on purpose",
            f"ALTER ROLE {role} LOGIN;",
            risk="the role can log in",
        )
    if refusal.limit:
        return action(
            f"See who uses the connections of {user}, and raise its limit",
            "SELECT pid, application_name, client_addr, backend_start, state\n"
            f"FROM pg_stat_activity WHERE usename = {sql_literal(user)};",
        )
    if "max_wal_senders" not in refusal.message and not user:
        return action(
            "See which roles may replicate, and let that of the reader do so (REPLICATION)",
            "SELECT rolname, rolreplication, rolcanlogin FROM pg_roles ORDER BY 1;",
        )
    if not user:
        return action(
            "See who uses the senders, and raise max_wal_senders (needs a restart) if all are needed",
            "SELECT pid, application_name, client_addr, state FROM pg_stat_replication;",
            "SHOW max_wal_senders;",
        )
    return action(
        f"Correct the password that the reader uses for {user} (primary_conninfo, .pgpass, or the "
        "CONNECTION of the subscription), or set the role's password again",
        "SELECT rolname, rolcanlogin, rolvaliduntil FROM pg_roles\n"
        f"WHERE rolname = {sql_literal(user)};",
    )


def _hba(name: str) -> str:
    """Return a name as pg_hba.conf has it: quoted where it could be read as something else."""
    plain = re.fullmatch(r"[a-z_][a-z0-9_]*", name)
    key = name in ("all", "replication", "sameuser", "samerole", "samegroup")
    return name if not name or (plain and not key) else f'"{name}"'


def about_slot(slot: str, context: Context) -> list[Action]:
    """Return what to do about a slot without a reader. None of it drops a slot that can still be read."""
    see = action(
        f"See whether {slot} still has no reader, and how much room its log takes",
        "SELECT slot_name, slot_type, database, active, wal_status, restart_lsn\n"
        f"FROM pg_replication_slots WHERE slot_name = {sql_literal(slot)};",
        "SELECT pg_size_pretty(sum(size)) FROM pg_ls_waldir();",
    )
    refused = refusals(context)
    if refused:
        return [*map(let_in, refused), see]
    return [
        see,
        action(
            f"Find the standby or subscriber that reads {slot}, and start it or its connection again; "
            "whether it is still needed is its owner's decision: without the slot it must be rebuilt"
        ),
    ]


def _lost(slot: str) -> list[Action]:
    return [
        action(
            f"Rebuild the standby or subscriber that read {slot}, or let it restore from the archive",
            risk="its data are replaced",
            undo=False,
        ),
        action(
            "Then drop the slot: the server has invalidated it, no reader can use it any more",
            f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots\n"
            f"WHERE slot_name = {sql_literal(slot)} AND wal_status = 'lost';",
            risk="none for a reader: it cannot use the slot as it is",
            undo=False,
        ),
    ]


@playbook("postgres", "inactive_slots", "replication_lag")
def inactive_slots(tickets: Tickets, context: Context) -> Note:
    """A replication slot keeps the write-ahead log, and has no reader; its standby's lag belongs to it."""
    ticket = tickets[0]
    if ticket.key.invariant != "inactive_slots":
        return None
    slot = text_fact(ticket, "slot", ticket.key.component)
    line = next(
        (
            one
            for one, row in rows(context, "Replication slots")
            if row.get("slot_name") == slot
        ),
        None,
    )
    lost = text_fact(ticket, "wal_status") == "lost"
    refused = [] if lost else refusals(context)
    why = "; ".join(dict.fromkeys(one.cause for one in refused))
    keep, keep_line = setting(context, "max_slot_wal_keep_size")
    return write_note(
        [ticket, *_of_slot(tickets, slot)],
        summary=f"Replication slot {slot} has no reader"
        + (
            f": {why}."
            if why
            else ", and it was invalidated." if lost else "; it keeps write-ahead log."
        ),
        cause=(
            f"the reader of replication slot {slot} cannot log in: {why}"
            if why
            else (
                f"replication slot {slot} was invalidated: it kept more than the server allows ({keep})"
                if lost
                else f"the reader of replication slot {slot} is gone"
            )
        ),
        cited=[line, *(one.citation for one in refused)],
        # A superuser may have wanted something else than to replicate.
        verdict=(
            "suspected"
            if len(refused) > 1 or any(one.broad for one in refused)
            else "identified"
        ),
        reason=(
            "the log has refused logins of a role that may replicate; that it reads this slot is likely"
            if refused
            else "the slot has no reader; why is not known"
        ),
        findings=[
            finding("how much a slot may keep", keep_line),
            *_roles(refused, context),
        ],
        actions=_lost(slot) if lost else about_slot(slot, context),
        risks=[] if lost else ["The disk of the write-ahead log fills up."],
        missing=[] if refused or lost else ["What its reader's own log says."],
    )


def _of_slot(tickets: Tickets, slot: str) -> list[Ticket]:
    """Return the tickets of this slot's standby, which has no connection."""
    return [
        one
        for one in tickets
        if one.key.invariant == "replication_lag"
        and text_fact(one, "slot") == slot
        and text_fact(one, "state") == "disconnected"
    ]


def _roles(refused: list[Refusal], context: Context) -> Iterator[Finding | None]:
    for one in refused:
        for cited, row in rows(context, _REPLICATION):
            if row.get("role") == one.user:
                yield finding(f"role {one.user}", cited)
