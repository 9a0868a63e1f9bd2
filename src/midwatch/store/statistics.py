"""The statistics of SQLite's tables: those of a database with a million tickets.

SQLite knows the sizes of tables from ANALYZE alone. Without, its planner takes an index of a million rows for as good as a partial
one with ten. These statistics are written once, when the tables are made, so that plans are the same at any age
(sqlite.org/fileformat2.html#stat1tab).
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

_ROWS = 1_000_000
_PARTIAL_ROWS = 100
"""Rows of a partial index: what is open, due or queued now."""
_SMALL = frozenset(
    "alembic_version cursors daemons pauses senders spending subjects summed".split()
)
_SMALL_ROWS = 50
_DISTINCT = {
    "subject": 50,
    "invariant": 50,
    "component": 500,
    "severity": 3,
    "state": 4,
    "phase": 8,
    "outcome": 8,
    "target": 10,
    "kind": 2,
    "project_key": 100,
    "session_id": 10_000,
    "subpath": 10,
    "fingerprint": 10_000,
    "principal": 10,
    "ticket_id": _ROWS // 4,
    "parent_id": 1_000,
    "batch_id": _ROWS // 4,
}
"""Distinct values of columns; those of others are all different."""


def write_statistics(connection: Connection) -> None:
    """Write the statistics of all indexes of a SQLite database, in the place of others."""
    connection.execute(text("ANALYZE sqlite_schema"))  # makes the table
    connection.execute(text("DELETE FROM sqlite_stat1"))
    names = "SELECT name FROM sqlite_schema WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%'"
    for table in connection.scalars(text(names)).all():
        if not table.startswith(("sqlite_", "past_words_", "ticket_texts_")):
            _write(connection, table)
    connection.execute(text("ANALYZE sqlite_schema"))  # makes the planner read it


def _write(connection: Connection, table: str) -> None:
    insert = text(
        "INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES (:tbl, :idx, :stat)"
    )
    rows = _SMALL_ROWS if table in _SMALL else _ROWS
    values = [{"tbl": table, "idx": None, "stat": str(rows)}]
    about = text("SELECT name, partial FROM pragma_index_list(:table)")
    columns = text("SELECT name FROM pragma_index_info(:name) ORDER BY seqno")
    for index in connection.execute(about, {"table": table}).all():
        named = connection.scalars(columns, {"name": index.name}).all()
        every = _PARTIAL_ROWS if index.partial else rows
        values.append({"tbl": table, "idx": index.name, "stat": _stat(every, named)})
    connection.execute(insert, values)


def _stat(rows: int, columns: Sequence[str]) -> str:
    """Return the number of rows of an index, and how many have the same value in its first columns."""
    same, stat = rows, [rows]
    for column in columns:
        same = max(same // _DISTINCT.get(column, rows), 1)
        stat.append(same)
    return " ".join(map(str, stat))
