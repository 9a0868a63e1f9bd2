"""SQL statements for MariaDB 10.5 and MySQL 5.7 and later. Ages and waits are in seconds.

They read information_schema and performance_schema only, and open no table of users but where the text says so.
Times are those of the server's own clock and zone: InnoDB writes its times in the zone of the system.
"""

from __future__ import annotations

from midwatch.subjects.mysql.server_version import ServerVersion

OWN_MARK = "/* midwatch */"
"""What statements begin with that Midwatch runs: another session of it is known by this and by its account."""


def setting_up(version: ServerVersion, timeout: float) -> list[str]:
    """Return the statements that a connection begins with; the last one tells who and where it is.

    Args:
        version: The version that the server announced.
        timeout: Seconds that a statement may take.
    """
    variable, units = version.timeout_variable
    limit = f"{timeout:.3f}" if units == 1 else f"{max(1, round(timeout * units))}"
    return [
        "SET NAMES utf8mb4",
        "SET SESSION autocommit = 1, time_zone = 'SYSTEM', sql_mode = '', lock_wait_timeout = 1,"
        " innodb_lock_wait_timeout = 1, wait_timeout = 60, net_write_timeout = 10,"
        f" group_concat_max_len = 4096, {variable} = {limit}",
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ ONLY",
        "SELECT VERSION() AS version, CONNECTION_ID() AS id, CURRENT_USER() AS account,"
        " @@performance_schema AS performance_schema",
    ]


# ------------------------------------------------------------------ settings and counters

VARIABLES = (
    "max_connections max_user_connections read_only super_read_only performance_schema userstat log_error datadir "
    "long_query_time innodb_lock_wait_timeout lock_wait_timeout wait_timeout interactive_timeout innodb_buffer_pool_size "
    "thread_handling thread_pool_size thread_pool_max_threads extra_port innodb_deadlock_detect wsrep_on hostname "
    "server_id log_bin gtid_mode"
).split()
COUNTERS = (
    "Threads_connected Threads_running Connection_errors_max_connections Aborted_connects Aborted_clients Uptime "
    "Innodb_deadlocks Innodb_history_list_length Slow_queries Questions Innodb_buffer_pool_wait_free Innodb_log_waits "
    "Innodb_buffer_pool_reads Innodb_buffer_pool_read_requests wsrep_cluster_status wsrep_ready "
    "wsrep_local_state_comment wsrep_cluster_size Threadpool_threads Threadpool_idle_threads Max_used_connections"
).split()


