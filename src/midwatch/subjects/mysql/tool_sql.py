"""SQL statements of the tools for MariaDB and MySQL. `%s` are names."""

from __future__ import annotations

from midwatch.subjects.mysql.sql import OWN_MARK

# Engines that keep the rows on this server: FEDERATED, CONNECT and SPIDER lead elsewhere.
_ENGINES = "'InnoDB', 'MyISAM', 'Aria', 'MEMORY', 'ARCHIVE', 'ROCKSDB', 'TokuDB', 'Columnstore', 'ndbcluster'"

RELATIONS = f"""
SELECT {OWN_MARK} TABLE_SCHEMA AS db, TABLE_NAME AS name,
       TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED') AND ENGINE IN ({_ENGINES}) AS admitted
FROM information_schema.TABLES WHERE TABLE_SCHEMA IN %s AND TABLE_NAME IN %s
"""

TABLE_PARTS = {
    "table": f"""
SELECT {OWN_MARK} TABLE_TYPE AS type, ENGINE AS engine, ROW_FORMAT AS format, TABLE_ROWS AS estimated_rows,
       DATA_LENGTH AS data_bytes, INDEX_LENGTH AS index_bytes, DATA_FREE AS free_bytes, AUTO_INCREMENT AS next_number,
       UPDATE_TIME AS updated
FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s""",
    "columns": f"""
SELECT {OWN_MARK} COLUMN_NAME AS name, COLUMN_TYPE AS type, IS_NULLABLE AS nullable, COLUMN_KEY AS `key`, EXTRA AS extra
FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s ORDER BY ORDINAL_POSITION LIMIT 100""",
    "indexes": f"""
SELECT {OWN_MARK} INDEX_NAME AS name, NON_UNIQUE AS repeats, INDEX_TYPE AS type,
       GROUP_CONCAT(COLUMN_NAME ORDER BY SEQ_IN_INDEX SEPARATOR ', ') AS columns, MAX(CARDINALITY) AS cardinality
FROM information_schema.STATISTICS WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s GROUP BY 1, 2, 3 LIMIT 60""",
}
