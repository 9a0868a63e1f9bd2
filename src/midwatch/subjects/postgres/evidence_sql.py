"""SQL statements for evidence alone, under the same rules as those of `midwatch.subjects.postgres.sql`.

None takes a lock on a table or an index, and none waits for one: evidence of a lock queue must not join it. So sizes
come from the catalog, and no function is called that opens a relation (pg_relation_size, pg_total_relation_size,
pg_table_size, pg_get_indexdef, pg_get_expr, pg_partition_tree). Reading a sequence opens it, so one that is locked is left out.
"""

from __future__ import annotations

from midwatch.subjects.postgres.sql import OWN_SESSIONS, moment

SERVER = """
SELECT version(), pg_is_in_recovery() AS standby,
       date_trunc('second', pg_postmaster_start_time())::text AS started,
       date_trunc('second', clock_timestamp())::text AS now,
       extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())::float8 AS uptime
"""

CONNECTIONS = """
SELECT count(*) AS sessions, coalesce(state, 'unknown') AS state,
       round(extract(epoch FROM max(clock_timestamp() - state_change)))::text || 's' AS longest_in_state,
       round(extract(epoch FROM min(clock_timestamp() - state_change)))::text || 's' AS shortest,
       coalesce(host(client_addr), 'local') AS client, datname AS database, usename AS user,
       application_name AS application
FROM pg_stat_activity WHERE backend_type = 'client backend'
GROUP BY 2, 5, 6, 7, 8 ORDER BY 1 DESC LIMIT 25
"""

# Locks that are alike are one row: in a long queue all waiting sessions have the same ones.
LOCKS = """
WITH waiting AS (
  SELECT pid, pg_blocking_pids(pid) AS blockers FROM pg_stat_activity WHERE wait_event_type = 'Lock'
), involved AS (
  SELECT pid FROM waiting UNION SELECT unnest(blockers) FROM waiting
), locks AS (
  SELECT l.pid, l.locktype, l.mode, l.granted,
         CASE WHEN l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
              THEN coalesce(c.oid::regclass::text, l.relation::text) ELSE l.relation::text END AS relation,
         CASE WHEN NOT l.granted THEN l.transactionid::text END AS transactionid
  FROM pg_locks l JOIN involved i USING (pid) LEFT JOIN pg_class c ON c.oid = l.relation
  WHERE l.locktype <> 'virtualxid' AND (l.locktype <> 'transactionid' OR NOT l.granted)
)
SELECT locktype, mode, granted, relation, transactionid, count(*) AS sessions,
       array_to_string((array_agg(pid ORDER BY pid))[1:8], ',') || CASE WHEN count(*) > 8 THEN ',…' ELSE '' END AS pids
FROM locks GROUP BY 1, 2, 3, 4, 5
ORDER BY granted, mode = 'AccessExclusiveLock' DESC, sessions DESC, relation LIMIT 25
"""

# For settings that this session has changed for itself, the value without that change.
SETTINGS = """
SELECT name, CASE WHEN name IN ('statement_timeout', 'lock_timeout',
                                'idle_in_transaction_session_timeout')
                  THEN reset_val || ' ms' ELSE current_setting(name) END AS value
FROM pg_settings WHERE name = ANY(%(names)s::text[])
ORDER BY name
"""

# The settings that concern an invariant, by what it is about.
SETTING_NAMES: dict[str, str] = {
    "sessions": "max_connections superuser_reserved_connections reserved_connections idle_session_timeout "
    "idle_in_transaction_session_timeout restart_after_crash",
    "locks": "idle_in_transaction_session_timeout lock_timeout statement_timeout transaction_timeout deadlock_timeout "
    "log_lock_waits max_prepared_transactions synchronous_standby_names",
    "vacuum": "autovacuum autovacuum_max_workers autovacuum_naptime autovacuum_vacuum_scale_factor "
    "autovacuum_vacuum_cost_limit autovacuum_vacuum_cost_delay autovacuum_freeze_max_age vacuum_failsafe_age "
    "hot_standby_feedback track_counts idle_in_transaction_session_timeout",
    "wal": "max_wal_size max_slot_wal_keep_size wal_keep_size max_wal_senders hot_standby_feedback wal_sender_timeout "
    "recovery_min_apply_delay max_standby_streaming_delay idle_replication_slot_timeout synchronous_standby_names",
    "statements": "statement_timeout work_mem shared_buffers temp_file_limit effective_cache_size random_page_cost jit "
    "max_parallel_workers_per_gather",
    "crash": "shared_buffers work_mem maintenance_work_mem max_connections restart_after_crash data_checksums temp_file_limit data_directory",
}