def _quoted(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


SHOW_VARIABLES = f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({_quoted(VARIABLES)})"
SHOW_STATUS = f"SHOW GLOBAL STATUS WHERE Variable_name IN ({_quoted(COUNTERS)})"

# MySQL counts deadlocks and the history list here, not among the status variables.
METRICS = """
SELECT NAME AS name, COUNT AS value, STATUS AS status FROM information_schema.INNODB_METRICS
WHERE NAME IN ('lock_deadlocks', 'trx_rseg_history_len')
"""


def changed_variables(version: ServerVersion) -> str:
    """Return the statement for the variables that were set by a file, at the start or by a client."""
    if version.mariadb:
        return """
SELECT LOWER(VARIABLE_NAME) AS name, LEFT(GLOBAL_VALUE, 200) AS value FROM information_schema.SYSTEM_VARIABLES
WHERE GLOBAL_VALUE_ORIGIN IN ('CONFIG', 'COMMAND-LINE', 'SQL', 'ENVIRONMENT') AND GLOBAL_VALUE IS NOT NULL
ORDER BY 1 LIMIT 200"""
    return """
SELECT LOWER(i.VARIABLE_NAME) AS name, LEFT(g.VARIABLE_VALUE, 200) AS value
FROM performance_schema.variables_info i JOIN performance_schema.global_variables g USING (VARIABLE_NAME)
WHERE i.VARIABLE_SOURCE <> 'COMPILED' ORDER BY 1 LIMIT 200"""


# ------------------------------------------------------------------ sessions

# The host without its port; an address of IPv6 has colons of its own.
_CLIENT = "IF(p.HOST LIKE '%:%', LEFT(p.HOST, CHAR_LENGTH(p.HOST) - LOCATE(':', REVERSE(p.HOST))), p.HOST)"


def sessions(version: ServerVersion, account: str) -> str:
    """Return the statement for sessions that do something or hold a transaction, the longest first."""
    user = account.rpartition("@")[0].replace("\\", "\\\\").replace("'", "''")
    return f"""
SELECT {OWN_MARK} p.ID AS id, p.USER AS user, {_CLIENT} AS client, p.DB AS db, p.COMMAND AS command,
       {version.session_seconds} AS seconds, p.STATE AS state, LEFT(p.INFO, 1000) AS query
FROM {version.processlist} p
WHERE p.ID <> CONNECTION_ID() AND p.COMMAND NOT IN ('Daemon', 'Binlog Dump', 'Binlog Dump GTID')
  AND (p.COMMAND <> 'Sleep' OR p.ID IN (SELECT trx_mysql_thread_id FROM information_schema.INNODB_TRX))
  AND NOT (p.USER = '{user}' AND p.INFO LIKE '%{OWN_MARK}%' AND p.INFO IS NOT NULL)
ORDER BY seconds DESC LIMIT 2000"""


def session_counts(version: ServerVersion) -> str:
    return f"""
SELECT {OWN_MARK} p.USER AS user, {_CLIENT} AS client, p.COMMAND AS command, COUNT(*) AS sessions,
       MAX(p.TIME) AS longest, MIN(p.TIME) AS shortest
FROM {version.processlist} p
WHERE p.ID <> CONNECTION_ID() AND p.COMMAND <> 'Daemon' AND p.USER NOT IN ('system user', 'event_scheduler')
GROUP BY 1, 2, 3 ORDER BY 4 DESC LIMIT 500"""


TRANSACTIONS = f"""
SELECT {OWN_MARK} trx_id AS trx, trx_mysql_thread_id AS id, trx_state AS trx_state,
       DATE_FORMAT(trx_started, '%Y-%m-%dT%H:%i:%s') AS started,
       TIMESTAMPDIFF(SECOND, trx_started, NOW()) AS age,
       TIMESTAMPDIFF(SECOND, trx_wait_started, NOW()) AS waited,
       trx_rows_locked AS rows_locked, trx_rows_modified AS rows_modified, trx_tables_locked AS tables_locked,
       trx_isolation_level AS isolation, LEFT(trx_query, 1000) AS query
FROM information_schema.INNODB_TRX ORDER BY trx_started, trx_id LIMIT 2000
"""

# Limits of single accounts. One without a limit of its own has that of max_user_connections.
ACCOUNTS = "SELECT User AS user, Host AS host, max_user_connections AS cap FROM mysql.user LIMIT 1000"


def lock_waits(version: ServerVersion) -> str:
    """Return the statement for row lock waits: who waits for whom, at which table and index."""
    waited = "TIMESTAMPDIFF(SECOND, r.trx_wait_started, NOW()) AS waited"
    if version.lock_waits_in_schema:
        return f"""
SELECT {OWN_MARK} r.trx_mysql_thread_id AS id, b.trx_mysql_thread_id AS blocker, {waited},
       CONCAT(l.OBJECT_SCHEMA, '.', l.OBJECT_NAME) AS "table", l.INDEX_NAME AS "index", l.LOCK_MODE AS mode
FROM performance_schema.data_lock_waits w
JOIN information_schema.INNODB_TRX r ON r.trx_id = w.REQUESTING_ENGINE_TRANSACTION_ID
JOIN information_schema.INNODB_TRX b ON b.trx_id = w.BLOCKING_ENGINE_TRANSACTION_ID
LEFT JOIN performance_schema.data_locks l ON l.ENGINE_LOCK_ID = w.REQUESTING_ENGINE_LOCK_ID
LIMIT 2000""".replace('"', "`")
    return f"""
SELECT {OWN_MARK} r.trx_mysql_thread_id AS id, b.trx_mysql_thread_id AS blocker, {waited},
       REPLACE(l.lock_table, '`', '') AS "table", l.lock_index AS "index", l.lock_mode AS mode
FROM information_schema.INNODB_LOCK_WAITS w
JOIN information_schema.INNODB_TRX r ON r.trx_id = w.requesting_trx_id
JOIN information_schema.INNODB_TRX b ON b.trx_id = w.blocking_trx_id
LEFT JOIN information_schema.INNODB_LOCKS l ON l.lock_id = w.requested_lock_id
LIMIT 2000""".replace('"table"', "`table`").replace('"index"', "`index`")


# Who has and who waits for the metadata of a table, where performance_schema watches it.
METADATA_LOCKS = f"""
SELECT {OWN_MARK} t.PROCESSLIST_ID AS id, m.OBJECT_TYPE AS kind, m.OBJECT_SCHEMA AS db, m.OBJECT_NAME AS name,
       m.LOCK_TYPE AS mode, m.LOCK_STATUS = 'GRANTED' AS granted
FROM performance_schema.metadata_locks m JOIN performance_schema.threads t ON t.THREAD_ID = m.OWNER_THREAD_ID
WHERE t.PROCESSLIST_ID IS NOT NULL AND t.PROCESSLIST_ID <> CONNECTION_ID()
  AND EXISTS (SELECT 1 FROM performance_schema.metadata_locks w WHERE w.LOCK_STATUS = 'PENDING'
              AND w.OBJECT_TYPE = m.OBJECT_TYPE AND w.OBJECT_SCHEMA <=> m.OBJECT_SCHEMA
              AND w.OBJECT_NAME <=> m.OBJECT_NAME)
LIMIT 4000
"""

# The plugin metadata_lock_info of MariaDB; it shows what is granted only.
METADATA_LOCK_INFO = f"""
SELECT {OWN_MARK} THREAD_ID AS id, LOCK_TYPE AS kind, TABLE_SCHEMA AS db, TABLE_NAME AS name,
       REPLACE(LOCK_MODE, 'MDL_', '') AS mode, 1 AS granted
FROM information_schema.METADATA_LOCK_INFO WHERE LOCK_TYPE = 'Table metadata lock' LIMIT 4000
"""

# What a session ran last, also one that is idle: MariaDB's processlist does not tell it.
LAST_STATEMENTS = f"""
SELECT {OWN_MARK} t.PROCESSLIST_ID AS id, LEFT(s.SQL_TEXT, 1000) AS query
FROM performance_schema.events_statements_current s JOIN performance_schema.threads t ON t.THREAD_ID = s.THREAD_ID
WHERE t.PROCESSLIST_ID IN ({{ids}}) AND s.SQL_TEXT IS NOT NULL
"""


def last_statements(ids: list[int]) -> str:
    return LAST_STATEMENTS.format(ids=", ".join(str(int(one)) for one in ids[:200]))


# ------------------------------------------------------------------ tables

# Whether all tables are visible: with a privilege on *.* that one is too.
ALL_TABLES = f"""
SELECT {OWN_MARK} COUNT(*) AS visible FROM information_schema.COLUMNS
WHERE TABLE_SCHEMA = 'mysql' AND TABLE_NAME = 'plugin'
"""

# The definitions of columns are read; no table is opened. The privilege REFERENCES shows them.
AUTO_INCREMENT_COLUMNS = f"""
SELECT {OWN_MARK} TABLE_SCHEMA AS db, TABLE_NAME AS name, COLUMN_NAME AS "column", COLUMN_TYPE AS type
FROM information_schema.COLUMNS WHERE EXTRA LIKE '%auto_increment%' LIMIT 20000
""".replace('"', "`")


def next_numbers(version: ServerVersion) -> str:
    return f"SELECT {OWN_MARK} NAME AS name, AUTOINC AS next FROM {version.table_statistics} WHERE AUTOINC > 0 LIMIT 20000"


# A table that cannot be opened has no engine, and its comment is the error.
CRASHED_TABLES = f"""
SELECT {OWN_MARK} TABLE_SCHEMA AS db, TABLE_NAME AS name, LEFT(TABLE_COMMENT, 200) AS problem
FROM information_schema.TABLES
WHERE TABLE_TYPE = 'BASE TABLE' AND CREATE_TIME IS NULL AND ENGINE IS NULL LIMIT 100
"""
