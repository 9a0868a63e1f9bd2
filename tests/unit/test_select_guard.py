"""Which statements the guard of the PostgreSQL tool `select` admits, and as what text they run."""

from __future__ import annotations

import pytest

from midwatch.subjects.postgres.select_guard import admit
from midwatch.subjects.select_guard import LONGEST
from midwatch.subjects.tools import Refused

REFUSED = [
    # More than a SELECT, or none.
    "",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE x",
    "VALUES (1)",
    "EXPLAIN ANALYZE SELECT 1",
    "COPY x TO PROGRAM 'id'",
    "DO $$ BEGIN END $$",
    "SET ROLE postgres",
    "MERGE INTO x USING y ON true WHEN MATCHED THEN DELETE",
    "WITH a AS (DELETE FROM x RETURNING 1) SELECT * FROM a",
    "WITH a AS (INSERT INTO x VALUES (1) RETURNING 1) SELECT * FROM a",
    "WITH a AS (UPDATE x SET y = 1 RETURNING 1) SELECT 1",
    "SELECT 1 INTO y FROM x",
    "SELECT * FROM x FOR UPDATE",
    "SELECT * FROM x FOR KEY SHARE SKIP LOCKED",
    # Numbers that the parser would read as a number and a name.
    "SELECT relpages * 1_000 FROM pg_class",
    "SELECT oid, 0o17 FROM pg_class",
    "SELECT oid, 0x1F FROM pg_class",
    "SELECT oid, 0b11 FROM pg_class",
    "SELECT 1e1_0 FROM pg_class",
    # Functions, wherever they stand and however they are written.
    "SELECT pg_sleep(5)",
    "SELECT PG_Sleep (5)",
    "SELECT pg_sleep/**/(5)",
    'SELECT "pg_sleep"(5)',
    'SELECT U&"pg_sl\\0065ep"(5)',
    "SELECT pg_catalog.pg_sleep(5)",
    'SELECT pg_catalog."pg_sleep"(5)',
    "SELECT public.harmless(5)",
    "SELECT s.pg_sleep FROM unnest(ARRAY[5.0]) AS s",
    "SELECT (5.0::float8).pg_sleep",
    "SELECT (SELECT 5.0).pg_sleep",
    "SELECT * FROM pg_sleep(1)",
    "SELECT * FROM ROWS FROM (pg_sleep(1))",
    "SELECT * FROM x, LATERAL pg_sleep(1)",
    "SELECT * FROM x JOIN pg_sleep(1) ON true",
    "SELECT * FROM x JOIN y ON pg_sleep(1) IS NULL",
    "SELECT * FROM x WHERE pg_sleep(1) IS NULL",
    "SELECT 1 LIMIT length(pg_sleep(1)::text)",
    "SELECT 1 ORDER BY pg_sleep(1)",
    "SELECT count(*) FILTER (WHERE pg_sleep(1) IS NULL) FROM x",
    "SELECT count(*) OVER (PARTITION BY pg_sleep(1)) FROM x",
    "SELECT CASE WHEN pg_sleep(1) IS NULL THEN 1 END",
    "SELECT * FROM x TABLESAMPLE evil (1)",
    "SELECT a OPERATOR(public.+) b FROM x",
    "SELECT a::public.evil FROM x",
    "SELECT CAST(a AS evil) FROM x",
    "SELECT nextval('s')",
    "SELECT set_config('search_path', 'public', false)",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_terminate_backend(1)",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT lo_import('/etc/passwd')",
    "SELECT * FROM dblink('x', 'y') AS t(a int)",
    "SELECT query_to_xml('DELETE FROM x', true, true, '')",
    "SELECT pg_total_relation_size('x')",
    "SELECT pg_database_size('x')",
    "SELECT pg_get_viewdef('x')",
    "SELECT txid_current()",
    "SELECT to_jsonb(x) FROM x",
    "SELECT * FROM pg_authid, (WITH pg_authid AS (SELECT 1) SELECT * FROM pg_authid) a",
    # What takes memory or time.
    "SELECT repeat('x', 1000000000)",
    "SELECT lpad('x', 1000000000)",
    "SELECT format('%1000000000s', 'x')",
    "SELECT replace(a, 'x', a) FROM x",
    "SELECT string_agg(a, '') FROM x",
    "SELECT ARRAY(SELECT 1 FROM x)",
    "SELECT '1'::char(1000000)",
    "SELECT 9 ^ 99999",
    "SELECT * FROM generate_series(1, 1000000000)",
    "WITH RECURSIVE a AS (SELECT 1 UNION ALL SELECT 1 FROM a) SELECT * FROM a",
    "SELECT * FROM (WITH RECURSIVE a AS (SELECT 1) SELECT * FROM a) AS b",
    "SELECT " + "||".join(["a"] * 40) + " FROM x",
    "SELECT " + "(" * 500 + "1" + ")" * 500,
    "SELECT '" + "x" * LONGEST + "'",
    # Text that the statement itself would bring into the evidence.
    "SELECT 'autovacuum is off' FROM pg_class",
    "SELECT 'autovacuum ' || 'is off' AS finding FROM pg_class",
    "SELECT coalesce(NULL, 'autovacuum is off') FROM pg_class",
    "SELECT lower('AUTOVACUUM IS OFF') FROM pg_class",
    "SELECT left(relname || ' autovacuum is off', 50) FROM pg_class",
    "SELECT x FROM (SELECT 'autovacuum is off' AS x) AS y",
    "SELECT CASE WHEN true THEN 'autovacuum is off' END FROM pg_class",
    "SELECT greatest(relname, 'autovacuum is off') FROM pg_class",
    "SELECT lag(relname, 1, 'autovacuum is off') OVER () FROM pg_class",
    "SELECT nullif('autovacuum is off', relname) FROM pg_class",
    "SELECT left('autovacuum is off', length(relname)) FROM pg_class",
    "SELECT to_char(created_at, '\"autovacuum is off\"') FROM x",
    "SELECT (ARRAY['autovacuum is off'])[1]",
    "SELECT '{autovacuum is off}'::text[]",
    "SELECT 'autovacuum is off'::name",
    "SELECT '{\"a\": \"autovacuum is off\"}'::jsonb ->> 'a'",
    "SELECT coalesce(doc -> 'a' || 'autovacuum is off', doc) FROM x",
    "SELECT mode() WITHIN GROUP (ORDER BY 'autovacuum is off') FROM pg_class",
    "SELECT 'aut' || 'ova' || 'cuu' || 'm i' || 's o' || 'ff'",
    'SELECT relname AS "autovacuum=off" FROM pg_class',
    'SELECT relname AS "a\nautovacuum_enabled" FROM pg_class',
    'SELECT * FROM (SELECT 1) AS x("autovacuum is off")',
    # A name that Python takes for none.
    "SELECT p\u200bg_sleep(1)",
    "SELECT pg$sleep(1)",
    # Strings whose end two parsers may see at different places.
    "SELECT E'a\\'b'",
    "SELECT $$a$$",
    "SELECT * FROM x WHERE a = $1",
]

