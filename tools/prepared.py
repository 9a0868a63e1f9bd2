"""Write the statements that short commands use without SQLAlchemy (`python -m tools.prepared`)."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any, cast

from sqlalchemy import Boolean
from sqlalchemy.dialects import sqlite

from midwatch.model import UNRESOLVED, Severity
from midwatch.store.engine import Transaction
from midwatch.store.figures import TicketFilter
from midwatch.store.quick import FIELDS, PREPARED, shape
from midwatch.store.schema import REVISION, Document, Instant
from midwatch.store.tickets import briefs, list_tickets

_EXAMPLE = {"subject": "\ue000", "severity": Severity.INFO, "batch": 987_654_321}
_LIMIT = 987_654_322
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
    for statuses in (UNRESOLVED, ()):
        for count in range(len(FIELDS) + 1):
            for given in combinations(FIELDS, count):
                some = {name: _EXAMPLE[name] for name in given}
                query = TicketFilter(statuses, limit=_LIMIT, **some)  # type: ignore[arg-type]
                recorder = _Recorder()
                list_tickets(cast(Transaction, recorder), query)
                kinds |= _kinds(recorder.statement)
                sql, values = _compiled(recorder.statement)
                marks = {**some, "limit": _LIMIT}
                lists[shape(query)] = {
                    "sql": sql,
                    "values": [_mark(value, marks) for value in values],
                }
    recorder = _Recorder()
    briefs(cast(Transaction, recorder), [1])
    brief, _ = _compiled(recorder.statement)
    document = {"revision": REVISION, "lists": lists, "brief": brief, "kinds": kinds}
    return json.dumps(document, indent=1) + "\n"


def _compiled(statement: Any) -> tuple[str, list[Any]]:
    compiled = statement.compile(
        dialect=sqlite.dialect(), compile_kwargs={"render_postcompile": True}
    )
    return " ".join(compiled.string.split()), [
        compiled.params[name] for name in compiled.positiontup
    ]


def _mark(value: Any, marks: dict[str, Any]) -> Any:
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
