"""First aid on faults of real servers: it names the culprit, and ends nobody that is not proven to be it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest

from midwatch.agent.evidence import ContextGatherer
from midwatch.agent.first_aid import preliminary
from midwatch.agent.grounding import ground
from midwatch.diagnosis_schema import DiagnosisOutput
from midwatch.lifecycle import SystemClock
from midwatch.model import Ticket
from midwatch.monitor.rules import check
from midwatch.playbooks.base import sql_literal, tickets_of
from midwatch.playbooks.postgres import PLAYBOOKS
from midwatch.redaction import Redactor
from midwatch.subjects.postgres import PostgresSubject
from midwatch.testing.postgres import PrivatePostgres
from midwatch.testing.subject_conformance import tickets_for

from ..waiting import wait_until
from .test_postgres_unknown import ROLE, VERSIONS, admin, subject

ENDS = ("pg_terminate_backend", "pg_cancel_backend", "DROP", "pg_drop_", "ROLLBACK")


@pytest.fixture(scope="module", params=VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[PrivatePostgres]:
    settings: dict[str, Any] = {"wal_level": "logical", "autovacuum": False}
    settings |= {"max_prepared_transactions": 5, "deadlock_timeout": "1h"}
    with PrivatePostgres(settings=settings, tcp=True, programs=request.param) as one:
        with admin(one) as connection:
            for statement in (ROLE, "CREATE ROLE app LOGIN", "CREATE DATABASE orders"):
                connection.execute(statement)
        with admin(one, "orders") as connection:
            connection.execute("CREATE TABLE stock AS SELECT 1 AS id, 0 AS n")
            connection.execute("ALTER TABLE stock OWNER TO app")
            connection.execute("GRANT ALL ON SCHEMA public TO app")
        yield one


@pytest.fixture(autouse=True)
def nothing_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """End what a test that failed has left prepared: the next one would wait for it."""
    yield
    if "server" in request.fixturenames:
        server = request.getfixturevalue("server")
        for (gid,) in run(server, "SELECT gid FROM pg_prepared_xacts"):
            run(server, f"ROLLBACK PREPARED {sql_literal(gid)}")


def watch(server: PrivatePostgres, **limits: Any) -> PostgresSubject:
    """Return a subject with these limits; other invariants keep still."""
    return subject(
        server,
        log_file=server.log_file,
        invariants={name: {"limit": limit} for name, limit in limits.items()},
    )


async def broken(watched: PostgresSubject) -> list[Ticket]:
    first = await watched.observe({})
    seen = await watched.observe(first.state)
    found = check("db", {i.id: i for i in watched.invariants}, seen, {}, 0.0).broken
    return [one for one in tickets_for(watched, seen) if one.key in found]


async def notes(
    watched: PostgresSubject, tickets: list[Ticket]
) -> list[DiagnosisOutput]:
    """Return the first aid on these tickets, whose every claim is in the evidence."""
    gatherer = ContextGatherer({"db": watched}, Redactor(), SystemClock())
    context = await gatherer.gather(tickets, timeout=20, tokens=6000)
    found = []
    for _, output in preliminary(PLAYBOOKS, "postgres", tickets, context):
        grounding = ground(output, context.evidence)
        assert grounding.verified == grounding.total > 0, (grounding, context)
        found.append(output)
    return found


async def first_aid(watched: PostgresSubject, *invariants: str) -> DiagnosisOutput:
    """Return the one note on the broken invariants, each of which it explains."""
    tickets = [one for one in await broken(watched) if one.key.invariant in invariants]
    assert {one.key.invariant for one in tickets} == {*invariants}, tickets
    [output] = await notes(watched, tickets)
    assert sorted(output.explained_tickets) == sorted(one.id for one in tickets)
    return output


def commands(output: DiagnosisOutput) -> list[str]:
    return [one for action in output.recommended_actions for one in action.commands]


def ending(output: DiagnosisOutput) -> list[str]:
    """Return the commands that end, cancel, drop or undo something."""
    return [one for one in commands(output) if any(word in one for word in ENDS)]


@contextlib.asynccontextmanager
async def session(
    server: PrivatePostgres, application: str, *statements: str, **options: Any
) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A session in database orders that has run these statements in a transaction that stays open."""
    user = options.pop("user", "app")
    connection = await psycopg.AsyncConnection.connect(
        server.dsn("orders", user), application_name=application, **options
    )
    try:
        for statement in statements:
            await connection.execute(statement)
        yield connection
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def waiting(
    server: PrivatePostgres, application: str, statement: str, event: str = "Lock"
) -> AsyncIterator[asyncio.Task[Any]]:
    """A session whose statement waits."""
    async with session(server, application, autocommit=True) as connection:
        task = asyncio.ensure_future(connection.execute(statement))
        pid = connection.info.backend_pid
        with admin(server) as sees:
            await asyncio.to_thread(
                wait_until,
                lambda: task.done()
                or sees.execute(
                    "SELECT wait_event_type = %s FROM pg_stat_activity WHERE pid = %s",
                    (event, pid),
                ).fetchone()
                == (True,),
            )
        if task.done():
            task.result()
        try:
            yield task
        finally:
            await connection.cancel_safe()
            await asyncio.gather(task, return_exceptions=True)


