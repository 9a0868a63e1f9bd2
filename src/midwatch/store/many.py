"""Many values as one parameter: a statement is the same, and compiled once, for any number of them."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, cast, func, literal, select

from midwatch.store.engine import Transaction


def one_of(
    tx: Transaction, column: ColumnElement[Any], values: Collection[Any]
) -> ColumnElement[bool]:
    """Return the condition that a column has one of many values."""
    if tx.connection.dialect.name == "sqlite":
        found: ColumnElement[bool] = column.in_(select(each_of(tx, column, values)))
        return found
    return column == func.any(_array(column, values))


def each_of(
    tx: Transaction, column: ColumnElement[Any], values: Collection[Any]
) -> Any:
    """Return the column of a table of many values, which are such as another column has."""
    if tx.connection.dialect.name == "sqlite":
        return func.json_each(json.dumps(list(values))).table_valued("value").c.value
    each = func.unnest(_array(column, values)).table_valued("value")
    return each.render_derived().c.value


def _array(column: ColumnElement[Any], values: Collection[Any]) -> ColumnElement[Any]:
    from sqlalchemy.dialects.postgresql import ARRAY  # slow to import

    kind = ARRAY(column.type)
    return cast(literal(list(values), kind), kind)