IDS = """
(SELECT 'database' AS kind, datname::text AS name, age(datfrozenxid) AS xid_age,
        mxid_age(datminmxid) AS multixact_age, NULL AS database
 FROM pg_database ORDER BY age(datfrozenxid) DESC LIMIT 10)
UNION ALL
(SELECT 'table', c.oid::regclass::text, age(c.relfrozenxid), mxid_age(c.relminmxid), current_database()
 FROM pg_class c WHERE c.relkind IN ('r', 'm', 't') AND c.relfrozenxid <> '0'
 ORDER BY age(c.relfrozenxid) DESC LIMIT 6)
"""

VACUUM = """
(SELECT 'table' AS kind, s.schemaname || '.' || s.relname AS name, s.n_live_tup AS live,
        s.n_dead_tup AS dead, date_trunc('second', s.last_vacuum)::text AS last_vacuum,
        date_trunc('second', s.last_autovacuum)::text AS last_autovacuum, s.autovacuum_count,
        array_to_string(c.reloptions, ',') AS options
 FROM pg_stat_user_tables s LEFT JOIN pg_class c ON c.oid = s.relid
 WHERE s.n_dead_tup > 0 OR s.relid IN (SELECT relid FROM pg_stat_progress_vacuum)
 ORDER BY s.n_dead_tup DESC LIMIT 12)
UNION ALL
(SELECT 'vacuum running', 'pid ' || pid || ' on relation ' || relid || ', ' || phase,
        heap_blks_scanned, heap_blks_total, NULL, NULL, NULL, NULL
 FROM pg_stat_progress_vacuum LIMIT 10)
"""

# A size by the catalog is that of the last vacuum or analyze; what was written since is added by the counters.
# The indexes and the TOAST table are as large as they were then.
_HEAP = """(c.relpages::float8 * CASE WHEN c.reltuples > 0
            THEN greatest(1, (coalesce(s.n_live_tup, 0) + coalesce(s.n_dead_tup, 0)) / c.reltuples) ELSE 1 END)"""
_REST = """(SELECT coalesce(sum(r.relpages), 0) FROM pg_class r
            WHERE r.oid = c.reltoastrelid OR r.oid IN (SELECT indexrelid FROM pg_index WHERE indrelid IN (c.oid, c.reltoastrelid)))"""
_BYTES = f"(({_HEAP} + {_REST}) * current_setting('block_size')::int)::bigint"

SIZES = f"""
(SELECT 'database' AS kind, datname::text AS name, pg_size_pretty(pg_database_size(oid)) AS size, NULL::bigint AS rows,
        NULL::bigint AS inserted, NULL AS database
 FROM pg_database
 WHERE datallowconn AND (has_database_privilege(oid, 'CONNECT') OR pg_has_role('pg_read_all_stats', 'USAGE'))
 ORDER BY pg_database_size(oid) DESC LIMIT 12)
UNION ALL
(SELECT 'table with indexes', n.nspname || '.' || c.relname, 'about ' || pg_size_pretty({_BYTES}),
        greatest(c.reltuples, s.n_live_tup)::bigint, s.n_tup_ins, current_database()
 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
 WHERE c.relkind IN ('r', 'm') AND (n.nspname <> 'pg_catalog' OR c.relpages > 5000) AND (c.relpages > 0 OR s.n_live_tup > 0)
 ORDER BY greatest({_BYTES}, s.n_live_tup * 60) DESC LIMIT 12)
"""

COUNTERS = """
SELECT datname AS database, numbackends AS sessions, xact_commit AS commits,
       xact_rollback AS rollbacks, deadlocks, temp_files, pg_size_pretty(temp_bytes) AS temp_bytes,
       tup_inserted, tup_updated, tup_deleted, date_trunc('second', stats_reset)::text AS since
FROM pg_stat_database WHERE datname IS NOT NULL ORDER BY deadlocks DESC, xact_commit DESC LIMIT 8
"""

