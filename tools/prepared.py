"""Write the SQL that is used without its definitions: of short commands, and of the tables of a new SQLite database (`python -m tools.prepared`)."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any, cast

from sqlalchemy import (
    Boolean,
    Column,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from midwatch.model import UNRESOLVED, Json, Severity, TicketStatus
from midwatch.store import action_runs, indexes, sums  # noqa: F401  # more tables
from midwatch.store.engine import Transaction
from midwatch.store.figures import TicketFilter
from midwatch.store.quick import FIELDS, PREPARED, shape
from midwatch.store.schema import REVISION, Document, Instant, metadata
from midwatch.store.tickets import briefs, list_tickets
from midwatch.store.upgrade import TABLES

_EXAMPLE = {"subject": "\ue000", "severity": Severity.INFO, "batch": 987_654_321}
_OPEN = TicketStatus.OPEN
_LIMIT, _ID = 987_654_322, 987_654_323
_KINDS = ((Instant, "instant"), (Document, "document"), (Boolean, "flag"))


class _Recorder:
    """Takes the place of a transaction, and keeps the statement."""

    def all(self, statement: Any, values: object = None) -> list[Any]:
        self.statement = statement
        return []


def prepared() -> str:
    """Return the statements as JSON."""
    lists: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    for statuses in (UNRESOLVED, (), (TicketStatus.RESOLVED,), (_OPEN,)):
        for count in range(len(FIELDS) + 1):
            for given in combinations(FIELDS, count):
                some = {name: _EXAMPLE[name] for name in given}
                query = TicketFilter(statuses, limit=_LIMIT, **some)  # type: ignore[arg-type]
                recorder = _Recorder()
                list_tickets(cast(Transaction, recorder), query)
                kinds |= _kinds(recorder.statement)
                marks = {**some, "limit": _LIMIT}
                if statuses == (_OPEN,):
                    marks["statuses"] = _OPEN
                lists[shape(query)] = _compiled(recorder.statement, marks)
    recorder = _Recorder()
    briefs(cast(Transaction, recorder), [_ID])
    document = {
        "revision": REVISION,
        "lists": lists,
        "brief": _compiled(recorder.statement, {"id": _ID}),
        "kinds": kinds,
    }
    return json.dumps(document, indent=1) + "\n"


def tables() -> str:
    """Return the statements that make the tables and indexes of a new SQLite database, that of alembic included."""
    revisions = Table(
        "alembic_version",
        MetaData(),
        Column("version_num", String(32), nullable=False),
        PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
    )
    made: list[CreateTable | CreateIndex] = []
    for table in (*metadata.sorted_tables, revisions):
        indexes_of = sorted(table.indexes, key=lambda index: str(index.name))
        made += [CreateTable(table), *map(CreateIndex, indexes_of)]
    texts = (str(one.compile(dialect=sqlite.dialect())).strip() for one in made)
    lines = (line.rstrip() for line in ";\n".join(texts).splitlines())
    return "\n".join(lines).replace("\t", "  ") + "\n"


def _compiled(statement: Any, marks: Json) -> Json:
    """Return a statement with its values; those of `marks` are given when it is used."""
    dialect = sqlite.dialect()
    compiled = statement.compile(
        dialect=dialect, compile_kwargs={"render_postcompile": True}
    )
    values = []
    for name in compiled.positiontup:
        value = _mark(compiled.params[name], marks)
        if not isinstance(value, dict) and name in compiled.binds:
            type_ = compiled.binds[name].type.dialect_impl(dialect)
            process = type_.bind_processor(dialect)
            value = process(value) if process else value
        values.append(value)
    return {"sql": " ".join(compiled.string.split()), "values": values}


def _mark(value: Any, marks: Json) -> Any:
    """Return the name of the field that a value comes from, or the value."""
    for name, example in marks.items():
        if value is example or (type(value) is type(example) and value == example):
            return {"name": name}
    return value


def _kinds(statement: Any) -> dict[str, str]:
    return {
        column.name: kind
        for column in statement.selected_columns
        for type_, kind in _KINDS
        if isinstance(column.type, type_)
    }


if __name__ == "__main__":
    PREPARED.write_text(prepared(), encoding="utf-8")
    TABLES.write_text(tables(), encoding="utf-8")
