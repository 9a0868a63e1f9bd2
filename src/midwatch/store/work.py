"""One transaction as the statements see it: a connection and the moment it happens at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from sqlalchemy import Connection, CursorResult, Executable, Insert, Row, Table
from sqlalchemy.dialects import sqlite

from midwatch.model import Json
from midwatch.store.schema import audit

DatabaseClock = Callable[[Connection], datetime]
CLOCK_SLACK = timedelta(seconds=5)
"""What was set further in the future than this is from before the clock went back, and void."""


@dataclass(eq=False)
class Work:
    """Statements of one transaction; `now` is asked of the database at most once."""

    connection: Connection
    clock: DatabaseClock

    @cached_property
    def now(self) -> datetime:
        return self.clock(self.connection)

    def execute(
        self, statement: Executable, values: Json | Sequence[Json] | None = None
    ) -> CursorResult[Any]:
        """Run a statement; `values` are its parameters, or one row of them each."""
        return self.connection.execute(statement, values)

    def one(self, statement: Executable, values: Json | None = None) -> Row[Any] | None:
        return self.connection.execute(statement, values).first()

    def all(
        self, statement: Executable, values: Json | None = None
    ) -> Sequence[Row[Any]]:
        return self.connection.execute(statement, values).all()

    def insert_or_update(
        self, table: Table, row: Json, update: Json | None = None
    ) -> None:
        """Insert `row`; where its primary key exists, set `update`, or leave it alone if None."""
        insert: Any = self._insert(table).values(row)
        key = list(table.primary_key.columns)
        statement: Insert = (
            insert.on_conflict_do_nothing(index_elements=key)
            if update is None
            else insert.on_conflict_do_update(index_elements=key, set_=update)
        )
        self.execute(statement)

    def insert_new(self, table: Table, rows: Sequence[Json]) -> None:
        """Insert rows; one that a unique index has already is left out."""
        self.execute(self._insert(table).on_conflict_do_nothing(), rows)

    def _insert(self, table: Table) -> Any:
        """An insert that knows ON CONFLICT."""
        if self.connection.dialect.name == "postgresql":
            from sqlalchemy.dialects import postgresql  # slow to import

            return postgresql.insert(table)
        return sqlite.insert(table)

    def note(self, rows: Sequence[Json]) -> None:
        """Append audit rows; their time is now."""
        if rows:
            self.execute(audit.insert(), [{"at": self.now, **row} for row in rows])


def audit_row(
    ticket_id: int,
    actor: str,
    action: str,
    before: str | None,
    after: str | None,
    why: str = "",
) -> Json:
    return {
        "ticket_id": ticket_id,
        "actor": actor,
        "action": action,
        "before": before,
        "after": after,
        "why": why,
    }
