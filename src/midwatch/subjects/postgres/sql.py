"""SQL statements for PostgreSQL 14 and later. Ages and waits are in seconds.

They run with `search_path = pg_catalog`, so that no user can replace a function or an operator of
the server. Text arrives as it is stored: the server's conversion from the encoding of our database
fails on what sessions of other databases run.
"""

from __future__ import annotations

SETUP = """
SELECT set_config('search_path', 'pg_catalog', false),
       set_config('statement_timeout', %(statement)s, false),
       set_config('lock_timeout', %(lock)s, false),
       set_config('default_transaction_read_only', 'on', false),
       set_config('idle_in_transaction_session_timeout', '5000', false),
       set_config('client_encoding', CASE getdatabaseencoding() WHEN 'UTF8' THEN 'UTF8' ELSE 'SQL_ASCII' END, false),
       pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') AS all_stats,
       pg_catalog.pg_backend_pid() AS pid
"""

# Midwatch's other sessions, which gather evidence, are recognised by name and role together: by
# the name alone any client could hide.
OWN_SESSIONS = "(pid = pg_backend_pid() OR (application_name = 'midwatch' AND usename = session_user))"


def moment(column: str) -> str:
    """Return a time in text that every session reads as the same one, whatever its settings."""
    return f"""to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""


# A statement as bytes: it is in the encoding of its own database, which functions on text refuse.
QUERY = "substr(textsend(query), 1, 1000) AS query"

_SESSION = f"""
SELECT pid, datname, usename, application_name, coalesce(host(client_addr), 'local') AS client,
       state, wait_event_type, wait_event, backend_type,
       {moment("xact_start")} AS xact_start, {moment("query_start")} AS query_start,
       {moment("backend_start")} AS backend_start,
       extract(epoch FROM clock_timestamp() - xact_start)::float8 AS xact_age,
       extract(epoch FROM clock_timestamp() - query_start)::float8 AS query_age,
       extract(epoch FROM clock_timestamp() - state_change)::float8 AS state_age,
       {QUERY}
FROM pg_stat_activity
"""

ACTIVITY = f"""{_SESSION}
WHERE backend_type = 'client backend' AND state IS DISTINCT FROM 'idle' AND NOT {OWN_SESSIONS}
ORDER BY xact_start NULLS LAST LIMIT 2000
"""

SESSIONS = f"{_SESSION} WHERE pid = ANY(%(pids)s)"

# A wait without a start has only just begun.
WAITS = f"""
SELECT a.pid, {OWN_SESSIONS.replace("pid", "a.pid", 1)} AS own, coalesce(a.datname, 'server') AS datname, a.usename, a.application_name,
       pg_blocking_pids(a.pid) AS blockers, l.locktype AS lock_type,
       n.nspname || '.' || c.relname AS "table",
       extract(epoch FROM clock_timestamp() - l.waitstart)::float8 AS waited
FROM pg_stat_activity a
LEFT JOIN (SELECT DISTINCT ON (pid) * FROM pg_locks WHERE NOT granted ORDER BY pid, waitstart) l
       ON l.pid = a.pid
LEFT JOIN pg_class c ON c.oid = l.relation
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE a.wait_event_type = 'Lock'
ORDER BY waited DESC NULLS LAST LIMIT 2000
"""

# Settings that keep statistics from being collected: of the server (without a database and a role),
# and of single databases and roles. What our own session changes for itself does not count.
NOT_TRACKED = """
SELECT NULL AS database, NULL AS role FROM pg_settings
WHERE name = %(setting)s::text AND setting = 'off'
  AND source NOT IN ('database', 'user', 'database user', 'client', 'session')
UNION ALL
SELECT coalesce(d.datname, ''), coalesce(r.rolname, '')
FROM pg_db_role_setting s CROSS JOIN LATERAL unnest(s.setconfig) AS entry
LEFT JOIN pg_database d ON d.oid = s.setdatabase LEFT JOIN pg_roles r ON r.oid = s.setrole
WHERE CASE WHEN starts_with(entry, %(setting)s::text || '=')
           THEN lower(split_part(entry, '=', 2)) IN
                ('off', 'of', 'false', 'fals', 'fal', 'fa', 'f', 'no', 'n', '0')
           ELSE false END
  AND r.rolname IS DISTINCT FROM session_user
LIMIT 100
"""

SLOTS_USED = f"""
SELECT usename, application_name, coalesce(state, 'unknown') AS state, count(*)::int AS sessions
FROM pg_stat_activity WHERE backend_type = 'client backend' AND NOT {OWN_SESSIONS}
GROUP BY 1, 2, 3 ORDER BY sessions DESC
"""

SLOTS_LIMIT = """
SELECT current_setting('max_connections')::int AS max_connections,
       current_setting('superuser_reserved_connections')::int
       + coalesce(current_setting('reserved_connections', true)::int, 0) AS reserved
