"""First aid for a standby that is behind: where the log waits, on the primary's side and on its own."""

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
    log_lines,
    playbook,
    text_fact,
    write_note,
)
from midwatch.playbooks.postgres.evidence_rows import Row, count, rows, setting
from midwatch.playbooks.postgres.lock_tree import read_tree
from midwatch.playbooks.postgres.session_actions import (
    Session,
    cancel,
    end,
    inspect,
    sessions,
)
from midwatch.playbooks.postgres.slot_readers import let_in, refusals

OWN = "this server"
RISK = "After a failover, what was not replayed takes time; reads there are old."
_LOWER = (
    "hot standby is not possible because of insufficient parameter settings"
    "|recovery aborted because of insufficient parameter settings"
)
# What a standby's log says when it cannot connect or read, the most telling first: pattern, cause, what to do.
_CUT = (
    (
        r".*requested WAL segment \S+ has already been removed",
        "the primary has removed write-ahead log that the standby still needs",
        "Let the standby restore the segment from the archive (restore_command), or rebuild it with "
        "pg_basebackup; a slot keeps the log next time",
    ),
    (
        r".*replication slot \"[^\"]*\" does not exist",
        "the replication slot that the standby wants does not exist on the primary",
        "Create the slot of primary_slot_name on the primary again: the standby then goes on if its log is still there",
    ),
    (
        r".*(?:authentication failed for user|no pg_hba\.conf entry|pg_hba\.conf rejects"
        r"|is not permitted to log in|role \"[^\"]*\" does not exist|fe_sendauth: no password)",
        "the primary refuses the standby's login",
        "On the primary, correct what refuses it: the role's password or its validity, or the line in pg_hba.conf",
    ),
    (
        r".*database system identifier differs",
        "the standby follows another server than the one it was copied from",
        "Correct primary_conninfo, or rebuild the standby from that primary",
    ),
    (
        r".*highest timeline \d+ of the primary is behind recovery timeline",
        "the standby is ahead of its primary: it was promoted, or follows the wrong server",
        "See which of the two is the real primary before you change anything",
    ),
    (
        r".*could not (?:write|extend|create).*No space left on device",
        "the standby's own disk is full",
        "Make room on the standby's disk (never by deleting files in pg_wal)",
    ),
    (
        r".*(?:Connection refused|could not translate host name|No route to host|Network is unreachable"
        r"|timeout expired|Connection timed out|terminating walreceiver due to timeout"
        r"|the database system is (?:shutting down|starting up)|No such file or directory)",
        "the standby does not reach its primary: it is down, or the network between them is cut",
        "See whether the primary runs, and whether the standby reaches its address and port",
    ),
)
_STREAM = re.compile(
    r".*(?:could not connect to the primary server|WAL stream|walreceiver|streaming replication)"
)


@playbook("postgres", "replication_lag")
def replication_lag(tickets: Tickets, context: Context) -> Note:
    """A standby is behind, or has no connection."""
    ticket = tickets[0]
    name = text_fact(ticket, "standby", ticket.key.component)
    cut = text_fact(ticket, "state") == "disconnected"
    if name == OWN:
        return _own_cut(ticket, context) if cut else _own(ticket, context)
    return _away(ticket, context, name) if cut else _behind(ticket, context, name)


# ------------------------------------------------------------------ seen on the standby itself


def _own(ticket: Ticket, context: Context) -> Note:
    """This standby is connected, and does not replay what it has."""
    recovery = next(rows(context, "Recovery"), None)
    if recovery is None:
        return None
    line, row = recovery
    startup = next(
        (
            one
            for one in rows(context, "Replay")
            if one[1].get("kind") == "startup process"
        ),
        None,
    )
    wait = startup[1].get("wait_event", "") if startup else ""
    lines = [line, startup[0] if startup else None]
    if row.get("paused") == "True":
        return _paused(ticket, context, lines)
    if (
        wait.startswith("RecoveryConflict")
        or wait == "BufferPin"
        or _locked(startup, context)
    ):
        return _conflict(ticket, context, lines, startup)
    if wait == "RecoveryApplyDelay":
        return write_note(
            [ticket],
            summary="This standby replays late on purpose.",
            cause="recovery_min_apply_delay holds the replay back",
            cited=[*lines, setting(context, "recovery_min_apply_delay")[1]],
            verdict="identified",
            reason="the replay itself waits for the delay",
            actions=[
                action(
                    "See whether the delay is meant", "SHOW recovery_min_apply_delay;"
                )
            ],
            risks=[RISK],
        )
    return write_note(
        [ticket],
        summary="This standby is behind what it has received.",
        cause="the replay does not keep up"
        + (f"; it waits for {wait}" if wait else ", or nothing more is received"),
        cited=lines,
        confidence="low",
        reason="no pause and no conflict is seen; the disk or the amount of log is left",
        actions=[
            action(
                "See what the replay waits for and whether the receiver hears of the primary",
                "SELECT wait_event_type, wait_event FROM pg_stat_activity WHERE backend_type = 'startup';",
                "SELECT status, sender_host, latest_end_lsn, last_msg_receipt_time FROM pg_stat_wal_receiver;",
            ),
            action("See how busy the standby's disk is", "iostat -x 1 5"),
        ],
        risks=[RISK],
    )