def run(server: PrivatePostgres, command: str, database: str = "orders") -> list[Any]:
    with admin(server, database) as connection:
        cursor = connection.execute(command.encode())
        return cursor.fetchall() if cursor.description else []


# ------------------------------------------------------------------ lock queues


async def test_the_waiting_ddl_is_cancelled_first_and_frees_the_queue(
    server: PrivatePostgres,
) -> None:
    watched = watch(server, blocked_sessions=0, idle_in_transaction=0)
    async with (
        session(server, "reports", "SELECT * FROM stock") as reader,
        waiting(server, "migration", "ALTER TABLE stock ADD COLUMN extra int") as ddl,
        waiting(server, "shop", "SELECT * FROM stock") as shop,
        waiting(server, "shop", "UPDATE stock SET n = 1") as update,
    ):
        output = await first_aid(watched, "blocked_sessions", "idle_in_transaction")
        assert "reports" in output.summary and "ALTER TABLE" in output.summary
        first, *rest = ending(output)
        assert "pg_cancel_backend" in first and "'Lock'" in first
        assert f"pg_terminate_backend({reader.info.backend_pid})" in rest[0]
        assert run(server, first) == [(True,)]
        await asyncio.wait_for(asyncio.gather(shop, update), 60)
        with pytest.raises(psycopg.errors.QueryCanceled):
            await ddl
        assert run(server, first) == []  # not a second time
        assert "blocked_sessions" not in {
            one.key.invariant for one in await broken(watched)
        }


async def test_two_who_hold_the_lock_together_are_a_tie(
    server: PrivatePostgres,
) -> None:
    watched = watch(server, blocked_sessions=0)
    async with (
        session(server, "left", "SELECT * FROM stock FOR SHARE") as left,
        session(server, "right", "SELECT * FROM stock FOR SHARE") as right,
        waiting(server, "shop", "ALTER TABLE stock ADD COLUMN extra int"),
    ):
        output = await first_aid(watched, "blocked_sessions")
        assert "left" in output.summary and "right" in output.summary
        assert output.confidence == "medium"
        for command, one in zip(ending(output), (left, right), strict=True):
            assert str(one.info.backend_pid) in command


async def test_a_transaction_that_has_gone_on_is_not_ended(
    server: PrivatePostgres,
) -> None:
    watched = watch(server, blocked_sessions=0)
    async with (
        session(server, "worker", "UPDATE stock SET n = 1") as worker,
        waiting(server, "shop", "UPDATE stock SET n = 2"),
    ):
        [command] = ending(await first_aid(watched, "blocked_sessions"))
        await worker.commit()
        await worker.execute("SELECT 1")
        assert run(server, command) == []
        await worker.execute("SELECT 1")


@pytest.mark.parametrize("application", ["pg_dump", "nightly"])
async def test_a_backup_is_not_ended(server: PrivatePostgres, application: str) -> None:
    watched = watch(server, blocked_sessions=0, long_queries=0)
    async with (
        session(server, application, "LOCK TABLE stock IN ACCESS SHARE MODE") as dump,
        session(server, "guard", "SELECT pg_advisory_lock(7)", autocommit=True),
    ):
        # A copy that waits without a lock on a table: its client does not take what it sends.
        big = (
            "COPY (SELECT repeat('x', 1000) FROM generate_series(1, 100000)) TO STDOUT"
        )
        async with (
            dump.cursor().copy(big) as copy,
            contextlib.AsyncExitStack() as stack,
        ):
            await stack.enter_async_context(
                waiting(server, "migration", "ALTER TABLE stock ADD COLUMN extra int")
            )
            await stack.enter_async_context(
                waiting(server, "shop", "SELECT * FROM stock")
            )
            output, *rest = await notes(watched, await broken(watched))
            [command] = ending(output)
            assert "pg_cancel_backend" in command
            assert str(dump.info.backend_pid) not in command
            assert not rest
            long = tickets_of(await broken(watched), "long_queries")
            for alone in await notes(watched, long):  # of pg_dump there is no ticket
                assert ending(alone) == [] and application in alone.summary
            async for _ in copy:
                pass


