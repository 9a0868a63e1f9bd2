"""The postgres subject against a real server, with faults that really happen."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from midwatch.diagnosis_schema import DiagnosisOutput
from midwatch.errors import MidwatchError, ObservationFailed
from midwatch.model import (
    Context,
    Evidence,
    Json,
    Key,
    Observation,
    Severity,
    Signal,
    Ticket,
    TicketStatus,
)
from midwatch.playbooks.postgres import PLAYBOOKS
from midwatch.subjects.postgres import PostgresSettings, PostgresSubject
from midwatch.subjects.postgres.connection import Connection, QueryFailed
from midwatch.testing.postgres import PrivatePostgres

from ..waiting import PATIENCE, PATIENT

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ALL = {invariant.id for invariant in PostgresSubject.default_invariants}


@pytest.fixture(scope="module")
def server() -> Iterator[PrivatePostgres]:
    with PrivatePostgres(tcp=True, settings={"deadlock_timeout": "50ms"}) as one:
        with psycopg.connect(one.dsn(), autocommit=True) as admin:
            admin.execute("CREATE ROLE watcher LOGIN PASSWORD 'the watcher''s: 100%/@'")
            admin.execute("GRANT pg_monitor TO watcher")
            admin.execute("CREATE ROLE stranger LOGIN")
            admin.execute("CREATE DATABASE orders")
        with psycopg.connect(one.dsn("orders"), autocommit=True) as admin:
            admin.execute("CREATE TABLE stock (id int PRIMARY KEY, n int)")
            admin.execute("INSERT INTO stock SELECT g, 0 FROM generate_series(1, 9) g")
        yield one


def subject(server: PrivatePostgres, **settings: Any) -> PostgresSubject:
    dsn = server.dsn("orders", "watcher")
    given = {"name": "db", "dsn": dsn, **PATIENT, **settings}
    given.setdefault("log_file", server.log_file)
    return PostgresSubject(PostgresSettings.model_validate(given))


async def twice(watched: PostgresSubject, meanwhile: float = 0.02) -> Observation:
    first = await watched.observe({})
    await asyncio.sleep(meanwhile)
    return await watched.observe(first.state)


def broken(watched: PostgresSubject, seen: Observation) -> dict[str, Signal]:
    limits = {invariant.id: invariant.limit for invariant in watched.invariants}

    def breaks(one: Signal) -> bool:
        if one.holds is not None:
            return not one.holds
        limit = limits[one.invariant]
        return one.value is not None and limit is not None and one.value > limit

    return {one.invariant: one for one in seen.signals if breaks(one)}


def ticket(one: Signal, number: int = 1) -> Ticket:
    return Ticket(
        id=number,
        key=Key("db", one.invariant, one.component),
        severity=Severity.CRITICAL,
        status=TicketStatus.OPEN,
        held=False,
        message=one.message,
        facts=one.facts,
        opened_at=NOW,
        first_seen_at=NOW,
        last_seen_at=NOW,
        occurrence_count=1,
        batch=1,
    )


async def evidence(watched: PostgresSubject, tickets: Sequence[Ticket]) -> Context:
    sources = watched.sources(tickets)

    async def fetch(source: Any) -> tuple[str, bool]:
        try:
            return await source.fetch(), True
        except MidwatchError as error:
            return error.one_line(), False

    texts = await asyncio.gather(*map(fetch, sources))
    pieces = tuple(
        Evidence(f"E{place}", source.title, source.source, NOW, text, available)
        for place, (source, (text, available)) in enumerate(zip(sources, texts), 1)
    )
    return Context(tuple(tickets), pieces, NOW)


def text_of(context: Context, title: str) -> str:
    """The text of the evidence whose title begins with this."""
    [piece] = [one for one in context.evidence if one.title.startswith(title)]
    assert piece.available, piece.text
    return piece.text


def first_aid(tickets: Sequence[Ticket], context: Context) -> DiagnosisOutput:
    """The first playbook's word, with every citation checked against the evidence."""
    for playbook in PLAYBOOKS:
        note = playbook.first_aid(tickets, context)
        if note is not None:
            texts = {one.id: one.text for one in context.evidence}
            cited = [*note.root_cause_citations]
            for finding in note.supporting_evidence:
                cited += finding.citations
            assert cited and all(c.quote in texts[c.evidence_id] for c in cited)
            return note
    raise AssertionError("no playbook knew anything")


