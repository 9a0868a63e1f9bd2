"""First aid for PostgreSQL: what it says, what it cites, and when it keeps silent."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from midwatch.agent.first_aid import preliminary
from midwatch.diagnosis_schema import DiagnosisOutput
from midwatch.model import (
    Context,
    Evidence,
    Fact,
    Key,
    Severity,
    Ticket,
    TicketStatus,
)
from midwatch.playbooks.postgres import PLAYBOOKS
from midwatch.subjects.postgres import INVARIANTS

NOW = datetime(2026, 1, 1, tzinfo=UTC)
UP = "[1] LOG:  database system is ready to accept connections"
REFUSED = "a connection attempt failed: connection refused"


def ticket(
    invariant: str, component: str = "d", number: int = 1, **facts: Fact
) -> Ticket:
    return Ticket(
        id=number,
        key=Key("db", invariant, component),
        severity=Severity.WARNING,
        status=TicketStatus.OPEN,
        held=False,
        message="",
        facts=facts,
        opened_at=NOW,
        first_seen_at=NOW,
        last_seen_at=NOW,
        occurrence_count=1,
        batch=1,
    )


def context(*texts: str) -> Context:
    pieces = [Evidence(f"E{n}", "t", "s", NOW, text) for n, text in enumerate(texts, 1)]
    return Context((), tuple(pieces), NOW)


def first_aid(seen: Context, *tickets: Ticket) -> DiagnosisOutput | None:
    for playbook in PLAYBOOKS:
        note = playbook.first_aid(tickets, seen)
        if note is not None:
            return note
    return None


def note(seen: Context, *tickets: Ticket) -> DiagnosisOutput:
    answer = first_aid(seen, *tickets)
    assert answer is not None
    return answer


def test_every_invariant_has_a_playbook() -> None:
    known = {name for playbook in PLAYBOOKS for name in playbook.invariants}
    assert known == {invariant.id for invariant in INVARIANTS}


@pytest.mark.parametrize("invariant", [one.id for one in INVARIANTS])
def test_without_evidence_nothing_is_said(invariant: str) -> None:
    facts: Mapping[str, Fact] = {"pid": 7, "blocker_pid": 7, "holder_user": "app"}
    assert first_aid(context(), ticket(invariant, **facts)) is None
    lost = Evidence("E1", "t", "s", NOW, f"pid 7: x\n{REFUSED}", available=False)
    assert first_aid(Context((), (lost,), NOW), ticket(invariant, **facts)) is None


def test_a_pid_is_not_taken_for_a_longer_one() -> None:
    seen = context(
        "root: blocks 1 session; pid 123: active\nroot: blocks 2 sessions; pid 12: idle in transaction"
    )
    answer = note(
        seen,
        ticket(
            "blocked_sessions",
            blocker_pid=12,
            blocker_state="idle in transaction",
            blocked_count=2,
        ),
    )
    assert answer.root_cause_citations[0].quote.startswith("root: blocks 2")


def test_another_session_is_not_explained() -> None:
    seen = context("root: blocks 1 session; pid 12: active")
    answer = note(
        seen,
        ticket("blocked_sessions", number=1, blocker_pid=12, blocker_state="active"),
        ticket("idle_in_transaction", number=2, pid=99),
    )
    assert answer.explained_tickets == [1]


@pytest.mark.parametrize(
    ("log", "cause", "verdict"),
    [
        (
            f"{UP}\n[1] LOG:  received fast shutdown request",
            "it received a shutdown request",
            "identified",
        ),
        (
            f'{UP}\n[1] PANIC:  could not write to file "pg_wal/x": No space left on device',
            "disk is full",
            "identified",
        ),
        (
            f"{UP}\n[1] LOG:  client backend (PID 9) was terminated by signal 9: Killed",
            "signal 9",
            "identified",
        ),
        (f"{UP}\n[1] PANIC:  corrupted item", "PANIC", "identified"),
        (
            f"[1] LOG:  received fast shutdown request\n{UP}",
            "killed from outside",
            "suspected",
        ),
        (f"{UP}\n[2] ERROR:  out of memory", "killed from outside", "suspected"),
        (
            f"{UP}\n[2] LOG:  statement: select 'LOG:  received fast shutdown request'",
            "killed from outside",
            "suspected",
        ),
    ],
)
def test_the_end_of_a_server_is_read_from_its_log_since_it_came_up(
    log: str, cause: str, verdict: str
) -> None:
    answer = note(
        context(REFUSED, log), ticket("reachable", error="connection refused")
    )
    assert cause in answer.root_cause
    assert answer.verdict == verdict


def test_silence_is_not_called_a_kill() -> None:
    answer = note(
        context("a connection attempt failed: time-out", UP),
        ticket("reachable", error="timeout: no connection within 3s"),
    )
    assert "cut off from here" in answer.root_cause


def test_holder_of_the_horizon_is_the_oldest_one() -> None:
    seen = context(
        "kind=session name=pid 7 held=10 detail=user app held=9999\n"
        "kind=replication slot name=it's old held=900 detail=inactive",
        "kind=database name=d xid_age=900",
    )
    answer = note(seen, ticket("transaction_id_age"))
    commands = [c for action in answer.recommended_actions for c in action.commands]
    assert "SELECT pg_drop_replication_slot('it''s old');" in commands
    assert answer.supporting_evidence[0].citations[0].evidence_id == "E2"


def test_deadlock_without_its_log_lines_is_only_suspected() -> None:
    seen = context("database=d sessions=1 deadlocks=3")
    answer = note(seen, ticket("deadlocks", count=3))
    assert (answer.verdict, answer.confidence) == ("suspected", "low")


def test_a_note_is_for_the_tickets_that_it_explains() -> None:
    seen = context(
        "root: blocks 2 sessions; pid 7: idle in transaction\npid 7: idle in transaction",
        "root: blocks 1 session; pid 8: active\npid 8: active\npid 9: active",
    )
    tickets = [
        ticket("idle_in_transaction", number=1, pid=7),
        ticket("blocked_sessions", "a", number=2, blocker_pid=7),
        ticket("blocked_sessions", "b", number=3, blocker_pid=8),
        ticket("long_queries", number=4, pid=9),
    ]
    notes = preliminary(PLAYBOOKS, "postgres", tickets, seen)
    assert [sorted(ids) for ids, _ in notes] == [[1, 2], [3], [4]]
    assert ["pid 7" in output.root_cause for _, output in notes] == [True, False, False]
    assert "pid 8" in notes[1][1].root_cause and "pid 9" in notes[2][1].root_cause
