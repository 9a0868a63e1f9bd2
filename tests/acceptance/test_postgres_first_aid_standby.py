"""First aid for a standby: what holds its replay up, seen there, and where the log waits, seen on the primary."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from midwatch.subjects.postgres import PostgresSubject
from midwatch.testing.postgres import PrivatePostgres
from midwatch.testing.subject_conformance import tickets_for

from ..waiting import wait_until
from .test_postgres_first_aid import broken, commands, ending, first_aid, notes, run
from .test_postgres_replication import Standby, replayed
from .test_postgres_unknown import ROLE, VERSIONS, admin, subject

LAG = "replication_lag"


@pytest.fixture(scope="module", params=VERSIONS)
def primary(request: pytest.FixtureRequest) -> Iterator[PrivatePostgres]:
    settings: dict[str, Any] = {"wal_level": "logical", "autovacuum": False}
    with PrivatePostgres(settings=settings, programs=request.param) as one:
        for statement in (ROLE, "CREATE TABLE t (n int)"):
            run(one, statement, "postgres")
        yield one


@pytest.fixture
def standby(primary: PrivatePostgres) -> Iterator[PrivatePostgres]:
    waits_for_ever = {
        "max_standby_streaming_delay": -1,
        "wal_retrieve_retry_interval": "100ms",
    }
    with Standby(primary, **waits_for_ever) as one:
        replayed(primary, one)
        yield one


def watch(server: PrivatePostgres) -> PostgresSubject:
    return subject(
        server,
        dsn=server.dsn("postgres", "midwatch"),
        log_file=server.log_file,
        replication_lag_bytes=1,
        invariants={LAG: {"limit": "1h", "for": "0s"}},
    )


async def behind(watched: PostgresSubject) -> None:
    await asyncio.to_thread(wait_until, lambda: asyncio.run(broken(watched)) != [])


async def caught_up(watched: PostgresSubject) -> None:
    await asyncio.to_thread(wait_until, lambda: asyncio.run(broken(watched)) == [])


async def test_a_paused_replay_is_resumed(
    primary: PrivatePostgres, standby: PrivatePostgres
) -> None:
    watched = watch(standby)
    run(standby, "SELECT pg_wal_replay_pause()", "postgres")
    run(primary, "INSERT INTO t SELECT generate_series(1, 1000)", "postgres")
    await behind(watched)
    output = await first_aid(watched, LAG)
    assert "paused" in output.root_cause and output.verdict == "identified"
    assert ending(output) == []
    seen_by_primary = await first_aid(watch(primary), LAG)
    assert "does not replay it" in seen_by_primary.root_cause
    run(standby, commands(output)[0], "postgres")
    await caught_up(watched)


@pytest.mark.parametrize("readers", [1, 2])
async def test_the_query_that_holds_the_replay_up_is_named(
    primary: PrivatePostgres, standby: PrivatePostgres, readers: int
) -> None:
    watched = watch(standby)
    run(primary, "INSERT INTO t SELECT generate_series(1, 1000)", "postgres")
    replayed(primary, standby)
    options = {"application_name": "monthly report", "autocommit": False}
    connections = [
        psycopg.connect(standby.dsn("postgres"), **options) for _ in range(readers)
    ]
    try:
        for reader in connections:
            reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            reader.execute("SELECT count(*) FROM t")
        run(primary, "DELETE FROM t", "postgres")
        run(primary, "VACUUM t", "postgres")
        with admin(standby) as sees:
            await asyncio.to_thread(
                wait_until,
                lambda: sees.execute(
                    "SELECT wait_event LIKE 'RecoveryConflict%' FROM pg_stat_activity "
                    "WHERE backend_type = 'startup'"
                ).fetchone()
                == (True,),
            )
        await behind(watched)
        output = await first_aid(watched, LAG)
        assert "monthly report" in output.root_cause
        if readers > 1:
            assert ending(output) == [] and output.verdict == "suspected"
            return
        assert output.verdict == "identified"
        [command] = ending(output)
        run(standby, command, "postgres")
        await caught_up(watched)
    finally:
        for reader in connections:
            reader.close()


async def test_a_standby_that_is_cut_off_tells_why(
    primary: PrivatePostgres, standby: PrivatePostgres
) -> None:
    watched = watch(standby)
    run(primary, "INSERT INTO t VALUES (1)", "postgres")
    replayed(primary, standby)
    hba = primary.folder / "data" / "pg_hba.conf"
    before = hba.read_text()
    hba.write_text("local replication all reject\n" + before)
    run(primary, "SELECT pg_reload_conf()", "postgres")
    run(
        primary,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_replication",
        "postgres",
    )
    try:
        first = await watched.observe({})
        await asyncio.to_thread(
            wait_until,
            lambda: "pg_hba.conf rejects" in standby.log_file.read_text(),
        )
        tickets = [
            one
            for one in tickets_for(watched, await watched.observe(first.state))
            if one.key.component == "this server"
        ]
        [output] = await notes(watched, tickets)
        assert "refuses the standby's login" in output.root_cause
        assert output.confidence != "low" and ending(output) == []
    finally:
        hba.write_text(before)
        run(primary, "SELECT pg_reload_conf()", "postgres")