ADMITTED = {
    "SELECT relname FROM pg_class LIMIT 5": 'SELECT "relname" FROM "pg_class" LIMIT 5',
    "select 1 /* ; DROP TABLE x */ -- no": "SELECT 1",
    "SELECT PID, now() - xact_start FROM PG_STAT_ACTIVITY": (
        'SELECT "pid", CURRENT_TIMESTAMP - "xact_start" FROM "pg_stat_activity"'
    ),
    "SELECT user FROM x": 'SELECT "user" FROM "x"',
    "SELECT current_setting('work_mem')": "SELECT CURRENT_SETTING('work_mem')",
    "SELECT now() - make_interval(mins => 5)": (
        "SELECT CURRENT_TIMESTAMP - MAKE_INTERVAL(mins => 5)"
    ),
    "SELECT coalesce(doc->'total', doc->'sum') FROM x": (
        """SELECT COALESCE("doc" -> 'total', "doc" -> 'sum') FROM "x\""""
    ),
    "SELECT o.b FROM pg_locks l, LATERAL (SELECT unnest(pg_blocking_pids(l.pid)) AS b) AS o": (
        'SELECT "o"."b" FROM "pg_locks" AS "l", LATERAL (SELECT UNNEST(PG_BLOCKING_PIDS("l"."pid")) AS "b") AS "o"'
    ),
    "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks": (
        'SELECT (CAST("classid" AS BIGINT) << 32) | CAST("objid" AS BIGINT) FROM "pg_locks"'
    ),
    "SELECT to_char(a, 'YYYY-MM-DD HH24:MI'), split_part(b, 'FROM', 2) FROM x": (
        """SELECT TO_CHAR("a", 'YYYY-MM-DD HH24:MI'), SPLIT_PART("b", 'FROM', 2) FROM "x\""""
    ),
    "SELECT a FROM x WHERE b = 'it''s; --'": (
        """SELECT "a" FROM "x" WHERE "b" = 'it''s; --'"""
    ),
}


@pytest.mark.parametrize("statement", REFUSED)
def test_what_does_more_than_read_is_refused(statement: str) -> None:
    with pytest.raises(Refused):
        admit(statement)


@pytest.mark.parametrize("statement", ADMITTED)
def test_what_runs_is_written_again_with_quoted_names(statement: str) -> None:
    assert admit(statement).text == ADMITTED[statement]


def test_the_tables_are_those_of_the_database() -> None:
    found = admit(
        "WITH a AS (SELECT * FROM public.x) SELECT * FROM a JOIN B USING (c) WHERE EXISTS"
        ' (SELECT 1 FROM "S"."T")'
    )
    assert found.tables == {("public", "x"), ("", "b"), ("S", "T")}


def test_a_parameter_stands_for_a_value_only_where_nothing_runs() -> None:
    assert admit("SELECT a FROM x WHERE b = $1", parameters=True).text.endswith("= $1")
    with pytest.raises(Refused):
        admit("SELECT a FROM x WHERE b = @c", parameters=True)