# ------------------------------------------------------------------ the tables and statements concerned

# `words` are those of the statements concerned: what names a table there is looked up.
TABLES = f"""
SELECT c.oid::bigint AS id, n.nspname || '.' || c.relname AS name, c.relkind::text AS relkind,
       greatest(c.reltuples, s.n_live_tup)::bigint AS rows, pg_size_pretty({_BYTES}) AS size,
       array_to_string(c.reloptions, ', ') AS options, array_to_string(t.reloptions, ', ') AS toast_options,
       s.n_dead_tup AS dead, s.seq_scan, s.seq_tup_read, s.idx_scan,
       date_trunc('second', greatest(s.last_vacuum, s.last_autovacuum))::text AS vacuumed,
       date_trunc('second', greatest(s.last_analyze, s.last_autoanalyze))::text AS analyzed,
       s.n_mod_since_analyze AS changed,
       (SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_class t ON t.oid = c.reltoastrelid
LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
WHERE c.relkind IN ('r', 'p', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
  AND n.nspname !~ '^pg_(toast|temp)' AND c.relname = ANY(%(words)s::text[])
ORDER BY c.relpages DESC, name LIMIT 6
"""

INDEXES = """
SELECT x.indrelid::bigint AS id, i.relname AS name, x.indisunique AS unique, x.indisprimary AS primary,
       x.indisvalid AND x.indisready AS valid, x.indpred IS NOT NULL AS partial,
       (SELECT array_agg(coalesce(a.attname::text, '(an expression)') ORDER BY k.place)
        FROM unnest(x.indkey[0:x.indnkeyatts - 1]) WITH ORDINALITY AS k (number, place)
        LEFT JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.number AND k.number <> 0) AS columns,
       s.idx_scan AS scans,
       pg_size_pretty(i.relpages::bigint * current_setting('block_size')::int) AS size
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
LEFT JOIN pg_stat_all_indexes s ON s.indexrelid = x.indexrelid
WHERE x.indrelid::bigint = ANY(%(tables)s::bigint[]) ORDER BY x.indrelid, i.relpages DESC, i.relname LIMIT 40
"""

INVALID_INDEXES = """
SELECT n.nspname || '.' || i.relname AS index, t.relname AS table
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
JOIN pg_namespace n ON n.oid = i.relnamespace
WHERE NOT (x.indisvalid AND x.indisready) ORDER BY 1 LIMIT 10
"""

# The whole statement of a session, as bytes, and its identifier.
STATEMENT_OF = """
SELECT datname, usename, query_id, state, substr(textsend(query), 1, 20000) AS query,
       octet_length(textsend(query)) >= (SELECT setting::int - 1 FROM pg_settings WHERE name = 'track_activity_query_size') AS cut
FROM pg_stat_activity WHERE pid = %(pid)s AND backend_type = 'client backend'
"""

