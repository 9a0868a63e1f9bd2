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


TREE = "Blocking tree: who waits for whom"
ACTIVITY = "Sessions that are active or in a transaction"
HORIZON = "Who holds back vacuum"
IDS = "Age of transaction ids"
SEQUENCES = "Sequences near their end, in every database"
SERVER = "Server: version, uptime, role"


def context(*texts: str, **titled: str) -> Context:
    """Evidence: texts without a title that matters, and texts by the name of a title above."""
    pieces = [("The server's log around the onset", text) for text in texts]
    pieces += [(globals()[name], text) for name, text in titled.items()]
    return Context(
        (),
        tuple(
            Evidence(f"E{n}", title, "s", NOW, text)
            for n, (title, text) in enumerate(pieces, 1)
        ),
        NOW,
    )


def line(pid: int, state: str = "active for 1m", **parts: str) -> str:
    """A session as the evidence has it."""
    since = parts.get("since", "2026-01-01T00:00:00.000001Z")
    return (
        f"pid {pid}: {state}, transaction open for 2m since {since}, user app, "
        f"application {parts.get('application', 'shop')}, database d, client local, "
        f"last ran: {parts.get('query', 'SELECT 1')}"
    )


def waits(pid: int, *behind: int) -> str:
    who = ", ".join(map(str, behind))
    return f"  pid {pid} has waited 5s for pid {who}: user app, runs: SELECT 1"


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
    tree = f"root: blocks 1 session; {line(123)}\n{waits(5, 123)}\n"
    tree += f"root: blocks 2 sessions; {line(12, 'idle in transaction for 1m')}\n"
    seen = context(TREE=tree + waits(6, 12))
    answer = note(seen, ticket("blocked_sessions", blocker_pid=12, blocked_pids="6"))
    assert answer.root_cause_citations[0].quote.startswith("root: blocks 2")


def test_what_clients_choose_is_no_other_session_and_no_other_time() -> None:
    name = "x since 2030-01-01T00:00:00.000001Z, user root, database y"
    root = line(12, "idle in transaction for 1m", application=name)
    seen = context(TREE=f"root: blocks 1 session; {root}\n{waits(6, 12)}")
    answer = note(seen, ticket("blocked_sessions", blocker_pid=12, blocked_pids="6"))
    commands = [c for action in answer.recommended_actions for c in action.commands]
    assert any("xact_start = '2026-01-01T00:00:00.000001Z'" in one for one in commands)
    assert not any("2030" in one for one in commands)
    assert any('ALTER ROLE "app"' in one for one in commands)


def test_a_queue_that_is_gone_is_nobodys_end() -> None:
    seen = context(TREE="no session waits for a lock", ACTIVITY=line(12))
    answer = note(seen, ticket("blocked_sessions", blocker_pid=12, blocked_pids="6"))
    commands = [c for action in answer.recommended_actions for c in action.commands]
    assert not any("terminate" in one or "cancel" in one for one in commands)
    assert answer.confidence == "low"


