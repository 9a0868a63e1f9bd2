"""What does not count by default or by the settings, and what sessions write in any encoding."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import psycopg
import pytest

from midwatch.errors import ObservationFailed
from midwatch.model import Observation, Severity
from midwatch.monitor.rules import check
from midwatch.subjects.postgres import PostgresSubject
from midwatch.testing.postgres import PrivatePostgres

from ..snippets import blocks
from ..waiting import wait_until
from .test_postgres_unknown import (
    UNSEEN,
    VERSIONS,
    admin,
    broken,
    polled,
    session,
    signal_of,
    subject,
    waiting,
)


@pytest.fixture(scope="module", params=VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[PrivatePostgres]:
    with PrivatePostgres(programs=request.param) as one:
        with admin(one) as connection:
            connection.execute(blocks("docs/subjects.md", "sql")[0])
            connection.execute("CREATE ROLE app LOGIN")
            connection.execute("CREATE DATABASE orders")
            for name, encoding in ENCODINGS.items():
                connection.execute(
                    f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' "
                    "LC_COLLATE 'C' LC_CTYPE 'C'"
                )
        with admin(one, "orders") as connection:
            connection.execute(
                "CREATE TABLE stock AS SELECT g FROM generate_series(1, 9) g"
            )
            connection.execute("GRANT ALL ON stock TO app")
        yield one


async def test_the_documented_role_sees_all_but_the_log(
    server: PrivatePostgres,
) -> None:
    watched = subject(server, growth_window="50ms")
    first = await watched.observe({})
    seen = await watched.observe((await watched.observe(first.state)).state)
    assert not seen.unavailable and not broken(watched, seen)
    unseen = {one.id for one in watched.invariants} - seen.covered
    assert unseen <= UNSEEN | {"database_growth"}


# ------------------------------------------------------------------ left out


@pytest.mark.parametrize("application", ["pg_dump", "pgBackRest [backup]", "barman"])
async def test_backups_may_read_for_hours(
    server: PrivatePostgres, application: str
) -> None:
    limits = {"long_queries": {"limit": 0}, "idle_in_transaction": {"limit": 0}}
    watched = subject(server, invariants=limits)
    async with session(server, application_name=application) as backup:
        await backup.execute("SELECT 1")
        seen = await polled(watched)
        assert not broken(watched, seen)
        assert seen.ignored["idle_in_transaction"] == (f"application {application}",)
        # The user's list replaces that of the kind.
        limits["idle_in_transaction"] |= {"ignore": []}  # type: ignore[operator]
        strict = subject(server, invariants=limits)
        seen = await polled(strict)
        assert broken(strict, seen) == {("idle_in_transaction", "orders")}


@pytest.mark.parametrize(
    ("entry", "left_out"),
    [
        ({"application": "nightly"}, "application nightly"),
        ({"role": "app"}, "role app"),
        ({"database": "ord*", "role": "app"}, "role app, database orders"),
        ({"database": "ord*", "role": "other"}, None),
        ({"application": "night"}, None),
    ],
)
async def test_what_is_left_out_does_not_hide_the_rest(
    server: PrivatePostgres, entry: dict[str, str], left_out: str | None
) -> None:
    only = {"idle_in_transaction": {"limit": 0, "ignore": [entry]}}
    watched = subject(server, invariants=only)
    async with session(server, application_name="nightly") as one:
        await one.execute("SELECT 1")  # the worst one, by its age
        async with session(server, "postgres", application_name="shop") as other:
            await other.execute("SELECT 1")
            seen = await polled(watched)
    worst = signal_of(seen, "idle_in_transaction", "orders")
    assert worst.facts["application"] == ("nightly" if left_out is None else "shop")
    expected = {"idle_in_transaction": (left_out,)} if left_out else {}
    assert seen.ignored == expected


def severities(watched: PostgresSubject, seen: Observation) -> dict[str, Severity]:
    checked = check("db", {i.id: i for i in watched.invariants}, seen, {}, 0.0)
    return {
        one.violation.key.component: one.violation.severity for one in checked.firing
    }


async def test_waiting_for_an_advisory_lock_is_never_critical(
    server: PrivatePostgres,
) -> None:
    limit: dict[str, Any] = {"blocked_sessions": {"limit": 0}}
    watched = subject(server, invariants=limit)
    limit["blocked_sessions"]["ignore"] = [{"lock_type": "advisory"}]
    calm = subject(server, invariants=limit)
    async with waiting(server, "SELECT pg_advisory_xact_lock(42)"):
        # A real pile-up beside it is critical, though it is younger.
        async with waiting(server, application="shop"):
            seen, less = await polled(watched), await polled(calm)
    assert severities(watched, seen) == {
        "orders": Severity.CRITICAL,
        "orders advisory locks": Severity.WARNING,
    }
    assert severities(calm, less) == {"orders": Severity.CRITICAL}
    assert less.ignored["blocked_sessions"] == ("lock_type advisory",)


@pytest.mark.parametrize(
    "entry",
    [
        {"application": "shop"},
        {"role": "app"},
        {"database": "orders"},
        {"lock_type": "relation", "table": "stock"},
        {"table": "public.stock"},
        {"blocker_application": "holder"},
        {"blocker_role": "app"},
    ],
)
async def test_a_wait_is_left_out_by_each_of_its_attributes(
    server: PrivatePostgres, entry: dict[str, str]
) -> None:
    only = {"blocked_sessions": {"limit": 0, "ignore": [entry]}}
    watched = subject(server, invariants=only)
    async with waiting(server, application="shop"):
        seen = await polled(watched)
    assert not broken(watched, seen) and seen.covers("blocked_sessions")
    assert seen.ignored["blocked_sessions"]


async def test_tables_slots_and_databases_are_left_out(server: PrivatePostgres) -> None:
    left_out = {
        "dead_tuples": {"limit": 0, "ignore": [{"table": "heap"}]},
        "inactive_slots": {"limit": 0, "ignore": [{"slot": "old*"}]},
        "transaction_id_age": {"limit": 0, "ignore": [{"database": "*"}]},
        "deadlocks": {"ignore": [{"database": "orders"}]},
    }
    watched = subject(server, dead_tuples_floor=1, invariants=left_out)
    with admin(server, "orders") as connection:
        connection.execute(
            "SELECT pg_create_physical_replication_slot('old_one', true)"
        )
        connection.execute(
            "CREATE TABLE heap WITH (autovacuum_enabled = off) AS SELECT generate_series(1, 99) g"
        )
        connection.execute("DELETE FROM heap")
        count = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'heap'"
        wait_until(lambda: connection.execute(count).fetchone() == (99,))
        seen = await polled(watched)
        connection.execute("SELECT pg_drop_replication_slot('old_one')")
        connection.execute("DROP TABLE heap")
    assert not broken(watched, seen)
    assert seen.ignored["dead_tuples"] == ("table orders.public.heap",) or seen.ignored[
        "dead_tuples"
    ] == ("table public.heap",)
    assert seen.ignored["inactive_slots"] == ("slot old_one",)
    assert "database orders" in seen.ignored["transaction_id_age"]


async def test_our_own_sessions_and_limit_do_not_count(server: PrivatePostgres) -> None:
    watched = subject(server)
    with admin(server) as connection, contextlib.ExitStack() as stack:
        connection.execute("CREATE ROLE pool LOGIN CONNECTION LIMIT 2")
        connection.execute("ALTER ROLE midwatch CONNECTION LIMIT 1")
        try:
            for _ in range(2):
                stack.enter_context(psycopg.connect(server.dsn("orders", "pool")))
            seen = await watched.observe({})
            assert severities(watched, seen) == {"role pool": Severity.WARNING}
            ours = "SELECT 1 FROM pg_stat_activity WHERE usename = 'midwatch'"
            ended = partial(wait_until, lambda: not connection.execute(ours).fetchone())
            ended()
            skip = {"connections": {"ignore": [{"role": "pool"}]}}
            calm = subject(server, invariants=skip)
            assert not broken(calm, await calm.observe({}))
            ended()
            # Its own limit keeps Midwatch out: that says nothing about the server.
            stack.enter_context(psycopg.connect(server.dsn("orders", "midwatch")))
            with pytest.raises(ObservationFailed, match="too many conn") as refused:
                await watched.observe({})
            assert "CONNECTION LIMIT" in refused.value.hint
        finally:
            stack.close()
            connection.execute("ALTER ROLE midwatch CONNECTION LIMIT -1")
            connection.execute("DROP ROLE pool")


# ------------------------------------------------------------------ encodings

ENCODINGS = {
    "latin": "LATIN1",
    "plain": "SQL_ASCII",
    "japan": "EUC_JP",
    "unicode": "UTF8",
}
WRITTEN = {
    "latin": "Gr\xfc\xdfe",
    "plain": "Gr\xfc\xdfe",
    "japan": "日本",
    "unicode": "Grüße 日本",
}
CODECS = {"latin": "latin-1", "plain": "latin-1", "japan": "euc_jp", "unicode": "utf-8"}


@pytest.mark.parametrize("database", ENCODINGS)
async def test_statements_in_any_encoding_are_read_from_any_database(
    server: PrivatePostgres, database: str
) -> None:
    limit = {"idle_in_transaction": {"limit": 0}, "blocked_sessions": {"limit": 0}}
    watched = subject(server, dsn=server.dsn(database, "midwatch"), invariants=limit)
    with contextlib.ExitStack() as stack:
        for name, words in WRITTEN.items():
            statement = f"SELECT '{words}'"
            for end in ("", "x" * 1000 + words):  # also cut within a character
                client = stack.enter_context(
                    psycopg.connect(server.dsn(name), client_encoding=ENCODINGS[name])
                )
                client.execute("SELECT 1")
                result = client.pgconn.exec_(
                    f"{statement} -- {end}".encode(CODECS[name])
                )
                assert result.status == psycopg.pq.ExecStatus.TUPLES_OK
        seen = await polled(watched)
    assert not seen.unavailable and set(seen.unsupported) <= UNSEEN
    found = {
        name for one, name in broken(watched, seen) if one == "idle_in_transaction"
    }
    assert found == set(ENCODINGS)
    own = str(signal_of(seen, "idle_in_transaction", database).facts["query"])
    if database != "plain":  # whose encoding nobody knows
        assert WRITTEN[database] in own