# What a role lacks, what the planner could run of users' code, and what it must not open: a statement with any of it is
# not explained. Immutable functions are run while a statement is planned, with the permissions of our role. `relations` are those that it may name,
# with their partitions; a function that belongs to an extension was installed by an administrator.
PLANNED_CODE = """
WITH RECURSIVE relations AS (
  SELECT c.oid, c.relkind, c.relrowsecurity, c.relname, true AS named
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relname = ANY(%(words)s::text[]) AND c.relkind IN ('r', 'p', 'm', 'v', 'f') AND n.nspname <> 'pg_catalog'
  UNION
  SELECT c.oid, c.relkind, c.relrowsecurity, c.relname, false
  FROM relations r JOIN pg_inherits i ON i.inhparent = r.oid JOIN pg_class c ON c.oid = i.inhrelid
), foreign_code AS (
  SELECT p.oid, p.proname FROM pg_proc p WHERE p.oid >= 16384
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
)
SELECT * FROM (
  SELECT 'this role lacks ' || %(verb)s || ' on ' || relname AS what FROM relations
  WHERE named AND NOT has_table_privilege(oid, %(verb)s)
    AND (%(verb)s = 'SELECT' OR NOT EXISTS (SELECT FROM relations WHERE named AND has_table_privilege(oid, %(verb)s)))
  UNION ALL
  SELECT 'the function ' || proname || ' of a user' FROM foreign_code WHERE proname = ANY(%(words)s::text[])
  UNION ALL
  SELECT 'an operator of a user' FROM pg_operator WHERE oprcode IN (SELECT oid FROM foreign_code)
  UNION ALL
  SELECT 'a cast of a user' FROM pg_cast WHERE castfunc IN (SELECT oid FROM foreign_code)
  UNION ALL
  SELECT CASE WHEN relkind = 'v' THEN 'the view ' WHEN relkind = 'f' THEN 'the foreign table ' ELSE 'row security of ' END || relname
  FROM relations WHERE relkind IN ('v', 'f') OR relrowsecurity
  UNION ALL
  SELECT 'a function of a user in an index, default or constraint of ' || r.relname FROM relations r
  WHERE EXISTS (
    SELECT FROM pg_depend d
    WHERE d.refclassid = 'pg_proc'::regclass AND d.refobjid IN (SELECT oid FROM foreign_code) AND (
      (d.classid = 'pg_class'::regclass AND d.objid IN (SELECT indexrelid FROM pg_index WHERE indrelid = r.oid))
      OR (d.classid = 'pg_class'::regclass AND d.objid = r.oid)
      OR (d.classid = 'pg_attrdef'::regclass AND d.objid IN (SELECT oid FROM pg_attrdef WHERE adrelid = r.oid))
      OR (d.classid = 'pg_constraint'::regclass AND d.objid IN (SELECT oid FROM pg_constraint WHERE conrelid = r.oid))
      OR (d.classid = 'pg_statistic_ext'::regclass AND d.objid IN (SELECT oid FROM pg_statistic_ext WHERE stxrelid = r.oid))
      OR d.classid = 'pg_rewrite'::regclass AND d.objid IN (SELECT oid FROM pg_rewrite WHERE ev_class = r.oid)))
) found LIMIT 5
"""

# For one transaction that is rolled back: the names of a statement are looked up as its author's would be.
PLAN_LIMITS = """
SELECT set_config('search_path', 'pg_catalog, ' || coalesce((
         SELECT string_agg(quote_ident(nspname), ', ' ORDER BY nspname <> 'public', nspname) FROM pg_namespace
         WHERE nspname NOT IN ('pg_catalog', 'information_schema') AND nspname !~ '^pg_'
           AND has_schema_privilege(oid, 'USAGE')), ''), true),
       set_config('lock_timeout', '100', true),
       set_config('plan_cache_mode', 'force_generic_plan', true)
"""


def statements(schema: str) -> str:
    """Return the statement for the most expensive statements, of pg_stat_statements (1.8 and later) in a quoted schema."""
    return f"""
SELECT s.calls, round(s.total_exec_time::numeric / 1000, 1)::text || 's' AS total,
       round(s.mean_exec_time::numeric, 1)::text || 'ms' AS mean, round(s.max_exec_time::numeric, 1)::text || 'ms' AS longest,
       s.rows, s.shared_blks_read AS blocks_read, s.shared_blks_hit AS blocks_hit, nullif(s.temp_blks_written, 0) AS temp_blocks,
       coalesce(r.rolname, '?') AS role, s.queryid::text AS id, textsend(s.query) AS query
FROM {schema}.pg_stat_statements s LEFT JOIN pg_roles r ON r.oid = s.userid
WHERE s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND r.rolname IS DISTINCT FROM session_user
ORDER BY s.queryid = %(id)s::bigint DESC NULLS LAST, s.total_exec_time DESC LIMIT 6
"""


STATEMENTS_SCHEMA = """
SELECT quote_ident(n.nspname) AS schema, e.extversion AS version
FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'pg_stat_statements'
"""

