"""What a database plans for the statements of a store: none reads a whole table that grows."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import psycopg
from sqlalchemy import event
from sqlalchemy.engine import Engine

from midwatch.store import queue_sqlite
from midwatch.store.engine import Transaction

GROWING = frozenset(
    "tickets batches diagnoses diagnosis_tickets past_incidents past_words audit sessions transcript_entries silenced"
    " alerts deliveries delivery_threads investigations idempotency_keys tokens changes action_runs hourly_tickets hourly_calls".split()
)
WHOLE = {
    "SELECT tokens.id": "who lists tokens wants all of them; what ended is removed after 90 days",
}
"""Statements that may read a whole table, by their beginning, and why."""
Statements = dict[str, Any]


class Noted:
    """The bare driver of SQLite, whose statements are noted."""

    def __init__(
        self, driver: sqlite3.Connection, note: Callable[[str, Any], object]
    ) -> None:
        self._driver, self._note = driver, note

    def execute(self, statement: str, values: Any) -> sqlite3.Cursor:
        self._note(statement, values)
        return self._driver.execute(statement, values)

    def executemany(self, statement: str, values: Any) -> sqlite3.Cursor:
        self._note(statement, values)
        return self._driver.executemany(statement, values)


@contextmanager
def recorded() -> Iterator[Statements]:
    """Collect the statements of all engines, each with the parameters of its first execution."""
    found: Statements = {}

    def note(_: Any, cursor: Any, statement: str, values: Any, *others: Any) -> None:
        if re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b", statement):
            found.setdefault(
                statement, values[0] if isinstance(values, list) else values
            )

    driver = queue_sqlite.driver

    def noted(tx: Transaction) -> Noted:
        return Noted(driver(tx), lambda *ran: note(None, None, *ran))

    event.listen(Engine, "before_cursor_execute", note)
    queue_sqlite.driver = noted
    try:
        yield found
    finally:
        queue_sqlite.driver = driver
        event.remove(Engine, "before_cursor_execute", note)


def scans(database: str, statements: Statements) -> list[str]:
    """List what reads a whole table that grows.

    Neither database needs rows for that: SQLite plans by the schema alone, where nobody ran ANALYZE, and PostgreSQL, if it
    may not, still reads a whole table where no index serves.

    Args:
        database: URL of a migrated database.
        statements: What `recorded` collected.
    """
    asked = {
        statement: values
        for statement, values in statements.items()
        if not statement.startswith(tuple(WHOLE))
        and not re.search(r"sqlite_|pg_catalog|alembic_version", statement)
    }
    if database.startswith("sqlite"):
        return list(_on_sqlite(database.removeprefix("sqlite:///"), asked))
    return list(_on_postgres(database, asked))


def _on_sqlite(file: str, statements: Statements) -> Iterator[str]:
    with closing(sqlite3.connect(file)) as connection:
        partial = {
            name
            for (name,) in connection.execute(
                "SELECT name FROM sqlite_schema WHERE type = 'index' AND sql LIKE '% WHERE %'"
            )
        }
        for statement, values in statements.items():
            plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)
            steps = [row[3] for row in plan]
            for step in steps:
                if _scans(step, partial, "\n".join(steps), statement):
                    yield f"{step}: {statement}"


def _scans(step: str, partial: set[str], plan: str, statement: str) -> bool:
    found = re.match(r"SCAN (\w+)(?: .*INDEX (\w+))?", step)
    if found is None:
        return False
    name = re.search(rf"\b(\w+) AS {found[1]}\b", statement)
    table = name[1] if name else found[1]
    if table not in GROWING or found[2] in partial or "VIRTUAL TABLE" in step:
        return False
    # In the order of an index, up to the limit.
    return "LIMIT" not in statement or "FOR ORDER BY" in plan


def _on_postgres(database: str, statements: Statements) -> Iterator[str]:
    # What is left is what no index serves, whatever the sizes and values.
    only_indexes = "-c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off -c enable_material=off"
    with psycopg.connect(database, options=only_indexes) as connection:
        partial = {
            row[0]
            for row in connection.execute(
                "SELECT indexname FROM pg_indexes WHERE indexdef LIKE '% WHERE %'"
            )
        }
        for statement, values in statements.items():
            asked = f"EXPLAIN (FORMAT JSON) {statement}"
            try:
                rows = connection.execute(asked.encode(), values).fetchall()
            except psycopg.DataError:  # what the suite wants to be refused
                connection.rollback()
                continue
            for one in _read_whole(rows[0][0][0]["Plan"], partial, False):
                yield f"{one}: {statement}"


def _read_whole(
    node: Mapping[str, Any], partial: set[str], limited: bool
) -> Iterator[str]:
    """Yield the nodes of a plan that read a whole table or index, and are not ended by a limit."""
    kind, table = node["Node Type"], node.get("Relation Name", "")
    # An order by something that no index has reads all before the limit.
    limited = kind == "Limit" or (limited and kind not in ("Sort", "Aggregate", "Hash"))
    whole = kind.startswith("Index") and "Index Cond" not in node
    whole = whole and node["Index Name"] not in partial
    if table in GROWING and (kind == "Seq Scan" or whole) and not limited:
        yield f"{kind} of {table}"
    for child in node.get("Plans", ()):
        yield from _read_whole(child, partial, limited)