"""

# Limits of single databases and roles, for those that have one and are bound by it, the fullest
# first. That of our own role is our own affair.
SLOTS_CAPPED = f"""
SELECT * FROM (
  SELECT 'database' AS kind, d.datname AS name, d.datconnlimit AS cap,
         (SELECT count(*) FROM pg_stat_activity a
          WHERE a.datid = d.oid AND a.backend_type = 'client backend' AND NOT {OWN_SESSIONS})::int AS used
  FROM pg_database d WHERE d.datconnlimit > 0
  UNION ALL
  SELECT 'role', r.rolname, r.rolconnlimit,
         (SELECT count(*) FROM pg_stat_activity a
          WHERE a.usesysid = r.oid AND a.backend_type = 'client backend')::int
  FROM pg_roles r
  WHERE r.rolconnlimit > 0 AND r.rolcanlogin AND NOT r.rolsuper AND r.rolname <> session_user
) limits ORDER BY used::float8 / cap DESC, name LIMIT 200
"""

DATABASES = "SELECT datname FROM pg_database ORDER BY datname LIMIT 1000"

DATABASE = "SELECT current_database() AS name, pg_is_in_recovery() AS standby"

DEADLOCKS = """
SELECT datname, deadlocks::float8 AS deadlocks,
       coalesce(extract(epoch FROM stats_reset), 0)::float8 AS reset
FROM pg_stat_database WHERE datname IS NOT NULL ORDER BY deadlocks DESC, datname LIMIT 1000
"""

ID_AGES = """
SELECT datname, age(datfrozenxid)::float8 AS xid_age, mxid_age(datminmxid)::float8 AS mxid_age
FROM pg_database ORDER BY greatest(age(datfrozenxid), mxid_age(datminmxid)) DESC LIMIT 100
"""

# What keeps vacuum from removing and freezing rows, worst first. Whose own transaction id is the oldest (`owner`)
# comes before those that merely see that transaction run. What clients choose comes last. A slot without xmin
# holds back the system catalogs only, a running vacuum nothing.
HORIZON = f"""
SELECT kind, held::bigint AS held, owner, since, seconds, pid, state, scope, database, name, detail, query FROM (
  SELECT CASE backend_type WHEN 'walsender' THEN 'standby' ELSE 'session' END AS kind,
         'pid ' || pid AS name, pid, state, datname AS database, NULL AS scope,
         coalesce(age(backend_xid) >= greatest(age(backend_xmin), 0), false) AS owner,
         {moment("xact_start")} AS since, extract(epoch FROM clock_timestamp() - xact_start)::int AS seconds,
         concat_ws(', ', nullif(backend_type, 'client backend'), 'user ' || usename,
                   'application ' || nullif(application_name, '')) AS detail,
         greatest(age(backend_xmin), age(backend_xid)) AS held, {QUERY}
  FROM pg_stat_activity
  WHERE NOT {OWN_SESSIONS} AND pid NOT IN (SELECT pid FROM pg_stat_progress_vacuum)
  UNION ALL
  SELECT 'prepared transaction', gid, NULL, NULL, database, NULL, true, {moment("prepared")},
         extract(epoch FROM clock_timestamp() - prepared)::int, 'owner ' || owner, age(transaction), NULL
  FROM pg_prepared_xacts
  UNION ALL
  SELECT 'replication slot', slot_name, NULL, CASE WHEN active THEN 'active' ELSE 'inactive' END, NULL,
         CASE WHEN xmin IS NULL THEN 'catalogs' END, false, NULL, NULL, slot_type,
         greatest(age(xmin), age(catalog_xmin)), NULL
  FROM pg_replication_slots
) holders WHERE held > 0 ORDER BY held DESC, owner DESC, since LIMIT 15
"""

# After a reset of the statistics (also by a crash) live rows are counted from 0, so the planner's
# estimate of all rows counts where it is higher; and dead rows are known only from the next vacuum or
# analyze on: until then `known` is false, unless all rows were inserted since. Tables that had many dead
# rows `before` come first, then the worst.
DEAD_TUPLES_LIMIT = 200
DEAD_TUPLES = f"""
SELECT * FROM (
  SELECT s.relid::bigint AS id, s.relid::bigint = ANY(%(before)s::bigint[]) AS before, current_database() AS datname, s.schemaname, s.relname,
         s.n_dead_tup::float8 AS dead,
         greatest(s.n_dead_tup + s.n_live_tup, c.reltuples::float8, 1)::float8 AS total,
         s.last_autovacuum::text AS last_autovacuum,
         coalesce(s.last_vacuum, s.last_autovacuum, s.last_analyze, s.last_autoanalyze) IS NOT NULL
         OR (CASE WHEN c.reltuples < 0 THEN s.n_tup_ins > 0 ELSE s.n_tup_ins >= c.reltuples END) AS known
  FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid
) tables
WHERE (dead > 0 AND dead >= %(floor)s) OR (NOT known AND (total >= %(floor)s OR before))
ORDER BY NOT known AND before DESC, known DESC, dead / total DESC LIMIT {5 * DEAD_TUPLES_LIMIT}
"""

# A sender without a position of its own (a base backup) is no standby. One that reports no replay
# (pg_receivewal) counts by what it has written.
STANDBYS = """
SELECT r.application_name, coalesce(host(r.client_addr), 'local') AS client, r.state, r.sync_state,
       pg_wal_lsn_diff(r.flush_lsn, r.replay_lsn)::bigint AS unreplayed,
       pg_wal_lsn_diff(r.sent_lsn, r.flush_lsn)::bigint AS unflushed,
       pg_wal_lsn_diff(CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_lsn() END, r.sent_lsn)::bigint AS unsent,
       coalesce(s.slot_name, '') AS slot, s.slot_type = 'logical' AS logical,
       extract(epoch FROM r.reply_time)::float8 AS replied,
       coalesce(s.temporary, false) AS temporary, r.replay_lsn IS NOT NULL AS replays,
       coalesce(r.replay_lsn, r.write_lsn, r.sent_lsn)::text AS lsn,
       coalesce(r.flush_lsn, r.write_lsn, r.sent_lsn)::text AS flushed,
       extract(epoch FROM coalesce(r.replay_lag, r.write_lag))::float8 AS replay_lag,
       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery()
                            THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
                            ELSE pg_current_wal_lsn() END,
                       coalesce(r.replay_lsn, r.write_lsn, r.sent_lsn))::float8 AS behind
FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
WHERE r.state IS DISTINCT FROM 'backup'
ORDER BY behind DESC NULLS FIRST LIMIT 1000
"""

# The part of this server in replication. NULL where something is unknown or does not apply.
RECOVERY = """
SELECT pg_is_in_recovery() AS standby,
       CASE WHEN NOT pg_is_in_recovery() THEN left(pg_walfile_name(pg_current_wal_lsn()), 8) END AS timeline,
       (CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
             ELSE pg_current_wal_lsn() END)::text AS lsn,
       pg_last_wal_replay_lsn()::text AS replay_lsn,
       pg_wal_lsn_diff(greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()),
                       pg_last_wal_replay_lsn())::float8 AS behind,
       extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8 AS replayed,
       CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() END AS paused,
       s.has_primary, s.delay, s.patience,
       r.pid AS receiver_pid, r.status AS receiver, coalesce(r.sender_host, '') AS sender,
       extract(epoch FROM clock_timestamp() - r.last_msg_receipt_time)::float8 AS message_age
FROM (SELECT max(setting) FILTER (WHERE name = 'primary_conninfo') <> '' AS has_primary,
             max(setting) FILTER (WHERE name = 'recovery_min_apply_delay')::float8 / 1000 AS delay,
             max(setting) FILTER (WHERE name = 'wal_receiver_timeout')::float8 / 1000 AS patience
      FROM pg_settings) s
LEFT JOIN pg_stat_wal_receiver r ON true
"""

# Whether the write-ahead log from a position on is still on this server. The name of a position at the start of
# a segment is that of the one before, which is not needed.
WAL_KEPT = """
SELECT substr(pg_walfile_name(%(lsn)s::pg_lsn + 1), 9) >= min(substr(name, 9)) AS kept
FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'
"""


def slots(server_version: int) -> str:
    """Return the statement for replication slots. A slot synchronised to a standby (17) has no reader there."""
    synced = "synced AND pg_is_in_recovery()" if server_version >= 170000 else "false"
    since = moment("inactive_since") if server_version >= 170000 else "NULL"
    return f"""
SELECT slot_name, {since} AS inactive_since, slot_type, coalesce(database, '') AS database, active, wal_status,
       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                            ELSE pg_current_wal_lsn() END, restart_lsn)::float8 AS retained
FROM pg_replication_slots WHERE NOT temporary AND NOT ({synced})
ORDER BY wal_status = 'lost' DESC NULLS LAST, retained DESC NULLS LAST LIMIT 200
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

# One row for each table of the users, in the database that is connected to: columns, indexes, and a digest of both. With
# more tables there is none, as this runs with every observation.
SCHEMA = """
WITH tables AS MATERIALIZED (
  SELECT c.oid, n.nspname, c.relname
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
    AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  LIMIT 201
), counted AS (SELECT count(*) AS tables FROM tables)
SELECT 'schema ' || current_database() || ', table ' || t.nspname || '.' || t.relname AS name,
  (SELECT count(*) || ' columns (' || left(md5(string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
        || ' ' || a.attnotnull || ' ' || a.atthasdef, ',' ORDER BY a.attnum)), 8) || ')'
   FROM pg_attribute a WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped)
  || ', ' ||
  (SELECT count(*) || ' indexes (' || left(md5(coalesce(string_agg(i.relname || ' ' || x.indkey::text || ' '
        || x.indisunique || ' ' || x.indisvalid, ',' ORDER BY i.relname), '')), 8) || ')'
   FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid WHERE x.indrelid = t.oid) AS value
FROM tables t, counted WHERE counted.tables <= 200
ORDER BY 1
"""