# Catalog rows that were written last: an ALTER or CREATE writes them. Their order is that of transactions; times
# exist only with track_commit_timestamp.
DDL = """
WITH changes AS (
  SELECT xmin, CASE relkind WHEN 'i' THEN 'index' WHEN 'I' THEN 'index' WHEN 'S' THEN 'sequence' WHEN 'v' THEN 'view'
                            WHEN 'm' THEN 'materialized view' ELSE 'table' END AS kind,
         relnamespace::regnamespace::text || '.' || relname AS name
  FROM pg_class WHERE oid >= 16384 AND relkind <> 't' AND relnamespace::regnamespace::text !~ '^pg_'
  UNION ALL
  SELECT a.xmin, 'column', c.relname || '.' || a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
  WHERE a.attrelid >= 16384 AND a.attnum > 0 AND c.relkind IN ('r', 'p') AND a.xmin <> c.xmin
  UNION ALL
  SELECT k.xmin, 'constraint', coalesce(k.conrelid::regclass::text || ' ', '') || k.conname FROM pg_constraint k WHERE k.oid >= 16384
  UNION ALL
  SELECT xmin, 'trigger', tgrelid::regclass::text || ' ' || tgname FROM pg_trigger WHERE oid >= 16384 AND NOT tgisinternal
  UNION ALL
  SELECT xmin, 'function', pronamespace::regnamespace::text || '.' || proname FROM pg_proc WHERE oid >= 16384
  UNION ALL
  SELECT s.xmin, 'settings', concat_ws(' ', 'of role ' || r.rolname, 'in database ' || d.datname)
  FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase
  UNION ALL
  SELECT xmin, 'database', datname FROM pg_database WHERE oid >= 16384
)
SELECT string_agg(DISTINCT kind || ' ' || name, ', ') AS changed, min(age(xmin)) AS transactions_ago, %s AS at
FROM changes WHERE xmin::text::bigint > 2 AND age(xmin) BETWEEN 0 AND 1000000
GROUP BY xmin::text ORDER BY min(age(xmin)) LIMIT 6
"""

# ------------------------------------------------------------------ sessions and their settings

WAIT_EVENTS = f"""
SELECT coalesce(wait_event_type || '/' || wait_event, CASE WHEN state = 'active' THEN 'runs' ELSE 'does not wait' END) AS waits_on,
       coalesce(state, 'unknown') AS state, datname AS database, count(*) AS sessions,
       round(extract(epoch FROM max(clock_timestamp() - coalesce(xact_start, query_start))))::text || 's' AS longest
FROM pg_stat_activity
WHERE backend_type IN ('client backend', 'parallel worker') AND NOT {OWN_SESSIONS} AND state IS DISTINCT FROM 'idle'
GROUP BY 1, 2, 3 ORDER BY sessions DESC, 1 LIMIT 15
"""

# Of single roles and databases; `value` is shown for settings that cannot have a secret.
ROLE_SETTINGS = """
SELECT r.rolname AS role, d.datname AS database, split_part(entry, '=', 1) AS setting,
       substr(entry, strpos(entry, '=') + 1) AS value,
       EXISTS (SELECT FROM pg_settings p WHERE p.name = lower(split_part(entry, '=', 1)) AND p.name !~ '[.]') AS known
FROM pg_db_role_setting s CROSS JOIN LATERAL unnest(s.setconfig) AS entry
LEFT JOIN pg_database d ON d.oid = s.setdatabase LEFT JOIN pg_roles r ON r.oid = s.setrole
WHERE (s.setrole = 0 OR r.rolname = ANY(%(roles)s::text[])) AND (s.setdatabase = 0 OR d.datname = ANY(%(databases)s::text[]))
ORDER BY r.rolname NULLS FIRST, d.datname NULLS FIRST, 3 LIMIT 40
"""

ROLE_LIMITS = """
SELECT r.rolname AS role, CASE WHEN r.rolconnlimit >= 0 THEN r.rolconnlimit END AS connection_limit,
       CASE WHEN r.rolvaliduntil < 'infinity' THEN date_trunc('second', r.rolvaliduntil)::text END AS password_valid_until,
       CASE WHEN r.rolvaliduntil < clock_timestamp() THEN 'EXPIRED' END AS password,
       CASE WHEN NOT r.rolcanlogin THEN 'no' END AS may_log_in
FROM pg_roles r WHERE r.rolname = ANY(%(roles)s::text[])
  AND (r.rolconnlimit >= 0 OR r.rolvaliduntil < 'infinity' OR NOT r.rolcanlogin) ORDER BY 1 LIMIT 20
"""

