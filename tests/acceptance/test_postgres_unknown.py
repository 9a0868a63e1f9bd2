"""What a PostgreSQL server does not show is unknown with a reason: no ticket resolves, and none opens for it.

Each invariant of the kind is tried with each way of not knowing, on the versions that this machine has.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from midwatch.errors import ObservationFailed
from midwatch.model import Json, Key, Observation, Signal
from midwatch.monitor.rules import check
from midwatch.subjects.findings import Findings
from midwatch.subjects.postgres import PostgresSettings, PostgresSubject
from midwatch.subjects.postgres.checks import CHECKS
from midwatch.subjects.postgres.connection import Connection
from midwatch.subjects.postgres.observation import ObservationContext
from midwatch.testing.fakes import ManualClock
from midwatch.testing.postgres import PrivatePostgres

from ..snippets import blocks
from ..waiting import PATIENT, wait_until

DEBIAN = Path("/usr/lib/postgresql/15/bin")
VERSIONS = [
    pytest.param(None, id="bundled"),
    pytest.param(
        DEBIAN,
        id="15",
        marks=pytest.mark.skipif(
            not DEBIAN.is_dir(), reason="Debian's postgresql-15 is not installed"
        ),
    ),
]
ROLE = blocks("docs/subjects.md", "sql")[0]
UNSEEN = {"log_errors", "log_error_storm", "checksum_failures"}
"""What a server as it is installed need not show: its log and, before PostgreSQL 18, damaged pages."""
CHECKED = [one.invariant for one in CHECKS if one.invariant != "log_errors"]


@pytest.fixture(scope="module", params=VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[PrivatePostgres]:
    settings = {"wal_level": "logical", "autovacuum": False, "wal_keep_size": 0}
    settings |= {"max_wal_size": "2MB", "min_wal_size": "2MB"}
    with PrivatePostgres(settings=settings, programs=request.param) as one:
        with admin(one) as connection:
            for statement in (ROLE, "CREATE ROLE app LOGIN", "CREATE DATABASE orders"):
                connection.execute(statement)
        with admin(one, "orders") as connection:
            connection.execute(
                "CREATE TABLE stock AS SELECT g FROM generate_series(1, 2000) g"
            )
            connection.execute("GRANT ALL ON stock TO app")
        yield one


@contextlib.contextmanager
def admin(
    server: PrivatePostgres, database: str = "postgres"
) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(server.dsn(database), autocommit=True) as connection:
        yield connection


@contextlib.contextmanager
def changed(server: PrivatePostgres, do: str, undo: str) -> Iterator[None]:
    with admin(server, "orders") as connection:
        connection.execute(do)
        try:
            yield
        finally:
            connection.execute(undo)


def subject(server: PrivatePostgres, **settings: Any) -> PostgresSubject:
    clock = settings.pop("clock", None)
    dsn = server.dsn("orders", "midwatch")
    given = {"name": "db", "dsn": dsn, **PATIENT, **settings}
    return PostgresSubject(PostgresSettings.model_validate(given), clock)


def fate(
    watched: PostgresSubject, seen: Observation, invariant: str, component: str
) -> str:
    """Return what the monitor does with a ticket of this key: it is broken, resolved or unknown."""
    checked = check("db", {i.id: i for i in watched.invariants}, seen, {}, 0.0)
    key = Key("db", invariant, component)
    if key in checked.broken:
        return "broken"
    return "resolved" if checked.known(key) else "unknown"


def broken(watched: PostgresSubject, seen: Observation) -> set[tuple[str, str]]:
    checked = check("db", {i.id: i for i in watched.invariants}, seen, {}, 0.0)
    return {(key.invariant, key.component) for key in checked.broken}


def signal_of(seen: Observation, invariant: str, component: str) -> Signal:
    (found,) = (
        s for s in seen.signals if (s.invariant, s.component) == (invariant, component)
    )
    return found


async def polled(watched: PostgresSubject, state: Json | None = None) -> Observation:
    """Return the second of two observations, which knows what has to be compared."""
    first = await watched.observe(state or {})
    return await watched.observe(first.state)


# ------------------------------------------------------------------ permissions, timeouts, restarts

NEEDS = {
    "connections": "SELECT ON pg_roles",
    "blocked_sessions": "EXECUTE ON FUNCTION pg_blocking_pids(int)",
    "idle_in_transaction": "SELECT ON pg_stat_activity",
    "long_queries": "SELECT ON pg_stat_activity",
    "deadlocks": "SELECT ON pg_stat_database",
    "checksum_failures": "SELECT ON pg_stat_database",
    "transaction_id_age": "EXECUTE ON FUNCTION mxid_age(xid)",
    "replication_lag": "SELECT ON pg_stat_replication",
    "inactive_slots": "SELECT ON pg_replication_slots",
    "dead_tuples": "SELECT ON pg_stat_user_tables",
    "database_growth": "EXECUTE ON FUNCTION pg_database_size(oid)",
}


@pytest.mark.parametrize("invariant", CHECKED)
async def test_a_permission_that_is_missing_is_told_with_its_remedy(
    server: PrivatePostgres, invariant: str
) -> None:
    watched = subject(server)
    what = NEEDS[invariant]
    with changed(server, f"REVOKE {what} FROM PUBLIC", f"GRANT {what} TO PUBLIC"):
        # Nothing waits in pg_stat_activity when nobody waits: its function is called by a waiting row only.
        async with waiting(server) if invariant == "blocked_sessions" else nothing():
            seen = await polled(watched)
    assert fate(watched, seen, invariant, "orders") == "unknown"
    if "no data checksums" not in seen.unsupported[invariant]:
        assert "permission denied" in seen.unsupported[invariant]
        assert "grant" in seen.unsupported[invariant]
    assert invariant not in seen.unavailable
    assert {one for one, _ in broken(watched, seen)} <= {"blocked_sessions"} - {
        invariant
    }


@contextlib.asynccontextmanager
async def nothing() -> AsyncIterator[None]:
    yield


@contextlib.asynccontextmanager
async def session(
    server: PrivatePostgres, user: str = "app", **options: Any
) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    connection = await psycopg.AsyncConnection.connect(
        server.dsn("orders", user), **options
    )
    try:
        yield connection
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def waiting(
    server: PrivatePostgres,
    statement: str = "LOCK TABLE stock IN ACCESS EXCLUSIVE MODE",
    application: str = "stand-in",
) -> AsyncIterator[None]:
    """Let a session wait for what another session holds."""
    async with (
        session(server, application_name="holder") as holder,
        session(server, application_name=application) as waiter,
    ):
        await holder.execute(statement)
        task = asyncio.ensure_future(waiter.execute(statement))
        with admin(server) as connection:
            await asyncio.to_thread(
                wait_until,
                lambda: connection.execute(
                    "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = %s",
                    [application],
                ).fetchone()
                is not None,
            )
        try:
            yield
        finally:
            await holder.rollback()
            await task


@pytest.mark.parametrize("invariant", CHECKED)
async def test_a_server_that_stops_answering_leaves_it_unknown(
    server: PrivatePostgres, invariant: str
) -> None:
    watched = subject(server, statement_timeout="100ms")
    findings = Findings(watched.invariants, {})
    run = next(one.run for one in CHECKS if one.invariant == invariant)
    async with Connection(watched._settings) as connection:
        context = ObservationContext(connection, watched._settings, 0.0, {}, {})
        os.kill(connection.pid, signal.SIGSTOP)
        try:
            await findings.check("reachable", answered)
            await findings.check(invariant, partial(run, context))
        finally:
            os.kill(connection.pid, signal.SIGCONT)
    seen = findings.observation()
    assert fate(watched, seen, invariant, "orders") == "unknown"
    assert seen.unavailable[invariant] and not seen.unsupported


async def answered() -> list[Signal]:
    return [Signal("reachable", "server", "", holds=True)]


@pytest.mark.parametrize("invariant", CHECKED)
async def test_a_role_that_sees_only_itself_takes_nothing_for_health(
    server: PrivatePostgres, invariant: str
) -> None:
    if not next(one.all_stats for one in CHECKS if one.invariant == invariant):
        pytest.skip("any role sees it")
    watched = subject(server, dsn=server.dsn("orders", "app"))
    seen = await polled(watched)
    assert fate(watched, seen, invariant, "orders") == "unknown"
    assert "grant pg_monitor" in seen.unsupported[invariant]
    assert not seen.unavailable


@pytest.mark.parametrize("explained", [True, False])
async def test_a_server_that_is_down_resolves_nothing_and_is_told(
    server: PrivatePostgres, explained: bool
) -> None:
    watched = subject(server, invariants={"reachable": {"enabled": explained}})
    before = await polled(watched)
    server.kill()
    try:
        if not explained:  # then nothing else would tell of it
            with pytest.raises(ObservationFailed, match="refused"):
                await watched.observe(before.state)
            return
        seen = await watched.observe(before.state)
    finally:
        server.restart()
    assert broken(watched, seen) == {("reachable", "server")}
    for invariant in CHECKED:
        assert fate(watched, seen, invariant, "orders") == "unknown"
    assert {**seen.state} == {**before.state}


# ------------------------------------------------------------------ statistics that are off

OFF = {
    "server": ("ALTER SYSTEM SET {0} = off", "ALTER SYSTEM RESET {0}"),
    "database": (
        "ALTER DATABASE orders SET {0} = off",
        "ALTER DATABASE orders RESET {0}",
    ),
    "role": ("ALTER ROLE app SET {0} = 'No'", "ALTER ROLE app RESET {0}"),
}


@contextlib.contextmanager
def switched_off(server: PrivatePostgres, setting: str, where: str) -> Iterator[None]:
    do, undo = (one.format(setting) for one in OFF[where])

    def current() -> str:
        with admin(server) as connection:
            (value,) = connection.execute(f"SHOW {setting}").fetchone() or ("",)
            return str(value)

    with admin(server) as connection:
        try:
            connection.execute(do)
            connection.execute("SELECT pg_reload_conf()")
            if where == "server":
                wait_until(lambda: current() == "off")
            yield
        finally:
            connection.execute(undo)
            connection.execute("SELECT pg_reload_conf()")
            wait_until(lambda: current() == "on")


@pytest.mark.parametrize("where", OFF)
async def test_sessions_that_hide_what_they_do_are_unknown(
    server: PrivatePostgres, where: str
) -> None:
    watched = subject(server, invariants={"idle_in_transaction": {"limit": 0}})
    with switched_off(server, "track_activities", where):
        async with session(server) as hidden:
            await hidden.execute("SELECT 1")
            seen = await polled(watched)
    for invariant in ("idle_in_transaction", "long_queries"):
        assert fate(watched, seen, invariant, "orders") == "unknown"
        assert "track_activities is off" in seen.unsupported[invariant]
        assert {"server": "SYSTEM", "database": "orders", "role": "app"}[
            where
        ] in seen.unsupported[invariant]
    assert not broken(watched, seen) and not seen.unavailable
    # What the other sessions do is known still.
    other = fate(watched, seen, "long_queries", "postgres")
    assert other == ("unknown" if where == "server" else "resolved")


async def test_what_is_seen_of_half_hidden_sessions_still_breaks(
    server: PrivatePostgres,
) -> None:
    watched = subject(server, invariants={"idle_in_transaction": {"limit": 0}})
    with switched_off(server, "track_activities", "role"):
        async with session(server) as hidden, session(server, "postgres") as seen_one:
            await hidden.execute("SELECT 1")
            await seen_one.execute("SELECT 1")
            seen = await polled(watched)
    assert broken(watched, seen) == {("idle_in_transaction", "orders")}
    assert "role app" in seen.unsupported["idle_in_transaction"]


@pytest.mark.parametrize("where", OFF)
async def test_counters_that_are_off_are_unknown(
    server: PrivatePostgres, where: str
) -> None:
    watched = subject(server)
    with switched_off(server, "track_counts", where):
        seen = await polled(watched)
    for invariant, component in (
        ("deadlocks", "orders"),
        ("dead_tuples", "orders.public.stock"),
    ):
        assert fate(watched, seen, invariant, component) == "unknown"
        assert "track_counts is off" in seen.unsupported[invariant]
    assert not broken(watched, seen) and not seen.unavailable
    other = fate(watched, seen, "deadlocks", "postgres")
    assert other == ("resolved" if where == "database" else "unknown")


async def test_what_midwatch_switches_off_for_itself_hides_nothing(
    server: PrivatePostgres,
) -> None:
    watched = subject(server)
    with changed(
        server,
        "ALTER ROLE midwatch SET track_activities = off",
        "ALTER ROLE midwatch RESET track_activities",
    ):
        seen = await polled(watched)
    assert seen.covers("idle_in_transaction")
    assert set(seen.unsupported) <= UNSEEN


async def test_dead_rows_after_a_reset_of_statistics_are_unknown_until_analyzed(
    server: PrivatePostgres,
) -> None:
    watched = subject(server, dead_tuples_floor=100)
    component = "orders.public.heap"
    with admin(server, "orders") as connection:
        connection.execute(
            "CREATE TABLE heap WITH (autovacuum_enabled = off) AS "
            "SELECT g AS id, 0 AS n FROM generate_series(1, 1000) g"
        )
        stats(connection)
        connection.execute("ANALYZE heap")
        connection.execute("DELETE FROM heap WHERE id > 300")
        stats(connection)
        seen = await polled(watched)
        assert signal_of(seen, "dead_tuples", component).value == 0.7

        connection.execute("SELECT pg_stat_reset()")
        seen = await watched.observe(seen.state)
        assert fate(watched, seen, "dead_tuples", component) == "unknown"
        small = subject(server, dead_tuples_floor=5_000)  # too small to be of interest
        assert fate(small, await polled(small), "dead_tuples", component) == "resolved"
        # Few new dead rows beside many live ones that the counters do not know.
        connection.execute("UPDATE heap SET n = 1 WHERE id <= 150")
        stats(connection)
        seen = await polled(watched)
        assert fate(watched, seen, "dead_tuples", component) == "unknown"

        connection.execute("ANALYZE heap")
        seen = await polled(watched)
        assert fate(watched, seen, "dead_tuples", component) == "broken"
        connection.execute("VACUUM ANALYZE heap")
        seen = await polled(watched)
        assert fate(watched, seen, "dead_tuples", component) == "resolved"
        connection.execute("DROP TABLE heap")


def stats(connection: psycopg.Connection[Any]) -> None:
    """Let the session's counters arrive in the statistics."""
    if connection.info.server_version >= 150000:
        connection.execute("SELECT pg_stat_force_next_flush()")


