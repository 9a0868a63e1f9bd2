"""SQL statements for PostgreSQL 14 and later. Ages and waits are in seconds.

They run with `search_path = pg_catalog`, so that no user can replace a function or an operator of
the server.
"""

from __future__ import annotations

SETUP = """
SELECT set_config('search_path', 'pg_catalog', false),
       set_config('statement_timeout', %(statement)s, false),
       set_config('lock_timeout', %(lock)s, false),
       set_config('default_transaction_read_only', 'on', false),
       set_config('idle_in_transaction_session_timeout', '5000', false),
       pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') AS all_stats,
       pg_catalog.pg_backend_pid() AS pid
"""

# Midwatch's other sessions, which gather evidence, are recognised by name and role together: by
# the name alone any client could hide.
_OWN_SESSIONS = "(pid = pg_backend_pid() OR (application_name = 'midwatch' AND usename = current_user))"

_SESSION = """
SELECT pid, datname, usename, application_name, coalesce(host(client_addr), 'local') AS client,
       state, wait_event_type, wait_event, backend_type,
       extract(epoch FROM clock_timestamp() - xact_start)::float8 AS xact_age,
       extract(epoch FROM clock_timestamp() - query_start)::float8 AS query_age,
       extract(epoch FROM clock_timestamp() - state_change)::float8 AS state_age,
       left(query, 1000) AS query
FROM pg_stat_activity
"""

ACTIVITY = f"""{_SESSION}
WHERE backend_type = 'client backend' AND state IS DISTINCT FROM 'idle' AND NOT {_OWN_SESSIONS}
ORDER BY xact_start NULLS LAST LIMIT 2000
"""

SESSIONS = f"{_SESSION} WHERE pid = ANY(%(pids)s)"

WAITS = """
SELECT a.pid, a.datname, pg_blocking_pids(a.pid) AS blockers,
       extract(epoch FROM clock_timestamp() - coalesce(l.waitstart, a.state_change))::float8 AS waited
FROM pg_stat_activity a
LEFT JOIN (SELECT pid, min(waitstart) AS waitstart FROM pg_locks WHERE NOT granted GROUP BY pid) l
       ON l.pid = a.pid
WHERE a.wait_event_type = 'Lock'
ORDER BY waited DESC NULLS LAST LIMIT 2000
"""

SLOTS_USED = """
SELECT usename, application_name, coalesce(state, 'unknown') AS state, count(*)::int AS sessions
FROM pg_stat_activity WHERE backend_type = 'client backend'
GROUP BY 1, 2, 3 ORDER BY sessions DESC
"""

SLOTS_LIMIT = """
SELECT current_setting('max_connections')::int AS max_connections,
       current_setting('superuser_reserved_connections')::int
       + coalesce(current_setting('reserved_connections', true)::int, 0) AS reserved
"""

# Limits of single databases and roles, for those that have one.
SLOTS_CAPPED = """
SELECT 'database ' || d.datname AS name, d.datconnlimit AS cap,
       (SELECT count(*) FROM pg_stat_activity a
        WHERE a.datid = d.oid AND a.backend_type = 'client backend')::int AS used
FROM pg_database d WHERE d.datconnlimit > 0
UNION ALL
SELECT 'role ' || r.rolname, r.rolconnlimit,
       (SELECT count(*) FROM pg_stat_activity a
        WHERE a.usesysid = r.oid AND a.backend_type = 'client backend')::int
FROM pg_roles r WHERE r.rolconnlimit > 0
ORDER BY 1 LIMIT 200
"""

DEADLOCKS = """
SELECT datname, deadlocks::float8 AS deadlocks
FROM pg_stat_database WHERE datname IS NOT NULL ORDER BY deadlocks DESC, datname LIMIT 100
"""

ID_AGES = """
SELECT datname, age(datfrozenxid)::float8 AS xid_age, mxid_age(datminmxid)::float8 AS mxid_age
FROM pg_database ORDER BY greatest(age(datfrozenxid), mxid_age(datminmxid)) DESC LIMIT 100
"""

# What keeps vacuum from removing and freezing rows, worst first.
HORIZON = f"""
SELECT kind, name, held::bigint AS held, detail FROM (
  SELECT CASE backend_type WHEN 'walsender' THEN 'standby' ELSE 'session' END AS kind,
         'pid ' || pid AS name,
         concat_ws(', ', 'user ' || usename, 'application ' || nullif(application_name, ''),
                   'database ' || datname, state, left(query, 300)) AS detail,
         greatest(age(backend_xmin), age(backend_xid)) AS held
  FROM pg_stat_activity WHERE NOT {_OWN_SESSIONS}
  UNION ALL
  SELECT 'prepared transaction', gid, concat_ws(', ', 'owner ' || owner, 'database ' || database),
         age(transaction)
  FROM pg_prepared_xacts
  UNION ALL
  SELECT 'replication slot', slot_name, CASE WHEN active THEN 'active' ELSE 'inactive' END,
         greatest(age(xmin), age(catalog_xmin))
  FROM pg_replication_slots
) holders WHERE held > 0 ORDER BY held DESC LIMIT 20
"""