# Its locks keep the virtual transaction of the session that prepared it, which the lock of its own id has too.
# `in_front_of` are the sessions that wait for something which it has locked. What clients choose comes last.
# What it is in front of are those that wait for a lock in a mode that conflicts with its own: `against` are the levels
# of the modes that do (the table of conflicting lock modes in PostgreSQL's documentation, explicit locking).
PREPARED = f"""
WITH modes AS (
  SELECT * FROM unnest(
    ARRAY['AccessShareLock', 'RowShareLock', 'RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareLock',
          'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'],
    ARRAY['8', '78', '5678', '45678', '34678', '345678', '2345678', '12345678']) WITH ORDINALITY AS m (mode, against, level)
), locks AS MATERIALIZED (SELECT * FROM pg_locks), held AS MATERIALIZED (
  SELECT own.transactionid AS owner, h.* FROM locks own
  JOIN locks h ON h.virtualtransaction = own.virtualtransaction AND h.pid IS NULL AND h.granted
  WHERE own.transactionid IS NOT NULL AND own.pid IS NULL AND own.granted
)
SELECT {moment("x.prepared")} AS prepared,
       round(extract(epoch FROM clock_timestamp() - x.prepared))::text || 's' AS age, x.transaction::text AS transactionid,
       age(x.transaction) AS transactions_ago, x.owner, x.database,
       (SELECT string_agg(DISTINCT w.pid::text, ',') FROM held h JOIN locks w ON NOT w.granted AND
          (w.locktype, w.database, w.relation, w.page, w.tuple, w.transactionid::text, w.classid, w.objid, w.objsubid)
          IS NOT DISTINCT FROM
          (h.locktype, h.database, h.relation, h.page, h.tuple, h.transactionid::text, h.classid, h.objid, h.objsubid)
        JOIN modes own ON own.mode = h.mode JOIN modes other ON other.mode = w.mode AND strpos(own.against, other.level::text) > 0
        WHERE h.owner = x.transaction AND 0 = ANY(pg_blocking_pids(w.pid))) AS in_front_of,
       (SELECT string_agg(DISTINCT l.mode || ' on ' || translate(coalesce(c.relname, l.relation::text), '=', '?'), ', ')
        FROM held l LEFT JOIN pg_class c ON c.oid = l.relation AND x.database = current_database()
        WHERE l.owner = x.transaction AND l.relation IS NOT NULL AND (c.relkind IS NULL OR c.relkind <> 'i')) AS locks,
       x.gid
FROM pg_prepared_xacts x ORDER BY x.prepared LIMIT 15
"""

# ------------------------------------------------------------------ disks

TABLESPACES = """
SELECT t.oid::bigint AS id, t.spcname AS tablespace, pg_tablespace_location(t.oid) AS location,
       CASE WHEN pg_has_role('pg_read_all_stats', 'USAGE') OR has_tablespace_privilege(t.oid, 'CREATE')
            THEN pg_size_pretty(pg_tablespace_size(t.oid)) ELSE 'not visible to this role' END AS size
FROM pg_tablespace t WHERE t.spcname <> 'pg_global' ORDER BY t.spcname LIMIT 20
"""
TEMPORARY = "SELECT count(*) AS files, coalesce(sum(size), 0)::bigint AS bytes FROM pg_ls_tmpdir(%(id)s::oid)"
WAL = "SELECT count(*) AS files, coalesce(sum(size), 0)::bigint AS bytes FROM pg_ls_waldir()"
PLACES = """
SELECT max(setting) FILTER (WHERE name = 'data_directory') AS data,
       max(setting) FILTER (WHERE name = 'temp_tablespaces') AS temp_tablespaces,
       max(setting) FILTER (WHERE name = 'temp_file_limit') AS temp_file_limit
FROM pg_settings
"""
TEMPORARY_USE = """
SELECT datname AS database, temp_files, pg_size_pretty(temp_bytes) AS temp_bytes, date_trunc('second', stats_reset)::text AS since
FROM pg_stat_database WHERE temp_bytes > 0 ORDER BY temp_bytes DESC LIMIT 5
"""

# ------------------------------------------------------------------ a standby

