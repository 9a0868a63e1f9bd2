"""The tools of a PostgreSQL server, on a real one that is hostile where it can be."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from midwatch.errors import MidwatchError
from midwatch.model import Origin
from midwatch.subjects.postgres import PostgresSettings, PostgresSubject
from midwatch.subjects.postgres.select_guard import CATALOGS
from midwatch.subjects.tools import Answer, Refused
from midwatch.testing.postgres import PrivatePostgres
from midwatch.testing.tool_conformance import check_tools

from ..waiting import PATIENT

pytestmark = pytest.mark.integration

EVIL = """
CREATE FUNCTION evil() RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN 'x'; END $$;
"""
SET_UP = EVIL + """
CREATE TABLE orders (id int PRIMARY KEY, note text) WITH (autovacuum_enabled = off, fillfactor = 70);
INSERT INTO orders SELECT g, 'note ' || g FROM generate_series(1, 500) g;
CREATE SEQUENCE invoices AS smallint MAXVALUE 32767 START 32767;
CREATE FUNCTION lower(anyelement) RETURNS text LANGUAGE sql AS 'SELECT evil()';
CREATE VIEW trap AS SELECT evil() AS x;
CREATE TABLE guarded (id int);
INSERT INTO guarded VALUES (1);
ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
CREATE POLICY slow ON guarded USING (evil() IS NOT NULL);
CREATE FUNCTION planned(int) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
  IF current_user = 'watcher' THEN PERFORM pg_sleep(60); END IF; RETURN true; END $$;
