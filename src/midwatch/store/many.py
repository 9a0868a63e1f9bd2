"""Many values as one parameter, a list in JSON: a statement is the same, and compiled once, for any number of them."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from sqlalchemy import JSON, ColumnElement, Text, cast, func, literal, select

from midwatch.store.engine import Transaction


def one_of(
    tx: Transaction, column: ColumnElement[Any], values: Collection[Any]
) -> ColumnElement[bool]:
    """Return the condition that a column has one of many values."""
    each = each_of(tx, values)
    return column.in_(select(_as(tx, column, each)))


def each_of(tx: Transaction, values: Collection[Any]) -> Any:
    """Return the column of a table of many values; PostgreSQL has them as texts."""
    listed = json.dumps(list(values))
    if tx.connection.dialect.name == "sqlite":
        return func.json_each(listed).table_valued("value").c.value
    every = cast(literal(listed, Text), JSON)
    return func.json_array_elements_text(every).table_valued("value").c.value


def _as(tx: Transaction, column: ColumnElement[Any], each: Any) -> Any:
    if tx.connection.dialect.name == "sqlite":
        return each
    return cast(each, column.type)