def _locked(startup: tuple[Citation, Row] | None, context: Context) -> list[int]:
    """Return who holds the lock that the replay waits for."""
    return read_tree(context).roots_of([count(startup[1], "pid")]) if startup else []


def _paused(ticket: Ticket, context: Context, lines: Sequence[Citation | None]) -> Note:
    lower = log_lines(context, _LOWER)
    if lower:
        return write_note(
            [ticket],
            summary="The replay is paused: a setting of this standby is lower than on its primary.",
            cause="a setting is lower than on the primary, so the replay cannot go on",
            cited=[*lines, lower[0]],
            verdict="identified",
            confidence="high",
            reason="the server's own message",
            actions=[
                action(
                    "Raise the setting that the log names to the primary's value, and restart the "
                    "standby; resuming the replay without that would stop the server",
                    "SELECT name, setting FROM pg_settings WHERE name IN ('max_connections',\n"
                    "  'max_worker_processes', 'max_wal_senders', 'max_prepared_transactions',\n"
                    "  'max_locks_per_transaction');",
                )
            ],
            risks=[RISK],
        )
    return write_note(
        [ticket],
        summary="The replay of this standby is paused.",
        cause="somebody has paused the replay (pg_wal_replay_pause)",
        cited=lines,
        verdict="identified",
        confidence="high",
        reason="the server says that its replay is paused",
        actions=[
            action(
                "Ask who paused it (a backup, a comparison of data), then resume",
                "SELECT pg_wal_replay_resume() WHERE pg_is_wal_replay_paused();",
                risk="what the pause was for ends",
            )
        ],
        risks=[RISK],
        missing=["Who paused it, and why."],
    )


def _conflict(
    ticket: Ticket,
    context: Context,
    lines: Sequence[Citation | None],
    startup: tuple[Citation, Row] | None,
) -> Note:
    """The replay waits for queries of this standby that still see what it must remove."""
    known = sessions(context)
    pids = _locked(startup, context) or _oldest(context)
    found = [known[pid] for pid in pids if pid in known]
    names = " and ".join(one.name for one in found) or "a query of this standby"
    return write_note(
        [ticket],
        summary=f"The replay of this standby waits for {names}.",
        cause=f"{names} {'conflicts' if len(found) < 2 else 'conflict'} with the replay: "
        + "; ".join(one.query[:200] for one in found),
        cited=[*lines, *(one.citation for one in found)],
        verdict="identified" if len(found) == 1 else "suspected",
        reason=(
            "the replay itself waits for a conflict, and this session has the oldest snapshot or the lock"
            if len(found) == 1
            else "the replay waits for a conflict; with which of them is not shown"
        ),
        actions=[
            *([inspect(*(one.id for one in found))] if found else []),
            *(
                one
                for session in found
                if len(found) == 1
                for one in _give_way(session)
            ),
            action(
                "Or let the server end such queries by itself after a while",
                "ALTER SYSTEM SET max_standby_streaming_delay = '30s';",
                "SELECT pg_reload_conf();",
                risk="queries of the standby that conflict for longer are cancelled",
            ),
        ],
        risks=[RISK],
    )


def _oldest(context: Context) -> list[int]:
    """Return the sessions with the oldest snapshot on this standby; several are a tie."""
    found = [
        (count(row, "held"), count(row, "pid"))
        for _, row in rows(context, "Who holds back vacuum")
        if row.get("kind") == "session"
    ]
    worst = max((held for held, _ in found), default=0)
    return [pid for held, pid in found if held == worst and pid]


def _give_way(session: Session) -> list[Action]:
    if session.spared:
        return [action(f"Let {session.name} finish: {session.spared}")]
    what = f"If its owner can repeat it, end what {session.name} does"
    if session.idle:
        return end(session, what)
    return cancel(session, what)


def _own_cut(ticket: Ticket, context: Context) -> Note:
    """This standby has no connection to its primary: its log tells why."""
    line = next((cited for cited, _ in rows(context, "Recovery")), None)
    for pattern, cause, do in _CUT:
        own = log_lines(context, pattern, "FATAL|ERROR|LOG|PANIC")
        found = [one for one in own if _streams(one.quote)] or _repeated(
            context, pattern
        )
        if found:
            sure = "high" if own else "medium"
            return _cut_note(ticket, "This standby", cause, do, [found[0], line], sure)
    return _cut_note(
        ticket,
        "This standby",
        "its connection is refused or cut, or the primary is down",
        "See whether the primary runs, and whether the standby reaches it and may log in",
        [line],
        "low",
    )