def test_another_session_is_not_explained() -> None:
    seen = context(TREE=f"root: blocks 1 session; {line(12)}\n{waits(6, 12)}")
    answer = note(
        seen,
        ticket("blocked_sessions", number=1, blocker_pid=12, blocked_pids="6"),
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
            "(pg_wal) is full",
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


STOPPED = "[1] LOG:  received fast shutdown request"
BROKEN = '[2] FATAL:  configuration file "/d/postgresql.conf" contains errors'
TAKEN = """[2] LOG:  could not bind IPv4 address "127.0.0.1": Address already in use
[2] FATAL:  could not create any TCP/IP sockets"""


@pytest.mark.parametrize(
    ("log", "cause", "what"),
    [
        (
            f'{STOPPED}\n[2] LOG:  syntax error in file "/d/postgresql.conf" line 7\n{BROKEN}',
            "could not start",
            "Correct /d/postgresql.conf, line 7",
        ),
        (f"{STOPPED}\n{TAKEN}", "could not start", "See who listens on its port"),
        (f"{BROKEN}\n{STOPPED}", "received a shutdown request", "Ask who stopped it"),
        (
            f'{STOPPED}\n[2] FATAL:  lock file "/d/postmaster.pid" already exists',
            "could not start",
            "must not be deleted",
        ),
        (
            "[2] PANIC:  could not locate a valid checkpoint record at 0/1",
            "checkpoint to recover from",
            "Copy the data folder",
        ),
    ],
)
def test_why_a_server_does_not_start_comes_before_why_it_was_stopped(
    log: str, cause: str, what: str
) -> None:
    seen = context(REFUSED, f"{UP}\n{log}")
    answer = note(seen, ticket("reachable", error="connection refused"))
    assert cause in answer.root_cause and what in answer.recommended_actions[0].what


def test_a_server_that_starts_is_left_alone() -> None:
    refused = "a connection attempt failed: the database system is starting up"
    answer = note(context(refused, f"{UP}\n{STOPPED}"), ticket("reachable"))
    assert "starting up" in answer.root_cause
    assert not any("Start" in one.what for one in answer.recommended_actions)


def test_the_last_line_of_a_shape_counts_by_its_time() -> None:
    day = "2026-01-01 00:00:0"
    log = (
        f"{day}1 UTC {UP}\n\t[×3 until {day}7 UTC]\n{day}2 UTC {STOPPED}\n"
        f"{day}5 UTC {STOPPED}"
    )
    seen = context(REFUSED, log)
    answer = note(seen, ticket("reachable", error="connection refused"))
    assert "killed from outside" in answer.root_cause


def test_silence_is_not_called_a_kill() -> None:
    answer = note(
        context("a connection attempt failed: time-out", UP),
        ticket("reachable", error="timeout: no connection within 3s"),
    )
    assert "cut off from here" in answer.root_cause


def holder(kind: str, name: str, held: int, **fields: object) -> str:
    more = " ".join(f"{key}={value}" for key, value in fields.items())
    return f"kind={kind} held={held} {more} name={name}"


PREPARED = "prepared transaction"
PASSING = {"pid": 7, "state": "active", "seconds": 0, "owner": False, "database": "d"}
LASTING = {**PASSING, "state": "idle in transaction", "seconds": 90}


@pytest.mark.parametrize(
    ("lines", "named", "verdict"),
    [
        # Who owns the oldest id, not who sees its transaction run.
        (
            [
                holder("session", "pid 7", 900, **PASSING),
                holder(PREPARED, "gone", 900, owner=True),
            ],
            ["gone"],
            "identified",
        ),
        ([holder("session", "pid 7", 900, **PASSING)], [], "suspected"),
        ([holder("session", "pid 7", 900, **LASTING)], ["pid 7"], "identified"),
        # It cannot be why ids of 900 are not frozen.
        ([holder("session", "pid 7", 100, **LASTING)], [], "suspected"),
        (
            [
                holder("session", "pid 7", 900, **LASTING),
                holder("session", "pid 8", 900, **{**LASTING, "pid": 8}),
            ],
            ["pid 7", "pid 8"],
            "suspected",
        ),
    ],
)
def test_only_who_has_the_oldest_horizon_for_long_holds_vacuum_back(
    lines: list[str], named: list[str], verdict: str
) -> None:
    sessions = f"{line(7)}\n{line(8)}"
    seen = context(
        "kind=database name=d xid_age=900",
        HORIZON="\n".join(lines),
        ACTIVITY=sessions,
        IDS="kind=database name=d xid_age=900",
    )
    answer = note(seen, ticket("transaction_id_age", xid_age=900))
    assert answer.verdict == verdict
    for name in ("gone", "pid 7", "pid 8"):
        assert (name in answer.root_cause) == (name in named)


def test_what_another_database_holds_does_not_keep_dead_rows() -> None:
    lines = [
        holder("session", "pid 7", 900, **{**LASTING, "database": "other"}),
        holder("replication slot", "changes", 900, scope="catalogs"),
        holder("session", "pid 8", 10, **{**LASTING, "pid": 8}),
    ]
    seen = context(HORIZON="\n".join(lines), ACTIVITY=f"{line(7)}\n{line(8)}")
    facts = {"database": "d", "schema": "public", "table": "t"}
    answer = note(seen, ticket("dead_tuples", "d.public.t", **facts))
    assert "pid 8" in answer.root_cause and "pid 7" not in answer.root_cause
    commands = [c for action in answer.recommended_actions for c in action.commands]
    assert 'VACUUM (VERBOSE, ANALYZE) "public"."t";' in commands


def test_deadlock_without_its_log_lines_is_only_suspected() -> None:
    seen = context("database=d sessions=1 deadlocks=3")
    answer = note(seen, ticket("deadlocks", count=3))
    assert (answer.verdict, answer.confidence) == ("suspected", "low")


def test_a_note_is_for_the_tickets_that_it_explains() -> None:
    idle = "idle in transaction for 1m"
    seen = context(
        TREE=f"root: blocks 2 sessions; {line(7, idle)}\n{waits(5, 7)}\n{waits(6, 5)}\n"
        f"root: blocks 1 session; {line(8)}\n{waits(4, 8)}",
        ACTIVITY=f"{line(7, idle)}\n{line(8)}\n{line(9)}",
    )
    tickets = [
        ticket("idle_in_transaction", number=1, pid=7),
        ticket("blocked_sessions", "a", number=2, blocker_pid=7, blocked_pids="5, 6"),
        ticket("blocked_sessions", "b", number=3, blocker_pid=8, blocked_pids="4"),
        ticket("long_queries", number=4, pid=9),
    ]
    notes = preliminary(PLAYBOOKS, "postgres", tickets, seen)
    assert [sorted(ids) for ids, _ in notes] == [[1, 2], [3], [4]]
    assert ["pid 7" in output.root_cause for _, output in notes] == [True, False, False]
    assert "pid 8" in notes[1][1].root_cause and "pid 9" in notes[2][1].root_cause


def test_what_piles_up_behind_one_session_is_one_incident() -> None:
    idle = "idle in transaction for 1m"
    seen = context(
        TREE=f"root: blocks 2 sessions; {line(7, idle)}\n{waits(5, 7)}\n{waits(6, 7)}",
        ACTIVITY=line(7, idle),
        HORIZON=holder("session", "pid 7", 900, **LASTING),
    )
    facts = {"database": "d", "schema": "public", "table": "t"}
    tickets = [
        ticket("connections", "server", number=1, used=4),
        ticket("blocked_sessions", number=2, blocker_pid=7, blocked_pids="5, 6"),
        ticket("idle_in_transaction", number=3, pid=7),
        ticket("dead_tuples", "d.public.t", number=4, **facts),
        ticket("transaction_id_age", number=5, xid_age=900),
    ]
    [(ids, output)] = preliminary(PLAYBOOKS, "postgres", tickets, seen)
    assert sorted(ids) == [1, 2, 3, 4, 5] and "pid 7" in output.root_cause
    for one in tickets[2:]:  # without a queue it is the same session
        assert held_by(seen, tickets[2], one) == {3, one.id}


def held_by(seen: Context, *tickets: Ticket) -> set[int]:
    [(ids, _), *_] = preliminary(PLAYBOOKS, "postgres", tickets, seen)
    return set(ids)


def test_many_connections_that_do_not_wait_are_another_incident() -> None:
    seen = context(TREE=f"root: blocks 1 session; {line(7)}\n{waits(5, 7)}")
    tickets = [
        ticket("connections", "server", number=1, used=40),
        ticket("blocked_sessions", number=2, blocker_pid=7, blocked_pids="5"),
    ]
    notes = preliminary(PLAYBOOKS, "postgres", tickets, seen)
    assert [2] in [ids for ids, _ in notes]


def test_only_the_statement_that_was_seen_is_cancelled() -> None:
    begun = "2026-01-01T00:01:00.000000Z"
    since = f"2026-01-01T00:00:00.000001Z, statement since {begun}"
    answer = note(context(ACTIVITY=line(7, since=since)), ticket("long_queries", pid=7))
    [command] = [
        one
        for action in answer.recommended_actions
        for one in action.commands
        if "cancel" in one
    ]
    assert "xact_start = '2026-01-01T00:00:00.000001Z'" in command
    assert f"query_start = '{begun}' AND state = 'active'" in command


def test_a_storm_of_errors_is_told_with_its_meaning_and_its_role() -> None:
    line = (
        'ERROR:  nextval: reached maximum value of sequence "bill_id_seq" (2147483647)'
    )
    full = "database billing: sequence public.bill_id_seq is EXHAUSTED"
    seen = context(f"[1] {line}", SEQUENCES=full)
    storm = ticket(
        "log_error_storm", line=f"app@d {line}", count=40, role="app", database="d"
    )
    answer = note(seen, storm)
    assert "a sequence is at its end" in answer.root_cause and full in answer.root_cause
    assert "role app" in answer.summary and "bill_id_seq" in answer.summary
    assert len(answer.root_cause_citations) == 2
