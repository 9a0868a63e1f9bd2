"""The statements that only evidence needs, for PostgreSQL 14 and later."""

from __future__ import annotations

from .queries import ACTIVITY, HORIZON, SLOTS, STANDBYS

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

# Of what our own session has set for itself, the value it would have without that.
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

__all__ = [
    "ACTIVITY",
    "CONNECTIONS",
    "COUNTERS",
    "HORIZON",
    "IDS",
    "LOCKS",
    "SERVER",
    "SETTINGS",
    "SIZES",
    "SLOTS",
    "STANDBYS",
    "VACUUM",
]