def _streams(line: str) -> bool:
    """Return whether a line of the log is about the connection to the primary, or the standby's own disk."""
    return bool(_STREAM.match(line)) or "No space left" in line


def _repeated(context: Context, pattern: str) -> list[Citation]:
    """Return the latest line in which the standby repeats what its primary answered.

    It has two severities, so that a line prefix with names makes it uncertain whose words it is.
    """
    found = [
        Citation(evidence_id=evidence_id, quote=bounded(text))
        for evidence_id, text in evidence_lines(context, "server's log")
        if _STREAM.match(text) and re.match(pattern, text)
    ]
    return found[-1:]


# ------------------------------------------------------------------ seen on the primary


def _away(ticket: Ticket, context: Context, name: str) -> Note:
    """A standby of this server has no connection."""
    who = f"Standby {name}"
    line = next((cited for cited, _ in rows(context, "Recovery")), None)
    gone = log_lines(context, _CUT[0][0])
    if gone or ticket.facts.get("wal_gone") is True:
        return _cut_note(ticket, who, _CUT[0][1], _CUT[0][2], [*gone[:1], line], "high")
    refused = refusals(context)
    if refused:
        why = "; ".join(dict.fromkeys(one.cause for one in refused))
        return _cut_note(
            ticket,
            who,
            f"its login is refused: {why}",
            "Afterwards see whether it connects again",
            [*(one.citation for one in refused), line],
            "medium",
            [let_in(one) for one in refused],
        )
    return _cut_note(
        ticket,
        who,
        "it is down, or the network to it is cut",
        f"See whether {name} at {text_fact(ticket, 'client', 'its address')} runs, what its log says, "
        "and whether it reaches this server",
        [line],
        "low",
    )


def _cut_note(
    ticket: Ticket,
    who: str,
    cause: str,
    do: str,
    cited: Sequence[Citation | None],
    confidence: str,
    first: Sequence[Action] = (),
) -> Note:
    return write_note(
        [ticket],
        summary=f"{who} has no connection to its primary: {cause}.",
        cause=cause,
        cited=cited,
        confidence=(
            "high"
            if confidence == "high"
            else "medium" if confidence == "medium" else "low"
        ),
        verdict="identified" if confidence == "high" else "suspected",
        reason=(
            "the connection is missing; the log of the standby tells why"
            if confidence == "low"
            else "the server's own log says so"
        ),
        actions=[
            *first,
            action(
                do,
                "SELECT status, sender_host, last_msg_receipt_time FROM pg_stat_wal_receiver;",
                "SELECT application_name, client_addr, state FROM pg_stat_replication;",
            ),
        ],
        risks=["A failover to it loses what it has not received."],
        missing=[] if confidence == "high" else ["The log of the standby."],
    )


_STAGES = (
    (
        "unsent",
        "this server does not send it: the sender or the network is slow, or the standby does not read",
    ),
    ("unflushed", "the network or the standby's disk takes it too slowly"),
    (
        "unreplayed",
        "the standby has it, and does not replay it: a pause, a conflict with its queries, or too slow",
    ),
)


def _behind(ticket: Ticket, context: Context, name: str) -> Note:
    """A connected standby of this server is behind: the positions tell on which side the log waits."""
    found = [
        (cited, row)
        for cited, row in rows(context, "Standbys")
        if row.get("application_name") == name
        and row.get("client", "") == text_fact(ticket, "client", row.get("client", ""))
    ]
    if not found:
        return None
    line, row = found[0]
    waits = {stage: count(row, stage) for stage, _ in _STAGES}
    stage = max(waits, key=lambda one: waits[one])
    where = dict(_STAGES)[stage] if waits[stage] else "it has caught up meanwhile"
    return write_note(
        [ticket],
        summary=f"Standby {name} is behind: {where}.",
        cause=f"{name}: {where}",
        cited=[line],
        confidence="medium" if waits[stage] else "low",
        reason="the positions show where the log waits, not why",
        actions=[
            (
                action(
                    f"On {name}, see whether the replay is paused and what it waits for",
                    "SELECT pg_is_wal_replay_paused(), pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn();",
                    "SELECT wait_event_type, wait_event FROM pg_stat_activity WHERE backend_type = 'startup';",
                    "SELECT * FROM pg_stat_database_conflicts;",
                )
                if stage == "unreplayed"
                else action(
                    f"Check the network to {name}, and its disk", "iostat -x 1 5"
                )
            )
        ],
        risks=[RISK],
        missing=["What the standby itself does."],
    )