# One row above the limit shows that there are more tables than are checked.
DEAD_TUPLES_LIMIT = 200
DEAD_TUPLES = f"""
SELECT current_database() AS datname, schemaname, relname, n_dead_tup::float8 AS dead,
       n_live_tup::float8 AS live, last_autovacuum::text AS last_autovacuum
FROM pg_stat_user_tables WHERE n_dead_tup > 0 AND n_dead_tup >= %(floor)s
ORDER BY n_dead_tup::float8 / (n_dead_tup + n_live_tup) DESC LIMIT {DEAD_TUPLES_LIMIT + 1}
"""

STANDBYS = """
SELECT application_name, coalesce(host(client_addr), 'local') AS client, state, sync_state,
       extract(epoch FROM replay_lag)::float8 AS replay_lag,
       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn()
                            ELSE pg_current_wal_lsn() END, replay_lsn)::float8 AS behind
FROM pg_stat_replication ORDER BY behind DESC NULLS FIRST LIMIT 100
"""

RECOVERY = """
SELECT pg_is_in_recovery() AS standby,
       pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::float8 AS behind,
       extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8 AS replayed
"""

SLOTS = """
SELECT slot_name, slot_type, coalesce(database, '') AS database, active, wal_status,
       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                            ELSE pg_current_wal_lsn() END, restart_lsn)::float8 AS retained
FROM pg_replication_slots ORDER BY retained DESC NULLS LAST LIMIT 200
"""

DATABASE_SIZES = """
SELECT datname, pg_database_size(oid)::float8 AS size
FROM pg_database WHERE datallowconn ORDER BY size DESC LIMIT 100
"""

# From pg_settings: what a role may not see is no row there, not an error.
LOG_SETTINGS = """
SELECT name, setting FROM pg_settings
WHERE name IN ('log_line_prefix', 'log_destination', 'logging_collector', 'lc_messages',
               'log_min_messages')
"""
LOG_PRIVILEGES = """
SELECT has_function_privilege('pg_current_logfile(text)', 'EXECUTE') AS pg_current_logfile,
       has_function_privilege('pg_ls_logdir()', 'EXECUTE') AS pg_ls_logdir,
       has_function_privilege('pg_read_binary_file(text,bigint,bigint)', 'EXECUTE')
       AS pg_read_binary_file
"""
LOG_PLACE = "SELECT pg_current_logfile(%(format)s) AS path"
_LOG_FILES = "SELECT name, size, extract(epoch FROM modification)::float8 AS changed FROM pg_ls_logdir()"
LOG_FILE = f"{_LOG_FILES} WHERE name = %(name)s"
LOG_FILES = f"""{_LOG_FILES}
WHERE right(name, length(%(ending)s)) = %(ending)s ORDER BY modification DESC LIMIT 200
"""
LOG_PART = "SELECT pg_read_binary_file(%(path)s, %(start)s::bigint, %(length)s::bigint) AS part"

# NULL where the cluster has no data checksums.
CHECKSUM_FAILURES = """
SELECT coalesce(datname, 'shared tables') AS datname, checksum_failures AS failures,
       date_trunc('second', checksum_last_failure)::text AS last_failure
FROM pg_stat_database WHERE checksum_failures > 0
ORDER BY checksum_failures DESC, datname LIMIT 100
"""
DATA_CHECKSUMS = "SELECT current_setting('data_checksums') = 'on' AS enabled"

# What a person would compare first: settings, version, connected clients.
BACKGROUND = """
(SELECT 'setting ' || name AS name, setting || coalesce(' ' || unit, '') AS value
 FROM pg_settings
 WHERE source NOT IN ('default', 'override', 'client', 'session')
   AND name NOT IN ('primary_conninfo', 'application_name')
 ORDER BY name LIMIT 200)
UNION ALL
SELECT 'version', current_setting('server_version')
UNION ALL
(SELECT 'sessions of user ' || coalesce(usename, '?') || ', application '
        || coalesce(nullif(application_name, ''), '(none)') || ', ' || coalesce(state, 'unknown'),
        count(*)::text
 FROM pg_stat_activity
 WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
 GROUP BY usename, application_name, state
 ORDER BY count(*) DESC, 1 LIMIT 50)
"""


# ------------------------------------------------------------------ for evidence only

SERVER = """
SELECT version(), pg_is_in_recovery() AS standby,
       date_trunc('second', pg_postmaster_start_time())::text AS started,
       date_trunc('second', clock_timestamp())::text AS now,
       extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())::float8 AS uptime
"""

