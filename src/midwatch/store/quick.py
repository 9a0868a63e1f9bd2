"""Read a list of tickets from a SQLite file with statements that were compiled ahead.

The import of SQLAlchemy takes ten times as long as the list. `prepared.json` has what the functions of the store
make of SQLAlchemy for the usual lists; `python -m tools.prepared` writes it, and a test fails while it is not
current. What is not in it, and whatever does not work, is left to the store.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from midwatch.model import UNRESOLVED, Json, TicketStatus, keepable
from midwatch.store.figures import Brief, Listed, TicketFilter
from midwatch.store.rows import document_of, instant_of, ticket_of

FIELDS = ("subject", "severity", "batch")
PREPARED = Path(__file__).with_name("prepared.json")
_READERS: dict[str, Callable[[Any], Any]] = {
    "instant": instant_of,
    "document": document_of,
    "flag": bool,
}
_FAULTS = (sqlite3.Error, ArithmeticError, RecursionError, TypeError, ValueError)
"""What a file that is damaged, locked or of another release gives, and a number that is too large for SQLite."""


_STATUSES: dict[tuple[TicketStatus, ...], list[str]] = {
    UNRESOLVED: ["unresolved"],
    (TicketStatus.RESOLVED,): ["resolved"],
    (): [],
}


def shape(query: TicketFilter) -> str:
    """Return the name of the statement for a query: which of its conditions are set."""
    statuses = tuple(query.statuses)
    other = ["status"] if len(statuses) == 1 else ["other"]
    which = _STATUSES.get(statuses, other)
    given = [n for n in FIELDS if getattr(query, n) is not None]
    more = query.invariant or query.text or query.newest_first or query.after
    return " ".join([*which, *given, *(["more"] if more else [])])


def read_list(file: str, query: TicketFilter) -> Listed | None:
    """Return the tickets, and the summaries of their diagnoses; None if that is not possible here."""
    prepared = json.loads(PREPARED.read_text(encoding="utf-8"))
    statement = prepared["lists"].get(shape(query))
    if statement is None:
        return None
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
            database.execute("BEGIN")  # one moment for all that is read
            found = database.execute("SELECT version_num FROM alembic_version")
            if found.fetchall() != [(prepared["revision"],)]:
                return None
            read = partial(_rows, database, prepared["kinds"])
            tickets = list(map(ticket_of, read(statement, query)))
            brief: dict[int, Brief] = {}
            for one in tickets:
                if one.diagnosis_id is not None:
                    wanted = SimpleNamespace(id=one.diagnosis_id)
                    for row in read(prepared["brief"], wanted):
                        brief[one.id] = Brief(row.outcome, row.verdict, row.confidence)
            return tickets, brief
    except _FAULTS:
        return None


def _rows(
    database: sqlite3.Connection, kinds: Json, statement: Json, given: Any
) -> list[SimpleNamespace]:
    """Return the rows of a statement; its marked values are attributes of `given`."""
    values = [
        _value(given, one["name"]) if isinstance(one, dict) else one
        for one in statement["values"]
    ]
    cursor = database.execute(statement["sql"], values)
    names = [column[0] for column in cursor.description]
    readers = [_READERS.get(kinds.get(name, "")) for name in names]
    return [
        SimpleNamespace(
            **{
                name: value if read is None or value is None else read(value)
                for name, read, value in zip(names, readers, row, strict=True)
            }
        )
        for row in cursor
    ]


def _value(given: Any, name: str) -> Any:
    value = getattr(given, name)
    if name == "statuses":
        [value] = value
    return keepable(value) if isinstance(value, str) else value