CREATE TABLE indexed (id int) PARTITION BY RANGE (id);
CREATE TABLE indexed_1 PARTITION OF indexed FOR VALUES FROM (0) TO (10);
CREATE INDEX ON indexed_1 (id) WHERE planned(1);
CREATE EXTENSION IF NOT EXISTS pg_stat_statements;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO watcher;
GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO watcher;
ANALYZE;
"""
CASTS = """
CREATE TYPE mood AS ENUM ('fine');
CREATE FUNCTION mood_text(mood) RETURNS text LANGUAGE sql AS 'SELECT evil()';
CREATE CAST (mood AS text) WITH FUNCTION mood_text(mood) AS IMPLICIT;
CREATE TABLE moods (m mood);
INSERT INTO moods VALUES ('fine');
GRANT SELECT ON moods TO watcher;
"""


OLD = Path("/usr/lib/postgresql/15/bin")
"""Where Debian has PostgreSQL 15."""


@pytest.fixture(scope="module", params=[None, OLD], ids=["bundled", "15"])
def server(request: pytest.FixtureRequest) -> Iterator[PrivatePostgres]:
    if request.param is not None and not request.param.is_dir():
        pytest.skip("there is no PostgreSQL 15 on this machine")
    with PrivatePostgres(
        settings={"shared_preload_libraries": "pg_stat_statements"},
        programs=request.param,
    ) as one:
        with psycopg.connect(one.dsn(), autocommit=True) as admin:
            admin.execute("CREATE ROLE watcher LOGIN; GRANT pg_monitor TO watcher")
            admin.execute("CREATE DATABASE billing")
            admin.execute("CREATE DATABASE moods")
            admin.execute(SET_UP)
        with psycopg.connect(one.dsn("billing"), autocommit=True) as admin:
            admin.execute(SET_UP)
        with psycopg.connect(one.dsn("moods"), autocommit=True) as admin:
            admin.execute(EVIL + CASTS)
        yield one


@pytest.fixture
def watched(server: PrivatePostgres) -> PostgresSubject:
    given = {"name": "db", "dsn": server.dsn(user="watcher"), **PATIENT}
    settings = PostgresSettings.model_validate({**given, "log_file": server.log_file})
    return PostgresSubject(settings)


async def ask(watched: PostgresSubject, name: str, **arguments: Any) -> Answer:
    [tool] = (one for one in watched.tools() if one.name == name)
    async with asyncio.timeout(tool.timeout):
        answer: Answer = await tool.run(tool.arguments.model_validate(arguments))
        return answer


async def test_the_tools_conform(watched: PostgresSubject) -> None:
    await check_tools(
        watched,
        {
            "select": {"query": "SELECT relname FROM pg_class LIMIT 3"},
            "explain": {"query": "SELECT * FROM public.orders WHERE id = 1"},
            "table": {"table": "public.orders"},
            "settings": {"names": ["autovacuum*"]},
            "log_window": {"contains": "ready to accept"},
        },
    )


async def test_a_storage_parameter_and_a_sequence_of_another_database_are_proven(
    watched: PostgresSubject,
) -> None:
    query = "SELECT relname, reloptions FROM pg_class WHERE relname = 'orders'"
    found = await ask(watched, "select", query=query)
    assert "autovacuum_enabled=off" in found.text and found.origin is Origin.SYSTEM
    assert (
        "autovacuum_enabled=off"
        in (await ask(watched, "table", table="public.orders")).text
    )
    query = "SELECT last_value FROM public.invoices"
    found = await ask(watched, "select", query=query, database="billing")
    assert found.text == "last_value=32767" and "database billing" in found.command


async def test_text_of_clients_is_marked_and_what_is_counted_is_measured(
    watched: PostgresSubject,
) -> None:
    found = await ask(watched, "select", query="SELECT note FROM public.orders")
    assert found.origin is Origin.REPORTED
    assert found.text.count("\n") == 100 and "only 100" in found.text
    found = await ask(watched, "select", query="SELECT count(*) FROM public.orders")
    assert (found.origin, found.text) == (Origin.SYSTEM, "count=500")


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM public.trap",
        "SELECT * FROM public.guarded",
        "SELECT * FROM public.indexed WHERE id = 1",
        "SELECT * FROM public.indexed_1 WHERE id = 1",
        "SELECT lower(m) FROM public.moods",
        "SELECT * FROM pg_authid",
        "SELECT * FROM pg_catalog.pg_user_mapping",
        "SELECT * FROM pg_views",
        "SELECT * FROM information_schema.tables",
        "SELECT * FROM orders",
        "SELECT * FROM public.orders a, public.orders b, public.orders c ORDER BY a.note || b.note || c.note",
    ],
)
async def test_what_runs_code_of_users_or_takes_much_is_refused(
    watched: PostgresSubject, query: str
) -> None:
    database = "moods" if "moods" in query else None
    with pytest.raises(MidwatchError) as refused:
        await ask(watched, "select", query=query, database=database)
    told = refused.value.one_line()
    assert "took longer" not in told, "the function of the user ran"


async def test_functions_are_those_of_the_server(watched: PostgresSubject) -> None:
    query = "SELECT lower(note) FROM public.orders WHERE id = 1"
    assert (await ask(watched, "select", query=query)).text == 'lower="note 1"'


async def test_statement_statistics_are_admitted(watched: PostgresSubject) -> None:
    query = "SELECT calls FROM public.pg_stat_statements ORDER BY calls DESC LIMIT 1"
    assert "calls=" in (await ask(watched, "select", query=query)).text


async def test_no_tool_queues_behind_the_lock_that_is_looked_into(
    watched: PostgresSubject, server: PrivatePostgres
) -> None:
    """A size function would wait here as long as the lock is held."""
    with psycopg.connect(server.dsn()) as holder:
        holder.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        found = await ask(watched, "table", table="public.orders")
        assert "fillfactor=70" in found.text
        for name in ("select", "explain"):
            with pytest.raises(MidwatchError, match="lock timeout"):
                await ask(watched, name, query="SELECT * FROM public.orders")
        query = "SELECT relpages FROM pg_class WHERE relname = 'orders'"
        assert "relpages=" in (await ask(watched, "select", query=query)).text


def test_no_admitted_catalog_waits_for_a_lock(server: PrivatePostgres) -> None:
    with psycopg.connect(server.dsn()) as holder:
        holder.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        holder.execute("ALTER SEQUENCE invoices INCREMENT 2")
        holder.execute("ALTER VIEW trap SET (security_barrier = true)")
        with psycopg.connect(server.dsn(), autocommit=True) as reader:
            reader.execute("SET search_path = pg_catalog; SET lock_timeout = '200ms'")
            for name in sorted(CATALOGS):
                with contextlib.suppress(psycopg.errors.UndefinedTable):  # newer
                    reader.execute(f"SELECT * FROM {name}")  # type: ignore[arg-type]
        holder.rollback()


async def test_a_plan_is_shown_and_nothing_runs(watched: PostgresSubject) -> None:
    query = "SELECT * FROM public.orders WHERE id = 7"
    found = await ask(watched, "explain", query=query)
    assert "orders_pkey" in found.text and "actual" not in found.text


async def test_a_database_is_named_and_not_connected_to_by_other_options(
    watched: PostgresSubject,
) -> None:
    for name in ("billing host=127.0.0.2", "postgresql://127.0.0.2/billing", "none"):
        with pytest.raises(Refused, match="no database"):
            await ask(watched, "select", query="SELECT 1", database=name)


async def test_a_window_of_the_log(
    watched: PostgresSubject, server: PrivatePostgres
) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as client:
        with pytest.raises(psycopg.Error):
            client.execute("SELECT the_column_of_this_test")
    found = await ask(watched, "log_window", contains="the_column_of_this_test")
    assert "ERROR" in found.text and found.origin is Origin.REPORTED
    assert (await ask(watched, "log_window", until="2001-01-01")).text == ""