CONNECTIONS = """
SELECT count(*) AS sessions, application_name AS application, usename AS user,
       datname AS database, coalesce(state, 'unknown') AS state,
       coalesce(host(client_addr), 'local') AS client,
       round(extract(epoch FROM max(clock_timestamp() - state_change)))::text || 's' AS longest_in_state
FROM pg_stat_activity WHERE backend_type = 'client backend'
GROUP BY 2, 3, 4, 5, 6 ORDER BY 1 DESC LIMIT 40
"""

LOCKS = """
WITH waiting AS (
  SELECT pid, pg_blocking_pids(pid) AS blockers FROM pg_stat_activity WHERE wait_event_type = 'Lock'
), involved AS (
  SELECT pid FROM waiting UNION SELECT unnest(blockers) FROM waiting
)
SELECT l.pid, l.locktype, l.mode, l.granted,
       CASE WHEN l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            THEN coalesce(c.oid::regclass::text, l.relation::text) ELSE l.relation::text END AS relation,
       l.transactionid::text AS transactionid
FROM pg_locks l JOIN involved i USING (pid) LEFT JOIN pg_class c ON c.oid = l.relation
WHERE l.locktype <> 'virtualxid'
ORDER BY l.granted, l.pid, l.locktype LIMIT 60
"""

# For settings that this session has changed for itself, the value without that change.
SETTINGS = """
SELECT name, CASE WHEN name IN ('statement_timeout', 'lock_timeout',
                                'idle_in_transaction_session_timeout')
                  THEN reset_val || ' ms' ELSE current_setting(name) END AS value
FROM pg_settings WHERE name IN (
  'max_connections', 'superuser_reserved_connections', 'reserved_connections',
  'idle_in_transaction_session_timeout', 'idle_session_timeout', 'lock_timeout',
  'statement_timeout', 'transaction_timeout', 'deadlock_timeout', 'log_lock_waits', 'autovacuum',
  'autovacuum_max_workers', 'autovacuum_naptime', 'autovacuum_vacuum_scale_factor',
  'autovacuum_vacuum_cost_limit', 'autovacuum_vacuum_cost_delay', 'autovacuum_freeze_max_age',
  'vacuum_failsafe_age', 'max_wal_size', 'max_slot_wal_keep_size', 'wal_keep_size',
  'max_wal_senders', 'hot_standby_feedback', 'max_prepared_transactions', 'shared_buffers',
  'work_mem', 'restart_after_crash')
ORDER BY name
"""

IDS = """
(SELECT 'database' AS kind, datname::text AS name, age(datfrozenxid) AS xid_age,
        mxid_age(datminmxid) AS multixact_age
 FROM pg_database ORDER BY age(datfrozenxid) DESC LIMIT 20)
UNION ALL
(SELECT 'table', c.oid::regclass::text, age(c.relfrozenxid), mxid_age(c.relminmxid)
 FROM pg_class c WHERE c.relkind IN ('r', 'm', 't') AND c.relfrozenxid <> '0'
 ORDER BY age(c.relfrozenxid) DESC LIMIT 15)
"""

VACUUM = """
(SELECT 'table' AS kind, schemaname || '.' || relname AS name, n_live_tup AS live,
        n_dead_tup AS dead, date_trunc('second', last_vacuum)::text AS last_vacuum,
        date_trunc('second', last_autovacuum)::text AS last_autovacuum, autovacuum_count
 FROM pg_stat_user_tables ORDER BY n_dead_tup DESC LIMIT 20)
UNION ALL
(SELECT 'vacuum running', 'pid ' || pid || ' on relation ' || relid || ', ' || phase,
        heap_blks_scanned, heap_blks_total, NULL, NULL, NULL
 FROM pg_stat_progress_vacuum LIMIT 10)
"""

SIZES = """
(SELECT 'database' AS kind, datname::text AS name, pg_size_pretty(pg_database_size(oid)) AS size
 FROM pg_database WHERE datallowconn ORDER BY pg_database_size(oid) DESC LIMIT 20)
UNION ALL
(SELECT 'table with indexes', n.nspname || '.' || c.relname,
        pg_size_pretty(pg_total_relation_size(c.oid))
 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'm') AND c.relpages > 0
 ORDER BY c.relpages DESC LIMIT 15)
"""

COUNTERS = """
SELECT datname AS database, numbackends AS sessions, xact_commit AS commits,
       xact_rollback AS rollbacks, deadlocks, temp_files, pg_size_pretty(temp_bytes) AS temp_bytes,
       tup_inserted, tup_updated, tup_deleted, date_trunc('second', stats_reset)::text AS since
FROM pg_stat_database WHERE datname IS NOT NULL ORDER BY xact_commit DESC LIMIT 20
"""
