"""SQL statements of the tools for PostgreSQL. None of them locks a table of a user: `pg_get_indexdef` would."""

from __future__ import annotations

# Where a policy of a user would run, there is an error instead.
SETUP = """
SELECT set_config('lock_timeout', %(lock)s, false),
       set_config('row_security', 'off', false),
       set_config('standard_conforming_strings', 'on', false)
"""

NARROW = """
SELECT set_config('work_mem', '4MB', false),
       set_config('hash_mem_multiplier', '1', false),
       set_config('max_parallel_workers_per_gather', '0', false),
       set_config('jit', 'off', false)
"""

TEMPORARY = "SELECT set_config('temp_file_limit', '100MB', false)"

IS_DATABASE = (
    "SELECT 1 AS found FROM pg_database WHERE datname = %(name)s AND datallowconn"
)

# A cast is found whatever the search path is. Functions in C come from a superuser or an extension.
USER_CASTS = """
SELECT p.oid FROM pg_cast c JOIN pg_proc p ON p.oid = c.castfunc JOIN pg_language l ON l.oid = p.prolang
WHERE p.pronamespace <> 'pg_catalog'::regnamespace AND l.lanname NOT IN ('c', 'internal') LIMIT 1
"""

# Where planning alone may run a function of a user, as that who plans: one in the predicate of an index, say, that
# is declared immutable. Dependents are the table, its partitions and children, their indexes, constraints and statistics.
_RUNS_USER_CODE = """EXISTS (
  WITH RECURSIVE family(id) AS (
    SELECT c.oid UNION SELECT i.inhrelid FROM pg_inherits i JOIN family ON i.inhparent = family.id),
  parts(class, id) AS (
    SELECT 'pg_class'::regclass::oid, id FROM family
    UNION ALL SELECT 'pg_class'::regclass, x.indexrelid FROM pg_index x JOIN family ON x.indrelid = family.id
    UNION ALL SELECT 'pg_constraint'::regclass, k.oid FROM pg_constraint k JOIN family ON k.conrelid = family.id
    UNION ALL SELECT 'pg_statistic_ext'::regclass, s.oid FROM pg_statistic_ext s JOIN family ON s.stxrelid = family.id)
  SELECT 1 FROM parts JOIN pg_depend d ON d.classid = parts.class AND d.objid = parts.id
  LEFT JOIN pg_operator o ON d.refclassid = 'pg_operator'::regclass AND o.oid = d.refobjid
  JOIN pg_proc p ON p.oid = CASE WHEN d.refclassid = 'pg_proc'::regclass THEN d.refobjid ELSE o.oprcode END
  JOIN pg_language l ON l.oid = p.prolang
  WHERE l.lanname NOT IN ('c', 'internal'))"""

RELATIONS = f"""
SELECT n.nspname AS schema, {_RUNS_USER_CODE} AS runs_user_code, c.relname AS name,
       c.relkind IN ('r', 'p', 'm', 'S')
       OR (c.relname IN ('pg_stat_statements', 'pg_stat_statements_info') AND EXISTS (
           SELECT 1 FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
           WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
             AND d.refclassid = 'pg_extension'::regclass AND e.extname = 'pg_stat_statements')) AS admitted
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN unnest(%(schemas)s::text[], %(names)s::text[]) AS asked(schema, name)
  ON n.nspname = asked.schema AND c.relname = asked.name
"""

SETTINGS = """
SELECT name, setting, unit, source, reset_val, boot_val, pending_restart
FROM pg_settings WHERE name LIKE ANY (%(patterns)s::text[]) ORDER BY name LIMIT 60
"""

_NAMED = """(SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = %(schema)s AND c.relname = %(name)s)"""

TABLE_PARTS = {
    "table": f"""
SELECT c.relkind AS kind, pg_get_userbyid(c.relowner) AS owner, c.reloptions::text AS reloptions,
       c.reltuples::bigint AS estimated_rows, c.relpages::bigint * current_setting('block_size')::int AS estimated_bytes,
       age(nullif(c.relfrozenxid::text, '0')::xid) AS xid_age, c.relpersistence AS persistence,
       (SELECT spcname FROM pg_tablespace t WHERE t.oid = c.reltablespace) AS tablespace,
       (SELECT i.inhparent::regclass::text FROM pg_inherits i WHERE i.inhrelid = c.oid LIMIT 1) AS partition_of,
       (SELECT count(*) FROM pg_inherits i WHERE i.inhparent = c.oid) AS partitions
FROM pg_class c WHERE c.oid = {_NAMED}
""",
    "statistics": f"SELECT * FROM pg_stat_all_tables WHERE relid = {_NAMED}",
    "columns": f"""
SELECT attname AS column, format_type(atttypid, atttypmod) AS type, attnotnull AS not_null
FROM pg_attribute WHERE attrelid = {_NAMED} AND attnum > 0 AND NOT attisdropped ORDER BY attnum LIMIT 60
""",
    "indexes": f"""
SELECT c.relname AS index, m.amname AS method,
       ARRAY(SELECT coalesce(attname, '(expression)') FROM unnest(i.indkey) WITH ORDINALITY AS k(number, place)
             LEFT JOIN pg_attribute ON attrelid = i.indrelid AND attnum = k.number AND k.number > 0
             ORDER BY place)::text AS columns,
       i.indisunique AS unique, i.indpred IS NOT NULL AS partial, i.indisvalid AS valid,
       s.idx_scan AS scans, s.idx_tup_read AS rows_read
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
LEFT JOIN pg_stat_all_indexes s ON s.indexrelid = i.indexrelid
WHERE i.indrelid = {_NAMED} LIMIT 30
""",
    "sequence": f"SELECT * FROM pg_sequence WHERE seqrelid = {_NAMED}",
    "triggers": f"""
SELECT tgname AS trigger, tgfoid::regproc::text AS function, tgenabled AS enabled
FROM pg_trigger WHERE tgrelid = {_NAMED} AND NOT tgisinternal LIMIT 30
""",
    "constraints": f"""
SELECT conname AS constraint, contype AS type, convalidated AS validated,
       nullif(confrelid, 0)::regclass::text AS references
FROM pg_constraint WHERE conrelid = {_NAMED} OR confrelid = {_NAMED} LIMIT 30
""",
}
"""What the tool `table` shows, by title; the first has a row for each table."""
