"""SQL statements for evidence alone, under the same rules as those of `midwatch.subjects.mysql.sql`."""

from __future__ import annotations

from midwatch.subjects.mysql.server_version import ServerVersion
from midwatch.subjects.mysql.sql import OWN_MARK

_RELEVANT = (
    "max_connections max_user_connections wait_timeout interactive_timeout idle_transaction_timeout "
    "idle_write_transaction_timeout innodb_lock_wait_timeout lock_wait_timeout innodb_deadlock_detect "
    "max_statement_time max_execution_time innodb_rollback_on_timeout innodb_print_all_deadlocks "
    "innodb_buffer_pool_size innodb_log_file_size innodb_redo_log_capacity innodb_purge_threads read_only "
    "super_read_only slow_query_log long_query_time thread_handling sync_binlog innodb_flush_log_at_trx_commit "
    "binlog_format gtid_mode gtid_strict_mode replica_skip_errors slave_skip_errors"
).split()
RELEVANT = "SHOW GLOBAL VARIABLES WHERE Variable_name IN ({})".format(
    ", ".join(f"'{name}'" for name in _RELEVANT)
)

_RATES = (
    "Questions Com_select Com_insert Com_update Com_delete Com_commit Com_rollback Slow_queries Threads_running "
    "Innodb_rows_read Innodb_rows_inserted Innodb_rows_updated Innodb_rows_deleted Innodb_row_lock_waits "
    "Innodb_row_lock_time Innodb_deadlocks Innodb_buffer_pool_reads Innodb_buffer_pool_read_requests "
    "Innodb_buffer_pool_wait_free Innodb_log_waits Innodb_history_list_length Created_tmp_disk_tables "
    "Handler_read_rnd_next Select_full_join Sort_merge_passes Binlog_cache_disk_use wsrep_flow_control_paused_ns"
).split()
RATES = "SHOW GLOBAL STATUS WHERE Variable_name IN ({})".format(
    ", ".join(f"'{name}'" for name in _RATES)
)


def sizes(version: ServerVersion) -> str:
    """Return the statement for the largest tablespaces; it opens no table."""
    return f"""
SELECT {OWN_MARK} NAME AS name, FILE_SIZE AS bytes FROM {version.tablespaces}
ORDER BY FILE_SIZE DESC LIMIT 12"""


# `%s` are the names of tables.
TABLES = f"""
SELECT {OWN_MARK} TABLE_SCHEMA AS db, TABLE_NAME AS name, COUNT(*) AS "columns",
       GROUP_CONCAT(COLUMN_NAME ORDER BY ORDINAL_POSITION SEPARATOR ' ') AS names
FROM information_schema.COLUMNS
WHERE TABLE_NAME IN %s AND TABLE_SCHEMA NOT IN ('mysql', 'information_schema', 'performance_schema', 'sys')
GROUP BY 1, 2 ORDER BY 1, 2 LIMIT 8
""".replace('"', "`")

INDEXES = f"""
SELECT {OWN_MARK} TABLE_SCHEMA AS db, TABLE_NAME AS name, INDEX_NAME AS "index", NON_UNIQUE AS repeats,
       GROUP_CONCAT(COLUMN_NAME ORDER BY SEQ_IN_INDEX SEPARATOR ' ') AS columns, MAX(CARDINALITY) AS cardinality
FROM information_schema.STATISTICS
WHERE TABLE_NAME IN %s AND TABLE_SCHEMA NOT IN ('mysql', 'information_schema', 'performance_schema', 'sys')
GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3 LIMIT 40
""".replace('"', "`")


def table_rows(version: ServerVersion) -> str:
    """Return the statement for InnoDB's own estimate of rows; `%s` are names such as `shop/orders`."""
    return f"""
SELECT {OWN_MARK} NAME AS name, NUM_ROWS AS estimate FROM {version.table_statistics} WHERE NAME IN %s LIMIT 20"""