async def test_an_advisory_lock_is_held_on_purpose(server: PrivatePostgres) -> None:
    watched = watch(server, blocked_sessions=0)
    hold = "SELECT pg_advisory_lock(4)"
    async with (
        session(server, "leader", hold, autocommit=True),
        waiting(server, "stand-in", hold),
    ):
        output = await first_aid(watched, "blocked_sessions")
        assert ending(output) == [] and "leader" in output.summary
        assert output.verdict == "suspected" and "advisory lock" in output.root_cause


async def test_a_prepared_transaction_in_front_of_a_queue(
    server: PrivatePostgres,
) -> None:
    watched = watch(server, blocked_sessions=0)
    async with session(server, "other", "CREATE TABLE other (n int)") as other:
        await other.execute("PREPARE TRANSACTION 'of another table'")
    async with session(server, "manager", "UPDATE stock SET n = 5") as manager:
        await manager.execute("PREPARE TRANSACTION 'it''s stuck'")
    async with waiting(server, "shop", "UPDATE stock SET n = 6") as blocked:
        output = await first_aid(watched, "blocked_sessions")
        finish = [one for one in commands(output) if " PREPARED " in one]
        assert finish == [
            "COMMIT PREPARED 'it''s stuck';",
            "ROLLBACK PREPARED 'it''s stuck';",
        ]
        assert "database orders" in output.recommended_actions[1].what
        run(server, finish[1])
        await asyncio.wait_for(blocked, 60)
    run(server, "ROLLBACK PREPARED 'of another table'")


# ------------------------------------------------------------------ vacuum


async def test_a_prepared_transaction_is_not_taken_for_the_snapshot_of_a_moment(
    server: PrivatePostgres,
) -> None:
    watched = watch(server, transaction_id_age=0)
    async with session(server, "manager", "UPDATE stock SET n = 7") as manager:
        await manager.execute("PREPARE TRANSACTION 'forgotten'")
    burn(server)
    try:
        async with waiting(server, "innocent", "SELECT pg_sleep(300)", "Timeout"):
            output = await of_database(watched, "orders")
        assert "forgotten" in output.root_cause and "innocent" not in output.root_cause
        assert ending(output) == ["ROLLBACK PREPARED 'forgotten';"]
        assert output.verdict == "identified"
    finally:
        run(server, "ROLLBACK PREPARED 'forgotten'")
    async with waiting(server, "innocent", "SELECT pg_sleep(300)", "Timeout"):
        output = await of_database(watched, "orders")
    assert ending(output) == [] and "nothing" in output.summary


def burn(server: PrivatePostgres) -> None:
    """Use more transaction ids than the server has used for its own tables."""
    run(
        server,
        "DO $$ BEGIN FOR i IN 1..3000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$",
    )


async def of_database(watched: PostgresSubject, name: str) -> DiagnosisOutput:
    tickets = [one for one in await broken(watched) if one.key.component == name]
    [output] = await notes(watched, tickets)
    return output


async def test_dead_rows_of_a_table_without_autovacuum(server: PrivatePostgres) -> None:
    watched = subject(
        server, dead_tuples_floor=100, invariants={"dead_tuples": {"limit": "30%"}}
    )
    run(server, "ALTER SYSTEM SET autovacuum = on")
    run(server, 'CREATE TABLE "Mixed Case" (n int) WITH (autovacuum_enabled = off)')
    try:
        run(server, "SELECT pg_reload_conf()")
        run(server, 'INSERT INTO "Mixed Case" SELECT generate_series(1, 1000)')
        run(server, 'DELETE FROM "Mixed Case" WHERE n > 100')
        await asyncio.to_thread(wait_until, lambda: asyncio.run(broken(watched)) != [])
        output = await first_aid(watched, "dead_tuples")
        assert "autovacuum_enabled" in output.root_cause
        assert ending(output) == [] and output.verdict == "identified"
        run(server, commands(output)[0])
        run(server, commands(output)[1])
        await asyncio.to_thread(wait_until, lambda: asyncio.run(broken(watched)) == [])
    finally:
        run(server, 'DROP TABLE "Mixed Case"')
        run(server, "ALTER SYSTEM RESET autovacuum")
        run(server, "SELECT pg_reload_conf()")