async def test_a_reset_hides_no_deadlock_of_the_window(server: PrivatePostgres) -> None:
    clock = ManualClock()
    watched = subject(server, clock=clock, event_window="5m")
    state: Json = (await watched.observe({})).state
    async with session(server) as left, session(server) as right:
        await left.execute("SELECT pg_advisory_xact_lock(1)")
        await right.execute("SELECT pg_advisory_xact_lock(2)")
        results = await asyncio.gather(
            left.execute("SELECT pg_advisory_xact_lock(2)"),
            right.execute("SELECT pg_advisory_xact_lock(1)"),
            return_exceptions=True,
        )
        assert any(isinstance(r, psycopg.errors.DeadlockDetected) for r in results)
    await clock.advance(10)
    seen = await until_broken(watched, state, "deadlocks")
    with admin(server, "orders") as connection:
        connection.execute("SELECT pg_stat_reset()")
    await clock.advance(10)
    after = await watched.observe(seen.state)
    assert fate(watched, after, "deadlocks", "orders") == "broken"
    await clock.advance(400)
    after = await watched.observe((await watched.observe(after.state)).state)
    assert fate(watched, after, "deadlocks", "orders") == "resolved"


async def until_broken(
    watched: PostgresSubject, state: Json, invariant: str
) -> Observation:
    async with asyncio.timeout(60):
        while True:
            seen = await watched.observe(state)
            if invariant in {one for one, _ in broken(watched, seen)}:
                return seen
            await asyncio.sleep(0.05)