@contextlib.asynccontextmanager
async def client(
    server: PrivatePostgres, application: str, **options: Any
) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    connection = await psycopg.AsyncConnection.connect(
        server.dsn("orders"), application_name=application, **options
    )
    try:
        yield connection
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def running(*work: Awaitable[Any]) -> AsyncIterator[None]:
    """Statements under way (they wait for something), ended at the end."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(
    observe_once: Callable[[], Awaitable[Observation]],
    seen: Callable[[Observation], bool],
) -> Observation:
    deadline = time.monotonic() + PATIENCE
    while not seen(observation := await observe_once()):
        assert time.monotonic() < deadline, observation
        await asyncio.sleep(0.02)
    return observation


async def test_healthy_server_is_wholly_seen_by_a_monitoring_role(
    server: PrivatePostgres,
) -> None:
    watched = subject(server, growth_window="50ms")
    seen = await twice(watched)
    assert seen.covered == ALL
    assert seen.unavailable == {}
    assert broken(watched, seen) == {}
    assert {("reachable", "server"), ("connections", "server")} <= {
        (one.invariant, one.component) for one in seen.signals
    }


async def test_the_first_look_does_not_know_what_has_to_be_compared(
    server: PrivatePostgres,
) -> None:
    seen = await subject(server).observe({})
    assert ALL - seen.covered == {
        "deadlocks",
        "database_growth",
        "log_errors",
        "log_error_storm",
    }
    assert seen.unavailable == {}  # nothing failed


async def test_lock_pile_up_names_the_root_and_first_aid_quotes_it(
    server: PrivatePostgres,
) -> None:
    watched = subject(server, invariants={"blocked_sessions": {"limit": 0}})
    async with (
        client(server, "orders-worker") as root,
        client(server, "shop") as second,
        client(server, "billing") as third,
        client(server, "reports", autocommit=True) as fourth,
    ):
        pid = root.info.backend_pid
        await root.execute("UPDATE stock SET n = 1 WHERE id = 1")
        await second.execute("UPDATE stock SET n = 2 WHERE id = 2")
        async with running(
            second.execute("UPDATE stock SET n = 2 WHERE id = 1"),
            third.execute("UPDATE stock SET n = 3 WHERE id = 2"),
            fourth.execute("UPDATE stock SET n = 4 WHERE id = 2"),
        ):
            seen = await until(
                lambda: watched.observe({}),
                lambda one: any(s.facts.get("blocked_count") == 3 for s in one.signals),
            )
            blocked = broken(watched, seen)["blocked_sessions"]
            context = await evidence(watched, [ticket(blocked)])
            idle = next(s for s in seen.signals if s.invariant == "idle_in_transaction")
    assert blocked.component == "orders"
    assert blocked.facts["blocker_pid"] == pid
    assert blocked.facts["blocker_state"] == "idle in transaction"
    assert blocked.facts["blocker_application"] == "orders-worker"
    assert blocked.facts["blocker_query"] == "UPDATE stock SET n = 1 WHERE id = 1"
    assert "application orders-worker) blocks 3 sessions" in blocked.message
    tree = text_of(context, "Blocking tree").splitlines()
    assert tree[0].startswith(
        f"root: blocks 3 sessions; pid {pid}: idle in transaction"
    )
    settings = next(e for e in context.evidence if e.title == "Relevant settings")
    # The server's, not those of our own session.
    assert "idle_in_transaction_session_timeout: 0 ms" in settings.text
    assert [len(line) - len(line.lstrip()) for line in tree] in (
        [0, 2, 4, 4],
        [0, 2, 4, 6],
    )
    note = first_aid([ticket(blocked), ticket(idle, 2)], context)
    assert note.verdict == "identified" and "orders-worker" in note.root_cause
    assert note.explained_tickets == [1, 2]
    ending = next(a for a in note.recommended_actions if "terminate" in a.commands[0])
    assert f"WHERE pid = {pid} AND xact_start = '" in ending.commands[0]
    assert not ending.reversible


async def test_blocker_that_works_is_cancelled_first(server: PrivatePostgres) -> None:
    watched = subject(
        server,
        invariants={
            "blocked_sessions": {"limit": 0},
            "long_queries": {"limit": 0},
        },
    )
    async with client(server, "batch") as root, client(server, "shop") as other:
        await root.execute("UPDATE stock SET n = 1 WHERE id = 1")
        async with running(
            root.execute("SELECT pg_sleep(30)"),
            other.execute("UPDATE stock SET n = 2 WHERE id = 1"),
        ):
            seen = await until(
                lambda: watched.observe({}),
                lambda one: {"blocked_sessions", "long_queries"}
                <= set(broken(watched, one)),
            )
            found = broken(watched, seen)
            tickets = [
                ticket(found["blocked_sessions"], 1),
                ticket(found["long_queries"], 2),
            ]
            context = await evidence(watched, tickets)
    assert found["long_queries"].facts["application"] == "batch"  # not the waiting one
    note = first_aid(tickets, context)
    pid = found["blocked_sessions"].facts["blocker_pid"]
    commands = [c for action in note.recommended_actions for c in action.commands]
    [cancel] = [one for one in commands if "cancel" in one or "terminate" in one]
    assert cancel.startswith(f"SELECT pg_cancel_backend({pid})")
    assert note.explained_tickets == [1, 2]
    alone = first_aid([tickets[1]], context)
    assert "batch" in alone.summary


async def test_deadlock_is_counted_until_its_window_ends(
    server: PrivatePostgres,
) -> None:
    watched = subject(server, event_window=0)
    before = await watched.observe({})
    async with client(server, "left") as left, client(server, "right") as right:
        await left.execute("UPDATE stock SET n = 1 WHERE id = 5")
        await right.execute("UPDATE stock SET n = 1 WHERE id = 6")
        results = await asyncio.gather(
            left.execute("UPDATE stock SET n = 1 WHERE id = 6"),
            right.execute("UPDATE stock SET n = 1 WHERE id = 5"),
            return_exceptions=True,
        )
    assert any(isinstance(r, psycopg.errors.DeadlockDetected) for r in results)
    seen = await until(
        lambda: watched.observe(before.state),
        lambda one: "deadlocks" in broken(watched, one),
    )
    found = broken(watched, seen)["deadlocks"]
    assert (found.component, found.value) == ("orders", 1.0)
    note = first_aid([ticket(found)], await evidence(watched, [ticket(found)]))
    assert "deadlock detected" in note.root_cause_citations[0].quote
    assert note.confidence == "high"
    after = await watched.observe(seen.state)
    assert "deadlocks" not in broken(watched, after) and after.covers("deadlocks")


async def test_a_counter_that_was_reset_counts_from_zero(
    server: PrivatePostgres,
) -> None:
    watched = subject(server, event_window=0)
    state: Json = {"deadlocks": {"orders": [[time.time() - 5, 1e6]]}}
    seen = await watched.observe(state)
    value = next(
        s.value
        for s in seen.signals
        if s.component == "orders" and s.invariant == "deadlocks"
    )
    assert value is not None and 0 <= value < 100


async def test_what_the_server_stores_is_seen_per_table_slot_and_database(
    server: PrivatePostgres,
) -> None:
    watched = subject(
        server,
        growth_window="2s",
        dead_tuples_floor=500,
        invariants={
            "dead_tuples": {"limit": "30%"},
            "inactive_slots": {"limit": "1kB"},
            "database_growth": {"limit": "100kB"},
            "transaction_id_age": {"limit": 0},
        },
    )
    first = await watched.observe({})
    async with client(server, "loader", autocommit=True) as loader:
        await loader.execute(
            "SELECT pg_create_physical_replication_slot('old_one', true)"
        )
        await loader.execute(
            "CREATE TABLE heap WITH (autovacuum_enabled = off) AS "
            "SELECT g AS id, repeat('x', 200) AS filler FROM generate_series(1, 2000) g"
        )
        await loader.execute("DELETE FROM heap WHERE id > 1000")
        await loader.execute("SELECT pg_stat_force_next_flush()")
        await asyncio.sleep(0.4)
        seen = await watched.observe(first.state)
        found = broken(watched, seen)
        tickets = [ticket(one, number) for number, one in enumerate(found.values(), 1)]
        context = await evidence(watched, tickets)
        await loader.execute("SELECT pg_drop_replication_slot('old_one')")
        await loader.execute("DROP TABLE heap")
    assert found["dead_tuples"].component == "orders.public.heap"
    assert found["dead_tuples"].value == 0.5
    assert found["inactive_slots"].component == "old_one"
    assert found["database_growth"].component == "orders"
    assert "transaction_id_age" in found
    assert not [piece for piece in context.evidence if not piece.available]
    sizes = next(e for e in context.evidence if e.title.startswith("Sizes of"))
    assert "kind=table with indexes name=" in sizes.text
    for one in tickets:
        note = first_aid([one], context)
        assert note.explained_tickets == [one.id]


async def test_full_server_is_reachable_and_only_that_is_known() -> None:
    settings = {"max_connections": 6, "superuser_reserved_connections": 2}
    with PrivatePostgres(settings=settings) as small:
        with psycopg.connect(small.dsn(), autocommit=True) as admin:
            admin.execute("CREATE ROLE watcher LOGIN IN ROLE pg_monitor")
            admin.execute("CREATE ROLE web LOGIN CONNECTION LIMIT 4")
        watched = subject(small, dsn=small.dsn(user="watcher"))
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(
                    psycopg.connect(small.dsn(user="web"), application_name="web")
                )
            refused = await watched.observe({"sizes": {"kept": [[1.0, 2.0]]}})
            taken = broken(watched, refused)["connections"]
            blind = await evidence(watched, [ticket(taken)])
            admin_sees = subject(small, dsn=small.dsn())
            seen = await admin_sees.observe({})
            found = {
                s.component: s for s in seen.signals if s.invariant == "connections"
            }
            context = await evidence(admin_sees, [ticket(found["server"])])
    assert refused.covered == {"reachable"} and not refused.unavailable
    assert refused.state["sizes"] == {"kept": [[1.0, 2.0]]}
    assert (taken.component, taken.value, taken.holds) == ("server", 1.0, False)
    assert "reachable" not in broken(watched, refused)
    assert not blind.evidence[1].available  # who holds them cannot be seen without one
    assert "connections are refused" in first_aid([ticket(taken)], blind).summary
    assert found["server"].value == 4 / 4  # ours does not count
    assert found["role web"].value == 1.0
    note = first_aid([ticket(found["server"])], context)
    assert "application web" in note.summary and "4 of 4" in note.summary


async def test_killed_shut_down_and_recovered_server() -> None:
    with PrivatePostgres() as victim:
        with psycopg.connect(victim.dsn(), autocommit=True) as admin:
            admin.execute("CREATE DATABASE orders")
        watched = subject(victim, dsn=victim.dsn())
        before = await watched.observe({})
        victim.kill()
        seen = await watched.observe(before.state)
        down = broken(watched, seen)["reachable"]
        logs = {"log_errors", "log_error_storm"}
        assert seen.covered == {"reachable", *logs} and not seen.unavailable
        assert "refused" in down.message
        killed = first_aid([ticket(down)], await evidence(watched, [ticket(down)]))
        assert "killed from outside" in killed.root_cause
        assert killed.verdict == "suspected"

        victim.restart()
        back = await watched.observe(seen.state)
        assert "reachable" not in broken(watched, back)
        crash = broken(watched, back)["log_errors"]
        assert crash.component == "crash"
        first_aid([ticket(crash)], await evidence(watched, [ticket(crash)]))

        victim.shutdown()
        down = broken(watched, await watched.observe(back.state))["reachable"]
        stopped = first_aid([ticket(down)], await evidence(watched, [ticket(down)]))
        assert stopped.verdict == "identified"
        assert "received fast shutdown request" in stopped.root_cause_citations[0].quote


async def test_silent_server_is_a_time_out_and_ends_in_time(
    server: PrivatePostgres,
) -> None:
    watched = subject(server, connect_timeout="200ms")
    os.kill(server.pid, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        seen = await watched.observe({})
        assert time.monotonic() - begun < PATIENCE
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert "timeout" in broken(watched, seen)["reachable"].message


async def test_backend_that_hangs_does_not_hang_us(server: PrivatePostgres) -> None:
    settings = PostgresSettings.model_validate(
        {"name": "db", "dsn": server.dsn(), "statement_timeout": "100ms"}
    )
    async with Connection(settings) as connection:
        os.kill(connection.pid, signal.SIGSTOP)
        try:
            begun = time.monotonic()
            with pytest.raises(QueryFailed):
                await connection.rows("SELECT 1 AS one")
            assert time.monotonic() - begun < PATIENCE
        finally:
            os.kill(connection.pid, signal.SIGCONT)


async def test_refused_log_in_is_our_error_and_tells_no_password(
    server: PrivatePostgres,
) -> None:
    dsn = server.dsn("orders", "watcher", "s3cret wörd/@", tcp=True)
    watched = subject(server, dsn=dsn)
    assert {"s3cret wörd/@", "s3cret%20w%C3%B6rd%2F%40"} <= set(watched.secrets)
    with pytest.raises(ObservationFailed) as refused:
        await watched.observe({})
    assert "password authentication failed" in refused.value.message
    assert "dsn of subject db" in refused.value.hint
    assert "s3cret" not in refused.value.one_line() + repr(watched._settings)
    right = server.dsn("orders", "watcher", "the watcher's: 100%/@", tcp=True)
    assert (await subject(server, dsn=right).observe({})).covers("connections")


async def test_unknown_database_is_our_error(server: PrivatePostgres) -> None:
    watched = subject(server, dsn=server.dsn("nowhere", "watcher"))
    with pytest.raises(ObservationFailed, match='"nowhere" does not exist'):
        await watched.observe({})


async def test_name_that_does_not_resolve_is_unreachable() -> None:
    settings = PostgresSettings.model_validate(
        {"name": "db", "dsn": "postgresql://u@no-such-host.invalid/d"}
    )
    seen = await PostgresSubject(settings).observe({})
    assert seen.signals[0].holds is False and seen.covered == {"reachable"}


async def test_half_visible_server_leaves_only_the_rest_covered(
    server: PrivatePostgres,
) -> None:
    with psycopg.connect(server.dsn("orders"), autocommit=True) as admin:
        admin.execute("REVOKE EXECUTE ON FUNCTION pg_database_size(oid) FROM PUBLIC")
        try:
            seen = await twice(subject(server))
        finally:
            admin.execute("GRANT EXECUTE ON FUNCTION pg_database_size(oid) TO PUBLIC")
    assert seen.covered == ALL - {"database_growth"}
    assert not seen.unavailable
    assert "permission denied" in seen.unsupported["database_growth"]
    assert "grant" in seen.unsupported["database_growth"]


async def test_role_without_pg_monitor_is_half_blind_and_says_so(
    server: PrivatePostgres,
) -> None:
    watched = subject(server, dsn=server.dsn("orders", "stranger"))
    seen = await watched.observe({})
    assert not seen.covers("blocked_sessions") and not seen.covers("connections")
    assert "pg_monitor" in seen.unsupported["idle_in_transaction"]
    assert not seen.unavailable
    assert seen.covers("transaction_id_age")


async def test_we_hold_no_transaction_and_leave_no_session(
    server: PrivatePostgres,
) -> None:
    ours = (
        "SELECT state FROM pg_stat_activity "
        "WHERE application_name = 'midwatch' AND pid <> pg_backend_pid()"
    )
    watched = subject(server)
    states: list[str] = []
    signal_ = Signal("blocked_sessions", "orders", "")

    async def work() -> None:
        for _ in range(8):
            await watched.observe({})
            await evidence(watched, [ticket(signal_)])

    async with client(server, "judge", autocommit=True) as judge:
        task = asyncio.ensure_future(work())
        while not task.done():
            states += [row[0] for row in await (await judge.execute(ours)).fetchall()]
        await task
        assert states and not any("transaction" in str(state) for state in states)
        deadline = time.monotonic() + PATIENCE
        while await (await judge.execute(ours)).fetchall():
            assert time.monotonic() < deadline


async def test_a_look_makes_no_class(server: PrivatePostgres) -> None:
    """Each would stay until the oldest generation of garbage is collected, which a daemon does rarely."""

    def classes() -> int:
        return sum(isinstance(one, type) for one in gc.get_objects())

    watched = subject(server)
    await twice(watched)
    gc.disable()
    try:
        before = classes()
        await twice(watched)
        assert classes() == before
    finally:
        gc.enable()


async def test_the_log_is_read_through_the_server_where_the_role_may() -> None:
    with PrivatePostgres(settings={"logging_collector": True}) as collecting:
        with psycopg.connect(collecting.dsn(), autocommit=True) as admin:
            admin.execute("CREATE ROLE watcher LOGIN IN ROLE pg_monitor")
            poor = subject(
                collecting, dsn=collecting.dsn(user="watcher"), log_file=None
            )
            assert not (await twice(poor)).covers("log_errors")
            rich = subject(collecting, dsn=collecting.dsn(), log_file=None)
            first = await rich.observe({})
            crash_line = "server process (PID 7) was terminated by signal 9: Killed"
            log = next((collecting.folder / "data" / "log").iterdir())
            with log.open("ab") as end:
                end.write(
                    f"2026-01-01 [1] LOG:  {crash_line}\n\xff half a".encode("latin1")
                )
            seen = await rich.observe(first.state)
            assert broken(rich, seen)["log_errors"].component == "crash"
            context = await evidence(rich, [ticket(broken(rich, seen)["log_errors"])])
    assert crash_line in context.evidence[0].text