# ------------------------------------------------------------------ slots and standbys


@pytest.fixture
def slot(server: PrivatePostgres) -> Iterator[str]:
    """A slot without a reader, and the role that reads it."""
    run(server, "SELECT pg_create_physical_replication_slot('replica_1', true)")
    run(server, "SELECT pg_logical_emit_message(false, 'x', 'is kept for it')")
    run(server, "CREATE ROLE reader REPLICATION LOGIN PASSWORD 'right'")
    try:
        yield "replica_1"
    finally:
        run(server, "SELECT pg_drop_replication_slot('replica_1')")
        run(server, "DROP ROLE reader")


def fails(server: PrivatePostgres, replication: str, password: str = "right") -> None:
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(
            server.dsn("orders", "reader", password, tcp=True), replication=replication
        )


@pytest.mark.parametrize(
    ("fault", "replication", "password", "cause", "command"),
    [
        (
            "VALID UNTIL '2020-01-01'",
            "database",
            "right",
            "password of role reader has expired",
            """ALTER ROLE "reader" VALID UNTIL 'infinity';""",
        ),
        ("", "true", "right", "no pg_hba.conf entry", "SHOW hba_file;"),
        ("", "database", "wrong", 'failed for user "reader"', ""),
        (
            "NOLOGIN",
            "database",
            "right",
            "not permitted to log in",
            'ALTER ROLE "reader" LOGIN;',
        ),
    ],
    ids=["expired", "hba", "password", "nologin"],
)
async def test_a_slot_whose_reader_cannot_log_in_is_not_dropped(
    server: PrivatePostgres,
    slot: str,
    fault: str,
    replication: str,
    password: str,
    cause: str,
    command: str,
) -> None:
    if fault:
        run(server, f"ALTER ROLE reader {fault}")
    server.log_file.write_bytes(b"")  # what other tests have left there
    fails(server, replication, password)
    output = await first_aid(watch(server, inactive_slots=0), "inactive_slots")
    assert cause in output.root_cause and slot in output.summary
    assert ending(output) == []
    assert not command or command in commands(output)
    if command.startswith("ALTER"):
        run(server, command)
        psycopg.connect(
            server.dsn("orders", "reader", password, tcp=True), replication=replication
        ).close()


async def test_a_slot_whose_reader_is_not_seen_is_not_dropped(
    server: PrivatePostgres, slot: str
) -> None:
    server.log_file.write_bytes(b"")
    output = await first_aid(watch(server, inactive_slots=0), "inactive_slots")
    assert ending(output) == [] and slot in output.root_cause


async def test_a_slot_that_was_invalidated_is_of_no_use(
    server: PrivatePostgres,
) -> None:
    run(server, "SELECT pg_create_physical_replication_slot('replica_2', true)")
    for change in ("SET max_slot_wal_keep_size = '1MB'", "SET wal_keep_size = 0"):
        run(server, f"ALTER SYSTEM {change}")
    run(server, "SELECT pg_reload_conf()")
    try:
        for _ in range(4):
            run(server, "SELECT pg_logical_emit_message(false, 'x', 'y')")
            run(server, "SELECT pg_switch_wal()")
        run(server, "CHECKPOINT")
        output = await first_aid(watch(server, inactive_slots="1TB"), "inactive_slots")
        assert "invalidated" in output.root_cause
        [drop] = ending(output)
        run(server, drop)
        assert await broken(watch(server, inactive_slots="1TB")) == []
    finally:
        run(server, "ALTER SYSTEM RESET max_slot_wal_keep_size")
        run(server, "SELECT pg_reload_conf()")
        run(
            server,
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots",
        )


async def test_commits_that_wait_for_a_standby_are_not_cancelled(
    server: PrivatePostgres,
) -> None:
    watched = watch(server, blocked_sessions=0, long_queries=0)
    run(server, "ALTER SYSTEM SET synchronous_standby_names = 'replica'")
    run(server, "SELECT pg_reload_conf()")
    try:
        async with (
            waiting(server, "writer", "UPDATE stock SET n = 8", "IPC"),
            waiting(server, "shop", "UPDATE stock SET n = 9"),
        ):
            output = await first_aid(watched, "blocked_sessions", "long_queries")
            assert "synchronous standby" in output.root_cause
            assert ending(output) == []
            run(server, "ALTER SYSTEM RESET synchronous_standby_names")
            run(server, "SELECT pg_reload_conf()")
    finally:
        run(server, "ALTER SYSTEM RESET synchronous_standby_names")
        run(server, "SELECT pg_reload_conf()")