CONFLICTS = """
SELECT datname AS database, confl_tablespace AS tablespace, confl_lock AS lock, confl_snapshot AS snapshot,
       confl_bufferpin AS bufferpin, confl_deadlock AS deadlock
FROM pg_stat_database_conflicts
WHERE confl_tablespace + confl_lock + confl_snapshot + confl_bufferpin + confl_deadlock > 0
ORDER BY confl_lock + confl_snapshot DESC LIMIT 10
"""
DELAYS = """
SELECT CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() END AS replay,
       coalesce(date_trunc('second', pg_last_xact_replay_timestamp())::text, 'none since this start') AS last_transaction_replayed,
       round(extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()))::text || 's' AS ago,
       current_setting('recovery_min_apply_delay') AS recovery_min_apply_delay,
       current_setting('max_standby_streaming_delay') AS max_standby_streaming_delay,
       current_setting('max_standby_archive_delay') AS max_standby_archive_delay,
       current_setting('hot_standby_feedback') AS hot_standby_feedback
WHERE pg_is_in_recovery()
"""

REPLICATORS = """
SELECT rolname AS role, rolsuper AS superuser, rolcanlogin AS may_log_in, rolvaliduntil < now() AS expired,
       date_trunc('second', rolvaliduntil)::text AS valid_until, nullif(rolconnlimit, -1) AS connection_limit
FROM pg_roles WHERE rolreplication ORDER BY rolname LIMIT 50
"""

# What the replay of a standby waits for.
REPLAY = """
SELECT 'startup process' AS kind, pid, wait_event_type, wait_event
FROM pg_stat_activity WHERE backend_type = 'startup'
"""

# ------------------------------------------------------------------ sequences

# Those that can end: 300 at most, as each is locked while it is read, those with the fullest tables first. One on
# which a conflicting lock is held or awaited is left out. Without USAGE or SELECT on it, what its table holds is the least
# that it has given out.
CONNECTABLE = """
SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate AND has_database_privilege(oid, 'CONNECT')
ORDER BY datname = current_database() DESC, datname LIMIT 1000
"""
SEQUENCES = """
WITH locked AS MATERIALIZED (
  SELECT relation FROM pg_locks WHERE locktype = 'relation'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
), limited AS (
  SELECT c.oid AS id, n.nspname || '.' || c.relname AS name, o.refobjid::regclass::text || '.' || a.attname AS column,
         q.seqincrement AS step, q.seqcycle AS cycles, q.seqstart AS start,
         CASE WHEN q.seqincrement > 0 THEN least(q.seqmax, CASE a.atttypid WHEN 'int2'::regtype THEN 32767
                   WHEN 'int4'::regtype THEN 2147483647 ELSE q.seqmax END) ELSE q.seqmin END AS last_allowed,
         has_sequence_privilege(c.oid, 'SELECT, USAGE') AS may, l.relation IS NOT NULL AS locked,
         greatest(t.reltuples, s.n_live_tup, 0)::float8 AS rows
  FROM pg_sequence q JOIN pg_class c ON c.oid = q.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN locked l ON l.relation = c.oid
  LEFT JOIN pg_depend o ON o.classid = 'pg_class'::regclass AND o.objid = c.oid AND o.refobjsubid > 0
       AND o.refclassid = 'pg_class'::regclass AND o.deptype IN ('a', 'i')
  LEFT JOIN pg_attribute a ON a.attrelid = o.refobjid AND a.attnum = o.refobjsubid
  LEFT JOIN pg_class t ON t.oid = o.refobjid LEFT JOIN pg_stat_all_tables s ON s.relid = o.refobjid
  WHERE c.relpersistence <> 't' AND (q.seqmax < 1000000000000000 OR q.seqincrement < 0 OR a.atttypid IN ('int2'::regtype, 'int4'::regtype))
  ORDER BY greatest(t.reltuples, s.n_live_tup, 0)::float8 / greatest(q.seqmax::float8, 1) DESC, c.oid LIMIT 300
), known AS (
  SELECT *, CASE WHEN may AND NOT locked THEN pg_sequence_last_value(id::regclass) END AS last FROM limited
)
SELECT name, "column", last, last_allowed, cycles, may, locked,
       (abs(coalesce(last, start + step * (rows - 1))::float8 - start) + 1) / greatest(abs(last_allowed::float8 - start) + 1, 1) AS used
FROM known ORDER BY used DESC
"""
