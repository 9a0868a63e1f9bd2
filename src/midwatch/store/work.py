"""One transaction as the statements see it: a connection and the moment it happens at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from sqlalchemy import Connection, CursorResult, Executable, Insert, Row, Table
from sqlalchemy.dialects import postgresql, sqlite

from ..model import Json
from .schema import audit

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
        self, statement: Executable, rows: Sequence[Json] | None = None
    ) -> CursorResult[Any]:
        if rows is None:
            return self.connection.execute(statement)
        return self.connection.execute(statement, rows)

    def one(self, statement: Executable) -> Row[Any] | None:
        return self.connection.execute(statement).first()

    def all(self, statement: Executable) -> Sequence[Row[Any]]:
        return self.connection.execute(statement).all()

    def insert_or_update(
        self, table: Table, row: Json, update: Json | None = None
    ) -> None:
        """Insert `row`; where its primary key exists, set `update`, or leave it alone if None."""
        insert: Any = (
            postgresql.insert
            if self.connection.dialect.name == "postgresql"
            else sqlite.insert
        )(table).values(row)
        key = list(table.primary_key.columns)
        statement: Insert = (
            insert.on_conflict_do_nothing(index_elements=key)
            if update is None
            else insert.on_conflict_do_update(index_elements=key, set_=update)
        )
        self.execute(statement)

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