# ------------------------------------------------------------------ disks and connections


async def test_a_full_temporary_tablespace_does_not_stop_the_server(
    server: PrivatePostgres,
) -> None:
    place = server.folder / "spill"
    place.mkdir()
    owner = server.folder.stat()
    os.chown(place, owner.st_uid, owner.st_gid)
    run(server, f"CREATE TABLESPACE spill LOCATION '{place}'")
    run(server, "GRANT CREATE ON TABLESPACE spill TO app")
    watched = watch(server)
    first = await watched.observe({})
    sort = "SELECT count(*) FROM (SELECT g FROM generate_series(1, 300000) g ORDER BY g DESC) s"
    async with session(server, "reports", autocommit=True) as reports:
        for change in ("temp_tablespaces = spill", "work_mem = '64kB'"):
            await reports.execute(f"SET {change}")
        await reports.execute(sort)  # makes the folder of temporary files
        for number in range(1, 40):  # the next file has no room, as /dev/full has none
            [folder] = place.glob("PG_*/pgsql_tmp")
            name = f"pgsql_tmp{reports.info.backend_pid}.{number}"
            (folder / name).symlink_to("/dev/full")
        with pytest.raises(psycopg.errors.DiskFull):
            await reports.execute(sort)
    seen = await watched.observe(first.state)
    found = check("db", {i.id: i for i in watched.invariants}, seen, {}, 0.0).broken
    tickets = [one for one in tickets_for(watched, seen) if one.key in found]
    [output] = await notes(watched, tickets)
    for link in folder.iterdir():
        link.unlink()
    run(server, "DROP TABLESPACE spill")
    assert "temporary tablespace spill" in output.root_cause
    assert (
        "the server itself runs" in output.summary and str(place) in output.root_cause
    )
    assert "ORDER BY g DESC" in output.root_cause
    assert not any("tart" in action.what for action in output.recommended_actions)
    assert ending(output) == [] and f"df -h '{place}'" in commands(output)


async def test_only_the_unused_sessions_of_the_application_that_leaks_are_ended(
    server: PrivatePostgres,
) -> None:
    watched = watch(server, connections="5%")
    async with contextlib.AsyncExitStack() as stack:
        leaked = [
            await stack.enter_async_context(
                session(server, "it's leaky", "SELECT 1", autocommit=True)
            )
            for _ in range(7)
        ]
        web = await stack.enter_async_context(
            session(server, "web", "SELECT 1", autocommit=True)
        )
        with admin(server) as sees:
            await asyncio.to_thread(
                wait_until,
                lambda: sees.execute(
                    "SELECT bool_and(state_change < now() - interval '1s') "
                    "FROM pg_stat_activity WHERE usename = 'app'"
                ).fetchone()
                == (True,),
            )
        output = await first_aid(watched, "connections")
        assert "it's leaky" in output.root_cause
        [command] = ending(output)
        await leaked[0].execute("SELECT 1")  # used since: it is no leak
        run(server, command)
        await web.execute("SELECT 1")
        await leaked[0].execute("SELECT 1")
        with pytest.raises(psycopg.OperationalError):
            await leaked[1].execute("SELECT 1")
        await asyncio.to_thread(wait_until, lambda: asyncio.run(broken(watched)) == [])


async def test_the_limit_of_a_role_is_told_as_that(server: PrivatePostgres) -> None:
    run(server, "CREATE ROLE pool LOGIN CONNECTION LIMIT 2")
    try:
        async with (
            session(server, "pool a", user="pool", autocommit=True),
            session(server, "pool b", user="pool", autocommit=True),
            session(server, "web", autocommit=True),
        ):
            output = await first_aid(watch(server), "connections")
            assert "role pool" in output.root_cause and "web" not in output.summary
            assert "pool a" in output.root_cause and "pool b" in output.root_cause
            assert ending(output) == []  # a tie
            run(server, commands(output)[-1])
            assert await broken(watch(server)) == []
    finally:
        run(server, "DROP ROLE pool")
